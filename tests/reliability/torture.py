"""Kills, fills, locks and interrupts real training processes, and holds what becomes of them against an untouched run.

    python tests/reliability/torture.py --kills 50 --seed 0

A run of `examples/train_planet.py` from pixels is ended again and again, resumed each time, and at its end compared
with a run of the same seed that nothing happened to, bit for bit: metrics, episodes, weights, optimiser, replay,
random states. After each end everything in its directory is read. The first fault ends the program with a traceback.

Kinds of ends, in turn: SIGKILL at a moment of the clock; SIGKILL just before a step of writing a file; the kernel's
SIGXFSZ within the writing, so that a part of the file exists. Then the same with workers, Ctrl-C once and twice, a full
disk, and a directory that cannot be written to. Linux only. What cannot be tried so is a power cut.
"""

import argparse
import contextlib
import itertools
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lives import NOTHING, Life, State, check_end, check_whole, live, look_at
from victim import FILLER, set_mode

from planet_lib.envs import select_backend

Say = Callable[[str], object]
WORKERS = ("--num-envs", "2")
FULL = ("No space left on device", "is the disk full?", "File too large")
SIZES = (8_192, 150_000, 400_000, 800_000, 1_000_000, 1_200_000, 1_500_000)  # a run takes 2 MB at most
FILLS = (
    {"how": "fill", "what": "episode", "count": 1, "size": 0},
    {"how": "fill", "what": "checkpoint", "count": 3, "size": 100_000},
    {"how": "quota", "what": "row", "count": 1, "size": 40},
)
LOCKS = ({"how": "lock", "what": "episode", "count": 3}, {"how": "lock", "what": "checkpoint", "count": 1})
_WEIGHTS = {
    "checkpoint": 4,
    "previous checkpoint": 3,
    "row": 3,
    "episode": 4,
    "metrics file": 1,
    "settings": 1,
    "video": 1,
    "curve": 1,
    "events": 1,
}


class NoDiskError(Exception):
    """No small disk can be mounted here."""


@dataclass(frozen=True)
class Reference:
    """A run that nothing happened to."""

    state: State
    life: Life
    sizes: dict[str, int]  # of its files, by kind
    flags: tuple[str, ...]


def reference_run(folder: Path, flags: Sequence[str] = ()) -> Reference:
    """Train from the start to the end, and remember every step of writing a file."""
    run = folder / "reference"
    life = live(run, flags=flags)
    assert life.code == 0, f"the reference ended with {life.code}: {life.output}"
    names = {"checkpoint": "checkpoint.pt", "curve": "learning_curve.png", "settings": "settings.json"}
    sizes = {kind: (run / name).stat().st_size for kind, name in names.items()}
    sizes |= {"episode": min(path.stat().st_size for path in (run / "episodes").glob("*.npz")), "row": 60}
    return Reference(look_at(run), life, sizes, tuple(flags))


