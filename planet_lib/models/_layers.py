"""Layers that cells and heads share. For this package alone."""

from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planet_lib._shapes import check_choice, check_count, check_device, check_dtype, check_positive

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


def sizes(**values: int) -> tuple[int, ...]:
    """Return the sizes given by keyword as ints, or raise a `ValueError` for the first that is none.

    Example:
        >>> sizes(deter_dim=200, stoch_dim=0)
        Traceback (most recent call last):
            ...
        ValueError: stoch_dim must be greater than 0, got 0
    """
    check_positive(**values)
    check_count(**values)
    traced: Any = torch.SymInt  # of a size that torch traces without knowing it: int would fix it
    return tuple(value if isinstance(value, traced) else int(value) for value in values.values())


def check_meets(name: str, value: Tensor, part: nn.Module, because: str) -> None:
    """Raise unless `value` is of the type and on the device of the weights of `part`, which `because` names."""
    weight = _first_weight(part)  # a part whose weights are packed away shows none
    if weight is not None and (value.dtype != weight.dtype or value.device != weight.device):
        check_dtype(name, value, weight.dtype, because=because)
        check_device(name, value, weight.device, because=because)


def _first_weight(part: nn.Module) -> Tensor | None:
    """The first weight found; as `next(part.parameters())`, which takes ten times as long, by way of names."""
    for weight in part._parameters.values():
        if weight is not None:
            return weight
    for child in part._modules.values():
        found = None if child is None else _first_weight(child)
        if found is not None:
            return found
    return None


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
