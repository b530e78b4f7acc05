"""Collection: one episode of a policy in an environment, as arrays.

`run_episode` knows the environment's `reset` and `step` and calls the policy; it knows neither models nor planners nor
where episodes go. Whatever the policy remembers (a filter's belief, a planner's last plan) travels through here as
`state` and is never looked into.

Source: google-research/planet, `control/simulate.py` and `control/wrappers.py` (`CollectDataset`).
Differences from the source: the final observation is recorded too, and each row holds the action and reward that led
to its observation; termination and truncation stay apart; what enters is checked at the step where it enters.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from planet_lib.data._obs import FLOAT_IMAGE, check_names, looks_channels_last
from planet_lib.types import Array, Episode, Observation


class Environment(Protocol):
    """What `run_episode` needs of an environment: Gymnasium's reset and step, with actions in [-1, 1]."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        """Start an episode; return the first observation and a dictionary of anything."""
        ...

    def step(self, action: Any, /) -> tuple[Any, Any, Any, Any, Any]:
        """Take an action [A]; return observation, reward, terminated, truncated and a dictionary of anything."""
        ...


class Policy(Protocol):
    """Something that acts: observation, whether it is an episode's first, and its own state in; action and state out.

    Shapes: obs [1, C, Y, X] uint8 or [1, N] float32, or a dictionary of such; is_first [1] bool; the action [1, A] in
    [-1, 1]. The state is None at the first call of an episode, and then whatever the call before returned.
    """

    def __call__(self, obs: Observation, is_first: Tensor, state: Any, /) -> tuple[Tensor, Any]:
        """Return the action for this observation, and the state for the next call."""
        ...


def run_episode(
    env: Environment,
    policy: Policy,
    *,
    seed: int | None = None,
    on_step: Callable[[int], object] | None = None,
) -> Episode:
    """Run one episode to its end, terminated or truncated, and return its rows.

    An episode of n steps gives L = n + 1 rows: row 0 is the reset, with zero action and reward; row t is observation t
    with the action and reward that led to it. The environment decides when it ends: wrap one that never does in a time
    limit. The policy runs without gradients. An interruption or error leaves no episode behind.

    Args:
        env: anything with Gymnasium's reset and step. Observations: uint8 images (C, Y, X), vectors (N,) of finite
            floats, stored as float32, or a dictionary of such, of the same names at every step.
        policy: called as policy(obs, is_first, state); see `Policy`.
        seed: passed to reset; None lets the environment choose.
        on_step: called after each step with its number, from 1: for progress.

    Raises:
        TypeError: where an observation is neither a uint8 image nor a vector of floats, a dictionary within a
            dictionary, or named by something else than a string, or the action isn't a floating tensor.
        ValueError: where an observation, action or reward isn't finite, in range or of the right shape, an image is
            channels last, or the names of a dictionary change, are none, or have a slash, backslash or dot in them.
            Each message names the step, 0 being the reset, and the entry.

    Example:
        >>> import numpy as np
        >>> class Countdown:
        ...     def reset(self, *, seed=None):
        ...         self.left = 3.0
        ...         return np.array([self.left]), {}
        ...     def step(self, action):
        ...         self.left -= 1
        ...         return np.array([self.left]), 1.0, self.left == 0, False, {}
        >>> episode = run_episode(Countdown(), random_policy(1, np.random.default_rng(0)))
        >>> episode.obs.ravel().tolist(), episode.reward.tolist(), episode.terminated.tolist()
        ([3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0], [False, False, False, True])
    """
    action_dim = _action_dim(env)
    first = _checked_obs(env.reset(seed=seed)[0], 0, None)
    rows_obs, rows_action, rows_reward = [first], [], [np.float32(0)]
    state: Any = None
    step, terminated, truncated = 0, False, False
    while not (terminated or truncated):
        step += 1
        with torch.no_grad():
            # A copy: a policy that writes into its input must not change the record.
            given, state = policy(_tensors(rows_obs[-1]), torch.tensor([step == 1]), state)
        action = _checked_action(given, step, action_dim)
        action_dim = len(action)
        next_obs, reward, ended, out_of_time, _ = env.step(action.copy())
        rows_obs.append(_checked_obs(next_obs, step, first))
        rows_action.append(action)
        rows_reward.append(_checked_reward(reward, step))
        terminated, truncated = bool(ended), bool(out_of_time)
        if on_step is not None:
            on_step(step)
    rows = np.arange(step + 1)
    return Episode(
        obs=_stacked(rows_obs),
        action=np.stack([np.zeros_like(rows_action[0]), *rows_action]),
        reward=np.array(rows_reward, np.float32),
        is_first=rows == 0,
        terminated=(rows == step) & terminated,
        truncated=(rows == step) & truncated,
    )


