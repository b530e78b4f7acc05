"""How long does one training update take, and its parts, and one act, next to other world models in the same run?

    python benchmarks/update.py --kaixhin ../PlaNet --threads 2 --out update.json

At the paper's sizes, and at those of the preset `cpu`. First, at the paper's, our model takes the weights of Kaixhin's
port, both the same noise, and loss and gradients have to agree. Then everybody takes turns: an update (forward, loss,
backward, clipping, Adam), encoder, decoder and observe apart (forward and backward), and acting (filter one frame, and
plan from it). Each round gives one ratio theirs / ours, and one share of what the machine can do, which is a large
product of float32 matrices in the same round. Memory: a fresh process for each variant, the peak of one call above what
was there just before it. Without --kaixhin, or without TorchRL, those are left out.
"""

import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import warnings
from argparse import SUPPRESS, ArgumentParser, Namespace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from planners.measure import Job, Watch, peak_memory, seconds
from torch.utils.flop_counter import FlopCounterMode
from updates import peers
from updates.problem import QUICK, Jobs, Problem, acting, ours

QUESTIONS = ("update", "encoder", "decoder", "observe", "acting")
SIZES = ("paper", "cpu")
GOALS = {("paper", "update", "times_faster"): 2.0, ("paper", "update", "memory_share"): 1.0}
COLUMNS = ["sizes", "question", "variant", "seconds", "least", "most", "times_faster", "least_faster", "most_faster"]
COLUMNS += ["gflop", "ceiling_share", "memory_mib", "memory_share"]
TOLERANCE = 1e-4
CEILING = 2048  # rows and columns of the product
HOW_TO_GET = {
    "Kaixhin": "git clone https://github.com/Kaixhin/PlaNet ../PlaNet, then --kaixhin ../PlaNet",
    "TorchRL": "pip install -e '.[bench]'",
}


def build(args: Namespace, name: str) -> dict[str, Jobs]:
    """Everybody's jobs at one size, by variant."""
    problem = Problem(name, args.device, **changes_of(args))
    variants: dict[str, Jobs] = {"ours": ours(problem)}
    if not args.no_compile:
        variants["ours compiled"] = {"acting": acting(problem, is_compiled=True)}
    if args.device.startswith("cuda"):
        variants["ours bf16"] = ours(problem, autocast=torch.bfloat16)
        if not args.no_compile:
            variants["ours compiled"] |= ours(problem, is_compiled=True)
            variants["ours bf16 compiled"] = ours(problem, autocast=torch.bfloat16, is_compiled=True)
    if args.kaixhin:
        variants["Kaixhin"] = peers.Kaixhin(problem, args.kaixhin).jobs()
    if not args.no_torchrl and importlib.util.find_spec("torchrl") is not None:
        variants["TorchRL"] = peers.torchrl(problem)
    return variants


def differences(args: Namespace, dtype: torch.dtype, **changes: Any) -> dict[str, float]:
    """Loss and gradients of ours and Kaixhin's: the norm of the difference, relative to that of theirs.

    The gradients in float64 alone: in float32 a unit that is zero but for rounding passes its relu on one side only,
    which says nothing about who is right.
    """
    torch.set_default_dtype(dtype)
    problem = Problem("paper", args.device, **{**changes_of(args), **changes})
    port = peers.Kaixhin(problem, args.kaixhin)
    port.transplant()
    noise = problem.noise()
    with torch.set_grad_enabled(dtype == torch.float64):
        # No free nats: a divergence below them would have no gradient to compare.
        with Watch([draw for row in zip(*noise, strict=True) for draw in row]):
            theirs = port.loss(free_nats=0.0)
        mine = problem.loss(noise=noise, free_nats=0.0)
    both: dict[str, tuple[Any, Any]] = {"loss": (mine, theirs)}
    if mine.requires_grad:
        torch.autograd.backward([mine, theirs])
        for name, grad in port.gradients().items():
            both[f"gradient of {name}"] = problem.model.get_parameter(name).grad, grad
    kind = str(dtype).removeprefix("torch.")
    return {f"{name}, {kind}": ((one - other).norm() / other.norm()).item() for name, (one, other) in both.items()}


def changes_of(args: Namespace) -> dict[str, Any]:
    """What is other than in the preset."""
    return QUICK if args.quick else {}


def ceiling(device: str) -> Job:
    """The product that shows what the machine can do, into memory that is there already."""
    left, right, out = (torch.randn(CEILING, CEILING, device=device) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)


def count(job: Job) -> int:
    """Floating-point operations in products and convolutions of one call."""
    also = {torch.ops.aten.addmm_: lambda _, left, right, **settings: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=also) as counter:
        job()
    return int(counter.get_total_flops())


def take_turns(jobs: dict[str, Job], args: Namespace) -> dict[str, list[float]]:
    """Seconds of each in each round; every round calls all of them in order, and the warm-up isn't counted."""
    device = torch.device(args.device)
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(args.warmup + args.rounds):
        for name, job in jobs.items():
            found[name].append(seconds(job, device))
    return {name: times[args.warmup :] for name, times in found.items()}


