"""How well do planners act when their dynamics are the true simulator?

    python benchmarks/true_simulator.py sweep paper --out results.csv     # the paper's row, at its size where it can be
    python benchmarks/true_simulator.py sweep budget --out results.csv    # every planner at a ladder of budgets
    python benchmarks/true_simulator.py run --task cheetah-run --planner icem --rollouts 500 --set noise_beta=3
    python benchmarks/true_simulator.py table results.csv
    python benchmarks/true_simulator.py plot results.csv --png results.png

Episodes of 1000 environment steps without exploration noise; every decision is planned on MuJoCo itself, from the state
that the environment is in. Seed s is `env.reset(seed=s)` and the planner's generator. Each finished episode is one row
of --out, on the disk before the next begins. Rows that exist are not run again, so a killed run loses at most the
episode that was being played: give the same command once more.

Budgets are rollouts per decision, over all iterations. Every planner gets the most candidates per iteration that keep
within them, with its own number of iterations and a tenth of the candidates as elites (`true_simulator_episodes.fit`).
"""

import argparse
import functools
import importlib.metadata
import itertools
import math
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from true_simulator_episodes import PLANNERS, Entry, change, describe, elites_for, fit, has_elites, play
from true_simulator_report import PAPER, append, draw, key, read, tables

from planet_lib.envs import make_env
from planet_lib.planning.simulators import MuJoCoDynamics

CHEAP, DEAR = tuple(PAPER)[:4], tuple(PAPER)[4:]  # in simulated steps


class Block(NamedTuple):
    """Part of a sweep: every combination of these."""

    tasks: Sequence[str]
    planners: Sequence[str]
    rollouts: Sequence[int]
    seeds: Sequence[int]


SWEEPS = {
    "paper": (Block(CHEAP, ["cem"], [10_000], range(3)), Block(DEAR, ["cem"], [2_000], range(3))),
    "budget": (
        Block(tuple(PAPER), tuple(PLANNERS), [100, 200, 500, 1000, 2000], range(3)),
        Block(CHEAP, ["cem"], [4000], range(3)),
    ),
}
# What sweeps change of the planners' defaults: found in parts of episodes with seeds 0 and 1, at 200 and 500 rollouts
# per decision. A wide first search mattered most.
SETTINGS = {
    "icem": ["initial_std=1.0"],
    "mppi": ["noise_std=1.0", "temperature=0.2", "noise_beta=2.0", "adapt_std=true"],
}


class Watch:
    """Says at least once a minute how far a run is, and estimates how long the rest takes."""

    def __init__(self, entries: Sequence[Entry], every: float = 40.0) -> None:
        self.waiting = {key(entry.cells()): (entry.task, entry.physics_steps) for entry in entries}
        self.every, self.began, self.told = every, time.perf_counter(), -math.inf
        self.rates: dict[str, float] = {}  # physics steps per second, of the task's last episode

    def minutes(self) -> float:
        """Return the minutes since the start."""
        return (time.perf_counter() - self.began) / 60

    def estimate(self, task: str, physics_steps: float) -> float:
        """Return the minutes that so many steps take; without any measurement, 0."""
        rate = self.rates.get(task) or (sum(self.rates.values()) / len(self.rates) if self.rates else math.inf)
        return physics_steps / rate / 60

    def drop(self, entry: Entry) -> None:
        """Take the entry from those that wait."""
        self.waiting.pop(key(entry.cells()), None)

    def follow(self, entry: Entry) -> Callable[[float, float], None]:
        """Take the entry from those that wait, and return what `play` tells its progress."""
        self.drop(entry)
        steps, start = entry.physics_steps, time.perf_counter()

        def tell(share: float, total: float) -> None:
            self.rates[entry.task] = share * steps / max(time.perf_counter() - start, 1e-9)
            if time.perf_counter() - self.told < self.every:
                return
            self.told = time.perf_counter()
            left = self.estimate(entry.task, (1 - share) * steps)
            rest = left + sum(self.estimate(*item) for item in self.waiting.values())
            print(
                f"  {describe(entry)}: {share:.0%}, return {total:.1f}, {self.rates[entry.task] / 1000:.0f}k steps/s, "
                f"{left:.1f} min left; {rest:.0f} min for all {len(self.waiting) + 1}",
                flush=True,
            )

        return tell


