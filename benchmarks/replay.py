"""How long does a batch of windows take, and how much memory a frame, next to other replays in the same run?

    python benchmarks/replay.py --kaixhin ../PlaNet --mbrl-python ../mbrl/bin/python --out replay.json

Every replay holds the same frames of 64x64x3 bytes and first has to return windows of consecutive ones. Then all take
turns, one batch each a round, in one thread; each round gives the ratios that the goals are about. The yardstick of a
batch of bytes is `memcpy`: one plain copy of as many bytes, from memory that wasn't read lately, into a buffer that is
used again, as ours is. Kaixhin's replay returns floats of 5 bits with noise; ours make the same of theirs, eager and
compiled. Last, batches of bytes are timed for replays of several sizes, likewise in turns. Peers that aren't there are
left out, with a line that says how to get them.
"""

import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from replays import frames, peers

AT_LEAST = {"bandwidth": 0.7, "floats": 8.0}
AT_MOST = {"memory": 1.01, "growth": 1.3}
HOW_TO_GET = {
    "Kaixhin": "git clone https://github.com/Kaixhin/PlaNet ../PlaNet, then --kaixhin ../PlaNet",
    "TorchRL": "pip install -e '.[bench]'",
    "mbrl-lib": "an environment of its own (docs/results/replay.md), then --mbrl-python PATH",
}
COLUMNS = ("replay", "frames", "milliseconds", "least", "most", "gigabytes_per_s", "frame_bytes")
Sides = dict[str, peers.Side | peers.MbrlWorker]


def build(args: Namespace) -> Sides:
    """Ours, the copy, and all peers that can take part here."""
    sizes = (args.frames, args.batch, args.length)
    sides: Sides = {"memcpy": peers.memcpy(*sizes), **peers.ours(peers.replay_of(args.frames), args.batch, args.length)}
    if args.no_compile:
        del sides["ours, floats, compiled"]
    if args.kaixhin:
        sides["Kaixhin"] = peers.kaixhin(args.kaixhin, *sizes)
    if importlib.util.find_spec("torchrl") is not None:
        with warnings.catch_warnings():  # it has its own to say
            warnings.simplefilter("ignore")
            sides["TorchRL"] = peers.torchrl(*sizes)
    if args.mbrl_python:
        sides["mbrl-lib"] = peers.MbrlWorker(args.mbrl_python, *sizes)
    for name, side in sides.items():
        if name != "memcpy":
            side.check(args.frames)
    return sides