def middle(values: list[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return statistics.median(values), min(values), max(values)


def summarise(
    name: str, question: str, times: dict[str, list[float]], flops: dict[str, int], memory: dict[str, int]
) -> list[dict[str, Any]]:
    """One row per variant: seconds, theirs / ours round by round, the share of the ceiling, and the memory."""
    rows = []
    product = 2 * CEILING**3
    for variant in (each for each in times if each != "ceiling"):
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"sizes": name, "question": question, "variant": variant}
        row["seconds"], row["least"], row["most"] = middle(times[variant])
        if variant != "ours":
            ratios = [their / our for their, our in zip(times[variant], times["ours"], strict=True)]
            row["times_faster"], row["least_faster"], row["most_faster"] = middle(ratios)
        if variant in flops:
            row["gflop"] = flops[variant] / 1e9
            pairs = zip(times[variant], times["ceiling"], strict=True)
            row["ceiling_share"] = statistics.median(flops[variant] / one / (product / other) for one, other in pairs)
        if variant in memory:
            row["memory_mib"] = memory[variant] / 2**20
            row["memory_share"] = memory["ours"] / max(1, memory[variant])
        rows.append(row)
    return rows


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals, beside Kaixhin's update at the paper's sizes: how much faster we are, and our share of its memory."""
    found = []
    for row in (each for each in rows if each["variant"] == "Kaixhin"):
        for column, sign in (("times_faster", ">="), ("memory_share", "<=")):
            goal, value = GOALS.get((row["sizes"], row["question"], column)), row[column]
            if goal is not None and value is not None:
                met = value >= goal if sign == ">=" else value <= goal
                what = f"{row['question']}, {row['sizes']}: {column}"
                found.append({"what": what, "found": value, "goal": f"{sign} {goal}", "met": met})
    return found


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
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device,
        "commit": subprocess.run(git, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown",
        **{name: installed[name] for name in ("torch", "torchrl", "tensordict") if name in installed},
        **{name: getattr(args, name) for name in ("rounds", "warmup", "quick")},
    }
    for file in ("models.py", "planner.py"):
        facts[f"Kaixhin's {file}"] = args.kaixhin and sha256((args.kaixhin / file).read_bytes()).hexdigest()
    for name in args.sizes:
        problem = Problem(name, "cpu", **changes_of(args))
        facts[f"sizes {name}"] = problem.preset.settings()
    return facts


def parse(argv: list[str] | None) -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0], epilog=(__doc__ or "").split("\n\n")[2])
    parser.add_argument("--kaixhin", type=Path, help="a checkout of Kaixhin/PlaNet")
    parser.add_argument("--no-torchrl", action="store_true", help="leave TorchRL out where it is installed")
    parser.add_argument("--no-compile", action="store_true", help="leave what is compiled out")
    parser.add_argument("--no-memory", action="store_true", help="seconds only; memory takes Linux or CUDA")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="presets")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), help="questions")
    parser.add_argument("--quick", action="store_true", help="tiny batches and plans: shows that everything runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2, help="rounds not counted")
    parser.add_argument("--out", type=Path, help="a JSON file for all of it")
    parser.add_argument("--worker", help=SUPPRESS)
    args = parser.parse_args(argv)
    for file in ("models.py", "planner.py"):
        if args.kaixhin and not (args.kaixhin / file).is_file():
            parser.error(f"--kaixhin must be a checkout of Kaixhin/PlaNet, got {args.kaixhin}, which has no {file}")
    if min(args.threads, args.rounds, args.warmup + 1) < 1:
        got = f"{args.threads}, {args.rounds}, {args.warmup}"
        parser.error(f"--threads and --rounds must be at least 1 and --warmup at least 0, got {got}")
    return args


def work(args: Namespace) -> Any:
    """What a fresh process is asked for: the check, or the peak memory of one variant, the first call not counted."""
    if args.worker == "check":
        return {**differences(args, torch.float32), **differences(args, torch.float64, window=2)}
    name, question, variant = args.worker.split("/")
    job = build(args, name)[variant][question]
    job()
    if not args.device.startswith("cuda"):
        return peak_memory(job)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    job()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def show(value: Any) -> str:
    """A number as the table shows it; nothing for None."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def main(argv: list[str] | None = None) -> None:
    """Check, measure, and print a table."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", module="torchrl|tensordict|torch.jit")  # they have their own to say
    if args.worker:
        print(json.dumps(work(args)))
        return

    def ask(task: str) -> Any:
        command = [sys.executable, __file__, *argv, "--worker", task]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    result: dict[str, Any] = {"facts": describe(args), "rows": []}
    print(*(f"{name}: {value}" for name, value in result["facts"].items()), sep="\n")
    if args.kaixhin:
        result["differences"] = ask("check")
        print(f"largest relative difference from Kaixhin's: {max(result['differences'].values()):.2g}")
        if not all(value < TOLERANCE for value in result["differences"].values()):
            print(json.dumps(result["differences"], indent=1))
            raise SystemExit(f"the two sides do not compute the same: a difference is not below {TOLERANCE}")
    top = ceiling(args.device)
    print("", *COLUMNS, "\n" + "|---" * len(COLUMNS), "", sep="|")
    for name in args.sizes:
        variants = build(args, name)
        result["left out"] = {peer: how for peer, how in HOW_TO_GET.items() if peer not in variants}
        for question in (each for each in QUESTIONS if each in args.only):
            jobs = {variant: each[question] for variant, each in variants.items() if question in each}
            times = take_turns({**jobs, "ceiling": top}, args)
            flops = {variant: count(job) for variant, job in jobs.items() if "compiled" not in variant}
            memory = {} if args.no_memory else {variant: ask(f"{name}/{question}/{variant}") for variant in jobs}
            for row in summarise(name, question, times, flops, memory):
                result["rows"].append(row)
                print("", *(show(row[column]) for column in COLUMNS), "", sep="|", flush=True)
            result["goals"] = judge(result["rows"])
            result["facts"]["load at the end"] = os.getloadavg()[0]
            if args.out:  # after each question, so that a run which is stopped leaves what it found
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(result, indent=1))
    for peer, how in result["left out"].items():
        print(f"left out: {peer}; to get it: {how}")
    for goal in result["goals"]:
        met = "met" if goal["met"] else "not met"
        print(f"{goal['what']}: {show(goal['found'])}, goal {goal['goal']}: {met}")


if __name__ == "__main__":
    main()
