"""Replay: episodes in one block of memory, windows of them out, time first.

`SequenceReplay` knows episodes and windows. It knows no environment, model, device or file (`episodes.py` keeps the
files). Images stay uint8, each frame once: the final observation is a row like any other, so no second array of next
observations exists.

Source: google-research/planet, `tools/numpy_episodes.py` (a window: a random episode, then a random offset);
Kaixhin/PlaNet, `memory.py` (a ring of steps).
Differences from the sources: a fixed number of rows, of which the oldest whole episodes make room for new ones; windows
never cross from one episode into the next; sampling touches no Python object per step or episode.
"""

import operator
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike

from planet_lib._shapes import check_positive
from planet_lib.data._checks import check_episode
from planet_lib.data._obs import check_names, dtype_of, flat_fields, looks_channels_last, nested_obs
from planet_lib.types import Batch, Episode


class _Windows(NamedTuple):
    """Where windows of one length may start: per episode that is long enough, its first row and how many windows."""

    starts: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    ends: np.ndarray[Any, Any]


class SequenceReplay:
    """A ring of whole episodes in preallocated arrays, from which windows are sampled.

    Room for `capacity` rows is reserved at once, and touched by the operating system only as it fills. When a new
    episode doesn't fit, the oldest whole episodes make room, so that `num_steps` never exceeds `capacity`. An episode
    may lie across the end of the ring; a window may not cross the end of an episode.

    Args:
        capacity: rows to hold, at most; an episode of n environment steps has n + 1 rows.
        obs_shape: the shape of one observation: (C, Y, X) for pixels, channels first, (N,) for vectors, or a mapping
            from names to such shapes where observations are dictionaries.
        action_dim: A, the length of an action.
        obs_dtype: None takes what the shape says: uint8 for (C, Y, X), float32 for (N,). There are no others, so a
            type that is given (by name where the shapes are) is only held against them.
        seed: starts the sampler's own generator; nothing else in the program moves it.

    Raises:
        ValueError: where a size isn't positive, a shape is neither (C, Y, X) nor (N,) or looks like channels last, or a
            name is empty or has a slash, backslash or dot in it.
        TypeError: where obs_dtype is not that of the shape, or a name is no string.

    Example:
        >>> import numpy as np
        >>> replay = SequenceReplay(1000, obs_shape=(2,), action_dim=1)
        >>> flags = np.zeros(20, bool)
        >>> replay.add(Episode(obs=np.ones((20, 2), np.float32), action=np.zeros((20, 1), np.float32),
        ...     reward=np.zeros(20, np.float32), is_first=np.arange(20) == 0, terminated=flags, truncated=flags))
        >>> batch = replay.sample(batch_size=4, length=5)
        >>> batch.obs.shape, replay.num_steps, replay.num_episodes
        (torch.Size([5, 4, 2]), 20, 1)
    """

    def __init__(
        self,
        capacity: int,
        *,
        obs_shape: Sequence[int] | Mapping[str, Sequence[int]],
        action_dim: int,
        obs_dtype: DTypeLike | Mapping[str, DTypeLike] | None = None,
        seed: int = 0,
    ) -> None:
        check_positive(capacity=capacity, action_dim=action_dim)
        self._obs_shape = _checked_shapes(obs_shape, obs_dtype)
        self._flat_shapes: dict[str, tuple[int, ...]] = flat_fields({"obs": self._obs_shape})
        self._arrays = {
            **{name: np.empty((capacity, *shape), dtype_of(shape)) for name, shape in self._flat_shapes.items()},
            "action": np.empty((capacity, action_dim), np.float32),
            "reward": np.empty(capacity, np.float32),
            "is_first": np.empty(capacity, np.bool_),
            "terminated": np.empty(capacity, np.bool_),
        }
        # Views on the same memory, one row of numbers per step: torch gathers those on all its threads.
        self._rows = {name: torch.from_numpy(array).view(capacity, -1) for name, array in self._arrays.items()}
        self._episodes: deque[tuple[int, int]] = deque()  # (first row, length), oldest first
        self._windows: dict[int, _Windows] = {}  # by window length, until the next episode comes in
        self._next_row = 0
        self._num_steps = 0
        self._generator = np.random.Generator(np.random.PCG64(seed))

    @property
    def capacity(self) -> int:
        """The rows that fit."""
        return len(self._arrays["reward"])

    @property
    def num_steps(self) -> int:
        """The rows stored, first and final observations included."""
        return self._num_steps

    @property
    def num_episodes(self) -> int:
        """The episodes stored."""
        return len(self._episodes)

    @property
    def nbytes(self) -> int:
        """The bytes reserved for `capacity` rows: what a full replay occupies."""
        return sum(array.nbytes for array in self._arrays.values())

    def add(self, episode: Episode) -> None:
        """Copy an episode in; the oldest ones make room.

        Everything about the episode is checked before anything changes: shapes, types, finite numbers, actions in
        [-1, 1], `is_first` and zero action and reward at row 0, `terminated` and `truncated` at the last row only.

        Args:
            episode: L rows, at most `capacity`; L = 1, a mere reset, is an episode too.

        Raises:
            TypeError: where a field isn't an array of its type.
            ValueError: where a shape or value is wrong, or the episode is longer than the capacity.
        """
        check_episode(episode, obs_shape=self._obs_shape, action_dim=self._arrays["action"].shape[1])
        length = len(episode.reward)
        if length > self.capacity:
            raise ValueError(f"episode must have at most capacity={self.capacity} rows, got {length}; raise capacity")
        while self._num_steps + length > self.capacity:
            self._num_steps -= self._episodes.popleft()[1]
        start = self._next_row
        head = min(length, self.capacity - start)  # the rows before the end of the ring; the others go to its front
        fields = flat_fields(episode._asdict())
        for name, array in self._arrays.items():
            rows = fields[name]
            array[start : start + head] = rows[:head]
            array[: length - head] = rows[head:]
        self._episodes.append((start, length))
        self._next_row = (start + length) % self.capacity
        self._num_steps += length
        self._windows.clear()

    def sample(self, batch_size: int, length: int, *, uniform: Literal["episodes", "steps"] = "episodes") -> Batch:
        """Draw windows of consecutive rows, with replacement.

        Every window lies inside one episode; episodes shorter than `length` are skipped. "episodes" draws an episode
        uniformly, then a start in it uniformly: the rule of the paper's code, the default for the sake of its numbers.
        "steps" draws uniformly among all windows, so that where lengths differ long episodes count for more, and a row
        of a short one isn't seen more often than others. With episodes of one length the two are the same.

        Args:
            batch_size: B, the number of windows.
            length: T, the rows of each.
            uniform: "episodes" or "steps".

        Returns:
            A `Batch` [T, B, ...] on the CPU, a copy: observations of the stored type, a dictionary where `obs_shape` is
            a mapping; `mask` all True.

        Raises:
            ValueError: where no stored episode has `length` rows, or an argument is out of range.
        """
        check_positive(batch_size=batch_size, length=length)
        if uniform not in ("episodes", "steps"):
            raise ValueError(f'uniform must be "episodes" or "steps", got {uniform!r}')
        windows = self._windows_of(length)
        if uniform == "episodes":
            chosen = self._generator.integers(0, len(windows.starts), batch_size)
            offset = self._generator.integers(0, windows.counts[chosen])
        else:
            window = self._generator.integers(0, windows.ends[-1], batch_size)
            chosen = np.searchsorted(windows.ends, window, side="right")
            offset = window - (windows.ends - windows.counts)[chosen]
        rows = (windows.starts[chosen] + offset + np.arange(length)[:, None]) % self.capacity
        index = torch.from_numpy(rows.ravel())
        fields = {name: torch.index_select(flat, 0, index) for name, flat in self._rows.items()}
        shape = (length, batch_size)
        return Batch(
            obs=nested_obs({name: fields[name].view(*shape, *size) for name, size in self._flat_shapes.items()}),
            action=fields["action"].view(*shape, -1),
            reward=fields["reward"].view(shape),
            is_first=fields["is_first"].view(shape),
            terminated=fields["terminated"].view(shape),
            mask=torch.ones(shape, dtype=torch.bool),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's random state, in plain strings and integers that safe checkpoint loading accepts.

        The episodes aren't in it: they are files (`save_episode`). The same episodes, added in the same order, and this
        state continue the same samples.
        """
        return {"generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a random state that `state_dict` returned.

        Raises:
            ValueError: where it is no such state; the present one stays.
        """
        fresh = np.random.PCG64(0)
        try:
            fresh.state = state["generator"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"state must be what SequenceReplay.state_dict() returned, got {state!r:.80}") from error
        self._generator = np.random.Generator(fresh)

    def _windows_of(self, length: int) -> _Windows:
        """Return where windows of `length` rows may start, computed once per added episode and length."""
        if length not in self._windows:
            starts, lengths = np.array(self._episodes, np.int64).reshape(-1, 2).T
            fits = lengths >= length
            if not fits.any():
                longest = f"the longest of {len(lengths)} has {lengths.max()}" if len(lengths) else "none is stored"
                raise ValueError(
                    f"no episode has length={length} rows ({longest}): lower length or add longer episodes"
                )
            counts = lengths[fits] - length + 1
            self._windows[length] = _Windows(starts=starts[fits], counts=counts, ends=np.cumsum(counts))
        return self._windows[length]


def _checked_shapes(
    obs_shape: Sequence[int] | Mapping[str, Sequence[int]], obs_dtype: DTypeLike | Mapping[str, DTypeLike] | None
) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """Return the shapes as tuples, by name where they are, or raise; the types must be the ones that shapes have."""
    if not isinstance(obs_shape, Mapping):
        if isinstance(obs_dtype, Mapping):
            raise TypeError(f"obs_dtype must be one type, as obs_shape is one shape, got {obs_dtype}")
        return _checked_shape("obs_shape", obs_shape, "obs_dtype", obs_dtype)
    check_names("obs_shape", obs_shape)
    dtypes: Any = dict.fromkeys(obs_shape) if obs_dtype is None else obs_dtype
    if not isinstance(dtypes, Mapping):
        raise TypeError(f"obs_dtype must be None or a mapping with the entries of obs_shape, got {obs_dtype!r}")
    if set(dtypes) != set(obs_shape):
        raise ValueError(f"obs_dtype must have the entries {list(obs_shape)} of obs_shape, got {list(dtypes)}")
    return {
        name: _checked_shape(f"obs_shape[{name!r}]", shape, f"obs_dtype[{name!r}]", dtypes[name])
        for name, shape in obs_shape.items()
    }


def _checked_shape(shape_name: str, given: Sequence[int], dtype_name: str, dtype: DTypeLike | None) -> tuple[int, ...]:
    """Return one shape as a tuple, or raise where it or its type is none that observations have."""
    try:
        shape = tuple(operator.index(size) for size in given)
    except TypeError as error:
        raise TypeError(f"{shape_name} must be (C, Y, X) or (N,), whole numbers, got {given!r}") from error
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ValueError(f"{shape_name} must be (C, Y, X) or (N,), of positive sizes, got {shape}")
    if looks_channels_last(shape):
        first = (shape[2], *shape[:2])
        raise ValueError(
            f"{shape_name} must be (C, Y, X), channels first, got {shape}; give {first}, and images as "
            "obs.transpose(2, 0, 1) (in torch, obs.movedim(-1, 0))"
        )
    if dtype is not None and np.dtype(dtype) != dtype_of(shape):
        raise TypeError(
            f"{dtype_name} must be uint8 for pixels (C, Y, X) and float32 for vectors (N,), got {np.dtype(dtype)} for "
            f"{shape}; leave it out"
        )
    return shape
