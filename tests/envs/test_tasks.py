"""How long the actions are that fit several tasks."""

import numpy as np
import pytest

from planet_lib.envs import make_vector_env
from planet_lib.envs.tasks import make_padded, widest_action


def test_the_longest_action_of_all_tasks_counts():
    pytest.importorskip("dm_control")
    assert widest_action(["dmc:cartpole-balance", "dmc:reacher-easy"]) == 2
    assert widest_action(["dmc:walker-walk", "dmc:cartpole-balance"]) == 6


def test_choices_must_be_equally_many():
    assert widest_action(["gym:CartPole-v1"]) == 2
    with pytest.raises(ValueError, match=r"got gym:CartPole-v1: 2 choices, gym:MountainCar-v0: 3 choices$"):
        widest_action(["gym:CartPole-v1", "gym:MountainCar-v0"])


@pytest.mark.parametrize(("tasks", "got"), [([], "none"), (["gym:Pendulum-v1"] * 2, "gym:Pendulum-v1, gym:Pendulum")])
def test_no_task_and_a_task_twice_are_refused(tasks, got):
    with pytest.raises(ValueError, match=f"tasks must be at least one, each given once, got {got}"):
        widest_action(tasks)


def test_tasks_that_are_seen_as_vectors_must_have_vectors_of_one_length():
    tasks = ["gym:Pendulum-v1", "gym:MountainCarContinuous-v0"]
    assert widest_action(tasks) == 1
    for obs in ("state", "both"):
        with pytest.raises(ValueError, match=r"for obs=.* gym:Pendulum-v1: \(3,\), gym:Mount.*: \(2,\); use"):
            widest_action(tasks, obs=obs)


def test_an_environment_is_padded_where_longer_actions_are_asked_for():
    padded = make_padded("gym:Pendulum-v1", action_dim=3, obs="state")
    own = make_padded("gym:Pendulum-v1", action_dim=1, obs="state")
    padded.reset(seed=1), own.reset(seed=1)
    rewards = [env.step(action)[1] for env, action in ((padded, [0.5, 1.0, -1.0]), (own, [0.5]))]
    assert rewards[0] == rewards[1]
    assert (type(padded).__name__, type(own).__name__) == ("PadActions", "StandardEnv")
    with pytest.raises(ValueError, match="action_dim must be a whole number of at least A=1"):
        make_padded("gym:Pendulum-v1", action_dim=0, obs="state")
    with pytest.raises(ValueError, match="action_dim must be a whole number of at least A=1"):
        make_vector_env("gym:Pendulum-v1", 1, workers=False, action_dim=0, obs="state")


def test_environments_at_once_are_padded_too():
    envs = make_vector_env("gym:Pendulum-v1", 2, workers=False, action_dim=3, obs="state")
    envs.reset(seed=1)
    assert envs.single_action_space.shape == (3,)
    rewards = envs.step(np.array([[0.5, 1, 1], [0.5, -1, 0]]))[1]
    alone = make_padded("gym:Pendulum-v1", obs="state")
    alone.reset(seed=1)
    assert rewards[0] == alone.step([0.5])[1]
    envs.close()
