"""Train PlaNet: collect with the planner, fit the world model, repeat (arXiv:1811.04551, algorithm 1).

    python examples/train_planet.py                                # cartpole-balance from pixels, on what is there
    python examples/train_planet.py --obs state --env dmc:cartpole-swingup  # or --obs both
    python examples/train_planet.py --preset paper --device cuda   # the paper's numbers
    python examples/train_planet.py --resume runs/NAME             # go on after Ctrl-C, a crash or a kill

Everything goes to runs/NAME: settings.json, metrics.csv, tensorboard/, learning_curve.png, videos/, episodes/ and
checkpoint.pt. This file is the whole loop; change it.
"""

import argparse
import dataclasses
import itertools
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import planet_lib as pl
from planet_lib.data import load_episodes, random_policy, run_episode, save_episode
from planet_lib.envs import make_env
from planet_lib.training import (
    MetricsWriter,
    Progress,
    RunDirectory,
    check_compatible,
    check_extras,
    check_settings,
    choose_device,
    learning_curve,
    load_checkpoint,
    open_loop,
    open_loop_strip,
    open_loop_video,
    reconstruct,
    reconstruction_video,
    rng_state,
    save_checkpoint,
    set_rng_state,
    update,
    warm_up,
)
from planet_lib.training.presets import (
    PRESETS,
    Preset,
    build_agent,
    build_model,
    build_objective,
    get_preset,
    obs_shape_of,
)

