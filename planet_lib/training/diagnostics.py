"""What a world model sees and foresees in a recorded episode, as frames to look at.

The model is judged alone: actions come from the episode, no planner is involved. Knows models and episodes, but no
files: `planet_lib.training.pictures` turns the frames into videos, `planet_lib.training.foresight` measures them.

Source: the open-loop videos of google-research/planet (a few frames seen, the rest imagined).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planet_lib._shapes import check_whole, is_whole, shown
from planet_lib.data import check_episode
from planet_lib.data.pixels import prepare, to_uint8
from planet_lib.models import WorldModel, imagine, observe
from planet_lib.models.rollout import map_state
from planet_lib.types import Array, Episode, Observation

Frames = np.ndarray[Any, Any]


@torch.no_grad()
def reconstruct(model: WorldModel, episode: Episode, *, image: str | None = None) -> Frames:
    """Decode the posterior of every row: what the model makes of what it sees.

    Args:
        model: the world model.
        episode: one with pixels, [L, C, Y, X] uint8, alone or in a dictionary.
        image: which entry of a dictionary to show; None is the only one with pixels.

    Returns:
        [L, C, Y, X] uint8.

    Raises:
        ValueError: the episode holds no pixels, or several and `image` does not choose.

    Example:
        >>> from planet_lib.training.presets import PRESETS, build_model
        >>> model = build_model(PRESETS["cpu"], "rssm", (3, 64, 64), 1)
        >>> rows = np.arange(7)
        >>> episode = Episode(obs=np.zeros((7, 3, 64, 64), np.uint8), action=np.zeros((7, 1), np.float32),
        ...     reward=np.zeros(7, np.float32), is_first=rows == 0, terminated=rows > 6, truncated=rows == 6)
        >>> reconstruct(model, episode).shape
        (7, 3, 64, 64)
    """
    check_given(model, episode)
    return open_loop(model, episode, context=len(episode.reward), length=len(episode.reward), image=image)


@torch.no_grad()
def open_loop(
    model: WorldModel,
    episode: Episode,
    *,
    context: int = 5,
    length: int = 50,
    start: int = 0,
    image: str | None = None,
) -> Frames:
    """Let the model see `context` rows and imagine the rest from the actions alone.

    Args:
        model: the world model.
        episode: one with pixels, [L, C, Y, X] uint8, alone or in a dictionary.
        context: rows that are seen; in them the frames are reconstructions.
        length: rows in all; shorter where the episode ends before.
        start: the first row.
        image: which entry of a dictionary to show; None is the only one with pixels. The model sees all entries.

    Returns:
        [min(length, L - start), C, Y, X] uint8, to be compared with the pixels of rows start to start + length.

    Raises:
        ValueError: the episode holds no pixels, or several and `image` does not choose, or context or start does not
            fit it.

    Example:
        >>> from planet_lib.training.presets import PRESETS, build_model
        >>> model = build_model(PRESETS["cpu"], "rssm", (3, 64, 64), 1)
        >>> rows = np.arange(7)
        >>> episode = Episode(obs=np.zeros((7, 3, 64, 64), np.uint8), action=np.zeros((7, 1), np.float32),
        ...     reward=np.zeros(7, np.float32), is_first=rows == 0, terminated=rows > 6, truncated=rows == 6)
        >>> open_loop(model, episode, context=2).shape
        (7, 3, 64, 64)
    """
    check_given(model, episode)
    name = image_name(episode.obs, image)
    if not is_whole(start, 0, len(episode.reward) - 1):
        raise ValueError(f"start must be a row of the episode, 0 to {len(episode.reward) - 1}, got {shown(start)}")
    check_whole("length", length, least=1)
    rows = slice(int(start), int(start) + int(length))
    device = device_of(model)
    action = tensor_of(episode.action[rows]).to(device).unsqueeze(1)
    if not is_whole(context, 1, len(action)):
        raise ValueError(f"context must be between 1 and the {len(action)} rows there are, got {shown(context)}")
    is_first = tensor_of(episode.is_first[rows]).to(device).unsqueeze(1)
    obs = each_entry(lambda value: tensor_of(value[rows][:context]).to(device), episode.obs)
    embed = model.encoder(prepare(obs)).unsqueeze(1)
    _, posterior = observe(model.cell, embed, action[:context], is_first[:context])
    features = model.cell.features(posterior)
    if context < len(action):
        imagined = imagine(model.cell, map_state(lambda field: field[-1], posterior), action[context:])
        features = torch.cat([features, model.cell.features(imagined)])
    frames: Frames = to_uint8(draw(model, features.squeeze(1), name)).cpu().numpy()
    return frames


def draw(model: WorldModel, features: Tensor, name: str | None) -> Tensor:
    """Decode features [N, F] to frames [N, C, Y, X], of one entry where the decoder predicts several."""
    prediction = model.decoder(features)
    if not isinstance(prediction, dict):
        frames: Tensor = prediction
        return frames
    if name not in prediction:
        raise ValueError(f"image must be an entry that the decoder predicts, {', '.join(prediction)}, got {name!r}")
    return pick_entry(prediction, name)


def image_name(obs: Array | dict[str, Array], image: str | None) -> str | None:
    """Return the entry with the pixels to judge, None where the observation is no dictionary; or raise."""
    if not isinstance(obs, dict):
        if image is not None:
            raise ValueError(
                f"image must be None, since the episode's observation is no dictionary, got {shown(image)}"
            )
        if not _is_pixels(obs):
            raise ValueError(f"episode must hold pixels [L, C, Y, X] uint8, got {obs.dtype} {obs.shape}")
        return None
    names = [name for name, value in obs.items() if _is_pixels(value)]
    if not names:
        held = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in obs.items())
        raise ValueError(f"episode must hold an entry with pixels [L, C, Y, X] uint8, got {held}")
    if image is None and len(names) == 1:
        return names[0]
    if not isinstance(image, str) or image not in names:
        raise ValueError(f"image must be one of the entries with pixels, {', '.join(names)}, got {shown(image)}")
    return image


def check_given(model: object, episode: Episode) -> None:
    """Raise unless these are a world model and an episode of actions that it takes."""
    missing = [name for name in ("encoder", "cell", "decoder") if not hasattr(model, name)]
    if not isinstance(model, torch.nn.Module) or missing:
        raise TypeError(f"model must be a WorldModel, got {shown(model)}")
    check_episode(episode, action_dim=getattr(model.cell, "action_dim", None), is_part=True)


def tensor_of(value: Array) -> Tensor:
    """An array as a tensor, whatever its strides."""
    return torch.from_numpy(np.ascontiguousarray(value))


def _is_pixels(value: Array) -> bool:
    return bool(value.dtype == np.uint8 and value.ndim == 4)


def device_of(model: WorldModel) -> torch.device:
    """Return the device of the model's parameters; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def each_entry(function: Callable[..., Any], obs: Any) -> Any:
    """Apply `function` to an observation, or to each entry of a dictionary."""
    return {name: function(value) for name, value in obs.items()} if isinstance(obs, dict) else function(obs)


def pick_entry(obs: Observation, name: str | None) -> Tensor:
    """The entry `name` of a dictionary, or the observation itself."""
    return obs[name or ""] if isinstance(obs, dict) else obs
