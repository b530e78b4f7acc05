"""How fast is an environment step with its 64x64 frame, beside dm_control's own, and how far off is the picture?

    python benchmarks/environments.py --out docs/results/environments/environments.json

The default is what the suite's users write: `suite.load`, then `step` and `physics.render(64, 64, camera_id=0)`. Beside
it: `make_env` in each quality, and its ray caster; one control step per step everywhere. Each side has a process of its
own, since drivers read some settings once per process. In each round all sides take the same random actions, one side
after the other, which gives one ratio default / side a round. The pictures are compared at the same moments of the same
random episodes. --picture draws the first of them, side by side (pillow).
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from planet_lib.envs import make_env, select_backend

Array = NDArray[Any]

TASKS = ("cartpole-swingup", "reacher-easy", "cheetah-run", "finger-spin", "ball_in_cup-catch", "walker-walk")
SIZE = (64, 64)
SIDES: dict[str, dict[str, Any]] = {
    "default": {},
    "tuned": {"quality": "tuned", "renderer": "gl"},
    "fast": {"quality": "fast", "renderer": "gl"},
    "suite": {"quality": "suite", "renderer": "gl"},
    "rays": {"renderer": "rays"},
}
# Of each task: times_faster at least, difference at most (of 255), milliseconds at most. And of tuned, on average:
GOALS: dict[str, dict[str, float]] = {
    "tuned": {"times_faster": 4.0, "difference": 0.6},
    "rays": {"ms": 12.0, "difference": 15.0},
}
EXCEPTIONS = {("rays", "reacher-easy", "difference"): 25.0}
AVERAGE_GOAL = 6.0
COLUMNS = (
    *("task", "side", "ms", "least", "most", "best"),
    *("times_faster", "least_faster", "most_faster", "best_faster", "difference", "worst"),
)


class Default:
    """dm_control as it comes."""

    def __init__(self, task: str) -> None:
        from dm_control import suite  # noqa: PLC0415 -- in the worker, after the choice of GL

        self._env = suite.load(*task.split("-", 1), task_kwargs={"random": 0})
        self.physics = self._env.physics
        self.action_dim = int(self._env.action_spec().shape[0])

    def reset(self, seed: int) -> None:
        """Start the episode that `make_env` starts with this seed."""
        self._env.task.random.seed(int(gymnasium.utils.seeding.np_random(seed)[0].integers(2**32)))
        self._env.reset()

    def step(self, action: Array) -> tuple[Array, bool]:
        """Return the frame [Y, X, 3] after a control step, and whether the episode is over."""
        ended = self._env.step(action).last()
        return self.physics.render(*SIZE, camera_id=0), ended


class Ours:
    """`make_env` with the settings of a side."""

    def __init__(self, task: str, settings: dict[str, Any]) -> None:
        self._env = make_env(f"dmc:{task}", image_size=SIZE, action_repeat=1, **settings)
        self.physics: Any = self._env.get_wrapper_attr("physics")
        self.action_dim = int(np.prod(self._env.action_space.shape or ()))

    def reset(self, seed: int) -> None:
        """Start an episode."""
        self._env.reset(seed=seed)

    def step(self, action: Array) -> tuple[Array, bool]:
        """Return the frame [Y, X, 3] after a control step, and whether the episode is over."""
        frame, _, terminated, truncated, _ = self._env.step(action)
        return np.asarray(frame).transpose(1, 2, 0), terminated or truncated


def measure_frames(side: Default | Ours, seed: int, count: int) -> list[float]:
    """Milliseconds of each of `count` steps with their frames, from a reset that isn't counted."""
    actions, milliseconds = random_actions(side, seed, count), []
    side.reset(seed)
    for action in actions:
        start = time.perf_counter()
        _, ended = side.step(action)
        milliseconds.append(1e3 * (time.perf_counter() - start))
        if ended:
            side.reset(seed)
    return milliseconds


