"""One contract for every environment: actions in [-1, 1], images and vectors, action repeat, checked values.

The wrapper takes any Gymnasium environment with a Box action space; it knows no simulator, no name and no renderer.

Source: action repeat, images and reward sums as in google-research/planet (control/wrappers.py). Different from
there: terminated and truncated are kept apart, only the last frame of a repeat is drawn, and what an environment
returns is checked.
"""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from planet_lib.envs.images import Array
from planet_lib.envs.observations import Obs, Observation, observer

_TOLERANCE = 1e-6


class StandardEnv(gymnasium.Wrapper[Observation, Array, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """An environment under planet_lib's contract.

    One step applies the action `action_repeat` times, or until the episode ends, and sums the rewards; it returns the
    observation after the last of them. An action of -1 and 1 means the ends of the environment's own box, linear
    between them.

    Shapes: observation uint8 [C, Y, X], or float32 [N] (dictionaries and tuples flattened and concatenated), or a
    dictionary of such by name; action [A] in [-1, 1]. Every array is one of its own, which later steps leave alone.

    Args:
        env: any Gymnasium environment with a bounded floating-point Box action space.
        obs: "pixels" takes the environment's own observation where it is a uint8 image ([Y, X, C] or [C, Y, X]), and
            otherwise what `env.render()` draws with render_mode "rgb_array". "state" takes the observation. "both"
            gives {"pixels": what it draws, "state": the observation}. An environment whose own observation is a flat
            dictionary of Boxes with uint8 images among them gives that dictionary in each case: its images [C, Y, X],
            its other entries as vectors [N].
        image_size: (Y, X) of the pixels; images of another size are area-averaged.
        action_repeat: steps of the environment per decision.

    Raises:
        ValueError: at construction, an action space or observation that does not fit; in `step`, before the
            environment steps, an action of the wrong shape, not finite, or outside [-1, 1] by more than 1e-6; after
            it, a reward or a state observation that is not finite. In that last case the episode is over.
        gymnasium.error.ResetNeeded: `step` without a running episode.

    Example:
        >>> import gymnasium
        >>> env = StandardEnv(gymnasium.make("Pendulum-v1"), obs="state", action_repeat=2)
        >>> observation, info = env.reset(seed=1)
        >>> observation.shape, env.action_space.shape, env.action_repeat
        ((3,), (1,), 2)
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        obs: Obs = "pixels",
        image_size: tuple[int, int] = (64, 64),
        action_repeat: int = 1,
    ) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(
            self, obs=obs, image_size=image_size, action_repeat=action_repeat
        )
        gymnasium.Wrapper.__init__(self, env)
        self.action_repeat = action_repeat
        box = _action_box(env.action_space)
        low, high = box.low.astype(np.float64), box.high.astype(np.float64)
        self._box, self._middle, self._half = box, (low + high) / 2, (high - low) / 2
        self.action_space = spaces.Box(-1.0, 1.0, (math.prod(box.shape),), np.float32)
        self.observation_space, self._observe = observer(env, obs, image_size)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; `seed` makes it exactly reproducible, whatever was played before."""
        self._running = False
        observation, info = self.env.reset(seed=seed, options=options)
        result = self._observe(observation)
        self._running = True
        return result, info

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply `action` [A] for `action_repeat` steps: observation, summed reward, terminated, truncated, info."""
        command = self._command(action)
        if not self._running:
            raise gymnasium.error.ResetNeeded("step needs a running episode: call reset() first, and after each end")
        self._running = False
        total = 0.0
        for _ in range(self.action_repeat):
            # A copy, since an environment that works on its argument in place would see its own changes again.
            observation, reward, terminated, truncated, info = self.env.step(command.copy())
            if not math.isfinite(reward):
                raise ValueError(f"the environment's reward must be finite, got {reward} after action {command}")
            total += float(reward)
            if terminated or truncated:
                break
        result = self._observe(observation)
        self._running = not (terminated or truncated)
        return result, total, bool(terminated), bool(truncated), info

    def _command(self, action: Array) -> Array:
        """Return `action` in the environment's own units, dtype and shape, or raise."""
        values = np.asarray(action, dtype=np.float64)
        if values.shape != self.action_space.shape:
            expected = f"[A] with A={self._middle.size} (the environment's action space)"
            raise ValueError(f"action must be {expected}, got {list(values.shape)}")
        if not np.isfinite(values).all():
            raise ValueError(f"action must be finite, got {values}")
        if np.abs(values).max(initial=0.0) > 1 + _TOLERANCE:
            raise ValueError(f"action must be within [-1, 1], got {values}; clip it first")
        command = (self._middle + self._half * values.reshape(self._box.shape)).astype(self._box.dtype)
        return np.clip(command, self._box.low, self._box.high)


def _action_box(space: spaces.Space[Any]) -> spaces.Box:
    """Return the action space, or raise where actions in [-1, 1] cannot be mapped onto it."""
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"the environment's action space must be a Box of floats, got {space}")
    if not space.is_bounded() or not (space.low < space.high).all():
        raise ValueError(
            "the environment's action space must be bounded, low < high, got "
            f"low={space.low}, high={space.high}; give it bounds with gymnasium.wrappers.TransformAction"
        )
    return space
