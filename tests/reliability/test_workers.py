"""The same seeds give the same episodes, whoever plays them, however fast, and whatever is killed meanwhile."""

import importlib.util
import os
import signal
import sys
import threading
import time
import warnings
from contextlib import closing

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import planet_lib as pl
from planet_lib.data import random_policy, run_episodes
from planet_lib.envs import make_env, make_vector_env, select_backend

# Workers cannot import a test module by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SEEDS = [3, 14, 1, 5, 9, 2, 6]


class Hops(gymnasium.Env):
    """Sees its position, moved by the action and by noise of its own; 4 to 10 steps, each of any length in time."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, slow):
        self.slow = slow

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.left = self.np_random.normal(size=2), int(self.np_random.integers(4, 11))
        return self.x.astype(np.float32), {}

    def step(self, action):
        if self.slow:
            time.sleep(np.random.default_rng().random() * self.slow)
        self.x = 0.9 * self.x[::-1] + [action[0], self.np_random.normal()]
        self.left -= 1
        return self.x.astype(np.float32), float(self.x.sum()), self.left == 0 and self.x[0] > 0, self.left == 0, {}


def noisy_agent():
    """An agent that draws all its noise, for all rows, from torch's one generator."""
    torch.manual_seed(0)
    encoder = pl.VectorEncoder(2, embed_dim=6)
    cell = pl.RSSMCell(action_dim=1, embed_dim=6, deter_dim=8, stoch_dim=4, hidden_dim=8)
    model = pl.WorldModel(encoder, cell, pl.Decoder(12, (2,)), pl.RewardHead(12))
    planner = pl.CEMPlanner(
        pl.LatentDynamics(model), -1.0, 1.0, action_dim=1, horizon=3, num_candidates=10, num_elites=3, num_iterations=2
    )
    return pl.PlanningAgent(model, planner).policy(explore=True)


def random_actions():
    return random_policy(1, np.random.default_rng(0))


POLICIES = {"random": random_actions, "agent": noisy_agent}


def same_episodes(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for field, mine, their in zip(one._fields, one, other, strict=True):
            np.testing.assert_array_equal(mine, their, err_msg=field)
            assert mine.dtype == their.dtype


@pytest.fixture(scope="module")
def workers():
    with closing(make_vector_env(Hops, 3, obs="state", slow=0.01)) as envs:
        yield envs


@pytest.fixture(scope="module")
def expected():
    with closing(make_vector_env(Hops, 3, obs="state", slow=0, workers=False)) as envs:
        return {name: run_episodes(envs, make(), seeds=SEEDS) for name, make in POLICIES.items()}


@pytest.mark.parametrize("name", POLICIES)
def test_workers_of_any_speed_give_the_episodes_of_one_process_each_time(workers, expected, name):
    for _ in range(2):
        same_episodes(run_episodes(workers, POLICIES[name](), seeds=SEEDS), expected[name])
    lengths = [len(episode.reward) for episode in expected[name]]
    assert len(set(lengths)) > 2  # so that rows take up seeds at different times
    assert not np.array_equal(expected["agent"][0].action, expected["random"][0].action)


@pytest.mark.slow
def test_workers_killed_at_random_moments_leave_no_trace_but_warnings(workers, expected):
    random = np.random.default_rng(0)
    half = sum(len(episode.reward) - 1 for episode in expected["agent"]) // 2
    moments = {int(random.integers(1, half)): [1], half + int(random.integers(half // 2)): [0, 2]}
    timers = []

    def on_step(step):
        for row in moments.get(step, ()):
            timers.append(
                threading.Timer(random.random() * 0.02, os.kill, (workers._slots[row]._process.pid, signal.SIGKILL))
            )
            timers[-1].start()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        episodes = run_episodes(workers, noisy_agent(), seeds=SEEDS, on_step=on_step)
    for timer in timers:
        timer.join()
    same_episodes(episodes, expected["agent"])
    assert len(caught) == 3
    assert {warning.category for warning in caught} == {RuntimeWarning}
    assert all("SIGKILL" in str(warning.message) and "lost" not in str(warning.message) for warning in caught)


@pytest.mark.slow
def test_pictures_of_the_suite_go_on_in_a_new_worker():
    renderer = "rays" if select_backend(required=False) == "disabled" else "gl"
    settings = {"time_limit": 0.8, "renderer": renderer, "image_size": (32, 32)}
    with closing(make_vector_env("dmc:cartpole-swingup", 1, workers=False, **settings)) as envs:
        expected = run_episodes(envs, random_actions(), seeds=[4, 5])
    with closing(make_vector_env("dmc:cartpole-swingup", 1, **settings)) as envs:

        def on_step(step):
            if step == 14:  # the fourth of the second episode
                os.kill(envs._slots[0]._process.pid, signal.SIGKILL)

        with pytest.warns(RuntimeWarning, match="environment 0 has a new worker, which goes on for it"):
            episodes = run_episodes(envs, random_actions(), seeds=[4, 5], on_step=on_step)
    same_episodes(episodes, expected)
    assert [len(episode.reward) for episode in episodes] == [11, 11]
    assert expected[1].obs[5].std() > 5


@pytest.mark.parametrize("name", ["BipedalWalker-v3", "BipedalWalkerHardcore-v3", "LunarLander-v3"])
def test_what_box2d_remembers_of_earlier_episodes_does_not_count(name):
    if importlib.util.find_spec("Box2D") is None:
        pytest.skip("Box2D is not installed")
    with warnings.catch_warnings():  # Box2D's own wrapper crashes where a warning of its import is an error
        warnings.simplefilter("ignore")
        importlib.import_module("Box2D")

    def play(env, seed):
        random = np.random.default_rng(seed)
        seen, over = [env.reset(seed=seed)[0]], False
        while not over:
            action = random.uniform(-1, 1, env.action_space.shape)
            obs, _, terminated, truncated, _ = env.step(np.eye(4)[random.integers(4)] if env.num_actions else action)
            over = terminated or truncated
            seen.append(obs)
        return np.stack(seen)

    with closing(make_env(f"gym:{name}", obs="state", action_repeat=4)) as fresh:
        expected = play(fresh, 5)
    with closing(make_env(f"gym:{name}", obs="state", action_repeat=4)) as used:
        for seed in (70, 71):
            play(used, seed)
        np.testing.assert_array_equal(play(used, 5), expected)


@pytest.mark.parametrize("renderer", ["gl", "rays"])
def test_the_first_episode_of_an_environment_does_not_aim_the_camera_for_all(renderer):
    if renderer == "gl" and select_backend(required=False) == "disabled":
        pytest.skip("no OpenGL on this machine")
    settings = {"renderer": renderer, "image_size": (32, 48)}
    action = np.ones(1, np.float32)
    with closing(make_env("gym:InvertedPendulum-v5", **settings)) as fresh:
        expected = [fresh.reset(seed=5)[0], fresh.step(action)[0]]
    with closing(make_env("gym:InvertedPendulum-v5", **settings)) as used:
        other = used.reset(seed=70)[0]
        np.testing.assert_array_equal([used.reset(seed=5)[0], used.step(action)[0]], expected)
    assert not np.array_equal(other, expected[0])
