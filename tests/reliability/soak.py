"""A million steps of collection and sampling: does anything grow, and does a worker that is killed change anything?

    python tests/reliability/soak.py --out soak.json

The first part collects from environments in worker processes, and samples from a replay that is full before the first
step. From the end of the first tenth on, the resident memory of this process and of the workers may not grow by more
than 2%, and open file handles not at all; the median step of the last tenth may take 25% longer than that of the first.
Other programs on the machine spoil times. So where the processor time of a step, of all processes together, has not
grown by as much, a longer step is told but breaks nothing.

The second part collects twice from the same seeds with a small agent, whose noise comes from one generator, the second
time with a worker killed (SIGKILL) every so many steps. The episodes must be equal bit for bit, and the only trace one
warning for each kill.

All of it is read from /proc: Linux only.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

import planet_lib as pl
from planet_lib.data import Policy, random_policy, run_episodes
from planet_lib.envs import make_vector_env
from planet_lib.envs.standard_vector import StandardVectorEnv

MARKS = 100  # how often memory and handles are read on the way
MEMORY, SLOWER = 0.02, 0.25  # what may be added to them
LENGTH = 10  # of the windows that are sampled
PAGE = os.sysconf("SC_PAGE_SIZE")


def main(argv: list[str] | None = None) -> int:
    """Run both parts, print and write what they found, and return 1 where a bound is broken."""
    args = parsed(argv)
    torch.set_num_threads(1)
    report: dict[str, Any] = {"settings": vars(args), "cores": os.cpu_count(), "load_before": os.getloadavg()}
    parts = {"soak": (args.steps, soak), "kills": (args.kill_steps, kills)}
    for name, (steps, part) in parts.items():
        if steps:
            start = time.perf_counter()
            report[name] = part(args)
            report[name]["seconds"] = round(time.perf_counter() - start, 1)
            print(f"{name}: {json.dumps(report[name], indent=2)}", flush=True)
    report["load_after"] = os.getloadavg()
    report["broken"] = [line for name in parts for line in report.get(name, {}).get("broken", [])]
    if args.out:
        Path(args.out).write_text(json.dumps(report, indent=2) + "\n")
    for line in report["broken"]:
        print(f"BROKEN: {line}")
    if not report["broken"]:
        print("every bound holds")
    return int(bool(report["broken"]))


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the first part, of all environments; 0: none")
    parser.add_argument("--kill-steps", type=int, default=40_000, help="of the second part, twice; 0: none")
    parser.add_argument("--kill-every", type=int, default=1000, help="steps between two kills")
    parser.add_argument("--env", default="gym:Pendulum-v1")
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--policy", choices=["agent", "random"], default="random", help="of the first part")
    parser.add_argument("--capacity", type=int, default=100_000, help="rows of the replay")
    parser.add_argument("--sample-every", type=int, default=4, help="steps of all environments between two batches")
    parser.add_argument("--slower", type=float, default=SLOWER, help="how much longer the last steps may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a file for the figures, as JSON")
    return parser.parse_args(argv)


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Collect and sample, and return how memory, handles and times went."""
    with closing(make_vector_env(args.env, args.num_envs, obs="state")) as envs:
        replay = full_replay(envs, args.capacity, args.seed)
        act = make_policy(envs, args.policy, args.seed)
        watch = Watch(args.steps, args.num_envs)

        def policy(obs: Any, is_first: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
            watch.tick()
            if watch.calls % args.sample_every == 0:
                replay.sample(16, LENGTH)
            return act(obs, is_first, state)

        for seed in itertools.count(args.seed, args.num_envs):
            if watch.steps >= args.steps:
                break
            seeds = range(seed, seed + args.num_envs)
            run_episodes(
                envs, policy, seeds=seeds, on_step=watch.step, on_episode=lambda _, episode: replay.add(episode)
            )
        return watch.report(args.slower)


def kills(args: argparse.Namespace) -> dict[str, Any]:
    """Collect twice, with kills and without, and return whether anything else than the warnings tells them apart."""
    runs, handles = {}, {}
    for name, every in {"undisturbed": None, "killed": args.kill_every}.items():
        with closing(make_vector_env(args.env, args.num_envs, obs="state")) as envs:
            killer = Killer(every, args.kill_steps, args.seed)
            policy = make_policy(envs, "agent", args.seed)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                runs[name] = list(digests(envs, policy, args.kill_steps, args.seed, killer.step))
        handles[name] = open_handles()  # the first workers of a program leave one of multiprocessing's own
    broken = []
    different = sum(one != other for one, other in zip(runs["undisturbed"], runs["killed"], strict=True))
    if different:
        broken.append(f"{different} of {len(runs['killed'])} episodes differ from those that nothing disturbed")
    strange = [str(each.message) for each in caught if "has a new worker" not in str(each.message)]
    if strange or len(caught) != killer.killed:
        broken.append(f"{killer.killed} kills gave {len(caught)} warnings, and others: {strange}")
    if handles["killed"] != handles["undisturbed"]:
        broken.append(f"open handles went from {handles['undisturbed']} to {handles['killed']}")
    return {
        "kills": killer.killed,
        "warnings": len(caught),
        "episodes": len(runs["killed"]),
        "episodes_that_differ": different,
        "handles": handles,
        "broken": broken,
    }


def digests(
    envs: StandardVectorEnv, policy: Policy, steps: int, first_seed: int, on_step: Callable[[int], object]
) -> Iterator[str]:
    """Collect at least so many steps, and yield a digest of all that is in each episode."""
    done = 0
    for seed in itertools.count(first_seed, envs.num_envs):
        if done >= steps:
            return
        for episode in run_episodes(envs, policy, seeds=range(seed, seed + envs.num_envs), on_step=on_step):
            done += len(episode.reward) - 1
            yield hashlib.sha256(b"".join(np.ascontiguousarray(field).tobytes() for field in episode)).hexdigest()


class Killer:
    """Kills one worker every so many steps, but not after the last, where nobody would notice; None never does."""

    def __init__(self, every: int | None, num_steps: int, seed: int) -> None:
        self._every, self._num_steps, self._random = every, num_steps, np.random.default_rng(seed)
        self._steps = self.killed = 0

    def step(self, _: int) -> None:
        """Count a step, after which a worker may have to die."""
        self._steps += 1
        if self._every is not None and self._steps % self._every == 0 and self._steps < self._num_steps:
            pids = worker_pids()
            os.kill(pids[int(self._random.integers(len(pids)))], signal.SIGKILL)
            self.killed += 1


class Watch:
    """Reads memory, handles and processor time a hundred times on the way, and the clock at each call of the policy."""

    def __init__(self, num_steps: int, num_envs: int) -> None:
        self.steps = self.calls = 0
        self._num_steps = num_steps
        self._every = max(1, num_steps // MARKS)
        # Written once, so that they are resident from the beginning. The last episodes may go on past the last step.
        self._times = np.full(2 * num_steps // num_envs + 10_000, np.nan)
        self._marks = np.full((MARKS + 1, 4), np.nan)
        self._mark()

    def tick(self) -> None:
        """Note the time at which the policy is called."""
        self._times[self.calls] = time.perf_counter()
        self.calls += 1

    def step(self, _: int) -> None:
        """Count a step of one environment."""
        self.steps += 1
        if self.steps % self._every == 0 and self.steps <= self._num_steps:
            self._mark()

    def _mark(self) -> None:
        """Read memory, handles and processor time."""
        own, workers = os.getpid(), worker_pids()
        self._marks[min(MARKS, self.steps // self._every)] = (
            resident(own) / 2**20,
            sum(resident(pid) for pid in workers) / 2**20,
            open_handles(),
            sum(processor_time(pid) for pid in [own, *workers]),
        )

    def report(self, slower: float) -> dict[str, Any]:
        """Return the figures, and which of them break a bound."""
        broken = []
        found: dict[str, Any] = {"steps": self.steps, "calls": self.calls}
        for column, name in enumerate(["this process", "the workers"]):
            values = self._marks[:, column]
            growth = float(values[MARKS // 10 :].max() / values[MARKS // 10] - 1)
            found[f"memory of {name}"] = {
                "MiB at 0, 10, 20, ... 100%": values[:: MARKS // 10].round(1).tolist(),
                "growth after the first tenth": round(growth, 4),
            }
            if not growth <= MEMORY:
                broken.append(f"the memory of {name} grew by {growth:.1%} after the first tenth, allowed {MEMORY:.0%}")
        handles = self._marks[MARKS // 10 :, 2].astype(int)
        found["handles"] = {"after the first tenth": int(handles[0]), "at most": int(handles.max())}
        if handles.max() > handles[0]:
            broken.append(f"open handles went from {handles[0]} to {handles.max()}")
        tenth = self.calls // 10
        times = 1e3 * np.diff(self._times[: self.calls])
        clock = [float(np.median(part)) for part in (times[:tenth], times[-tenth:])]
        work = np.diff(self._marks[:: MARKS // 10, 3])[[0, -1]] / tenth * 1e3
        found["median step, ms, first and last tenth"] = np.round(clock, 3).tolist()
        found["processor time of a step, ms, first and last tenth"] = work.round(3).tolist()
        ratio = found["step, last tenth to first"] = round(clock[1] / clock[0], 3)
        if ratio > 1 + slower and work[1] > (1 + slower) * work[0]:
            broken.append(f"the median step of the last tenth took {ratio} times that of the first")
        return {**found, "broken": broken}


def full_replay(envs: StandardVectorEnv, capacity: int, seed: int) -> pl.SequenceReplay:
    """Return a replay that is full."""
    (size,), (action_dim,) = envs.single_observation_space.shape or (), envs.single_action_space.shape or ()
    replay = pl.SequenceReplay(capacity, obs_shape=(size,), action_dim=action_dim, seed=seed)
    random = np.random.default_rng(seed)
    rows = 200
    is_last = np.arange(rows) == rows - 1
    for _ in range(-(-capacity // rows) + 1):
        action = random.uniform(-1, 1, (rows, action_dim)).astype(np.float32)
        action[0] = 0
        replay.add(
            pl.Episode(
                obs=random.standard_normal((rows, size), np.float32),
                action=action,
                reward=np.where(np.arange(rows) > 0, 1, 0).astype(np.float32),
                is_first=np.arange(rows) == 0,
                terminated=np.zeros(rows, np.bool_),
                truncated=is_last,
            )
        )
    return replay


def make_policy(envs: StandardVectorEnv, kind: str, seed: int) -> Policy:
    """Return a small agent with noise from torch's own generator, or random actions."""
    (size,), (action_dim,) = envs.single_observation_space.shape or (), envs.single_action_space.shape or ()
    torch.manual_seed(seed)
    if kind == "random":
        return random_policy(action_dim, torch.default_generator)
    encoder = pl.VectorEncoder(size, embed_dim=8)
    cell = pl.RSSMCell(action_dim=action_dim, embed_dim=8, deter_dim=8, stoch_dim=4, hidden_dim=8)
    reward = pl.RewardHead(cell.feature_dim)
    model = pl.WorldModel(encoder, cell, pl.Decoder(cell.feature_dim, (size,)), reward)
    planner = pl.CEMPlanner(
        pl.LatentDynamics(model),
        -1.0,
        1.0,
        action_dim=action_dim,
        horizon=2,
        num_candidates=8,
        num_elites=2,
        num_iterations=2,
    )
    return pl.PlanningAgent(model, planner).policy(explore=True)


def worker_pids() -> list[int]:
    """Return the workers of this process, in the order of their rows."""
    workers = [each for each in multiprocessing.active_children() if each.name.startswith("environment ")]
    return [each.pid for each in sorted(workers, key=lambda each: int(each.name.split()[1])) if each.pid is not None]


def resident(pid: int) -> int:
    """Return the resident bytes of a process, 0 where it has ended."""
    try:
        return PAGE * int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0


def processor_time(pid: int) -> float:
    """Return the seconds that a process has used, 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_handles() -> int:
    """Return the open file handles of this process."""
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    sys.exit(main())