def take_turns(sides: Mapping[str, Any], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each in each round; every round asks all of them in order, and the warm-up isn't counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(warmup + rounds):
        for name, side in sides.items():
            seconds[name].append(side.seconds())
    return {name: times[warmup:] for name, times in seconds.items()}


def row(name: str, num_frames: int, times: list[float], args: Namespace, frame_bytes: float | None) -> dict[str, Any]:
    """One row of the table."""
    middle = statistics.median(times)
    return {
        "replay": name,
        "frames": num_frames,
        "milliseconds": 1e3 * middle,
        "least": 1e3 * min(times),
        "most": 1e3 * max(times),
        "gigabytes_per_s": args.batch * args.length * frames.FRAME_BYTES / middle / 1e9,
        "frame_bytes": frame_bytes,
    }


def ratio(what: str, above: list[float], below: list[float], goal: str) -> dict[str, Any]:
    """The median and range of above / below, round by round, beside the goal of that name, if it is one."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    return judged(what, statistics.median(ratios), min(ratios), max(ratios), goal)


def judged(what: str, found: float, least: float, most: float, goal: str) -> dict[str, Any]:
    """One line of the verdict."""
    line: dict[str, Any] = {"what": what, "found": found, "least": least, "most": most, "goal": None, "met": None}
    if goal in AT_LEAST:
        line |= {"goal": f">= {AT_LEAST[goal]}", "met": found >= AT_LEAST[goal]}
    elif goal in AT_MOST:
        line |= {"goal": f"<= {AT_MOST[goal]}", "met": found <= AT_MOST[goal]}
    return line


def judge(seconds: Mapping[str, list[float]], frame_bytes: float) -> list[dict[str, Any]]:
    """The goals that can be judged, and beside them what the other replays take."""
    pairs = [("memcpy", "ours, bytes", "bandwidth"), ("Kaixhin", "ours, floats", "floats")]
    pairs += [("Kaixhin", "ours, floats, compiled", "floats")]
    pairs += [("TorchRL", "ours, bytes", ""), ("mbrl-lib", "ours, bytes", "")]
    found = [
        ratio(f"seconds: {above} / {below}", seconds[above], seconds[below], goal)
        for above, below, goal in pairs
        if above in seconds and below in seconds
    ]
    share = frame_bytes / frames.FRAME_BYTES
    return [*found, judged("bytes of a stored frame / its pixels", share, share, share, "memory")]


def grow(args: Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Batches of bytes from replays of all sizes in turns: rows, and the goal about the largest beside the smallest."""
    sizes = sorted(args.sizes)
    sides = {size: peers.ours(peers.replay_of(size), args.batch, args.length)["ours, bytes"] for size in sizes}
    for size, side in sides.items():
        side.check(size)
    seconds = take_turns({str(size): side for size, side in sides.items()}, args.rounds, args.warmup)
    rows = [row("ours, bytes", size, seconds[str(size)], args, sides[size].frame_bytes) for size in sizes]
    first, last = seconds[str(sizes[0])], seconds[str(sizes[-1])]
    what = f"seconds: {sizes[-1]} / {sizes[0]} frames"
    return rows, [ratio(what, last, first, "growth")] if len(sizes) > 1 else []


def describe(args: Namespace) -> dict[str, Any]:
    """What a reader needs to know of the machine and of everybody's code."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    installed = {dist.metadata["Name"].replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}
    facts: dict[str, Any] = {
        "cpu": info.partition("model name\t: ")[2].partition("\n")[0] or "unknown",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load before the start": os.getloadavg()[0],
        "commit": subprocess.run(git, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown",
        **{name: installed[name] for name in ("torch", "numpy", "torchrl", "tensordict") if name in installed},
        **{name: getattr(args, name) for name in ("frames", "batch", "length", "rounds", "warmup", "sizes")},
    }
    if args.kaixhin:
        facts["Kaixhin's memory.py"] = sha256((args.kaixhin / "memory.py").read_bytes()).hexdigest()
    return facts


def parse(argv: list[str] | None) -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0], epilog=(__doc__ or "").split("\n\n")[2])
    parser.add_argument("--kaixhin", type=Path, help="a checkout of Kaixhin/PlaNet")
    parser.add_argument("--mbrl-python", help="the Python of an environment that has mbrl-lib")
    parser.add_argument("--frames", type=int, default=50_000, help="stored in each replay of the comparison")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[1000, 10_000],
        help="frames; a million takes 12.3 GB; none at all leaves them out",
    )
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3, help="rounds not counted")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled conversion out")
    parser.add_argument("--out", type=Path, help="a JSON file for all of it")
    args = parser.parse_args(argv)
    if args.kaixhin and not (args.kaixhin / "memory.py").is_file():
        parser.error(f"--kaixhin must be a checkout of Kaixhin/PlaNet, got {args.kaixhin}, which has no memory.py")
    if min(args.batch, args.length, args.rounds) < 1:
        got = f"{args.batch}, {args.length}, {args.rounds}"
        parser.error(f"--batch, --length and --rounds must be at least 1, got {got}")
    if args.warmup < 0:
        parser.error(f"--warmup must be at least 0, got {args.warmup}")
    if min([args.frames, *args.sizes]) < args.length:
        parser.error(f"--frames and --sizes must be at least --length={args.length}, got {args.frames}, {args.sizes}")
    return args


def cell(value: Any) -> str:
    """A number as the table shows it; nothing for None."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def main(argv: list[str] | None = None) -> None:
    """Check, measure, and print tables."""
    args = parse(argv)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"facts": describe(args)}
    sides = build(args)
    result["left out"] = {name: how for name, how in HOW_TO_GET.items() if name not in sides}
    if isinstance(worker := sides.get("mbrl-lib"), peers.MbrlWorker):
        result["facts"]["mbrl"] = worker.version
    seconds = take_turns(sides, args.rounds, args.warmup)
    result["rows"] = [row(name, args.frames, times, args, sides[name].frame_bytes) for name, times in seconds.items()]
    result["goals"] = judge(seconds, sides["ours, bytes"].frame_bytes)
    for side in sides.values():
        side.close()
    del sides
    if args.sizes:
        rows, goals = grow(args)
        result["rows"] += rows
        result["goals"] += goals
    result["facts"]["load at the end"] = os.getloadavg()[0]
    print(*(f"{name}: {value}" for name, value in result["facts"].items()), sep="\n")
    for name, how in result["left out"].items():
        print(f"left out: {name}; to get it: {how}")
    print("", *COLUMNS, "\n" + "|---" * len(COLUMNS), sep="|")
    for line in result["rows"]:
        print("", *(cell(line[column]) for column in COLUMNS), "", sep="|")
    for goal in result["goals"]:
        verdict = "" if goal["goal"] is None else f", goal {goal['goal']}: {'met' if goal['met'] else 'not met'}"
        print(f"{goal['what']}: {cell(goal['found'])} [{cell(goal['least'])} - {cell(goal['most'])}]{verdict}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
