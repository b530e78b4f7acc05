"""Train PlaNet: collect with the planner, fit the world model, repeat (arXiv:1811.04551, algorithm 1).

    python examples/train_planet.py                                # cartpole-balance from pixels, on what is there
    python examples/train_planet.py --obs state --env dmc:cartpole-swingup  # or --obs both
    python examples/train_planet.py --preset paper --device cuda --num-envs 4  # the paper's numbers, four at once
    python examples/train_planet.py --tasks dmc:cartpole-balance,dmc:cartpole-swingup  # several tasks, one model
    python examples/train_planet.py --env dmc:cartpole-swingup --init-from runs/NAME   # dynamics learned elsewhere
    python examples/train_planet.py --resume runs/NAME             # go on after Ctrl-C, a crash or a kill

Everything goes to runs/NAME: settings.json, metrics.csv, tensorboard/, learning_curve.png, videos/, episodes/ and
checkpoint.pt. This file is the whole loop; change it.
"""

import argparse
import contextlib
import math
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports, which take seconds, without a traceback

import numpy as np
import torch

import planet_lib as pl
from planet_lib import training
from planet_lib.data import load_episodes, random_policy, run_episodes, save_episode
from planet_lib.envs import make_vector_env, widest_action
from planet_lib.training import RunDirectory
from planet_lib.training.presets import (
    LOOK_FIELDS,
    MODEL_FIELDS,
    PRESETS,
    Preset,
    add_flags,
    build_agent,
    build_model,
    build_objective,
    env_settings,
    get_preset,
    obs_shape_of,
)

