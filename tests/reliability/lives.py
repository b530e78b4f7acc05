"""The lives of a training run: it is started, ended, looked at and held against a run that nothing happened to.

Every check raises an `AssertionError` that says which file of which run is not as it should be.
"""

import contextlib
import csv
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from victim import PROGRAM, kind_of

from planet_lib.data import load_episode
from planet_lib.data.episodes import episode_checksum
from planet_lib.training import RunDirectory, load_checkpoint, read_metrics
from planet_lib.training.checkpoint import previous_checkpoint

# From pixels, with everything a run does, and as small as it gets: most of a life is spent on imports.
FLAGS = shlex.split(
    "--env dmc:cartpole-balance --obs pixels --image-size 16 --action-repeat 50 --seed-episodes 2 --num-episodes 4 "
    "--updates-per-episode 3 --eval-every 4 --eval-episodes 1 --batch-size 2 --window 5 --deter-dim 8 --stoch-dim 4 "
    "--hidden-dim 8 --embed-dim 8 --depth 4 --horizon 2 --num-candidates 6 --num-elites 2 --num-iterations 2"
)
PATIENCE = 240.0  # seconds for a life, and what it leaves behind, before it counts as hanging
_MARK = "PLANET_LIB_LIFE"
_CLOCKS = ("seconds", "per_second")


@dataclass(frozen=True)
class Life:
    """One process of a run, from its start to its end.

    Attributes:
        code: its exit code, below 0 a signal.
        output: all it printed.
        steps: of writing files, as (kind of file, step), up to the last one.
        seconds: how long it lived.
    """

    code: int
    output: str
    steps: list[tuple[str, str]]
    seconds: float

    @property
    def moment(self) -> str:
        """What it was doing at its end."""
        steps = [step for step in self.steps if step[0] != "events"]
        if not steps:
            return "start"
        kind, step = steps[-1]
        return "between files" if step == "done" else kind

    @property
    def last_line(self) -> str:
        """The last line it printed."""
        return (self.output.strip().splitlines() or [""])[-1]


def live(
    run: Path,
    *,
    flags: Sequence[str] = (),
    plan: Mapping[str, Any] | None = None,
    signals: Sequence[tuple[float, int]] = (),
    resume: bool | None = None,
    is_bound: bool = False,
    is_watched: bool = True,
) -> Life:
    """Start or resume a run in a process group of its own, and wait until nothing of it is left.

    Args:
        run: its directory.
        flags: besides `FLAGS`.
        plan: for the victim.
        signals: to send, each as (seconds since the start, number): SIGKILL to the process alone, others to its
            group, as a terminal does.
        resume: whether to; None does where there is a checkpoint.
        is_bound: whether permissions bind the process even where it is root's.
        is_watched: whether to watch its files; else it is the plain command of a user.
    """
    resumed = (run / "checkpoint.pt").exists() if resume is None else resume
    words = ["--resume", str(run)] if resumed else [*FLAGS, "--out", str(run.parent), "--name", run.name, *flags]
    reading, writing = os.pipe()
    mark = uuid.uuid4().hex
    told = {"run": str(run), "log": writing} | dict(plan or {})
    watched = [str(Path(__file__).with_name("victim.py")), json.dumps(told)]
    command = [sys.executable, *(watched if is_watched else [str(PROGRAM)]), *words]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(writing,),
        process_group=0,
        preexec_fn=functools.partial(_prepare, is_bound),  # noqa: PLW1509  (nothing here has threads that hold locks)
        env=os.environ | {"OMP_NUM_THREADS": "1", _MARK: mark},
    )
    os.close(writing)
    try:
        for after, number in signals:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, began + after - time.monotonic()))
                break
            with contextlib.suppress(ProcessLookupError):
                (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)
        code = process.wait(PATIENCE)
        seconds = time.monotonic() - began
        _wait_for_all(mark)
        assert process.stdout is not None
        output = process.stdout.read().decode(errors="replace")
        with open(reading, "rb", closefd=False) as log:
            steps = [tuple(line.split("\t")) for line in log.read().decode().splitlines()]
    finally:
        for left in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        os.close(reading)
    return Life(code, output, steps, seconds)


def _wait_for_all(mark: str) -> None:
    """Wait until no process is left that descends from the marked one, be it a worker or an encoder."""
    deadline = time.monotonic() + 30.0
    while left := marked(mark):
        assert time.monotonic() < deadline, f"processes {left} outlived their parent by 30 seconds"
        time.sleep(0.05)


def marked(mark: str) -> list[int]:
    """The living processes with this mark in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{_MARK}={mark}".encode() in place.read_bytes():  # empty for a zombie
                found.append(int(place.parent.name))
    return found


def _prepare(is_bound: bool) -> None:
    """Let Ctrl-C interrupt the process, also where a shell has it ignored for what runs in its background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if is_bound:
        _bind()


