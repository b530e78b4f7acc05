"""Files that a disk, a crash or somebody hostile made: episodes, and the directory of a replay.

Those of a training run are in test_fuzz_training_files.py; `fuzz_files.py` does the same for hours, led by coverage.
"""

import io
import json
import math
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fuzzing import CASES, Entry, fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planet_lib.data import SequenceReplay, load_episode, read_episodes, save_episode, shapes_of
from planet_lib.data.episodes import MOST_BYTES
from planet_lib.types import Episode

QUIET = settings(max_examples=CASES, derandomize=CASES <= 25, deadline=None, suppress_health_check=list(HealthCheck))
ROWS = 5


def episode(number=1):
    rows = np.arange(ROWS)
    joints = np.stack([np.full(ROWS, number), rows], 1).astype(np.float32)
    return Episode(
        obs={"camera": np.full((ROWS, 1, 3, 5), number, np.uint8), "joints": joints},
        action=(rows[:, None] / 100).astype(np.float32),
        reward=rows.astype(np.float32),
        is_first=rows == 0,
        terminated=np.zeros(ROWS, np.bool_),
        truncated=rows == ROWS - 1,
    )


def assert_same(read, wanted):
    for name, value in wanted._asdict().items():
        got = getattr(read, name)
        for key in value if isinstance(value, dict) else [...]:
            np.testing.assert_array_equal(got[key], value[key], err_msg=name)


