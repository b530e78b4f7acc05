"""How fast is one plan, next to other planners in the same run, over the same model with the same weights?

    python benchmarks/planner.py --kaixhin ../PlaNet --mbrl-python ../mbrl/bin/python --threads 2 --out planner.json

Every planner first has to make the same of the same noise. Then, for each number of states B planned for at once:
seconds, all taking turns after a warm-up, each round giving one ratio theirs / ours; and, in a fresh process for each,
memory (the peak of one plan above what was in use before it) and what one plan starts (operations, or launches where
something is compiled). The ceiling is the time of the plan's matrix products alone, in the same rounds: the eight of a
step with B * J rows (in front of the GRU, the GRU's two, the prior's two, the reward's three), H * I times, without
biases, into outputs that are there already; its ratio is our share of it. Peers that aren't there are left out, with a
line that says how to get them.
"""

import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from planners import peers
from planners.picture import draw
from planners.problem import QUICK, SIZES, Problem

from planet_lib.planning import CompiledPlanner

# What ours is held to at B = 1: on a processor with two quiet threads ratios of seconds, the least that will do.
GOALS = {"Kaixhin": 1.2, "TorchRL": 1.35, "ceiling": 0.8}
LAUNCH_GOAL = 0.5  # launches of ours compiled / operations that Kaixhin's dispatches, the most that will do
TOLERANCE = 1e-4
BENCH = "pip install -e '.[bench]'"
HOW_TO_GET = {
    "Kaixhin": "git clone https://github.com/Kaixhin/PlaNet ../PlaNet, then --kaixhin ../PlaNet",
    "TorchRL": BENCH,
    "mbrl-lib": "an environment of its own (docs/results/planner-speed.md), then --mbrl-python PATH",
    "pytorch-mppi": BENCH,
    "pytorch-mppi compiled": BENCH,
}
TIMES = ("seconds", "least", "most", "plans_per_s", "times_ours", "least_times", "most_times")
COLUMNS = ("batch", "planner", *TIMES, "memory_mib", "operations", "views", "launches", "kernels", "mode")
Side = peers.Planner | peers.MbrlWorker


def builders(args: Namespace) -> dict[str, Callable[[Problem], Side]]:
    """All that can take part here, in the order of their turns."""
    compiled = partial(peers.pytorch_mppi, is_compiled=True)
    has_torchrl, has_mppi = (importlib.util.find_spec(name) is not None for name in ("torchrl", "pytorch_mppi"))
    possible: dict[str, tuple[bool, Callable[[Problem], Side]]] = {
        "ours eager": (True, peers.ours),
        "ours compiled": (True, partial(peers.ours, wrap=CompiledPlanner)),
        "Kaixhin": (args.kaixhin is not None, partial(peers.kaixhin, checkout=args.kaixhin)),
        "TorchRL": (has_torchrl, peers.torchrl),
        "mbrl-lib": (args.mbrl_python is not None, partial(peers.MbrlWorker, python=args.mbrl_python)),
        "pytorch-mppi": (has_mppi, peers.pytorch_mppi),
        "pytorch-mppi compiled": (has_mppi, compiled),
        "ceiling": (True, peers.ceiling),
    }
    return {name: build for name, (is_here, build) in possible.items() if is_here and name in (args.only or possible)}


def differences(args: Namespace) -> dict[str, float]:
    """How far each planner's first iteration is from ours, given the same noise: the largest relative difference.

    Peers are compared by the worth of every candidate, as their own planner ranks it. Ours are compared by the plan's
    value, the mean of the best, since a compiled planner shows no more.
    """
    found = {}
    for batch_size in (1, 2):
        problem = Problem(Namespace(**{**vars(args), "num_iterations": 1}), batch_size)
        noise, dynamics = problem.noise()
        for name, build in builders(args).items():
            if name == "ceiling":
                continue
            side = build(problem)
            candidates = noise[:, :1].expand_as(noise) if getattr(side, "shares_candidates", False) else noise
            theirs, expected = side.returns(candidates, dynamics), problem.returns(candidates, dynamics)
            if name.startswith("ours"):
                expected = expected.topk(args.num_elites).values.mean(1)
            found[f"{name}, B={batch_size}"] = ((theirs - expected).abs().max() / expected.abs().max()).item()
            side.close()
    return found


