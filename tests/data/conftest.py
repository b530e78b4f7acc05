"""Episodes that describe themselves: each observation tells its episode and its row."""

import numpy as np
import pytest

from planet_lib.types import Episode


def numbered(number, length, *, terminated=False):
    """Episode `number` of `length` rows; obs = (number, row), reward = row, action = row / 1000, both zero at row 0."""
    rows = np.arange(length)
    return Episode(
        obs=np.stack([np.full(length, number), rows], 1).astype(np.float32),
        action=(rows[:, None] / 1000).astype(np.float32),
        reward=rows.astype(np.float32),
        is_first=rows == 0,
        terminated=(rows == length - 1) & terminated,
        truncated=(rows == length - 1) & (not terminated),
    )


def named(number, length, **flags):
    """The same episode, seen as a dictionary: its vector, and an image of brightness 10 * number + row."""
    episode = numbered(number, length, **flags)
    brightness = (10 * number + np.arange(length)).astype(np.uint8)
    camera = np.broadcast_to(brightness[:, None, None, None], (length, 1, 3, 5)).copy()
    return episode._replace(obs={"camera": camera, "joints": episode.obs})


@pytest.fixture(scope="session")
def make_named_episode():
    return named


@pytest.fixture(scope="session")
def make_episode():
    return numbered
