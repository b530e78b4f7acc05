"""One contract for every environment: actions in [-1, 1], images or vectors, action repeat, checked values.

The wrapper takes any Gymnasium environment with a Box action space; it knows no simulator, no name and no renderer.

Source: action repeat, images and reward sums as in google-research/planet (control/wrappers.py). Different from
there: terminated and truncated are kept apart, only the last frame of a repeat is drawn, and what an environment
returns is checked.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from planet_lib.envs.images import Array, is_channels_last, resize_area

Obs = Literal["pixels", "state"]
_TOLERANCE = 1e-6


class StandardEnv(gymnasium.Wrapper[Array, Array, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """An environment under planet_lib's contract.

    One step applies the action `action_repeat` times, or until the episode ends, and sums the rewards; it returns the
    observation after the last of them. An action of -1 and 1 means the ends of the environment's own box, linear
    between them.

    Shapes: observation uint8 [C, Y, X], or float32 [N] (dictionaries and tuples flattened and concatenated); action
    [A] in [-1, 1]. Every observation is an array of its own, which later steps leave alone.

    Args:
        env: any Gymnasium environment with a bounded floating-point Box action space.
        obs: "pixels" takes the environment's own observation where it is a uint8 image ([Y, X, C] or [C, Y, X]), and
            otherwise what `env.render()` draws with render_mode "rgb_array". "state" takes the observation.
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
        if obs == "pixels":
            self.observation_space, self._observe = _pixels(env, image_size)
        else:
            self.observation_space, self._observe = _state(env)
        self._running = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode; `seed` makes it exactly reproducible, whatever was played before."""
        self._running = False
        observation, info = self.env.reset(seed=seed, options=options)
        result = self._observe(observation)
        self._running = True
        return result, info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
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


def _image_box(space: spaces.Space[Any]) -> spaces.Box | None:
    """Return the observation space where it is one of uint8 images with channels, else None."""
    fits = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
    return space if fits and isinstance(space, spaces.Box) else None


def _pixels(env: gymnasium.Env[Any, Any], size: tuple[int, int]) -> tuple[spaces.Box, Callable[[Any], Array]]:
    """Return the space [C, Y, X] and the function that turns an observation, or the moment, into such an image."""
    box = _image_box(env.observation_space)
    if box is None and env.render_mode != "rgb_array":
        raise ValueError(
            'obs="pixels" needs uint8 image observations or render_mode="rgb_array", got observation space '
            f"{env.observation_space} and render_mode={env.render_mode!r}"
        )
    last = box is None or is_channels_last(box.shape)
    channels = 3 if box is None else box.shape[-1 if last else 0]

    def observe(observation: Any) -> Array:
        image = np.asarray(env.render() if box is None else observation)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1 if last else 0] != channels:
            raise ValueError(
                f"an image must be uint8 with {channels} channels, {'last' if last else 'first'}, "
                f"got {image.dtype} {list(image.shape)}"
            )
        if not last:
            image = image.transpose(1, 2, 0)
        return np.array(resize_area(image, size).transpose(2, 0, 1), order="C")

    return spaces.Box(0, 255, (channels, *size), np.uint8), observe


def _state(env: gymnasium.Env[Any, Any]) -> tuple[spaces.Box, Callable[[Any], Array]]:
    """Return the space [N] and the function that flattens an observation into such a vector."""
    space = env.observation_space
    if _image_box(space) is not None:
        raise ValueError(f'obs="state" needs vectors, but this environment observes images, {space}: use obs="pixels"')
    try:
        size = spaces.flatdim(space)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f'obs="state" needs an observation of fixed size, got {space}') from error

    def observe(observation: Any) -> Array:
        with np.errstate(over="ignore"):
            vector = np.asarray(spaces.flatten(space, observation), np.float32)
        if vector.shape != (size,):
            raise ValueError(f"the environment's observation must flatten to [{size}], got {list(vector.shape)}")
        if not np.isfinite(vector).all():
            raise ValueError(f"the environment's observation must be finite in float32, got {vector}")
        return vector

    return spaces.Box(-np.inf, np.inf, (size,), np.float32), observe
