"""What an environment was told and what it answered since its reset, so that a new one can be brought to its place.

It knows seeds, actions and checksums. When a worker is lost, and what is done where the new environment goes another
way, is decided in `planet_lib.envs.standard_vector`.
"""

import copy
import struct
import zlib
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from planet_lib.envs._slots import Slot
from planet_lib.envs.images import Array

# Steps that are remembered: playing more of them again would cost more than the episode is worth, and memory.
LONGEST = 100_000


class DifferentError(Exception):
    """The environment that was played again gave something else; the text says where."""


class History:
    """The seed and options of one environment's reset, its actions since, and a checksum of what each of them gave.

    Observation, reward and flags count. Infos don't: they may hold what differs each time, such as how long it took.

    Args:
        seed: given to `reset`; an episode without one cannot be played again.
        options: given to `reset`.
        result: what `reset` gave.

    Attributes:
        position: the step that `play_again` is at, 0 being the reset.
    """

    def __init__(self, seed: int | None, options: dict[str, Any] | None, result: tuple[Any, ...]) -> None:
        self._seed, self._options = seed, copy.deepcopy(options)
        self._actions, self._action_dim = bytearray(), 0
        self._checksums = array("L", [checksum(result)])
        self.position = 0

    def __len__(self) -> int:
        """Return the steps since the reset."""
        return len(self._checksums) - 1

    @property
    def gap(self) -> str | None:
        """Say what is missing for playing it again, or None."""
        if self._seed is None:
            return "its reset had no seed"
        return f"it has {LONGEST} steps or more, too many to be remembered" if len(self) >= LONGEST else None

    def add(self, action: Array, result: tuple[Any, ...]) -> None:
        """Remember a step: its action [A] and what it gave."""
        if self.gap is None:
            self._actions += action.tobytes()
            self._action_dim = len(action)
            self._checksums.append(checksum(result))

    def play_again(self, slot: Slot) -> None:
        """Reset the environment in `slot`, and step it to where this one is.

        Raises:
            LostError: it failed, at step `position`.
            DifferentError: it gave something else.
        """
        self.position = 0
        slot.ask("reset", seed=self._seed, options=self._options)
        self._compare(slot.answer())
        for action in np.frombuffer(bytes(self._actions), np.float32).reshape(len(self), self._action_dim):
            self.position += 1
            slot.ask("step", action)
            self._compare(slot.answer())
        self.position += 1

    def _compare(self, result: tuple[Any, ...]) -> None:
        """Raise unless the present step gave what it gave before."""
        if checksum(result) != self._checksums[self.position]:
            raise DifferentError(
                f"step {self.position} gave something else when it was played again with the same seed and actions"
            )


def checksum(result: tuple[Any, ...]) -> int:
    """Return a checksum of what `reset` or `step` gave, without its infos.

    Example:
        >>> import numpy as np
        >>> one = checksum((np.zeros(2), 1.0, False, False, {}))
        >>> one == checksum((np.zeros(2), 1.0, False, False, {"took": 3})), one == checksum((np.zeros(2), {}))
        (True, False)
    """
    observation, *numbers, _ = result
    return _of_observation(observation, zlib.crc32(struct.pack(f"{len(numbers)}d", *numbers)))


def _of_observation(observation: Any, value: int) -> int:
    """Return the checksum that goes on from `value` over an observation."""
    if isinstance(observation, Mapping):
        for name in sorted(observation):
            value = _of_observation(observation[name], zlib.crc32(name.encode(), value))
        return value
    return zlib.crc32(np.asarray(observation).tobytes(), value)
