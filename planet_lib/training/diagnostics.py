"""What a world model sees and foresees in a recorded episode, as frames to look at.

Knows models and episodes, but no files: `planet_lib.training.pictures` turns the frames into videos.
"""

from typing import Any

import numpy as np
import torch

from planet_lib.data.pixels import dequantise, to_uint8
from planet_lib.models import WorldModel, imagine, observe
from planet_lib.models.rollout import map_state
from planet_lib.types import Episode

Frames = np.ndarray[Any, Any]


@torch.no_grad()
def reconstruct(model: WorldModel, episode: Episode) -> Frames:
    """Decode the posterior of every row: what the model makes of what it sees.

    Args:
        model: the world model.
        episode: one with pixels, [L, C, Y, X] uint8.

    Returns:
        [L, C, Y, X] uint8.

    Raises:
        ValueError: the episode holds no pixels.

    Example:
        >>> from planet_lib.training.presets import PRESETS, build_model
        >>> model = build_model(PRESETS["cpu"], "rssm", (3, 64, 64), 1)
        >>> rows = np.arange(7)
        >>> episode = Episode(obs=np.zeros((7, 3, 64, 64), np.uint8), action=np.zeros((7, 1), np.float32),
        ...     reward=np.zeros(7, np.float32), is_first=rows == 0, terminated=rows > 6, truncated=rows == 6)
        >>> reconstruct(model, episode).shape
        (7, 3, 64, 64)
    """
    return open_loop(model, episode, context=len(episode.reward), length=len(episode.reward))


@torch.no_grad()
def open_loop(model: WorldModel, episode: Episode, *, context: int = 5, length: int = 50, start: int = 0) -> Frames:
    """Let the model see `context` rows and imagine the rest from the actions alone.

    Args:
        model: the world model.
        episode: one with pixels, [L, C, Y, X] uint8.
        context: rows that are seen; in them the frames are reconstructions.
        length: rows in all; shorter where the episode ends before.
        start: the first row.

    Returns:
        [min(length, L - start), C, Y, X] uint8, to be compared with `episode.obs[start : start + length]`.

    Raises:
        ValueError: the episode holds no pixels, or context or start does not fit it.

    Example:
        >>> from planet_lib.training.presets import PRESETS, build_model
        >>> model = build_model(PRESETS["cpu"], "rssm", (3, 64, 64), 1)
        >>> rows = np.arange(7)
        >>> episode = Episode(obs=np.zeros((7, 3, 64, 64), np.uint8), action=np.zeros((7, 1), np.float32),
        ...     reward=np.zeros(7, np.float32), is_first=rows == 0, terminated=rows > 6, truncated=rows == 6)
        >>> open_loop(model, episode, context=2).shape
        (7, 3, 64, 64)
    """
    if episode.obs.dtype != np.uint8 or episode.obs.ndim != 4:
        raise ValueError(f"episode must hold pixels [L, C, Y, X] uint8, got {episode.obs.dtype} {episode.obs.shape}")
    if not 0 <= start < len(episode.reward):
        raise ValueError(f"start must be a row of the episode, 0 to {len(episode.reward) - 1}, got {start}")
    rows = slice(start, start + length)
    device = next(model.parameters()).device
    obs = torch.from_numpy(episode.obs[rows]).to(device)
    if not 1 <= context <= len(obs):
        raise ValueError(f"context must be between 1 and the {len(obs)} rows there are, got {context}")
    action = torch.from_numpy(episode.action[rows]).to(device).unsqueeze(1)
    is_first = torch.from_numpy(episode.is_first[rows]).to(device).unsqueeze(1)
    embed = model.encoder(dequantise(obs[:context])).unsqueeze(1)
    _, seen = observe(model.cell, embed, action[:context], is_first[:context])
    features = model.cell.features(seen)
    if context < len(obs):
        imagined = imagine(model.cell, map_state(lambda field: field[-1], seen), action[context:])
        features = torch.cat([features, model.cell.features(imagined)])
    frames: Frames = to_uint8(model.decoder(features.squeeze(1))).cpu().numpy()
    return frames
