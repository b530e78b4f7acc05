"""What enters while episodes are collected: observations, actions and rewards, checked at the step where they enter.

`where` stands in front of each message: "step 3", or with the number and seed of the episode where many are played.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planet_lib.data._obs import FLOAT_IMAGE, check_names, looks_channels_last
from planet_lib.types import Array


def action_dim_of(space: Any, name: str) -> int | None:
    """Return the length of actions of the space, where it tells: else the first action decides."""
    shape = getattr(space, "shape", None)
    if shape is None:
        return None
    if len(shape) != 1:
        raise ValueError(f"{name} must be a Box of shape (A,), got shape {tuple(shape)}; flatten the actions")
    return int(shape[0])


def check_vector_env(env: Any) -> None:
    """Raise where the environments reset themselves: the last observation of an episode would be lost."""
    mode = getattr(env, "metadata", {}).get("autoreset_mode")
    if mode is not None and getattr(mode, "value", mode) != "Disabled":
        raise ValueError(
            f"env must not reset its rows by itself, got autoreset_mode={mode}; make it with "
            "planet_lib.envs.make_vector_env"
        )


def checked_obs(given: Any, where: str, first: Array | dict[str, Array] | None) -> Array | dict[str, Array]:
    """Return a copy of the environment's observation as uint8 and float32, or raise; all are like the first."""
    name = f"{where}: observation"
    if not isinstance(given, Mapping):
        if isinstance(first, dict):
            kind = type(given).__name__
            raise TypeError(f"{name} must be a dictionary with the entries {list(first)} as at reset, got {kind}")
        return _checked_array(name, given, first)
    if isinstance(first, np.ndarray):
        raise TypeError(f"{name} must be {first.dtype} {list(first.shape)} as at reset, got a dictionary")
    check_names(name, given)
    if first is None:
        return {key: _checked_array(f"{name}[{key!r}]", value, None) for key, value in given.items()}
    if set(given) != set(first):
        raise ValueError(
            f"{name} must have the entries {list(first)} as at reset, got {list(given)}; give the same at every step"
        )
    return {key: _checked_array(f"{name}[{key!r}]", given[key], like) for key, like in first.items()}


def _checked_array(name: str, given: Any, first: Array | None) -> Array:
    """Return a copy of an observation, or of an entry, as uint8 or float32, or raise; all are like the first."""
    if isinstance(given, Mapping):
        raise TypeError(f"{name} must be an array, got a dictionary; flatten nested dictionaries into one")
    obs = np.asarray(given)
    is_float = np.issubdtype(obs.dtype, np.floating)
    got = f"got {obs.dtype} {list(obs.shape)}"
    if obs.dtype != np.uint8 and not is_float:
        raise TypeError(f"{name} must be uint8 pixels or a float vector, got {obs.dtype}; convert it")
    if is_float and obs.ndim == 3:
        raise TypeError(f"{name} must be a uint8 image (C, Y, X) or a vector (N,) of floats, {got}; {FLOAT_IMAGE}")
    if obs.ndim != (1 if is_float else 3) or 0 in obs.shape:
        kind = "a vector (N,) of floats" if is_float else "a uint8 image (C, Y, X)"
        raise ValueError(f"{name} must be {kind}, {got}")
    if looks_channels_last(obs.shape):
        raise ValueError(
            f"{name} must be a uint8 image (C, Y, X), channels first, {got}, which is channels last; give "
            "obs.transpose(2, 0, 1) (in torch, obs.movedim(-1, 0))"
        )
    if is_float:
        with np.errstate(over="ignore"):  # what overflows becomes inf, which the next check names
            obs = obs.astype(np.float32)
        if not np.isfinite(obs).all():
            raise ValueError(f"{name} must be finite in float32, got {obs[~np.isfinite(obs)][0]}")
    if first is not None and (obs.shape != first.shape or obs.dtype != first.dtype):
        expected = f"{first.dtype} {list(first.shape)}"
        raise ValueError(f"{name} must be {expected} as at reset, got {obs.dtype} {list(obs.shape)}")
    return obs.copy()


def checked_actions(given: Any, where: str, num_rows: int | None, action_dim: int | None) -> Array:
    """Return the policy's actions as float32 [N, A], or raise; their values are `check_action`'s.

    num_rows: None for the one row of a single environment.
    """
    letter = "1" if num_rows is None else "N"
    if not isinstance(given, Tensor) or not given.is_floating_point():
        got = f"a {given.dtype} tensor" if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{where}: action must be a floating tensor [{letter}, A], got {got}")
    expected = (num_rows or 1, action_dim)
    if given.ndim != 2 or given.shape[0] != expected[0] or given.shape[1] != (action_dim or given.shape[1]):
        sizes = [] if num_rows is None else [f"N={num_rows}"]
        sizes += [] if action_dim is None else [f"A={action_dim}"]
        size = f" with {', '.join(sizes)}" if sizes else ""
        raise ValueError(f"{where}: action must be [{letter}, A]{size}, got {list(given.shape)}")
    actions: Array = given.detach().to("cpu", torch.float32).numpy().copy()
    return actions


def check_action(action: Array, where: str) -> None:
    """Raise unless an action [A] is finite and in [-1, 1]."""
    if not (np.abs(action) <= 1).all():
        raise ValueError(f"{where}: action must be finite and in [-1, 1], got {action.tolist()}; clip it")


def checked_reward(given: Any, where: str) -> np.float32:
    """Return the environment's reward as float32, or raise where it isn't one finite number."""
    with np.errstate(over="ignore"):  # what overflows becomes inf, which is named below
        reward = np.asarray(given, np.float32)
    if reward.shape != () or not np.isfinite(reward):
        raise ValueError(f"{where}: reward must be one finite number, got {given}; the environment returned it")
    return np.float32(reward)
