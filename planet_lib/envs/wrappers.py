"""One contract for every environment: actions in [-1, 1], images and vectors, action repeat, checked values.

The wrapper takes any Gymnasium environment with a Box or Discrete action space; it knows no simulator and no name, and
of the renderer only the name. `PadActions` makes several such environments take actions of one length.

Source: action repeat, images and reward sums as in google-research/planet (control/wrappers.py). Different from
there: terminated and truncated are kept apart, only the last frame of a repeat is drawn, and what an environment
returns is checked.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces

from planet_lib._errors import NonFiniteError
from planet_lib._shapes import check_whole, is_whole, shown
from planet_lib.envs._checks import check_reset, flag_of, numbers_of, parts_of, reward_of, size_of
from planet_lib.envs.images import Array, Channels, check_channels, check_obs
from planet_lib.envs.observations import Obs, Observation, observer

_TOLERANCE = 1e-6


class StandardEnv(gymnasium.Wrapper[Observation, Array, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """An environment under planet_lib's contract.

    One step applies the action `action_repeat` times, or until the episode ends, and sums the rewards; it returns the
    observation after the last of them. An action of -1 and 1 means the ends of the environment's own box, linear
    between them. Where the environment has n Discrete actions, an action is one-hot: n entries, 1 at the chosen one, 0
    elsewhere; draw it as `np.eye(n, dtype=np.float32)[index]`, since `action_space.sample()` knows nothing of one-hot.

    Shapes: observation uint8 [C, Y, X], or float32 [N] (dictionaries and tuples flattened and concatenated, Discrete
    entries one-hot), or a dictionary of such by name; action [A] in [-1, 1], or one-hot [n]. Every array is one of its
    own, which later steps leave alone.

    Attributes:
        action_repeat: as given.
        num_actions: n where actions are one-hot, None where they are a box.
        renderer: as given.

    Args:
        env: any Gymnasium environment with a Discrete, or a bounded floating-point Box, action space.
        obs: "pixels" takes the environment's own observation where it is a uint8 image ([Y, X, C] or [C, Y, X]), and
            otherwise what `env.render()` draws with render_mode "rgb_array". "state" takes the observation. "both"
            gives {"pixels": what it draws, "state": the observation}. An environment whose own observation is a flat
            dictionary with uint8 images among its entries gives that dictionary in each case: its images [C, Y, X],
            its other entries as vectors [N], Discrete ones one-hot.
        image_size: (Y, X) of the pixels; images of another size are area-averaged.
        channels: kept of images of three channels: "all", "red", or "grey", their mean, which leave one.
        action_repeat: steps of the environment per decision.
        renderer: the name of what draws the pixels, only kept: "own" is the environment itself.

    Raises:
        ValueError: at construction, an action space or observation that does not fit; in `step`, before the
            environment steps, an action of the wrong shape, not finite, outside [-1, 1] or off one-hot by more than
            1e-6; after it, a reward or a state observation that is not finite. In that last case the episode is over.
        gymnasium.error.ResetNeeded: `step` without a running episode.

    Example:
        >>> import gymnasium
        >>> env = StandardEnv(gymnasium.make("Pendulum-v1"), obs="state", action_repeat=2)
        >>> observation, info = env.reset(seed=1)
        >>> observation.shape, env.action_space.shape, env.action_repeat
        ((3,), (1,), 2)
        >>> env = StandardEnv(gymnasium.make("CartPole-v1"), obs="state")
        >>> observation, info = env.reset(seed=1)
        >>> env.num_actions, env.step(np.array([0, 1]))[1]
        (2, 1.0)
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        obs: Obs = "pixels",
        image_size: tuple[int, int] = (64, 64),
        channels: Channels = "all",
        action_repeat: int = 1,
        renderer: str = "own",
    ) -> None:
        given: tuple[object, object] = (env, renderer)
        if not isinstance(given[0], gymnasium.Env) or not hasattr(env, "action_space"):
            raise TypeError(f"env must be a gymnasium.Env with spaces for observations and actions, got {shown(env)}")
        if not isinstance(given[1], str):
            raise TypeError(f"renderer must be the name of what draws, got {shown(renderer)}")
        check_obs(obs)
        check_channels(channels)
        check_whole("action_repeat", action_repeat, least=1)
        image_size, action_repeat = size_of(image_size), int(action_repeat)
        gymnasium.utils.RecordConstructorArgs.__init__(
            self, obs=obs, image_size=image_size, channels=channels, action_repeat=action_repeat, renderer=renderer
        )
        gymnasium.Wrapper.__init__(self, env)
        self.action_repeat, self.renderer = action_repeat, renderer
        self.action_space, self._command = _actions(env.action_space)
        self.num_actions = int(env.action_space.n) if isinstance(env.action_space, spaces.Discrete) else None
        self.observation_space, self._observe = observer(env, obs, image_size, channels)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; `seed` makes it exactly reproducible, whatever was played before."""
        seed = check_reset(seed, options)
        self._running = False
        observation, info = parts_of(self.env.reset(seed=seed, options=options), 2, "reset")
        result = self._observe(observation)
        self._running = True
        return result, info

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply `action` [A] for `action_repeat` steps: observation, summed reward, terminated, truncated, info."""
        command = self._command(_checked(action, self.action_space))
        if not self._running:
            raise gymnasium.error.ResetNeeded("step needs a running episode: call reset() first, and after each end")
        self._running = False
        total = 0.0
        for _ in range(self.action_repeat):
            # A copy, since an environment that works on its argument in place would see its own changes again.
            observation, reward, *ends, info = parts_of(self.env.step(command.copy()), 5, "step")
            total += reward_of(reward, command)
            terminated, truncated = flag_of("terminated", ends[0]), flag_of("truncated", ends[1])
            if terminated or truncated:
                break
        result = self._observe(observation)
        self._running = not (terminated or truncated)
        return result, total, terminated, truncated, info


