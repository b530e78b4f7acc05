"""Episodes as files and datasets, fuzzed by their arguments; what the files hold is the matter of test_fuzz_files.py.

Paths are relative, and the tests run in an empty directory: one that is nearly right must not land elsewhere.
"""

import contextlib
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from fuzzing import Entry, fuzz

from planet_lib.data import check_episode, load_episode, load_episodes, minari_episodes, read_episodes, save_episode
from planet_lib.data.episodes import episode_checksum
from planet_lib.types import Episode

FRESH = (f"folder{number}" for number in itertools.count())


@pytest.fixture(scope="module", autouse=True)
def _nowhere_else(tmp_path_factory):
    place = tmp_path_factory.mktemp("fuzz") / "a" / "b" / "c"
    place.mkdir(parents=True)
    with contextlib.chdir(place):
        yield


def episode(length=4, number=0):
    rows = np.arange(length)
    camera = np.full((length, 1, 3, 5), number, np.uint8)
    joints = np.stack([np.full(length, number), rows], 1).astype(np.float32)
    return Episode(
        obs={"camera": camera, "joints": joints},
        action=(rows[:, None] / 100).astype(np.float32),
        reward=rows.astype(np.float32),
        is_first=rows == 0,
        terminated=np.zeros(length, np.bool_),
        truncated=rows == length - 1,
    )


def assert_same(read, wanted):
    for name, value in wanted._asdict().items():
        got = getattr(read, name)
        for key in value if isinstance(value, dict) else [...]:
            np.testing.assert_array_equal(got[key], value[key], err_msg=name)


def folder(count=2):
    """A folder of two episodes, the same each time."""
    for number in range(count):
        save_episode("episodes", episode(3 + number, number), number, replace=True)
    return "episodes"


def names(_):
    return sorted(str(path) for path in Path.cwd().parents[2].rglob("*"))


def came_back(given, path):
    assert path.parent == Path(given["directory"])
    assert_same(load_episode(path), given["episode"])


def in_order(given, episodes):
    read = list(episodes)
    there = len(list(Path(given["directory"]).glob("episode-*")))
    assert len(read) == (there if given["count"] is None else given["count"])
    for number, one in enumerate(read):
        assert_same(one, episode(3 + number, number))


def one_entry(given, episodes):
    for number, one in enumerate(episodes):
        wanted = episode(3 + number, number)
        assert_same(one, wanted if given["obs"] is None else wanted._replace(obs=wanted.obs[given["obs"]]))


class Box:
    """A space as Gymnasium's, of floats."""

    dtype = np.dtype(np.float32)

    def __init__(self, low, high, size):
        self.low, self.high, self.shape = np.full(size, low, np.float32), np.full(size, high, np.float32), (size,)


class Recorded:
    """An episode as Minari gives it: one observation more than actions."""

    def __init__(self, number):
        self.id = number
        self.observations = np.full((4, 2), number, np.float32)
        self.actions = np.array([[-1.0], [0.0], [1.0]], np.float32)
        self.rewards = np.arange(3.0)
        self.terminations, self.truncations = np.zeros(3, np.bool_), np.arange(3) == 2


class Dataset:
    """What a `minari.MinariDataset` is to its reader; parts can be replaced."""

    def __init__(self, **replaced):
        self.spec = type("Spec", (), {"dataset_id": "made/up-v0"})
        self.observation_space, self.action_space = Box(-9, 9, 2), Box(-1, 1, 1)
        self.recorded = Recorded(1)
        for name, value in replaced.items():
            setattr(self.recorded if hasattr(self.recorded, name) else self, name, value)

    def iterate_episodes(self):
        return iter([self.recorded])


def scaled(given, episodes):
    (one,) = episodes
    low = np.asarray(-1.0 if given["action_low"] is None else given["action_low"], np.float64)
    high = np.asarray(1.0 if given["action_high"] is None else given["action_high"], np.float64)
    actions = (np.array([[-1.0], [0.0], [1.0]]) - low) / (high - low) * 2 - 1
    np.testing.assert_allclose(one.action[1:], actions.reshape(3, 1), atol=1e-5)
    np.testing.assert_array_equal(one.obs[:, 0], np.ones(4))