COLUMNS = (
    *("episode", "updates", "env_steps", "kind", "episode_return", "eval_mean", "eval_std"),
    *("loss_total", "loss_obs", "loss_reward", "loss_continue", "kl", "kl_clipped", "global_kl"),
    *("overshooting_kl", "overshooting_reward", "overshooting_obs", "grad_norm"),
    *("seconds_collect", "seconds_update", "seconds_eval", "seconds_total", "updates_per_second", "steps_per_second"),
)
# What a checkpoint cannot change and still be the same run.
IDENTITY = (
    *("env", "obs", "cell", "preset", "image_size", "camera", "action_repeat", "network", "depth", "embed_dim"),
    *("deter_dim", "stoch_dim", "hidden_dim", "num_layers", "activation", "min_std", "min_std_mode", "gru", "init"),
    *("reward_hidden_dim", "reward_num_hidden", "continue_scale"),
)
SAVED = ("settings", "done", "metrics_rows", "model", "optimizer", "replay", "rng")  # what a checkpoint has
EVAL_SEED = 1_000_000  # evaluation episodes are the same ones each time, and never training episodes


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake in it, or in the data, ends with one line."""
    args = parse(arguments)
    try:
        train(args)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError) as error:
        sys.exit(f"train_planet.py: {' '.join(str(error).split())}")
    except KeyboardInterrupt:  # before the run began, or a second one while it ended
        sys.exit("train_planet.py: stopped")


def train(args: argparse.Namespace) -> None:
    """Seed episodes, then updates and one episode in turn, until the episodes are done or Ctrl-C."""
    preset = Preset.from_settings(vars(args))
    settings = {key: value for key, value in vars(args).items() if key not in {"resume", "out", "name"}}
    check_settings(settings)
    device = choose_device(args.device)
    saved = load_checkpoint(RunDirectory.open(args.resume).checkpoint_path, required=SAVED) if args.resume else None
    if saved is not None:
        Preset.from_settings(saved["settings"], where=args.resume)
        check_compatible(saved["settings"], settings, IDENTITY)

    torch.manual_seed(args.seed)
    size = (preset.image_size, preset.image_size)
    camera, repeat = preset.camera or None, preset.action_repeat or None
    env = make_env(args.env, obs=args.obs, image_size=size, camera=camera, action_repeat=repeat)
    obs_shape, action_dim = obs_shape_of(env.observation_space), int(np.prod(env.action_space.shape or ()))
    shapes = obs_shape if isinstance(obs_shape, dict) else {"": obs_shape}
    images = [name for name, shape in shapes.items() if len(shape) == 3]
    check_extras(pixels=bool(images))
    model = build_model(preset, args.cell, obs_shape, action_dim).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate, eps=preset.adam_eps)
    objective, autocast = build_objective(preset), torch.bfloat16 if preset.precision == "bfloat16" else None
    agent = build_agent(preset, model)
    replay = pl.SequenceReplay(preset.replay_capacity, obs_shape=obs_shape, action_dim=action_dim, seed=args.seed)
    random = np.random.default_rng(args.seed)

    # What changes as the run goes on, and with the weights makes up a checkpoint.
    done: dict[str, Any] = {"episodes": 0, "updates": 0, "env_steps": 0, "seconds": 0.0, "seed_returns": []}
    if saved is None:
        run = RunDirectory.create(run_path(args), settings)
        metrics = MetricsWriter(run.path, COLUMNS)
    else:
        run = RunDirectory.open(args.resume)
        done = saved["done"]
        held = sum(int(path.name.split("-")[1]) < done["episodes"] for path in run.episodes.glob("episode-*-*.npz"))
        if held != done["episodes"]:
            raise ValueError(f"{run.episodes} must hold {done['episodes']} episodes by now, got {held}: restore them")
        for episode in itertools.islice(load_episodes(run.episodes), done["episodes"]):
            replay.add(episode)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        replay.load_state_dict(saved["replay"])
        set_rng_state(saved["rng"], random=random)
        metrics = MetricsWriter(run.path, COLUMNS, resume_at=saved["metrics_rows"])
    began = time.monotonic() - done["seconds"]
    total = preset.seed_episodes + preset.num_episodes
    progress = Progress(total=total, done=done["episodes"], unit="episodes")
    progress.say(f"{run.path}: {args.env} from {args.obs}, {args.cell}, preset {args.preset}, on {device}")
    if metrics.notice:
        progress.say(metrics.notice)

    steps = getattr(env.spec, "max_episode_steps", None) or 1000  # the suite's number; only the progress bar asks

    def collect(policy: Any, name: str, seed: int) -> pl.Episode:
        with progress.phase(name, total=-(-steps // env.action_repeat), unit="decisions") as bar:
            return run_episode(env, policy, seed=seed, on_step=lambda step: bar.update(1))

    def finish_episode(episode: pl.Episode, row: dict[str, Any]) -> None:
        """Keep a finished episode, its row of metrics, and a checkpoint to go on from."""
        save_episode(run.episodes, episode, done["episodes"], replace=True)
        replay.add(episode)
        done["episodes"] += 1
        done["env_steps"] += (len(episode.reward) - 1) * env.action_repeat
        done["seconds"] = time.monotonic() - began
        counts = {"episode": done["episodes"], "updates": done["updates"], "env_steps": done["env_steps"]}
        metrics.write({**counts, **row, "seconds_total": done["seconds"]})
        if row["kind"] == "train" and is_evaluated(done["episodes"]):
            with torch.random.fork_rng():  # training goes on as if nobody had looked
                metrics.write({**counts, **evaluate(), "seconds_total": time.monotonic() - began})
        save()
        progress.advance(1)

    def save() -> None:
        """Write the checkpoint that `--resume` goes on from."""
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "replay": replay.state_dict()}
        counts = {"done": done, "metrics_rows": metrics.num_rows, "rng": rng_state(random=random)}
        save_checkpoint(run.checkpoint_path, {"settings": settings, **counts, **states})

    def is_evaluated(episodes: int) -> bool:
        trained = episodes - preset.seed_episodes
        return trained % preset.eval_every == 0 or episodes == total

    def evaluate() -> dict[str, Any]:
        """Act without noise in episodes of their own, and draw what the model saw and foresaw in the first."""
        start = time.monotonic()
        torch.manual_seed(EVAL_SEED + done["episodes"])
        episodes = [
            collect(agent.policy(explore=False), "evaluation", EVAL_SEED + number)
            for number in range(preset.eval_episodes)
        ]
        returns = np.array([episode.reward.sum() for episode in episodes])
        first, stem = episodes[0], str(run.videos / f"episode-{done['episodes']:06d}")
        for name in images:
            path = f"{stem}-{name}" if name else stem
            frames = first.obs[name] if isinstance(first.obs, dict) else first.obs
            reconstruction_video(f"{path}-reconstruction.mp4", frames, reconstruct(model, first, image=name or None))
            seen = min(5, len(frames))
            foreseen = open_loop(model, first, context=seen, length=50, image=name or None)
            open_loop_video(f"{path}-open-loop.mp4", frames[: len(foreseen)], foreseen, context=seen)
            open_loop_strip(f"{path}-open-loop.png", frames[: len(foreseen)], foreseen, context=seen)
        mean, std = float(returns.mean()), float(returns.std())
        progress.say(f"episode {done['episodes']}: evaluation {mean:.0f} +- {std:.0f} over {len(returns)} episodes")
        return {"kind": "eval", "eval_mean": mean, "eval_std": std, "seconds_eval": time.monotonic() - start}

    def fit() -> dict[str, Any]:
        """C updates on windows of the replay; returns their mean losses."""
        start = time.monotonic()
        rows = []
        with progress.phase("updates", total=preset.updates_per_episode, unit="updates") as bar:
            for _ in range(preset.updates_per_episode):
                warm_up(optimizer, preset.learning_rate, done["updates"], preset.warmup_updates)
                batch = replay.sample(preset.batch_size, preset.window)
                result = update(model, optimizer, batch, objective, grad_clip=preset.grad_clip, autocast=autocast)
                rows.append(result.metrics())
                done["updates"] += 1
                bar.update(1, loss=float(rows[-1]["loss_total"]), kl=float(rows[-1]["kl"]))
        seconds = time.monotonic() - start
        means = {name: torch.stack([row[name] for row in rows]).mean().item() for name in rows[0]}
        return {**means, "seconds_update": seconds, "updates_per_second": len(rows) / seconds}

    try:
        if saved is None:
            save()  # so that a run goes on from wherever it stops, be it the first seed episode
        while done["episodes"] < total:
            seeding = done["episodes"] < preset.seed_episodes
            row: dict[str, Any] = {} if seeding else fit()
            start = time.monotonic()
            policy = random_policy(action_dim, random) if seeding else agent.policy(explore=True)
            name = "seed episode" if seeding else "episode"
            episode = collect(policy, name, args.seed * 10_000_000 + done["episodes"])
            seconds, earned = time.monotonic() - start, float(episode.reward.sum())
            if seeding:
                done["seed_returns"].append(earned)
            row |= {"kind": "seed" if seeding else "train", "episode_return": earned, "seconds_collect": seconds}
            row["steps_per_second"] = (len(episode.reward) - 1) * env.action_repeat / seconds
            finish_episode(episode, row)
            if not seeding:
                progress.say(describe(done, row))
                learning_curve(
                    run.learning_curve,
                    run.metrics_path,
                    random_return=float(np.mean(done["seed_returns"])),
                    free_nats=preset.free_nats,
                    title=f"PlaNet, {args.env} from {args.obs} ({args.cell}, preset {args.preset}, seed {args.seed})",
                )
        progress.say(f"all {done['episodes']} episodes are done; a larger --num-episodes with --resume goes on")
    except KeyboardInterrupt:
        progress.say(f"stopped after {done['episodes']} episodes; go on with: --resume {shlex.quote(str(run.path))}")
    finally:
        progress.close()
        metrics.close()
        env.close()


def describe(done: dict[str, Any], row: dict[str, Any]) -> str:
    """One line about an episode and the updates before it."""
    return (
        f"episode {done['episodes']}: return {row['episode_return']:.0f}, obs {row['loss_obs']:.1f}, "
        f"reward {row['loss_reward']:.3f}, KL {row['kl']:.2f}, {row['updates_per_second']:.1f} updates/s, "
        f"{row['steps_per_second']:.0f} steps/s, {done['seconds'] / 60:.0f} min"
    )


def run_path(args: argparse.Namespace) -> Path:
    """Where a new run goes: --out/NAME, with a name that says what it is."""
    task = args.env.replace(":", "-").replace("/", "-")
    return Path(args.out) / (args.name or f"{task}-{args.obs}-{args.cell}-{args.preset}-seed{args.seed}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags; every field of the preset is one, and a resumed run starts from its own settings."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=tuple(PRESETS), default="cpu", help="where the settings below start from")
    first.add_argument("--cell", choices=("rssm", "ssm", "rnn"), default="rssm", help="the latent dynamics model")
    first.add_argument("--env", default="dmc:cartpole-balance", help="dmc:DOMAIN-TASK or gym:NAME")
    first.add_argument("--resume", metavar="DIR", help="go on with the run in this directory")
    known, _ = first.parse_known_args(arguments)
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        parents=[first],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--obs", choices=("pixels", "state", "both"), default="pixels", help="what the agent sees")
    parser.add_argument("--device", default="auto", help="auto is cuda where there is one, else cpu")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--out", default="runs", help="where runs are kept")
    parser.add_argument("--name", default="", help="of the run's directory; made from the settings if empty")
    group = parser.add_argument_group("settings of the preset")
    for item in dataclasses.fields(Preset):
        value = getattr(get_preset(known.preset, cell=known.cell, env=known.env), item.name)
        group.add_argument(
            f"--{item.name.replace('_', '-')}",
            type=type(value),
            default=value,
            metavar={int: "N", float: "X", str: "NAME"}[type(value)],
            help=item.metadata["help"],
        )
    if known.resume:
        try:
            parser.set_defaults(**RunDirectory.open(known.resume).settings)
        except (ValueError, OSError) as error:
            sys.exit(f"train_planet.py: {error}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
