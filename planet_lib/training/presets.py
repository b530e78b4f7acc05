"""Settings of a whole PlaNet run, and the presets `cpu`, `paper` and `camera_ready`.

This is the only module that knows the paper's numbers as a set; the parts take plain numbers. Examples and users import
it, the rest of the library does not.

Sources: `paper` is arXiv:1811.04551, appendix A and algorithm 2; `camera_ready` is google-research/planet at its last
commit (scripts/configs.py, networks/basic.py), which differs from the paper in the reward head and the loss scales;
`cpu` is ours, for two cores and no GPU.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from planet_lib.models import (
    ConvEncoder,
    Decoder,
    PatchDecoder,
    PatchEncoder,
    RewardHead,
    RNNCell,
    RSSMCell,
    SSMCell,
    VectorEncoder,
    WorldModel,
)
from planet_lib.planning import CEMPlanner, LatentDynamics, PlanningAgent


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Every setting of a run; the defaults are the paper's. Each field's metadata["help"] says what it is.

    Example:
        >>> preset = replace(PRESETS["paper"], batch_size=8)
        >>> preset.batch_size, preset.window, preset.free_nats
        (8, 50, 3.0)
    """

    num_episodes: int = _setting(1000, "training episodes, after the seed episodes")
    seed_episodes: int = _setting(5, "episodes of uniformly random actions before the first update")
    updates_per_episode: int = _setting(100, "updates before each training episode")
    eval_every: int = _setting(25, "training episodes between evaluations")
    eval_episodes: int = _setting(10, "episodes of an evaluation")
    replay_capacity: int = _setting(1_000_000, "rows kept in memory (12 KiB each at 64x64x3)")

    image_size: int = _setting(64, "height and width of a frame in pixels")
    camera: str = _setting("", "name of the camera that looks on; empty is the environment's first")
    action_repeat: int = _setting(0, "environment steps per decision; 0 is the paper's choice for the task")
    batch_size: int = _setting(50, "windows in a batch (B)")
    window: int = _setting(50, "rows in a window (T)")

    network: str = _setting("conv", "image encoder and decoder: conv (the paper's) or patch (matrix products only)")
    depth: int = _setting(32, "channels of the first convolution, or numbers per patch")
    embed_dim: int = _setting(0, "size of the embedding; 0 is 1024 (conv), 256 (patch) or 200 (state)")
    deter_dim: int = _setting(200, "size of the deterministic path (D)")
    stoch_dim: int = _setting(30, "size of the stochastic state (S)")
    hidden_dim: int = _setting(200, "size of the cell's hidden layers")
    min_std: float = _setting(0.1, "added to every standard deviation of the latent state")
    reward_hidden_dim: int = _setting(200, "size of the reward head's hidden layers")
    reward_num_hidden: int = _setting(2, "hidden layers of the reward head")

    free_nats: float = _setting(3.0, "nats of divergence per row that cost nothing")
    obs_scale: float = _setting(1.0, "weight of the observation term")
    reward_scale: float = _setting(1.0, "weight of the reward term")
    kl_scale: float = _setting(1.0, "weight of the divergence")
    overshooting_distance: int = _setting(1, "largest distance of latent overshooting; 1 is none")
    overshooting_scale: float = _setting(1.0, "weight of latent overshooting")

    learning_rate: float = _setting(1e-3, "of Adam")
    adam_eps: float = _setting(1e-4, "of Adam")
    grad_clip: float = _setting(1000.0, "largest global norm of the gradient")

    horizon: int = _setting(12, "decisions looked ahead (H)")
    num_candidates: int = _setting(1000, "action sequences tried per iteration (J)")
    num_elites: int = _setting(100, "best sequences that the next iteration starts from (K)")
    num_iterations: int = _setting(10, "iterations of the planner (I)")
    exploration_std: float = _setting(0.3, "deviation of the noise added to actions while training")

    def settings(self) -> dict[str, int | float | str]:
        """Return the fields as plain numbers and strings."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


_PAPER = Preset()

PRESETS: dict[str, Preset] = {
    "paper": _PAPER,
    "camera_ready": replace(
        _PAPER,
        reward_hidden_dim=300,  # networks/basic.py: three layers of 300
        reward_num_hidden=3,
        reward_scale=10.0,  # scripts/configs.py: the reward's log-probability counts ten times
    ),
    "cpu": replace(
        _PAPER,
        num_episodes=150,
        seed_episodes=20,  # without planning and updates, episodes are nearly free
        updates_per_episode=200,
        eval_every=10,
        eval_episodes=5,
        replay_capacity=100_000,
        batch_size=10,  # many small updates get further in an hour than few large ones
        window=20,
        network="patch",
        depth=48,
        embed_dim=256,
        # A thin pole is worth few nats of image error: at the paper's scales the posterior leaves it out, and a
        # divergence below the free nats would not train the prior at all.
        kl_scale=0.1,
        free_nats=0.3,
        reward_scale=10.0,
        learning_rate=3e-3,
        adam_eps=1e-7,
        grad_clip=100.0,
        num_candidates=100,
        num_elites=10,
        num_iterations=5,
    ),
}


# Cameras that follow the body. From the paper's, cartpole's pole is a pixel wide and the cart leaves the picture.
_FOLLOWING_CAMERAS = {"dmc:cartpole": "lookatcart"}


def get_preset(name: str, *, cell: str = "rssm", env: str = "") -> Preset:
    """Return a preset by name, as it is for a cell and an environment.

    The RNN's divergence is no KL between distributions that may differ by some nats for free, so its free_nats are 0.
    The preset `cpu` looks through the camera that follows the body, where it knows of one: its networks are small, and
    details of a pixel's width cost them most of an hour. The others look through the paper's, the first.

    Args:
        name: "cpu", "paper" or "camera_ready".
        cell: "rssm", "ssm" or "rnn".
        env: the environment's name, as for `planet_lib.envs.make_env`.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> get_preset("paper").free_nats, get_preset("paper", cell="rnn").free_nats
        (3.0, 0.0)
        >>> get_preset("cpu", env="dmc:cartpole-balance").camera
        'lookatcart'
    """
    if name not in PRESETS:
        raise ValueError(f"name must be one of {', '.join(PRESETS)}, got {name!r}")
    preset = PRESETS[name]
    if cell == "rnn":
        preset = replace(preset, free_nats=0.0)
    if name == "cpu":
        preset = replace(preset, camera=_FOLLOWING_CAMERAS.get(env.partition("-")[0], ""))
    return preset


def build_model(preset: Preset, cell: str, obs_shape: tuple[int, ...], action_dim: int) -> WorldModel:
    """Make the world model that a preset describes, freshly initialised from torch's global generator.

    Args:
        preset: sizes and kind of network.
        cell: "rssm", "ssm" or "rnn".
        obs_shape: (C, Y, X) of pixels or (N,) of a state vector.
        action_dim: A.

    Returns:
        The model, on the CPU in float32.

    Raises:
        ValueError: an unknown cell or network.

    Example:
        >>> model = build_model(PRESETS["paper"], "rssm", (3, 64, 64), 6)
        >>> type(model.cell).__name__, model.cell.feature_dim
        ('RSSMCell', 230)
    """
    encoder = _build_encoder(preset, obs_shape)
    sizes = {"action_dim": action_dim, "embed_dim": encoder.embed_dim, "hidden_dim": preset.hidden_dim}
    latent: RSSMCell | SSMCell | RNNCell
    if cell == "rssm":
        latent = RSSMCell(**sizes, deter_dim=preset.deter_dim, stoch_dim=preset.stoch_dim, min_std=preset.min_std)
    elif cell == "ssm":
        latent = SSMCell(**sizes, stoch_dim=preset.stoch_dim, min_std=preset.min_std)
    elif cell == "rnn":
        latent = RNNCell(**sizes, deter_dim=preset.deter_dim, stoch_dim=preset.stoch_dim)
    else:
        raise ValueError(f"cell must be rssm, ssm or rnn, got {cell!r}")
    decoder: nn.Module
    if len(obs_shape) == 3 and preset.network == "patch":
        decoder = PatchDecoder(
            latent.feature_dim, _image(obs_shape), patch_dim=preset.depth, hidden_dim=encoder.embed_dim
        )
    else:
        decoder = Decoder(latent.feature_dim, obs_shape, depth=preset.depth, hidden_dim=preset.hidden_dim)
    head = RewardHead(latent.feature_dim, hidden_dim=preset.reward_hidden_dim, num_hidden=preset.reward_num_hidden)
    return WorldModel(encoder, latent, decoder, head)


def build_agent(preset: Preset, model: WorldModel) -> PlanningAgent:
    """Make the agent that plans in `model` as a preset describes, for actions in [-1, 1].

    Args:
        preset: the planner's budget and the exploration noise.
        model: the world model, which is not copied.

    Returns:
        The agent, over a `CEMPlanner` over `LatentDynamics`.

    Example:
        >>> preset = PRESETS["paper"]
        >>> agent = build_agent(preset, build_model(preset, "rssm", (5,), 6))
        >>> agent.planner.action_dim, agent.exploration_std
        (6, 0.3)
    """
    planner = CEMPlanner(
        LatentDynamics(model),
        -1.0,
        1.0,
        action_dim=model.cell.action_dim,
        horizon=preset.horizon,
        num_candidates=preset.num_candidates,
        num_elites=preset.num_elites,
        num_iterations=preset.num_iterations,
    )
    return PlanningAgent(model, planner, exploration_std=preset.exploration_std)


def _build_encoder(preset: Preset, obs_shape: tuple[int, ...]) -> ConvEncoder | PatchEncoder | VectorEncoder:
    if len(obs_shape) == 1:
        return VectorEncoder(obs_shape[0], embed_dim=preset.embed_dim or 200)
    if preset.network == "conv":
        return ConvEncoder(_image(obs_shape), depth=preset.depth, embed_dim=preset.embed_dim or None)
    if preset.network == "patch":
        return PatchEncoder(_image(obs_shape), patch_dim=preset.depth, embed_dim=preset.embed_dim or 256)
    raise ValueError(f"network must be conv or patch, got {preset.network!r}")


def _image(obs_shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = obs_shape
    return channels, height, width
