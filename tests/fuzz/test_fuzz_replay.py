"""`SequenceReplay`, fuzzed: its constructor and every method."""

import itertools
import os
import shutil

import numpy as np
import pytest
import torch
from fuzzing import Entry, fuzz

from planet_lib.data import SequenceReplay
from planet_lib.types import Episode

SHAPES = {"camera": (1, 3, 5), "joints": (2,)}


class Place(os.PathLike):
    """A path that is no text, so that only the directories named below are tried, and none of the machine's own."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


def episode(length=4, number=0):
    rows = np.arange(length)
    return Episode(
        obs={
            "camera": np.full((length, 1, 3, 5), number, np.uint8),
            "joints": np.stack([np.full(length, number), rows], 1).astype(np.float32),
        },
        action=(rows[:, None] / 100).astype(np.float32),
        reward=rows.astype(np.float32),
        is_first=rows == 0,
        terminated=np.zeros(length, np.bool_),
        truncated=rows == length - 1,
    )


def filled(num_envs=1):
    """A replay of rows that tell episode and place; with environments, one episode runs in each."""
    replay = SequenceReplay(40, obs_shape=SHAPES, action_dim=1, num_envs=num_envs)
    replay.extend(episode(length, number) for number, length in enumerate([4, 9, 3]))
    return replay


def state(given):
    replay = given["replay"]
    held = [(number.obs["joints"].sum(), number.reward.sum()) for number in replay.episodes()]
    return replay.num_steps, replay.num_episodes, replay.state_dict(), held


def check_new(given, replay):
    shape = {"obs": given["obs_shape"]} if not isinstance(given["obs_shape"], dict) else given["obs_shape"]
    assert replay.capacity >= 1
    assert replay.num_steps == 0
    assert given["capacity"] is None or replay.capacity <= given["capacity"]
    assert given["max_bytes"] is None or replay.nbytes <= given["max_bytes"]
    if largest(shape) < 10_000 and replay.capacity // int(given["num_envs"]) >= 2:
        rows = {
            name: np.zeros((2, *sizes), np.uint8 if len(sizes) == 3 else np.float32) for name, sizes in shape.items()
        }
        obs = rows if isinstance(given["obs_shape"], dict) else rows["obs"]
        flags = np.arange(2) == 0
        zeros = np.zeros(2, np.float32)
        replay.add(
            Episode(obs, np.zeros((2, int(given["action_dim"])), np.float32), zeros, flags, ~flags, flags & ~flags)
        )
        assert replay.sample(3, 2).mask.all()
    replay.close()
    shutil.rmtree("new", ignore_errors=True)


def largest(shape):
    return max(int(np.prod(np.array(sizes, np.float64))) for sizes in shape.values())


def check_added(given, _):
    replay, added = given["replay"], given["episode"]
    *_, last = replay.episodes()
    for name, value in added.obs.items():
        np.testing.assert_array_equal(last.obs[name], value)
    for name in Episode._fields[1:]:
        np.testing.assert_array_equal(getattr(last, name), getattr(added, name))


def check_appended(given, _):
    replay = given["replay"]
    batch = replay.sample(64, 1)
    assert replay.num_steps == 18
    assert all(torch.isfinite(batch.obs["joints"]).flatten())
    rewards = given["reward"].detach() if isinstance(given["reward"], torch.Tensor) else given["reward"]
    assert batch.reward.min() >= min(0.0, float(rewards.min()))
    assert batch.action.abs().max() <= 1


def check_batch(given, batch):
    """Rows follow each other in one episode: the second number of each is its place in it, and its reward."""
    length, size = int(given["length"]), int(given["batch_size"])
    assert batch.mask.shape == (length, size)
    joints, mask = batch.obs["joints"], batch.mask
    assert torch.equal(joints[..., 1], batch.reward)
    if not given.get("across"):
        assert torch.equal(joints[1:, :, 1][mask[1:]], (joints[:-1, :, 1] + 1)[mask[1:]])
        assert torch.equal(joints[1:, :, 0][mask[1:]], joints[:-1, :, 0][mask[1:]])
    out = given.get("out")
    assert out is None or batch is out


def check_batches(given, batches):
    device = "cpu" if given["device"] is None else torch.device(given["device"]).type
    for batch in itertools.islice(batches, 2):
        assert batch.mask.device.type == device
        if device == "cpu":
            check_batch(given, batch)
    batches.close()


def check_loaded(given, _):
    loaded, asked = given["replay"].state_dict()["generator"]["state"], given["state"]["generator"]["state"]
    assert all(loaded[name] == asked[name] for name in ("state", "inc"))


def saved():
    other = SequenceReplay(10, obs_shape=(2,), action_dim=1, seed=7)
    return other.state_dict()


def rows(num=2):
    return {
        "obs": {"camera": np.ones((num, 1, 3, 5), np.uint8), "joints": np.ones((num, 2), np.float32)},
        "action": np.zeros((num, 1), np.float32),
        "reward": np.zeros(num, np.float32),
        "is_first": np.ones(num, np.bool_),
        "terminated": np.zeros(num, np.bool_),
        "truncated": np.zeros(num, np.bool_),
    }


def many():
    replay = filled(num_envs=2)
    return {"replay": replay, **rows()}


def as_tensors(given):
    fields = {name: torch.from_numpy(value) for name, value in given.items() if name not in ("replay", "obs")}
    obs = {name: torch.from_numpy(value) for name, value in given["obs"].items()}
    return {"replay": given["replay"], "obs": obs, **fields}


def append(replay, **fields):
    return replay.append(**fields)


KNOWN_AS = {
    "episode": ["episode"],
    "state": ["state"],
    "capacity": ["max_bytes"],
    "num_envs": ["capacity", "max_bytes"],
}
SAMPLING = {"batch_size": 4, "length": 3, "uniform": "episodes", "across": False}
BATCHES = {**SAMPLING, "count": 3, "prefetch": 2, "reuse": False, "device": "cpu"}

ENTRIES = [
    Entry(
        "data.SequenceReplay",
        SequenceReplay,
        lambda: {
            "capacity": 50,
            "max_bytes": 10_000,
            "obs_shape": {"camera": (1, 3, 5), "joints": (2,)},
            "action_dim": 2,
            "obs_dtype": {"camera": np.uint8, "joints": "float32"},
            "num_envs": 2,
            "directory": None,
            "seed": 0,
        },
        check_new,
        also={
            "obs_shape": (
                (3, 8, 8),
                (8, 8, 3),
                (7,),
                [7],
                np.array([7]),
                torch.Size([7]),
                (2**31 - 1,),
                (2**31, 1, 1),
                {0: (2,)},
                {"a/b": (2,)},
            ),
            "obs_dtype": (None, np.uint8, torch.float32, {"camera": "uint8", "joints": "f8"}),
            "num_envs": (2**31 - 1, 60_000),
            "capacity": (2**31 - 1, None),
            "max_bytes": (2**31 - 1, None),
            "directory": (
                Place("new"),
                Place("\0"),
                Place("x" * 5000),
                Place("file"),
                Place(b"bytes"),
                "file",
                "new/deep",
                3,
            ),
        },
        known_as={
            **KNOWN_AS,
            "obs_shape": ["obs_dtype", "max_bytes"],
            "action_dim": ["max_bytes"],
            "obs_dtype": ["obs_shape"],
        },
        state=lambda given: sorted(os.listdir()),
        errors=(OSError,),
    ),
    Entry(
        "data.SequenceReplay.add",
        lambda replay, episode: replay.add(episode),
        lambda: {"replay": filled(), "episode": episode(5, 9)},
        check_added,
        state=state,
        keep=["replay"],
        also={"episode": (episode(40), episode(41), episode(1)._replace(obs={}))},
    ),
    Entry(
        "data.SequenceReplay.extend",
        lambda replay, episodes: replay.extend(episodes),
        lambda: {"replay": filled(), "episodes": [episode(5, 9)]},
        lambda given, _: given["replay"].num_episodes == 3 + len(list(given["episodes"])) or pytest.fail("lost"),
        state=state,
        keep=["replay"],
        known_as={"episodes": ["episode"]},
    ),
    Entry(
        "data.SequenceReplay.append",
        append,
        many,
        check_appended,
        state=state,
        keep=["replay"],
        also={"reward": (np.full(2, 1e300), np.full(2, np.nan)), "is_first": (np.array([True, False]),)},
    ),
    Entry(
        "data.SequenceReplay.append", append, lambda: as_tensors(many()), check_appended, state=state, keep=["replay"]
    ),
    Entry(
        "data.SequenceReplay.sample",
        lambda replay, **given: replay.sample(**given),
        lambda: {"replay": filled(), **SAMPLING, "out": filled().sample(4, 3)},
        check_batch,
        state=state,
        keep=["replay"],
        also={
            "uniform": ("steps",),
            "across": (True, "no"),
            "out": (None, tuple(filled().sample(4, 3)), filled().sample(3, 4)),
        },
        known_as={"batch_size": ["out"], "length": ["out"]},
    ),
    Entry(
        "data.SequenceReplay.batches",
        lambda replay, **given: replay.batches(**given),
        lambda: {"replay": filled(), **BATCHES},
        check_batches,
        state=state,
        keep=["replay"],
        also={
            "uniform": ("steps",),
            "across": (True, "no"),
            "reuse": (True,),
            "prefetch": (2**31 - 1, 0),
            "count": (2**40, 0),
            "device": (None, "meta", "cuda:77", "gpu", 0, torch.device("meta"), torch.device("cuda", 50), "cpu:x"),
        },
    ),
    Entry(
        "data.SequenceReplay.load_state_dict",
        lambda replay, state: replay.load_state_dict(state),
        lambda: {"replay": filled(), "state": saved()},
        check_loaded,
        state=state,
        keep=["replay"],
        also={"state": ({"generator": np.random.default_rng(0)}, {"generator": np.random.MT19937(0).state})},
    ),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Paths of the entries lie in a directory of their own, which has a file in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a directory")


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_a_replay_answers_rightly_or_names_what_is_wrong_and_stays_as_it_was(entry):
    fuzz(entry)
