"""Runs `examples/train_planet.py` as it is, and ends it, or the disk under it, at a moment told beforehand.

    python victim.py PLAN FLAG...

PLAN is a JSON object: `run`, the directory whose files are watched; `log`, a descriptor that gets one line for every
step of writing a file there; and what is to happen at the `count`-th step of writing a file of kind `what`:

- `kill`: SIGKILL, just before the step: opening for writing, waiting for the disk, linking, moving or removing.
- `half`: the kernel ends the process within the writing, by a limit on the size of files, after `size` bytes.
- `quota`: the same limit, but the writing fails as it does on a full disk or over a quota.
- `fill`: the disk is filled up to the last `size` bytes by a file beside the run, as others' files would.
- `lock`: no file can be made in the run's directories any more.

The training program is not changed, and its workers and encoders are not watched.
"""

import builtins
import contextlib
import io
import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parents[2] / "examples" / "train_planet.py"
FILLER = "others.bin"
_MOVES = ("os.rename", "os.link", "os.remove", "os.truncate")


def kind_of(path: str, run: str) -> str:
    """Say which file of a run a path is, temporary names included; "" for what is none."""
    inside = os.path.relpath(path, run)
    folder, name = os.path.split(inside)
    if inside.startswith(".."):
        return ""
    if folder:
        return {"episodes": "episode", "videos": "video", "tensorboard": "events"}.get(folder, "")
    if "checkpoint" in name:
        return "previous checkpoint" if "-previous" in name else "checkpoint"
    if "metrics" in name:
        return "row" if name == "metrics.csv" else "metrics file"
    return "settings" if "settings" in name else "curve" if "learning_curve" in name else ""


class Watch:
    """Counts the steps of writing a run's files, and does what the plan says at its step."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.run, self.plan, self.log = plan["run"], plan, plan["log"]
        self.left, self.last, self.limit, self.torn = plan.get("count", 0), "", 0, 0
        os.set_inheritable(self.log, False)
        self._fsync, self._replace, self._open = os.fsync, os.replace, builtins.open
        os.fsync, os.replace, builtins.open = self.fsync, self.replace, self.open
        sys.addaudithook(self.audit)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Python calls this at every step that touches a file, among much else."""
        if event == "subprocess.Popen":
            self.lift()
        elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            flags = args[2] if isinstance(args[2], int) else 0
            if flags & (os.O_WRONLY | os.O_RDWR):
                self.step("open", os.fsdecode(args[0]))
        elif event in _MOVES and not isinstance(args[0], int):
            self.step(event, os.fsdecode(args[1 if event == "os.link" else 0]))

    def step(self, event: str, path: str, kind: str = "") -> None:
        """Note a step of writing, and act if it is the one."""
        kind = kind or kind_of(path, self.run)
        if not kind or (event == "os.remove" and not os.path.exists(path)):
            return
        self.lift()
        self.last = kind
        self.note(kind, event)
        how = self.plan.get("how", "kill")
        if kind != self.plan.get("what") or (how != "kill" and event != "open"):
            return
        self.left -= 1
        if self.left == 0:
            self.act(how, path)

    def act(self, how: str, path: str) -> None:
        """Do what the plan says, or prepare it."""
        size = self.plan.get("size", 0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "fill":
            fill(Path(self.run).parent / FILLER, leave=size)
        elif how == "lock":
            set_mode(Path(self.run), 0o555)
        elif how == "half" and self.plan["what"] == "row":
            self.torn = size
        else:
            if how == "half":
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, so that the writing fails instead
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            self.limit = size + (os.path.getsize(path) if self.plan["what"] == "row" else 0)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))

    def lift(self) -> None:
        """Take the limit off again, where the file was smaller."""
        if self.limit:
            self.limit = 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def note(self, kind: str, event: str) -> None:
        """Add a line to the log, which outlives this process."""
        os.write(self.log, f"{kind}\t{event}\n".encode())

    def fsync(self, descriptor: Any) -> None:
        """`os.fsync`, of which the audit hook is not told. A folder's is the last step of the file moved there."""
        path = os.readlink(f"/proc/self/fd/{descriptor if isinstance(descriptor, int) else descriptor.fileno()}")
        kind = self.last if os.path.isdir(path) else kind_of(path, self.run)
        if kind:
            self.step("fsync", path, kind)
        self._fsync(descriptor)
        if kind and (os.path.isdir(path) or kind == "row"):
            self.note(kind, "done")

    def replace(self, source: Any, target: Any, **flags: Any) -> None:
        """`os.replace`, the last step of an episode's file."""
        self._replace(source, target, **flags)
        if kind_of(os.fsdecode(target), self.run) == "episode":
            self.note("episode", "done")

    def open(self, file: Any, mode: str = "r", *args: Any, **settings: Any) -> Any:
        """`open`, whose row of metrics may be torn: it is written by a single call, which a limit would make fail."""
        opened = self._open(file, mode, *args, **settings)
        return _TornFile(opened, self.torn) if self.torn and isinstance(opened, io.FileIO) else opened


class _TornFile(io.FileIO):
    """A file of which one write puts the first part into the file, and no more: the process is killed there."""

    def __init__(self, opened: io.FileIO, size: int) -> None:
        super().__init__(os.dup(opened.fileno()), "ab")
        self._size = size

    def write(self, content: Any) -> int:
        super().write(content[: self._size])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


def set_mode(folder: Path, mode: int) -> None:
    """Let files be made in this folder and those in it, or not."""
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        path.chmod(mode)


def fill(path: Path, *, leave: int = 0) -> None:
    """Write to `path` until its disk is full but for about `leave` bytes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 20, 1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while os.write(descriptor, bytes(size)) == size:
                    pass
        os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - leave))
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    Watch(json.loads(sys.argv[1]))
    sys.argv = [str(PROGRAM), *sys.argv[2:]]
    runpy.run_path(str(PROGRAM), run_name="__main__")
