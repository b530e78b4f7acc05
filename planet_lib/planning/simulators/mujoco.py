"""The true MuJoCo simulator as dynamics: a planner without any model error, which shows how good the planner is.

It knows MuJoCo, and rewards as functions of states. It draws nothing, and never touches the environments that it
plans for: they are only read.

Source: the row "CEM + true simulator state" of Hafner et al. 2019 (arXiv:1811.04551), table 1, for which
google-research/planet copies states into a second environment. Here the candidates run in MuJoCo's own threads.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from planet_lib._shapes import check_count, check_shape, check_whole, shown
from planet_lib.planning.simulators._checks import (
    as_floats,
    check_actions,
    check_discount,
    check_functions,
    check_numbers,
    places,
)
from planet_lib.planning.simulators._environments import describe, live
from planet_lib.planning.simulators._native import LARGEST, NativeRollouts, available_cores, load_mujoco
from planet_lib.planning.simulators.moments import Array, Reward, Terminated


class MuJoCoState(NamedTuple):
    """Where B simulations stand, exactly: a row can be copied, repeated or picked like that of any state.

    physics [B, nstate] float64: MuJoCo's full physics state (time, positions, velocities, activations). warmstart
    [B, nv] float64: where its constraint solver begins, without which trajectories differ in the last digits. model
    [B] int64: which of the dynamics' models the row belongs to.
    """

    physics: Tensor
    warmstart: Tensor
    model: Tensor


class MuJoCoDynamics:
    """MuJoCo itself as dynamics: returns are the true ones, those that `env.step` would give.

    return = sum over t = 1..H of discount^(t-1) sum over the action_repeat environment steps of t of reward(moments)

    with one moment after every `steps_per_action` physics steps. Nothing is random. After `terminated` nothing is
    earned; time limits are not seen.

    A candidate that diverges, or would with the next physics step, whose actions are not finite, or whose reward is
    not, has the return NaN; its neighbours do not notice. In `env.step` a divergence raises dm_control's
    `PhysicsError`, where Gymnasium's environments go on from MuJoCo's reset. MuJoCo itself reports each candidate that
    diverges: on standard output and in the file MUJOCO_LOG.TXT, or through Python's logging where dm_control is in use.

    Shapes: state, what `state()` returns; actions [H, B, J, A] -> returns [B, J], float64 on the actions' device.

    Args:
        models: the `mujoco.MjModel`, or one for each environment, all of the same sizes. They are used as they are at
            each call, not copied: where a task changes its model in `reset` (reacher moves the target), plan from the
            states of the running episode.
        reward: function of `Moments` that returns [N], the reward of one environment step at each moment.
        steps_per_action: physics steps of one environment step, between two rewards.
        action_repeat: environment steps for which an action is held; their rewards are summed.
        to_ctrl: function of actions [..., A] (float64 array) that returns controls [..., nu]; None takes actions as
            controls. Its input must not be changed.
        terminated: function of `Moments` that returns [N] bool: whether the episode ends with this environment step.
            None: it never does.
        discount: in (0, 1], of one decision, as a planner sees them.
        num_threads: of the simulation; None takes all cores that this process may use.
        data: the live `mujoco.MjData` of each environment, which `state()` reads.

    Raises:
        ValueError: a setting out of its range, or models of different sizes; in `rollout`, shapes that do not fit, or
            actions that `to_ctrl` refuses (those of `from_env` must be within [-1, 1]).
        ImportError: mujoco is not installed; the message says how to get it.

    Example:
        >>> import mujoco
        >>> ball = '<body><joint name="x" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/></body>'
        >>> push = '<actuator><motor joint="x"/></actuator>'
        >>> model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{ball}</worldbody>{push}</mujoco>")
        >>> data = mujoco.MjData(model)
        >>> dynamics = MuJoCoDynamics(model, lambda moments: moments.qvel[:, 0], steps_per_action=500, data=[data])
        >>> forces = torch.tensor([1.0, -1.0]).reshape(1, 1, 2, 1)  # newtons on one kilogram, for a second
        >>> dynamics.rollout(dynamics.state(), forces).round(decimals=6)
        tensor([[ 1., -1.]], dtype=torch.float64)
    """

    def __init__(
        self,
        models: Any,
        reward: Reward,
        *,
        steps_per_action: int,
        action_repeat: int = 1,
        to_ctrl: Callable[[Array], Array] | None = None,
        terminated: Terminated | None = None,
        discount: float = 1.0,
        num_threads: int | None = None,
        data: Sequence[Any] | None = None,
    ) -> None:
        mujoco = load_mujoco()
        threads = available_cores() if num_threads is None else num_threads
        check_count(steps_per_action=steps_per_action, action_repeat=action_repeat, num_threads=threads)
        check_discount(discount)
        if reward is None:
            raise TypeError("reward must be a function of planet_lib.planning.simulators.Moments, got None")
        check_functions(reward=reward, to_ctrl=to_ctrl, terminated=terminated)
        self.models: tuple[Any, ...] = tuple(models) if isinstance(models, list | tuple) else (models,)
        for model in self.models:
            if not isinstance(model, mujoco.MjModel):
                raise TypeError(f"models must be a mujoco.MjModel, or a list of such, got {shown(model)}")
        if not self.models or any(model.signature != self.models[0].signature for model in self.models):
            got = f"{len(self.models)} of several" if self.models else "an empty list"
            raise ValueError(f"models must be one or more of the same sizes, got {got}; make one object for each kind")
        if data is not None:
            _check_data(data, self.models, mujoco.MjData)
        self.reward, self.to_ctrl, self.terminated = reward, to_ctrl, terminated
        self.steps_per_action, self.action_repeat = int(steps_per_action), int(action_repeat)
        self.discount = float(discount)
        self.num_threads = int(threads)
        self._native = NativeRollouts(self.models[0], self.num_threads)
        self._sources: tuple[Callable[[], tuple[Any, Any]], ...] = ()
        if data is not None:
            self._sources = tuple(partial(_pair, *pair) for pair in zip(self.models, data, strict=True))
        states = mujoco.mjtState
        self._full = states.mjSTATE_FULLPHYSICS.value
        # What an environment can set besides controls; rollouts have it as a new MjData has it.
        self._inputs = states.mjSTATE_USER.value & ~states.mjSTATE_CTRL.value
        self._get_state, self._state_size = mujoco.mj_getState, mujoco.mj_stateSize(self.models[0], self._full)
        self._usual = [self._read(model, mujoco.MjData(model), self._inputs) for model in self.models]

    @classmethod
    def from_env(
        cls,
        env: Any,
        *,
        reward: Reward | None = None,
        terminated: Terminated | None = None,
        discount: float = 1.0,
        num_threads: int | None = None,
    ) -> "MuJoCoDynamics":
        """Return the dynamics of one environment, or of a list of them, all playing the same task.

        Actions are those that `env.step` takes: in [-1, 1] for what `make_env` returns, whose action repeat is taken
        over, and in the environment's own units for a Gymnasium MuJoCo environment as `gymnasium.make` returns it.
        `state()` reads the environments themselves; a rollout leaves them as they are.

        Args:
            env: what `planet_lib.envs.make_env` returns for "dmc:..." or for a MuJoCo environment of Gymnasium, such an
                environment itself, or a list of them.
            reward: see the class; None takes the task's own, which is known for all tasks of the suite's cartpole,
                reacher, cheetah, finger, ball_in_cup, walker, pendulum and hopper.
            terminated: see the class.
            discount: see the class.
            num_threads: see the class.

        Raises:
            ValueError: no reward given or known (the message names those known), environments that differ, or a wrapper
                that changes actions on their way.
            TypeError: an environment that does not simulate with MuJoCo.

        Example:
            >>> from planet_lib.envs import make_env
            >>> env = make_env("dmc:cartpole-swingup", obs="state")
            >>> observation, info = env.reset(seed=0)
            >>> dynamics = MuJoCoDynamics.from_env(env)
            >>> actions = torch.linspace(-1, 1, 3).repeat(2, 1).reshape(2, 1, 3, 1)  # two steps, three candidates
            >>> returns = dynamics.rollout(dynamics.state(), actions)
            >>> rewards = [env.step(actions[t, 0, 2].numpy())[1] for t in range(2)]
            >>> abs(float(returns[0, 2]) - sum(rewards)) < 1e-9
            True
        """
        check_functions(reward=reward, terminated=terminated)
        envs = list(env) if isinstance(env, list | tuple) else [env]
        if not envs:
            raise ValueError("env must be an environment or a list of at least one, got an empty list")
        first, *others = simulations = [describe(each, reward) for each in envs]
        for other in others:
            if other[1:] != first[1:]:
                raise ValueError(f"env must be environments of one task, got {first[1:]} and {other[1:]}")
        dynamics = cls(
            [live(each.source)[0] for each in simulations],
            first.reward,
            steps_per_action=first.steps_per_action,
            action_repeat=first.action_repeat,
            to_ctrl=first.to_ctrl,
            terminated=terminated,
            discount=discount,
            num_threads=num_threads,
        )
        dynamics._sources = tuple(partial(live, each.source) for each in simulations)
        return dynamics

    def __deepcopy__(self, memo: dict[int, Any]) -> "MuJoCoDynamics":
        """Return dynamics with threads of their own that read the same environments: these are not copied."""
        result = copy.copy(self)
        result._native = NativeRollouts(self.models[0], self.num_threads)
        return result

    def state(self) -> MuJoCoState:
        """Return where the environments stand now: one row for each, in their order. A copy; costs microseconds.

        Raises:
            ValueError: the dynamics were made without environments or data, or an environment has made a new model
                since, or applies forces of its own (or moves mocap bodies, or switches constraints), which a rollout
                would leave out.
        """
        if not self._sources:
            raise ValueError("state() needs data=[...], one mujoco.MjData for each model, or dynamics made by from_env")
        physics, warmstart = np.empty((len(self.models), self._state_size)), []
        for index, (model, source) in enumerate(zip(self.models, self._sources, strict=True)):
            current, data = source()
            if current is not model:
                raise ValueError(f"environment {index} has made a new model; call MuJoCoDynamics.from_env again")
            if not np.array_equal(self._read(model, data, self._inputs), self._usual[index]):
                raise ValueError(
                    f"environment {index} applies forces, moves mocap bodies or switches constraints itself, which "
                    "rollouts leave out; use EnvDynamics"
                )
            self._get_state(model, data, physics[index], self._full)
            warmstart.append(data.qacc_warmstart)
        return MuJoCoState(
            physics=torch.from_numpy(physics),
            warmstart=torch.from_numpy(np.stack(warmstart)),
            model=torch.arange(len(self.models)),
        )

    def steps_per_rollout(self, horizon: int) -> int:
        """Return the physics steps that one candidate of `horizon` actions is made of.

        One more is simulated for each candidate, to read the last sensors, and not counted.
        """
        check_whole("horizon", horizon, least=0)
        return int(horizon) * self.action_repeat * self.steps_per_action

    def rollout(self, state: MuJoCoState, actions: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the true return [B, J] of every candidate; `noise` is not used. See the class."""
        check_actions(actions)
        given: object = state
        if not isinstance(given, MuJoCoState):
            raise TypeError(f"state must be a MuJoCoState, what state() returns, got {type(given).__name__}")
        horizon, batch_size, num_candidates, _ = actions.shape
        sizes = {"B": batch_size, "N": self._state_size}
        check_shape("state.physics", state.physics, "B N", because="as the actions, and the model's state", **sizes)
        sizes = {"B": batch_size, "V": self.models[0].nv}
        check_shape("state.warmstart", state.warmstart, "B V", because="as the actions, and the model's nv", **sizes)
        check_shape("state.model", state.model, "B", B=batch_size, because="as the actions")
        check_numbers("state.physics", state.physics)
        check_numbers("state.warmstart", state.warmstart)
        which = places("state.model", state.model, len(self.models), "the number of models")
        values = actions.detach().to("cpu", torch.float64).numpy()
        physics, warmstart = (part.detach().to("cpu", torch.float64).numpy() for part in state[:2])
        returns = np.zeros((batch_size, num_candidates))
        weights = np.repeat(self.discount ** np.arange(horizon), self.action_repeat)
        block = self._native.block(self.steps_per_rollout(horizon))
        for row, index in enumerate(which if horizon > 0 else []):
            if not _can_start(self.models[index], physics[row], warmstart[row]):
                returns[row] = np.nan
                continue
            for first in range(0, num_candidates, block):
                part = slice(first, first + block)
                chosen = values[:, row, part]
                returns[row, part] = self._returns(self.models[index], physics[row], warmstart[row], chosen, weights)
        return torch.from_numpy(returns).to(actions.device)

    def _returns(self, model: Any, start: Array, warmstart: Array, actions: Array, weights: Array) -> Array:
        """Return what the candidates [H, J, A] of one environment earn [J]; `weights` [R] are those of the rewards."""
        is_number: Any = np.logical_and.reduce(np.isfinite(actions), axis=(0, 2))
        # A candidate that is not a number would make MuJoCo print a warning; it is worth nothing anyhow.
        actions = np.where(is_number[:, None], actions, 0.0)
        controls = actions if self.to_ctrl is None else as_floats("to_ctrl", self.to_ctrl(actions))
        if controls.shape != (*actions.shape[:2], model.nu):
            raise ValueError(
                f"actions must become controls [..., {model.nu}] (the model's nu), got {list(controls.shape)} from "
                f"{list(actions.shape)}"
            )
        hold, every = self.action_repeat * self.steps_per_action, self.steps_per_action
        moments, diverged = self._native.run(model, start, warmstart, controls, hold=hold, every=every)
        shape = (len(diverged), len(weights))
        with np.errstate(all="ignore"):  # a diverged state can be any number
            rewards = _per_moment("reward", self.reward(moments), len(moments.time)).reshape(shape)
            if self.terminated is not None:
                ends = _per_moment("terminated", self.terminated(moments), len(moments.time)).reshape(shape)
                ended_before = np.cumsum(ends, axis=1) - ends > 0
                rewards = np.where(ended_before, 0.0, rewards)
            total = (rewards * weights).sum(axis=1)
        returns: Array = np.where(is_number & ~diverged & np.isfinite(total), total, np.nan)
        return returns

    def _read(self, model: Any, data: Any, what: int) -> Array:
        """Return the parts `what` (bits of mjtState) of a simulation's state."""
        result = np.empty(load_mujoco().mj_stateSize(model, what))
        self._get_state(model, data, result, what)
        return result


