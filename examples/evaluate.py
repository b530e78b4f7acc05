"""Evaluate a training run: its checkpoint, N episodes without exploration noise, mean and spread, and a video.

    python examples/evaluate.py runs/NAME --episodes 10 --video

The same seed gives the same episodes. The video shows the observation on the left and the model's reconstruction of it
on the right; it is written to runs/NAME/videos/evaluation.mp4. A run of several tasks is evaluated on each; --task
chooses one, be it another than the run's own. With --set, the trained model is planned with in another way than it was
in training:

    python examples/evaluate.py runs/NAME --set planner=icem warm_start=1 num_iterations=3
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from planet_lib.data import run_episodes
from planet_lib.envs import make_vector_env
from planet_lib.training import (
    Progress,
    RunDirectory,
    check_extras,
    check_renderer,
    check_settings,
    choose_device,
    ending_in_one_line,
    load_checkpoint,
    reconstruct,
    reconstruction_video,
)
from planet_lib.training.presets import Preset, build_agent, build_model, env_settings, obs_shape_of
from planet_lib.types import Episode

PLANNING = [
    "planner",
    "warm_start",
    "horizon",
    "num_candidates",
    "num_elites",
    "deviation",
    "start",
    "transition",
    "discount",
    "num_iterations",
]

NEEDED = (
    *("renderer", "action_dim", "model", "done.episodes", "done.updates"),
    *(f"settings.{name}" for name in ("env", "tasks", "obs", "cell", "renderer", "quality")),
)  # of a checkpoint


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake in it, or in the files, ends with one line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("run", help="the run's directory")
    parser.add_argument("--episodes", type=int, default=10, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of everything random; episode n begins from seed + n")
    parser.add_argument("--task", metavar="ENV", help="an environment; by default the run's own, each of them")
    parser.add_argument("--num-envs", type=int, default=1, help="environments at once, each in a process of its own")
    parser.add_argument("--renderer", choices=("auto", "gl", "rays"), help="of MuJoCo's pixels; by default the run's")
    parser.add_argument("--quality", choices=("tuned", "fast", "suite"), help="of GL's pictures; by default the run's")
    parser.add_argument("--device", default="auto", help="auto is cuda where there is one, else cpu")
    parser.add_argument("--video", action="store_true", help="write a video of the first episode (pixels only)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help=f"settings: {', '.join(PLANNING)}")
    args = parser.parse_args(arguments)
    with ending_in_one_line("evaluate.py"):
        evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    """Load the run, and act in each of its tasks."""
    if args.episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {args.episodes}")
    run = RunDirectory.open(args.run)
    saved = load_checkpoint(run.checkpoint_path, required=NEEDED)
    settings = saved["settings"]
    preset = plan_with(Preset.from_settings(settings, where=str(run.path)), args.set)
    check_settings({"seed": args.seed})
    device = choose_device(args.device)
    told = [name for name in ("renderer", "quality") if getattr(args, name)]
    tasks = [args.task] if args.task else str(settings["tasks"] or settings["env"]).split(",")
    for task in tasks:
        env = make_vector_env(
            task,
            args.num_envs,
            workers=args.num_envs > 1,
            obs=settings["obs"],
            action_dim=saved["action_dim"],
            renderer=args.renderer or settings["renderer"],
            quality=args.quality or settings["quality"],
            **env_settings(preset),
        )
        with contextlib.closing(env):
            check_renderer(saved["renderer"], str(env.renderer), task=task, told=told)
            name = f"-{task.partition(':')[2].replace('/', '-')}" if args.task or len(tasks) > 1 else ""
            report(args, task, env, preset, saved, run.videos / f"evaluation{name}", device)


def report(
    args: argparse.Namespace,
    task: str,
    env: Any,
    preset: Preset,
    saved: dict[str, Any],
    stem: Path,
    device: torch.device,
) -> None:
    """Play the episodes of one task, and say what they earned."""
    obs_shape, action_dim = obs_shape_of(env.single_observation_space), env.single_action_space.shape[0]
    shapes = obs_shape if isinstance(obs_shape, dict) else {"": obs_shape}
    images = [name for name, shape in shapes.items() if len(shape) == 3]
    if args.video and not images:
        raise ValueError(f"--video needs a run from pixels, got one from {saved['settings']['obs']}")
    check_extras(pixels=args.video)
    torch.manual_seed(args.seed)
    model = build_model(preset, saved["settings"]["cell"], obs_shape, action_dim).to(device)
    model.load_state_dict(saved["model"])
    policy = build_agent(preset, model, one_hot=env.num_actions is not None).policy(explore=False)
    progress = Progress(total=args.episodes, unit="episodes")

    def tell(number: int, episode: Episode) -> None:
        progress.advance(1)
        progress.say(f"episode {number + 1}: return {episode.reward.sum():.1f}")

    seeds = range(args.seed, args.seed + args.episodes)
    episodes = run_episodes(env, policy, seeds=seeds, on_episode=tell)
    for name in images if args.video else []:
        path = stem.with_name(f"{stem.name}-{name}.mp4" if name else f"{stem.name}.mp4")
        frames = episodes[0].obs[name] if isinstance(episodes[0].obs, dict) else episodes[0].obs
        reconstruction_video(path, frames, reconstruct(model, episodes[0], image=name or None))
        progress.say(f"wrote {path}")
    progress.close()
    returns = [float(episode.reward.sum()) for episode in episodes]
    print(
        f"{task}: mean return {np.mean(returns):.1f}, standard deviation {np.std(returns):.1f}, "
        f"from {min(returns):.1f} to {max(returns):.1f}, over {len(returns)} episodes, "
        f"after {saved['done']['episodes']} episodes and {saved['done']['updates']} updates"
    )


def plan_with(preset: Preset, given: Sequence[str]) -> Preset:
    """Return the preset with other settings of the planner, given as NAME=VALUE."""
    changes = {}
    for item in given:
        name, _, value = item.partition("=")
        if name not in PLANNING:
            raise ValueError(f"--set takes NAME=VALUE with NAME one of {', '.join(PLANNING)}, got {item!r}")
        kind = type(getattr(preset, name))
        try:
            changes[name] = kind(value)
        except ValueError:
            raise ValueError(f"--set {name} must be of type {kind.__name__}, got {value!r}") from None
    return dataclasses.replace(preset, **changes)


if __name__ == "__main__":
    main()
