"""Episode files: whole or absent, and never trusted."""

import errno
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planet_lib.data import load_episode, load_episodes, save_episode
from planet_lib.data.episodes import episode_checksum


def fields_of(episode):
    """The arrays of an episode by name, those of a dictionary by ("obs", name)."""
    obs = episode.obs if isinstance(episode.obs, dict) else {"array": episode.obs}
    others = {name: value for name, value in episode._asdict().items() if name != "obs"}
    return {**{("obs", name): value for name, value in obs.items()}, **others}


def assert_equal(expected, got):
    assert isinstance(got.obs, dict) == isinstance(expected.obs, dict)
    expected, got = fields_of(expected), fields_of(got)
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        np.testing.assert_array_equal(got[name], value, err_msg=str(name))


@pytest.mark.parametrize("terminated", [True, False])
def test_an_episode_comes_back_as_it_was(tmp_path, make_episode, terminated):
    images = np.random.default_rng(0).integers(0, 256, (126, 3, 8, 9), dtype=np.uint8)
    episode = make_episode(0, 126, terminated=terminated)._replace(obs=images)
    path = save_episode(tmp_path / "new" / "folder", episode, 12)
    assert path == tmp_path / "new" / "folder" / "episode-000012-0126.npz"
    assert_equal(episode, load_episode(path))


@pytest.mark.parametrize("names", [("camera", "joints"), ("joints", "camera"), ("Kamera 1 ü", "obs")])
def test_a_dictionary_comes_back_as_it_was_in_its_order(tmp_path, make_named_episode, names):
    episode = make_named_episode(3, 20)
    camera, joints = episode.obs.values()
    obs = dict(zip(names, (joints, camera) if names[0] == "joints" else (camera, joints), strict=True))
    path = save_episode(tmp_path, episode._replace(obs=obs), 0)
    assert_equal(episode._replace(obs=obs), load_episode(path))
    with np.load(path, allow_pickle=False) as arrays:
        assert [name for name in arrays.files if name.startswith("obs")] == [f"obs/{name}" for name in names]


def test_a_file_of_an_array_is_laid_out_as_it_always_was(tmp_path, make_episode):
    path = tmp_path / "episode-000000-0004.npz"
    np.savez_compressed(path, **make_episode(2, 4)._asdict())
    assert_equal(make_episode(2, 4), load_episode(path))
    with np.load(save_episode(tmp_path / "new", make_episode(2, 4), 0)) as new, np.load(path) as old:
        assert new.files == old.files


@pytest.mark.parametrize(
    ("obs", "error", "message"),
    [
        ({}, ValueError, "episode.obs must have at least one entry"),
        ({"a/b": 1}, ValueError, "episode.obs must have printable names without slash, .* got 'a/b'"),
        ({"ä" * 101: 1}, ValueError, "episode.obs must have names of at most 200 bytes, got one of 202; rename it"),
        ({1: 1}, TypeError, "episode.obs must have strings as names, got 1"),
        ({"a": {"b": 1}}, TypeError, r"episode.obs\['a'\] must be a NumPy array, got a dictionary; flatten nested"),
        ({"a": [1]}, TypeError, r"episode.obs\['a'\] must be a NumPy array, got list"),
        (
            {"a": np.zeros((4, 2))},
            TypeError,
            r"episode.obs\['a'\] must be float32, got float64; convert it with astype",
        ),
        (
            {"a": np.zeros((4, 2, 2), np.uint8)},
            ValueError,
            r"\['a'\] must be \[L, C, Y, X\] or \[L, N\], .* got \[4, 2, 2\]",
        ),
        ({"a": np.zeros((4, 0), np.float32)}, ValueError, r"of positive sizes, got \[4, 0\]"),
        (
            {"a": np.zeros((4, 8, 9, 3), np.uint8)},
            ValueError,
            r"episode.obs\['a'\] must be \[L, 3, 8, 9\], got \[4, 8, 9, 3\]; it is channels last: give "
            r"obs.transpose\(0, 3, 1, 2\)",
        ),
        (
            {"a": np.zeros((4, 3, 8, 9), np.float32)},
            TypeError,
            r"episode.obs\['a'\] must be uint8, got float32; give uint8 0 to 255: multiply by 255 first",
        ),
        (np.zeros((4, 3, 8, 9), np.float32), TypeError, "episode.obs must be uint8, got float32; give uint8 0 to 255"),
        (
            {"a": np.zeros((4, 2), np.float32), "b": np.zeros((3, 2), np.float32)},
            ValueError,
            r"episode.obs\['b'\] must be \[4, 2\], got \[3, 2\]",
        ),
        (
            {"a": np.zeros((4, 2), np.float32), "b": np.full((4, 2), np.nan, np.float32)},
            ValueError,
            r"episode.obs\['b'\] must be finite, broken at row 0 of 4",
        ),
        ({"a": np.zeros((0, 2), np.float32)}, ValueError, "episode.obs must have at least one row"),
    ],
)
def test_a_broken_observation_writes_nothing(tmp_path, make_episode, obs, error, message):
    with pytest.raises(error, match=message):
        save_episode(tmp_path / "new", make_episode(0, 4)._replace(obs=obs), 0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs/a": np.zeros((4, 2), np.float32)}, "it holds .*'obs', 'obs/a'.* or obs/NAME for obs"),
        ({"obs": None}, "it holds .* instead of .*'obs'"),
        ({"obs": None, "obs/a/b": np.zeros((4, 2), np.float32)}, "printable names without slash"),
        ({"obs": None, "obs/": np.zeros((4, 2), np.float32)}, "printable names without slash"),
        ({"obs": None, "obs/a": np.array([None] * 4)}, "Object arrays cannot be loaded"),
    ],
)
def test_a_file_of_other_observations_is_refused(tmp_path, make_episode, changes, message):
    path = tmp_path / "foreign.npz"
    fields = {**make_episode(0, 4)._asdict(), **changes}
    np.savez(path, **{name: value for name, value in fields.items() if value is not None})
    with pytest.raises(ValueError, match=f"foreign.npz is not a whole episode file .*{message}"):
        load_episode(path)


