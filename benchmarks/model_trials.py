r"""Which settings of a world model learn most from the same episodes, in the same time of one CPU core?

    python benchmarks/model_trials.py collect --task dmc:cartpole-swingup --cameras lookatcart fixed --out episodes
    python benchmarks/model_trials.py train episodes --seconds 240 --out trials.json \
        --variant "red:" --variant "all channels: channels=all" --variant "large frames: image_size=64"

`collect` plays with the planner that knows the true simulator and adds noise: in turn an episode of uniformly random
actions, one with noise of deviation 0.6, two with 0.3. Each holds the vector and every camera's frames, drawn in all
channels; what a variant sees is made of these, by the means of areas and by channel, as `make_env` does.

`train` gives every variant, a preset with changed fields, the same CPU seconds on one thread, evaluation not counted.
At each mark it foresees rewards on the last --holdout episodes, which no variant is trained on: filtered up to a row,
then from the actions alone, the mean of SAMPLES futures. R2 is 1 - squared error / variance, at each horizon and of the
sum over the longest: what a planner would read. The means of the training's loss terms are those since the mark
before, `held_` ones those of the held-out episodes. `obs` terms are sums over the pixels: comparable where these are.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from model_trials_episodes import FACTS, Row, Variant, collect, named, read_variant, seen, settings_of, versions
from torch import Tensor

import planet_lib as pl
from planet_lib import training
from planet_lib.data import prepare, read_episodes, shapes_of
from planet_lib.data.episodes import episode_checksum
from planet_lib.training.presets import PRESETS, build_model, build_objective

HORIZONS = (1, 3, 6, 12)  # the last one is the longest
CONTEXT, EVERY, SAMPLES = 8, 6, 3  # rows seen at least, rows from one start to the next, futures whose mean counts
R2 = (*(f"r2_{horizon}" for horizon in HORIZONS), "r2_sum")
COLUMNS = ("variant", "seed", "cpu_seconds", "updates", "ms_per_update", *R2, "loss_obs", "loss_reward", "kl")
COLUMNS += ("grad_norm", "held_obs", "held_reward", "held_kl")


class Plan(NamedTuple):
    """What `train` was asked for, once everything about it is checked."""

    variants: list[Variant]
    used: list[pl.Episode]
    held: list[pl.Episode]
    marks: list[float]
    seeds: list[int]
    collected: Row  # what `collect` said of the episodes, if they are its


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake in it, or in the data, ends with one line."""
    args = parse(arguments)
    try:
        collect(args) if args.command == "collect" else train(args)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"model_trials.py: {' '.join(str(error).split())}")


