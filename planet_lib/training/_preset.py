"""The settings of a run as one frozen dataclass. For `presets`, where everybody else finds it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from planet_lib._shapes import check_mapping, check_whole, is_finite, shown
from planet_lib.training._preset_values import PAPER


def _setting(name: str, text: str) -> Any:
    return field(default=PAPER[name][0], metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Every setting of a run; the defaults are the paper's. Each field's metadata["help"] says what it is.

    Example:
        >>> from dataclasses import replace
        >>> preset = replace(Preset(), batch_size=8)
        >>> preset.batch_size, preset.window, preset.free_nats
        (8, 50, 3.0)
    """

    num_episodes: int = _setting("num_episodes", "training episodes, after the seed episodes")
    seed_episodes: int = _setting("seed_episodes", "episodes of uniformly random actions before the first update")
    updates_per_episode: int = _setting("updates_per_episode", "updates before each training episode")
    eval_every: int = _setting("eval_every", "training episodes between evaluations")
    eval_episodes: int = _setting("eval_episodes", "episodes of an evaluation")
    replay_capacity: int = _setting("replay_capacity", "rows kept in memory (12 KiB each at 64x64x3)")

    image_size: int = _setting("image_size", "height and width of a frame in pixels")
    supersample: int = _setting("supersample", "times higher and wider that frames are drawn, then averaged")
    channels: str = _setting("channels", "of a frame: all, red (bodies of the suite stand out), or grey")
    camera: str = _setting("camera", "name of the camera that looks on; empty is the environment's first")
    action_repeat: int = _setting("action_repeat", "environment steps per decision; 0 is the paper's for the task")
    batch_size: int = _setting("batch_size", "windows in a batch (B)")
    window: int = _setting("window", "rows in a window (T)")

    network: str = _setting("network", "image encoder and decoder: conv (the paper's) or patch (matrix products only)")
    depth: int = _setting("depth", "channels of the first convolution, or numbers per patch")
    embed_dim: int = _setting("embed_dim", "size of an embedding; 0 is 1024 (conv), 256 (patch) or 200 (a vector's)")
    deter_dim: int = _setting("deter_dim", "size of the deterministic path (D)")
    stoch_dim: int = _setting("stoch_dim", "size of the stochastic state (S)")
    hidden_dim: int = _setting("hidden_dim", "size of the cell's hidden layers")
    num_layers: int = _setting("num_layers", "hidden layers before the cell's GRU and before each distribution")
    activation: str = _setting("activation", "of the cell's and the heads' hidden layers: relu, elu, silu, gelu, tanh")
    min_std: float = _setting("min_std", "smallest standard deviation of the latent state")
    min_std_mode: str = _setting("min_std_mode", "how min_std is kept: add (it is added) or clamp (the larger counts)")
    gru: str = _setting("gru", "reset gate after the matrix product (PyTorch's) or before: reset_after, reset_before")
    init: str = _setting("init", "first weights of the whole model: torch (PyTorch's) or glorot (TensorFlow's)")
    reward_hidden_dim: int = _setting("reward_hidden_dim", "size of the hidden layers of reward and continue head")
    reward_num_hidden: int = _setting("reward_num_hidden", "hidden layers of reward and continue head")

    free_nats: float = _setting("free_nats", "nats of divergence per row that cost nothing")
    obs_scale: float = _setting("obs_scale", "weight of the observation term, half the squared error")
    reward_scale: float = _setting("reward_scale", "weight of the reward term, half the squared error")
    kl_scale: float = _setting("kl_scale", "weight of the divergence")
    kl_balance: float = _setting("kl_balance", "share of the divergence that trains the prior; 0 is the plain KL")
    global_kl_scale: float = _setting("global_kl_scale", "weight of the divergence from N(0, I); 0 is none")
    continue_scale: float = _setting("continue_scale", "weight of whether the episode goes on; 0 is no such head")
    overshooting_distance: int = _setting("overshooting_distance", "largest distance of latent overshooting; 1 is none")
    overshooting_scale: float = _setting("overshooting_scale", "weight of latent overshooting")
    overshooting_reward_scale: float = _setting("overshooting_reward_scale", "weight of rewards foreseen; 0 is none")
    overshooting_obs_scale: float = _setting("overshooting_obs_scale", "weight of observations foreseen; 0 is none")
    overshooting_chunk: int = _setting("overshooting_chunk", "windows overshot at a time, to save memory; 0 is all")

    learning_rate: float = _setting("learning_rate", "of Adam")
    warmup_updates: int = _setting("warmup_updates", "updates in which the learning rate rises to its full size")
    adam_eps: float = _setting("adam_eps", "of Adam")
    grad_clip: float = _setting("grad_clip", "largest global norm of the gradient")
    precision: str = _setting("precision", "of the updates: float32, or bfloat16 where torch's autocast allows it")

    planner: str = _setting("planner", "how actions are searched for: cem, icem, mppi or shooting")
    warm_start: int = _setting("warm_start", "whether a plan starts from the one before: 0 (it starts anew) or 1")
    horizon: int = _setting("horizon", "decisions looked ahead (H)")
    num_candidates: int = _setting("num_candidates", "action sequences tried per iteration (J)")
    num_elites: int = _setting("num_elites", "best sequences that the next iteration starts from (K); cem, icem")
    deviation: str = _setting("deviation", "of the elites: std or mad, the mean absolute one; cem, icem")
    start: str = _setting("start", "of the sequences: shared, one sample of the state, or sampled, one for each")
    transition: str = _setting("transition", "of imagined states: drawn, a sample of each, or mean, nothing random")
    discount: float = _setting("discount", "of predicted rewards per decision; 1 is their sum")
    num_iterations: int = _setting("num_iterations", "iterations of the planner (I)")
    exploration_std: float = _setting("exploration_std", "deviation of the noise added to actions while training")

    def __post_init__(self) -> None:
        """Raise a `ValueError` for a field of another type; ranges are for those who take the numbers."""
        for item in fields(self):
            value: Any = getattr(self, item.name)
            kind: Any = type(item.default)
            if kind is int:
                check_whole(item.name, value, least=0)
            elif kind is str and not isinstance(value, str):
                raise ValueError(f"{item.name} must be a text, got {shown(value)}")
            elif kind is float and not (is_finite(value) or (item.name == "grad_clip" and value == math.inf)):
                raise ValueError(f"{item.name} must be a finite number, got {shown(value)}")
            object.__setattr__(self, item.name, kind(value))  # a number of NumPy becomes one of Python

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], *, where: str = "this run") -> "Preset":
        """Return the preset within the settings of a run, which have other names too.

        Args:
            settings: by name, such as those in a checkpoint.
            where: they are from, for the error.

        Raises:
            ValueError: a field is missing: the run is of a version of planet_lib that did not have it.

        Example:
            >>> Preset.from_settings({"env": "dmc:walker-walk", **Preset(window=20).settings()}).window
            20
        """
        check_mapping("settings", settings)
        given: object = where
        if not isinstance(given, str):
            raise TypeError(f"where must be a text, got {shown(where)}")
        names = [item.name for item in fields(cls)]
        missing = [name for name in names if name not in settings]
        if missing:
            raise ValueError(
                f"the settings of {where} lack {', '.join(missing)}: it was made by another version of planet_lib, "
                "whose networks have other weights; go on with that version, or start a new run "
                f"(got {len(settings)} settings)"
            )
        return cls(**{name: settings[name] for name in names})

    def settings(self) -> dict[str, int | float | str]:
        """Return the fields as plain numbers and strings."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def check_preset(preset: object) -> None:
    """Raise a `TypeError` unless it is a `Preset`: settings by name are made one with `Preset.from_settings`."""
    if not isinstance(preset, Preset):
        raise TypeError(f"preset must be a Preset, as get_preset and Preset.from_settings return, got {shown(preset)}")
