"""Does the agent learn? Summarise training runs as the table that docs/results shows, and keep their curves.

    python benchmarks/learning.py runs/NAME [runs/OTHER ...] --keep docs/results/cartpole-balance

For each run: what a random policy earned (its seed episodes), each evaluation's place on the clock, the first
evaluation of at least twice the random return, the best and the last. --keep copies metrics.csv and learning_curve.png.
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from planet_lib.training import RunDirectory, read_metrics

COLUMNS = (
    "run",
    "seed",
    "random",
    "2x random first reached",
    "best evaluation",
    "last evaluation",
    "episodes",
    "updates",
)


def main() -> None:
    """Read the runs, print the table, copy what is to be kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--keep", type=Path, help="directory for the curves and CSVs")
    args = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for path in args.runs:
        run = RunDirectory.open(path)
        print("| " + " | ".join(summary(run.path.name, run.settings, read_metrics(run.metrics_path))) + " |")
        if args.keep is not None:
            args.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(run.metrics_path, args.keep / f"{path.name}.csv")
            shutil.copy(run.learning_curve, args.keep / f"{path.name}.png")


def summary(name: str, settings: Mapping[str, Any], metrics: Mapping[str, np.ndarray[Any, Any]]) -> list[str]:
    """The cells of one run."""
    seeds, evals = (np.flatnonzero(metrics["kind"] == kind) for kind in ("seed", "eval"))
    random = float(metrics["episode_return"][seeds].astype(float).mean())
    means, spreads = (metrics[column][evals].astype(float) for column in ("eval_mean", "eval_std"))
    minutes = metrics["seconds_total"][evals].astype(float) / 60

    def place(index: int) -> str:
        return f"{means[index]:.0f} ± {spreads[index]:.0f} at {minutes[index]:.0f} min"

    reached = np.flatnonzero(means >= 2 * random)
    first = place(int(reached[0])) if len(reached) else "not reached"
    best, last = (place(int(np.argmax(means))), place(-1)) if len(means) else ("no evaluation", "no evaluation")
    counts = [str(int(float(metrics[column][-1]))) for column in ("episode", "updates")]
    return [name, str(settings["seed"]), f"{random:.0f}", first, best, last, *counts]


if __name__ == "__main__":
    main()
