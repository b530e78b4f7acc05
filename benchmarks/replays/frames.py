"""Frames that say which one they are, so that what is sampled can be checked; knows NumPy alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np

SHAPE = (3, 64, 64)
FRAME_BYTES = 3 * 64 * 64
EPISODE = 1000  # rows of one episode: the paper's, at an action repeat of 1
ACTION_DIM = 6
_DIGITS = 32 ** np.arange(4)  # base 32, in the five bits that are left of a pixel once it is quantised


def episodes(num_frames: int, seed: int = 0) -> Iterator[np.ndarray[Any, Any]]:
    """Frames [L, C, Y, X] of one episode after the other; the first four pixels of a frame are its number."""
    noise = np.random.default_rng(seed).integers(0, 256, (EPISODE, *SHAPE), dtype=np.uint8)
    for start in range(0, num_frames, EPISODE):
        number = np.arange(start, min(start + EPISODE, num_frames))
        frames = noise[: len(number)].copy()
        frames[:, 0, 0, :4] = 8 * (number[:, None] // _DIGITS % 32)
        yield frames


def numbers(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The numbers [T, B] of sampled frames: bytes [T, B, C, Y, X], or floats in [-0.5, 0.5]."""
    first = pixels[..., 0, 0, :4]
    digits = first >> 3 if first.dtype == np.uint8 else np.floor((first + 0.5) * 32).astype(np.int64)
    counted: np.ndarray[Any, Any] = (digits * _DIGITS).sum(-1)
    return counted


def check_runs(found: np.ndarray[Any, Any], num_frames: int) -> None:
    """Raise unless each column [T, B] counts upwards by one, within what is stored."""
    if not (np.diff(found, axis=0) == 1).all() or found.min() < 0 or found.max() >= num_frames:
        raise SystemExit("what was sampled are no windows of consecutive frames")
