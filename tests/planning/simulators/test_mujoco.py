import copy
import subprocess
import sys

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from planet_lib.planning import CEMPlanner
from planet_lib.planning.simulators import MuJoCoDynamics, _native
from planet_lib.testing import check_dynamics

pytestmark = pytest.mark.filterwarnings("ignore:compiler attribute")


def forces(*rows):
    """Actions [H, 1, J, 1] of J candidates, each a list of H forces."""
    return torch.tensor(rows, dtype=torch.float64).T[:, None, :, None]


def speed(moments):
    return moments.qvel[:, 0]


def keep(into, reward=speed):
    """A reward function that also keeps the moments it is given."""

    def kept(moments):
        into.append(moments)
        return reward(moments)

    return kept


def everything(env):
    """All numbers of a MuJoCo simulation, and of its model, as bytes."""
    physics = env.unwrapped.physics
    data, model = physics.data.ptr, physics.model.ptr
    state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION.value))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION.value)
    parts = [state, data.xpos, data.sensordata, data.qacc, data.qfrc_constraint, data.warning.number, model.geom_pos]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def test_a_return_is_the_discounted_sum_of_rewards_by_hand(slider):
    """One newton on one kilogram for 0.1 s an action: the speed after k steps of 0.01 s is k / 100."""
    data = mujoco.MjData(slider)
    dynamics = MuJoCoDynamics(
        slider, speed, steps_per_action=5, action_repeat=2, data=[data], discount=0.5, num_threads=1
    )
    returns = dynamics.rollout(dynamics.state(), forces([1.0, 1.0], [1.0, 0.0], [0.0, -2.0]))
    # Moments after 5, 10 | 15, 20 steps, the second pair worth half.
    expected = [0.05 + 0.10 + 0.5 * (0.15 + 0.20), 0.15 + 0.5 * 0.20, 0.5 * (-0.10 - 0.20)]
    np.testing.assert_allclose(returns[0], expected, atol=1e-12)
    assert returns.dtype == torch.float64
    assert dynamics.steps_per_rollout(12) == 120


def test_a_reward_function_sees_each_moment_with_its_own_sensors_control_and_past(slider):
    seen = []
    data = mujoco.MjData(slider)
    data.qpos[:], data.qvel[:], data.time = 0.5, 2.0, 3.0
    dynamics = MuJoCoDynamics(slider, keep(seen), steps_per_action=2, data=[data])
    dynamics.rollout(dynamics.state(), forces([1.0, -3.0], [0.0, 0.0]))
    (moments,) = seen
    assert moments.model is slider
    np.testing.assert_allclose(moments.time, [3.02, 3.04, 3.02, 3.04], atol=1e-12)
    np.testing.assert_allclose(moments.ctrl[:, 0], [1, -3, 0, 0])
    np.testing.assert_allclose(moments.qvel[:, 0], [2.02, 1.96, 2, 2], atol=1e-12)
    np.testing.assert_allclose(moments.previous_qvel[:, 0], [2, 2.02, 2, 2], atol=1e-12)
    np.testing.assert_allclose(moments.previous_qpos[[0, 2], 0], 0.5)
    np.testing.assert_allclose(moments.previous_qpos[[1, 3]], moments.qpos[[0, 2]])
    np.testing.assert_allclose(moments.qpos[2:, 0], [0.54, 0.58], atol=1e-12)
    position, velocity, acceleration = moments.sensordata[:, :3].T
    np.testing.assert_allclose(position, moments.qpos[:, 0], atol=1e-12)
    np.testing.assert_allclose(velocity, moments.qvel[:, 0], atol=1e-12)
    # The force of the step that led here, not of the one that comes after.
    np.testing.assert_allclose(acceleration, [1, -3, 0, 0], atol=1e-12)