def random_policy(action_dim: int, generator: np.random.Generator | torch.Generator) -> Policy:
    """Return a policy that draws each action uniformly from [-1, 1), whatever it sees.

    Args:
        action_dim: A, the length of an action.
        generator: NumPy's or torch's (on the CPU); its seed makes the episodes repeat. It moves on with every action.

    Raises:
        ValueError: where action_dim isn't positive.
        TypeError: where generator is neither.

    Example:
        >>> import torch
        >>> policy = random_policy(2, torch.Generator().manual_seed(0))
        >>> action, state = policy(torch.zeros(1, 3), torch.tensor([True]), None)
        >>> action.shape, state is None
        (torch.Size([1, 2]), True)
    """
    if action_dim < 1:
        raise ValueError(f"action_dim must be greater than 0, got {action_dim}")
    if not isinstance(generator, (np.random.Generator, torch.Generator)):
        raise TypeError(
            f"generator must be a numpy.random.Generator or torch.Generator, got {type(generator).__name__}; "
            "make one with numpy.random.default_rng(seed)"
        )

    def act(obs: Observation, is_first: Tensor, state: Any, /) -> tuple[Tensor, Any]:
        """Draw an action; the arguments don't matter, and the state passes through."""
        if isinstance(generator, torch.Generator):
            uniform = torch.rand(1, action_dim, generator=generator)
        else:
            uniform = torch.from_numpy(generator.random((1, action_dim), np.float32))
        return uniform.mul_(2).sub_(1), state

    return act


def _action_dim(env: Environment) -> int | None:
    """Return the length of the environment's actions, where it tells: else the first action decides."""
    shape = getattr(getattr(env, "action_space", None), "shape", None)
    if shape is None:
        return None
    if len(shape) != 1:
        raise ValueError(f"env.action_space must be a Box of shape (A,), got shape {tuple(shape)}; flatten the actions")
    return int(shape[0])


def _tensors(obs: Array | dict[str, Array]) -> Observation:
    """Return a copy of an observation as tensors [1, ...]."""
    if isinstance(obs, dict):
        return {name: torch.from_numpy(value.copy())[None] for name, value in obs.items()}
    return torch.from_numpy(obs.copy())[None]


def _stacked(rows: list[Any]) -> Array | dict[str, Array]:
    """Return the rows of an episode as arrays [L, ...]."""
    if isinstance(rows[0], dict):
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return np.stack(rows)


def _checked_obs(given: Any, step: int, first: Array | dict[str, Array] | None) -> Array | dict[str, Array]:
    """Return a copy of the environment's observation as uint8 and float32, or raise; all are like the first."""
    name = f"step {step}: observation"
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


def _checked_action(given: Any, step: int, action_dim: int | None) -> np.ndarray[Any, Any]:
    """Return the policy's action [1, A] as float32 [A], or raise."""
    if not isinstance(given, Tensor) or not given.is_floating_point():
        got = f"a {given.dtype} tensor" if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"step {step}: action must be a floating tensor [1, A], got {got}")
    if given.ndim != 2 or given.shape[0] != 1 or given.shape[1] != (action_dim or given.shape[1]):
        size = "" if action_dim is None else f" with A={action_dim}"
        raise ValueError(f"step {step}: action must be [1, A]{size}, got {list(given.shape)}")
    action: np.ndarray[Any, Any] = given[0].detach().to("cpu", torch.float32).numpy().copy()
    if not (np.abs(action) <= 1).all():
        raise ValueError(f"step {step}: action must be finite and in [-1, 1], got {action.tolist()}; clip it")
    return action


def _checked_reward(given: Any, step: int) -> np.float32:
    """Return the environment's reward as float32, or raise where it isn't one finite number."""
    with np.errstate(over="ignore"):  # what overflows becomes inf, which is named below
        reward = np.asarray(given, np.float32)
    if reward.shape != () or not np.isfinite(reward):
        raise ValueError(f"step {step}: reward must be one finite number, got {given}; the environment returned it")
    return np.float32(reward)
