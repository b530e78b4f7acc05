"""The episodes of `model_trials.py`: how they are played and saved, and what a variant is and sees of them."""

import argparse
import difflib
import importlib.metadata
import json
import math
import subprocess
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import planet_lib as pl
from planet_lib import training
from planet_lib.data import run_episode, save_episode
from planet_lib.envs import make_env
from planet_lib.envs.images import keep_channels, resize_area
from planet_lib.training.presets import Preset, get_preset

NOISE = (None, 0.6, 0.3, 0.3)  # of the episodes in turn; None is uniformly random actions
PLANNER: dict[str, Any] = {"horizon": 12, "num_candidates": 32, "num_iterations": 3, "num_elites": 5}
FACTS = "collection.json"
# Fields of a preset that change nothing here: they are about collecting, or about the planner.
UNUSED = {"num_episodes", "seed_episodes", "updates_per_episode", "eval_every", "eval_episodes", "replay_capacity"}
UNUSED |= {"supersample", "action_repeat", "planner", "warm_start", "horizon", "num_candidates", "num_elites"}
UNUSED |= {"deviation", "start", "transition", "discount", "num_iterations", "exploration_std"}

Row = dict[str, Any]


class Variant(NamedTuple):
    """What is trained: a preset, a cell, and what it sees, "pixels" of the preset's camera or "state"."""

    name: str
    preset: Preset
    cell: str
    obs: str


def collect(args: argparse.Namespace) -> None:
    """Play the episodes and save each as soon as it is over; each depends on --seed and its number alone."""
    if min(args.episodes, args.size) < 1 or args.seed < 0:
        got = f"{args.episodes}, {args.size} and {args.seed}"
        raise ValueError(f"--episodes and --size must be at least 1, and --seed at least 0, got {got}")
    names = ["state", *args.cameras]
    if len(set(names)) != len(names):
        raise ValueError(f'--cameras must be different ones, none of them called "state", got {" ".join(args.cameras)}')
    if args.out.exists() and any(args.out.glob("*.npz")):
        raise FileExistsError(f"--out must hold no episodes yet, got {args.out}: choose another folder")
    limit = {} if args.time_limit is None else {"time_limit": args.time_limit}
    look: dict[str, Any] = {"image_size": (args.size, args.size), "renderer": args.renderer, **limit}
    envs: dict[str, Any] = {"state": make_env(args.task, obs="state", **limit)}
    try:
        for camera in args.cameras:
            envs[camera] = make_env(args.task, obs="pixels", camera=camera, **look)
        dynamics = pl.MuJoCoDynamics.from_env(envs["state"], num_threads=1)
        action_dim = math.prod(envs["state"].action_space.shape)
        planner = pl.ICEMPlanner(dynamics, -1.0, 1.0, action_dim=action_dim, **PLANNER)
        facts = {"task": args.task, "cameras": args.cameras, "size": args.size, "seed": args.seed, "noise": NOISE}
        facts |= {"renderer": envs[args.cameras[0]].renderer, "planner": PLANNER, "time_limit": args.time_limit}
        returns: list[float] = []
        for number in range(args.episodes):
            seed = int(np.random.SeedSequence([args.seed, number]).generate_state(1)[0])
            noise = NOISE[number % len(NOISE)]
            episode = play(envs, planner, noise, seed)
            save_episode(args.out, episode, number)
            returns.append(float(episode.reward.sum()))
            (args.out / FACTS).write_text(json.dumps({**facts, "returns": returns, **versions()}, indent=1))
            print(f"episode {number}: {f'noise {noise}' if noise else 'random'}, return {returns[-1]:.1f}", flush=True)
    finally:
        for env in envs.values():
            env.close()


def play(envs: dict[str, Any], planner: Any, noise: float | None, seed: int) -> pl.Episode:
    """Play an episode on the true simulator, then the same actions before each camera, and put them together."""
    generator = torch.Generator().manual_seed(seed)

    def act(obs: Any, is_first: Tensor, plan: pl.Plan | None) -> tuple[Tensor, pl.Plan | None]:
        if noise is None:
            return 2 * torch.rand(1, planner.action_dim, generator=generator) - 1, None
        plan = planner(planner.dynamics.state(), previous=plan, generator=generator)
        normal = torch.randn(plan.action.shape, generator=generator, dtype=plan.action.dtype)
        return planner.explore(plan.action, noise, normal), plan

    played = run_episode(envs["state"], act, seed=seed)
    seen_by: dict[str, Any] = {"state": played.obs}
    actions = torch.from_numpy(played.action)

    def again(obs: Any, is_first: Tensor, number: int | None) -> tuple[Tensor, int]:
        number = 1 if number is None else number + 1
        return actions[number].unsqueeze(0), number

    for name in (name for name in envs if name != "state"):
        replayed = run_episode(envs[name], again, seed=seed)
        if not np.array_equal(replayed.reward, played.reward):
            raise RuntimeError(f"camera {name} must see the same episode, got other rewards from the same actions")
        seen_by[name] = replayed.obs
    return played._replace(obs=seen_by)


