"""The numbers of a run: one row per episode and evaluation, in `metrics.csv` and as TensorBoard events.

The CSV is the record: rows in it are whole and on the disk when `write` returns, and a resumed run has each row once.
TensorBoard is a view of it, and left out where it is not installed. Knows no column by name but the one that
TensorBoard uses as its x-axis.
"""

import csv
import errno
import io
import itertools
import numbers
import os
import platform
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from planet_lib._files import atomic_path, check_file
from planet_lib._shapes import check_flag, check_mapping, check_path, is_finite, is_whole, shown
from planet_lib.training._extras import require

_NUMBERS = itertools.count()  # so that two writers of one second and process have different files


class MetricsWriter:
    """Appends rows to `directory/metrics.csv`, and events to `directory/tensorboard`.

    A row is whole and on the disk when `write` returns; a write that fails leaves the file as it was. NaN and infinity
    are written as they are, since a diverged loss must be seen.

    Args:
        directory: of the run.
        columns: every column, in the order of the file. A row may lack some: their cells stay empty.
        resume_at: None begins a new file, and refuses one that exists. A number goes on after that many rows, the
            `num_rows` that was saved with the checkpoint: later rows, whole or torn, are dropped, so that the episodes
            run again are not counted twice.
        tensorboard: whether to write events too.
        step_column: the x-axis of the events; rows without it write none.
        group_column: where rows are of several things, such as tasks: the column with their names, each of which gets
            curves of its own among the events.

    Raises:
        FileExistsError: there is a `metrics.csv` and `resume_at` is None.
        FileNotFoundError: there is none to resume.
        ValueError: columns differ from the file's, or it holds fewer rows than `resume_at`.

    Example:
        >>> import tempfile
        >>> directory = tempfile.mkdtemp()
        >>> writer = MetricsWriter(directory, ["env_steps", "kind", "episode_return"], tensorboard=False)
        >>> writer.write({"env_steps": 1000, "kind": "train", "episode_return": 250.5})
        >>> writer.write({"env_steps": 1000, "kind": "eval"})
        >>> print((Path(directory) / "metrics.csv").read_text().strip())
        env_steps,kind,episode_return
        1000,train,250.5
        1000,eval,
        >>> MetricsWriter(directory, ["env_steps", "kind", "episode_return"], resume_at=1, tensorboard=False).num_rows
        1
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        columns: Sequence[str],
        *,
        resume_at: int | None = None,
        tensorboard: bool = True,
        step_column: str = "env_steps",
        group_column: str | None = None,
    ) -> None:
        check_flag(tensorboard=tensorboard)
        self.path = Path(check_path("directory", directory)) / "metrics.csv"
        self.columns = _checked_columns(columns)
        if resume_at is not None and not is_whole(resume_at, 0):
            raise ValueError(f"resume_at must be at least 0, got {shown(resume_at)}: a whole number, or None")
        for argument, name in (("step_column", step_column), ("group_column", group_column)):
            given: object = name
            if not (isinstance(given, str) or (given is None and argument == "group_column")):
                raise TypeError(f"{argument} must be the name of a column, got {shown(given)}")
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns must be at least one and each different, got {list(self.columns)}")
        if tensorboard and step_column not in self.columns:
            raise ValueError(f"step_column must be one of columns, got {step_column!r}: add it, or name another")
        if resume_at is None and self.path.exists():
            raise FileExistsError(f"{self.path} already exists: resume it with resume_at, or choose another directory")
        if group_column is not None and group_column not in self.columns:
            raise ValueError(f"group_column must be one of columns, got {group_column!r}: add it, or name another")
        kept = [] if resume_at is None else _rows_to_keep(self.path, self.columns, resume_at)
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(b"".join(_line(row) for row in [self.columns, *kept]))
        self._num_rows = len(kept)
        self._step_column, self._group_column = step_column, group_column
        self._events: _Events | None = None
        self._notice = ""
        if tensorboard:
            self._open_events(kept)

    @property
    def num_rows(self) -> int:
        """How many rows are in the file: save it with the checkpoint, and give it back as `resume_at`."""
        return self._num_rows

    @property
    def notice(self) -> str:
        """One line for the user when events were asked for and cannot be written, else empty."""
        return self._notice

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Append one row: plain numbers and one-line strings by column.

        Raises:
            ValueError: an unknown column, or a string with a line break.
            TypeError: a value that is no number or string, such as a tensor. Both raised before writing.
            OSError: the disk is full. The file holds the rows before this one, whole.
        """
        check_mapping("row", row)
        unknown = [str(name) for name in row if name not in self.columns]
        if unknown:
            raise ValueError(f"row must have only the columns {', '.join(self.columns)}, got {', '.join(unknown)}")
        if self._events is not None and not is_finite(row.get(self._step_column, 0)):
            got = shown(row[self._step_column])
            raise ValueError(
                f"row[{self._step_column!r}] must be a finite number for events to have a place, got {got}"
            )
        line = _line([_cell(name, row[name]) if name in row else "" for name in self.columns])
        with open(self.path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)
                raise
        self._num_rows += 1
        if self._events is not None and self._step_column in row:
            self._write_events(self._events, row)

    def close(self) -> None:
        """Close the event file. The CSV needs no closing."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _open_events(self, kept: Sequence[Sequence[str]]) -> None:
        index = self.columns.index(self._step_column)
        steps = [int(float(row[index])) for row in kept if row[index]]
        directory = self.path.parent / "tensorboard"
        # TensorBoard hides what an earlier event file holds from purge_step on: the rows dropped above.
        purge_step = max(steps, default=0) + 1 if directory.exists() else None
        try:
            self._events = _Events(directory, purge_step)
        except ImportError:
            self._notice = (
                "TensorBoard is not installed, so only metrics.csv is written: "
                "pip install 'planet-worldmodel[train]' adds the events"
            )

    def _write_events(self, events: "_Events", row: Mapping[str, float | int | str]) -> None:
        group = str(row.get(self._group_column, "")) if self._group_column else ""
        values = {
            name.replace("_", "/", 1) + (f"/{group}" if group else ""): float(value)
            for name, value in row.items()
            if name != self._step_column and not isinstance(value, str)
        }
        events.write(values, int(row[self._step_column]))


class _Events:
    """Scalars as TensorBoard events, in the file when `write` returns.

    TensorBoard's own writer has a thread, which says that the disk is full by a traceback and with a delay.
    """

    def __init__(self, directory: Path, purge_step: int | None) -> None:
        records = require("tensorboard.summary.writer.record_writer", purpose="writing events")
        self._event = require("tensorboard.compat.proto.event_pb2", purpose="writing events")
        self._summary = require("tensorboard.compat.proto.summary_pb2", purpose="writing events").Summary
        directory.mkdir(exist_ok=True)
        unique = f"{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{next(_NUMBERS)}"
        self._file = open(directory / f"events.out.tfevents.{unique}", "wb")  # noqa: SIM115  (open for as long as the run)
        self._records = records.RecordWriter(self._file)
        self._put(file_version="brain.Event:2")
        if purge_step is not None:
            self._put(step=purge_step, session_log=self._event.SessionLog(status=self._event.SessionLog.START))

    def write(self, values: Mapping[str, float], step: int) -> None:
        scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._put(step=step, summary=self._summary(value=scalars))

    def close(self) -> None:
        self._file.close()

    def _put(self, **fields: Any) -> None:
        try:
            self._records.write(self._event.Event(wall_time=time.time(), **fields).SerializeToString())
            self._file.flush()
        except OSError as error:
            error.filename = self._file.name
            raise


def read_metrics(path: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, Any]]:
    r"""Return the columns of a `metrics.csv`, each as an array with one entry per row.

    A column is float64 with NaN in empty cells if all its cells are numbers, else an array of strings. A last line
    that a crash tore, or that is being written now, is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line before the last has another number of cells than the header.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> _ = path.write_text("env_steps,kind\n1000,train\n,eval\n20")
        >>> read_metrics(path)
        {'env_steps': array([1000.,   nan]), 'kind': array(['train', 'eval'], dtype='<U5')}
    """
    header, rows = _read_whole_lines(Path(check_path("path", path)))
    if not header or len(set(header)) != len(header):
        raise ValueError(f"{path} must begin with a header line of different names, got {header}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path} line {number} must have {len(header)} cells like the header, got {len(row)}")
    return {name: _column([row[index] for row in rows]) for index, name in enumerate(header)}


def _column(cells: Sequence[str]) -> np.ndarray[Any, Any]:
    try:
        return np.array([float(cell) if cell else np.nan for cell in cells], dtype=np.float64)
    except ValueError:
        return np.array(cells, dtype=np.str_)


def _cell(name: str, value: object) -> str:
    if isinstance(value, str):
        if "\n" in value or "\r" in value:
            raise ValueError(f"row[{name!r}] must be one line, got {shown(value)}")
        if not _is_unicode(value):
            raise ValueError(f"row[{name!r}] must be text that UTF-8 can hold, got {shown(value)}")
        return value
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    raise TypeError(f"row[{name!r}] must be a number or string, got {type(value).__name__}: give its item()")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked_columns(columns: object) -> tuple[str, ...]:
    """Return the names as a tuple, or raise where one of them could not head a column."""
    if isinstance(columns, str | bytes | Mapping | Set) or not isinstance(columns, Sequence):
        raise TypeError(f"columns must be a list of names, got {shown(columns)}")
    for name in columns:
        if not isinstance(name, str) or not name or "\n" in name or "\r" in name or not _is_unicode(name):
            raise TypeError(f"columns must be names of one line each, got {shown(name)}")
    return tuple(columns)


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _read_whole_lines(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and rows of a CSV file up to its last line break; what stands behind it is torn."""
    check_file(path)
    text = path.read_bytes().decode(errors="replace")
    try:
        lines = list(csv.reader(text.split("\n")[:-1]))
    except csv.Error as error:
        raise ValueError(f"{path} must be a table of comma-separated values, got {error}") from error
    if not lines:
        raise ValueError(f"{path} must begin with a header line, got an empty file")
    return lines[0], lines[1:]


def _rows_to_keep(path: Path, columns: Sequence[str], resume_at: int) -> list[list[str]]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, so it cannot be resumed: restore it, or start a new run")
    header, rows = _read_whole_lines(path)
    if tuple(header) != tuple(columns):
        raise ValueError(f"{path} must have the columns {', '.join(columns)}, got {', '.join(header)}: start a new run")
    whole = [row for row in rows[:resume_at] if len(row) == len(columns)]
    if len(whole) < resume_at:
        raise ValueError(
            f"{path} must hold the {resume_at} rows written before the checkpoint, got {len(whole)}: "
            "restore it, or start a new run"
        )
    return whole