def draw_end(random: np.random.Generator, reference: Reference, before: State) -> dict[str, Any]:
    """Choose how a life ends: arguments for `live`."""
    way = random.choice(["clock", "step", "half"], p=[0.35, 0.4, 0.25])
    if way == "clock":
        done = len(before.episodes) / len(reference.state.episodes)  # a resumed run takes a shorter time, and imports
        return {"signals": [(float(random.uniform(0.0, reference.life.seconds * (1.0 - 0.6 * done))), signal.SIGKILL)]}
    kinds = list(_WEIGHTS) if way == "step" else list(reference.sizes)
    if before.checkpoint is not None:
        kinds.remove("settings")  # written once, at the very start
    weights = np.array([_WEIGHTS[kind] for kind in kinds], dtype=float)
    what = str(random.choice(kinds, p=weights / weights.sum()))
    if way == "step":
        steps = sum(kind == what for kind, _ in reference.life.steps)
        return {"plan": {"how": "kill", "what": what, "count": int(random.integers(1, 2 + steps // 3))}}
    # Files that are moved into their place are opened twice, to write them and to wait for the disk.
    count = int(random.integers(1, 4)) if what == "row" else int(random.choice([1, 3]))
    size = int(random.integers(1, reference.sizes[what]))
    return {"plan": {"how": "half", "what": what, "count": count, "size": size}}


def kill(folder: Path, reference: Reference, kills: int, random: np.random.Generator, say: Say) -> Counter[str]:
    """Kill runs until there were as many kills, resume each to its end, and count what they were doing."""
    moments: Counter[str] = Counter()
    for number in itertools.count():
        if number and moments.total() >= kills:
            break
        run, before = folder / f"killed-{number}", NOTHING
        while True:
            end = draw_end(random, reference, before) if moments.total() < kills else {}
            life = live(run, flags=reference.flags, **end)
            if life.code == 0:
                break
            assert life.code in (-signal.SIGKILL, -signal.SIGXFSZ), f"{end}: ended with {life.code}: {life.output}"
            state = look_at(run)
            check_whole(state, before, reference.state)
            moments[life.moment] += 1
            done = 0 if state.checkpoint is None else state.checkpoint["done"]["episodes"]
            say(f"kill {moments.total()}: {life.moment} after {life.seconds:.1f} s, {done} episodes saved ({end})")
            if state.checkpoint is None:
                begin_again(run)
            before = state
        check_end(look_at(run), reference.state)
        say(f"run {number + 1} is done and equal to the reference")
        shutil.rmtree(run)
    return moments


def begin_again(run: Path) -> None:
    """Follow what a start says where a run ended before it had a checkpoint; nothing was collected by then."""
    if run.exists():
        life = live(run, resume=False, is_watched=False)
        assert_one_line(life)
        assert "no checkpoint" in life.last_line, life.last_line
        assert "remove" in life.last_line, life.last_line
        shutil.rmtree(run)


def assert_one_line(life: Life) -> None:
    """An error costs one line, of the program's own, and exit code 1."""
    assert life.code == 1, f"ended with {life.code}: {life.output}"
    assert "Traceback" not in life.output, life.output
    assert life.last_line.startswith("train_planet.py: "), life.output
    assert life.output.count("train_planet.py: ") == 1, life.output


def interrupt(folder: Path, reference: Reference, times: int, random: np.random.Generator, say: Say) -> Counter[str]:
    """Press Ctrl-C once and twice in turn, at random moments, and resume each to its end."""
    outcomes: Counter[str] = Counter()
    for number in itertools.count():
        if number and outcomes.total() >= times:
            break
        run, before = folder / f"interrupted-{number}", NOTHING
        while True:
            first = float(random.uniform(0.3, reference.life.seconds))
            moments = [first, first + float(random.exponential(0.2))][: 1 + outcomes.total() % 2]
            signals = [(moment, signal.SIGINT) for moment in moments] if outcomes.total() < times else []
            life = live(run, flags=reference.flags, signals=signals, is_watched=False)
            if "done after" in life.output or (life.code == 0 and not signals):
                break
            outcomes[judge_interrupt(life)] += 1
            say(f"Ctrl-C {len(signals)} times after {first:.1f} s: {life.last_line or 'silence'} ({life.code})")
            state = look_at(run)
            check_whole(state, before, reference.state)
            if state.checkpoint is None:
                begin_again(run)
            before = state
        check_end(look_at(run), reference.state)
        shutil.rmtree(run)
    return outcomes


def judge_interrupt(life: Life) -> str:
    """Say what Ctrl-C came to: a line, or silence during the imports; never a traceback."""
    assert "Traceback" not in life.output, life.output
    is_interrupted = life.code == -signal.SIGINT  # in the imports, or by the second one when all was done
    if is_interrupted and not life.output:
        return "ended during the imports"
    if "; go on with: --resume" in life.last_line and (life.code == 0 or is_interrupted):
        return "stopped, and says how to go on"
    if not is_interrupted:
        assert_one_line(life)
    assert life.last_line == "train_planet.py: stopped", life.output
    return "stopped"


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """Mount a disk of `size` bytes at `folder`; yields what enlarges it. A `NoDiskError` says why there can be none."""
    folder.mkdir(parents=True)

    def mount(*words: str) -> None:
        done = subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoDiskError(f"no disk can be mounted here: {done.stderr.strip()}")

    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    try:
        yield lambda larger: mount("-o", f"remount,size={larger}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_disk(
    folder: Path,
    reference: Reference,
    sizes: Sequence[int],
    plans: Sequence[dict[str, Any]],
    say: Say,
) -> Counter[str]:
    """Train on a disk that is full at each of these sizes, then at the plans' moments, and enlarge it in between."""
    moments: Counter[str] = Counter()
    with small_disk(folder / "disk", 1 << 26) as enlarge:
        run, before = folder / "disk" / "run", NOTHING
        for size, plan in [*((size, None) for size in sizes), *((1 << 26, plan) for plan in plans)]:
            enlarge(size)
            life = live(run, flags=reference.flags, plan=plan)
            if life.code == 0:
                break
            assert_one_line(life)
            assert any(words in life.last_line for words in FULL), life.last_line
            moments[life.moment] += 1
            say(f"disk of {size:,} bytes full ({plan}): {life.moment}: {life.last_line}")
            (folder / "disk" / FILLER).unlink(missing_ok=True)
            state = look_at(run)
            check_whole(state, before, reference.state)
            if state.checkpoint is None:
                begin_again(run)
            before = state
        enlarge(1 << 26)
        life = live(run, flags=reference.flags)
        assert life.code == 0, life.output
        check_end(look_at(run), reference.state)
    return moments


def lock(folder: Path, reference: Reference, plans: Sequence[dict[str, Any]], say: Say) -> None:
    """Start where nothing can be written, then have the directory locked at each of the plans' moments."""
    place = folder / "locked"
    place.mkdir()
    place.chmod(0o555)
    life = live(place / "run", flags=reference.flags, is_bound=True)
    place.chmod(0o755)
    assert_denied(life, say)
    assert not list(place.iterdir()), f"left behind: {list(place.iterdir())}"
    before = NOTHING
    for plan in plans:
        life = live(place / "run", flags=reference.flags, plan=plan, is_bound=True)
        assert_denied(life, say)
        contents = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        life = live(place / "run", is_bound=True)
        assert_denied(life, say)
        assert contents == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        set_mode(place, 0o755)
        state = look_at(place / "run")
        check_whole(state, before, reference.state)
        before = state
    assert live(place / "run", is_bound=True).code == 0
    check_end(look_at(place / "run"), reference.state)


def assert_denied(life: Life, say: Say) -> None:
    """The one line says that permission is denied."""
    assert_one_line(life)
    assert "Permission denied" in life.last_line, life.last_line
    say(f"locked: {life.last_line}")


def main() -> None:
    """Run it all, and print what was hit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="of runs with one environment")
    parser.add_argument("--worker-kills", type=int, default=6, help="of runs with two, in processes of their own")
    parser.add_argument("--interrupts", type=int, default=12, help="by Ctrl-C, once and twice in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    select_backend()  # for all processes below
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    random = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "two").mkdir()
        alone, workers = reference_run(folder), reference_run(folder / "two", WORKERS)
        say(f"references: {alone.life.seconds:.1f} s with one environment, {workers.life.seconds:.1f} s with two")
        results = {"SIGKILL": kill(folder, alone, args.kills, random, say)}
        results["SIGKILL with workers"] = kill(folder / "two", workers, args.worker_kills, random, say)
        results["Ctrl-C"] = interrupt(folder, alone, args.interrupts - args.interrupts // 3, random, say)
        results["Ctrl-C with workers"] = interrupt(folder / "two", workers, args.interrupts // 3, random, say)
        try:
            results["full disk"] = fill_disk(folder, alone, SIZES, FILLS, say)
        except NoDiskError as error:
            say(f"not tried: {error}")
        lock(folder, alone, LOCKS, say)
    for what, counted in results.items():
        listed = ", ".join(f"{moment} {count}" for moment, count in counted.most_common())
        say(f"{what}: {counted.total()} ({listed})")
    say("every run ended equal to its reference, bit for bit")


if __name__ == "__main__":
    main()
