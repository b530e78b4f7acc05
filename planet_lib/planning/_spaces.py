"""What actions are searched in: a box, or the corners of a simplex. For the planners; knows no dynamics, no returns."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from planet_lib._shapes import check_dense, check_positive, is_number, is_whole, shown
from planet_lib.planning._checks import LARGEST

Bound: TypeAlias = float | Sequence[float] | np.ndarray[Any, Any] | Tensor
Sampling = Literal["clip", "truncate"]


class Box(NamedTuple):
    """Bounds per dimension [A], with the centre of the search and its scale, half the width.

    A dimension without a bound is searched from as near to 0 as its other bound allows, at scale 1.
    """

    low: Tensor
    high: Tensor
    middle: Tensor
    scale: Tensor

    def like(self, other: Tensor) -> "Box":
        """Return the box in the dtype and on the device of `other`, without waiting for the device."""
        return Box(*(_like(bound, other) for bound in self))

    def clip(self, action: Tensor) -> Tensor:
        """Return `action` [..., A] moved into the box."""
        return action.clamp(self.low, self.high)

    def settle(self, mean: Tensor) -> Tensor:
        """Return the nearest mean [..., A] that a search can have."""
        return self.clip(mean)

    def resume(self, mean: Tensor) -> Tensor:
        """Return where a search starts that goes on from an earlier one's mean [..., A]."""
        return self.clip(mean)

    def explore(self, action: Tensor, scale: float, noise: Tensor) -> Tensor:
        """Return the action with normal noise added, within the box."""
        return self.clip(action + scale * noise)

    def sample(self, mean: Tensor, std: Tensor, noise: Tensor, sampling: Sampling) -> Tensor:
        """Return actions [..., A] made from standard normal noise, all within the box.

        "clip": mean + std * noise, moved to the nearest bound.  "truncate": the normal given that it is within the
        bounds, by its inverse distribution function at Phi(noise), so that larger noise is a larger action.
        """
        if sampling == "clip":
            return self.clip(mean + std * noise)
        if std.dtype in (torch.bfloat16, torch.float16):  # torch has no inverse for them
            wide = Box(*(bound.float() for bound in self))
            return wide.sample(mean.float(), std.float(), noise.float(), sampling).to(std.dtype)
        limits = torch.finfo(std.dtype)
        scale = std.clamp(min=limits.tiny)
        below, above = (torch.special.ndtr((bound - mean) / scale) for bound in (self.low, self.high))
        share = below + (above - below) * torch.special.ndtr(noise)
        # Where the share rounds to 0 or 1 the inverse would be infinite.
        return self.clip(mean + std * torch.special.ndtri(share.clamp(limits.eps, 1 - limits.eps)))

    def uniform(self, noise: Tensor) -> Tensor:
        """Return actions uniform within the bounds, at Phi(noise); normal in dimensions that lack a bound."""
        flat = self.middle + self.scale * (2 * torch.special.ndtr(noise) - 1)
        bounded = self.low.isfinite() & self.high.isfinite()
        return self.clip(torch.where(bounded, flat, self.middle + self.scale * noise))


class OneHot(NamedTuple):
    """Choices as one-hot vectors [A]; the centre of the search gives each the same probability."""

    low: Tensor
    high: Tensor
    middle: Tensor
    scale: Tensor

    def like(self, other: Tensor) -> "OneHot":
        """Return the space in the dtype and on the device of `other`, without waiting for the device."""
        return OneHot(*(_like(bound, other) for bound in self))

    def clip(self, action: Tensor) -> Tensor:
        """Return the one-hot vector of the largest number of `action` [..., A]."""
        return F.one_hot(action.argmax(-1), action.shape[-1]).to(action.dtype)

    def settle(self, mean: Tensor) -> Tensor:
        """Return the probabilities [..., A] that are in proportion to `mean`; negative numbers count as 0.

        Where nothing is left all have the same.
        """
        weight = mean.clamp(min=0)
        total = weight.sum(-1, keepdim=True)
        return torch.where(total > 0, weight / total, self.middle)

    def resume(self, mean: Tensor) -> Tensor:
        """Return where a search starts that goes on from an earlier one's mean [..., A]: half of it, half even.

        What the earlier one had given up must be possible again.
        """
        return (self.settle(mean) + self.middle) / 2

    def explore(self, action: Tensor, scale: float, noise: Tensor) -> Tensor:
        """Return, with probability `scale`, a choice at random instead of the action."""
        # Of independent normals the largest is anyone's guess, whatever their sum is: two draws from one noise.
        chance = torch.special.ndtr(noise.sum(-1, keepdim=True) / noise.shape[-1] ** 0.5)
        return torch.where(chance < scale, self.clip(noise), action)

    def sample(self, probability: Tensor, noise: Tensor) -> Tensor:
        """Return one-hot vectors [..., A] drawn with the given probabilities, from standard normal noise."""
        limits = torch.finfo(noise.dtype)
        share = torch.special.ndtr(noise).clamp(limits.tiny, 1 - limits.eps)
        return self.clip(probability.log() - (-share.log()).log())