def _bind() -> None:
    """Take from the process that is about to start root's right to ignore permissions."""
    import ctypes

    drop_from_bounding_set, override = 24, 1
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(drop_from_bounding_set, override, 0, 0, 0)


@dataclass(frozen=True)
class State:
    """What lies in the directory of a run, all of it read and found whole.

    Attributes:
        checkpoint: its payload, None where there is none yet.
        episodes: checksums by index.
        rows: of the metrics, without the columns that are of the clock.
        files: all of them, with checksums of the pictures and videos.
    """

    checkpoint: dict[str, Any] | None
    episodes: dict[int, int]
    rows: list[dict[str, str]]
    files: dict[str, int]


NOTHING = State(None, {}, [], {})


def look_at(run: Path) -> State:
    """Read a run that is not running, whatever ended it."""
    paths = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    files = {name: zlib.crc32(path.read_bytes()) if _is_drawn(name) else 0 for name, path in paths.items()}
    if "checkpoint.pt" not in files:
        there = {kind_of(str(path), str(run)) for path in paths.values() if not path.name.startswith(".")}
        assert there <= {"settings", "row", "events"}, f"{run} has no checkpoint, but {sorted(there)}"
        return State(None, {}, [], files)
    RunDirectory.open(run)
    checkpoint = load_checkpoint(run / "checkpoint.pt")
    if previous_checkpoint(run / "checkpoint.pt").exists():
        load_checkpoint(previous_checkpoint(run / "checkpoint.pt"))
    stored = sorted((run / "episodes").glob("*.npz"))
    episodes = {int(path.name.split("-")[1]): episode_checksum(load_episode(path)) for path in stored}
    assert len(episodes) == len(stored), f"{run} has an episode twice: {[path.name for path in stored]}"
    read_metrics(run / "metrics.csv")
    whole = (run / "metrics.csv").read_text().rpartition("\n")[0]  # what stands behind it is torn
    timeless = [
        {name: cell for name, cell in row.items() if not any(word in name for word in _CLOCKS)}
        for row in csv.DictReader(whole.splitlines())
    ]
    return State(checkpoint, episodes, timeless, files)


def check_whole(state: State, before: State, reference: State) -> None:
    """Hold the state after an end against the one before that life, and against the run that nothing happened to."""
    lost = set(before.episodes) - set(state.episodes)
    assert not lost, f"finished episodes {sorted(lost)} are lost"
    wrong = [index for index, checksum in state.episodes.items() if reference.episodes[index] != checksum]
    assert not wrong, f"episodes {wrong} are not those of the reference"
    assert state.rows == reference.rows[: len(state.rows)], "the rows of metrics are not those of the reference"
    if state.checkpoint is None:
        assert before.checkpoint is None, "the checkpoint is lost"
        return
    done, saved = state.checkpoint["done"]["episodes"], state.checkpoint["metrics_rows"]
    assert done <= len(state.episodes), f"the checkpoint counts {done} episodes, there are {len(state.episodes)}"
    assert saved <= len(state.rows), f"the checkpoint counts {saved} rows, there are {len(state.rows)}"
    if before.checkpoint is not None:
        assert done >= before.checkpoint["done"]["episodes"], "the checkpoint went back"


def check_end(state: State, reference: State) -> None:
    """Hold a run that is done against the one that nothing happened to: bit for bit, and nothing left over."""
    check_whole(state, reference, reference)
    assert state.rows == reference.rows, f"{len(state.rows)} rows of metrics, the reference has {len(reference.rows)}"
    assert state.checkpoint is not None
    assert reference.checkpoint is not None
    different = _differences("checkpoint", _without_clock(state.checkpoint), _without_clock(reference.checkpoint))
    assert not different, f"the checkpoint differs from the reference in {different}"
    ours, theirs = (
        {name: checksum for name, checksum in files.items() if not name.startswith("tensorboard")}
        for files in (state.files, reference.files)
    )
    assert set(ours) == set(theirs), f"files too many: {set(ours) - set(theirs)}, missing: {set(theirs) - set(ours)}"
    drawn = [name for name in theirs if ours[name] != theirs[name]]
    assert not drawn, f"pictures {drawn} are not those of the reference"


def _is_drawn(name: str) -> bool:
    return Path(name).suffix in (".png", ".mp4")


def _without_clock(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint | {"done": {name: value for name, value in checkpoint["done"].items() if name != "seconds"}}


def _differences(name: str, ours: Any, theirs: Any) -> list[str]:
    """The names of all values that are not the same, to the last bit."""
    if type(ours) is not type(theirs):
        return [name]
    if isinstance(ours, Mapping):
        if list(ours) != list(theirs):
            return [name]
        return [found for key in ours for found in _differences(f"{name}.{key}", ours[key], theirs[key])]
    if isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return [name]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [found for index, pair in pairs for found in _differences(f"{name}[{index}]", *pair)]
    if isinstance(ours, torch.Tensor):
        same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
        return [] if same and ours.numpy().tobytes() == theirs.numpy().tobytes() else [name]
    return [] if ours == theirs else [name]
