"""What enters while episodes are collected: what environment and policy return, checked at the step where it enters.

`where` stands in front of each message: "step 3", or with the number and seed of the episode where many are played.
"""

from collections.abc import Iterable, Mapping, Set
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planet_lib._errors import NonFiniteError
from planet_lib._shapes import check_whole, is_whole, shown
from planet_lib.data._obs import FLOAT_IMAGE, check_names, looks_channels_last
from planet_lib.types import Array

_PARTS = {
    "env.reset": ("observation", "info"),
    "env.step": ("observation", "reward", "terminated", "truncated", "info"),
    "policy": ("action", "state"),
}


def check_players(env: Any, policy: Any, **callbacks: Any) -> None:
    """Raise a `TypeError` unless env can reset and step, and what is to be called, None aside, can be called."""
    missing = [name for name in ("reset", "step") if not callable(getattr(env, name, None))]
    if missing or isinstance(env, type):
        what = "a class, not one of its objects" if isinstance(env, type) else f"{shown(env)} without {missing[0]}"
        raise TypeError(f"env must have Gymnasium's reset and step, got {what}")
    if not callable(policy):
        raise TypeError(f"policy must be called as policy(obs, is_first, state), got {shown(policy)}")
    for name, callback in callbacks.items():
        if callback is not None and not callable(callback):
            raise TypeError(f"{name} must be a function or None, got {shown(callback)}")


def checked_seeds(given: Iterable[Any]) -> list[int]:
    """Return the seeds of episodes, or raise where they are no whole numbers in an order."""
    expected = "seeds must be whole numbers of at least 0, one for each episode, in an order"
    if isinstance(given, str | bytes | Mapping | Set) or not isinstance(given, Iterable):
        raise TypeError(f"{expected}, got {shown(given)}")
    try:
        seeds = list(given)
    except TypeError as error:  # arrays and tensors without an axis only look as if they could be iterated
        raise TypeError(f"{expected}, got {shown(given)}") from error
    for place, seed in enumerate(seeds):
        if not is_whole(seed, 0, 2**10_000):  # how large one may be is for the environment to say
            raise TypeError(f"{expected}, got {shown(seed)} at {place}")
    return [int(seed) for seed in seeds]


def checked_answer(given: Any, what: str, where: str) -> tuple[Any, ...]:
    """Return the tuple that env.reset, env.step or policy has to return, or raise where it is another thing."""
    parts = _PARTS[what]
    if not isinstance(given, tuple) or len(given) != len(parts):
        got = f"{len(given)} values" if isinstance(given, tuple) else shown(given)
        raise TypeError(f"{where}: {what} must return ({', '.join(parts)}), got {got}")
    return given


def checked_flag(given: Any, name: str, where: str) -> bool:
    """Return whether an episode ends, or raise where what the environment returned is neither True nor False."""
    if isinstance(given, np.ndarray | Tensor) and given.shape == () and given.dtype in (np.bool_, torch.bool):
        given = given.item()
    if not isinstance(given, bool | np.bool_):
        raise TypeError(f"{where}: {name} must be True or False, got {shown(given)}; the environment returned it")
    return bool(given)


def checked_rows(given: Any, name: str, where: str, num_envs: int) -> Any:
    """Return what environments gave of all their rows, arrays or dictionaries of such, or raise on other rows."""
    for value in given.values() if isinstance(given, Mapping) and name == "observation" else [given]:
        is_array = isinstance(value, np.ndarray | Tensor) and value.ndim > 0
        if not (is_array or isinstance(value, list | tuple)) or len(value) != num_envs:
            raise ValueError(
                f"{where}: {name} must have one row for each of num_envs={num_envs}, got {shown(value)}; the "
                "environment returned it"
            )
    return given


def checked_steps(given: Any, where: str, num_envs: int) -> tuple[Any, Any, Array, Array, Array]:
    """Return observations, rewards, and the flags [B] terminated, truncated and restarted, of a step; or raise.

    Of observations and rewards only the rows are checked: their values are `Record`'s, and of rows that play.
    """
    obs, reward, terminated, truncated, info = checked_answer(given, "env.step", where)
    checked_rows(obs, "observation", where, num_envs)
    checked_rows(reward, "reward", where, num_envs)
    if not isinstance(info, Mapping):
        raise TypeError(f"{where}: info must be a dictionary, got {shown(info)}; the environment returned it")
    restarted = info.get("restarted", np.zeros(num_envs, np.bool_))
    flags = {"terminated": terminated, "truncated": truncated, "info['restarted']": restarted}
    arrays = [
        np.array([checked_flag(flag, name, where) for flag in checked_rows(value, name, where, num_envs)])
        for name, value in flags.items()
    ]
    return obs, reward, arrays[0], arrays[1], arrays[2]