def test_episodes_come_in_order_of_their_index_and_other_files_are_ignored(tmp_path, make_episode):
    for index in (1000000, 3, 999999, 20):
        save_episode(tmp_path, make_episode(index, 4), index)
    (tmp_path / ".episode-000004-0004.npz.123.tmp").write_bytes(b"half")
    (tmp_path / "episode-000005-0004.npz.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert [int(episode.obs[0, 0]) for episode in load_episodes(tmp_path)] == [3, 20, 999999, 1000000]


def test_an_empty_directory_has_no_episodes_and_a_missing_one_is_an_error(tmp_path):
    assert list(load_episodes(tmp_path)) == []
    with pytest.raises(FileNotFoundError, match=r"directory must be a folder of episodes, got .*absent"):
        load_episodes(tmp_path / "absent")


def test_nothing_is_overwritten_unasked_even_by_an_episode_of_another_length(tmp_path, make_episode):
    path = save_episode(tmp_path, make_episode(1, 5), 7)
    with pytest.raises(FileExistsError, match=r"index must be new, got 7, which .*episode-000007-0005.npz has"):
        save_episode(tmp_path, make_episode(2, 6), 7)
    assert_equal(make_episode(1, 5), load_episode(path))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("length", [5, 6])
def test_an_episode_is_replaced_when_asked_and_its_neighbours_stay(tmp_path, make_episode, length):
    for index in (6, 7, 8):
        save_episode(tmp_path, make_episode(index, 5), index)
    save_episode(tmp_path, make_episode(20, length), 7, replace=True)
    assert [int(episode.obs[0, 0]) for episode in load_episodes(tmp_path)] == [6, 20, 8]
    assert len(os.listdir(tmp_path)) == 3


@pytest.mark.parametrize(("owner", "name", "length"), [(os, "fsync", 6), (os, "fsync", 5), (os, "replace", 5)])
def test_a_replacement_that_fails_leaves_the_old_episode(tmp_path, make_episode, monkeypatch, owner, name, length):
    path = save_episode(tmp_path, make_episode(1, 5), 7)

    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="no space left"):
        save_episode(tmp_path, make_episode(2, length), 7, replace=True)
    assert_equal(make_episode(1, 5), load_episode(path))
    assert os.listdir(tmp_path) == [path.name]


def test_a_write_that_fails_names_the_file(tmp_path, make_episode, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*episode-000007-0005.npz'"):
        save_episode(tmp_path, make_episode(1, 5), 7)
    assert os.listdir(tmp_path) == []


def test_two_files_of_one_index_are_named(tmp_path, make_episode):
    path = save_episode(tmp_path, make_episode(1, 5), 7)
    path.with_name("episode-000007-0006.npz").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"episode-000007-0005.npz and episode-000007-0006.npz; remove one"):
        load_episodes(tmp_path)


def test_a_broken_episode_or_index_writes_nothing(tmp_path, make_episode):
    with pytest.raises(ValueError, match=r"episode.reward must be finite, broken at row 0"):
        save_episode(tmp_path, make_episode(0, 4)._replace(reward=np.full(4, np.nan, np.float32)), 0)
    for index, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError), ("3", TypeError)):
        with pytest.raises(error, match=re.escape(f"index must be a whole number of at least 0, got {index!r}; count")):
            save_episode(tmp_path / "new", make_episode(0, 4), index)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_a_write_that_fails_half_way_leaves_nothing(tmp_path, make_episode, monkeypatch, error):
    def fail(file, array, **settings):
        file.write(b"half")
        raise error

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(type(error)):
        save_episode(tmp_path, make_episode(0, 4), 0)
    assert os.listdir(tmp_path) == []


