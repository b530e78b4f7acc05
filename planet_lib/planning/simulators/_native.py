"""MuJoCo's own multithreaded rollouts: from one state, many sequences of controls, every state and sensor on the way.

It knows physics steps, and neither environments, actions nor rewards. mujoco is imported when the first object is made.

Source: `mujoco.rollout` of MuJoCo 3.17. Three things about it are easily missed, and settled here. A trajectory is the
environment's own to the last bit only if the warm start of the constraint solver comes with the state. The sensors
that come with a step are those of the state before it, as `mj_step` computes them. And a diverged trajectory does not
become NaN: MuJoCo resets it, and the rest repeats one state.
"""

import math
import os
import threading
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from planet_lib.planning.simulators.moments import Array, Moments

# Numbers that one block of trajectories writes: 64 MiB of them. A block of the paper's size is simulated at once.
_BLOCK = 2**23

# What MuJoCo takes for diverged (mjMAXVAL).
LARGEST = 1e10


def load_mujoco() -> ModuleType:
    """Return the modules mujoco and mujoco.rollout as one, or raise with the remedy."""
    try:
        mujoco = import_module("mujoco")
        import_module("mujoco.rollout")
    except ModuleNotFoundError as error:
        raise ImportError(f'MuJoCoDynamics needs {error.name}: pip install "planet-worldmodel[dmc]"') from error
    return mujoco


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class NativeRollouts:
    """A thread pool of MuJoCo's with the memory that it writes to, for models of one size.

    Args:
        model: any of the models that will be simulated; it decides the sizes.
        num_threads: 1 simulates on the calling thread.
    """

    def __init__(self, model: Any, num_threads: int) -> None:
        mujoco = load_mujoco()
        self._data = [mujoco.MjData(model) for _ in range(num_threads)]
        self._pool = mujoco.rollout.Rollout(nthread=num_threads if num_threads > 1 else 0)
        self._control_spec = mujoco.mjtState.mjSTATE_CTRL.value
        state_size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        self._widths: dict[str, int] = {"control": model.nu, "state": state_size, "sensordata": model.nsensordata}
        self._buffers: dict[str, Array] = {}
        self._lock = threading.Lock()
        # Sensors of accelerations and forces belong to the step that they come with, the others to the state before it.
        stages = np.repeat(model.sensor_needstage, model.sensor_dim)
        self._is_of_step = stages == mujoco.mjtStage.mjSTAGE_ACC.value

    def block(self, steps: int) -> int:
        """Return how many trajectories of `steps` steps are best simulated at once, so that memory stays bounded."""
        return max(1, _BLOCK // ((steps + 1) * sum(self._widths.values())))

    def run(
        self, model: Any, start: Array, warmstart: Array, controls: Array, *, hold: int, every: int
    ) -> tuple[Moments, npt.NDArray[np.bool_]]:
        """Simulate J sequences of H controls [H, J, nu], each held for `hold` steps, from one state.

        Returns:
            The moments after every `every` steps, N = J * H * hold / every, those of a sequence one after another; and
            whether a sequence diverged, bool [J], in which case its moments mean nothing.
        """
        horizon, rows, _ = controls.shape
        steps = horizon * hold
        with self._lock:
            # One step more, since the sensors of a state are computed by the step after it.
            control, state, sensordata = (
                self._buffer(name, rows, steps + 1) for name in ("control", "state", "sensordata")
            )
            control[:, :steps].reshape(rows, horizon, hold, -1)[:] = controls.transpose(1, 0, 2)[:, :, None]
            control[:, steps] = control[:, steps - 1]
            self._pool.rollout(
                [model] * rows,
                self._data,
                np.tile(start, (rows, 1)),
                control,
                control_spec=self._control_spec,
                skip_checks=True,
                nstep=steps + 1,
                initial_warmstart=np.tile(warmstart, (rows, 1)),
                state=state,
                sensordata=sensordata,
            )
            # After any warning MuJoCo repeats one state, and a reset turns the clock back.
            last = state[:, steps - 1, 1 : 1 + model.nq + model.nv]
            diverged = ~(state[:, steps, 0] > state[:, steps - 1, 0]) | ~np.all(np.abs(last) < LARGEST, axis=1)
            ends = state[:, every - 1 : steps : every]
            before = np.concatenate([np.tile(start, (rows, 1, 1)), ends[:, :-1]], axis=1)
            sensors = sensordata[:, every::every]
            if self._is_of_step.any():
                sensors = np.where(self._is_of_step, sensordata[:, every - 1 : -1 : every], sensors)
            q, v = slice(1, 1 + model.nq), slice(1 + model.nq, 1 + model.nq + model.nv)
            moments = Moments(
                model=model,
                time=_rows(ends[..., :1])[:, 0],
                qpos=_rows(ends[..., q]),
                qvel=_rows(ends[..., v]),
                sensordata=_rows(sensors),
                ctrl=_rows(control[:, every - 1 : steps : every]),
                previous_qpos=_rows(before[..., q]),
                previous_qvel=_rows(before[..., v]),
            )
        return moments, diverged

    def _buffer(self, name: str, rows: int, steps: int) -> Array:
        """Return the memory for "control", "state" or "sensordata", [rows, steps, width]; it grows and stays."""
        shape = (rows, steps, self._widths[name])
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = np.empty(size)
        return self._buffers[name][:size].reshape(shape)


def _rows(values: Array) -> Array:
    """Return [J, R, width] as an array [J * R, width] of its own, which later simulations leave alone."""
    result = np.empty((values.shape[0] * values.shape[1], values.shape[2]))
    result.reshape(values.shape)[:] = values
    return result
