"""A replay in a directory: what outlives the process, however it ends, and what is refused."""

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from textwrap import dedent

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planet_lib.data import SequenceReplay
from planet_lib.data import _store as store_module
from planet_lib.data import replay as replay_module
from planet_lib.data._store import write_ring

sizes = {"obs_shape": (2,), "action_dim": 1}


def in_directory(directory, capacity=30, **settings):
    return SequenceReplay(capacity, directory=directory, **{**sizes, **settings})


@pytest.mark.parametrize("obs_shape", [(2,), {"joints": (2,), "camera": (1, 3, 5)}])
def test_opened_again_it_goes_on_with_the_same_samples(tmp_path, make_episode, make_named_episode, obs_shape):
    make = make_named_episode if isinstance(obs_shape, dict) else make_episode
    replay = in_directory(tmp_path / "new", obs_shape=obs_shape)
    for number, length in enumerate((9, 8, 7, 10)):  # the first is gone, and the last lies across the end of the ring
        replay.add(make(number, length))
    state = replay.state_dict()
    expected = replay.sample(20, 8)
    replay.close()
    again = in_directory(tmp_path / "new", obs_shape=obs_shape, seed=5)
    assert (again.num_steps, again.num_episodes, again.nbytes) == (25, 3, replay.nbytes)
    again.load_state_dict(state)
    batch = again.sample(20, 8)
    assert torch.equal(batch.mask, expected.mask)
    assert torch.equal(batch.reward, expected.reward)
    assert torch.equal(batch.is_first, expected.is_first)
    again.add(make(4, 20))
    assert [len(episode.reward) for episode in again.episodes()] == [10, 20]
    again.close()


def test_files_and_memory_hold_and_sample_the_same(tmp_path, make_episode):
    replays = [in_directory(tmp_path), SequenceReplay(30, **sizes)]
    for number, length in enumerate((9, 8, 7, 10)):
        batches = []
        for replay in replays:
            replay.add(make_episode(number, length))
            batches.append(replay.sample(6, 5, uniform="steps"))
        assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    replays[0].close()


def test_a_running_episode_is_gone_and_finished_ones_stay(tmp_path):
    replay = in_directory(tmp_path, num_envs=2)
    zeros = {"action": np.zeros((2, 1)), "reward": np.zeros(2)}
    for step in range(5):
        flags = {"is_first": np.full(2, step == 0), "terminated": np.array([step == 4, False])}
        obs = np.array([[1, step], [2, step]], np.float32)
        replay.append(obs, **zeros, **flags, truncated=np.zeros(2, bool))
    replay.close()
    again = in_directory(tmp_path, num_envs=2)
    (episode,) = again.episodes()
    assert episode.obs.tolist() == [[1, step] for step in range(5)]
    assert episode.terminated.tolist() == [False] * 4 + [True]
    assert again.num_steps == 5
    again.close()


