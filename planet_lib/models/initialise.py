"""Initialisation as in the original TensorFlow code, for runs that are to be compared with it.

Knows layers only. PyTorch's own initialisation is what every part starts with.

Source: google-research/planet builds its layers with tf.layers and tf.contrib.rnn.GRUBlockCell, whose defaults are
Glorot-uniform kernels and zero biases, and 1 for the biases of the GRU's gates.
"""

from torch import nn
from torch.nn.parameter import is_lazy

from planet_lib._shapes import shown


def init_glorot_(module: nn.Module) -> None:
    """Draw all weights of `module` anew as TensorFlow 1 does: W ~ U(-b, b), b^2 = 6 / (fan_in + fan_out), biases zero.

    It changes linear layers, convolutions and transposed convolutions, and the cells' GRUs, whose gates (reset and
    update) get a bias of 1. The two halves of a layer that gives mean and std count as two layers, and the weights of a
    GRU for input and state as one, as they do there. Other parts with parameters keep theirs.

    Args:
        module: a cell, a head or a whole `WorldModel`; changed in place, from torch's global generator.

    Raises:
        TypeError: module is no `torch.nn.Module`.
        ValueError: a layer whose weights are no floats yet, or have no sizes yet. Nothing is changed then.

    Source: Glorot and Bengio 2010; google-research/planet models/rssm.py (layers and GRU with their defaults).

    Example:
        >>> from planet_lib import RSSMCell
        >>> cell = RSSMCell(action_dim=6, embed_dim=1024)
        >>> init_glorot_(cell)
        >>> cell.path.gru.bias_ih[:2].tolist(), cell.path.gru.bias_ih[-1].item()
        ([1.0, 1.0], 0.0)
    """
    given: object = module
    if not isinstance(given, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {shown(given)}")
    parts = list(module.modules())
    layers = [part for part in parts if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    for layer in layers:
        weight = layer.weight
        if is_lazy(weight) or not weight.is_floating_point():
            got = "one without sizes; call it once first" if is_lazy(weight) else f"weights of {weight.dtype}"
            raise ValueError(f"module must have layers with weights of floats, got a {type(layer).__name__}: {got}")
    for layer in layers:
        if layer.weight.numel():
            nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for part in parts:  # afterwards, since these know better about the layers inside them
        own = getattr(part, "init_glorot_", None)
        if own is not None:
            own()
