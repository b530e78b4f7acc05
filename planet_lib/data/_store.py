"""The rows themselves: arrays in memory, or mapped from the files of a directory that outlives the process.

In a directory each array is a `.npy` file, and `index.json` says which rows hold finished episodes: for each part, the
first row and how many follow. Everything else stands in the rows themselves (`is_first` tells the episodes apart). The
index is written under another name and renamed. Rows leave it before they are overwritten and enter it once they are
whole, so that a process killed at any moment leaves all finished episodes that it had not yet begun to overwrite. What
a machine that loses power leaves is up to its operating system: nothing waits for the disk.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from planet_lib.types import Array

try:
    import fcntl
except ImportError:  # no such lock there (Windows)
    fcntl = None  # type: ignore[assignment]  # Windows has none

_INDEX, _LOCK = "index.json", "lock"
_FORMAT = 1
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Fields = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
Spans = list[tuple[int, int]]


class MemoryStore:
    """Arrays in memory, touched by the operating system only as they fill."""

    def __init__(self, rows: int, fields: Fields) -> None:
        try:
            self.arrays = {name: np.empty((rows, *shape), dtype) for name, (shape, dtype) in fields.items()}
        except MemoryError as error:
            raise ValueError(f"capacity must be rows that memory can hold, got {rows} ({error}); lower it") from error
        self.spans: Spans = []

    def publish(self, spans: Spans) -> None:
        """Nothing outlives the process."""

    def close(self) -> None:
        """Nothing to let go of."""


class DirectoryStore:
    """Arrays in the files of a directory, made or opened again.

    Args:
        directory: where they lie; made if it is missing. One process at a time can have it open.
        rows: the rows of each array.
        fields: shape and type of one row of each, by name.
        num_parts: into how many equal parts the rows are split.

    Raises:
        BlockingIOError: where another replay has the directory open.
        OSError: where the disk has no room for the files, all of which is taken at once.
        ValueError: where the directory holds a replay of other sizes, or files that belong to none.
    """

    def __init__(self, directory: str | os.PathLike[str], rows: int, fields: Fields, num_parts: int) -> None:
        if not os.fspath(directory):
            raise ValueError("directory must be a path, or None for memory, got an empty one")
        self._folder = Path(directory)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        try:
            shapes = {name: [str(dtype), *shape] for name, (shape, dtype) in fields.items()}
            self._facts = {"format": _FORMAT, "rows": rows, "parts": num_parts, "fields": shapes}
            index = self._folder / _INDEX
            self.spans: Spans = self._read_index(index, rows // num_parts, num_parts) if index.exists() else []
            # One that holds no episodes may have been left before its arrays were made.
            is_new = not any(count for _, count in self.spans)
            if is_new:
                if not index.exists():
                    self._check_unused(fields)
                self._check_room(rows, fields)
                self.spans = [(0, 0)] * num_parts
                self.publish(self.spans)
            self._maps = {name: self._map(name, (rows, *row), dtype, is_new) for name, (row, dtype) in fields.items()}
            self.arrays: dict[str, Array] = {name: np.asarray(array) for name, array in self._maps.items()}
        except BaseException:
            self._lock.close()
            raise

    def publish(self, spans: Spans) -> None:
        """Say which rows hold finished episodes: first row and count in each part."""
        temporary = self._folder / f".{_INDEX}.tmp"
        temporary.write_text(json.dumps({**self._facts, "spans": spans}))
        temporary.replace(self._folder / _INDEX)

    def close(self) -> None:
        """Hand what is written to the disk, and let others open the directory."""
        for array in self._maps.values():
            array.flush()
        self._lock.close()

    def _take_lock(self) -> TextIO:
        file = (self._folder / _LOCK).open("a")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise BlockingIOError(
                f"directory must be open in one replay at a time, got {self._folder}, which another one has open; "
                "close() that one or take another directory"
            ) from error
        return file

    def _read_index(self, path: Path, rows: int, num_parts: int) -> Spans:
        """Return the spans that an index names, once everything in it is as it must be."""
        try:
            found = json.loads(path.read_text())
            spans = [(first, count) for first, count in found.pop("spans")]
            is_sound = len(spans) == found["parts"] and all(type(number) is int for span in spans for number in span)
        except OSError:  # a disk that fails, not the file's content
            raise
        except Exception as error:  # whatever reading anything as JSON, and as this one, raises
            raise ValueError(
                f"{path} is not the index of a replay ({error}); remove the directory where its episodes are kept "
                "elsewhere too, else take another one"
            ) from error
        if found != self._facts:
            held = f"{found!r:.2000}"  # it may say anything, at any length
            raise ValueError(
                f"directory must hold a replay of the same sizes, {self._facts}, got {held} in {path}; give the sizes "
                "it was made with or take another directory"
            )
        if not is_sound or not all(0 <= first < rows and 0 <= count <= rows for first, count in spans):
            raise ValueError(
                f"{path} names rows that its {num_parts} parts of {rows} do not have; remove the directory"
            )
        return spans

    def _check_unused(self, fields: Fields) -> None:
        """Raise where a file of another origin lies where an array would."""
        foreign = [path.name for path in map(self._path, fields) if path.exists()]
        if foreign:
            raise ValueError(
                f"directory must be empty or hold a replay, got {', '.join(foreign)} without {_INDEX} in "
                f"{self._folder}; take another directory, or move them away"
            )

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '.')}.npy"

    def _check_room(self, rows: int, fields: Fields) -> None:
        """Raise where the files can't all fit: a mapped file that finds no room later would end the process."""
        needed = sum(rows * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in fields.values())
        present = sum(path.stat().st_blocks * 512 for path in self._folder.glob("*.npy"))  # about to be replaced
        free = shutil.disk_usage(self._folder).free + present
        if needed > free:
            raise OSError(f"directory must have room for {needed} bytes, got {free} in {self._folder}; lower capacity")

    def _map(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], is_new: bool) -> Any:
        path = self._path(name)
        if is_new:
            made = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            _take_room(path)
            return made
        try:
            with path.open("rb") as file:  # before it is mapped: that would make the file as long as its header says
                found, is_fortran, kind = _HEADERS[np.lib.format.read_magic(file)](file)
                start = file.tell()
            size, wanted = path.stat().st_size, start + math.prod(found) * kind.itemsize
            if size != wanted and (found, kind) == (shape, dtype):
                raise ValueError(f"it has {size} bytes of {wanted}")
        except Exception as error:  # NumPy raises about anything on truncated, damaged and foreign files
            raise ValueError(f"{path} is not an array of the replay in its directory ({error}); restore it") from error
        if (found, kind) != (shape, dtype) or (is_fortran and len(shape) > 1):
            raise ValueError(f"{path} must hold {dtype} {shape}, got {kind} {found}; restore it")
        return np.lib.format.open_memmap(path, mode="r+")


def _take_room(path: Path) -> None:
    """Reserve the blocks of a file: a mapped one that found no room later would end the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def write_ring(array: Array, start: int, rows: Array) -> None:
    """Copy rows into a ring from `start` on; those past its end go to its front.

    Example:
        >>> ring = np.zeros(5, int)
        >>> write_ring(ring, 3, np.array([1, 2, 3]))
        >>> ring.tolist()
        [3, 0, 0, 1, 2]
    """
    head = min(len(rows), len(array) - start)
    array[start : start + head] = rows[:head]
    array[: len(rows) - head] = rows[head:]


def read_ring(array: Array, start: int, count: int) -> Array:
    """Copy `count` rows out of a ring from `start` on.

    Example:
        >>> read_ring(np.arange(5), 3, 4).tolist()
        [3, 4, 0, 1]
    """
    return np.concatenate([array[start : start + count], array[: max(start + count - len(array), 0)]])
