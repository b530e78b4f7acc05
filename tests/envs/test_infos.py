"""Infos of many environments, which may differ between the rows as they like."""

import sys
from contextlib import closing

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from planet_lib.envs import make_vector_env
from planet_lib.envs._infos import batch_infos

# Workers cannot import a test module by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Talker(gymnasium.Env):
    """Tells about its seed in infos of every kind."""

    observation_space = spaces.Box(-1, 1, (1,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        return np.zeros(1), self.info()

    def step(self, action):
        return np.zeros(1), 1.0, False, False, self.info()

    def info(self):
        return {
            "x": 1 if self.seed == 0 else "one",
            "path": np.arange(self.seed + 1),
            "huge": 10**30,
            "call": lambda: 0,
            "inner": {"seed": self.seed, "call": lambda: 0},
        }


@pytest.mark.parametrize("workers", [True, False])
def test_infos_that_nobody_reads_stop_no_episode(workers):
    with closing(make_vector_env(Talker, 2, workers=workers, obs="state")) as envs:
        told = [envs.reset(seed=0)[1], envs.step(np.zeros((2, 1)))[4]]
    for infos in told:
        assert infos["x"].tolist() == [1, "one"]
        assert [path.tolist() for path in infos["path"]] == [[0], [0, 1]]
        assert infos["huge"].tolist() == [10**30] * 2
        assert infos["inner"]["seed"].tolist() == [0, 1]
        assert ("call" in infos) == ("call" in infos["inner"]) == (not workers)
    assert told[1]["restarted"].tolist() == [False, False]


def test_infos_that_fit_together_are_batched_as_gymnasium_does():
    rows = {
        0: {
            "n": 3,
            "on": True,
            "v": np.array([1.0, 2.0]),
            "s": "a",
            "final_obs": np.ones(2),
            "d": {"k": np.float32(2)},
        },
        2: {"n": 5, "on": False, "v": np.array([3.0, 4.0]), "d": {"k": np.float32(4)}},
    }
    ours, theirs, base = batch_infos(rows, 3), {}, gymnasium.vector.VectorEnv()
    base.num_envs = 3
    for row, info in rows.items():
        theirs = base._add_info(theirs, info, row)
    for mine, other in ((ours, theirs), (ours.pop("d"), theirs.pop("d"))):
        assert mine.keys() == other.keys()
        for key, value in other.items():
            assert mine[key].dtype == value.dtype
            assert str(mine[key]) == str(value)


def test_a_number_in_another_row_is_not_rounded_and_a_dictionary_may_meet_none():
    infos = batch_infos({0: {"r": 0, "d": {"a": 1}}, 1: {"r": 0.5, "d": None}}, 2)
    assert infos["r"].tolist() == [0.0, 0.5]
    assert infos["d"].tolist() == [{"a": 1}, None]
    assert infos["_d"].tolist() == [True, True]


def test_durations_are_objects_beside_numbers_and_among_themselves():
    values = {0: {"took": np.timedelta64(3, "s")}, 1: {"took": 2.5}}
    found = batch_infos(values, 2)["took"]
    assert found.dtype == object
    assert found.tolist()[1] == 2.5
    assert batch_infos({0: {"took": np.timedelta64(3, "s")}}, 2)["took"][0] == np.timedelta64(3, "s")
