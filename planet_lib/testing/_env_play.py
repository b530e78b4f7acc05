"""Playing an environment with given actions, and what those actions are. Knows neither what is right nor why.

Whatever the environment returns passes through a `Reader`, which complains; whatever it does to its argument is noticed
here.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from planet_lib.testing._env_rows import Complaints, Reader, Row
from planet_lib.types import Array

_MANY = 16  # one-hot actions tried as corners


class Player:
    """An environment, what is known of its actions, and every row that it gave.

    Args:
        env: anything with reset and step.
        num_actions: n where actions are one-hot, else None.
        action_dim: the length of an action.
        complaints: where what is wrong goes.
    """

    def __init__(self, env: Any, action_dim: int, num_actions: int | None, complaints: Complaints) -> None:
        self.env, self.action_dim, self.num_actions, self.complaints = env, action_dim, num_actions, complaints
        self._reader = Reader(getattr(env, "observation_space", None), complaints)
        self.seen: list[Row] = []

    def reset(self, seed: int | None) -> Row:
        """Start an episode, and return its first row."""
        try:
            answer = self.env.reset(seed=seed)
        except Exception as error:
            message = f"env.reset(seed={seed}) must run, got {one_line(error)}; take seed by keyword, None included"
            raise self.complaints.halt("reset runs", message, error) from error
        self.seen.append(self._reader.reset(answer))
        return self.seen[-1]

    def step(self, action: Array, number: int) -> Row:
        """Take one step, the one of this number, and return its row."""
        try:
            answer = self.give(action)
        except Exception as error:
            message = (
                f"step {number}: env.step must take {action} of float32 [{self.action_dim}], got {one_line(error)}; "
                "every action in the box counts, its ends included"
            )
            raise self.complaints.halt("step runs", message, error) from error
        self.seen.append(self._reader.step(answer, number))
        return self.seen[-1]

    def give(self, action: Array) -> Any:
        """Hand the environment a copy of an action, and complain if it writes into it."""
        given = action.copy()
        try:
            return self.env.step(given)
        finally:
            if not np.array_equal(given, action, equal_nan=True):
                self.complaints.add(
                    "action",
                    f"env.step must not write into the action, got {action} changed to {given}; work on a copy",
                )

    def episode(self, seed: int | None, actions: list[Array]) -> list[Row]:
        """Reset, then take these actions in turn until they or the episode end."""
        return [self.reset(seed), *self.go_on(actions)]

    def go_on(self, actions: list[Array]) -> Iterator[Row]:
        """Take these actions in turn until they or the running episode end."""
        for number, action in enumerate(actions, 1):
            row = self.step(action, number)
            yield row
            if row.terminated or row.truncated:
                return

    def random_actions(self, seed: int, count: int) -> list[Array]:
        """Draw actions uniformly from the box, or one-hot."""
        generator = np.random.default_rng(seed)
        if self.num_actions is not None:
            return [self._one_hot(int(index)) for index in generator.integers(self.num_actions, size=count)]
        return list(generator.uniform(-1, 1, (count, self.action_dim)).astype(np.float32))

    def corners(self) -> list[Array]:
        """Return the actions at the ends: all low, all high, alternating; or the first one-hot ones."""
        if self.num_actions is not None:
            return [self._one_hot(index) for index in range(min(self.num_actions, _MANY))]
        signs = np.where(np.arange(self.action_dim) % 2, 1, -1).astype(np.float32)
        ends = np.ones(self.action_dim, np.float32)
        return [-ends, ends, signs, -signs][: 4 if self.action_dim > 1 else 2]

    def bad_actions(self) -> Iterator[tuple[str, str, Array]]:
        """Yield actions that must be refused: what is wrong, the remedy, the action."""
        good = self.random_actions(0, 1)[0]
        for value in (np.nan, np.inf, -np.inf):
            yield f"an entry of {value}", "raise unless np.isfinite(action).all()", _changed(good, value)
        if self.num_actions is not None:
            remedy = "raise unless one entry is 1 and the others are 0, to 1e-6"
            yield "entries that are all 0", remedy, np.zeros_like(good)
            yield "a 1 of 0.5", remedy, good / 2
            if self.num_actions > 1:
                yield "two entries of 1", remedy, np.maximum(self._one_hot(0), self._one_hot(1))
        else:
            for value in (-1.5, 1.5):
                yield f"an entry of {value}", "raise outside [-1, 1], or clip before the step", _changed(good, value)
        remedy = f"raise unless its shape is ({self.action_dim},)"
        yield f"{self.action_dim + 1} entries", remedy, np.append(good, good[-1:]).astype(np.float32)

    def _one_hot(self, index: int) -> Array:
        action = np.zeros(self.action_dim, np.float32)
        action[index] = 1
        return action


class Counting:
    """Within it, the calls of an object's `step` are kept: (action, reward) each.

    Args:
        env: the object; its method is put back in the end.
    """

    def __init__(self, env: Any) -> None:
        self._env, self.calls = env, list[tuple[Any, float]]()
        self._replaced = vars(env).get("step")  # where somebody else has put one there

    def __enter__(self) -> "Counting":
        own = self._env.step

        def step(action: Any) -> Any:
            given = np.array(action)
            answer = own(action)
            self.calls.append((given, float(answer[1])))
            return answer

        self._env.step = step
        return self

    def __exit__(self, *error: object) -> None:
        if self._replaced is None:
            del self._env.step
        else:
            self._env.step = self._replaced


def one_line(error: Exception) -> str:
    """Return the kind of an error and the first line of what it says.

    Example:
        >>> one_line(KeyError("count"))
        "KeyError: 'count'"
    """
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"


def _changed(action: Array, value: float) -> Array:
    """Return a copy whose last entry is `value`."""
    changed = action.copy()
    changed[-1] = value
    return changed
