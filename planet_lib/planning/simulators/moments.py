"""What a reward function of the MuJoCo simulator sees, and what it returns. Knows no simulator."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Moments(NamedTuple):
    """N moments of a simulation, each at the end of one environment step.

    model: the `mujoco.MjModel` that all N were simulated with, to read only. time: [N], in seconds. qpos [N, nq] and
    qvel [N, nv]: the state. sensordata [N, nsensordata]: sensors of positions and velocities at this very state; those
    of accelerations and forces during the physics step that led to it, as dm_control reads them. ctrl [N, nu]: what the
    actuators were told during the step, in the model's own units. previous_qpos and previous_qvel: the state one
    environment step earlier, for rewards of the way made.

    A reward function returns float [N] for these, one `Terminated` bool [N]. It must be a function of them alone: rows
    come in no special order, and in several calls.

    Example:
        >>> def reward(moments):  # metres per second along the first joint, minus a price for effort
        ...     return moments.qvel[:, 0] - 0.1 * np.square(moments.ctrl).sum(axis=1)
        >>> empty = np.zeros((2, 0))
        >>> velocity, control = np.array([[3.0], [5.0]]), np.ones((2, 1))
        >>> reward(Moments(None, np.zeros(2), velocity, velocity, empty, control, velocity, velocity))
        array([2.9, 4.9])
    """

    model: Any
    time: Array
    qpos: Array
    qvel: Array
    sensordata: Array
    ctrl: Array
    previous_qpos: Array
    previous_qvel: Array


Reward = Callable[[Moments], Array]
Terminated = Callable[[Moments], npt.NDArray[np.bool_]]
