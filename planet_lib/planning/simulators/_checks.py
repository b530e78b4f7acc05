"""What the simulators ask of their arguments, and of what a user's functions return. Knows no simulator."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planet_lib._shapes import check_dense, check_floating, check_members, check_shape, is_finite, shown

Array = np.ndarray[Any, np.dtype[np.float64]]


def check_functions(**functions: object) -> None:
    """Raise a `TypeError` for the first keyword that can neither be called nor is None."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {shown(function)}")


def check_env(name: str, env: object) -> None:
    """Raise a `TypeError` unless `env` is an object with a method `step`."""
    check_members(name, env, "an environment", "step")
    step = getattr(env, "step", None)
    if not callable(step):
        raise TypeError(f"{name} must be an environment with a method step, got {shown(step)} for it")


def check_discount(discount: float) -> None:
    """Raise a `ValueError` unless the discount is in (0, 1]."""
    if not is_finite(discount) or not 0 < discount <= 1:
        raise ValueError(f"discount must be in (0, 1], got {shown(discount)}")


def check_actions(actions: Tensor) -> None:
    """Raise unless these are floats [H, B, J, A] that the host can read."""
    check_shape("actions", actions, "H B J A")
    check_numbers("actions", actions)


def check_numbers(name: str, values: Tensor) -> None:
    """Raise unless these are floats that the host can read."""
    check_floating(name, values)
    if values.is_meta:
        raise ValueError(f"{name} must be on a device that has numbers, got a tensor on meta")


def places(name: str, values: Tensor, count: int, because: str) -> list[int]:
    """Return whole numbers [B] as a list, or raise unless each is a place in a list of `count`."""
    check_dense(name, values, " of whole numbers [B]")
    if values.is_meta or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must be whole numbers, got {values.dtype} on {values.device}")
    result: list[int] = values.tolist()
    wrong = [place for place in result if not 0 <= place < count]
    if wrong:
        raise ValueError(f"{name} must be at least 0 and less than {count} ({because}), got {wrong[0]}")
    return result


def as_floats(name: str, values: object) -> Array:
    """Return what a user's function gave as floats, or raise."""
    try:
        given = np.asarray(values)
        if given.dtype.kind not in "biuf":
            raise TypeError
        return given.astype(np.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must return an array of real numbers, got {shown(values)}") from None


def outcome(returned: object) -> tuple[float, bool]:
    """Return reward and whether the episode is over, from what `env.step` gave, or raise where it is no such thing."""
    if not isinstance(returned, tuple | list) or len(returned) != 5:
        got = f"{len(returned)} of them" if isinstance(returned, Sequence) else shown(returned)
        raise TypeError(f"env.step must return observation, reward, terminated, truncated and info, got {got}")
    _, reward, terminated, truncated, _ = returned
    try:
        return float(reward), bool(terminated) or bool(truncated)
    except (TypeError, ValueError, RuntimeError):
        got = ", ".join(shown(each) for each in (reward, terminated, truncated))
        raise TypeError(f"env.step must return a number and two flags after the observation, got {got}") from None
