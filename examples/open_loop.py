"""Judge trained models with no planner: a few frames seen, the rest imagined from the actions alone.

    python examples/open_loop.py runs/rssm runs/ssm runs/rnn
    python examples/open_loop.py runs/rssm --episodes DIR        # a folder of .npz episodes instead of fresh ones

All runs are judged on the same episodes: fresh ones of their environment with random actions, from seeds that neither
training nor evaluation uses. Prints the errors by steps imagined, and writes them to --out as open-loop.csv and
open-loop.png, with a strip and a video for each run: truth, model, difference.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import planet_lib as pl
from planet_lib.data import load_episodes, random_policy, run_episode
from planet_lib.envs import make_env
from planet_lib.training import (
    OpenLoopError,
    RunDirectory,
    check_extras,
    choose_device,
    ending_in_one_line,
    load_checkpoint,
    open_loop,
    open_loop_curve,
    open_loop_error,
    open_loop_strip,
    open_loop_video,
)
from planet_lib.training.presets import Preset, build_model, env_settings

SHARED = (
    "env",
    "obs",
    "camera",
    "image_size",
    "supersample",
    "channels",
    "action_repeat",
)  # what runs must share to be compared

NEEDED = ("model", *(f"settings.{name}" for name in ("cell", *SHARED)))  # of a checkpoint


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake in it, or in the files, ends with one line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="directories of runs with pixels")
    parser.add_argument("--episodes", metavar="DIR", help="judge on the .npz episodes in this folder")
    parser.add_argument("--num-episodes", type=int, default=10, help="without --episodes: how many to collect")
    parser.add_argument("--env-seed", type=int, default=5_000_000, help="episode n begins from this + n")
    parser.add_argument("--context", type=int, default=5, help="frames seen")
    parser.add_argument("--length", type=int, default=50, help="frames seen and imagined")
    parser.add_argument("--samples", type=int, default=5, help="futures sampled per window")
    parser.add_argument("--seed", type=int, default=0, help="of the models' noise")
    parser.add_argument("--device", default="auto", help="auto is cuda where there is one, else cpu")
    parser.add_argument("--out", metavar="DIR", help="by default the folder open-loop beside the first run")
    args = parser.parse_args(arguments)
    with ending_in_one_line("open_loop.py"):
        judge(args)


def judge(args: argparse.Namespace) -> None:
    """Load the runs, get the episodes, measure and draw each run."""
    check_extras(pixels=True)
    device = choose_device(args.device)
    runs = {Path(path).resolve().name: RunDirectory.open(path) for path in args.runs}
    if len(runs) < len(args.runs):
        raise ValueError(f"RUN_DIR must be directories of different names, got {' '.join(args.runs)}")
    saved = {name: load_checkpoint(run.checkpoint_path, required=NEEDED) for name, run in runs.items()}
    first = next(iter(saved))
    for name, run in runs.items():
        Preset.from_settings(saved[name]["settings"], where=str(run.path))
        wanted, got = (tuple(saved[each]["settings"][key] for key in SHARED) for each in (first, name))
        if wanted != got:
            raise ValueError(f"runs must share {', '.join(SHARED)}, got {wanted} in {first} and {got} in {name}")
        if args.episodes and Path(args.episodes).resolve() == run.episodes.resolve():
            raise ValueError(f"--episodes must be new to the models, got those that {name} was trained on")
    episodes = list(load_episodes(args.episodes)) if args.episodes else collect(args, saved[first]["settings"])
    if not episodes:
        raise ValueError("there must be at least one episode to judge on, got none: see --episodes and --num-episodes")
    shown = max(episodes, key=lambda episode: len(episode.reward))  # the first of the longest
    frames = shown.obs["pixels"] if isinstance(shown.obs, dict) else shown.obs
    obs_shape = {k: v.shape[1:] for k, v in shown.obs.items()} if isinstance(shown.obs, dict) else frames.shape[1:]

    out = Path(args.out) if args.out else runs[first].path.resolve().parent / "open-loop"
    windows = {"context": args.context, "length": args.length}
    errors = {}
    for name, checkpoint in saved.items():
        settings = checkpoint["settings"]
        model = build_model(Preset.from_settings(settings), settings["cell"], obs_shape, shown.action.shape[1]).to(
            device
        )
        model.load_state_dict(checkpoint["model"])
        errors[name] = open_loop_error(model, episodes, **windows, num_samples=args.samples, seed=args.seed)
        torch.manual_seed(args.seed)
        imagined = open_loop(model, shown, **windows)
        for draw, path in ((open_loop_strip, out / f"{name}.png"), (open_loop_video, out / f"{name}.mp4")):
            draw(path, frames[: args.length], imagined, context=args.context)
    title = f"{settings['env']}: {args.context} frames seen, {args.length - args.context} imagined"
    open_loop_curve(out / "open-loop.png", errors, title=title)
    write_csv(out / "open-loop.csv", errors)
    print_table(errors)
    print(f"wrote open-loop.csv, open-loop.png, a strip and a video of each run to {out}")


def collect(args: argparse.Namespace, settings: dict[str, Any]) -> list[pl.Episode]:
    """Let random actions play episodes of the runs' environment."""
    if settings["obs"] == "state":
        raise ValueError("RUN_DIR must be runs with pixels, got runs from state: there is no frame to judge")
    name = settings["env"]
    env = make_env(name, obs=settings["obs"], **env_settings(Preset.from_settings(settings)))
    policy = random_policy(int(np.prod(env.action_space.shape or ())), np.random.default_rng(args.env_seed))
    print(f"collecting {args.num_episodes} episodes of {name} with random actions", flush=True)
    episodes = [run_episode(env, policy, seed=args.env_seed + number) for number in range(args.num_episodes)]
    env.close()
    return episodes


def print_table(errors: dict[str, OpenLoopError]) -> None:
    """Print the errors at some horizons, a row for each run and predictor."""
    first = next(iter(errors.values()))
    columns = [horizon - 1 for horizon in (1, 5, 10, 20, 45) if horizon <= len(first.horizon)]
    image = {name: error.image for name, error in errors.items()}
    image |= {f"{name}, median": error.image_median for name, error in errors.items()}
    image |= {f"{name}, reconstructed": error.reconstruction for name, error in errors.items()}
    image |= {"last frame seen": first.last_frame, "mean frame": first.mean_frame}
    reward = {name: error.reward_r2 for name, error in errors.items()}
    for title, rows, scale in (("image, squared error x 1e4", image, 1e4), ("reward, R2", reward, 1.0)):
        print(f"{title:28}" + "".join(f"{f'+{column + 1}':>11}" for column in columns))
        for name, values in rows.items():
            print(f"{name:28}" + "".join(f"{scale * values[column]:11.4g}" for column in columns))
    print(f"means over {first.num_windows} windows; +n: n steps imagined; squared error per pixel, black to white is 1")


def write_csv(path: Path, errors: dict[str, OpenLoopError]) -> None:
    """Write one row for each run and horizon."""
    names = [name for name, value in next(iter(errors.values()))._asdict().items() if np.ndim(value)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *names, "reward_r2"])
        for run, error in errors.items():
            columns = [*(getattr(error, name) for name in names), error.reward_r2]
            writer.writerows([run, *row] for row in zip(*columns, strict=True))


if __name__ == "__main__":
    main()
