"""Train a world model on recorded episodes alone, with no environment and no planner.

    python examples/train_offline.py runs/NAME FOLDER FILE.npz minari:NAME   # any of these
    python examples/train_offline.py --resume runs/NAME                      # go on after Ctrl-C, a crash or a kill

A share of the episodes is kept aside and judges the model: some rows seen, the rest imagined from the actions alone.
Everything goes to runs/NAME: settings.json, metrics.csv, tensorboard/, videos/ (from pixels) and checkpoint.pt, which
examples/open_loop.py reads, and so does examples/evaluate.py where --env says what the episodes are of.
"""

import argparse
import contextlib
import dataclasses
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports without a traceback

import torch

import planet_lib as pl
from planet_lib import training
from planet_lib.data.episodes import episode_checksum
from planet_lib.data.sources import read_episodes, shapes_of
from planet_lib.training.presets import MODEL_FIELDS, PRESETS, Preset, build_model, build_objective, get_preset

HOLDOUT = ("holdout_obs", "holdout_obs_last", "holdout_reward_r2")
COLUMNS = (
    *("updates", "loss_total", "loss_obs", "loss_reward", "loss_continue", "kl", "kl_clipped", "global_kl"),
    *("overshooting_kl", "overshooting_reward", "overshooting_obs", "grad_norm", *HOLDOUT, "seconds_total"),
    *("updates_per_second", "skipped_updates"),
)
# What a checkpoint cannot change and still be the same run.
IDENTITY = ("sources", "entry", "holdout", "env", "cell", "preset", "continue_scale", *MODEL_FIELDS)
SAVED = ("settings", "renderer", "action_dim", "done", "metrics_rows", "model", "optimizer", "replay", "rng")
# What evaluate.py asks of the environment that the episodes are of: taken over from a source that is a run.
WORLD = ("env", "tasks", "renderer", "quality", "camera", "supersample", "channels", "action_repeat")
COLLECTING = ("num_episodes", "seed_episodes", "updates_per_episode", "eval_every", "eval_episodes")  # no flags here


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake in it, or in the data, ends with one line."""
    with training.ending_in_one_line("train_offline.py"), contextlib.ExitStack() as opened:
        train(parse(arguments, opened), opened)


def train(args: argparse.Namespace, opened: contextlib.ExitStack) -> None:
    """Read everything, then update and report until the updates are done or Ctrl-C."""
    preset = Preset.from_settings(vars(args))
    settings = {key: value for key, value in vars(args).items() if key not in {"resume", "out", "name", "run"}}
    training.check_settings(settings)
    if min(args.updates, args.report_every) < 1:
        raise ValueError(f"--updates and --report-every must be at least 1, got {args.updates}, {args.report_every}")
    if not 0 < args.holdout < 1:
        raise ValueError(f"--holdout must be above 0 and below 1, got {args.holdout:g}")
    device = training.choose_device(args.device)
    name = "-".join(["offline", Path(args.sources[0]).stem, args.cell, args.preset, f"seed{args.seed}"])
    saved, path = None, Path(args.resume or Path(args.out) / (args.name or name))
    if args.resume:
        saved = training.load_checkpoint(args.run.checkpoint_path, required=SAVED)
        training.check_compatible(saved["settings"], settings, IDENTITY)
    elif path.exists():
        raise FileExistsError(f"{path} already exists: go on with it by --resume, or choose another --name")
    torch.manual_seed(args.seed)
    replay, held, data = read(args, preset.replay_capacity)
    training.check_compatible(saved["done"] if saved else data, data, data)  # other episodes would make it another run
    obs_shape, action_dim = shapes_of(held[0])
    shapes = obs_shape if isinstance(obs_shape, dict) else {"": obs_shape}
    training.check_extras(pixels=bool(images := [name for name, shape in shapes.items() if len(shape) == 3]))
    settings["obs"] = "both" if isinstance(obs_shape, dict) else "pixels" if images else "state"
    count, settings["image_size"], _ = shapes[images[0]] if images else (0, preset.image_size, 0)
    settings["channels"] = {1: preset.channels.replace("all", "red"), 3: "all"}.get(count, preset.channels)
    model = build_model(preset, args.cell, obs_shape, action_dim).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate, eps=preset.adam_eps, fused=True)
    objective, precision = build_objective(preset), torch.bfloat16 if preset.precision == "bfloat16" else None
    limits: dict[str, Any] = {"grad_clip": preset.grad_clip, "autocast": precision}
    longest = max(held, key=lambda episode: len(episode.reward))  # the first of the longest
    windows = {"context": args.context, "length": min(args.length, len(longest.reward))}
    renderer = saved["renderer"] if saved else renderer_of(args.sources[0]) if images else "none"
    done = {**data, "updates": 0, "seconds": 0.0} if saved is None else saved["done"]
    run: training.RunDirectory = args.run or opened.enter_context(training.RunDirectory.create(path, settings).lock())
    progress = training.Progress(total=args.updates, done=done["updates"], unit="updates")
    skip = training.SkipNonFinite(say=progress.say)
    state = training.RunState(model=model, optimizer=optimizer, replay=replay, skipped_updates=skip)
    if saved:
        state.restore(saved)
        optimizer.param_groups[0]["eps"] = preset.adam_eps  # what a flag may have changed
    rows = saved["metrics_rows"] if saved else None
    metrics = training.MetricsWriter(run.path, COLUMNS, step_column="updates", resume_at=rows)
    began = time.monotonic() - done["seconds"]
    counts = f"{replay.num_episodes} episodes ({replay.num_steps} rows, {data['terminated']} episodes terminate)"
    changed = "".join(f"\nfrom here on: {each}" for each in run.change_settings(settings))
    progress.say(f"{run.path}: {counts}, {len(held)} kept aside, {settings['obs']}, {args.cell}, on {device}{changed}")
    if replay.num_steps < data["rows"]:
        progress.say(f"only the newest of all {data['rows']} rows fit: raise --replay-capacity")

    def fit(until: int) -> dict[str, Any]:
        """Update on windows of the replay; returns the mean losses."""
        start, first, rows = time.monotonic(), done["updates"], []
        with progress.phase("updates", total=until - done["updates"], unit="updates") as bar:
            while done["updates"] < until:
                training.warm_up(optimizer, preset.learning_rate, done["updates"], preset.warmup_updates)
                batch = replay.sample(preset.batch_size, preset.window)
                done["updates"] += 1
                with skip.leaving_out(f"update {done['updates']}"):
                    rows.append(training.update(model, optimizer, batch, objective, **limits).metrics())
                    bar.update(1, loss=float(rows[-1]["loss_total"]), kl=float(rows[-1]["kl"]))
        progress.advance(done["updates"] - first)
        rows = rows or [dict.fromkeys(("loss_obs", "loss_reward", "kl", "grad_norm"), torch.tensor(torch.nan))]
        means = {name: torch.stack([row[name] for row in rows]).mean().item() for name in rows[0]}
        return {**means, "updates_per_second": (done["updates"] - first) / (time.monotonic() - start)}

    def judge() -> dict[str, Any]:
        """Measure how wrong the episodes kept aside are imagined, and draw the longest."""
        if not images:
            return vector_error(model, held, **windows)
        training.draw_episode(run.videos / f"updates-{done['updates']:07d}", model, longest, **windows)
        error = training.open_loop_error(model, held, **windows, image=images[0] or None)
        means = (float(values.mean()) for values in (error.image, error.last_frame, error.reward_r2))
        return dict(zip(HOLDOUT, means, strict=True))

    def save() -> None:
        """Write the checkpoint that `--resume` goes on from."""
        facts = {"settings": settings, "renderer": renderer, "action_dim": action_dim}
        state.save(run.checkpoint_path, **facts, done=done, metrics_rows=metrics.num_rows)

    try:
        if saved is None:
            save()  # so that a run goes on from wherever it stops
        while done["updates"] < args.updates:
            row = fit(min(args.updates, (done["updates"] // args.report_every + 1) * args.report_every))
            with torch.random.fork_rng():  # training goes on as if nobody had looked
                row |= judge() | {"skipped_updates": skip.count}
            done["seconds"] = time.monotonic() - began
            metrics.write({"updates": done["updates"], **row, "seconds_total": done["seconds"]})
            save()
            shown = (f"{name} {row[name]:.3g}" for name in ("loss_obs", "loss_reward", "kl", *HOLDOUT))
            progress.say(f"update {done['updates']}: {', '.join(shown)}")
        progress.say(f"all {done['updates']} updates are done; a larger --updates with --resume goes on")
    except KeyboardInterrupt:
        progress.say(f"stopped; go on with: --resume {shlex.quote(str(run.path))}")
    finally:
        progress.close()
        metrics.close()


def read(args: argparse.Namespace, capacity: int) -> tuple[pl.SequenceReplay, list[pl.Episode], dict[str, Any]]:
    """Read all sources: the replay, the episodes kept aside, and what tells these data from others."""
    data: dict[str, Any] = {"episodes": 0, "held": 0, "rows": 0, "terminated": 0, "sources_checksum": 0}
    replay, held = None, []
    episodes = (each for source in args.sources for each in read_episodes(source, obs=args.entry or None))
    for number, episode in enumerate(episodes):
        if replay is None:
            obs_shape, action_dim = shapes_of(episode)
            replay = pl.SequenceReplay(capacity, obs_shape=obs_shape, action_dim=action_dim, seed=args.seed)
        if shapes_of(episode) != (obs_shape, action_dim):
            raise ValueError(f"episodes must be alike, got {shapes_of(episode)} after {(obs_shape, action_dim)}")
        if int((number + 1) * args.holdout + 0.5) > int(number * args.holdout + 0.5):  # evenly spread
            held.append(episode)
        else:
            replay.add(episode)
            data["rows"] += len(episode.reward)
        data["sources_checksum"] = episode_checksum(episode, data["sources_checksum"])
        data["terminated"] += int(episode.terminated[-1])
    data |= {"episodes": replay.num_episodes if replay else 0, "held": len(held)}
    if replay is None or not replay.num_episodes or not held:
        got = f"got {data['episodes']} and {data['held']}: add episodes, or choose a share nearer to 0.5"
        raise ValueError(f"--holdout {args.holdout:g} must leave some episodes to train on and some aside, {got}")
    most = min(args.length, max(len(episode.reward) for episode in held)) - 1
    if not 1 <= args.context <= most:
        raise ValueError(f"--context must be 1 to {most}, less than --length and an episode, got {args.context}")
    return replay, held, data


def renderer_of(source: str) -> Any:
    """What drew the frames, in all or by task: a run remembers it, and other recordings do not."""
    path = Path(source) / "checkpoint.pt"
    return training.load_checkpoint(path).get("renderer", "unknown") if path.exists() else "unknown"


@torch.no_grad()
def vector_error(model: pl.WorldModel, episodes: Sequence[pl.Episode], *, context: int, length: int) -> dict[str, Any]:
    """What `open_loop_error` measures, of vectors: squared error per number, on windows that are always the same."""
    rows, (obs_shape, action_dim) = sum(len(episode.reward) for episode in episodes), shapes_of(episodes[0])
    replay = pl.SequenceReplay(rows, obs_shape=obs_shape, action_dim=action_dim)
    for episode in episodes:
        replay.add(episode)
    batch = replay.sample(200, length, uniform="steps").to(next(model.parameters()).device)
    _, posterior = pl.observe(model.cell, model.encoder(batch.obs), batch.action, batch.is_first)
    seen = type(posterior)(*(field[context - 1] for field in posterior))
    features = model.cell.features(pl.imagine(model.cell, seen, batch.action[context:]))
    pair = (batch.obs, model.decoder(features))
    truth, predicted = (torch.cat(list(obs.values()), -1) if isinstance(obs, dict) else obs for obs in pair)
    mask, wanted = batch.mask[context:], batch.reward[context:]
    variance = wanted[mask].double().var(correction=0) or torch.nan  # where all are equal, there is nothing to explain
    missed = (model.reward_head(features) - wanted).square()[mask].mean() / variance
    errors = [(guess - truth[context:]).square()[mask].mean() for guess in (predicted, truth[context - 1])]
    return {name: float(value) for name, value in zip(HOLDOUT, (*errors, 1 - missed), strict=True)}


def parse(arguments: Sequence[str] | None, opened: contextlib.ExitStack) -> argparse.Namespace:
    """Read the flags; most fields of the preset are some, and a resumed run starts from its own settings."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=tuple(PRESETS), default="cpu", help="where the settings below start from")
    first.add_argument("--cell", choices=("rssm", "ssm", "rnn"), default="rssm", help="the latent dynamics model")
    first.add_argument("--env", default="", help="what evaluate.py acts in; if empty, that of a source that is a run")
    first.add_argument("--resume", metavar="DIR", help="go on with the run in this directory")
    known, rest = first.parse_known_args(arguments)
    runs = [each for each in rest if (Path(each) / "settings.json").is_file() and not known.env]
    origin = training.RunDirectory.open(runs[0]).settings if runs else {}
    inherited: dict[str, Any] = {name: origin[name] for name in WORLD if name in origin}
    env = known.env or inherited.get("tasks") or inherited.get("env", "")
    preset = get_preset(known.preset, cell=known.cell, env=env).settings()
    about, style = (__doc__ or "").split("\n\n")[0], argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=about, parents=[first], formatter_class=style)
    parser.set_defaults(**({"tasks": "", "renderer": "auto", "quality": "tuned"} | preset | {"env": env} | inherited))
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="a run, folder or file of .npz, or minari:NAME")
    parser.add_argument("--updates", type=int, default=10_000, help="in all")
    parser.add_argument("--report-every", type=int, default=500, help="updates to a row of metrics and a checkpoint")
    parser.add_argument("--holdout", type=float, default=0.1, help="share of the episodes kept aside")
    parser.add_argument("--context", type=int, default=5, help="rows seen of those")
    parser.add_argument("--length", type=int, default=50, help="rows seen and imagined of those")
    parser.add_argument("--entry", default="", help="takes this entry of dictionaries alone")
    parser.add_argument("--device", default="auto", help="auto is cuda where there is one, else cpu")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--out", default="runs", help="where runs are kept")
    parser.add_argument("--name", default="", help="of the run's directory; made from the settings if empty")
    group = parser.add_argument_group("settings of the preset")
    for item in dataclasses.fields(Preset):
        if item.name not in (*COLLECTING, "image_size", "channels"):
            flag, kind = f"--{item.name.replace('_', '-')}", type(preset[item.name])
            group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=item.metadata["help"])
    run = opened.enter_context(training.RunDirectory.open(known.resume).lock()) if known.resume else None
    parser.set_defaults(**{**(run.settings if run else {}), "run": run})
    args = parser.parse_intermixed_args(arguments)
    if not args.sources:
        parser.error("SOURCE is missing: a run, a folder or file of .npz episodes, or minari:NAME")
    args.sources = [each if each.startswith("minari:") else str(Path(each).resolve()) for each in args.sources]
    return args


if __name__ == "__main__":
    training.run_program(main)