Space: TypeAlias = Box | OneHot


def make_box(low: Bound, high: Bound, action_dim: int | None) -> Box:
    """Return the box in float64, or raise a `ValueError` that says what is wrong with the bounds."""
    if action_dim is not None:
        check_positive(action_dim=action_dim)
        if not is_whole(action_dim):
            raise ValueError(f"action_dim must be a whole number from 1 to 2**31 - 1, got {shown(action_dim)}")
    lower, upper = _bound("low", low), _bound("high", high)
    shapes = [list(bound.shape) for bound in (lower, upper)]
    if lower.ndim > 1 or upper.ndim > 1:
        raise ValueError(f"low and high must be numbers or [A], got {shapes[0]} and {shapes[1]}")
    sizes = [shape[0] for shape in shapes if shape]
    if not sizes:
        if action_dim is None:
            raise ValueError("action_dim must be given where low and high are both single numbers, got None")
        sizes = [action_dim]
    if sizes[0] == 0:
        raise ValueError(f"low and high must have at least one dimension, got {shapes[0]} and {shapes[1]}")
    if sizes[-1] != sizes[0]:
        raise ValueError(f"high must be a number or [A], like low, with A={sizes[0]}, got {shapes[1]}")
    if action_dim not in (None, sizes[0]):
        raise ValueError(f"action_dim must be the size of low and high, {sizes[0]}, got {action_dim}")
    lower, upper = lower.expand(sizes[0]).contiguous(), upper.expand(sizes[0]).contiguous()
    if lower.device != upper.device:
        raise ValueError(f"high must be on {lower.device} (as low), got a tensor on {upper.device}")
    if not bool((lower < upper).all()):
        raise ValueError(f"low must be less than high in every dimension, got {lower.tolist()} and {upper.tolist()}")
    bounded = lower.isfinite() & upper.isfinite()
    # Where a bound is missing the middle is not a number; `where` drops it.
    nearest = torch.zeros_like(lower).clamp(lower, upper)
    middle = torch.where(bounded, (lower + upper) / 2, nearest)
    return Box(lower, upper, middle, torch.where(bounded, (upper - lower) / 2, 1.0))


def _bound(name: str, bound: Bound) -> Tensor:
    """Return a bound in float64, a copy, so that the caller's array can change without the box."""
    given: object = bound
    if isinstance(given, Tensor):
        check_dense(name, given, " of numbers [A]")
        if given.is_meta or given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"{name} must be a tensor of real numbers, got {shown(given)} on {given.device}")
        result = given.detach().to(torch.float64).clone()
    elif isinstance(given, np.ndarray):
        if given.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be an array of real numbers, got {shown(given)}")
        result = torch.tensor(given.astype(np.float64))
    else:
        numbers = _numbers(name, given)
        try:
            result = torch.tensor(numbers, dtype=torch.float64)
        except (ValueError, TypeError):
            raise ValueError(f"{name} must be a number or one per dimension, got lists of several lengths") from None
    if bool(((result.abs() > LARGEST) & result.isfinite()).any()):
        raise ValueError(f"{name} must be within {LARGEST:g} of 0, or infinite for no bound, got {shown(bound)}")
    return result


def _numbers(name: str, bound: object) -> Any:
    """Return a number as a float, and a list of numbers as one of floats, be it nested."""
    if is_number(bound):
        try:
            return float(bound)  # type: ignore[arg-type]  # it is a number
        except OverflowError:
            raise ValueError(f"{name} must be made of numbers that a float can hold, got {shown(bound)}") from None
    if not isinstance(bound, Sequence) or isinstance(bound, str | bytes):
        raise TypeError(f"{name} must be a number or one for each dimension of the action, got {shown(bound)}")
    return [_numbers(name, item) for item in bound]


def make_one_hot(num_actions: int) -> OneHot:
    """Return the space of `num_actions` choices, in float64."""
    zero = torch.zeros(num_actions, dtype=torch.float64)
    chance = 1 / num_actions
    return OneHot(zero, zero + 1, zero + chance, zero + (chance * (1 - chance)) ** 0.5)


def _like(bound: Tensor, other: Tensor) -> Tensor:
    return bound.to(other.dtype).to(other.device, non_blocking=True)