def action_dim_of(space: Any, name: str) -> int | None:
    """Return the length of actions of the space, where it tells: else the first action decides."""
    shape = getattr(space, "shape", None)
    if shape is None:
        return None
    if not isinstance(shape, tuple) or len(shape) != 1 or not is_whole(shape[0]):
        raise ValueError(f"{name} must be a Box of shape (A,), got shape {shown(shape)}; flatten the actions")
    return int(shape[0])


def check_vector_env(env: Any) -> None:
    """Raise where the environments reset themselves: the last observation of an episode would be lost."""
    metadata = getattr(env, "metadata", None)
    mode = metadata.get("autoreset_mode") if isinstance(metadata, Mapping) else None
    if mode is not None and getattr(mode, "value", mode) != "Disabled":
        raise ValueError(
            f"env must not reset its rows by itself, got autoreset_mode={mode}; make it with "
            "planet_lib.envs.make_vector_env"
        )
    num_envs: Any = getattr(env, "num_envs", None)
    check_whole("env.num_envs", num_envs, least=1)


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
    try:
        obs = np.asarray(given)
    except Exception as error:  # ragged lists, tensors elsewhere, and whatever an object makes of it
        raise TypeError(f"{name} must be an array, got {shown(given)}, of which NumPy makes none") from error
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
            raise NonFiniteError(f"{name} must be finite in float32, got {obs[~np.isfinite(obs)][0]}")
    if first is not None and (obs.shape != first.shape or obs.dtype != first.dtype):
        expected = f"{first.dtype} {list(first.shape)}"
        raise ValueError(f"{name} must be {expected} as at reset, got {obs.dtype} {list(obs.shape)}")
    return obs.copy()


def checked_actions(given: Any, where: str, num_rows: int | None, action_dim: int | None) -> Array:
    """Return the policy's actions as float32 [N, A], or raise; their values are `check_action`'s.

    num_rows: None for the one row of a single environment.
    """
    letter = "1" if num_rows is None else "N"
    if not isinstance(given, Tensor) or not given.is_floating_point() or given.layout != torch.strided or given.is_meta:
        got = f"a {given.dtype} tensor" if isinstance(given, Tensor) else type(given).__name__
        if isinstance(given, Tensor) and given.is_floating_point():
            got += ", which is on the meta device" if given.is_meta else f", which is {given.layout}"
        raise TypeError(f"{where}: action must be a floating tensor [{letter}, A], got {got}")
    expected = (num_rows or 1, action_dim)
    fits = given.ndim == 2 and given.shape[0] == expected[0] and given.shape[1] == (action_dim or given.shape[1])
    if not fits or given.shape[1] == 0:
        sizes = [] if num_rows is None else [f"N={num_rows}"]
        sizes += [] if action_dim is None else [f"A={action_dim}"]
        size = f" with {', '.join(sizes)}" if sizes else ""
        raise ValueError(f"{where}: action must be [{letter}, A]{size}, got {list(given.shape)}")
    actions: Array = given.detach().to("cpu", torch.float32).numpy().copy()
    return actions


def check_action(action: Array, where: str) -> None:
    """Raise unless an action [A] is finite and in [-1, 1]."""
    if not (np.abs(action) <= 1).all():
        kind = ValueError if np.isfinite(action).all() else NonFiniteError
        raise kind(f"{where}: action must be finite and in [-1, 1], got {action.tolist()}; clip it")


def checked_reward(given: Any, where: str) -> np.float32:
    """Return the environment's reward as float32, or raise where it isn't one finite number."""
    wrong = f"{where}: reward must be one finite number, got {given if isinstance(given, np.generic) else shown(given)}"
    wrong += "; the environment returned it"
    try:
        number = given if isinstance(given, Real) else np.asarray(given)
        if isinstance(number, np.ndarray) and number.dtype.kind not in "biuf":
            raise TypeError(f"not {number.dtype}")
        with np.errstate(over="ignore"):  # what overflows becomes inf, which is named below
            reward = np.asarray(number, np.float32)
    except OverflowError:  # a whole number beyond all floats
        reward = np.array(np.inf, np.float32)
    except Exception as error:  # ragged lists, tensors elsewhere, and whatever an object makes of it
        raise ValueError(wrong) from error
    if reward.shape != () or not np.isfinite(reward):
        kind = ValueError if reward.shape != () else NonFiniteError
        raise kind(wrong)
    return np.float32(reward)