KILLED = """
    import sys
    import numpy as np
    from planet_lib import Episode
    from planet_lib.data import SequenceReplay

    replay = SequenceReplay(60, obs_shape=(3, 64, 64), action_dim=1, directory=sys.argv[1])
    for number in range(10**9):
        if number == 20:  # it is full by now
            print("ready", flush=True)
        length = 5 + number % 13
        rows = np.arange(length)
        obs = ((number * 31 + rows) % 251).astype(np.uint8)[:, None, None, None] * np.ones((1, 3, 64, 64), np.uint8)
        reward = np.where(rows == 0, 0, number * 100 + rows).astype(np.float32)
        fields = {"is_first": rows == 0, "terminated": rows == length - 1, "truncated": rows < 0}
        replay.add(Episode(obs=obs, action=np.zeros((length, 1), np.float32), reward=reward, **fields))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that nothing survives")
@pytest.mark.parametrize("after", [0.05, 0.11, 0.23])
def test_a_process_killed_in_the_middle_leaves_whole_episodes_only(tmp_path, after):
    with subprocess.Popen(
        [sys.executable, "-c", dedent(KILLED), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(after)
        process.kill()
    replay = in_directory(tmp_path, 60, obs_shape=(3, 64, 64))
    numbers = []
    for episode in replay.episodes():
        number, rows = int(episode.reward[1] // 100), np.arange(len(episode.reward))
        assert len(rows) == 5 + number % 13
        assert np.array_equal(episode.reward, np.where(rows == 0, 0, number * 100 + rows))
        assert (episode.obs == ((number * 31 + rows) % 251).astype(np.uint8)[:, None, None, None]).all()
        assert episode.terminated.tolist() == (rows == len(rows) - 1).tolist()
        numbers.append(number)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert replay.num_steps >= 60 - 2 * 17  # at most the one coming in and what it pushed out are missing
    replay.close()


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_rows_leave_the_index_before_they_are_touched_and_enter_it_once_they_are_whole(
    tmp_path_factory, make_episode, lengths
):
    directory = tmp_path_factory.mktemp("watched")
    replay = in_directory(directory, 12)
    watched = []

    def write(array, start, rows):
        ((first, count),) = json.loads((directory / "index.json").read_text())["spans"]
        announced = {(first + row) % 12 for row in range(count)}
        assert not announced & {(start + row) % 12 for row in range(len(rows))}
        watched.append(len(announced) + len(rows))
        write_ring(array, start, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_module, "write_ring", write)
        for number, length in enumerate(lengths):
            replay.add(make_episode(number, length))
            ((_, count),) = json.loads((directory / "index.json").read_text())["spans"]
            assert count == watched[-1] == replay.num_steps
    assert len(watched) == 6 * len(lengths)  # all fields
    replay.close()


def test_one_process_at_a_time_has_a_directory(tmp_path):
    replay = in_directory(tmp_path)
    with pytest.raises(BlockingIOError, match=r"directory must be open in one replay at a time, got .* close"):
        in_directory(tmp_path)
    replay.close()
    with in_directory(tmp_path) as other:
        assert other.num_steps == 0
    in_directory(tmp_path).close()


def test_a_closed_replay_is_neither_added_to_nor_read_for_it_may_be_anothers_by_then(tmp_path, make_episode):
    replay = in_directory(tmp_path)
    replay.add(make_episode(3, 5))
    replay.close()
    for read in (lambda: replay.sample(2, 5), lambda: replay.batches(2, 5, 1), lambda: next(replay.episodes())):
        with pytest.raises(ValueError, match="replay must be open to be read, got one that was closed"):
            read()
    with pytest.raises(ValueError, match="replay must be open to be added to, got one that was closed; open its dir"):
        replay.add(make_episode(4, 5))
    assert replay.num_episodes == 1


@pytest.mark.parametrize(
    "changes", [{"capacity": 31}, {"action_dim": 2}, {"obs_shape": (3,)}, {"num_envs": 2}, {"obs_shape": {"a": (2,)}}]
)
def test_other_sizes_are_refused_and_leave_the_directory_alone(tmp_path, make_episode, changes):
    replay = in_directory(tmp_path)
    replay.add(make_episode(0, 5))
    replay.close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"directory must hold a replay of the same sizes, .* give the sizes it was"):
        in_directory(tmp_path, **changes)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = in_directory(tmp_path)  # and nobody holds it
    assert again.num_episodes == 1
    again.close()


def _unparsable():
    """A `.npy` file whose header is no literal of Python."""
    header = b"{'descr': (" + b" " * 100 + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.json").write_text("{"), "index.json is not the index of a replay"),
        (lambda folder: (folder / "index.json").write_text("[]"), "index.json is not the index of a replay"),
        (lambda folder: (folder / "obs.npy").write_bytes(b"junk"), "obs.npy is not an array of the replay"),
        (lambda folder: (folder / "obs.npy").unlink(), "obs.npy is not an array of the replay"),
        (lambda folder: os.truncate(folder / "obs.npy", 130), r"obs.npy is not .* \(it has 130 bytes of 368"),
        (lambda folder: (folder / "obs.npy").write_bytes(_unparsable()), "obs.npy is not an array of the replay"),
        (
            lambda folder: np.save(folder / "reward.npy", np.zeros(3)),
            r"reward.npy must hold float32 \(30,\), got float64",
        ),
        (
            lambda folder: (folder / "index.json").write_text(
                (folder / "index.json").read_text().replace("[[0, 5]]", "[[0, 31]]")
            ),
            "index.json names rows that its 1 parts of 30 do not have",
        ),
    ],
)
def test_what_is_damaged_is_named(tmp_path, make_episode, damage, message):
    with in_directory(tmp_path) as replay:
        replay.add(make_episode(0, 5))
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        in_directory(tmp_path)


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 500}))
    with pytest.raises(OSError, match=r"directory must have room for 570 bytes, got 500 in .*; lower capacity"):
        in_directory(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_files_of_another_origin_are_refused_and_kept(tmp_path):
    np.save(tmp_path / "obs.npy", np.arange(5))
    with pytest.raises(ValueError, match=r"directory must be empty or hold a replay, got obs.npy without index.json"):
        in_directory(tmp_path)
    assert np.load(tmp_path / "obs.npy").tolist() == [0, 1, 2, 3, 4]


def test_an_empty_replay_whose_arrays_were_never_made_is_begun_anew(tmp_path, make_episode):
    in_directory(tmp_path).close()
    (tmp_path / "obs.npy").unlink()
    with in_directory(tmp_path) as replay:
        replay.add(make_episode(1, 5))
        assert replay.sample(1, 5).obs[0, 0].tolist() == [1, 0]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve the room of a file")
def test_the_room_of_all_rows_is_taken_at_once(tmp_path):
    with in_directory(tmp_path, capacity=100_000):
        assert all(path.stat().st_blocks * 512 >= path.stat().st_size for path in tmp_path.glob("*.npy"))


def test_after_a_full_disk_an_episode_is_not_held_and_nothing_that_the_index_names_is_overwritten(
    tmp_path, make_episode, monkeypatch
):
    replay = in_directory(tmp_path)
    for number in range(3):
        replay.add(make_episode(number, 10))
    publish = store_module.DirectoryStore.publish

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.DirectoryStore, "publish", full)
    for number in (7, 8):
        with pytest.raises(OSError, match="No space left"):
            replay.add(make_episode(number, 10))
    assert replay._arrays["obs"][0, ::10, 0].tolist() == [0, 1, 2]  # as the index on the disk says
    calls = []

    def fails_at_last(self, spans):
        calls.append(spans)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        publish(self, spans)

    monkeypatch.setattr(store_module.DirectoryStore, "publish", fails_at_last)
    with pytest.raises(OSError, match="No space left"):
        replay.add(make_episode(8, 10))
    assert sorted(int(episode.obs[0, 0]) for episode in replay.episodes()) == [1, 2]
    monkeypatch.undo()
    replay.add(make_episode(9, 10))
    replay.close()
    with in_directory(tmp_path) as again:
        assert [int(episode.obs[0, 0]) for episode in again.episodes()] == [1, 2, 9]


def test_a_fork_may_not_write_to_the_directory(tmp_path, make_episode, monkeypatch):
    with in_directory(tmp_path) as replay:
        replay.add(make_episode(0, 5))
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(ValueError, match="by the process that opened its directory, got a fork of it"):
            replay.add(make_episode(1, 5))
        monkeypatch.undo()


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_replay_cannot_be_copied_into_one_whose_parts_do_not_belong_together(tmp_path, copier):
    with in_directory(tmp_path) as replay, pytest.raises(TypeError, match=r"extend\(replay.episodes\(\)\)"):
        copier(replay)


def test_sizes_may_be_numpys_integers(tmp_path, make_episode):
    sizes = {"capacity": np.int64(30), "num_envs": np.int32(1), "action_dim": np.uint8(1)}
    with in_directory(tmp_path, **sizes) as replay:
        replay.add(make_episode(1, 5))
    with in_directory(tmp_path) as again:
        assert again.num_steps == 5


def test_an_empty_path_is_no_directory():
    with pytest.raises(ValueError, match="directory must be a path, or None for memory, got an empty one"):
        in_directory("")
