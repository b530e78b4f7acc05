"""Settings of a whole PlaNet run, the presets `paper`, `camera_ready`, `v1` and `cpu`, and the parts they describe.

This is the only module that knows the paper's numbers as a set; the parts take plain numbers. Examples and users import
it, the rest of the library does not.

Sources: `paper` is arXiv:1811.04551, appendix A and algorithm 2; `camera_ready` and `v1` are google-research/planet at
its last and its first commit, apart from what was a bug there; `cpu` is ours, for two cores and no GPU. `sources` says
where each single value comes from.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import nn

from planet_lib._shapes import check_choice
from planet_lib.models import (
    ContinueHead,
    ConvEncoder,
    Decoder,
    DictDecoder,
    DictEncoder,
    PatchDecoder,
    PatchEncoder,
    RewardHead,
    RNNCell,
    RSSMCell,
    SSMCell,
    VectorEncoder,
    WorldModel,
    init_glorot_,
)
from planet_lib.planning import (
    CEMPlanner,
    ICEMPlanner,
    LatentDynamics,
    MPPIPlanner,
    PlanningAgent,
    RandomShootingPlanner,
)
from planet_lib.training._preset import Preset
from planet_lib.training._preset_values import CAMERA_READY, CPU, PAPER, V1
from planet_lib.training.update import Objective

__all__ = [
    "PRESETS",
    "Preset",
    "build_agent",
    "build_model",
    "build_objective",
    "get_preset",
    "obs_shape_of",
    "sources",
]

_TABLES = {"paper": PAPER, "camera_ready": CAMERA_READY, "v1": V1, "cpu": CPU}

PRESETS: dict[str, Preset] = {
    preset: Preset.from_settings({name: value for name, (value, _) in table.items()})
    for preset, table in _TABLES.items()
}


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


# Cameras that follow the body. From the paper's, cartpole's pole is a pixel wide and the cart leaves the picture.
_FOLLOWING_CAMERAS = {"dmc:cartpole": "lookatcart"}


def get_preset(name: str, *, cell: str = "rssm", env: str = "") -> Preset:
    """Return a preset by name, as it is for a cell and an environment.

    The RNN's divergence is no KL between distributions that may differ by some nats for free, so its free_nats are 0.
    Environments of Gymnasium may terminate, so there a head learns whether the episode goes on: continue_scale is 1.
    The preset `cpu` looks through the camera that follows the body, where it knows of one: its networks are small, and
    details of a pixel's width cost them most of an hour. The others look through the paper's, the first. Its learning
    rate is 1e-3 for the RNN, which diverged at 3e-3.

    Args:
        name: "paper", "camera_ready", "v1" or "cpu".
        cell: "rssm", "ssm" or "rnn".
        env: the environment's name, as for `planet_lib.envs.make_env`.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> get_preset("paper").free_nats, get_preset("paper", cell="rnn").free_nats
        (3.0, 0.0)
        >>> get_preset("cpu", env="dmc:cartpole-balance").camera
        'lookatcart'
        >>> get_preset("cpu", env="gym:Hopper-v5").continue_scale
        1.0
    """
    _table(name)
    preset = PRESETS[name]
    if cell == "rnn":
        preset = replace(preset, free_nats=0.0)
    if env.startswith("gym:"):
        preset = replace(preset, continue_scale=1.0)
    if name == "cpu":
        if cell == "rnn":
            preset = replace(preset, learning_rate=1e-3)  # at 3e-3 a run diverged after 3200 updates
        preset = replace(preset, camera=_FOLLOWING_CAMERAS.get(env.partition("-")[0], ""))
    return preset


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
    if entries is None:
        return tuple(space.shape)
    return {name: tuple(entry.shape) for name, entry in entries.items()}


def build_model(
    preset: Preset, cell: str, obs_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]], action_dim: int
) -> WorldModel:
    """Make the world model that a preset describes, freshly initialised from torch's global generator.

    It has a continue head where the preset's continue_scale is above 0.

    Args:
        preset: sizes and kind of network.
        cell: "rssm", "ssm" or "rnn".
        obs_shape: (C, Y, X) of pixels, (N,) of a vector, or such a shape for each entry of a dictionary.
        action_dim: A.

    Returns:
        The model, on the CPU in float32.

    Raises:
        ValueError: an unknown cell, network or initialisation, or another setting that the parts refuse.

    Example:
        >>> model = build_model(PRESETS["paper"], "rssm", (3, 64, 64), 6)
        >>> type(model.cell).__name__, model.cell.feature_dim, model.continue_head
        ('RSSMCell', 230, None)
        >>> model = build_model(PRESETS["cpu"], "ssm", {"pixels": (3, 64, 64), "state": (5,)}, 6)
        >>> model.encoder.embed_dim
        512
    """
    encoder: nn.Module
    decoder: nn.Module
    if isinstance(obs_shape, Mapping):
        encoders = {name: _build_encoder(preset, shape) for name, shape in obs_shape.items()}
        encoder = DictEncoder(encoders)
        latent = _build_cell(preset, cell, action_dim, encoder.embed_dim)
        decoder = DictDecoder(
            {
                name: _build_decoder(preset, latent.feature_dim, shape, encoders[name].embed_dim)
                for name, shape in obs_shape.items()
            }
        )
    else:
        encoder = _build_encoder(preset, obs_shape)
        latent = _build_cell(preset, cell, action_dim, encoder.embed_dim)
        decoder = _build_decoder(preset, latent.feature_dim, obs_shape, encoder.embed_dim)
    sizes = {"hidden_dim": preset.reward_hidden_dim, "num_hidden": preset.reward_num_hidden}
    reward_head = RewardHead(latent.feature_dim, **sizes, activation=preset.activation)
    goes_on = None
    if preset.continue_scale > 0:
        goes_on = ContinueHead(latent.feature_dim, **sizes, activation=preset.activation)
    model = WorldModel(encoder, latent, decoder, reward_head, goes_on)
    if preset.init == "glorot":
        init_glorot_(model)
    return model


def build_objective(preset: Preset) -> Objective:
    """Make the objective of the updates that a preset describes.

    Args:
        preset: its weights; a kl_balance or overshooting_chunk of 0 becomes None.

    Example:
        >>> objective = build_objective(PRESETS["v1"])
        >>> objective.overshooting_distance, objective.free_nats, objective.kl_balance
        (49, 2.0, None)
    """
    same = {
        item.name: getattr(preset, item.name)
        for item in fields(Objective)
        if item.name not in ("kl_balance", "overshooting_chunk")
    }
    return Objective(**same, kl_balance=preset.kl_balance or None, overshooting_chunk=preset.overshooting_chunk or None)


def build_agent(preset: Preset, model: WorldModel) -> PlanningAgent:
    """Make the agent that plans in `model` as a preset describes, for actions in [-1, 1].

    Args:
        preset: the planner's budget and the exploration noise.
        model: the world model, which is not copied.

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
    check_choice("planner", preset.planner, _PLANNERS)
    kind = _PLANNERS[preset.planner]
    sizes: dict[str, Any] = {name: getattr(preset, name) for name in ("horizon", "num_candidates", "num_iterations")}
    if preset.planner in ("cem", "icem"):
        sizes |= {"num_elites": preset.num_elites, "deviation": preset.deviation}
    from_here: dict[str, Any] = {"start": preset.start, "discount": preset.discount}
    dynamics = LatentDynamics(model, **from_here)
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
    if name not in _TABLES:
        raise ValueError(f"name must be paper, camera_ready, v1 or cpu, got {name!r}")
    return _TABLES[name]


