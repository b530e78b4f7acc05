"""What `MuJoCoDynamics.from_env` needs to know of an environment, read from the outside.

It knows the attributes that dm_control's and Gymnasium's MuJoCo environments have, and imports neither, nor
`planet_lib.envs`: whatever has the attributes will do.
"""

from typing import Any, NamedTuple

import numpy as np

from planet_lib.planning.simulators.moments import Array, Reward
from planet_lib.planning.simulators.suite import KNOWN_TASKS, suite_reward

# How far outside [-1, 1] an action may be by rounding; `StandardEnv` allows the same.
_TOLERANCE = 1e-6


class Simulation(NamedTuple):
    """A MuJoCo environment seen from the outside; `source` has the live model and data (see `live`)."""

    source: Any
    steps_per_action: int
    action_repeat: int
    to_ctrl: "ActionBox | None"
    reward: Reward


class ActionBox:
    """Actions in [-1, 1] as controls, bit for bit as `StandardEnv` maps them: linear, then rounded to the box's dtype.

    Two of the same box compare equal.
    """

    def __init__(self, box: Any) -> None:
        self._low, self._high = box.low.reshape(-1), box.high.reshape(-1)
        low, high = self._low.astype(np.float64), self._high.astype(np.float64)
        self._middle, self._half = (low + high) / 2, (high - low) / 2

    def __call__(self, actions: Array) -> Array:
        """Return controls [..., A] for actions [..., A], or raise where these do not fit or are not in [-1, 1]."""
        if actions.shape[-1] != self._low.size:
            raise ValueError(f"actions must end in A={self._low.size} (the environment's), got {list(actions.shape)}")
        # nan is let through, since the candidate that has it is found out later.
        largest = float(np.fmax.reduce(np.abs(actions), axis=None, initial=0.0))
        if largest > 1 + _TOLERANCE:
            raise ValueError(
                f"actions must be within [-1, 1], got one of size {largest}; plan in the box low=-1, high=1"
            )
        command = (self._middle + self._half * actions).astype(self._low.dtype)
        controls: Array = np.clip(command, self._low, self._high).astype(np.float64)
        return controls

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionBox) and all(
            ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
            for ours, theirs in ((self._low, other._low), (self._high, other._high))
        )

    __hash__ = None  # type: ignore[assignment]  # compared by value, and those change


def live(source: Any) -> tuple[Any, Any]:
    """Return the `mujoco.MjModel` and `mujoco.MjData` that an environment has at this moment."""
    physics = getattr(source, "physics", None)
    if physics is not None:
        return physics.model.ptr, physics.data.ptr
    return source.model, source.data


def describe(env: Any, reward: Reward | None) -> Simulation:
    """Return what is needed to simulate `env`, or say what is missing."""
    source = getattr(env, "unwrapped", env)
    if hasattr(source, "physics"):
        steps = _suite_steps(source)
        known = suite_reward(source._env.task) if reward is None and hasattr(source, "_env") else None
    elif all(hasattr(source, name) for name in ("model", "data", "frame_skip")):
        steps, known = int(source.frame_skip), None
    else:
        raise TypeError(
            "env must simulate with MuJoCo (a suite task, or a Gymnasium environment with model, data and frame_skip), "
            f"got {type(source).__name__}; use EnvDynamics for other environments"
        )
    chosen = known if reward is None else reward
    if chosen is None:
        task = getattr(getattr(source, "_env", None), "task", source)
        raise ValueError(
            f"reward must be given for {type(task).__module__}.{type(task).__name__}: a function of "
            f"planet_lib.planning.simulators.Moments that returns [N], got None; known without are {KNOWN_TASKS}"
        )
    layer = _standard_layer(env)
    box = env.action_space if layer is None else layer.env.action_space
    if box != source.action_space:
        raise ValueError(
            f"env must hand its actions to the simulation unchanged, got a wrapper that makes {source.action_space} "
            f"of {box}; use MuJoCoDynamics(models, reward, to_ctrl=...) instead"
        )
    if layer is None:
        return Simulation(source, steps, 1, None, chosen)
    return Simulation(source, steps, int(layer.action_repeat), ActionBox(box), chosen)


def _suite_steps(source: Any) -> int:
    """Return the physics steps of one `env.step` of a suite task."""
    if not getattr(source.physics, "legacy_step", True):
        raise ValueError("env must be made with legacy_step=True (the suite's default), got False: its rewards lag")
    steps: int = round(source._env.control_timestep() / source.physics.timestep())
    return steps


def _standard_layer(env: Any) -> Any:
    """Return the wrapper that repeats actions in [-1, 1], or None."""
    while env is not getattr(env, "unwrapped", env):
        if "action_repeat" in vars(env):
            return env
        env = env.env
    return None