@functools.cache
def versions() -> dict[str, str]:
    """Return the commit and the versions that the results depend on."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(git, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown"
    return {"commit": commit, **{name: importlib.metadata.version(name) for name in ("mujoco", "dm_control", "torch")}}


def run(entries: Sequence[Entry], out: Path, *, threads: int, max_minutes: float) -> None:
    """Play every entry that `out` lacks, in this order, and append a row for each."""
    torch.set_num_threads(1)  # the planner's own work is small; the threads are the simulator's
    there = read(out) if out.exists() else {}
    waiting = [entry for entry in entries if key(entry.cells()) not in there]
    print(f"{len(waiting)} episodes to play, {len(entries) - len(waiting)} are in {out} already", flush=True)
    watch, skipped = Watch(waiting), 0
    for entry in waiting:
        # Read anew, since another process may be working on the same file.
        if key(entry.cells()) in (read(out) if out.exists() else {}):
            continue
        if watch.minutes() + watch.estimate(entry.task, entry.physics_steps) > max_minutes:
            watch.drop(entry)
            skipped += 1
            continue
        env = make_env(f"dmc:{entry.task}", obs="state")
        try:
            dynamics = MuJoCoDynamics.from_env(env, num_threads=threads)
            results = play(entry, env, dynamics, watch.follow(entry))
        finally:
            env.close()
        facts = {"repeat": env.action_repeat, "threads": threads, "date": datetime.now(UTC).isoformat("T", "seconds")}
        append(out, {**entry.cells(), **results, **facts, **versions()})
        print(f"{describe(entry)}: return {results['return']:.1f} in {results['seconds'] / 60:.1f} min", flush=True)
    if skipped:
        print(f"{skipped} episodes left, which would not end within {max_minutes:g} minutes: give the command again")


def plan_sweep(args: argparse.Namespace) -> list[Entry]:
    """Return the entries of a named sweep that the flags leave, those that simulate least first."""
    entries = []
    for block in SWEEPS[args.name]:
        for values in itertools.product(block.tasks, block.planners, block.rollouts, block.seeds):
            task, planner, rollouts, seed = values
            wanted = task in args.task and planner in args.planner and (args.seed is None or seed in args.seed)
            if wanted and rollouts <= args.max_rollouts:
                settings = change(planner, SETTINGS.get(planner, ()))
                blank = Entry(task, planner, 1, 1, None, 12, settings, 1000, seed)
                entries.append(fit(blank, rollouts))
    return sorted(entries, key=lambda entry: (entry.seed if args.by_seed else 0, entry.physics_steps, entry.seed))


def plan_run(args: argparse.Namespace) -> list[Entry]:
    """Return the entries that the flags of `run` describe."""
    sizes = (args.candidates, args.iterations, args.elites)
    if args.rollouts is not None and any(size is not None for size in sizes):
        raise ValueError("--rollouts chooses the sizes itself: leave out --candidates, --iterations and --elites")
    entries = []
    seeds = range(args.seed, args.seed + args.episodes)
    for task, planner, seed in itertools.product(args.task, args.planner, seeds):
        if args.elites is not None and not has_elites(planner):
            raise ValueError(f"--elites must be left out for {planner}, which has none, got {args.elites}")
        candidates, iterations = args.candidates or 1000, args.iterations or 10
        elites = args.elites or elites_for(planner, candidates)
        settings = change(planner, args.set)
        entry = Entry(task, planner, candidates, iterations, elites, args.horizon, settings, args.env_steps, seed)
        entries.append(entry if args.rollouts is None else fit(entry, args.rollouts))
    return entries


def positive(text: str) -> int:
    """Read a count from the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and what it read."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=summary, epilog=rest, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="episodes of chosen planners and sizes; small ones to try settings")
    many = commands.add_parser("sweep", help="the episodes of a named list, cheapest first")
    for command in (one, many):
        command.add_argument("--out", type=Path, default=Path("true-simulator.csv"), help="(%(default)s)")
        command.add_argument("--threads", type=positive, default=os.cpu_count() or 1, help="of MuJoCo (%(default)s)")
        command.add_argument("--max-minutes", type=float, default=math.inf, help="begin nothing that would end later")
    some: dict[str, Any] = {"nargs": "+", "choices": tuple(PAPER), "metavar": "TASK"}
    one.add_argument("--task", required=True, help=f"of {', '.join(PAPER)}", **some)
    many.add_argument("--task", default=tuple(PAPER), help="these only", **some)
    some |= {"choices": tuple(PLANNERS), "metavar": "PLANNER"}
    one.add_argument("--planner", default=["cem"], help=f"of {', '.join(PLANNERS)} (cem)", **some)
    many.add_argument("--planner", default=tuple(PLANNERS), help="these only", **some)
    one.add_argument("--candidates", type=positive, help="per iteration (1000)")
    one.add_argument("--iterations", type=positive, help="(10)")
    one.add_argument("--elites", type=positive, help="(a tenth of the candidates)")
    one.add_argument("--rollouts", type=positive, help="per decision, instead of these three: sizes as in a sweep")
    one.add_argument("--horizon", type=positive, default=12, help="(%(default)s)")
    one.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the planner")
    one.add_argument("--env-steps", type=positive, default=1000, help="below 1000 to try settings; reports skip those")
    one.add_argument("--seed", type=int, default=0, help="of the first episode (%(default)s)")
    one.add_argument("--episodes", type=positive, default=1, help="with seeds counted up from there (%(default)s)")
    many.add_argument("name", choices=tuple(SWEEPS))
    many.add_argument("--seed", nargs="+", type=int, help="these only")
    many.add_argument("--max-rollouts", type=positive, default=10_000, help="per decision (%(default)s)")
    many.add_argument("--by-seed", action="store_true", help="everything with the first seed first")
    many.add_argument("--list", action="store_true", help="print what would be played, and play nothing")
    for name, text in (("table", "the tables, in Markdown"), ("plot", "the return against the simulated steps")):
        command = commands.add_parser(name, help=text)
        command.add_argument("csv", nargs="+", type=Path, help="what run and sweep wrote")
        if name == "table":
            command.add_argument("--share", type=float, default=1.0, help="of plain CEM's return to be reached (1)")
        else:
            command.add_argument("--png", type=Path, default=Path("true-simulator.png"), help="(%(default)s)")
    return parser, parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Play episodes, or report on those that were played."""
    parser, args = parse(argv)
    try:
        if args.command in ("run", "sweep"):
            entries = plan_run(args) if args.command == "run" else plan_sweep(args)
        else:
            rows = [row for path in args.csv for row in read(path).values()]
            if args.command == "table":
                print(tables(rows, share=args.share))
            else:
                draw(rows, args.png)
            return
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    if args.command == "sweep" and args.list:
        for entry in entries:
            print(f"{describe(entry)}: {entry.physics_steps / 1e6:.3g} million physics steps")
    else:
        run(entries, args.out, threads=args.threads, max_minutes=args.max_minutes)


if __name__ == "__main__":
    main()
