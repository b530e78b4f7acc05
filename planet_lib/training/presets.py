"""Settings of a whole PlaNet run, the presets `paper`, `camera_ready`, `v1` and `cpu`, and the parts they describe.

This is the only module that knows the paper's numbers as a set; the parts take plain numbers. Examples and users import
it, the rest of the library does not.

Sources: `paper` is arXiv:1811.04551, appendix A and algorithm 2; `camera_ready` and `v1` are google-research/planet at
its last and its first commit, apart from what was a bug there; `cpu` is ours, for two cores and no GPU. `sources` says
where each single value comes from.
"""

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from planet_lib._shapes import check_choice, check_flag, shown, whole_sizes
from planet_lib.models import WorldModel
from planet_lib.planning import (
    CEMPlanner,
    DiscreteCEMPlanner,
    ICEMPlanner,
    LatentDynamics,
    MPPIPlanner,
    Planner,
    PlanningAgent,
    RandomShootingPlanner,
)
from planet_lib.training._build_model import build_model
from planet_lib.training._preset import Preset, check_preset
from planet_lib.training._preset_values import CAMERA_READY, CPU, PAPER, V1
from planet_lib.training.update import Objective

__all__ = [
    "LOOK_FIELDS",
    "MODEL_FIELDS",
    "PRESETS",
    "Preset",
    "add_flags",
    "build_agent",
    "build_model",
    "build_objective",
    "env_settings",
    "get_preset",
    "obs_shape_of",
    "sources",
]

_TABLES = {"paper": PAPER, "camera_ready": CAMERA_READY, "v1": V1, "cpu": CPU}

PRESETS: dict[str, Preset] = {
    preset: Preset.from_settings({name: value for name, (value, _) in table.items()})
    for preset, table in _TABLES.items()
}

MODEL_FIELDS = (
    *("image_size", "channels", "network", "depth", "embed_dim", "deter_dim", "stoch_dim", "hidden_dim", "num_layers"),
    *("activation", "min_std", "min_std_mode", "gru", "init", "reward_hidden_dim", "reward_num_hidden"),
)
"""The fields of a preset that make a model what it is: weights of one fit no model with others."""


LOOK_FIELDS = ("camera", "supersample", "action_repeat")
"""The fields that say how an environment is seen and acted in, besides the shape of its frames."""


def sources(name: str) -> dict[str, str]:
    """Return where each value of a preset comes from, by field.

    Args:
        name: "paper", "camera_ready", "v1" or "cpu".

    Returns:
        One text per field of `Preset`, which begins with "paper:" (arXiv:1811.04551, and where), "code:" (a file of
        google-research/planet, and what is called so there) or "ours:" (and why).

    Raises:
        ValueError: an unknown name.

    Example:
        >>> sources("paper")["free_nats"], sources("v1")["global_kl_scale"]
        ('paper: appendix A', 'code: scripts/configs.py, global_divergence_scale')
    """
    return {field_name: source for field_name, (_, source) in _table(name).items()}


# What the preset `cpu` has otherwise for the tasks of a body; docs/results/cpu-preset.md says why.
_BODIES: dict[str, dict[str, Any]] = {
    # From the paper's camera the pole is a pixel wide, and the cart leaves the picture.
    "dmc:cartpole": {"camera": "lookatcart"},
    # The ball is two pixels wide and rarely caught: seen upright, weighed more, tried more often, searched for longer.
    "dmc:ball_in_cup": {
        "camera": "cam1",
        "obs_scale": 400.0,
        "free_nats": 0.0,
        "seed_episodes": 40,
        "updates_per_episode": 300,
        "num_candidates": 200,
        "num_elites": 20,
    },
}