def named(episode: pl.Episode) -> pl.Episode:
    """The episode with observations by name, also where it was recorded with one kind alone."""
    obs = episode.obs
    return episode if isinstance(obs, dict) else episode._replace(obs={"pixels" if obs.ndim == 4 else "state": obs})


def read_variant(text: str, episode: pl.Episode, start: str, task: str) -> Variant:
    """Read "name: field=value ..." as changes of the preset `start`, or say what is wrong; `obs` and `cell` are others.

    The camera is the first that was recorded, unless the text names another.
    """
    name, rest = text.partition(":")[0].strip(), text.partition(":")[2]
    if not name or "=" in name:
        raise ValueError(f'--variant must be "name: field=value ...", got {text!r}')
    given = dict[str, str]()
    usable = [item.name for item in fields(Preset) if item.name not in UNUSED] + ["obs", "cell"]
    for part in rest.split():
        key, equals, given[key] = part.partition("=")
        if not equals:
            raise ValueError(f'--variant must be "name: field=value ...", got {text!r}')
        if key not in usable:
            near = "".join(f"; did you mean {match}?" for match in difflib.get_close_matches(key, usable, n=1))
            why = "changes nothing here" if key in UNUSED else f"is none{near}"
            raise ValueError(f"variant {name!r} must set fields of Preset, obs or cell, got {key!r}, which {why}")
    cell, obs = given.pop("cell", "rssm"), given.pop("obs", "pixels")
    shapes = {entry: len(value.shape) for entry, value in dict(episode.obs).items()}
    cameras = [entry for entry, rank in shapes.items() if rank == 4]
    changes: Row = {"camera": cameras[0] if cameras else ""}
    preset = get_preset(start, cell=cell, env=task)
    for key, value in given.items():
        kind = type(getattr(preset, key))
        try:
            changes[key] = kind(value)
        except ValueError as error:
            raise ValueError(f"variant {name!r}: {key} must be of type {kind.__name__}, got {value!r}") from error
    variant = Variant(name, replace(preset, **changes), cell, obs)
    training.check_settings(variant.preset.settings())
    if obs not in ("pixels", "state") or shapes.get(entry_of(variant)) != (4 if obs == "pixels" else 2):
        got = f"obs={obs} camera={variant.preset.camera}"
        raise ValueError(f"variant {name!r} must see obs=state or a camera of {', '.join(shapes)}, got {got}")
    return variant


def entry_of(variant: Variant) -> str:
    """The name of what the variant sees, among the observations."""
    return "state" if variant.obs == "state" else variant.preset.camera


def seen(episode: pl.Episode, variant: Variant) -> pl.Episode:
    """The episode as the variant sees it: frames [L, C, Y, X] in its channels and at its size."""
    value, size = dict(episode.obs)[entry_of(variant)], variant.preset.image_size
    if variant.obs == "state":
        return episode._replace(obs=value)
    length, count, height, width = value.shape
    if size > min(height, width):
        got = f"image_size={size} in variant {variant.name!r}"
        raise ValueError(f"frames must be drawn at least as large as they are seen, got {height}x{width} and {got}")
    channels: Any = variant.preset.channels if count == 3 else "all"
    frames = keep_channels(value.transpose(2, 3, 0, 1), channels).reshape(height, width, -1)
    small = resize_area(frames, (size, size)).reshape(size, size, length, -1)
    return episode._replace(obs=np.ascontiguousarray(small.transpose(2, 3, 0, 1)))


def settings_of(variant: Variant) -> Row:
    """Everything of a variant that counts here."""
    preset = {name: value for name, value in variant.preset.settings().items() if name not in UNUSED}
    return {"obs": variant.obs, "cell": variant.cell, **preset}


def versions() -> Row:
    """The commit, and the versions that numbers depend on."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(git, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown"
    installed = {dist.metadata["Name"].replace("-", "_"): dist.version for dist in importlib.metadata.distributions()}
    wanted = ("torch", "numpy", "mujoco", "dm_control")
    return {"commit": commit, **{name: installed[name] for name in wanted if name in installed}}
