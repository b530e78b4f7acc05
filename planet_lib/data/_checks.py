"""The one check of an episode, made wherever episodes enter: replay and files.

It knows only `Episode`. The checks read the values once, on the CPU, so that the hot path (sampling, updates) needs
none.
"""

from typing import Any

import numpy as np

from planet_lib.types import Episode

OBS_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32))


def check_episode(
    episode: Episode,
    *,
    obs_shape: tuple[int, ...] | None = None,
    obs_dtype: np.dtype[Any] | None = None,
    action_dim: int | None = None,
) -> None:
    """Raise unless the episode is what `Episode` promises, and of the expected sizes where these are given.

    Raises:
        TypeError: where the episode is no `Episode`, or a field is not an array of its type.
        ValueError: where a shape, value or flag is wrong.
    """
    if not isinstance(episode, Episode):
        raise TypeError(f"episode must be an Episode, got {type(episode).__name__}")
    for name, value in episode._asdict().items():
        if not isinstance(value, np.ndarray):
            raise TypeError(f"episode.{name} must be a NumPy array, got {type(value).__name__}")
    _check_obs(episode.obs, obs_shape, obs_dtype)
    length = len(episode.obs)
    if length < 1:
        raise ValueError("episode.obs must have at least one row, got none")
    action_size: Any = "A" if action_dim is None else action_dim
    _check_array("action", episode.action, np.dtype(np.float32), (length, action_size))
    _check_array("reward", episode.reward, np.dtype(np.float32), (length,))
    for name in ("is_first", "terminated", "truncated"):
        _check_array(name, getattr(episode, name), np.dtype(np.bool_), (length,))
    _check_values(episode)


def _check_obs(obs: np.ndarray[Any, Any], shape: tuple[int, ...] | None, dtype: np.dtype[Any] | None) -> None:
    """Check the type and shape of the observations; without expectations, any rows of uint8 or float32 will do."""
    if shape is None:
        if obs.ndim < 2:
            raise ValueError(f"episode.obs must be [L, C, Y, X] or [L, N], got {list(obs.shape)}")
        shape = obs.shape[1:]
    if dtype is None:
        if obs.dtype not in OBS_DTYPES:
            raise TypeError(f"episode.obs must be uint8 or float32, got {obs.dtype}")
        dtype = obs.dtype
    _check_array("obs", obs, dtype, ("L", *shape))


def _check_array(name: str, value: np.ndarray[Any, Any], dtype: np.dtype[Any], shape: tuple[Any, ...]) -> None:
    """Check the type and shape of one field; a letter in `shape` stands for any size."""
    fits = value.ndim == len(shape)
    fits = fits and all(isinstance(size, str) or size == got for size, got in zip(shape, value.shape, strict=True))
    if not fits:
        expected = "[" + ", ".join(str(size) for size in shape) + "]"
        raise ValueError(f"episode.{name} must be {expected}, got {list(value.shape)}")
    if value.dtype != dtype:
        raise TypeError(f"episode.{name} must be {dtype}, got {value.dtype}; convert it with astype")


def _check_values(episode: Episode) -> None:
    """Check ranges and flags, naming the first row that breaks a rule."""
    obs, action, reward, is_first, terminated, truncated = episode
    rows = np.arange(len(reward))
    inner = rows < len(reward) - 1
    rules = [
        ("obs", "be finite", ~np.isfinite(obs).reshape(len(obs), -1).all(1) if obs.dtype != np.uint8 else rows < 0),
        ("action", "be finite and in [-1, 1]", ~(np.abs(action) <= 1).all(1)),
        ("reward", "be finite", ~np.isfinite(reward)),
        ("is_first", "hold at row 0 and nowhere else", is_first != (rows == 0)),
        ("action", "be zero at row 0 (nothing led to it)", (rows == 0) & (action != 0).any(1)),
        ("reward", "be zero at row 0 (nothing led to it)", (rows == 0) & (reward != 0)),
        ("terminated", "hold at the last row only", inner & terminated),
        ("truncated", "hold at the last row only", inner & truncated),
    ]
    for name, rule, broken in rules:
        if broken.any():
            raise ValueError(f"episode.{name} must {rule}, broken at row {int(broken.argmax())} of {len(reward)}")
