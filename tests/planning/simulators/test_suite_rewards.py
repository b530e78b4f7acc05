import numpy as np
import pytest
import torch
from dm_control.suite.walker import PlanarWalker

from planet_lib.planning.simulators import Moments, MuJoCoDynamics
from planet_lib.planning.simulators.suite import suite_reward

PAPER = ["cartpole-swingup", "reacher-easy", "cheetah-run", "finger-spin", "ball_in_cup-catch", "walker-walk"]
OTHERS = ["cartpole-balance", "cartpole-balance_sparse", "cartpole-swingup_sparse", "cartpole-two_poles"]
OTHERS += ["cartpole-three_poles", "reacher-hard", "finger-turn_easy", "finger-turn_hard", "walker-stand"]
OTHERS += ["walker-run", "pendulum-swingup", "hopper-stand", "hopper-hop"]

pytestmark = pytest.mark.filterwarnings("ignore:compiler attribute")


def put(env, task):
    """Change the state of a running episode to one where the task's reward is near and random actions can lose it."""
    physics = env.unwrapped.physics
    qpos, qvel = physics.named.data.qpos, physics.named.data.qvel
    if task.startswith("finger-spin"):
        qvel["hinge"] = -16.0
    elif task.startswith("finger-turn"):
        angles, distances = np.linspace(-np.pi, np.pi, 100), []
        for angle in angles:
            qpos["hinge"] = angle
            physics.forward()
            distances.append(physics.dist_to_target())
        qpos["hinge"], qvel["hinge"] = angles[np.argmin(distances)] - 0.4, 4.0
    elif task.startswith("ball_in_cup"):
        qpos["ball_z"], qpos["ball_x"] = 0.36, 0.0
    elif task.startswith("reacher"):
        target = physics.named.model.geom_pos["target"]
        angle = np.arctan2(target[1], target[0])
        far = np.hypot(target[0], target[1])
        bend = np.arccos(np.clip((far**2 - 2 * 0.12**2) / (2 * 0.12**2), -1, 1))
        qpos["shoulder"], qpos["wrist"] = angle - bend / 2, bend
        qvel[:] = 1.0, -1.0
    elif task.startswith("hopper"):
        qpos[:] = 0.0
        qpos["knee"] = 1.7
    elif task.startswith("pendulum"):
        qpos["hinge"], qvel["hinge"] = -0.1, 1.0
    elif task.startswith("cartpole") and "sparse" in task:
        qpos["hinge_1"], qvel[:] = -0.08, 0.5
    physics.forward()


def compare(make, task, *, seeds, horizon, near):
    """Play one candidate of each environment; return the largest error, all rewards and the number of contacts."""
    envs = [make(f"dmc:{task}") for _ in range(2)]
    dynamics = MuJoCoDynamics.from_env(envs, num_threads=2)
    error, rewards, contacts = 0.0, [], 0
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        for index, env in enumerate(envs):
            env.reset(seed=2 * seed + index)
            for _ in range(generator.integers(0, 40) * (seed > 0)):
                env.step(generator.uniform(-1, 1, env.action_space.shape))
            if near:
                put(env, task)
        size = (horizon, 2, 3, *envs[0].action_space.shape)
        actions = torch.from_numpy(generator.uniform(-1, 1, size))
        returns = dynamics.rollout(dynamics.state(), actions)
        for index, env in enumerate(envs):
            played = []
            for t in range(horizon):
                played.append(env.step(actions[t, index, 1 + index].numpy())[1])
                contacts += env.unwrapped.physics.data.ncon
            error = max(error, abs(sum(played) - float(returns[index, 1 + index])))
            rewards += played
    return error, np.array(rewards), contacts


@pytest.mark.parametrize("task", PAPER)
def test_a_return_is_the_sum_of_what_env_step_gives_from_reset_and_from_mid_episode(task, make):
    error, _, contacts = compare(make, task, seeds=4, horizon=25, near=False)
    assert error < 1e-11
    assert contacts > 0 or task not in ("cheetah-run", "walker-walk")


@pytest.mark.parametrize("task", PAPER + OTHERS)
def test_a_return_is_the_sum_of_what_env_step_gives_where_rewards_come_and_go(task, make):
    error, rewards, _ = compare(make, task, seeds=3, horizon=12, near=True)
    assert error < 1e-11
    assert len(set(rewards.round(9))) > 1, "a test where nothing happens shows nothing"


def test_cartpole_at_rest_upright_in_the_middle_earns_one(make):
    env = make("dmc:cartpole-swingup")
    model = env.unwrapped.physics.model.ptr
    reward = suite_reward(env.unwrapped._env.task)
    zeros, one = np.zeros((1, 2)), np.ones((1, 1))
    rest = Moments(model, np.zeros(1), zeros, zeros, np.zeros((1, 0)), 0 * one, zeros, zeros)
    assert reward(rest) == pytest.approx([1.0], abs=1e-12)
    assert reward(rest._replace(ctrl=one)) == pytest.approx([0.8], abs=1e-12)
    assert reward(rest._replace(qpos=np.array([[0.0, np.pi / 2]]))) == pytest.approx([0.5], abs=1e-12)
    # At the margin of 2 the cart counts for 0.1, of which (1 + 0.1) / 2 remains.
    assert reward(rest._replace(qpos=np.array([[2.0, 0.0]]))) == pytest.approx([0.55], abs=1e-12)


def test_two_tasks_of_one_name_have_equal_rewards_and_others_do_not(make):
    walk, again, run = (
        suite_reward(make(f"dmc:walker-{task}").unwrapped._env.task) for task in ("walk", "walk", "run")
    )
    assert walk == again
    assert walk != run


def test_a_task_derived_from_one_of_the_suite_is_not_mistaken_for_it():
    class Backwards(PlanarWalker):
        def get_reward(self, physics):
            return -super().get_reward(physics)

    assert suite_reward(Backwards(move_speed=1)) is None
    Backwards.__name__, Backwards.__module__ = "PlanarWalker", "mine.walker"  # of the same name, elsewhere
    assert suite_reward(Backwards(move_speed=1)) is None


def test_an_unknown_task_is_refused_with_the_known_ones_and_the_remedy(make):
    env = make("dmc:swimmer-swimmer6")
    expected = r"reward must be given for dm_control.suite.swimmer.Swimmer: a function of .*Moments that returns \[N\]"
    with pytest.raises(ValueError, match=expected + ".*cheetah-run"):
        MuJoCoDynamics.from_env(env)
    MuJoCoDynamics.from_env(env, reward=lambda moments: moments.qvel[:, 0])
