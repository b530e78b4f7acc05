"""The one check of an episode, made wherever episodes enter: replay and files.

It knows only `Episode`. The checks read the values once, on the CPU, so that the hot path (sampling, updates) needs
none.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from planet_lib._shapes import check_count, check_flag, shown
from planet_lib.data._obs import FLOAT_IMAGE, check_names, dtype_of, looks_channels_last, obs_entries
from planet_lib.data._sizes import checked_shapes
from planet_lib.types import Array, Episode


def check_episode(
    episode: Episode,
    *,
    obs_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None,
    action_dim: int | None = None,
    is_part: bool = False,
) -> None:
    """Raise unless the episode is what `Episode` promises, and of the expected sizes where these are given.

    A part of an episode, its rows from somewhere on, need not begin as one, and its actions may be of any size.

    Args:
        episode: the episode; its values are read once.
        obs_shape: of one observation, or of each entry of a dictionary; None takes any.
        action_dim: A; None takes any.
        is_part: see above.

    Raises:
        TypeError: where the episode is no `Episode`, or a field is not an array of its type.
        ValueError: where a shape, value, flag or name is wrong.

    Example:
        >>> flags = np.zeros(3, bool)
        >>> episode = Episode(obs=np.zeros((3, 2), np.float32), action=np.zeros((3, 1), np.float32),
        ...     reward=np.zeros(3, np.float32), is_first=np.arange(3) == 0, terminated=flags, truncated=flags)
        >>> check_episode(episode, action_dim=1)
        >>> check_episode(episode._replace(reward=np.zeros(2, np.float32)))
        Traceback (most recent call last):
            ...
        ValueError: episode.reward must be [3], got [2]
    """
    if not isinstance(episode, Episode):
        raise TypeError(f"episode must be an Episode, got {type(episode).__name__}")
    check_flag(is_part=is_part)
    if action_dim is not None:
        check_count(action_dim=action_dim)
    length = _check_obs(episode.obs, None if obs_shape is None else checked_shapes(obs_shape, None))
    action_size: Any = "A" if action_dim is None else action_dim
    _check_array("episode.action", episode.action, np.dtype(np.float32), (length, action_size))
    _check_array("episode.reward", episode.reward, np.dtype(np.float32), (length,))
    for name in ("is_first", "terminated", "truncated"):
        _check_array(f"episode.{name}", getattr(episode, name), np.dtype(np.bool_), (length,))
    _check_values(episode, is_part=is_part)


def _check_obs(obs: Any, shape: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None) -> int:
    """Check names, types and shapes of the observations, and return their rows; None expects no shape in particular."""
    entries: dict[str, tuple[Any, tuple[int, ...] | None]]
    if isinstance(obs, dict):
        if isinstance(shape, tuple):
            raise TypeError(f"episode.obs must be a NumPy array of rows {shape} (obs_shape), got a dictionary")
        check_names("episode.obs", obs)
        shapes = dict.fromkeys(obs) if shape is None else dict(shape)
        if set(obs) != set(shapes):
            raise ValueError(f"episode.obs must have the entries {sorted(shapes)} of obs_shape, got {sorted(obs)}")
        entries = {f"episode.obs[{name!r}]": (value, shapes[name]) for name, value in obs.items()}
    elif isinstance(shape, Mapping):
        kind = type(obs).__name__
        raise TypeError(f"episode.obs must be a dictionary with the entries {sorted(shape)} of obs_shape, got {kind}")
    else:
        entries = {"episode.obs": (obs, shape)}
    length: int | None = None
    for name, (value, expected) in entries.items():
        _check_rows(name, value, length, expected)
        length = len(value)
    if not length:
        raise ValueError("episode.obs must have at least one row, got none")
    return length


def _check_rows(name: str, value: Any, length: int | None, shape: tuple[int, ...] | None) -> None:
    """Check the type and shape of the rows of one observation, images or vectors."""
    if isinstance(value, Mapping):
        raise TypeError(f"{name} must be a NumPy array, got a dictionary; flatten nested dictionaries into one")
    _check_is_array(name, value)
    got = value.shape[1:]
    if shape is None and (len(got) not in (1, 3) or 0 in got):
        raise ValueError(f"{name} must be [L, C, Y, X] or [L, N], of positive sizes, got {list(value.shape)}")
    remedy = ""
    if looks_channels_last(got):
        remedy = "; it is channels last: give obs.transpose(0, 3, 1, 2) (in torch, obs.movedim(-1, -3))"
        shape = (got[2], *got[:2]) if shape is None else shape
    shape = got if shape is None else shape
    is_float_image = len(shape) == 3 and np.issubdtype(value.dtype, np.floating)
    convert = FLOAT_IMAGE if is_float_image else "convert it with astype"
    rows = "L" if length is None else length
    _check_array(name, value, dtype_of(shape), (rows, *shape), wrong_shape=remedy, wrong_dtype=convert)


def _check_is_array(name: str, value: Any) -> None:
    """Raise unless the field is a NumPy array."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}")


def _check_array(
    name: str,
    value: Array,
    dtype: np.dtype[Any],
    shape: tuple[Any, ...],
    *,
    wrong_shape: str = "",
    wrong_dtype: str = "convert it with astype",
) -> None:
    """Check the type and shape of one field; a letter in `shape` stands for any size, A of at least 1."""
    _check_is_array(name, value)
    fits = value.ndim == len(shape)
    fits = fits and all(
        (size == "L" or got >= 1) if isinstance(size, str) else got == size
        for size, got in zip(shape, value.shape, strict=True)
    )
    if not fits:
        expected = "[" + ", ".join(str(size) for size in shape) + "]"
        raise ValueError(f"{name} must be {expected}, got {list(value.shape)}{wrong_shape}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}; {wrong_dtype}")


def _check_values(episode: Episode, *, is_part: bool) -> None:
    """Check ranges and flags, naming the first row that breaks a rule."""
    obs, action, reward, is_first, terminated, truncated = episode
    rows, largest = np.arange(len(reward)), np.finfo(np.float32).max if is_part else 1.0
    inner = rows < len(reward) - 1
    rules = [
        (name, "be finite", ~np.isfinite(value).reshape(len(rows), -1).all(1), value)
        for name, value in obs_entries(obs, "episode.obs").items()
        if value.dtype != np.uint8
    ]
    rules += [
        ("episode.action", "be finite and in [-1, 1]", ~(np.abs(action) <= largest).all(1), action),
        ("episode.reward", "be finite", ~np.isfinite(reward), reward),
    ]
    rules += (
        []
        if is_part
        else [
            ("episode.is_first", "hold at row 0 and nowhere else", is_first != (rows == 0), is_first),
            ("episode.action", "be zero at row 0 (nothing led to it)", (rows == 0) & (action != 0).any(1), action),
            ("episode.reward", "be zero at row 0 (nothing led to it)", (rows == 0) & (reward != 0), reward),
            ("episode.terminated", "hold at the last row only", inner & terminated, terminated),
            ("episode.truncated", "hold at the last row only", inner & truncated, truncated),
        ]
    )
    for name, rule, broken, values in rules:
        if broken.any():
            row = int(broken.argmax())
            got = shown(values[row].tolist())
            raise ValueError(f"{name} must {rule}, broken at row {row} of {len(reward)}, got {got}")
