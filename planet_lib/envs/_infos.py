"""The infos of many environments as one dictionary, as Gymnasium's vector environments give them.

Source: `gymnasium.vector.VectorEnv._add_info` gives the layout. Different here: it takes each array from the first row
and writes the others into it, which rounds them or raises; what does not fit together is an object array here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from planet_lib.envs.images import Array


def batch_infos(
    infos: Mapping[int, Mapping[Any, Any]], num_rows: int, *, inside: frozenset[int] = frozenset()
) -> dict[Any, Any]:
    """Return an array [N, ...] for each key of any row, and under "_key" which rows have it, [N] bool.

    Numbers become an array of their common type, arrays of one shape and type are stacked, each with zeros in the rows
    without it, and dictionaries become dictionaries. Anything else, and whatever differs between the rows in what it is
    or in its shape, becomes an object array, with None in the rows without it; so do dictionaries that hold
    themselves. `inside`: the identities of those around.

    Example:
        >>> batch_infos({0: {"speed": 1.5, "hit": 2}, 1: {"hit": "wall"}}, 2)["speed"].tolist()
        [1.5, 0.0]
        >>> batch_infos({0: {"speed": 1.5, "hit": 2}, 1: {"hit": "wall"}}, 2)["hit"].tolist()
        [2, 'wall']
    """
    result: dict[Any, Any] = {}
    inside |= {id(info) for info in infos.values()}
    for key in dict.fromkeys(key for info in infos.values() for key in info):
        values = {row: info[key] for row, info in infos.items() if key in info}
        has_value = np.zeros(num_rows, np.bool_)
        has_value[list(values)] = True
        if key != "final_obs" and all(isinstance(one, dict) and id(one) not in inside for one in values.values()):
            result[key] = batch_infos(values, num_rows, inside=inside)
        else:
            result[key] = _batched(values, num_rows, is_object=key == "final_obs")
        result[f"_{key}"] = has_value
    return result


def _batched(values: dict[int, Any], num_rows: int, *, is_object: bool) -> Array:
    """Return the values of some rows as an array [N, ...], of their common type or of objects."""
    layout = None if is_object else _layout(list(values.values()))
    if layout is not None:
        shape, dtype = layout
        out = np.zeros((num_rows, *shape), dtype)
        try:
            for row, value in values.items():
                out[row] = value
        except OverflowError:  # an int of more than 64 bits
            pass
        else:
            return out
    out = np.full(num_rows, None, object)
    for row, value in values.items():
        out[row] = value
    return out


def _layout(values: list[Any]) -> tuple[tuple[int, ...], Any] | None:
    """Return the shape and the dtype that all values share, or None."""
    if all(isinstance(value, bool | np.bool_) for value in values):
        return (), np.bool_
    # NumPy has durations among its numbers, which mix with no others.
    numbers = [value for value in values if not isinstance(value, np.timedelta64)]
    if len(numbers) == len(values) and all(type(one) in (int, float) or isinstance(one, np.number) for one in numbers):
        return (), np.result_type(*(type(value) for value in values))
    if all(isinstance(value, np.ndarray) for value in values):
        kinds = {(value.shape, value.dtype) for value in values}
        return next(iter(kinds)) if len(kinds) == 1 else None
    return None