def _pair(model: Any, data: Any) -> tuple[Any, Any]:
    return model, data


def _check_data(data: Sequence[Any], models: Sequence[Any], kind: Any) -> None:
    """Raise unless there is a simulation for each model, and of its sizes: others would be read beyond their end."""
    given: object = data
    if not isinstance(given, list | tuple):
        raise TypeError(f"data must be a list of mujoco.MjData, got {shown(given)}")
    if len(data) != len(models):
        raise ValueError(f"data must be one for each of the {len(models)} models, got {len(data)}")
    for model, each in zip(models, data, strict=True):
        if not isinstance(each, kind):
            raise TypeError(f"data must be a list of mujoco.MjData, got {shown(each)}")
        if each.signature != model.signature:
            raise ValueError("data must be made of models of the same sizes as the models, got one of another")


def _can_start(model: Any, physics: Array, warmstart: Array) -> bool:
    """Whether MuJoCo would simulate from there: what is not finite, or beyond its limit, it resets."""
    moving = physics[1 : 1 + model.nq + model.nv]
    numbers = np.concatenate([physics, warmstart])
    return bool(np.isfinite(numbers).all()) and bool((np.abs(moving) < LARGEST).all())


def _per_moment(name: str, values: Any, count: int) -> Array:
    """Return what a user's function gave, as floats [N], or raise."""
    result = as_floats(name, values)
    if result.shape != (count,):
        raise ValueError(f"{name} must return [N] with N={count}, one value per moment, got {list(result.shape)}")
    return result