COLUMNS = (
    *("episode", "updates", "env_steps", "kind", "task", "episode_return", "eval_mean", "eval_std"),
    *("loss_total", "loss_obs", "loss_reward", "loss_continue", "kl", "kl_clipped", "global_kl"),
    *("overshooting_kl", "overshooting_reward", "overshooting_obs", "grad_norm", "skipped_updates", "skipped_episodes"),
    *("seconds_collect", "seconds_update", "seconds_eval", "seconds_total", "updates_per_second", "steps_per_second"),
)
# What cannot change and still be the same run.
IDENTITY = ("env", "tasks", "obs", "cell", "preset", "continue_scale", *LOOK_FIELDS, *MODEL_FIELDS)
LOOK = ("obs", "cell", "renderer", "quality", *LOOK_FIELDS)  # what --init-from takes over, too
SAVED = ("settings", "renderer", "action_dim", "done", "metrics_rows", "model", "optimizer", "replay", "rng")
DONE = ("episodes", "rounds", "updates", "env_steps", "seconds", "seed_returns", "eval_mean")
RESUMED = (*SAVED, "settings.replay_dir", *(f"done.{name}" for name in DONE))
EVAL_SEED = 1_000_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake in it, or in the data, ends with one line."""
    with training.ending_in_one_line("train_planet.py"), contextlib.ExitStack() as opened:
        train(parse(arguments, opened), opened)


def train(args: argparse.Namespace, opened: contextlib.ExitStack) -> None:
    """Seed episodes, then updates and episodes in turn, until the episodes are done or Ctrl-C."""
    preset = Preset.from_settings(vars(args))
    settings = {key: value for key, value in vars(args).items() if key not in {"resume", "out", "name", "told", "run"}}
    training.check_settings(settings)
    if args.deterministic:
        training.make_deterministic()
    device = training.choose_device(args.device)
    saved = None
    if args.resume:
        saved = training.load_checkpoint(args.run.checkpoint_path, required=RESUMED)
        Preset.from_settings(saved["settings"], where=args.resume)
        training.check_compatible(saved["settings"], settings, IDENTITY)
    source = None
    if args.init_from and saved is None:
        source = training.load_checkpoint(RunDirectory.open(args.init_from).checkpoint_path, required=SAVED)
        training.check_compatible(source["settings"], settings, ("obs", "cell"))

    torch.manual_seed(args.seed)
    tasks = args.tasks.split(",") if args.tasks else [args.env]
    width = widest_action(tasks, obs=args.obs) if len(tasks) > 1 else None  # shorter ones are padded
    made: dict[str, Any] = {"num_envs": args.num_envs, "workers": args.num_envs > 1, "action_dim": width}
    made |= {"obs": args.obs, "renderer": args.renderer, "quality": args.quality, **env_settings(preset)}
    envs = {task: opened.enter_context(contextlib.closing(make_vector_env(task, **made))) for task in tasks}
    env = envs[tasks[0]]
    drawn_by = {task: str(envs[task].renderer) for task in tasks}
    for task, renderer in drawn_by.items():
        trained = (saved or source or {"renderer": drawn_by})["renderer"]
        training.check_renderer(trained, renderer, task=task, told=args.told)
    obs_shape = obs_shape_of(env.single_observation_space)
    action_dim = int(np.prod(env.single_action_space.shape or ()))
    training.check_extras(pixels=set(drawn_by.values()) != {"none"})
    model = build_model(preset, args.cell, obs_shape, action_dim).to(device)
    if source is not None:
        training.transfer_weights(model, source["model"])
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate, eps=preset.adam_eps, fused=True)
    objective, discrete = build_objective(preset), env.num_actions is not None
    autocast = torch.bfloat16 if preset.precision == "bfloat16" else None
    limits: dict[str, Any] = {"grad_clip": preset.grad_clip, "autocast": autocast}
    agent = build_agent(preset, model, one_hot=discrete)
    random = np.random.default_rng(args.seed)

    most: dict[str, Any] = {"max_bytes": math.ceil(args.replay_gb * 1e9) or None, "directory": args.replay_dir or None}
    sizes: dict[str, Any] = {"obs_shape": obs_shape, "action_dim": action_dim, **most}
    replay = opened.enter_context(pl.SequenceReplay(preset.replay_capacity, **sizes, seed=args.seed))
    own = [saved["settings"]["replay_dir"], *args.run.values_of("replay_dir")] if saved else []
    if replay.num_steps and args.replay_dir not in own:
        raise ValueError(f"--replay-dir must be empty or this run's, {args.replay_dir} holds {replay.num_steps} rows")

    run = args.run or opened.enter_context(RunDirectory.create(Path(args.out) / args.name, settings).lock())
    nothing: dict[str, Any] = {**dict.fromkeys(DONE, 0), "seed_returns": {}, "eval_mean": -math.inf}
    done: dict[str, Any] = saved["done"] if saved else nothing
    kept = {"episodes": done["episodes"]}  # what the last checkpoint counts
    total, enough = preset.seed_episodes + preset.num_episodes, math.inf if args.stop_at is None else args.stop_at
    progress = training.Progress(total=total, done=done["episodes"], unit="episodes")
    skips = {name: training.SkipNonFinite(args.max_skipped, say=progress.say) for name in COLUMNS if "skipped" in name}
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "replay": replay, "random": random}
    state = training.RunState(**parts, **skips)
    if saved is not None:
        replay.clear()  # a mapped one: the episodes' files are the record, and it is a copy of them
        replay.extend(load_episodes(run.episodes, count=done["episodes"]))
        state.restore(saved)
        optimizer.param_groups[0]["eps"] = preset.adam_eps  # what a flag may have changed
    group = "task" if len(tasks) > 1 else None
    metrics = training.MetricsWriter(run.path, COLUMNS, resume_at=(saved or {}).get("metrics_rows"), group_column=group)
    began = time.monotonic() - done["seconds"]
    what = f"{', '.join(tasks)} from {args.obs} ({', '.join(sorted(set(drawn_by.values())))})"
    title = f"PlaNet, {what} ({args.cell}, preset {args.preset}, seed {args.seed})"
    progress.say(f"{run.path}: {what}, {args.cell}, preset {args.preset}, on {device}\n{metrics.notice}".rstrip())
    if others := run.differences():
        progress.say(f"the run goes on, but its last digits may differ: it began with {', '.join(others)}")
    if changed := run.change_settings(settings):
        progress.say(f"from here on: {', '.join(changed)}")

    def play(task: str, policy: Any, name: str, seeds: Sequence[int], first: int | None = None) -> list[pl.Episode]:
        """An episode for each seed, num_envs at a time; each a file as soon as it ends, numbered from `first` on."""

        def keep(place: int, episode: pl.Episode) -> None:
            if first is not None:
                save_episode(run.episodes, episode, first + place, replace=True)

        steps = getattr(env.spec, "max_episode_steps", None) or 1000  # the suite's; only the progress bar asks
        length = -(-steps // envs[task].action_repeat) * len(seeds)
        while True:  # until no number is bad, or too many were in a row
            skip = skips["skipped_episodes"].leaving_out(f"an attempt at {name} from seed {seeds[0]} on")
            with skip, progress.phase(name, total=length, unit="decisions") as bar:
                return run_episodes(envs[task], policy, seeds=seeds, on_step=lambda _: bar.update(1), on_episode=keep)

    def finish_round(task: str, episodes: Sequence[pl.Episode], row: dict[str, Any]) -> None:
        """A row of metrics for each new episode, an evaluation where it is time, and a checkpoint to go on from."""
        evaluate_now = False
        for episode in episodes:
            replay.add(episode)
            earned = float(episode.reward.sum())
            done["episodes"] += 1
            done["env_steps"] += (len(episode.reward) - 1) * envs[task].action_repeat
            done["seconds"] = time.monotonic() - began
            if row["kind"] == "seed":
                done["seed_returns"].setdefault(task, []).append(earned)
            counts = {"episode": done["episodes"], "updates": done["updates"], "env_steps": done["env_steps"]}
            counts |= {name: skip.count for name, skip in skips.items()}
            metrics.write({**counts, **row, "task": task, "episode_return": earned, "seconds_total": done["seconds"]})
            trained = done["episodes"] - preset.seed_episodes
            evaluate_now |= trained > 0 and (trained % preset.eval_every == 0 or done["episodes"] == total)
        if evaluate_now:
            done["eval_mean"] = math.inf  # of the task that does worst
            with torch.random.fork_rng():  # training goes on as if nobody had looked
                for each in tasks:
                    metrics.write({**counts, **evaluate(each), "task": each, "seconds_total": time.monotonic() - began})
        if row["kind"] == "train":  # before the checkpoint: a run that is killed in between draws it again
            beat = {name: float(np.mean(earned)) for name, earned in done["seed_returns"].items()}
            curve: dict[str, Any] = {"random_return": beat, "free_nats": preset.free_nats, "title": title}
            training.learning_curve(run.learning_curve, run.metrics_path, **curve)
        done["rounds"] += 1
        save()
        progress.advance(len(episodes))

    def save() -> None:
        """Write the checkpoint that `--resume` goes on from: the parts, all random generators, and these."""
        facts = {"settings": settings, "renderer": drawn_by, "action_dim": action_dim}
        state.save(run.checkpoint_path, **facts, done=done, metrics_rows=metrics.num_rows)
        kept["episodes"] = done["episodes"]

    def evaluate(task: str) -> dict[str, Any]:
        """Act without noise in episodes of their own, and draw what the model saw and foresaw in the first."""
        start = time.monotonic()
        torch.manual_seed(EVAL_SEED + done["episodes"])
        seeds = range(EVAL_SEED, EVAL_SEED + preset.eval_episodes)  # the same ones each time, and never training's
        episodes = play(task, agent.policy(explore=False), "evaluation", seeds)
        returns = np.array([episode.reward.sum() for episode in episodes])
        stem = f"episode-{done['episodes']:06d}" + (f"-{task.partition(':')[2].replace('/', '-')}" if group else "")
        training.draw_episode(run.videos / stem, model, episodes[0])
        mean, std = float(returns.mean()), float(returns.std())
        done["eval_mean"] = min(done["eval_mean"], mean)
        progress.say(f"episode {done['episodes']}: {task} evaluated, {mean:.0f} +- {std:.0f} ({len(returns)})")
        return {"kind": "eval", "eval_mean": mean, "eval_std": std, "seconds_eval": time.monotonic() - start}

    def fit(count: int) -> dict[str, Any]:
        """Updates on windows of the replay; returns their mean losses."""
        start = time.monotonic()
        rows = []
        loader: dict[str, Any] = {"prefetch": 2, "device": device} if device.type == "cuda" else {"prefetch": 0}
        with progress.phase("updates", total=count, unit="updates") as bar:
            for batch in replay.batches(preset.batch_size, preset.window, count, reuse=True, **loader):
                training.warm_up(optimizer, preset.learning_rate, done["updates"], preset.warmup_updates)
                done["updates"] += 1
                with skips["skipped_updates"].leaving_out(f"update {done['updates']}"):
                    rows.append(training.update(model, optimizer, batch, objective, **limits).metrics())
                    bar.update(1, loss=float(rows[-1]["loss_total"]), kl=float(rows[-1]["kl"]))
        rows = rows or [dict.fromkeys(("loss_obs", "loss_reward", "kl", "grad_norm"), torch.tensor(math.nan))]
        means = {name: torch.stack([row[name] for row in rows]).mean().item() for name in rows[0]}
        return {**means, "seconds_update": (seconds := time.monotonic() - start), "updates_per_second": count / seconds}

    try:
        if saved is None or changed:
            save()  # so that a run goes on from wherever it stops, be it the first seed episode
        while done["episodes"] < total and done["eval_mean"] < enough:
            seeding = done["episodes"] < preset.seed_episodes
            task = tasks[done["rounds"] % len(tasks)]
            left = (preset.seed_episodes if seeding else total) - done["episodes"]
            numbers = [done["episodes"] + number for number in range(min(args.num_envs, left))]
            row: dict[str, Any] = {} if seeding else fit(preset.updates_per_episode * len(numbers))
            policy = random_policy(action_dim, random, one_hot=discrete) if seeding else agent.policy(explore=True)
            seeds, start = [args.seed * 10_000_000 + number for number in numbers], time.monotonic()
            episodes = play(task, policy, "seed episodes" if seeding else "episodes", seeds, numbers[0])
            steps = sum(len(episode.reward) - 1 for episode in episodes) * envs[task].action_repeat
            row |= {"seconds_collect": (seconds := time.monotonic() - start), "steps_per_second": steps / seconds}
            finish_round(task, episodes, row | {"kind": "seed" if seeding else "train"})
            if not seeding:
                returns = ", ".join(f"{episode.reward.sum():.0f}" for episode in episodes)
                losses = f"obs {row['loss_obs']:.1f}, reward {row['loss_reward']:.3f}, KL {row['kl']:.2f}"
                speeds = f"{row['updates_per_second']:.1f} updates/s, {done['seconds'] / 60:.0f} min"
                progress.say(f"episode {done['episodes']}: {task}, return {returns}, {losses}, {speeds}")
        more = "--num-episodes" if done["episodes"] >= total else "--stop-at"
        progress.say(f"done after {done['episodes']} episodes; a larger {more} with --resume goes on")
    except KeyboardInterrupt:
        progress.say(f"stopped after {kept['episodes']} episodes; go on with: --resume {shlex.quote(str(run.path))}")
    finally:
        progress.close()
        metrics.close()


def parse(arguments: Sequence[str] | None, opened: contextlib.ExitStack) -> argparse.Namespace:
    """Read the flags; every field of the preset is one, and a resumed run, locked, starts from its own settings."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=tuple(PRESETS), default="cpu", help="where the settings below start from")
    first.add_argument("--cell", choices=("rssm", "ssm", "rnn"), default="rssm", help="the latent dynamics model")
    first.add_argument("--env", default="dmc:cartpole-balance", help="dmc:DOMAIN-TASK or gym:NAME")
    several: dict[str, Any] = {"type": lambda text: ",".join(text.replace(",", " ").split()), "metavar": "A,B"}
    first.add_argument("--tasks", default="", **several, help="several environments, instead of --env")
    earlier = first.add_mutually_exclusive_group()
    earlier.add_argument("--resume", metavar="DIR", help="go on with the run in this directory")
    earlier.add_argument("--init-from", metavar="DIR", help="begin with the world model of this run, for a new task")
    known, _ = first.parse_known_args(arguments)
    style: dict[str, Any] = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0], parents=[first], **style)
    parser.add_argument("--obs", choices=("pixels", "state", "both"), default="pixels", help="what the agent sees")
    parser.add_argument("--num-envs", type=int, default=1, help="environments at once, each in a process of its own")
    parser.add_argument("--renderer", choices=("auto", "gl", "rays"), default="auto", help="of MuJoCo's pixels")
    parser.add_argument("--quality", choices=("tuned", "fast", "suite"), default="tuned", help="of GL's pictures")
    parser.add_argument("--replay-gb", type=float, default=0.0, help="most memory of the replay; 0 is no such limit")
    parser.add_argument("--replay-dir", default="", help="keep the replay in mapped files here, not in memory")
    score: dict[str, Any] = {"type": lambda text: None if text == "none" else float(text), "metavar": "SCORE"}
    parser.add_argument("--stop-at", **score, help="end once an evaluation's mean is this; none for never")
    parser.add_argument("--max-skipped", type=int, default=10, help="bad updates, or episodes, left out in a row")
    switch: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "help": "nothing that varies between runs"}
    parser.add_argument("--deterministic", default=False, **switch)
    parser.add_argument("--device", default="auto", help="auto is cuda where there is one, else cpu")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--out", default="runs", help="where runs are kept")
    parser.add_argument("--name", default="", help="of the run's directory; made from the settings if empty")
    words = [word.partition("=")[0] for word in (sys.argv[1:] if arguments is None else arguments)]
    parser.set_defaults(told=[name for name in ("renderer", "quality") if f"--{name}" in words])
    add_flags(parser, get_preset(known.preset, cell=known.cell, env=known.tasks or known.env))
    if known.init_from:
        settings = RunDirectory.open(known.init_from).settings
        parser.set_defaults(**{name: settings[name] for name in (*LOOK, *MODEL_FIELDS) if name in settings})
    run = opened.enter_context(RunDirectory.open(known.resume).lock()) if known.resume else None
    parser.set_defaults(**{**(run.settings if run else {}), "run": run})
    args = parser.parse_args(arguments)
    task = str(args.tasks or args.env).replace(":", "-").replace("/", "-").replace(",", "+")
    args.name = args.name or f"{task}-{args.obs}-{args.cell}-{args.preset}-seed{args.seed}"
    return args


if __name__ == "__main__":
    training.run_program(main)