def test_environments_are_left_bit_for_bit_as_they_were(make):
    planned, alone = make("dmc:walker-walk"), make("dmc:walker-walk")
    actions = torch.rand(6, 1, 5, 6, dtype=torch.float64) * 2 - 1
    for env in (planned, alone):
        env.reset(seed=3)
    dynamics = MuJoCoDynamics.from_env(planned)
    for t in range(5):
        before = everything(planned)
        dynamics.rollout(dynamics.state(), actions)
        assert everything(planned) == before
        ours, theirs = (env.step(actions[t, 0, 0].numpy()) for env in (planned, alone))
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1] == theirs[1]


def test_trajectories_are_the_environments_own_to_the_last_bit(make):
    """Also with contacts, which the warm start of the constraint solver makes exact."""
    env = make("dmc:walker-walk")
    env.reset(seed=0)
    generator = np.random.default_rng(0)
    for _ in range(20):
        env.step(generator.uniform(-1, 1, 6))
    seen = []
    dynamics = MuJoCoDynamics.from_env(env, reward=keep(seen))
    state = dynamics.state()
    actions = torch.from_numpy(generator.uniform(-1, 1, (30, 1, 3, 6)))
    dynamics.rollout(state, actions)
    dynamics.rollout(state._replace(warmstart=torch.zeros_like(state.warmstart)), actions)
    exact, cold = (moments.qpos.reshape(3, 30, 2, -1)[1, :, -1] for moments in seen)
    contacts = 0
    for t in range(30):
        env.step(actions[t, 0, 1].numpy())
        contacts += env.unwrapped.physics.data.ncon
        np.testing.assert_array_equal(exact[t], env.unwrapped.physics.data.qpos)
    assert contacts > 0
    assert not np.array_equal(cold, exact), "this test could not tell"


def test_each_row_is_simulated_with_its_own_state_and_model(make):
    envs = [make("dmc:reacher-easy") for _ in range(3)]
    for index, env in enumerate(envs):
        env.reset(seed=index)
    seen = []
    dynamics = MuJoCoDynamics.from_env(envs, reward=keep(seen, lambda moments: moments.qpos[:, 0]))
    state = dynamics.state()
    actions = torch.rand(4, 3, 7, 2, dtype=torch.float64) * 2 - 1
    returns = dynamics.rollout(state, actions)
    assert [moments.model for moments in seen] == [env.unwrapped.physics.model.ptr for env in envs]
    assert len({float(value) for value in returns[:, 0]}) == 3
    order = torch.tensor([2, 0, 0])
    picked = type(state)(*(part[order] for part in state))
    torch.testing.assert_close(dynamics.rollout(picked, actions[:, order]), returns[order], rtol=0, atol=0)
    alone = MuJoCoDynamics.from_env(envs[1], reward=lambda moments: moments.qpos[:, 0])
    torch.testing.assert_close(alone.rollout(alone.state(), actions[:, 1:2]), returns[1:2], rtol=0, atol=0)


def test_the_contract_of_dynamics_is_kept(make):
    envs = [make("dmc:cheetah-run") for _ in range(3)]
    for index, env in enumerate(envs):
        env.reset(seed=index)
    dynamics = MuJoCoDynamics.from_env(envs)
    check_dynamics(dynamics, dynamics.state(), action_dim=6)


def test_threads_blocks_and_earlier_calls_change_nothing(make, monkeypatch):
    env = make("dmc:cheetah-run")
    env.reset(seed=0)
    actions = torch.rand(5, 1, 33, 6, dtype=torch.float64) * 2 - 1
    one = MuJoCoDynamics.from_env(env, num_threads=1)
    expected = one.rollout(one.state(), actions)
    for threads in (2, 3):
        several = MuJoCoDynamics.from_env(env, num_threads=threads)
        for _ in range(2):
            torch.testing.assert_close(several.rollout(several.state(), actions), expected, rtol=0, atol=0)
    fewer = several.rollout(several.state(), actions[:3, :, :9])
    again = several.rollout(several.state(), actions)
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    torch.testing.assert_close(fewer, one.rollout(one.state(), actions[:3, :, :9]), rtol=0, atol=0)
    monkeypatch.setattr(_native, "_BLOCK", 6000)
    assert 1 <= one._native.block(one.steps_per_rollout(5)) < 33
    torch.testing.assert_close(one.rollout(one.state(), actions), expected, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 4])
