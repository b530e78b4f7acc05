"""What the three cells ask of their arguments. For this package alone.

It is asked at every step of a rollout, so what is right takes a few comparisons, and words are made for the rest alone.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from planet_lib._shapes import check_bool, check_device, check_dtype, check_last, check_shape
from planet_lib.types import State

# The member of a cell that says how many numbers an argument has.
_SIZES = {
    "action": "action_dim",
    "embed": "embed_dim",
    "noise": "stoch_dim",
    "prior_noise": "stoch_dim",
    "posterior_noise": "stoch_dim",
    "deter": "deter_dim",
    "stoch": "stoch_dim",
    "mean": "stoch_dim",
    "std": "stoch_dim",
}


_WEIGHTS = "the cell's weights"


class Sized(Protocol):
    """A cell as far as it is read here."""

    action_dim: int
    embed_dim: int
    deter_dim: int
    stoch_dim: int
    _modules: Any

    def parameters(self) -> Iterator[Tensor]:
        """All weights."""
        ...


def check_state(cell: Sized, name: str, state: State, *fields: str, like: Tensor | None = None) -> torch.Size:
    """Return a state's leading axes, or raise unless those of its fields that are read fit the cell and each other.

    They are of the type and on the device of `like`, the cell's weights, or else of the first of them.
    """
    given: object = state
    if not isinstance(given, State):
        raise TypeError(f"{name} must be the cell's State, got {type(given).__name__}")
    first = getattr(state, fields[0])
    lead = first.shape[:-1] if isinstance(first, Tensor) else torch.Size()
    reference = first if like is None else like
    for field in fields:
        value = getattr(state, field)
        if not _fits(value, (*lead, getattr(cell, _SIZES[field])), reference):
            because = f"as {name}.{fields[0]}" if like is None else _WEIGHTS
            _explain(cell, field, value, lead, f"{name}.{fields[0]}", reference, because, f"{name}.")
    return lead


def check_beside(
    cell: Sized, lead: tuple[int, ...], of: str, like: Tensor, because: str, **values: Tensor | None
) -> None:
    """Raise unless the tensors given by keyword, None for noise that is drawn, have the leading axes of another one."""
    for name, value in values.items():
        fits = _fits(value, (*lead, getattr(cell, _SIZES[name])), like)
        if not fits and not (value is None and name.endswith("noise")):
            _explain(cell, name, value, lead, of, like, because)


def check_step(cell: Sized, name: str, state: State, *fields: str, **values: Tensor | None) -> None:
    """Raise unless a state and what a step reads beside it fit each other, and the cell and its weights."""
    weight = _weight(cell)
    lead = check_state(cell, name, state, *fields, like=weight)
    check_beside(cell, lead, name, weight, _WEIGHTS, **values)


def check_redraw(cell: Sized, state: State, noise: Tensor | None) -> None:
    """Raise unless a state and noise fit each other and the cell."""
    lead = check_state(cell, "state", state, "deter", "mean", "std")
    check_beside(cell, lead, "state", state.deter, "as state.deter", noise=noise)


def check_alike(cell: Sized, posterior: State, prior: State) -> None:
    """Raise unless the distributions of two states can be compared."""
    lead = check_state(cell, "posterior", posterior, "mean", "std")
    other = check_state(cell, "prior", prior, "mean", "std", like=posterior.mean)
    if other != lead:
        raise ValueError(f"prior must have the leading axes {list(lead)} of posterior, got {list(other)}")


def check_scan(cell: Sized, state: State, is_first: Tensor, **values: Tensor | None) -> None:
    """Raise unless the arguments of `scan` fit each other and the cell; `values` as `check_beside` takes them."""
    weight = _weight(cell)
    lead = check_state(cell, "state", state, "deter", "stoch", like=weight)
    if len(lead) != 1:
        raise ValueError(f"state must have fields [B, ...], got leading axes {list(lead)}")
    check_shape("is_first", is_first, "T B", B=lead[0], because="from state")
    check_bool("is_first", is_first)
    check_device("is_first", is_first, weight.device, because=_WEIGHTS)
    if not is_first.shape[0]:
        raise ValueError(f"is_first must have at least one row along its first axis, got {list(is_first.shape)}")
    check_beside(cell, is_first.shape, "is_first", weight, _WEIGHTS, **values)


def _weight(cell: Sized) -> Tensor:
    """The weights that stand for all; as `cell.posterior_head.out.weight`, without asking for each name in turn."""
    out = cell._modules["posterior_head"]._modules.get("out")
    weight: Tensor | None = None if out is None else out._parameters.get("weight")
    # A layer that somebody changed, by a parametrization say, may have none of that name.
    return next(cell.parameters()) if weight is None else weight


def _fits(value: object, shape: tuple[int, ...], like: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.dtype == like.dtype
        and value.device == like.device
        and value.layout == torch.strided
    )


def _explain(
    cell: Sized, name: str, value: Any, lead: tuple[int, ...], of: str, like: Any, because: str, prefix: str = ""
) -> None:
    """Raise what is wrong with a tensor that does not fit; under autocast, another floating type is not."""
    size = _SIZES[name]
    name = prefix + name
    check_last(name, value, getattr(cell, size), because=f"the cell's {size}")
    if value.shape[:-1] != lead:
        raise ValueError(f"{name} must have the leading axes {list(lead)} of {of}, got {list(value.shape)}")
    check_dtype(name, value, like.dtype, because=because)
    check_device(name, value, like.device, because=because)