def members():
    """The arrays of an episode file as bytes, by name."""
    content = io.BytesIO()
    wanted = episode()
    arrays = {**{f"obs/{name}": value for name, value in wanted.obs.items()}, **wanted._asdict()}
    del arrays["obs"]
    np.savez(content, **arrays)
    with zipfile.ZipFile(content) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(parts, method=zipfile.ZIP_DEFLATED):
    """A zip archive of these members, with right checksums: a list may have a name twice."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, part in parts.items() if isinstance(parts, dict) else parts:
            archive.writestr(name, part)
    return content.getvalue()


def array_file(text, values=b"", version=(1, 0)):
    """A .npy file of any header text."""
    header = text.encode("latin1").ljust(200) + b"\n"
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + values


def header(descr, shape, order=False):
    return f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}}}"


def read(path, content):
    """The episode of a file, or the message that refuses it: there is nothing else."""
    path.write_bytes(content)
    message = ""
    try:
        return load_episode(path), ""
    except ValueError as error:
        message = str(error)
    assert message.startswith(f"{path} is not a whole episode file (")
    assert "\n" not in message
    return None, message


def content():
    return packed(members())


def load_bytes(content):
    path = Path("episode.npz")
    path.write_bytes(content if isinstance(content, bytes) else repr(content).encode())
    return load_episode(path)


ENTRIES = [
    Entry(
        "data.load_episode of a damaged file",
        load_bytes,
        lambda: {"content": content()},
        lambda given, answer: assert_same(answer, episode()),
        known_as={"content": ("episode.npz is not a whole episode file",)},
    )
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_a_damaged_file_is_read_right_or_named(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fuzz(entry)


NUMBERS = [0, 1, 8, 20, 93, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]


@QUIET
@given(data=st.data())
def test_a_zip_archive_whose_own_numbers_are_changed_is_read_right_or_named(tmp_path, data):
    changed = bytearray(content())
    for _ in range(data.draw(st.integers(1, 3))):
        marks = [place for place in range(len(changed) - 3) if changed[place : place + 2] == b"PK"]
        place = data.draw(st.sampled_from(marks)) + data.draw(st.integers(2, 44))
        kind = data.draw(st.sampled_from(["<B", "<H", "<I"]))
        number = data.draw(st.sampled_from(NUMBERS) | st.integers(0, 255)) & (256 ** struct.calcsize(kind) - 1)
        if place + struct.calcsize(kind) <= len(changed):
            struct.pack_into(kind, changed, place, number)
    found, _ = read(tmp_path / "episode.npz", bytes(changed))
    if found is not None:
        assert_same(found, episode())


@st.composite
def changed_member(draw, whole, others):
    """The bytes of a member that was cut, lengthened, changed in one byte or in its header, or replaced."""
    place = draw(st.integers(0, len(whole) - 1))
    way = draw(st.sampled_from(["cut", "more", "byte", "any", "other", "header"]))
    if way == "header":
        return array_file(draw(st.text(st.characters(max_codepoint=255), max_size=60)), bytes(40))
    if way == "other":
        return draw(st.sampled_from(others))[1]
    if way == "byte":
        return whole[:place] + draw(st.binary(min_size=1, max_size=1)) + whole[place + 1 :]
    return {"cut": whole[:place], "more": whole + draw(st.binary(min_size=1, max_size=20))}.get(way) or draw(
        st.binary(max_size=200)
    )


@QUIET
@given(data=st.data())
def test_members_of_any_bytes_in_a_sound_archive_give_a_whole_episode_or_are_named(tmp_path, data):
    parts = members()
    for name in data.draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=2, unique=True)):
        parts[name] = data.draw(changed_member(parts[name], sorted(parts.items())))
    found, _ = read(tmp_path / "episode.npz", packed(parts))
    if found is not None:
        shapes, action_dim = shapes_of(found)
        SequenceReplay(20, obs_shape=shapes, action_dim=action_dim).add(found)


HUGE = 10**15
HOSTILE = {
    "rows that no memory holds": {"reward.npy": array_file(header("<f4", f"({HUGE},)"), bytes(16))},
    "rows that no number holds": {"reward.npy": array_file(header("<f4", f"({10**30},)"), bytes(16))},
    "rows of no bytes": {"reward.npy": array_file(header("|S0", f"({HUGE},)"))},
    "a negative size": {"reward.npy": array_file(header("<f4", "(-1, -5)"), bytes(20))},
    "an axis of none": {"obs/joints.npy": array_file(header("<f4", f"(0, {HUGE})"))},
    "another header version": {"reward.npy": array_file(header("<f4", "(5,)"), bytes(20), version=(3, 0))},
    "a header that is no dictionary": {"reward.npy": array_file("[1, 2]")},
    "a header that calls": {"reward.npy": array_file("__import__('os').system('touch sprung')")},
    "a header nested deeply": {"reward.npy": array_file("(" * 190)},
    "a type of types": {"reward.npy": array_file(header([("a", "<f4"), ("b", "O")], "(5,)"), bytes(60))},
    "another type": {"reward.npy": array_file(header("<f8", "(5,)"), bytes(40))},
    "another byte order": {"reward.npy": array_file(header(">f4", "(5,)"), bytes(20))},
    "NaN": {"reward.npy": array_file(header("<f4", "(5,)"), bytes(4) + np.full(4, np.nan, "<f4").tobytes())},
    "an action out of range": {
        "action.npy": array_file(header("<f4", "(5, 1)"), bytes(4) + np.full(4, 2.0, "<f4").tobytes())
    },
    "names of another place": {"obs/../../sprung.npy": members()["obs/joints.npy"]},
    "an absolute name": {"obs//sprung.npy": members()["obs/joints.npy"]},
    "one more array": {"sprung.npy": members()["reward.npy"]},
    "an empty member": {"reward.npy": b""},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_is_refused_and_leaves_nothing_behind(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    found, message = read(tmp_path / "episode.npz", packed({**members(), **HOSTILE[name]}))
    assert found is None
    assert "got" in message
    assert os.listdir(tmp_path) == ["episode.npz"]


class Trap:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("sprung", "w"))


@pytest.mark.parametrize("name", sorted(members()))
def test_no_pickle_is_ever_loaded(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    objects, raw = io.BytesIO(), pickle.dumps(Trap())
    np.save(objects, np.array([Trap()] * ROWS, object), allow_pickle=True)
    for part in (objects.getvalue(), raw, array_file(header("|O", "(5,)"), raw)):
        assert read(tmp_path / "episode.npz", packed({**members(), name: part}))[0] is None
    assert read(tmp_path / "episode.npz", raw)[0] is None
    assert os.listdir(tmp_path) == ["episode.npz"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_what_numpy_itself_writes_is_unpacked(tmp_path, method):
    _, message = read(tmp_path / "episode.npz", packed(members(), method))
    assert f"is packed by method {method}, NumPy stores and deflates" in message


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    parts = [*members().items(), ("reward.npy", members()["reward.npy"])]
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = packed(parts)
    assert "it holds" in read(tmp_path / "episode.npz", twice)[1]


ROW_SHAPES = {
    "obs/camera.npy": (1, 3, 5),
    "obs/joints.npy": (2,),
    "action.npy": (1,),
    **dict.fromkeys(("reward.npy", "is_first.npy", "terminated.npy", "truncated.npy"), ()),
}
ROW_DTYPES = {"obs/camera.npy": "|u1", **dict.fromkeys(("obs/joints.npy", "action.npy", "reward.npy"), "<f4")}


def refused_within(path, content, limit=32 * 2**20):
    """The message that refuses a file, once it is sure that reading it took no more memory than the limit."""
    tracemalloc.start()
    found, message = read(path, content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is None
    assert peak < limit
    return message


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_memory_is_taken(tmp_path):
    rows, parts, claimed = 2**28, members(), {}
    for name, row in ROW_SHAPES.items():
        dtype = ROW_DTYPES.get(name, "|b1")
        parts[name] = array_file(header(dtype, str((rows, *row))), bytes(100))
        claimed[name] = len(parts[name]) - 100 + rows * math.prod(row) * np.dtype(dtype).itemsize
    whole = bytearray(packed(parts))
    for name, size in claimed.items():  # the archive's own table says so as well: nothing contradicts it but the end
        _claim(whole, name, size)
    message = refused_within(tmp_path / "episode.npz", bytes(whole))
    assert f"more than the {MOST_BYTES} of any episode" in message


def test_an_array_of_zeros_beyond_the_limit_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("planet_lib.data.episodes.MOST_BYTES", 50 * 2**20)
    rows = 60 * 2**20 // 15
    parts = {**members(), "obs/camera.npy": array_file(header("|u1", f"({rows}, 1, 3, 5)"), bytes(rows * 15))}
    small = packed(parts)
    assert len(small) < 100_000
    message = refused_within(tmp_path / "episode.npz", small)
    assert f"more than the {50 * 2**20} of any episode" in message


def test_what_is_saved_can_be_loaded_again(tmp_path, monkeypatch):
    monkeypatch.setattr("planet_lib.data.episodes.MOST_BYTES", 100)
    with pytest.raises(ValueError, match="episode must have at most 100 bytes, got 1"):
        save_episode(tmp_path, episode(), 0)
    assert os.listdir(tmp_path) == []


def test_what_is_no_file_is_named_and_nothing_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="must be a file, got something that is neither"):
            load_episode(place)
    with pytest.raises(IsADirectoryError):
        load_episode(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_episodes(tmp_path / "pipe")
    (tmp_path / "empty.npz").touch()
    with pytest.raises(ValueError, match=r"empty.npz is not a whole episode file .* got 0 bytes; remove it"):
        load_episode(tmp_path / "empty.npz")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything is readable to this user")
def test_an_unreadable_file_says_so_and_is_not_called_damaged(tmp_path):
    path = save_episode(tmp_path, episode(), 0)
    path.chmod(0)
    with pytest.raises(PermissionError):
        load_episode(path)


def _claim(whole, name, size):
    """Write a size into the local header and the table of an archive."""
    place = whole.find(name.encode())
    while place >= 0:
        if whole[place - 30 : place - 26] == b"PK\3\4":
            struct.pack_into("<I", whole, place - 30 + 22, size)
        elif whole[place - 46 : place - 42] == b"PK\1\2":
            struct.pack_into("<I", whole, place - 46 + 24, size)
        place = whole.find(name.encode(), place + 1)


SHAPES = {"camera": (1, 3, 5), "joints": (2,)}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The directory of a replay with three episodes."""
    place = tmp_path_factory.mktemp("replay") / "kept"
    with SequenceReplay(20, obs_shape=SHAPES, action_dim=1, directory=place) as replay:
        replay.extend(episode(number) for number in range(3))
    return place


