"""What sizes a replay may have: shapes and types of its observations, and how many rows fit."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from planet_lib._shapes import check_count, check_whole, is_whole, shown
from planet_lib.data._obs import check_names, dtype_of, looks_channels_last

_MOST_PARTS = 2**16  # environments that step at once; each has tables of its own
_MOST_BYTES = 2**63 - 1


def rows_per_part(capacity: int | None, max_bytes: int | None, num_parts: int, row_bytes: int, part_bytes: int) -> int:
    """Return how many rows each part has: all that `capacity` and `max_bytes` allow.

    Args:
        capacity: rows of all parts together, at most, or None.
        max_bytes: bytes of all parts together, at most, or None.
        num_parts: how many equal parts there are.
        row_bytes: what one more row of a part takes.
        part_bytes: what a part takes besides.

    Raises:
        ValueError: where both limits are None, or no row fits into each part.

    Example:
        >>> rows_per_part(100, 1000, num_parts=2, row_bytes=20, part_bytes=8)
        24
    """
    check_whole("num_envs", num_parts, least=1, most=_MOST_PARTS)
    if capacity is None and max_bytes is None:
        raise ValueError("capacity or max_bytes must be given, got neither; say how many rows or bytes to hold")
    limits = []
    if capacity is not None:
        check_count(capacity=capacity)
        if capacity < num_parts:
            raise ValueError(f"capacity must be at least num_envs={num_parts}, a row for each, got {capacity}")
        limits.append(int(capacity) // num_parts)
    if max_bytes is not None:
        check_whole("max_bytes", max_bytes, least=1, most=_MOST_BYTES)
        limits.append((int(max_bytes) // num_parts - part_bytes) // row_bytes)
        if limits[-1] < 1:
            least = num_parts * (row_bytes + part_bytes)
            raise ValueError(
                f"max_bytes must be at least {least}, room for one row of each environment, got {max_bytes}"
            )
    rows = min(limits)
    if rows * num_parts * (row_bytes + part_bytes) > _MOST_BYTES:
        raise ValueError(
            f"capacity must be rows that memory can hold, got {rows * num_parts} of {row_bytes} bytes each (obs_shape, "
            "action_dim, num_envs, max_bytes); lower it"
        )
    return rows


def checked_shapes(
    obs_shape: Sequence[int] | Mapping[str, Sequence[int]], obs_dtype: DTypeLike | Mapping[str, DTypeLike] | None
) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """Return the shapes as tuples, by name where they are, or raise; the types must be the ones that shapes have.

    Raises:
        ValueError: where a shape is neither (C, Y, X) nor (N,) or looks like channels last, or a name can't be one.
        TypeError: where a size is no whole number, or a type is not that of its shape.

    Example:
        >>> checked_shapes({"camera": [3, 64, 64], "joints": [7]}, None)
        {'camera': (3, 64, 64), 'joints': (7,)}
    """
    if not isinstance(obs_shape, Mapping):
        if isinstance(obs_dtype, Mapping):
            raise TypeError(f"obs_dtype must be one type, as obs_shape is one shape, got {obs_dtype}")
        return _checked_shape("obs_shape", obs_shape, "obs_dtype", obs_dtype)
    check_names("obs_shape", obs_shape)
    dtypes: Any = dict.fromkeys(obs_shape) if obs_dtype is None else obs_dtype
    if not isinstance(dtypes, Mapping):
        raise TypeError(f"obs_dtype must be None or a mapping with the entries of obs_shape, got {obs_dtype!r}")
    if set(dtypes) != set(obs_shape):
        raise ValueError(f"obs_dtype must have the entries {list(obs_shape)} of obs_shape, got {list(dtypes)}")
    return {
        name: _checked_shape(f"obs_shape[{name!r}]", shape, f"obs_dtype[{name!r}]", dtypes[name])
        for name, shape in obs_shape.items()
    }


def _checked_shape(shape_name: str, given: Sequence[int], dtype_name: str, dtype: DTypeLike | None) -> tuple[int, ...]:
    """Return one shape as a tuple, or raise where it or its type is none that observations have."""
    try:
        shape = tuple(operator.index(size) for size in given)
    except Exception as error:  # whatever iterating over anything raises
        raise TypeError(f"{shape_name} must be (C, Y, X) or (N,), whole numbers, got {shown(given)}") from error
    if len(shape) not in (1, 3) or not all(is_whole(size) for size in shape):
        raise ValueError(f"{shape_name} must be (C, Y, X) or (N,), of positive sizes, got {shown(shape)}")
    if looks_channels_last(shape):
        first = (shape[2], *shape[:2])
        raise ValueError(
            f"{shape_name} must be (C, Y, X), channels first, got {shape}; give {first}, and images as "
            "obs.transpose(2, 0, 1) (in torch, obs.movedim(-1, 0))"
        )
    if dtype is not None and _dtype(dtype) != dtype_of(shape):
        raise TypeError(
            f"{dtype_name} must be uint8 for pixels (C, Y, X) and float32 for vectors (N,), got "
            f"{_dtype(dtype) or shown(dtype)} for {shape}; leave it out"
        )
    return shape


def _dtype(given: DTypeLike) -> np.dtype[Any] | None:
    """Return NumPy's type of what was given as one; None where it is none."""
    try:
        return np.dtype(given)
    except Exception:  # whatever NumPy raises on anything
        return None
