"""What users give to environments, and what environments give back: checked, with errors that name it.

It knows arrays and numbers, no environment.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from planet_lib._errors import NonFiniteError
from planet_lib._shapes import MOST, is_whole, shown, whole_sizes
from planet_lib.envs.images import Array

MOST_SEEDS = 2**63 - 1


def numbers_of(name: str, given: Any, expected: str) -> Array:
    """Return an array of real numbers, or raise a `TypeError` where NumPy finds none in `given`.

    Example:
        >>> numbers_of("action", ["up"], "[A]")
        Traceback (most recent call last):
            ...
        TypeError: action must be numbers [A], got ['up']
    """
    try:
        values = np.asarray(given)
    except Exception:  # ragged lists, tensors elsewhere, and whatever an object makes of it
        values = np.asarray(None)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numbers {expected}, got {shown(given)}")
    return values


def size_of(given: Any) -> tuple[int, int]:
    """Return an image_size as (Y, X), or raise a `ValueError`.

    Example:
        >>> size_of([64, 96])
        (64, 96)
    """
    sizes = whole_sizes(given)
    if sizes is not None and len(sizes) == 2:
        return sizes[0], sizes[1]
    pair: list[Any] = list(given) if isinstance(given, list | tuple) else []
    expected = "two whole numbers"
    if len(pair) == 2 and all(is_whole(size, -(10**60), 10**60) for size in pair):
        expected = "each at least 1" if min(pair) < 1 else f"each at most {MOST}"
    raise ValueError(f"image_size must be (Y, X), {expected}, got {shown(given)}")


def reward_of(given: Any, action: Array) -> float:
    """Return a reward as a float, or raise where the environment gave something else than a finite number."""
    try:
        reward = float(given)
    except Exception as error:  # whatever an object makes of it
        raise TypeError(f"the environment's reward must be a number, got {shown(given)}") from error
    if not math.isfinite(reward):
        raise NonFiniteError(f"the environment's reward must be finite, got {reward} after action {action}")
    return reward


def flag_of(name: str, given: Any) -> bool:
    """Return whether an episode ends, or raise where the environment gave something else than yes or no."""
    if isinstance(given, bool | np.bool_):
        return bool(given)
    values = numbers_of(f"the environment's {name}", given, "(one, True or False)")
    if values.size != 1 or values.item() not in (0, 1):
        raise TypeError(f"the environment's {name} must be True or False, got {shown(given)}")
    return bool(values.item())


def parts_of(given: Any, count: int, what: str) -> Any:
    """Return the tuple that `reset` or `step` of an environment gave, or raise where it is none of `count` values."""
    if not isinstance(given, tuple | list) or len(given) != count:
        got = f"{len(given)} values" if isinstance(given, tuple | list) else shown(given)
        raise TypeError(f"the environment's {what} must return {count} values, as Gymnasium's does, got {got}")
    return given


def check_reset(seed: Any, options: Any) -> int | None:
    """Return a seed as an int, or raise unless it is one or None, and options a dictionary or None."""
    if seed is not None and not is_whole(seed, 0, MOST_SEEDS):
        raise ValueError(f"seed must be None or a whole number from 0 to {MOST_SEEDS}, got {shown(seed)}")
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options must be None or a dictionary, got {shown(options)}")
    return None if seed is None else int(seed)


def seeds_of(given: Any, num_envs: int) -> list[int | None]:
    """Return the seed of each of several environments, or raise unless `given` is None, one seed, or one for each.

    Example:
        >>> seeds_of(7, 2), seeds_of([3, None], 2)
        ([7, 8], [3, None])
    """
    if given is None:
        return [None] * num_envs
    if is_whole(given, 0, MOST_SEEDS - num_envs):
        return [int(given) + row for row in range(num_envs)]
    seeds = list(given) if isinstance(given, Sequence | np.ndarray) and np.ndim(given) == 1 else None
    if seeds is None or isinstance(given, str | bytes):
        expected = f"one number, or one for each of {num_envs} rows, all at least 0 and below 2**63"
        raise ValueError(f"seed must be {expected}, got {shown(given)}")
    if len(seeds) != num_envs:
        raise ValueError(f"seed must be one number, or one for each of {num_envs} rows, got {len(seeds)}")
    return [check_reset(seed, None) for seed in seeds]