def get_preset(name: str, *, cell: str = "rssm", env: str = "") -> Preset:
    """Return a preset by name, as it is for a cell and an environment.

    The RNN's divergence is no KL between distributions that may differ by some nats for free, so its free_nats are 0.
    Environments of Gymnasium may terminate, so there a head learns whether the episode goes on: continue_scale is 1.
    The preset `cpu` looks at cartpole through the camera that follows the cart: its frames are small, and its model
    learns far less from details of a pixel's width. For ball_in_cup it has another camera, too, and other scales and
    numbers (docs/results/cpu-preset.md). The other presets look through the paper's camera, the first. Its learning
    rate is 1e-3 for the RNN, which diverged at 3e-3 with a larger network.

    Args:
        name: "paper", "camera_ready", "v1" or "cpu".
        cell: "rssm", "ssm" or "rnn".
        env: the environment's name, as for `planet_lib.envs.make_env`, or those of several tasks, separated by commas;
            what depends on the body is chosen where all of them have the same one.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> get_preset("paper").free_nats, get_preset("paper", cell="rnn").free_nats
        (3.0, 0.0)
        >>> get_preset("cpu", env="dmc:cartpole-balance").camera
        'lookatcart'
        >>> get_preset("cpu", env="dmc:ball_in_cup-catch").num_candidates
        200
        >>> get_preset("cpu", env="gym:Hopper-v5").continue_scale
        1.0
    """
    _table(name)
    given: object = env
    if not isinstance(given, str):
        raise TypeError(f"env must be the name of an environment, or several, separated by commas, got {shown(env)}")
    check_choice("cell", cell, ("rssm", "ssm", "rnn"))
    preset = PRESETS[name]
    if cell == "rnn":
        preset = replace(preset, free_nats=0.0)
    tasks = env.split(",")
    if any(task.startswith("gym:") for task in tasks):
        preset = replace(preset, continue_scale=1.0)
    if name == "cpu":
        if cell == "rnn":
            preset = replace(preset, learning_rate=1e-3)  # at 3e-3 a run diverged after 3200 updates
        bodies = {task.partition("-")[0] for task in tasks}
        preset = replace(preset, **_BODIES.get(bodies.pop(), {}) if len(bodies) == 1 else {})
    return preset


def add_flags(parser: ArgumentParser, preset: Preset) -> None:
    """Give a command line one flag for each field of `Preset`, with the values of `preset` as defaults.

    Example:
        >>> from argparse import ArgumentParser
        >>> parser = ArgumentParser()
        >>> add_flags(parser, PRESETS["paper"])
        >>> parser.parse_args(["--batch-size", "10"]).batch_size, parser.parse_args([]).free_nats
        (10, 3.0)
    """
    given: object = parser
    if not isinstance(given, ArgumentParser):
        raise TypeError(f"parser must be an argparse.ArgumentParser, got {shown(given)}")
    check_preset(preset)
    group = parser.add_argument_group("settings of the preset")
    for item in fields(Preset):
        value = getattr(preset, item.name)
        group.add_argument(
            f"--{item.name.replace('_', '-')}",
            type=type(value),
            default=value,
            metavar={int: "N", float: "X", str: "NAME"}[type(value)],
            help=item.metadata["help"],
        )


def env_settings(preset: Preset) -> dict[str, Any]:
    """Return what a preset says of the environment, as `planet_lib.envs.make_env` takes it.

    Example:
        >>> env_settings(PRESETS["paper"])
        {'image_size': (64, 64), 'supersample': 1, 'channels': 'all', 'camera': None, 'action_repeat': None}
    """
    check_preset(preset)
    return {
        "image_size": (preset.image_size, preset.image_size),
        "supersample": preset.supersample,
        "channels": preset.channels,
        "camera": preset.camera or None,
        "action_repeat": preset.action_repeat or None,
    }


def obs_shape_of(space: Any) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """Return the obs_shape that `build_model` and `SequenceReplay` take, from an environment's observation space.

    Args:
        space: Gymnasium's Box, or a Dict of them.

    Example:
        >>> from types import SimpleNamespace as Space
        >>> obs_shape_of(Space(spaces={"pixels": Space(shape=(3, 64, 64)), "state": Space(shape=(5,))}))
        {'pixels': (3, 64, 64), 'state': (5,)}
    """
    entries = getattr(space, "spaces", None)
    if entries is not None and not isinstance(entries, Mapping):
        raise TypeError(f"space must be a Box, or a Dict of them, got {shown(space)}; give environments to make_env")
    shapes = {name: whole_sizes(getattr(entry, "shape", None)) for name, entry in (entries or {"": space}).items()}
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    if len(known) < len(shapes) or not all(isinstance(name, str) for name in known):
        raise TypeError(f"space must be a Box, or a Dict of them, got {shown(space)}; give environments to make_env")
    return known[""] if entries is None else known


