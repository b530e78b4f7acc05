"""Where do the milliseconds of a run go? Frames of each quality, one update and one plan, for a preset, here.

    python benchmarks/where_time_goes.py --preset cpu --threads 2

Prints the median and the range over --repeats calls, each after a warm-up and a device synchronisation.
"""

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

import planet_lib as pl
from planet_lib.envs import make_env
from planet_lib.training import Objective, update
from planet_lib.training.presets import PRESETS, build_agent, build_model, env_settings, get_preset


def main() -> None:
    """Measure the three and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu")
    parser.add_argument("--env", default="dmc:cartpole-balance")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    preset, device = get_preset(args.preset, env=args.env), torch.device(args.device)
    qualities: tuple[Literal["tuned", "fast", "suite"], ...] = ("tuned", "fast", "suite")
    envs = {quality: make_env(args.env, **env_settings(preset), quality=quality) for quality in qualities}
    for env in envs.values():
        env.reset(seed=0)
    env = envs["tuned"]
    obs_shape, action_dim = tuple(env.observation_space.shape or ()), int(np.prod(env.action_space.shape or ()))
    model = build_model(preset, "rssm", obs_shape, action_dim).to(device)
    agent = build_agent(preset, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate, eps=preset.adam_eps, fused=True)
    objective = Objective(free_nats=0.0)
    batch = random_batch(preset.window, preset.batch_size, obs_shape, action_dim)
    frame, first = torch.zeros(1, *obs_shape, dtype=torch.uint8), torch.ones(1, dtype=torch.bool)
    jobs: dict[str, Callable[[], object]] = {
        f"env step and frame, quality {quality}": functools.partial(each.step, np.zeros(action_dim, np.float32))
        for quality, each in envs.items()
    }
    jobs |= {
        f"update (T={preset.window}, B={preset.batch_size})": lambda: update(model, optimizer, batch, objective),
        f"filter and plan (I={preset.num_iterations}, J={preset.num_candidates})": lambda: agent(
            frame, first, None, explore=True
        ),
    }
    print(f"preset {args.preset}, {args.env} (action repeat {env.action_repeat})")
    print(f"{device}, {args.threads} threads, {platform.machine()}")
    print(f"torch {torch.__version__}, planet_lib {pl.__version__}; milliseconds, median [range] of {args.repeats}")
    for name, job in jobs.items():
        times = measure(job, args.repeats, device)
        print(f"{name:45s} {statistics.median(times):8.1f} [{min(times):.1f} - {max(times):.1f}]")


def random_batch(length: int, batch_size: int, obs_shape: tuple[int, ...], action_dim: int) -> pl.Batch:
    """Windows of noise: their content doesn't matter to the clock."""
    flags = torch.zeros(length, batch_size, dtype=torch.bool)
    return pl.Batch(
        obs=torch.randint(0, 256, (length, batch_size, *obs_shape), dtype=torch.uint8),
        action=torch.rand(length, batch_size, action_dim),
        reward=torch.rand(length, batch_size),
        is_first=flags,
        terminated=flags,
        mask=~flags,
    )


def measure(job: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Milliseconds of each call, after two that are not counted."""
    times = []
    for number in range(repeats + 2):
        start = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 2:
            times.append(1e3 * (time.perf_counter() - start))
    return times


if __name__ == "__main__":
    main()