def test_what_a_reward_function_keeps_is_not_overwritten(slider, rows):
    """One moment per physics step, and also for one candidate, where a view of the simulator's memory would do."""
    seen = []
    dynamics = MuJoCoDynamics(slider, keep(seen), steps_per_action=1, data=[mujoco.MjData(slider)])
    dynamics.rollout(dynamics.state(), forces(*[[1.0, 2.0]] * rows))
    first = copy.deepcopy([np.array(part) for part in seen[0][1:]])
    dynamics.rollout(dynamics.state(), forces(*[[5.0, 6.0]] * rows))
    for part, before in zip(seen[0][1:], first, strict=True):
        np.testing.assert_array_equal(part, before)


def test_after_the_end_of_an_episode_nothing_is_earned(slider):
    """The step that ends it counts, as in `env.step`; a reward that is no number afterwards is not seen."""

    def reward(moments):
        return np.where(moments.qvel[:, 0] > 0.035, np.nan, 1.0)

    dynamics = MuJoCoDynamics(
        slider,
        reward,
        steps_per_action=1,
        data=[mujoco.MjData(slider)],
        terminated=lambda moments: moments.qvel[:, 0] > 0.025,
    )
    returns = dynamics.rollout(dynamics.state(), forces([1.0] * 6, [0.0] * 6))
    assert returns.tolist() == [[3.0, 6.0]]


def test_actions_of_single_precision_are_taken_as_env_step_takes_them(make):
    env = make("dmc:cheetah-run")
    env.reset(seed=1)
    dynamics = MuJoCoDynamics.from_env(env)
    actions = torch.rand(4, 1, 2, 6) * 2 - 1
    returns = dynamics.rollout(dynamics.state(), actions)
    torch.testing.assert_close(dynamics.rollout(dynamics.state(), actions.double()), returns, rtol=0, atol=0)
    assert returns.dtype == torch.float64
    played = sum(env.step(action.numpy())[1] for action in actions[:, 0, 1])
    assert float(returns[0, 1]) == pytest.approx(played, abs=1e-12)


def run_forward(moments):
    """HalfCheetah-v5: the way made per second, minus a tenth of the squared controls."""
    way = moments.qpos[:, 0] - moments.previous_qpos[:, 0]
    seconds = moments.model.opt.timestep * 5
    return way / seconds - 0.1 * np.square(moments.ctrl).sum(axis=1)


def fallen(moments):
    return np.abs(moments.qpos[:, 1]) > 0.2


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_gymnasium_environment_with_the_users_reward_agrees_with_its_step(wrapped, make):
    env = make("gym:HalfCheetah-v5", action_repeat=3) if wrapped else gymnasium.make("HalfCheetah-v5")
    env.reset(seed=5)
    dynamics = MuJoCoDynamics.from_env(env, reward=run_forward)
    assert dynamics.steps_per_rollout(1) == (15 if wrapped else 5)
    actions = torch.rand(10, 1, 2, 6) * 2 - 1
    for _ in range(3):  # also from states in the middle of an episode
        returns = dynamics.rollout(dynamics.state(), actions)
        played = sum(env.step(action.numpy())[1] for action in actions[:, 0, 1])
        # Gymnasium squares the controls in single precision.
        assert float(returns[0, 1]) == pytest.approx(played, abs=1e-5)
    env.close()


@pytest.mark.parametrize("repeat", [1, 4])
def test_a_gymnasium_episode_that_ends_early_agrees_with_its_step(repeat, make):
    env = make("gym:InvertedPendulum-v5", action_repeat=repeat)
    env.reset(seed=0)
    dynamics = MuJoCoDynamics.from_env(env, reward=lambda moments: 1.0 - fallen(moments), terminated=fallen)
    actions = torch.ones(20, 1, 1, 1) * 0.5
    expected = dynamics.rollout(dynamics.state(), actions).item()
    played, is_over = 0.0, False
    for action in actions[:, 0, 0]:
        if not is_over:
            _, reward, is_over, _, _ = env.step(action.numpy())
            played += reward
    assert is_over
    assert played == expected > 0