def test_the_file_is_flushed_to_the_disk_before_it_gets_its_name(tmp_path, make_episode, monkeypatch):
    present = []
    real = os.fsync

    def record(descriptor):
        present.append(os.listdir(tmp_path))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    path = save_episode(tmp_path, make_episode(0, 4), 0)
    *before, after = present
    assert before
    assert not any(path.name in names for names in before)
    assert after == [path.name]  # then its name is flushed, too


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_either_read_right_or_named_in_one_line(tmp_path, make_episode, data):
    index = data.draw(st.integers(0, 10**9))
    episode = make_episode(5, 20)
    path = save_episode(tmp_path, episode, index)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    message = None
    try:
        loaded = load_episode(path)
    except ValueError as error:
        message = str(error)
    path.unlink()
    if message is None:
        assert_equal(episode, loaded)
    else:
        assert message.startswith(f"{path} is not a whole episode file (")
        assert "\n" not in message


def test_every_truncation_is_refused(tmp_path, make_episode):
    path = save_episode(tmp_path, make_episode(0, 4), 0)
    content = path.read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"episode-000000-0004.npz is not a whole episode file .*remove it"):
            load_episode(path)


class Trap:
    """Leaves a file behind when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_inside_is_refused_and_never_run(tmp_path, make_episode):
    path, sprung = tmp_path / "episode-000000-0004.npz", tmp_path / "sprung"
    objects = np.array([Trap(sprung)] * 4, object)
    np.savez(path, **make_episode(0, 4)._replace(obs=objects)._asdict())
    with pytest.raises(ValueError, match=r"0004.npz is not a whole episode file \(Object arrays cannot be loaded"):
        load_episode(path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match="is not a whole episode file"):
        load_episode(path)
    assert not sprung.exists()


def test_foreign_content_is_named(tmp_path, make_episode):
    path = tmp_path / "foreign.npz"
    np.savez(path, weights=np.zeros(3))
    with pytest.raises(
        ValueError, match=r"foreign.npz is not a whole episode file \(it holds \['weights'\] instead of"
    ):
        load_episode(path)
    np.savez(path, **make_episode(0, 4)._replace(reward=np.zeros(3, np.float32))._asdict())
    with pytest.raises(ValueError, match=r"foreign.npz .*\(episode.reward must be \[4\], got \[3\]\)"):
        load_episode(path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': (",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
        "(" * 500,
    ],
)
def test_a_header_made_to_break_the_reader_is_named(tmp_path, make_episode, header):
    path = save_episode(tmp_path, make_episode(0, 4), 0)
    with zipfile.ZipFile(path) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    text = header.encode().ljust(1000) + b"\n"
    arrays["reward.npy"] = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(16)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in arrays.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"episode-000000-0004.npz is not a whole episode file .*remove it"):
        load_episode(path)


def test_the_checksum_of_episodes_tells_values_names_types_and_order_apart(make_episode, make_named_episode):
    first, second = make_episode(1, 4), make_episode(2, 4)
    named = make_named_episode(3, 4)
    joints = named.obs["joints"]
    nudged = first.action.copy()
    nudged[2] += 1e-3
    variants = [
        [first, second],
        [second, first],
        [first],
        [first._replace(action=nudged), second],
        [first._replace(terminated=~first.terminated), second],
        [first._replace(obs=first.obs.view(np.int32)), second],
        [first._replace(obs=first.obs.reshape(2, -1)), second],
        [named],
        [named._replace(obs={**named.obs, "joints": joints + 1})],
        [named._replace(obs={"camera": named.obs["camera"], "knees": joints})],
    ]
    found = []
    for episodes in variants:
        checksum = 0
        for episode in episodes:
            checksum = episode_checksum(episode, checksum)
        found.append(checksum)
    assert len(set(found)) == len(variants)
    turned = first._replace(obs=np.asfortranarray(first.obs))
    assert episode_checksum(turned) == episode_checksum(first)


def test_a_missing_file_is_missing_not_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_episode(tmp_path / "absent.npz")


def test_a_count_of_episodes_leaves_out_later_ones_and_must_be_there_whole(tmp_path, make_episode):
    for index in (0, 1, 2, 3):
        save_episode(tmp_path, make_episode(index, 5), index)
    first = [episode.obs.tolist() for episode in load_episodes(tmp_path, count=2)]
    assert first == [make_episode(index, 5).obs.tolist() for index in (0, 1)]
    next(tmp_path.glob("episode-000001-*")).unlink()
    with pytest.raises(ValueError, match="must hold 3 episodes by now, got 2: restore them"):
        load_episodes(tmp_path, count=3)