def train(args: argparse.Namespace) -> None:
    """Train every variant under every seed; --out is written after each mark."""
    plan = read_plan(args)
    facts = {"preset": args.preset, **describe(plan)}
    settings = {variant.name: settings_of(variant) for variant in plan.variants}
    result: Row = {"facts": facts, "variants": settings, "rows": []}

    def tell(row: Row) -> None:
        result["rows"].append(row)
        print("", *(show(row.get(column)) for column in COLUMNS), "", sep="|", flush=True)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1))

    print(*(f"{name}: {value}" for name, value in facts.items()), sep="\n")
    print("", *COLUMNS, "\n" + "|---" * len(COLUMNS), "", sep="|", flush=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for seed in plan.seeds:
            for variant in plan.variants:
                used, held = ([seen(episode, variant) for episode in each] for each in (plan.used, plan.held))
                trial(variant, used, held, marks=plan.marks, seed=seed, tell=tell)
    finally:
        torch.set_num_threads(threads)
    for row in (row for row in result["rows"] if "failed" in row):
        print(f"{row['variant']}, seed {row['seed']}, failed after {row['updates']} updates: {row['failed']}")


def read_plan(args: argparse.Namespace) -> Plan:
    """Read episodes and variants, or say what is wrong: a mistake in the last variant costs no training."""
    lines = [*args.variant, *(line for path in args.variants for line in path.read_text().splitlines())]
    texts = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    earlier = args.marks or [args.seconds * share for share in (0.25, 0.5, 0.75)]
    marks = [*(mark for mark in earlier if mark != args.seconds), args.seconds]
    if not marks[0] > 0 or marks != sorted(set(marks)):
        raise ValueError(f"--marks must rise from above 0 to --seconds, got {' '.join(f'{mark:g}' for mark in marks)}")
    if not texts or min(args.seeds) < 0:
        got = f"{len(texts)} and {min(args.seeds)}"
        raise ValueError(f"--variant must be given, and --seeds must be at least 0, got {got}")
    episodes = [named(episode) for episode in read_episodes(args.data)]
    count = len(episodes) - args.holdout if args.episodes is None else args.episodes
    if min(count, args.holdout) < 1 or count + args.holdout > len(episodes):
        got = f"{count} and {args.holdout}"
        raise ValueError(f"--episodes and --holdout must be at least 1, and share {len(episodes)} episodes, got {got}")
    used, held = episodes[:count], episodes[-args.holdout :]
    longest = max(len(episode.reward) for episode in held)
    if longest < CONTEXT + HORIZONS[-1]:
        raise ValueError(f"an episode held out must have at least {CONTEXT + HORIZONS[-1]} rows, got {longest}")
    path = Path(args.data) / FACTS
    collected = json.loads(path.read_text()) if path.exists() else {}
    variants = [read_variant(text, used[0], args.preset, collected.get("task", "")) for text in texts]
    names = [variant.name for variant in variants]
    if len(set(names)) != len(names):
        raise ValueError(f"each --variant must have a name of its own, got {', '.join(names)}")
    with torch.random.fork_rng(devices=[]):
        for variant in variants:
            build_objective(variant.preset)
            build_model(variant.preset, variant.cell, *shapes_of(seen(used[0], variant)))
    return Plan(variants, used, held, marks, args.seeds, collected)


def trial(
    variant: Variant,
    used: list[pl.Episode],
    held: list[pl.Episode],
    *,
    marks: Sequence[float],
    seed: int,
    tell: Callable[[Row], None],
) -> None:
    """Train one variant up to the last mark, and tell a row at each; at least one update between two of them."""
    preset, (obs_shape, action_dim) = variant.preset, shapes_of(used[0])
    rows = sum(len(episode.reward) for episode in used)
    replay = pl.SequenceReplay(rows, obs_shape=obs_shape, action_dim=action_dim, seed=seed)
    replay.extend(used)
    batches = replay.batches(preset.batch_size, preset.window, sys.maxsize, reuse=True)
    limits: dict[str, Any] = {"grad_clip": preset.grad_clip}
    limits |= {"autocast": torch.bfloat16 if preset.precision == "bfloat16" else None}
    done, spent, found = 0, 0.0, list[dict[str, Tensor]]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(preset, variant.cell, obs_shape, action_dim)
        optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate, eps=preset.adam_eps, fused=True)
        objective = build_objective(preset)
        for mark in marks:
            row: Row = {"variant": variant.name, "seed": seed, "mark": mark}
            try:
                while spent < mark or not found:
                    began = time.process_time()
                    training.warm_up(optimizer, preset.learning_rate, done, preset.warmup_updates)
                    found.append(training.update(model, optimizer, next(batches), objective, **limits).metrics())
                    done, spent = done + 1, spent + time.process_time() - began
            except FloatingPointError as error:
                tell({**row, "cpu_seconds": spent, "updates": done, "failed": str(error)})
                return
            row |= {"cpu_seconds": spent, "updates": done, "ms_per_update": 1000 * spent / done}
            means = {name: torch.stack([each[name] for each in found]).mean().item() for name in found[0]}
            found.clear()
            tell({**row, **means, **judge(model, held)})