INDEX = [
    *(b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b"9" * 5000),
    *(b'{"spans": [[1e999, 0]]}', b'{"spans": [[NaN, 0]]}'),
]


@QUIET
@given(data=st.data())
def test_a_damaged_directory_opens_with_whole_episodes_or_is_named_and_stays_as_it_was(tmp_path, kept, data):
    place = tmp_path / "copy"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(kept, place)
    path = data.draw(st.sampled_from(sorted(place.iterdir())))
    whole = path.read_bytes()
    if path.name == "index.json" and data.draw(st.booleans()):
        changed = data.draw(st.sampled_from(INDEX) | st.builds(_index, st.just(whole), _ANY, _ANY))
    elif data.draw(st.booleans()):
        shape = data.draw(st.sampled_from([f"({HUGE},)", "(20, 1)", "(-20,)", "(20, 2)", f"(20, {HUGE}, 0)"]))
        changed = array_file(header(data.draw(st.sampled_from(["<f4", "|O", "|u1", "|S0"])), shape), whole[-100:])
    else:
        spot = data.draw(st.integers(0, max(len(whole) - 1, 0)))
        other = whole[:spot] + b"\x80" + whole[spot + 1 :]
        changed = data.draw(st.sampled_from([whole[:spot], whole + b"more", other, bytes(len(whole))]))
    path.write_bytes(changed)
    before = contents(place)
    message = ""
    try:
        replay = SequenceReplay(20, obs_shape=SHAPES, action_dim=1, directory=place)
    except ValueError as error:
        message = str(error)
    if message:
        assert any(word in message for word in ("got", "is not", "names rows"))
        assert contents(place) == before
        return
    with replay:
        assert replay.num_steps <= 20
        for one in replay.episodes():
            assert {len(value) for value in (*one.obs.values(), *one[1:])} == {len(one.reward)}
        if replay.num_steps:
            assert replay.sample(4, 3).mask.any()
        replay.add(episode(9))


def contents(place):
    return {each.name: (each.stat().st_size, each.read_bytes()) for each in place.iterdir()}


_ANY = st.sampled_from([0, -1, 19, 20, 21, HUGE, 10**30, 1.5, True, None, "3", [], {}])


def _index(whole, first, count):
    return json.dumps({**json.loads(whole), "spans": [[first, count]]}).encode()