def build_objective(preset: Preset) -> Objective:
    """Make the objective of the updates that a preset describes.

    Args:
        preset: its weights; a kl_balance or overshooting_chunk of 0 becomes None.

    Example:
        >>> objective = build_objective(PRESETS["v1"])
        >>> objective.overshooting_distance, objective.free_nats, objective.kl_balance
        (49, 2.0, None)
    """
    check_preset(preset)
    same = {
        item.name: getattr(preset, item.name)
        for item in fields(Objective)
        if item.name not in ("kl_balance", "overshooting_chunk")
    }
    return Objective(**same, kl_balance=preset.kl_balance or None, overshooting_chunk=preset.overshooting_chunk or None)


def build_agent(preset: Preset, model: WorldModel, *, one_hot: bool = False) -> PlanningAgent:
    """Make the agent that plans in `model` as a preset describes, for actions in [-1, 1] or one-hot ones.

    One-hot actions are planned by `DiscreteCEMPlanner`, and exploration_std is then how often a choice is made at
    random.

    Args:
        preset: the planner's budget and the exploration noise.
        model: the world model, which is not copied.
        one_hot: whether an action is a choice among action_dim, as in environments with Discrete actions.

    Returns:
        The agent, over the preset's planner over `LatentDynamics`.

    Raises:
        ValueError: a setting of the planner out of its range.

    Example:
        >>> preset = PRESETS["paper"]
        >>> agent = build_agent(preset, build_model(preset, "rssm", (5,), 6))
        >>> agent.planner.action_dim, agent.exploration_std
        (6, 0.3)
    """
    check_preset(preset)
    check_flag(one_hot=one_hot)
    model_given: object = model
    if not isinstance(model_given, WorldModel):
        raise TypeError(f"model must be a WorldModel, got {shown(model_given)}")
    check_choice("planner", preset.planner, _PLANNERS)
    kind = _PLANNERS[preset.planner]
    if one_hot and preset.planner != "cem":
        raise ValueError(f"planner must be cem where actions are discrete, got {preset.planner!r}")
    sizes: dict[str, Any] = {name: getattr(preset, name) for name in ("horizon", "num_candidates", "num_iterations")}
    if preset.planner in ("cem", "icem"):
        sizes |= {"num_elites": preset.num_elites}
    from_here: dict[str, Any] = {
        "start": preset.start,
        "transition": preset.transition,
        "discount": preset.discount,
    }
    dynamics = LatentDynamics(model, **from_here)
    planner: Planner
    if one_hot:
        planner = DiscreteCEMPlanner(dynamics, model.cell.action_dim, **sizes)
    else:
        if preset.planner in ("cem", "icem"):
            sizes |= {"deviation": preset.deviation}
        planner = kind(dynamics, -1.0, 1.0, action_dim=model.cell.action_dim, **sizes)
    if preset.warm_start not in (0, 1):
        raise ValueError(f"warm_start must be 0 or 1, got {preset.warm_start}")
    return PlanningAgent(model, planner, exploration_std=preset.exploration_std, warm_start=bool(preset.warm_start))


_PLANNERS: dict[str, Any] = {
    "cem": CEMPlanner,
    "icem": ICEMPlanner,
    "mppi": MPPIPlanner,
    "shooting": RandomShootingPlanner,
}


def _table(name: str) -> Mapping[str, tuple[Any, str]]:
    given: object = name
    if not isinstance(given, str) or given not in _TABLES:
        raise ValueError(f"name must be paper, camera_ready, v1 or cpu, got {shown(name)}")
    return _TABLES[name]
