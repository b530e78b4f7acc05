"""The simulators of planet_lib.planning, fuzzed: MuJoCo, any Python environment, and kinematics."""

import functools
import math

import mujoco
import numpy as np
import pytest
import torch
from fuzzing import Entry, finite, fuzz
from torch import Tensor

from planet_lib.envs import make_env
from planet_lib.planning import EnvDynamics, MuJoCoDynamics
from planet_lib.planning.simulators import Kinematics

LEFT_OUT = {
    "planning.Moments": "a NamedTuple that the library makes, for a user's reward function",
    "planning.simulators.MuJoCoState": "a NamedTuple; MuJoCoDynamics.rollout checks what it holds",
    "planning.simulators.EnvState": "a NamedTuple; EnvDynamics.rollout checks what it holds",
}
SLIDER = """
<mujoco><option timestep="0.01" gravity="0 0 0"/>
  <worldbody><body name="cart"><joint name="x" type="slide" axis="1 0 0"/><geom name="box" size="0.1" mass="1"/>
    <site name="middle"/></body></worldbody>
  <actuator><motor joint="x"/></actuator>
</mujoco>"""
H, B, J = 3, 1, 4


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Work in a folder of the test's own, where MuJoCo writes its log of warnings."""
    monkeypatch.chdir(tmp_path)


@functools.cache
def slider():
    return mujoco.MjModel.from_xml_string(SLIDER)


@functools.cache
def slides() -> MuJoCoDynamics:
    return MuJoCoDynamics(slider(), force, steps_per_action=2, num_threads=1, data=[mujoco.MjData(slider())])


@functools.cache
def cartpole():
    env = make_env("dmc:cartpole-swingup", obs="state")
    env.reset(seed=0)
    return env


@functools.cache
def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def force(moments):
    return moments.ctrl[:, 0]


def check_made(given, dynamics) -> None:
    """With the force as the reward, a return is the sum of the actions, by discount and repeat."""
    returns = dynamics.rollout(slides().state(), drawn(H, B, J, 1))
    weight = float(given["discount"]) ** torch.arange(H) * int(given["action_repeat"])
    expected = (drawn(H, B, J, 1)[..., 0].double() * weight[:, None, None]).sum(0)
    torch.testing.assert_close(returns, expected)


def check_sums(given, returns) -> None:
    """Returns are the sum of the actions, or NaN: where these are not finite, or the simulation diverged."""
    actions, state = given["actions"].detach().double(), given["state"]
    expected = actions.sum((0, -1))
    torch.testing.assert_close(returns.nan_to_num(), expected.where(returns.isfinite(), 0.0).nan_to_num())
    started = state.physics.detach().double().isfinite().all() and state.warmstart.isfinite().all()
    gentle = (actions.abs() <= 2).all(-1).all(0) & bool(started and (state.physics.abs() < 100).all())
    assert finite(returns[gentle])


def check_from_env(given, dynamics) -> None:
    returns = dynamics.rollout(dynamics.state(), drawn(H, B, J, 1))
    assert returns.shape == (B, J)
    assert finite(returns)
    assert len(dynamics.models) == 1


class Lift:
    """Up or down by the action; the reward is the height, up to 100 steps."""

    def __init__(self):
        self.height = 0.0

    def step(self, action):
        self.height += float(np.asarray(action, dtype=float).sum())
        return self.height, self.height, False, False, {}


class Says:
    """An environment that answers a step with what it is told to."""

    def __init__(self, answer):
        self.answer = answer

    def step(self, action):
        return self.answer


LIFT = Lift()


def height(env) -> float:
    return env.height


def put(env, value) -> None:
    env.height = value


def check_lifted(given, returns) -> None:
    """Heights add up: the return is the sum over steps of the height reached."""
    heights = given["actions"].detach().double().sum(-1).cumsum(0)
    torch.testing.assert_close(returns.nan_to_num(), heights.sum(0).where(returns.isfinite(), 0.0).nan_to_num())
    assert finite(returns[heights.isfinite().all(0)])


def check_env(given, dynamics) -> None:
    if given["to_action"] is not None or given["get_state"] is not height or given["set_state"] is not put:
        return  # a user's own functions, which are as good as they are
    returns = dynamics.rollout(dynamics.state(), drawn(H, B, J, 1))
    heights = drawn(H, B, J, 1).sum(-1).double().cumsum(0)
    weight = float(given["discount"]) ** torch.arange(H)
    torch.testing.assert_close(returns, (heights * weight[:, None, None]).sum(0))
    assert LIFT.height == 0.0


def check_said(given, returns) -> None:
    reward = float(given["answer"][1])
    count = 1 if given["answer"][2] or given["answer"][3] else H
    expected = count * reward if math.isfinite(count * reward) else math.nan
    torch.testing.assert_close(returns, torch.full((B, J), expected, dtype=torch.float64), equal_nan=True)


def play(answer) -> Tensor:
    dynamics = EnvDynamics(Says(answer))
    return dynamics.rollout(dynamics.state(), drawn(H, B, J, 1))