def take_turns(sides: Mapping[str, Side], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each in each round; every round asks all of them in order, and the warm-up isn't counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(warmup + rounds):
        for name, side in sides.items():
            seconds[name].append(side.seconds())
    return {name: times[warmup:] for name, times in seconds.items()}


def summarise(batch: int, seconds: dict[str, list[float]], usage: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per planner: seconds, theirs / ours round by round (ours is the compiled one if there), and its usage."""
    rows = []
    reference = next((seconds[name] for name in ("ours compiled", "ours eager") if name in seconds), None)
    for name, times in seconds.items():
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"batch": batch, "planner": name}
        row |= {"seconds": statistics.median(times), "least": min(times), "most": max(times)}
        row["plans_per_s"] = batch / row["seconds"]
        if reference is not None:
            ratios = [their / our for their, our in zip(times, reference, strict=True)]
            row |= {"times_ours": statistics.median(ratios), "least_times": min(ratios), "most_times": max(ratios)}
        taken = dict(usage.get(name, {}))
        row["memory_mib"] = taken.pop("memory") / 2**20 if taken else None
        rows.append({**row, **taken})
    return rows


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals at B = 1 that can be judged: what was found, beside what it ought to be."""
    at_one = {row["planner"]: row for row in rows if row["batch"] == 1}
    if "ours compiled" not in at_one:
        return []
    found = []
    for name, least in GOALS.items():
        if name in at_one:
            ratio, low, high = (at_one[name][column] for column in ("times_ours", "least_times", "most_times"))
            what = f"seconds: {name} / ours compiled, B=1"
            goal, is_met = f">= {least}", ratio >= least
            found.append({"what": what, "found": ratio, "least": low, "most": high, "goal": goal, "met": is_met})
    launches, operations = at_one["ours compiled"]["launches"], at_one.get("Kaixhin", {}).get("operations")
    if launches and operations:
        computing = operations - at_one["Kaixhin"]["views"]
        empty = {"least": None, "most": None, "goal": None, "met": None}
        what = "launches: ours compiled / Kaixhin's operations"
        share = launches / operations
        judged = {"goal": f"<= {LAUNCH_GOAL}", "met": share <= LAUNCH_GOAL}
        found.append({"what": f"{what}, B=1", "found": share, **empty, **judged})
        found.append({"what": f"{what} that compute, B=1", "found": launches / computing, **empty})
    return found


def describe(args: Namespace) -> dict[str, Any]:
    """What a reader needs to know of the machine and of everybody's code."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    names = ("torch", "torchrl", "tensordict", "pytorch-mppi")
    installed = {dist.metadata["Name"].replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}
    sources = ("models.py", "planner.py") if args.kaixhin else ()
    return {
        "cpu": info.partition("model name\t: ")[2].partition("\n")[0] or "unknown",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load before the start": os.getloadavg()[0],
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device,
        "commit": subprocess.run(git, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown",
        **{name: installed[name] for name in names if name in installed},
        **{f"Kaixhin's {name}": sha256((args.kaixhin / name).read_bytes()).hexdigest() for name in sources},
        **{name: getattr(args, name) for name in ("batch", "rounds", "warmup", *SIZES)},
    }


def parse(argv: list[str]) -> Namespace:
    """Read the command line; --quick changes the defaults alone."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0], epilog=(__doc__ or "").split("\n\n")[2])
    parser.add_argument("--kaixhin", type=Path, help="a checkout of Kaixhin/PlaNet")
    parser.add_argument("--mbrl-python", help="the Python of an environment that has mbrl-lib")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64], help="states planned for at once")
    parser.add_argument("--rounds", type=int, nargs="+", default=[7], help="one number, or one for each --batch")
    parser.add_argument("--warmup", type=int, nargs="+", default=[3], help="rounds not counted, likewise")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="planners by their names in the table")
    parser.add_argument("--no-usage", action="store_true", help="seconds only; memory takes Linux or CUDA")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds, to see whether it runs")
    parser.add_argument("--out", type=Path, help="a JSON file for all of it")
    parser.add_argument("--plot", type=Path, help="a PNG file: seconds, memory and launches against B")
    parser.add_argument("--worker", help=SUPPRESS)
    for name, number in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=number)
    if "--quick" in argv:
        parser.set_defaults(**QUICK, batch=[1, 2], rounds=[2], warmup=[1])
    args = parser.parse_args(argv)
    for name in ("rounds", "warmup"):
        given = getattr(args, name)
        if len(given) not in (1, len(args.batch)):
            parser.error(f"--{name} must be one number or one for each of the {len(args.batch)} batches, got {given}")
        setattr(args, name, given * (len(args.batch) if len(given) == 1 else 1))
    if args.kaixhin and not (args.kaixhin / "planner.py").is_file():
        parser.error(f"--kaixhin must be a checkout of Kaixhin/PlaNet, got {args.kaixhin}, which has no planner.py")
    return args


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Check, measure, and print a table."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    torch.set_num_threads(args.threads)
    if args.worker:
        print(json.dumps(work(args)))
        return

    def ask(task: str) -> Any:  # a fresh process: what it uses, and teaches a compiler, is gone for what follows
        command = [sys.executable, __file__, *argv, "--worker", task]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    sides = builders(args)
    result: dict[str, Any] = {"facts": describe(args), "rows": []}
    result["left out"] = {
        name: how for name, how in HOW_TO_GET.items() if name not in sides and name in (args.only or HOW_TO_GET)
    }
    print(*(f"{name}: {value}" for name, value in result["facts"].items()), sep="\n")
    for name, how in result["left out"].items():
        print(f"left out: {name}; to get it: {how}")
    result["differences"] = ask("check")
    print("relative differences of the first iteration, given the same noise:", json.dumps(result["differences"]))
    if not all(value < TOLERANCE for value in result["differences"].values()):
        raise SystemExit(f"the planners do not compute the same: a difference is not below {TOLERANCE}")
    print("", *COLUMNS, "\n" + "|---" * len(COLUMNS), "", sep="|")
    for batch, rounds, warmup in zip(args.batch, args.rounds, args.warmup, strict=True):
        problem = Problem(args, batch)
        built = {name: build(problem) for name, build in sides.items()}
        seconds = take_turns(built, rounds, warmup)
        for side in built.values():
            side.close()
            if isinstance(side, peers.MbrlWorker):
                result["facts"]["mbrl"] = side.version
        del built
        usage = {} if args.no_usage else {name: ask(f"{batch}/{name}") for name in sides if name != "ceiling"}
        for row in summarise(batch, seconds, usage):
            result["rows"].append(row)
            print("", *(cell(row[column]) for column in COLUMNS), "", sep="|", flush=True)
    result["facts"]["load at the end"] = os.getloadavg()[0]
    result["goals"] = judge(result["rows"])
    for goal in result["goals"]:
        spread = "" if goal["least"] is None else f" [{cell(goal['least'])} - {cell(goal['most'])}]"
        verdict = "" if goal["goal"] is None else f", goal {goal['goal']}: {'met' if goal['met'] else 'not met'}"
        print(f"{goal['what']}: {cell(goal['found'])}{spread}{verdict}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1))
    if args.plot:
        draw(result["rows"], args.plot)


def cell(value: Any) -> str:
    """A number as the table shows it; nothing for None."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def work(args: Namespace) -> Any:
    """What a fresh process is asked for: the check, or the usage of one planner."""
    if args.worker == "check":
        return differences(args)
    batch, _, name = args.worker.partition("/")
    # Else the profiler would not see generated kernels.
    torch._inductor.config.cpp.enable_kernel_profile = True
    side = builders(args)[name](Problem(args, int(batch)))
    found = side.usage()
    side.close()
    return found


if __name__ == "__main__":
    main()