def take_pictures(side: Default | Ours, seeds: Sequence[int], poses: int, every: int) -> tuple[Array, Array]:
    """Return where all shapes are [P, N] and the pictures [P, Y, X, 3], after each `every` steps of random episodes."""
    places, pictures = [], []
    for seed in seeds:
        side.reset(seed)
        for number, action in enumerate(random_actions(side, seed, poses * every), 1):
            picture, _ = side.step(action)
            if number % every == 0:
                places.append(np.array(side.physics.data.geom_xpos).ravel())
                pictures.append(np.array(picture))
    return np.stack(places), np.stack(pictures)


def random_actions(side: Default | Ours, seed: int, count: int) -> Array:
    """Return actions [count, A], the same for each side."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, side.action_dim)).astype(np.float32)


def work(connection: Connection, name: str, task: str) -> None:
    """Be one side of one task: answer each request, (function, its arguments), until there is None."""
    try:
        side = Default(task) if name == "default" else Ours(task, SIDES[name])
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0])
        return
    connection.send(None)
    while (request := connection.recv()) is not None:
        function, arguments = request
        connection.send(function(side, *arguments))


class Worker:
    """One side in a process of its own.

    Raises:
        RuntimeError: it cannot be made.
    """

    def __init__(self, name: str, task: str) -> None:
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, name, task), daemon=True)
        self._process.start()
        other.close()
        if problem := self._connection.recv():
            self.close()
            raise RuntimeError(problem)

    def ask(self, function: Any, *arguments: Any) -> Any:
        """Return what a function of the side and these arguments returns there."""
        self._connection.send((function, arguments))
        return self._connection.recv()

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._connection.send(None)
        self._process.join()


def compare(task: str, args: Namespace) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, Array]]:
    """Return the rows of a task, the sides that cannot be made with the reason, and the pictures by side."""
    workers: dict[str, Worker] = {}
    skipped: dict[str, str] = {}
    try:
        for name in ("default", *args.sides):
            try:
                workers[name] = Worker(name, task)
            except RuntimeError as error:
                if name == "default":
                    raise
                skipped[name] = str(error)
        seen = {
            name: worker.ask(take_pictures, range(args.episodes), args.poses, args.every)
            for name, worker in workers.items()
        }
        for name, (places, _) in seen.items():
            if not np.array_equal(places, seen["default"][0]):
                raise SystemExit(f"{task}: the sides are not at the same states, {name} differs from default")
        milliseconds: dict[str, list[list[float]]] = {name: [] for name in workers}
        for number in range(args.rounds):
            for name, worker in workers.items():
                milliseconds[name].append(worker.ask(measure_frames, args.episodes + number, args.frames))
    finally:
        for worker in workers.values():
            worker.close()
    pictures = {name: frames for name, (_, frames) in seen.items()}
    return summarise(task, milliseconds, pictures), skipped, pictures


def summarise(
    task: str, milliseconds: dict[str, list[list[float]]], pictures: dict[str, Array]
) -> list[dict[str, Any]]:
    """One row per side: its rounds' medians, its best frame, likewise default / side, and its pictures' distance."""
    rows = []
    medians = {name: [statistics.median(frames) for frames in rounds] for name, rounds in milliseconds.items()}
    best = {name: min(min(frames) for frames in rounds) for name, rounds in milliseconds.items()}
    for name, times in medians.items():
        ratios = [theirs / ours for theirs, ours in zip(medians["default"], times, strict=True)]
        off = np.abs(pictures[name].astype(float) - pictures["default"]).mean(axis=(1, 2, 3))
        values = [task, name, statistics.median(times), min(times), max(times), best[name]]
        values += [statistics.median(ratios), min(ratios), max(ratios), best["default"] / best[name]]
        values += [float(off.mean()), float(off.max())]
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def judge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hold the rows against the goals: each goal with the task that is furthest from it."""
    found = []
    for side, goals in GOALS.items():
        of_side = [row for row in rows if row["side"] == side]
        for name, limit in goals.items() if of_side else ():
            sign = 1 if name == "times_faster" else -1
            limits = {row["task"]: EXCEPTIONS.get((side, row["task"], name), limit) for row in of_side}
            last = min(of_side, key=lambda row: sign * (row[name] / limits[row["task"]]))
            goal = limits[last["task"]]
            met = sign * last[name] >= sign * goal
            words = f"{side}: {name} of each task {'>=' if sign > 0 else '<='} {goal:g}"
            found.append({"goal": words, "found": last[name], "task": last["task"], "met": met})
    factors = [row["times_faster"] for row in rows if row["side"] == "tuned"]
    if factors:
        mean = statistics.fmean(factors)
        words = f"tuned: times_faster on average >= {AVERAGE_GOAL:g}"
        found.append({"goal": words, "found": mean, "task": f"mean of {len(factors)}", "met": mean >= AVERAGE_GOAL})
    return found