def test_a_planner_finds_the_best_force(slider):
    dynamics = MuJoCoDynamics(slider, speed, steps_per_action=10, data=[mujoco.MjData(slider)])
    planner = CEMPlanner(dynamics, [-1.0], [1.0], horizon=3, num_candidates=60, num_elites=6, num_iterations=8)
    plan = planner(dynamics.state(), generator=torch.Generator().manual_seed(0))
    assert plan.valid.all()
    assert plan.action.item() == pytest.approx(1.0, abs=0.01)
    assert plan.value.item() == pytest.approx(0.1 + 0.2 + 0.3, abs=0.01)


def test_a_deep_copy_reads_the_same_environment_and_simulates_on_its_own(make):
    env = make("dmc:cartpole-swingup")
    env.reset(seed=0)
    dynamics = MuJoCoDynamics.from_env(env)
    twin = copy.deepcopy(dynamics)
    actions = torch.rand(4, 1, 8, 1) * 2 - 1
    torch.testing.assert_close(
        twin.rollout(twin.state(), actions), dynamics.rollout(dynamics.state(), actions), rtol=0, atol=0
    )
    assert twin._native is not dynamics._native
    env.step(np.ones(1))
    torch.testing.assert_close(twin.state(), dynamics.state(), rtol=0, atol=0)


def test_a_state_is_a_copy(slider):
    data = mujoco.MjData(slider)
    dynamics = MuJoCoDynamics(slider, speed, steps_per_action=1, data=[data])
    state = dynamics.state()
    data.qvel[:] = 5
    data.qacc_warmstart[:] = 7
    assert state.physics.tolist() == [[0.0, 0.0, 0.0]]
    assert state.warmstart.tolist() == [[0.0]]
    assert dynamics.state().physics.tolist() == [[0.0, 0.0, 5.0]]


def test_controls_are_rounded_and_clipped_as_in_env_step(make):
    """Gymnasium's box is in single precision: what the actuators get is not quite the action."""
    env = make("gym:HalfCheetah-v5", action_repeat=1)
    env.reset(seed=0)
    seen = []
    dynamics = MuJoCoDynamics.from_env(env, reward=keep(seen))
    action = torch.tensor([0.1, -0.3, 1 / 3, 1 + 5e-7, -1 - 5e-7, 0.7], dtype=torch.float64)
    dynamics.rollout(dynamics.state(), action[None, None, None])
    env.step(action.numpy())
    np.testing.assert_array_equal(seen[0].ctrl[0], env.unwrapped.data.ctrl)


def test_no_candidates_and_no_steps_earn_nothing(slider):
    dynamics = MuJoCoDynamics(slider, speed, steps_per_action=1, data=[mujoco.MjData(slider)])
    assert dynamics.rollout(dynamics.state(), torch.zeros(0, 1, 3, 1)).tolist() == [[0.0, 0.0, 0.0]]
    assert dynamics.rollout(dynamics.state(), torch.zeros(3, 1, 0, 1)).tolist() == [[]]


def test_importing_loads_no_simulator_and_a_simulation_needs_no_gl():
    code = """
import sys
import planet_lib.planning.simulators as simulators
assert not {"mujoco", "gymnasium", "dm_control"} & set(sys.modules)
import torch, mujoco
ball = "<body><freejoint/><geom size='1'/></body>"
model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{ball}</worldbody></mujoco>")
dynamics = simulators.MuJoCoDynamics(model, lambda m: m.qpos[:, 2], steps_per_action=1, data=[mujoco.MjData(model)])
print(dynamics.rollout(dynamics.state(), torch.zeros(2, 1, 1, 0)).item() < 0)
assert not {name for name in sys.modules if "OpenGL" in name or "glfw" in name}
"""
    variables = {"MUJOCO_GL": "disable", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