def check_position(is_world, position) -> None:
    """Everything of the cart is where the cart is: at its joint's position along x. The world, body 0, stays at 0."""
    expected = np.zeros((3, 3))
    if not is_world:
        expected[:, 0] = [0.0, 1.0, -2.0]
    np.testing.assert_allclose(position, expected)


def check_axis(given, axis) -> None:
    """A cart that only slides keeps its axes."""
    np.testing.assert_allclose(axis, np.tile(np.eye(3)[int(given["axis"])], (3, 1)))


@functools.cache
def kinematics() -> Kinematics:
    return Kinematics(slider(), np.array([[0.0], [1.0], [-2.0]]))


def located(kind: str, method: str, name: str) -> Entry:
    numbers = {"body": [1], "geom": [0], "site": [0]}[kind]
    return Entry(
        f"planning.simulators.Kinematics.{method}",
        getattr(kinematics(), method),
        lambda: {kind: name},
        lambda given, position: check_position(given[kind] == 0 and kind == "body", position),
        also={kind: [*numbers, -1, 7, "nobody", 10**40, True]},
    )


ENTRIES = [
    Entry(
        "planning.MuJoCoDynamics",
        MuJoCoDynamics,
        lambda: {
            "models": slider(),
            "reward": force,
            "steps_per_action": 2,
            "action_repeat": 1,
            "to_ctrl": None,
            "terminated": None,
            "discount": 0.9,
            "num_threads": 1,
            "data": [mujoco.MjData(slider())],
        },
        lambda given, made: (
            check_made(given, made) if all(given[name] in (None, force) for name in FUNCTIONS) else made.models
        ),
        also={
            "models": [[slider()], [], SLIDER, [slider(), None]],
            "data": [mujoco.MjData(mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>"))],
        },
    ),
    Entry(
        "planning.MuJoCoDynamics.rollout",
        lambda **arguments: slides().rollout(**arguments),
        lambda: {"state": slides().state(), "actions": drawn(H, B, J, 1), "noise": None},
        check_sums,
    ),
    Entry(
        "planning.MuJoCoDynamics.steps_per_rollout",
        lambda horizon: slides().steps_per_rollout(horizon),
        lambda: {"horizon": 12},
        lambda given, steps: steps == 2 * int(given["horizon"]) or pytest.fail(f"{steps}"),
    ),
    Entry(
        "planning.MuJoCoDynamics.from_env",
        MuJoCoDynamics.from_env,
        lambda: {"env": cartpole(), "reward": None, "terminated": None, "discount": 1.0, "num_threads": 1},
        lambda given, made: (
            check_from_env(given, made) if given["reward"] is None is given["terminated"] else made.models
        ),
        also={"env": [[cartpole()], [], [cartpole(), None], LIFT]},
    ),
    Entry(
        "planning.EnvDynamics",
        EnvDynamics,
        lambda: {
            "env": LIFT,
            "get_state": height,
            "set_state": put,
            "to_action": None,
            "errors": (RuntimeError,),
            "discount": 0.9,
        },
        check_env,
        also={"errors": [RuntimeError, (3,), RuntimeError("x")], "env": [Lift]},
        known_as={"get_state": ["set_state"], "set_state": ["get_state"]},
    ),
    Entry(
        "planning.EnvDynamics",
        play,
        lambda: {"answer": (0.0, 1.5, False, False, {})},
        check_said,
        known_as={"answer": ["env.step"]},
    ),
    Entry(
        "planning.EnvDynamics.rollout",
        EnvDynamics(LIFT, get_state=height, set_state=put).rollout,
        lambda: {
            "state": EnvDynamics(LIFT, get_state=height, set_state=put).state(),
            "actions": drawn(H, B, J, 1),
            "noise": None,
        },
        check_lifted,
        state=lambda _: LIFT.height,
    ),
    Entry(
        "planning.EnvDynamics.state",
        EnvDynamics(LIFT).state,
        lambda: {"envs": [LIFT]},
        lambda given, state: state.row.tolist() == [*range(len(given["envs"] or [LIFT]))] or pytest.fail("its rows"),
    ),
    Entry(
        "planning.simulators.Kinematics",
        Kinematics,
        lambda: {"model": slider(), "qpos": np.array([[0.0], [1.0], [-2.0]])},
        lambda given, made: np.testing.assert_allclose(
            made.body_position("cart")[:, 0], np.asarray(given["qpos"], dtype=float)[:, 0]
        ),
    ),
    located("body", "body_position", "cart"),
    located("body", "body_centre", "cart"),
    located("geom", "geom_position", "box"),
    located("site", "site_position", "middle"),
    Entry(
        "planning.simulators.Kinematics.body_axis",
        lambda **arguments: kinematics().body_axis(**arguments),
        lambda: {"body": "cart", "axis": 2},
        check_axis,
    ),
]
FUNCTIONS = ("reward", "to_ctrl", "terminated")


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)
