"""Layers that cells and heads share. For this package alone."""

from collections.abc import Callable
from itertools import islice, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planet_lib._shapes import check_choice

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


class Hidden(nn.Module):
    """Linear layers, each followed by the activation: hidden = act(W_n ... act(W_1 inputs + b_1) ... + b_n)."""

    def __init__(self, input_dim: int, hidden_dim: int, num_layers: int, activation: str) -> None:
        super().__init__()
        check_choice("activation", activation, tuple(ACTIVATIONS))
        self.activation = activation
        widths = [input_dim] + [hidden_dim] * num_layers
        self.layers = nn.ModuleList(nn.Linear(below, above) for below, above in pairwise(widths))

    def hidden(self, inputs: Tensor) -> Tensor:
        """Return the last hidden layer [..., hidden_dim]."""
        return self.hidden_from(self.layers[0](inputs))

    def hidden_from(self, first: Tensor) -> Tensor:
        """Return the last hidden layer, given the first one's products before the activation."""
        activate = ACTIVATIONS[self.activation]
        hidden = activate(first)
        for layer in islice(self.layers, 1, None):  # a slice would build a new ModuleList at every step
            hidden = activate(layer(hidden))
        return hidden

    def split(self, *sizes: int) -> tuple[list[Tensor], Tensor]:
        """Return the first layer's weights for inputs of `sizes`, and its bias: products can be made piece by piece."""
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        return list(torch.split(first.weight, list(sizes), -1)), first.bias


def apply_layers(layers: nn.ModuleList, hidden: Tensor, activation: str = "relu") -> Tensor:
    """Apply linear layers with the activation between them and none after the last."""
    activate = ACTIVATIONS[activation]
    for layer in islice(layers, len(layers) - 1):
        hidden = activate(layer(hidden))
    output: Tensor = layers[-1](hidden)
    return output