@torch.no_grad()
def judge(model: pl.WorldModel, held: Sequence[pl.Episode]) -> Row:
    """Measure a model on whole episodes; draws the same noise each time, and training's goes on as if not looked at."""
    terms: dict[str, float] = dict.fromkeys(("obs", "reward", "kl"), 0.0)
    pairs, steps = [], torch.arange(1, HORIZONS[-1] + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for episode in held:  # one at a time, since the activations of all might not fit into memory
            rows: Row = {name: torch.from_numpy(getattr(episode, name)).unsqueeze(1) for name in pl.Episode._fields[:5]}
            batch = pl.Batch(**rows, mask=torch.ones(len(episode.reward), 1, dtype=torch.bool))
            obs = prepare(batch.obs)
            prior, posterior = pl.observe(model.cell, model.encoder(obs), batch.action, batch.is_first)
            raw = pl.elbo_loss(model, batch, obs, prior, posterior).raw
            for name in terms:
                terms[name] += float(raw[name]) / len(held)
            starts = torch.arange(CONTEXT - 1, max(len(batch.reward) - HORIZONS[-1], CONTEXT - 1), EVERY)
            if not len(starts):
                continue
            ahead = starts + steps.unsqueeze(1)  # [H, N]
            state = type(posterior)(*(field[starts, 0] for field in posterior))
            futures = [pl.imagine(model.cell, state, batch.action[ahead, 0]) for _ in range(SAMPLES)]
            rewards = torch.stack([model.reward_head(model.cell.features(future)) for future in futures]).mean(0)
            pairs.append((rewards, batch.reward[ahead, 0]))
    foreseen, true = (torch.cat(part, dim=1) for part in zip(*pairs, strict=True))
    return {**scores(foreseen, true), **{f"held_{name}": value for name, value in terms.items()}}


def scores(foreseen: Tensor, true: Tensor) -> dict[str, float | None]:
    """R2 of rewards [H, N] foreseen: at each of HORIZONS, counted from 1, and of the sum over all H."""
    at = [r2(foreseen[horizon - 1], true[horizon - 1]) for horizon in HORIZONS]
    return dict(zip(R2, (*at, r2(foreseen.sum(0), true.sum(0))), strict=True))


def r2(foreseen: Tensor, true: Tensor) -> float | None:
    """1 - mean squared error / variance; None where all are equal, and there is nothing to foresee.

    Example:
        >>> r2(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 3.0, 5.0]))
        0.75
    """
    variance = true.double().var(correction=0).item()
    return 1 - (foreseen.double() - true.double()).square().mean().item() / variance if variance > 0 else None


def describe(plan: Plan) -> Row:
    """What a reader needs to know of the trials, the episodes and the machine."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = info.partition("model name\t: ")[2].partition("\n")[0] or platform.processor() or "unknown"
    checksum = 0
    for episode in (*plan.used, *plan.held):
        checksum = episode_checksum(episode, checksum)
    facts: Row = {"episodes": len(plan.used), "holdout": len(plan.held), "checksum of the episodes": checksum}
    facts |= {"collected": plan.collected, "marks": plan.marks, "seeds": plan.seeds}
    facts |= {"cpu": cpu, "cores": os.cpu_count(), "threads": 1, "load before the start": os.getloadavg()[0]}
    return {**facts, **versions()}


def show(value: Any) -> str:
    """A number as the table shows it; nothing for None."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    playing = commands.add_parser("collect", help="play episodes and save them")
    playing.add_argument("--task", default="dmc:cartpole-swingup", help="of the suite")
    playing.add_argument("--cameras", nargs="+", required=True, help="names; all record the same episodes")
    playing.add_argument("--size", type=int, default=64, help="height and width that frames are drawn at")
    playing.add_argument("--episodes", type=int, default=60)
    playing.add_argument("--time-limit", type=float, help="seconds of an episode; the task's own if left out")
    playing.add_argument("--renderer", choices=("auto", "gl", "rays"), default="auto")
    playing.add_argument("--seed", type=int, default=0, help="of everything random")
    playing.add_argument("--out", type=Path, required=True, help="folder for the episodes")
    trials = commands.add_parser("train", help="train variants on saved episodes, and say what they foresee")
    trials.add_argument("data", help="folder of episodes, or a training run")
    trials.add_argument("--variant", action="append", default=[], help='"name: field=value ...", as often as wanted')
    trials.add_argument("--variants", type=Path, nargs="+", default=[], help="files of such lines; # begins a comment")
    trials.add_argument("--preset", choices=tuple(PRESETS), default="cpu", help="what the variants change")
    trials.add_argument("--seconds", type=float, default=120.0, help="CPU seconds of training for each")
    trials.add_argument("--marks", type=float, nargs="+", help="seconds to report at, besides; quarters if left out")
    trials.add_argument("--episodes", type=int, help="trained on, the first; all but --holdout if left out")
    trials.add_argument("--holdout", type=int, default=12, help="the last episodes, never trained on")
    trials.add_argument("--seeds", type=int, nargs="+", default=[0], help="each variant is trained once under each")
    trials.add_argument("--out", type=Path, help="a JSON file for all of it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
