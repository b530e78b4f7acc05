"""The rows of an episode while it runs, and batches of the observations of several."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from planet_lib.data._collect_checks import checked_obs, checked_reward
from planet_lib.types import Array, Episode, Observation


class Record:
    """The rows of an episode that is running; where several are, its number among them, and its seed for errors."""

    def __init__(self, obs: Any, number: int = 0, seed: int | None = None) -> None:
        self.number = number
        self._prefix = "" if seed is None else f"seed {seed}, "
        self.obs = [checked_obs(obs, f"{self._prefix}step 0", None)]
        self._action: list[Array] = []
        self._reward = [np.float32(0)]

    @property
    def steps(self) -> int:
        """Return the number of steps so far."""
        return len(self._action)

    @property
    def next_step(self) -> str:
        """Return the words that name the next step in an error."""
        return f"{self._prefix}step {self.steps + 1}"

    def add(self, action: Array, obs: Any, reward: Any) -> None:
        """Add the next row: a copy of the observation, checked, and the action as it is."""
        where = self.next_step
        self.obs.append(checked_obs(obs, where, self.obs[0]))
        self._reward.append(checked_reward(reward, where))
        self._action.append(action)

    def episode(self, terminated: bool, truncated: bool) -> Episode:
        """Return the rows as arrays."""
        rows = np.arange(self.steps + 1)
        return Episode(
            obs=stacked_rows(self.obs),
            action=np.stack([np.zeros_like(self._action[0]), *self._action]),
            reward=np.array(self._reward, np.float32),
            is_first=rows == 0,
            terminated=(rows == self.steps) & terminated,
            truncated=(rows == self.steps) & truncated,
        )


def blank(obs: Any) -> Any:
    """Return zeros like an observation."""
    if isinstance(obs, dict):
        return {name: np.zeros_like(value) for name, value in obs.items()}
    return np.zeros_like(obs)


def row_of(obs: Any, row: int) -> Any:
    """Return one row of a batch of observations."""
    return {name: value[row] for name, value in obs.items()} if isinstance(obs, Mapping) else obs[row]


def stacked_rows(rows: list[Any]) -> Array | dict[str, Array]:
    """Return observations as one batch of arrays, which is a copy."""
    if isinstance(rows[0], dict):
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return np.stack(rows)


def tensors(rows: list[Any]) -> Observation:
    """Return observations as one batch of tensors [B, ...]; a policy that writes into it doesn't change the record."""
    stacked = stacked_rows(rows)
    if isinstance(stacked, dict):
        return {name: torch.from_numpy(value) for name, value in stacked.items()}
    return torch.from_numpy(stacked)