def find_driver(side: Default | Ours) -> str:
    """Return what draws, as the driver calls itself."""
    side.reset(0)
    side.step(np.zeros(side.action_dim, np.float32))
    from OpenGL import GL  # type: ignore[import-untyped]  # noqa: PLC0415 -- it looks for a driver when imported

    name = GL.glGetString(GL.GL_RENDERER)
    return name.decode() if name else "unknown"


def describe(args: Namespace) -> dict[str, Any]:
    """What a reader needs to know of the machine and the software."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    backend = select_backend()  # inherited by the workers
    worker = Worker("default", args.tasks[0])
    driver = worker.ask(find_driver)
    worker.close()
    return {
        "cpu": info.partition("model name\t: ")[2].partition("\n")[0] or platform.machine(),
        "cores": f"{os.cpu_count()}, load {os.getloadavg()[0]:.1f} before the start",
        "GL": f"{backend}, {driver}",
        **{name: version(name) for name in ("dm_control", "mujoco", "gymnasium", "numpy")},
        "python": platform.python_version(),
        "commit": subprocess.run(git, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown",
        **{name: getattr(args, name) for name in ("rounds", "frames", "episodes", "poses", "every")},
    }


def draw(path: Path, pictures: dict[str, dict[str, Array]], scale: int = 2) -> None:
    """Draw the first picture of each task (rows) and side (columns, as in SIDES)."""
    from PIL import Image  # noqa: PLC0415 -- only for --picture

    rows = [np.concatenate([frames[0] for frames in sides.values()], 1) for sides in pictures.values()]
    image = np.concatenate(rows, 0).repeat(scale, 0).repeat(scale, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def main(argv: list[str] | None = None) -> None:
    """Measure each task, print the tables, and write them."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES)[1:], default=list(SIDES)[1:])
    parser.add_argument("--out", type=Path, help="a JSON file for all of it")
    parser.add_argument("--picture", type=Path, help="a PNG file for the first picture of each task and side")
    for name, number in {"rounds": 9, "frames": 20, "episodes": 2, "poses": 5, "every": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    result: dict[str, Any] = {"facts": describe(args), "rows": [], "skipped": {}}
    print(*(f"{name}: {value}" for name, value in result["facts"].items()), "", sep="\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|")
    pictures = {}
    for task in args.tasks:
        rows, skipped, pictures[task] = compare(task, args)
        result["rows"] += rows
        for row in rows:
            print("|", *(f"{x:.3g} |" if isinstance(x, float) else f"{x} |" for x in row.values()), flush=True)
        result["skipped"] |= {f"{side}, {task}": reason for side, reason in skipped.items()}
    result["goals"] = judge(result["rows"])
    print()
    for goal in result["goals"]:
        print(f"| {goal['goal']} | {goal['found']:.3g} | {goal['task']} | {'met' if goal['met'] else 'not met'} |")
    for which, reason in result["skipped"].items():
        print(f"not measured: {which}: {reason}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.picture:
        draw(args.picture, pictures)


if __name__ == "__main__":
    main()
