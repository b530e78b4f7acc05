"""The directory of one run: where everything that a training run writes has its place.

    runs/<name>/
      settings.json             the settings and their changes, the versions, the machine, when it began
      metrics.csv, tensorboard/ one row per episode and evaluation
      learning_curve.png        the same, drawn
      videos/                   reconstructions and open-loop predictions
      episodes/                 the experience, one file per episode
      checkpoint.pt             what `--resume` goes on from, and checkpoint-previous.pt, the one before

Knows only names: the files are written by `metrics`, `checkpoint`, `pictures` and `planet_lib.data`.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from planet_lib._files import atomic_path, check_file, make_directory
from planet_lib._shapes import check_mapping, check_path, shown

try:
    import fcntl
except ImportError:  # no such lock there (Windows)
    fcntl = None  # type: ignore[assignment]  # Windows has none

_FORMAT = "planet_lib run"
_DISTRIBUTIONS = {
    "planet_lib": "planet-worldmodel",
    "torch": "torch",
    "numpy": "numpy",
    "mujoco": "mujoco",
    "dm_control": "dm_control",
    "gymnasium": "gymnasium",
}
_VERSIONED = ("python", *_DISTRIBUTIONS)


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run, and the settings it was started with.

    Build it with `create` for a new run and with `open` for one to go on with.

    Attributes:
        path: the directory itself.
        settings: what the run was started with, or what `change_settings` made of it, as JSON gives it back: tuples
            have become lists, keys strings.
        versions: of Python, torch, planet_lib and the simulators that were installed at the start.
        machine: the platform, the processor, its vector instructions and torch's number of threads at the start.
        changes: one dictionary for each time that `change_settings` replaced something: "changed", the time, "command",
            and "settings_before", the values that were replaced.

    Example:
        >>> import tempfile
        >>> run = RunDirectory.create(Path(tempfile.mkdtemp()) / "first", {"env": "dmc:cartpole-balance", "seed": 0})
        >>> run.metrics_path.name, run.checkpoint_path.name
        ('metrics.csv', 'checkpoint.pt')
        >>> RunDirectory.open(run.path).settings
        {'env': 'dmc:cartpole-balance', 'seed': 0}
    """

    path: Path
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def create(cls, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> "RunDirectory":
        """Make the directory with `settings.json` in it, and return its paths.

        Args:
            path: where; parents are made. It must not exist: nothing is ever overwritten.
            settings: plain values by name: numbers, strings, booleans, None, and lists, tuples or dicts of them.

        Raises:
            FileExistsError: `path` exists.
            TypeError: a setting is not a plain value. Raised before anything is made.
        """
        directory = Path(check_path("path", path))
        check_mapping("settings", settings)
        plain = {name: _plain_setting(name, value) for name, value in settings.items()}
        versions, machine = _versions(), _machine()
        record = {
            "format": _FORMAT,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": plain,
            "versions": versions,
            "machine": machine,
            "command": sys.argv,
        }
        make_directory(directory.parent)
        try:
            directory.mkdir()
        except FileExistsError:
            remedy = f"go on with it by --resume {shlex.quote(str(directory))}"
            if not (directory / "checkpoint.pt").exists():
                remedy = "it has no checkpoint to go on from, so remove it if it is of a run that ended as it began"
            raise FileExistsError(
                f"run directory {directory} already exists and is left as it is: {remedy}, "
                "or choose another with --name or --out"
            ) from None
        run = cls(path=directory, settings=plain, versions=versions, machine=machine)
        try:
            run.episodes.mkdir()
            run.videos.mkdir()
            with atomic_path(run.settings_path) as temporary:
                temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)  # made a moment ago by this call, so nothing of anybody's
            raise
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunDirectory":
        """Return the paths and settings of a run that exists; changes nothing.

        Raises:
            FileNotFoundError: no such directory, or it holds no `settings.json`.
            ValueError: `settings.json` is damaged, or not one that `create` wrote.
        """
        directory = Path(check_path("path", path))
        if not directory.is_dir():
            raise FileNotFoundError(f"run directory {directory} does not exist: give the path of one that a run made")
        record = _read_record(directory)
        facts = {name: record[name] for name in ("versions", "machine") if isinstance(record.get(name), dict)}
        return cls(path=directory, settings=record["settings"], changes=record.get("changes", []), **facts)

    def change_settings(self, settings: Mapping[str, Any]) -> list[str]:
        """Make these the settings from here on, for this process and for every later `open`.

        A resumed run may be given other settings than it began with. They are written to `settings.json` at once, with
        the time and the command, so that whoever resumes it next gets them without asking. Where nothing differs,
        nothing is written. Call it with the run's `lock` held.

        Args:
            settings: all of them, as for `create`; names that they lack are dropped.

        Returns:
            One text for each that the run had before with another value, such as "batch_size 50 (was 25)".

        Raises:
            TypeError: a setting is not a plain value. Raised before anything is written.
            ValueError: `settings.json` is damaged by now.
            OSError: the disk is full, or the place not writable; the old settings are kept.

        Example:
            >>> import tempfile
            >>> run = RunDirectory.create(Path(tempfile.mkdtemp()) / "first", {"seed": 0, "batch_size": 25})
            >>> run.change_settings({"seed": 0, "batch_size": 50})
            ['batch_size 50 (was 25)']
            >>> RunDirectory.open(run.path).settings["batch_size"]
            50
        """
        check_mapping("settings", settings)
        plain = {name: _plain_setting(name, value) for name, value in settings.items()}
        if plain == self.settings:
            return []
        was = {name: value for name, value in self.settings.items() if name not in plain or plain[name] != value}
        record = _read_record(self.path)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        changes = record.get("changes", [])
        if was:
            changes = [*changes, {"changed": now, "command": sys.argv, "settings_before": was}]
        with atomic_path(self.settings_path) as temporary:
            text = json.dumps({**record, "settings": plain, "changes": changes}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")
        self.changes[:] = changes
        self.settings.clear()
        self.settings.update(plain)
        return [f"{name} {plain[name]} (was {value})" for name, value in was.items() if name in plain]

    def values_of(self, name: str) -> list[Any]:
        """Return the values that a setting has had, the present one first.

        Example:
            >>> import tempfile
            >>> run = RunDirectory.create(Path(tempfile.mkdtemp()) / "first", {"batch_size": 25})
            >>> _ = run.change_settings({"batch_size": 50})
            >>> run.values_of("batch_size"), run.values_of("seed")
            ([50, 25], [])
        """
        before = (change.get("settings_before") for change in reversed(self.changes))
        return [each[name] for each in (self.settings, *before) if isinstance(each, dict) and name in each]

    def differences(self) -> list[str]:
        """Return what is not as it was when the run began, of all on which its numbers depend bit for bit.

        Versions of Python, torch, NumPy and the simulators, the kind of processor, and torch's number of threads.

        Returns:
            One text each, such as "torch 2.13.0 (now 2.14.1)"; empty where the run goes on as if it had never stopped.
        """
        here, was = {**_versions(), **_machine()}, {**self.versions, **self.machine}
        matter = (*_VERSIONED, "processor", "instructions", "torch_threads")
        return [
            f"{name} {was[name]} (now {here.get(name)})"
            for name in matter
            if name in was and was[name] != here.get(name)
        ]

    @contextlib.contextmanager
    def lock(self) -> Iterator["RunDirectory"]:
        """Keep every other process from writing to this run, until the returned context is left or this process ends.

        The context gives the run with the settings that it has then. Enter it before settings and checkpoint are used:
        another process may be about to write others. Where the system or the file system has no such locks, nothing is
        locked.

        Raises:
            BlockingIOError: another process has it, when the context is entered.
        """
        with _locked(self.path / ".lock", f"run {self.path}"):
            yield RunDirectory.open(self.path)

    @property
    def settings_path(self) -> Path:
        """`settings.json`."""
        return self.path / "settings.json"

    @property
    def metrics_path(self) -> Path:
        """`metrics.csv`, which `MetricsWriter` writes."""
        return self.path / "metrics.csv"

    @property
    def checkpoint_path(self) -> Path:
        """`checkpoint.pt`, which `save_checkpoint` writes."""
        return self.path / "checkpoint.pt"

    @property
    def learning_curve(self) -> Path:
        """`learning_curve.png`."""
        return self.path / "learning_curve.png"

    @property
    def videos(self) -> Path:
        """The directory of the videos."""
        return self.path / "videos"

    @property
    def episodes(self) -> Path:
        """The directory of the collected episodes."""
        return self.path / "episodes"


def _read_record(directory: Path) -> dict[str, Any]:
    """Return what the run's `settings.json` holds, or raise as `RunDirectory.open` does."""
    source = directory / "settings.json"
    check_file(source)
    try:
        record = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{directory} is not a run directory, it has no settings.json: give the path of one that a run made"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is damaged (got {error}): restore it, or start a new run") from error
    is_run = isinstance(record, dict) and record.get("format") == _FORMAT and isinstance(record.get("settings"), dict)
    if not is_run:
        raise ValueError(
            f"{source} was not written by a planet_lib run (got another file): give the path of a run directory"
        )
    changes = record.get("changes", [])
    if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
        raise ValueError(f"{source} is damaged (got {shown(changes)} for its changes): restore it, or start a new run")
    return dict(record)


def _plain_setting(name: str, value: Any) -> Any:
    """Return `value` as it will be read back from JSON, or raise a `TypeError` that names the setting."""
    given: object = name
    if not isinstance(given, str):
        raise TypeError(f"settings must have names, got {shown(given)}")
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"settings[{name!r}] must be a plain value (number, string, bool, None, or a list or dict of them), "
            f"got {type(value).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock that the system takes back when the process ends, however it does."""
    with path.open("a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f"{what} must be written by one process at a time, got another that has it: wait for that one, "
                    "or end it"
                ) from None
            except OSError:  # a file system without locks
                pass
        yield


def _machine() -> dict[str, Any]:
    """What the last digits of a run depend on besides the versions, and how many cores there were."""
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def _versions() -> dict[str, str]:
    """The installed versions, read from their metadata: importing a simulator only to ask would take seconds."""
    versions = {"python": platform.python_version()}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            versions[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
