"""Do worker processes give more frames per second than the same environments in one process?

    python benchmarks/vector.py --workers 1 2 4

All variants are made first, then take turns. A frame is one decision of one environment: its action repeat, and its
picture. Ratios are those of the same round, so that what else the machine does falls on both.
"""

import argparse
import os
import platform
import statistics
import time
from contextlib import ExitStack, closing

import numpy as np

import planet_lib as pl
from planet_lib.envs import make_vector_env
from planet_lib.envs.standard_vector import StandardVectorEnv


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--env", default="dmc:cheetah-run")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=50, help="of every environment, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with ExitStack() as stack:
        start = time.perf_counter()
        pairs = {}
        for count in args.workers:
            made = [make_vector_env(args.env, count, workers=apart) for apart in (False, True)]
            pairs[count] = [stack.enter_context(closing(envs)) for envs in made]
        print(f"{args.env}, planet_lib {pl.__version__}, {platform.machine()}, {os.cpu_count()} cores")
        print(f"all made in {time.perf_counter() - start:.1f} s; frames/s, median [range] of {args.rounds} rounds")
        print(f"{'':8s}{'one process':>24s}{'workers':>24s}{'ratio':>24s}")
        for count, (together, apart) in pairs.items():
            rows = [(frame_rate(together, args.steps), frame_rate(apart, args.steps)) for _ in range(args.rounds)]
            columns = [[row[0] for row in rows], [row[1] for row in rows], [row[1] / row[0] for row in rows]]
            print(f"{count:<8d}" + "".join(f"{spread(column):>24s}" for column in columns))


def frame_rate(envs: StandardVectorEnv, steps: int) -> float:
    """Frames per second of all environments together, with random actions, after a few that are not counted."""
    envs.reset(seed=0)
    random = np.random.default_rng(0)
    shape = (envs.num_envs, *(envs.single_action_space.shape or ()))
    for number in range(steps + 3):
        if number == 3:
            start = time.perf_counter()
        envs.step(random.uniform(-1, 1, shape))
    return steps * envs.num_envs / (time.perf_counter() - start)


def spread(values: list[float]) -> str:
    """Median and range, in as many digits as they deserve."""
    digits = 2 if max(values) < 10 else 0
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} [{low:.{digits}f} - {high:.{digits}f}]"


if __name__ == "__main__":
    main()
