"""What comes back from an environment, row by row, and what it has to be. Knows no check that takes more than a step.

The rules are those of `planet_lib.data.run_episode`, and a few more that nobody sees broken until the data is wrong.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from planet_lib.types import Array

_CHANNELS = (1, 3, 4)
_UPDATE = "give observation, reward, terminated, truncated and info, as Gymnasium's API since 0.26"


class Row(NamedTuple):
    """One answer of an environment: the arrays as returned, copies made at once, and the rest."""

    arrays: dict[str, Array]
    copies: dict[str, Array]
    reward: float
    terminated: bool
    truncated: bool
    is_reset: bool = False


class Halt(Exception):
    """The environment cannot be tried further; what is wrong is among the complaints."""


class Complaints:
    """What is wrong, the first of each topic, in the order found."""

    def __init__(self) -> None:
        self._by_topic: dict[str, str] = {}

    def add(self, topic: str, message: str) -> None:
        """Keep a message, unless its topic has one."""
        self._by_topic.setdefault(topic, message)

    def halt(self, topic: str, message: str, cause: Exception | None = None) -> Halt:
        """Keep a message, and return what to raise where nothing can follow."""
        self.add(topic, message)
        stop = Halt(message)
        stop.__cause__ = cause
        return stop

    def text(self) -> str:
        """All of them: one line where there is one, else a numbered list; empty where there are none.

        Example:
            >>> complaints = Complaints()
            >>> complaints.add("reward", "the reward must be a number")
            >>> complaints.add("reward", "the reward must be finite")
            >>> complaints.text()
            'the reward must be a number'
            >>> complaints.add("end", "the end must be a bool")
            >>> print(complaints.text())
            env breaks 2 promises:
              1. the reward must be a number
              2. the end must be a bool
        """
        messages = list(self._by_topic.values())
        if len(messages) < 2:
            return "".join(messages)
        lines = [f"  {number}. {message}" for number, message in enumerate(messages, 1)]
        return "\n".join([f"env breaks {len(messages)} promises:", *lines])


class Reader:
    """Turns answers into rows, and complains of what is not as it must be.

    Args:
        space: the environment's observation space, or None.
        complaints: where what is wrong goes.
    """

    def __init__(self, space: Any, complaints: Complaints) -> None:
        self._contains = getattr(space, "contains", None)
        self._space, self.complaints = space, complaints
        self._like: dict[str, Array] | None = None

    def reset(self, answer: Any) -> Row:
        """Return what `reset` answered as a row."""
        if not isinstance(answer, tuple) or len(answer) != 2:
            remedy = "return both, the second a dictionary: return observation, {}"
            raise self.complaints.halt(
                "reset", f"env.reset must return a tuple (observation, info), got {_kind(answer)}; {remedy}"
            )
        arrays = self._observation("env.reset's", answer[0])
        self._check_info("env.reset", answer[1])
        return Row(arrays, _copied(arrays), 0.0, False, False, is_reset=True)

    def step(self, answer: Any, number: int) -> Row:
        """Return what `step` answered as a row; `number` counts from 1."""
        if not isinstance(answer, tuple) or len(answer) != 5:
            raise self.complaints.halt("step", f"env.step must return a tuple of five, got {_kind(answer)}; {_UPDATE}")
        obs, reward, terminated, truncated, info = answer
        arrays = self._observation(f"step {number}: env.step's", obs)
        value = self._reward(reward, number)
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, bool | np.bool_):
                self.complaints.add(
                    "flags", f"step {number}: {name} must be a bool, got {flag!r} ({_kind(flag)}); give bool({name})"
                )
        self._check_info(f"step {number}: env.step", info)
        if isinstance(info, Mapping) and info.get("TimeLimit.truncated") is True and not truncated:
            self.complaints.add(
                "apart",
                f"step {number}: truncated must be True where the time is up, got False and a note in info; "
                "terminated is for ends after which nothing could be earned",
            )
        return Row(arrays, _copied(arrays), value, bool(terminated), bool(truncated))

    def _check_info(self, who: str, info: Any) -> None:
        if not isinstance(info, Mapping):
            self.complaints.add("info", f"{who}'s info must be a dictionary, got {_kind(info)}; give {{}}")

    def _reward(self, reward: Any, number: int) -> float:
        """Return the reward, or NaN with a complaint where it is not one number that is finite in float32."""
        try:
            with np.errstate(over="ignore"):
                value = np.asarray(np.nan if isinstance(reward, str | bytes) else reward, np.float32)
        except Exception:  # of whatever it is
            value = np.full((), np.nan, np.float32)
        if value.shape == () and np.isfinite(value):
            return float(reward)
        self.complaints.add(
            "reward",
            f"step {number}: reward must be one number, finite in float32, got {reward!r}; give float(reward), and a "
            "finite penalty where a simulation fails",
        )
        return float("nan")

    def _observation(self, whose: str, obs: Any) -> dict[str, Array]:
        """Return the sound entries of an observation, by what they are called in messages."""
        self._check_names(whose, obs)
        named = {f"observation[{key!r}]": obs[key] for key in obs} if isinstance(obs, Mapping) else {"observation": obs}
        try:
            arrays = {name: np.asarray(value) for name, value in named.items()}
        except (TypeError, ValueError, RuntimeError) as error:
            message = f"{whose} observation must be an array or a dictionary of arrays, got {_kind(obs)}; convert it"
            raise self.complaints.halt("observation", message, error) from error
        sound = {name: array for name, array in arrays.items() if self._check_array(f"{whose} {name}", array)}
        if self._like is None:
            self._like = _copied(sound)
        if len(sound) == len(arrays):
            self._check_like(whose, sound)
            self._check_space(whose, obs)
        return sound

    def _check_names(self, whose: str, obs: Any) -> None:
        names = list(obs) if isinstance(obs, Mapping) else ["-"]
        good = [isinstance(name, str) and name.isprintable() and not set(name) & set("/\\.") for name in names]
        if not names or not all(good) or "" in names:
            self.complaints.add(
                "names",
                f"{whose} observation must have entries named by printable strings without slash, backslash or dot, "
                f"got {names}; rename them",
            )

    def _check_array(self, name: str, array: Array) -> bool:
        """Complain of one entry where it is neither an image nor a vector, and tell whether it is one."""
        floating, got = np.issubdtype(array.dtype, np.floating), f"got {array.dtype} {list(array.shape)}"
        problem = ""
        if array.dtype != np.uint8 and not floating:
            problem = f"be uint8 pixels or a vector of floats, {got}; convert it (a whole number: one-hot)"
        elif array.ndim != (1 if floating else 3) or array.size == 0:
            remedy = "give pixels as uint8 [C, Y, X], anything else flat"
            problem = f"be a uint8 image [C, Y, X] or a vector [N] of floats, {got}; {remedy}"
        elif array.ndim == 3 and array.shape[-1] in _CHANNELS and array.shape[0] > max(_CHANNELS):
            problem = f"have its channels first, {got}; give obs.transpose(2, 0, 1)"
        elif floating and not np.isfinite(array).all():
            problem = f"be finite, got {array[~np.isfinite(array)][0]}; clip it or end the episode before"
        if problem:
            self.complaints.add("observation", f"{name} must {problem}")
        return not problem

    def _check_like(self, whose: str, arrays: dict[str, Array]) -> None:
        """Complain where entries, dtypes or shapes are not those of the first reset."""
        first = self._like or {}
        for name in sorted({*arrays, *first}):
            expected, got = (_describe(rows.get(name)) for rows in (first, arrays))
            if expected != got:
                self.complaints.add(
                    "same",
                    f"{whose} {name} must be {expected} as at the first reset, got {got}; give the same at each step",
                )

    def _check_space(self, whose: str, obs: Any) -> None:
        """Complain where the observation lies outside the space that the environment announces."""
        value = {key: np.asarray(obs[key]) for key in obs} if isinstance(obs, Mapping) else np.asarray(obs)
        if self._contains is None or self._contains(value):
            return
        parts = value.items() if isinstance(value, dict) else [("observation", value)]
        got = ", ".join(f"{name} {_describe(part)} from {part.min():.4g} to {part.max():.4g}" for name, part in parts)
        self.complaints.add(
            "space",
            f"{whose} observation must lie in env.observation_space {self._space}, got {got}; correct one of them",
        )


def same(one: Array, other: Array) -> bool:
    """Tell whether two arrays are equal in dtype, shape and every number; NaN counts as equal to NaN.

    Example:
        >>> same(np.array([np.nan, 1]), np.array([np.nan, 1])), same(np.zeros(1), np.zeros(2))
        (True, False)
    """
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=np.issubdtype(one.dtype, np.inexact))


def difference(one: list[Row], other: list[Row]) -> str | None:
    """Say what first differs between two episodes, or return None.

    Example:
        >>> row = Row({}, {}, 1.0, False, False)
        >>> difference([row, row], [row, row._replace(reward=2.0)])
        'the reward of step 1 (1.0 and 2.0)'
    """
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        when = "at reset" if number == 0 else f"of step {number}"
        for name in a.copies:
            if name not in b.copies or not same(a.copies[name], b.copies[name]):
                return f"the {name} {when}"
        if not same(np.asarray(a.reward), np.asarray(b.reward)):
            return f"the reward {when} ({a.reward} and {b.reward})"
        if (a.terminated, a.truncated) != (b.terminated, b.truncated):
            return f"terminated or truncated {when}"
    return None


def _copied(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in arrays.items()}


def _describe(array: Array | None) -> str:
    return "absent" if array is None else f"{array.dtype} {list(array.shape)}"


def _kind(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, tuple) else type(value).__name__
