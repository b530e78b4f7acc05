"""Episodes as files: one compressed `.npz` each, written whole or not at all.

A run that is stopped at any moment leaves only complete episodes behind, from which it resumes. The module knows the
`Episode` and its files, and neither replay nor environments. NumPy's own reader opens the files; nothing in them is
ever unpickled.

The files are compressed: rendered frames, smooth for the most part, shrink well. One array per field of `Episode`;
where observations are dictionaries, their entries are the arrays `obs/NAME`.

A file may come from anybody. What it tells of itself is therefore held against `MOST_BYTES` and against the bytes that
are there, array by array, before memory is taken for any of them.

Source: google-research/planet, `tools/numpy_episodes.py`.
Differences from the source: names that sort by collection order; files appear atomically; nothing is overwritten
unasked.
"""

import io
import math
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import BinaryIO

import numpy as np

from planet_lib._files import atomic_path, make_directory, sync
from planet_lib._shapes import check_flag, check_path, check_whole, shown
from planet_lib.data._checks import check_episode
from planet_lib.data._obs import flat_fields, nested_obs
from planet_lib.types import Array, Episode

MOST_BYTES = 2**32
"""An episode file may hold as many bytes, unpacked: 4 GiB, 87,000 frames of 3 x 128 x 128 pixels."""
_NAME = re.compile(r"episode-(\d{6,})-(\d{4,})\.npz")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def save_episode(directory: str | os.PathLike[str], episode: Episode, index: int, *, replace: bool = False) -> Path:
    """Write an episode to `directory` as `episode-<index>-<rows>.npz`, and return its path.

    The file is written under a temporary name in the same directory, flushed to the disk and then renamed, so that it
    is never seen half done; then its name is flushed too. The directory is made if it is missing.

    Args:
        directory: where the episodes of one run lie.
        episode: the episode; checked first, so that a broken one is never stored.
        index: its number in order of collection, from 0. At least six digits in the name, and four for the rows.
        replace: whether an episode of that index may be there already, to be removed once this one is written: a
            resumed run collects the episode anew that its checkpoint had not yet counted. One of another number of
            rows, and so of another name, is removed first: a kill in between leaves neither of them.

    Raises:
        FileExistsError: where the directory has an episode of that index already and replace is False.
        TypeError, ValueError: where the episode or the index is wrong, or the episode has more than `MOST_BYTES`;
            nothing is written.
        OSError: the disk is full, or the place not writable; the file is named.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> flags = np.zeros(3, bool)
        >>> episode = Episode(obs=np.zeros((3, 2), np.float32), action=np.zeros((3, 1), np.float32),
        ...     reward=np.array([0, 1, 2], np.float32), is_first=np.arange(3) == 0, terminated=flags, truncated=flags)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = save_episode(directory, episode, index=12)
        ...     path.name, float(load_episode(path).reward.sum())
        ('episode-000012-0003.npz', 3.0)
    """
    folder = Path(check_path("directory", directory))
    check_flag(replace=replace)
    given: object = index
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if not whole or index < 0:
        kind = ValueError if whole else TypeError
        raise kind(f"index must be a whole number of at least 0, got {shown(index)}; count episodes from 0")
    check_whole("index", index, least=0, most=2**63 - 1)
    check_episode(episode)
    fields = flat_fields(episode._asdict())
    num_bytes = sum(value.nbytes for value in fields.values())
    if num_bytes > MOST_BYTES:
        raise ValueError(f"episode must have at most {MOST_BYTES} bytes, got {num_bytes}; end episodes earlier")
    make_directory(folder)
    old = [path for present, path in _episode_paths(folder) if present == index]
    if old and not replace:
        raise FileExistsError(
            f"index must be new, got {index}, which {old[0]} has; take the next free one or pass replace=True"
        )
    final = folder / f"episode-{index:06d}-{len(episode.reward):04d}.npz"
    with atomic_path(final, suffix=".tmp") as temporary:  # whoever lists all *.npz sees whole ones alone
        with temporary.open("wb") as file:
            _write_arrays(file, fields)
        for path in set(old) - {final}:  # first, so that a kill in between can't leave two files of one index
            sync(temporary)  # before the old one goes
            path.unlink()
    return final


def episode_checksum(episode: Episode, start: int = 0) -> int:
    """Return a checksum (CRC-32) of all fields of an episode: names, types, shapes and values.

    It tells whether recordings are still those of an earlier day, and not whether somebody forged them.

    Args:
        episode: the episode.
        start: the checksum of the episodes before it, so that one number stands for all of them in their order.

    Example:
        >>> flags = np.zeros(3, bool)
        >>> episode = Episode(obs=np.zeros((3, 2), np.float32), action=np.zeros((3, 1), np.float32),
        ...     reward=np.array([0, 1, 2], np.float32), is_first=np.arange(3) == 0, terminated=flags, truncated=flags)
        >>> checksum = episode_checksum(episode)
        >>> episode.reward[2] = 3
        >>> checksum == episode_checksum(episode)
        False
    """
    if not isinstance(episode, Episode):
        raise TypeError(f"episode must be an Episode, got {shown(episode)}")
    check_whole("start", start, least=0, most=2**32 - 1)
    fields = flat_fields(episode._asdict())
    for name, value in fields.items():
        if not isinstance(value, np.ndarray) or value.dtype.hasobject:
            raise TypeError(f"episode.{name} must be an array of numbers, got {shown(value)}")
    for name, value in fields.items():
        start = zlib.crc32(f"{name} {value.dtype} {value.shape}".encode(), start)
        start = zlib.crc32(np.ascontiguousarray(value).tobytes(), start)
    return start