def _build_cell(preset: Preset, cell: str, action_dim: int, embed_dim: int) -> RSSMCell | SSMCell | RNNCell:
    common: dict[str, Any] = {
        name: getattr(preset, name) for name in ("hidden_dim", "num_layers", "activation", "init")
    }
    gaussian = {name: getattr(preset, name) for name in ("stoch_dim", "min_std", "min_std_mode")}
    path = {name: getattr(preset, name) for name in ("deter_dim", "gru")}
    if cell == "rssm":
        return RSSMCell(action_dim, embed_dim, **common, **gaussian, **path)
    if cell == "ssm":
        return SSMCell(action_dim, embed_dim, **common, **gaussian)
    if cell == "rnn":
        return RNNCell(action_dim, embed_dim, **common, **path, stoch_dim=preset.stoch_dim)
    raise ValueError(f"cell must be rssm, ssm or rnn, got {cell!r}")


def _build_encoder(preset: Preset, obs_shape: tuple[int, ...]) -> ConvEncoder | PatchEncoder | VectorEncoder:
    if len(obs_shape) == 1:
        return VectorEncoder(obs_shape[0], embed_dim=preset.embed_dim or 200)
    if preset.network == "conv":
        return ConvEncoder(_image(obs_shape), depth=preset.depth, embed_dim=preset.embed_dim or None)
    if preset.network == "patch":
        return PatchEncoder(_image(obs_shape), patch_dim=preset.depth, embed_dim=preset.embed_dim or 256)
    raise ValueError(f"network must be conv or patch, got {preset.network!r}")


def _build_decoder(
    preset: Preset, feature_dim: int, obs_shape: tuple[int, ...], embed_dim: int
) -> Decoder | PatchDecoder:
    if len(obs_shape) == 3 and preset.network == "patch":
        return PatchDecoder(feature_dim, _image(obs_shape), patch_dim=preset.depth, hidden_dim=embed_dim)
    return Decoder(feature_dim, obs_shape, depth=preset.depth, hidden_dim=preset.hidden_dim)


def _image(obs_shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = obs_shape
    return channels, height, width
