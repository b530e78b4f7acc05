"""One row of every environment at once: the check of what `SequenceReplay.append` is given."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from planet_lib._shapes import shown
from planet_lib.data._obs import FLOAT_IMAGE, dtype_of, flat_fields, looks_channels_last
from planet_lib.types import Array

_FLOATS = (torch.float16, torch.float32, torch.float64)


def check_steps(
    fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], action_dim: int, num_envs: int
) -> dict[str, Array]:
    """Return the fields of one row per environment as arrays [N, ...] of the types stored, or raise.

    Args:
        fields: obs (an array, or a dictionary of such), action, reward, is_first, terminated and truncated, each an
            array or tensor [N, ...]. Actions and rewards may be floats of any width.
        shapes: those of the observations, by flat name: "obs", or "obs/NAME".
        action_dim: A.
        num_envs: N.

    Raises:
        TypeError: where a field is not of its type.
        ValueError: where a shape or value is wrong.
    """
    flat = flat_fields(fields)
    expected = {*shapes, *(name for name in fields if name != "obs")}
    if set(flat) != expected:
        got = sorted(name for name in flat if name[:3] == "obs")
        raise ValueError(f"obs must be {sorted(shapes)} (obs_shape), got {got}")
    rows = {}
    for name, shape in shapes.items():
        rows[name] = _array(name, flat[name], (num_envs, *shape))
        if rows[name].dtype != dtype_of(shape):
            is_float_image = len(shape) == 3 and np.issubdtype(rows[name].dtype, np.floating)
            remedy = FLOAT_IMAGE if is_float_image else "convert it with astype"
            raise TypeError(f"{name} must be {dtype_of(shape)}, got {rows[name].dtype}; {remedy}")
    for name, size in (("action", (num_envs, action_dim)), ("reward", (num_envs,))):
        found = _array(name, flat[name], size)
        if not np.issubdtype(found.dtype, np.floating):
            raise TypeError(f"{name} must be floats, got {found.dtype}; convert it with astype(np.float32)")
        with np.errstate(over="ignore"):  # what overflows becomes inf, which is named below
            rows[name] = found.astype(np.float32)
    for name in ("is_first", "terminated", "truncated"):
        rows[name] = _array(name, flat[name], (num_envs,))
        if rows[name].dtype != np.bool_:
            raise TypeError(f"{name} must be bool, got {rows[name].dtype}; convert it with astype(bool)")
    _check_values(rows, list(shapes))
    return rows


def _array(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """Return one field as an array of the shape, or raise."""
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_meta:
            kind = "the meta device" if value.is_meta else value.layout
            raise TypeError(f"{name} must be an array, or a dense tensor with values, got {shown(value)} on {kind}")
        value = value.detach().cpu()
        is_other = value.is_floating_point() and value.dtype not in _FLOATS  # NumPy has no such type
        value = (value.float() if is_other else value).numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be an array or tensor, got {type(value).__name__}")
    if value.shape != shape:
        is_last = len(shape) == 4 and looks_channels_last(value.shape[1:])
        remedy = "; it is channels last: give obs.transpose(0, 3, 1, 2)" if is_last else ""
        raise ValueError(
            f"{name} must be {list(shape)}, one row for each of num_envs={shape[0]}, got {list(value.shape)}{remedy}"
        )
    return value


def _check_values(rows: Mapping[str, Array], obs_names: list[str]) -> None:
    """Check ranges, naming the first environment that breaks a rule."""
    action, reward, is_first = rows["action"], rows["reward"], rows["is_first"]
    floats = [(name, rows[name]) for name in obs_names if rows[name].dtype != np.uint8]
    rules = [(name, "be finite", ~np.isfinite(value).all(1), value) for name, value in floats]
    rules += [
        ("action", "be finite and in [-1, 1]", ~(np.abs(action) <= 1).all(1), action),
        ("reward", "be finite", ~np.isfinite(reward), reward),
        ("action", "be zero where is_first holds (nothing led to it)", is_first & (action != 0).any(1), action),
        ("reward", "be zero where is_first holds (nothing led to it)", is_first & (reward != 0), reward),
    ]
    for name, rule, broken, values in rules:
        if broken.any():
            number = int(broken.argmax())
            got = shown(values[number].tolist())
            raise ValueError(f"{name} must {rule}, broken in environment {number} of {len(reward)}, got {got}")
