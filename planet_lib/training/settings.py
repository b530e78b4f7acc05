"""What is checked before a run writes anything: ranges of settings, the device, the installed extras.

A mistake in a setting should cost one line at once, and not an hour of collecting followed by a traceback. Knows
settings by name only, as `presets.Preset` and the flags of the examples call them; sizes of networks and the planner's
numbers are checked by the parts that take them, which are built before a run begins too.
"""

import importlib.util
from collections.abc import Collection, Mapping
from typing import Any

import torch

from planet_lib._shapes import (
    MOST,
    check_flag,
    check_mapping,
    check_positive,
    check_whole,
    is_finite,
    is_number,
    is_whole,
    names_of,
    shown,
)

_AT_LEAST_0 = ("num_episodes", "action_repeat", "embed_dim", "overshooting_chunk", "warmup_updates")
_AT_LEAST_1 = (
    *(
        "seed_episodes",
        "updates_per_episode",
        "eval_every",
        "eval_episodes",
        "replay_capacity",
        "image_size",
        "supersample",
    ),
    *("batch_size", "window", "depth", "num_layers", "overshooting_distance", "max_skipped"),
)
_WEIGHTS = (
    *("free_nats", "obs_scale", "reward_scale", "kl_scale", "global_kl_scale", "continue_scale", "overshooting_scale"),
    *("overshooting_reward_scale", "overshooting_obs_scale", "exploration_std", "adam_eps", "replay_gb"),
)
_LEAST_EPS = 1e-30
_CHOICES = {
    "network": ("conv", "patch"),
    "channels": ("all", "red", "grey"),
    "activation": ("relu", "elu", "silu", "gelu", "tanh"),
    "min_std_mode": ("add", "clamp"),
    "gru": ("reset_after", "reset_before"),
    "init": ("torch", "glorot"),
    "precision": ("float32", "bfloat16"),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names the first setting which no run can have; unknown names are not looked at.

    Args:
        settings: by the names of `presets.Preset`'s fields, and `seed`.

    Raises:
        ValueError: a number out of range, not finite or of another type, or an unknown choice.

    Example:
        >>> check_settings({"batch_size": 50, "free_nats": 3.0})
        >>> check_settings({"eval_every": 0})
        Traceback (most recent call last):
            ...
        ValueError: eval_every must be a whole number of at least 1, got 0
    """
    check_mapping("settings", settings)
    for names, least in ((_AT_LEAST_0, 0), (_AT_LEAST_1, 1)):
        for name in names:
            check_whole(name, settings.get(name, least), least=least)
    for name in _WEIGHTS:
        value = settings.get(name, 0.0)
        if not is_finite(value) or value < 0:
            raise ValueError(f"{name} must be a finite number of at least 0, got {shown(value)}")
    check_positive(learning_rate=settings.get("learning_rate", 1.0), grad_clip=settings.get("grad_clip", 1.0))
    if not is_finite(settings.get("learning_rate", 1.0)):
        raise ValueError(f"learning_rate must be finite, got {settings['learning_rate']}")
    eps = settings.get("adam_eps", 1.0)
    if eps < _LEAST_EPS:  # float32 makes it 0, and a weight without a gradient 0 / 0
        raise ValueError(f"adam_eps must be at least {_LEAST_EPS}, got {eps}")
    balance = settings.get("kl_balance", 0.0)
    if not is_number(balance) or not 0 <= balance <= 1:
        raise ValueError(f"kl_balance must be between 0 (the plain KL) and 1, got {shown(balance)}")
    stop_at = settings.get("stop_at")
    if stop_at is not None and not is_finite(stop_at):
        raise ValueError(f"stop_at must be a finite number, or None to go on to the last episode, got {shown(stop_at)}")
    for name, choices in _CHOICES.items():
        value = settings.get(name, choices[0])
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {shown(value)}")
    seed = settings.get("seed", 0)
    if not is_whole(seed, 0):
        raise ValueError(f"seed must be a whole number from 0 to {MOST}, got {shown(seed)}")


def check_renderer(trained: str | Mapping[str, str], here: str, *, task: str = "", told: Collection[str] = ()) -> None:
    """Raise a `ValueError` unless pictures are made here by what a model was trained on, or the user said otherwise.

    Renderers draw the same scene differently; a model sees the difference and may act on it.

    Args:
        trained: the renderer in the checkpoint, such as "gl-tuned" (see `planet_lib.envs.make_env`), or one for each
            task by its name; a task that is not among them is held against those that a simulator draws.
        here: the present environment's.
        task: the present environment's name.
        told: what the user asked for by name: "renderer", or "quality", which excuses another quality of OpenGL alone.

    Example:
        >>> check_renderer("gl-tuned", "rays", told=["renderer"])
        >>> check_renderer({"dmc:cartpole-balance": "rays"}, "rays", task="dmc:cartpole-swingup")
        >>> check_renderer("gl-tuned", "rays", told=["quality"])
        Traceback (most recent call last):
            ...
        ValueError: renderer must be gl-tuned, on whose pictures the model was trained, got rays; say --renderer or \
--quality to go on with it
    """
    drawings = trained if isinstance(trained, Mapping) else {"": trained}
    if not drawings or not all(isinstance(name, str) for name in drawings.values()):
        raise TypeError(f"trained must be the name of a renderer, or one for each task, got {shown(trained)}")
    for argument, given in (("here", here), ("task", task)):
        if not isinstance(given, str):
            raise TypeError(f"{argument} must be a name, got {shown(given)}")
    told = names_of("told", told)
    if not isinstance(trained, str):
        drawn = [name for name in trained.values() if name not in ("own", "none")] or list(trained.values())
        trained = trained[task] if task in trained else here if here in drawn else drawn[0]
    is_excused = "renderer" in told or ("quality" in told and trained.startswith("gl") and here.startswith("gl"))
    if trained != here and not is_excused:
        raise ValueError(
            f"renderer must be {trained}, on whose pictures the model was trained, got {here}; "
            "say --renderer or --quality to go on with it"
        )


def choose_device(name: str) -> torch.device:
    """Return the device called `name`, after trying it; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: torch knows no such device, or cannot use it here.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    given: object = name
    if not isinstance(given, str):
        raise TypeError(f"device must be auto, cpu, or one that torch can use here, got {shown(name)}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:  # torch's ways to lack a device
        reason, got = str(error).splitlines()[0], shown(name)
        raise ValueError(f"device must be auto, cpu, or one that torch can use here, got {got}: {reason}") from error
    return device


def check_extras(*, pixels: bool) -> None:
    """Raise an `ImportError` that names the extra, unless what a run draws with is installed; imports nothing.

    Args:
        pixels: whether videos are drawn too.
    """
    check_flag(pixels=pixels)
    drawing = {"matplotlib": "matplotlib"}
    videos = {"PIL": "pillow", "imageio_ffmpeg": "imageio-ffmpeg"} if pixels else {}
    missing = [name for module, name in (drawing | videos).items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(
            f"the curves and videos of a run need {', '.join(missing)}, not installed here: "
            "pip install 'planet-worldmodel[train]' (from a checkout: pip install -e '.[train]')"
        )
