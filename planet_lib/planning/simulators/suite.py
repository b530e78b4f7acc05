"""Rewards of dm_control's suite for many states at once, equal to what `env.step` returns.

It knows the tasks' formulas, and neither how states are made nor environments. A task is recognised by its class, so
one that a user has derived from it, with a reward of its own, is not mistaken for it.

Source: the `get_reward` of each task in dm_control.suite 1.0.50, whose `rewards.tolerance` is used as it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from planet_lib.planning.simulators.kinematics import Kinematics
from planet_lib.planning.simulators.moments import Array, Moments, Reward


def suite_reward(task: Any) -> Reward | None:
    """Return the reward of a task of dm_control's suite, or None for a task that is not known here.

    Two tasks with the same reward give functions that compare equal.

    Args:
        task: the task object of a suite environment, `env.task`.

    Example:
        >>> from dm_control import suite
        >>> suite_reward(suite.load("walker", "walk").task)
        _Walker(speed=1)
        >>> suite_reward(suite.load("lqr", "lqr_2_1").task) is None
        True
    """
    kind = type(task)
    package, _, domain = kind.__module__.rpartition(".")
    if package != "dm_control.suite":
        return None
    make = _REWARDS.get((domain, kind.__name__))
    return None if make is None else make(task)


@cache
def _tolerance() -> Callable[..., Array]:
    """Return dm_control's `tolerance`, which takes arrays; imported here, since dm_control is an extra."""
    from dm_control.utils.rewards import tolerance  # noqa: PLC0415 -- an extra

    function: Callable[..., Array] = tolerance
    return function


def _sensor(moments: Moments, name: str) -> Array:
    """Return the readings [N, dim] of the sensor `name`."""
    sensor = moments.model.sensor(name)
    start = int(sensor.adr[0])
    readings: Array = moments.sensordata[:, start : start + int(sensor.dim[0])]
    return readings


@dataclass(frozen=True)
class _Cartpole:
    sparse: bool

    def __call__(self, moments: Moments) -> Array:
        tolerance = _tolerance()
        kinematics = Kinematics(moments.model, moments.qpos)
        poles = range(2, moments.model.nbody)
        cosine = np.stack([kinematics.body_axis(pole, 2)[:, 2] for pole in poles], axis=1)
        cart = moments.qpos[:, int(moments.model.joint("slider").qposadr[0])]
        if self.sparse:
            balanced: Array = tolerance(cart, (-0.25, 0.25)) * tolerance(cosine, (0.995, 1)).prod(axis=1)
            return balanced
        upright = (cosine + 1) / 2
        centred = (1 + tolerance(cart, margin=2)) / 2
        control = tolerance(moments.ctrl[:, 0], margin=1, value_at_margin=0, sigmoid="quadratic")
        slow = tolerance(moments.qvel[:, 1:], margin=5).min(axis=1)
        reward: Array = upright.mean(axis=1) * ((4 + control) / 5) * ((1 + slow) / 2) * centred
        return reward


def _reacher(moments: Moments) -> Array:
    kinematics = Kinematics(moments.model, moments.qpos)
    way = kinematics.geom_position("target") - kinematics.geom_position("finger")
    radii = moments.model.geom("target").size[0] + moments.model.geom("finger").size[0]
    return _tolerance()(np.hypot(way[:, 0], way[:, 1]), (0, radii))


def _cheetah(moments: Moments) -> Array:
    speed = _sensor(moments, "torso_subtreelinvel")[:, 0]
    return _tolerance()(speed, (10, np.inf), margin=10, value_at_margin=0, sigmoid="linear")


def _finger_spin(moments: Moments) -> Array:
    return np.where(_sensor(moments, "hinge_velocity")[:, 0] <= -15.0, 1.0, 0.0)


def _finger_turn(moments: Moments) -> Array:
    way = (_sensor(moments, "target") - _sensor(moments, "tip"))[:, [0, 2]]
    radius = moments.model.site("target").size[0]
    return np.where(np.hypot(way[:, 0], way[:, 1]) - radius <= 0, 1.0, 0.0)


def _ball_in_cup(moments: Moments) -> Array:
    kinematics = Kinematics(moments.model, moments.qpos)
    way = np.abs(kinematics.site_position("target") - kinematics.body_position("ball"))[:, [0, 2]]
    room = moments.model.site("target").size[[0, 2]] - moments.model.geom("ball").size[0]
    return np.where((way < room).all(axis=1), 1.0, 0.0)


@dataclass(frozen=True)
class _Walker:
    speed: float

    def __call__(self, moments: Moments) -> Array:
        tolerance = _tolerance()
        kinematics = Kinematics(moments.model, moments.qpos)
        height = kinematics.body_position("torso")[:, 2]
        standing = tolerance(height, (1.2, np.inf), margin=0.6)
        upright = (1 + kinematics.body_axis("torso", 2)[:, 2]) / 2
        stand: Array = (3 * standing + upright) / 4
        if self.speed == 0:
            return stand
        speed = _sensor(moments, "torso_subtreelinvel")[:, 0]
        move = tolerance(speed, (self.speed, np.inf), margin=self.speed / 2, value_at_margin=0.5, sigmoid="linear")
        reward: Array = stand * (5 * move + 1) / 6
        return reward


def _pendulum(moments: Moments) -> Array:
    upright = Kinematics(moments.model, moments.qpos).body_axis("pole", 2)[:, 2]
    return _tolerance()(upright, (math.cos(math.radians(8)), 1))


@dataclass(frozen=True)
class _Hopper:
    hopping: bool

    def __call__(self, moments: Moments) -> Array:
        tolerance = _tolerance()
        kinematics = Kinematics(moments.model, moments.qpos)
        height = kinematics.body_centre("torso")[:, 2] - kinematics.body_centre("foot")[:, 2]
        standing = tolerance(height, (0.6, 2))
        if self.hopping:
            speed = _sensor(moments, "torso_subtreelinvel")[:, 0]
            return standing * tolerance(speed, (2, np.inf), margin=1, value_at_margin=0.5, sigmoid="linear")
        control = tolerance(moments.ctrl, margin=1, value_at_margin=0, sigmoid="quadratic").mean(axis=1)
        reward: Array = standing * ((control + 4) / 5)
        return reward


# By the module and the class of the task; what is set differently between tasks of one class comes from the task.
_REWARDS: dict[tuple[str, str], Callable[[Any], Reward]] = {
    ("cartpole", "Balance"): lambda task: _Cartpole(sparse=task._sparse),
    ("reacher", "Reacher"): lambda task: _reacher,
    ("cheetah", "Cheetah"): lambda task: _cheetah,
    ("finger", "Spin"): lambda task: _finger_spin,
    ("ball_in_cup", "BallInCup"): lambda task: _ball_in_cup,
    ("finger", "Turn"): lambda task: _finger_turn,
    ("pendulum", "SwingUp"): lambda task: _pendulum,
    ("hopper", "Hopper"): lambda task: _Hopper(hopping=task._hopping),
    ("walker", "PlanarWalker"): lambda task: _Walker(speed=task._move_speed),
}

# The tasks of these classes, in the words of `make_env`: what an error message says is known.
KNOWN_TASKS = (
    "all tasks of cartpole, reacher, finger, walker and hopper, and cheetah-run, ball_in_cup-catch and pendulum-swingup"
)