def recorded_right(given, episodes):
    (one,) = episodes
    save_episode(next(FRESH), one, 0)
    np.testing.assert_allclose(one.reward[1:], np.asarray(given["rewards"], np.float32))


PLACES = ("absent", "file", ".", "\0", b"episodes", "\ud800", "", "x" * 5000)
ENTRIES = [
    Entry(
        "data.check_episode",
        check_episode,
        lambda: {
            "episode": episode(),
            "obs_shape": {"camera": (1, 3, 5), "joints": (2,)},
            "action_dim": 1,
            "is_part": False,
        },
        lambda given, answer: answer is None or pytest.fail(str(answer)),
        known_as={"obs_shape": ("episode.obs",), "action_dim": ("episode.action",)},
    ),
    Entry(
        "data.save_episode",
        save_episode,
        lambda: {"directory": next(FRESH), "episode": episode(), "index": 12, "replace": False},
        came_back,
        state=names,
        also={"directory": ("file", "\0"), "index": (10**400, 2**63, np.uint8(3)), "replace": ("no", True)},
        errors=(OSError,),
    ),
    Entry(
        "data.episodes.episode_checksum",
        episode_checksum,
        lambda: {"episode": episode(), "start": 7},
        lambda given, answer: (
            (answer == episode_checksum(given["episode"]._replace(), int(given["start"])) and 0 <= answer < 2**32)
            or pytest.fail(str(answer))
        ),
        also={"start": (2**32 - 1, 2**32)},
    ),
    Entry(
        "data.load_episode",
        load_episode,
        lambda: {"path": Path(folder()) / "episode-000001-0004.npz"},
        lambda given, answer: assert_same(answer, episode(4, 1)),
        also={"path": (*PLACES, "/dev/zero", "/dev/null")},
        known_as={"path": ("episode file", "must be a file")},
        errors=(OSError,),
        state=names,
    ),
    Entry(
        "data.load_episodes",
        lambda **given: list(load_episodes(**given)),
        lambda: {"directory": folder(), "count": None},
        in_order,
        also={"directory": PLACES, "count": (0, 1, 2, 3, True, 2.0, -1)},
        known_as={"count": ("must hold",)},
        errors=(OSError,),
        state=names,
    ),
    Entry(
        "data.read_episodes",
        lambda **given: list(read_episodes(**given)),
        lambda: {"source": folder(), "obs": None, "action_low": None, "action_high": None},
        one_entry,
        also={"source": (*PLACES, "minari:", "minari:a", "minari:../x", "minari:\0"), "obs": ("camera", "joints", "x")},
        known_as={"source": ("dataset", "is not a whole"), "obs": ("entries",)},
        errors=(OSError, ImportError),
        state=names,
    ),
    Entry(
        "data.minari_episodes",
        lambda **given: list(minari_episodes(**given)),
        lambda: {"dataset": Dataset(), "obs": None, "action_low": -2.0, "action_high": [2.0]},
        scaled,
        also={
            "dataset": ("made/up-v0", "", "\0", Dataset, Dataset(action_space=None), Dataset(observation_space=3)),
            "action_low": (None, -1e308, [[-2.0]], [-2.0, -2.0], "a", True, 1j),
            "action_high": (None, -3.0, 1e308, {}, [None]),
        },
        known_as={"dataset": ("observations", "actions")},
        errors=(OSError, ImportError),
    ),
    Entry(
        "data.minari_episodes",
        lambda **parts: list(minari_episodes(Dataset(**parts))),
        lambda: {
            "observations": np.ones((4, 2), np.float32),
            "actions": np.array([[-1.0], [0.0], [1.0]], np.float32),
            "rewards": np.arange(3.0),
            "terminations": np.zeros(3, np.bool_),
            "truncations": np.arange(3) == 2,
        },
        recorded_right,
        known_as={
            "observations": (
                "episode.reward",
                "obs",
            ),
            "actions": (
                "episode.reward",
                "action",
            ),
            "rewards": ("reward",),
            "terminations": ("terminated",),
            "truncations": ("truncated",),
        },
    ),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    for each in Path.cwd().iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    Path("file").write_text("not a directory")
    fuzz(entry)
