"""Does the agent learn? Summarise training runs as the table that docs/results shows, and keep their curves.

    python benchmarks/learning.py runs/NAME [runs/OTHER ...] --keep docs/results/cpu-preset

For each run: what a random policy earns in --random-episodes episodes of their own, the score that is asked for (the
run's --stop-at, or twice random), the first evaluation that has it, the best and the last, each with its place on the
clock. --keep copies metrics.csv and learning_curve.png.
"""

import argparse
import functools
import shutil
from pathlib import Path

import numpy as np

from planet_lib.data import random_policy, run_episode
from planet_lib.envs import make_env
from planet_lib.training import RunDirectory, read_metrics

COLUMNS = (
    "run",
    "seed",
    "random",
    "score",
    "first reached",
    "best evaluation",
    "last evaluation",
    "episodes",
    "updates",
)


def main() -> None:
    """Read the runs, print the table, copy what is to be kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--random-episodes", type=int, default=100, help="from which the random return is measured")
    parser.add_argument("--keep", type=Path, help="directory for the curves and CSVs")
    args = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for path in args.runs:
        run = RunDirectory.open(path)
        print("| " + " | ".join(summary(run, args.random_episodes)) + " |")
        if args.keep is not None:
            args.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(run.metrics_path, args.keep / f"{path.name}.csv")
            shutil.copy(run.learning_curve, args.keep / f"{path.name}.png")


@functools.cache
def random_return(env_name: str, action_repeat: int, episodes: int) -> float:
    """The mean return of uniformly random actions; nothing is drawn, since the policy doesn't look."""
    env = make_env(env_name, obs="state", action_repeat=action_repeat or None)
    policy = random_policy(int(np.prod(env.action_space.shape or ())), np.random.default_rng(0))
    returns = [run_episode(env, policy, seed=number).reward.sum() for number in range(episodes)]
    env.close()
    return float(np.mean(returns))


def summary(run: RunDirectory, random_episodes: int) -> list[str]:
    """The cells of one run."""
    settings, metrics = run.settings, read_metrics(run.metrics_path)
    random = random_return(settings["env"], settings["action_repeat"], random_episodes)
    evals = np.flatnonzero(metrics["kind"] == "eval")
    means, spreads = (metrics[column][evals].astype(float) for column in ("eval_mean", "eval_std"))
    minutes = metrics["seconds_total"][evals].astype(float) / 60

    def place(index: int) -> str:
        return f"{means[index]:.0f} ± {spreads[index]:.0f} at {minutes[index]:.0f} min"

    score = 2 * random if settings["stop_at"] is None else settings["stop_at"]
    reached = np.flatnonzero(means >= score)
    first = place(int(reached[0])) if len(reached) else "not reached"
    best, last = (place(int(np.argmax(means))), place(-1)) if len(means) else ("no evaluation", "no evaluation")
    counts = [str(int(float(metrics[column][-1]))) for column in ("episode", "updates")]
    return [run.path.name, str(settings["seed"]), f"{random:.0f}", f"{score:.0f}", first, best, last, *counts]


if __name__ == "__main__":
    main()