class PadActions(gymnasium.Wrapper[Observation, Array, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """An environment that takes actions longer than its own and uses the first A, so that tasks can share one agent.

    step([a_1, ..., a_A, ..., a_N]) = env.step([a_1, ..., a_A])

    What stands in the other places must be finite and in range, and changes nothing. Where actions are one-hot, the 1
    must stand in the first n places.

    Shapes: action [N] in [-1, 1], N = action_dim; observations and rewards are the environment's.
    Source: arXiv:1811.04551, the agent of all six tasks, whose actions are padded to the longest.

    Args:
        env: an environment under planet_lib's contract.
        action_dim: N, at least the length A of its own actions.

    Attributes:
        action_repeat: the environment's.
        num_actions: likewise.
        renderer: likewise.

    Raises:
        TypeError: env is no `StandardEnv`.
        ValueError: an action_dim less than A; in `step`, as the environment's own, and before it steps.

    Example:
        >>> import gymnasium
        >>> env = PadActions(StandardEnv(gymnasium.make("Pendulum-v1"), obs="state"), 6)
        >>> observation, info = env.reset(seed=1)
        >>> env.action_space.shape, env.step(np.zeros(6))[0].shape
        ((6,), (3,))
    """

    def __init__(self, env: StandardEnv, action_dim: int) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, action_dim=action_dim)
        if not isinstance(env, StandardEnv):
            raise TypeError(f"env must be a StandardEnv, such as make_env returns, got {type(env).__name__}")
        gymnasium.Wrapper.__init__(self, env)
        self._own_dim = math.prod(env.action_space.shape or ())
        if not is_whole(action_dim, self._own_dim):
            raise ValueError(
                f"action_dim must be a whole number of at least A={self._own_dim} (the environment's own actions), "
                f"got {shown(action_dim)}; give the largest of all tasks"
            )
        self.action_space = spaces.Box(0.0 if env.num_actions else -1.0, 1.0, (int(action_dim),), np.float32)
        self.action_repeat, self.num_actions, self.renderer = env.action_repeat, env.num_actions, env.renderer

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step with the first A entries of `action` [N]."""
        result = self.env.step(_checked(action, self.action_space)[: self._own_dim])
        return cast("tuple[Observation, float, bool, bool, dict[str, Any]]", result)


def _checked(action: Any, space: spaces.Space[Any]) -> Array:
    """Return `action` as float64 [A], or raise unless it is finite and within [-1, 1] to rounding."""
    with np.errstate(over="ignore"):  # what overflows becomes inf, which is named below
        values = numbers_of("action", action, f"[A] with A={math.prod(space.shape or ())}").astype(np.float64)
    if values.shape != space.shape:
        expected = f"[A] with A={math.prod(space.shape or ())} (the environment's action space)"
        raise ValueError(f"action must be {expected}, got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise NonFiniteError(f"action must be finite, got {values}")
    if np.abs(values).max(initial=0.0) > 1 + _TOLERANCE:
        raise ValueError(f"action must be within [-1, 1], got {values}; clip it first")
    return values


def _actions(space: spaces.Space[Any]) -> tuple[spaces.Box, Callable[[Array], Any]]:
    """Return the space of the contract's actions, and the function from a checked one to the environment's own."""
    if not isinstance(space, spaces.Discrete):
        return _box_actions(space)
    own, count = space, int(space.n)

    def choose(values: Array) -> Any:
        index = int(values.argmax())
        if np.abs(values - np.eye(1, count, index)[0]).max() > _TOLERANCE:
            remedy = f"give np.eye({count}, dtype=np.float32)[index]"
            raise ValueError(
                f"action must be one-hot, one of {count} entries 1 and the others 0, got {values}; {remedy}"
            )
        return own.dtype.type(own.start + index)

    return spaces.Box(0.0, 1.0, (count,), np.float32), choose


def _box_actions(space: spaces.Space[Any]) -> tuple[spaces.Box, Callable[[Array], Any]]:
    """Return the same for a Box, or raise where actions in [-1, 1] cannot be mapped onto the space."""
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"the environment's action space must be a Box of floats or Discrete, got {space}; make it one with "
            "gymnasium.wrappers.TransformAction"
        )
    if not space.is_bounded() or not (space.low < space.high).all():
        raise ValueError(
            "the environment's action space must be bounded, low < high, got "
            f"low={space.low}, high={space.high}; give it bounds with gymnasium.wrappers.TransformAction"
        )
    box, low, high = space, space.low.astype(np.float64), space.high.astype(np.float64)
    middle, half = (low + high) / 2, (high - low) / 2

    def rescale(values: Array) -> Array:
        command: Array = (middle + half * values.reshape(box.shape)).astype(box.dtype)
        return command.clip(box.low, box.high)

    return spaces.Box(-1.0, 1.0, (math.prod(box.shape),), np.float32), rescale