def load_episode(path: str | os.PathLike[str]) -> Episode:
    """Read an episode that `save_episode` wrote, and check it. Runs no code from the file.

    A small file can tell of arrays of any size. One that would take more than `MOST_BYTES` of memory, or whose arrays
    are not as large as their headers have it, is refused before memory is taken for any of them.

    Raises:
        FileNotFoundError: where there is no such file.
        OSError: where it cannot be read, such as a directory.
        ValueError: where the file is truncated, damaged, or something else; the message names it.
    """
    place = Path(check_path("path", path))
    content = _read_bytes(place)  # a disk that fails does so here; below, only the content can
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            obs_names = [name for name in names if name == "obs" or name.startswith("obs/")]
            others = set(Episode._fields) - {"obs"}
            is_one = bool(obs_names) and ("obs" not in obs_names or obs_names == ["obs"])
            if not is_one or set(names) - set(obs_names) != others or len(set(names)) < len(names):
                held = shown(sorted(names))
                raise ValueError(f"it holds {held} instead of {sorted(Episode._fields)}, or obs/NAME for obs")
            _check_sizes(archive)
            arrays = {name: _read_array(archive, entry) for name, entry in zip(names, archive.namelist(), strict=True)}
        obs = nested_obs({name: arrays[name] for name in obs_names})
        episode = Episode(obs=obs, **{name: arrays[name] for name in others})
        check_episode(episode)
    except Exception as error:  # zipfile, zlib and NumPy raise about anything on damaged content
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} is not a whole episode file ({reason}), got {len(content)} bytes; remove it or restore it"
        ) from error
    return episode


def load_episodes(directory: str | os.PathLike[str], *, count: int | None = None) -> Iterator[Episode]:
    """Read all episodes of a directory in order of their index, one at a time.

    Other files, and temporary ones of a run that was killed, are ignored. An episode file that can't be read is an
    error, raised when its turn comes.

    Args:
        directory: where the episodes of one run lie.
        count: only those with indices below it, all of which must be there; None reads what there is.

    Raises:
        FileNotFoundError: where there is no such directory.
        ValueError: where two files have the same index, or there are fewer than `count`.
    """
    folder = Path(check_path("directory", directory))
    if count is not None:
        check_whole("count", count, least=0)
    if not folder.is_dir():
        raise FileNotFoundError(f"directory must be a folder of episodes, got {folder}, which is none")
    paths = sorted(_episode_paths(folder))
    for (index, path), (following, other) in pairwise(paths):
        if index == following:
            raise ValueError(f"each index must be there once, got {path.name} and {other.name}; remove one of them")
    if count is not None:
        paths = [(index, path) for index, path in paths if index < count]
        if len(paths) != count:
            raise ValueError(f"{folder} must hold {count} episodes by now, got {len(paths)}: restore them")
    return (load_episode(path) for _, path in paths)


def _read_bytes(path: Path) -> bytes:
    """Return what a file holds, or raise where it is none, or larger than any episode."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not path.is_dir():  # a device or pipe may never end
        raise ValueError(f"{path} must be a file, got something that is neither file nor directory")
    if found.st_size > MOST_BYTES:
        raise ValueError(f"{path} must be an episode of at most {MOST_BYTES} bytes, got {found.st_size}")
    return path.read_bytes()


def _write_arrays(file: BinaryIO, fields: Mapping[str, Array]) -> None:
    """Write what `np.savez_compressed` does, which in NumPy 2.0 leaves the archive open on a full disk."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in fields.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raise where an array is not as large as its header has it, or all of them together are too large."""
    total = 0
    for entry in archive.infolist():
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{entry.filename} is packed by method {entry.compress_type}, NumPy stores and deflates")
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"{entry.filename} has a header of version {version}")
            shape, _, dtype = _HEADERS[version](file)
            there = entry.file_size - file.tell()
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded: nothing in a file is ever unpickled")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=1) < 0 or dtype.itemsize < 1 or size != there:
            raise ValueError(f"{entry.filename} holds {there} bytes of values instead of {dtype} {list(shape)}")
        total += size
    if total > MOST_BYTES:
        raise ValueError(f"its arrays have {total} bytes, more than the {MOST_BYTES} of any episode")


def _read_array(archive: zipfile.ZipFile, name: str) -> Array:
    """Return an array of the archive, whose checksum zipfile verifies at its end."""
    with archive.open(name) as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _episode_paths(folder: Path) -> list[tuple[int, Path]]:
    """Return index and path of each file that is named as an episode, in no particular order."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return [(int(match[1]), path) for match, path in matches if match]
