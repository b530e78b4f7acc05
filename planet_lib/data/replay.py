"""Replay: episodes in one block of memory or in mapped files, windows of them out, time first.

`SequenceReplay` knows episodes, their rows and windows. It knows no environment and no model. Images stay uint8, each
frame once: the final observation is a row like any other, so no second array of next observations exists.

Source: google-research/planet, `tools/numpy_episodes.py` (a window: a random episode, then a random offset);
Kaixhin/PlaNet, `memory.py` (a ring of steps).
Differences from the sources: a fixed number of rows or bytes, of which the oldest whole episodes make room for new
ones; windows cross from one episode into the next only where that is asked for; short episodes are padded and masked;
sampling touches no Python object per step or episode.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from planet_lib._shapes import (
    check_choice,
    check_count,
    check_flag,
    check_path,
    check_whole,
    checked_device,
    is_whole,
    shown,
)
from planet_lib.data._checks import check_episode
from planet_lib.data._obs import dtype_of, flat_fields
from planet_lib.data._ring import INDEX_BYTES, UNIFORM, Part, Uniform
from planet_lib.data._sizes import checked_shapes, rows_per_part
from planet_lib.data._steps import check_steps
from planet_lib.data._store import DirectoryStore, MemoryStore, read_ring, write_ring
from planet_lib.data._windows import Sampler, stored_episodes
from planet_lib.types import Array, Batch, Episode

_FLAGS = ("is_first", "terminated", "truncated")


class SequenceReplay:
    """A ring of episodes in preallocated arrays, from which windows are sampled.

    Room for `capacity` rows is reserved at once, and touched by the operating system only as it fills. When new rows
    don't fit, the oldest whole episodes make room. An episode may lie across the end of the ring. Episodes come in
    whole (`add`), or row by row from `num_envs` environments at once (`append`), each of which has an equal part of
    the ring; the rows of a running episode can be sampled at once.

    With a `directory` the arrays are files there, mapped into memory, and outlive the process: a replay of the same
    sizes that opens the directory again goes on with the finished episodes. A process that is killed at any moment
    loses the running ones alone (after a power failure, also what the operating system had not yet written).

    Args:
        capacity: rows to hold, at most; an episode of n environment steps has n + 1 rows. None leaves it to max_bytes.
        max_bytes: bytes to hold, at most, index included; where both are given, the smaller counts.
        obs_shape: the shape of one observation: (C, Y, X) for pixels, channels first, (N,) for vectors, or a mapping
            from names to such shapes where observations are dictionaries.
        action_dim: A, the length of an action.
        obs_dtype: None takes what the shape says: uint8 for (C, Y, X), float32 for (N,). There are no others, so a
            type that is given (by name where the shapes are) is only held against them.
        num_envs: N, into how many equal parts the ring is split.
        directory: where the arrays are kept, made if it is missing; None keeps them in memory.
        seed: starts the sampler's own generator; nothing else in the program moves it.

    Raises:
        ValueError: where a size isn't positive, a shape is neither (C, Y, X) nor (N,) or looks like channels last, a
            name is empty or has a slash, backslash or dot in it, or the directory holds a replay of other sizes.
        TypeError: where obs_dtype is not that of the shape, or a name is no string.
        BlockingIOError: where another replay has the directory open.

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
        capacity: int | None = None,
        *,
        max_bytes: int | None = None,
        obs_shape: Sequence[int] | Mapping[str, Sequence[int]],
        action_dim: int,
        obs_dtype: DTypeLike | Mapping[str, DTypeLike] | None = None,
        num_envs: int = 1,
        directory: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        check_count(action_dim=action_dim, num_envs=num_envs)
        check_whole("seed", seed, least=0, most=2**10_000)
        if directory is not None and not (isinstance(directory, str) and not directory):  # the store has words for that
            directory = check_path("directory", directory)
        action_dim, num_envs = int(action_dim), int(num_envs)  # NumPy's integers have limits of their own
        self._obs_shape = checked_shapes(obs_shape, obs_dtype)
        self._flat_shapes: dict[str, tuple[int, ...]] = flat_fields({"obs": self._obs_shape})
        self._action_dim = action_dim
        fields: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            **{name: (shape, dtype_of(shape)) for name, shape in self._flat_shapes.items()},
            "action": ((action_dim,), np.dtype(np.float32)),
            "reward": ((), np.dtype(np.float32)),
            **dict.fromkeys(_FLAGS, ((), np.dtype(np.bool_))),
        }
        row_bytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in fields.values())
        size = rows_per_part(capacity, max_bytes, num_envs, row_bytes + INDEX_BYTES, INDEX_BYTES)
        self._parts = [Part(size) for _ in range(num_envs)]
        self._is_closed, self._is_unpublished, self._process = False, False, os.getpid()
        self._store: MemoryStore | DirectoryStore
        if directory is None:
            self._store = MemoryStore(size * num_envs, fields)
        else:
            self._store = DirectoryStore(directory, size * num_envs, fields, num_envs)
        whole = self._store.arrays
        self._arrays = {name: array.reshape(num_envs, size, *array.shape[1:]) for name, array in whole.items()}
        for part, flags, (first, count) in zip(self._parts, self._arrays["is_first"], self._store.spans, strict=False):
            part.restore(first, read_ring(flags, first, count))
        self._sampler = Sampler(whole, self._flat_shapes, self._parts, seed)

    @property
    def capacity(self) -> int:
        """The rows that fit, in all parts together."""
        return sum(part.rows for part in self._parts)

    @property
    def num_steps(self) -> int:
        """The rows stored, first and final observations included."""
        return sum(part.used for part in self._parts)

    @property
    def num_episodes(self) -> int:
        """The episodes stored, running ones included."""
        return sum(part.newest - part.oldest for part in self._parts)

    @property
    def nbytes(self) -> int:
        """The bytes reserved for `capacity` rows and their index: what a full replay occupies."""
        return sum(array.nbytes for array in self._arrays.values()) + sum(part.nbytes for part in self._parts)

    def add(self, episode: Episode) -> None:
        """Copy an episode in; the oldest ones make room.

        Everything about the episode is checked before anything changes: shapes, types, finite numbers, actions in
        [-1, 1], `is_first` and zero action and reward at row 0, `terminated` and `truncated` at the last row only. It
        goes into the part that holds the fewest rows among those where no episode is running.

        Args:
            episode: L rows, at most capacity / num_envs; L = 1, a mere reset, is an episode too.

        Raises:
            TypeError: where a field isn't an array of its type.
            ValueError: where a shape or value is wrong, the episode is longer than a part, or one is running in each.
            OSError: where the index of a directory can't be written, on a full disk, say. The episode is not held then.
        """
        check_episode(episode, obs_shape=self._obs_shape, action_dim=self._action_dim)
        length, limit = len(episode.reward), self._parts[0].rows
        if length > limit:
            what = f"capacity={limit}" if len(self._parts) == 1 else f"capacity / num_envs = {limit}"
            raise ValueError(f"episode must have at most {what} rows, got {length}; raise capacity or max_bytes")
        free = [number for number, part in enumerate(self._parts) if not part.is_open]
        if not free:
            raise ValueError("add must find a part where no episode is running, got none; finish one with append")
        self._prepare_to_write()
        number = min(free, key=lambda index: self._parts[index].used)
        part, fields = self._parts[number], flat_fields(episode._asdict())
        if part.make_room(length):
            self._publish()
        for name, array in self._arrays.items():
            write_ring(array[number], part.head % limit, fields[name])
        part.begin()
        part.grow(length)
        part.finish()
        try:
            self._publish()
        except BaseException:
            part.drop_newest()
            raise

    def extend(self, episodes: Iterable[Episode]) -> None:
        """Add episodes one after the other; one that is wrong raises as in `add`, and those before it stay."""
        try:
            each = iter(episodes)
        except TypeError as error:
            raise TypeError(f"episodes must be something that holds Episodes, got {shown(episodes)}") from error
        for episode in each:
            self.add(episode)

    def append(
        self,
        obs: Array | Tensor | Mapping[str, Array | Tensor],
        action: Array | Tensor,
        reward: Array | Tensor,
        is_first: Array | Tensor,
        terminated: Array | Tensor,
        truncated: Array | Tensor,
    ) -> None:
        """Copy one row of every environment in; the oldest episodes make room, each in its own part.

        A row with `is_first` begins an episode, and ends one that was still running; one with `terminated` or
        `truncated` ends it. Where a running episode fills its whole part, it loses its own oldest rows, and the first
        of those that remain has `is_first` False. Everything is checked before anything changes.

        Args:
            obs: [N, C, Y, X] uint8 or [N, M] float32, or a dictionary of such; N = num_envs, arrays or tensors.
            action: [N, A] floats in [-1, 1], the ones that led to `obs`; zero where is_first holds.
            reward: [N] floats, likewise.
            is_first: [N] bool, where an episode begins.
            terminated: [N] bool, where the task ended.
            truncated: [N] bool, where the clock ran out.

        Raises:
            TypeError: where a field isn't an array or tensor of its type.
            ValueError: where a shape or value is wrong, or is_first is missing where no episode is running.
            OSError: where the index of a directory can't be written. Rows that were given are held, and named in the
                index by the next call.
        """
        given = {"obs": obs, "action": action, "reward": reward}
        given |= {"is_first": is_first, "terminated": terminated, "truncated": truncated}
        rows = check_steps(given, self._flat_shapes, self._action_dim, len(self._parts))
        lost = [number for number, part in enumerate(self._parts) if not part.is_open and not rows["is_first"][number]]
        if lost:
            raise ValueError(f"is_first must hold where no episode is running, got False in environment {lost[0]}")
        self._prepare_to_write()
        has_news = bool((rows["is_first"] & np.array([part.is_open for part in self._parts])).any())
        for part, begins in zip(self._parts, rows["is_first"], strict=True):
            if begins:
                part.finish()
        dropped = [part.make_room(1) for part in self._parts]
        if any(dropped) or has_news:
            self._publish()
        places = np.array([part.head % part.rows for part in self._parts])
        for name, array in self._arrays.items():
            array[np.arange(len(places)), places] = rows[name]
        ends = rows["terminated"] | rows["truncated"]
        for part, begins, ended in zip(self._parts, rows["is_first"], ends, strict=True):
            if begins:
                part.begin()
            part.grow(1)
            if ended:
                part.finish()
        if ends.any():
            self._publish()

    def sample(
        self,
        batch_size: int,
        length: int,
        *,
        uniform: Uniform = "episodes",
        across: bool = False,
        out: Batch | None = None,
    ) -> Batch:
        """Draw windows of consecutive rows, with replacement.

        "episodes" draws an episode uniformly, then a start in it uniformly: the rule of the paper's code, the default
        for the sake of its numbers. "steps" draws uniformly among all windows, so that where lengths differ long
        episodes count for more, and a row of a short one isn't seen more often than others. With episodes of one length
        the two are the same.

        An episode with fewer rows than `length` has one window: all of it, then zeros with `mask` False.

        Args:
            batch_size: B, the number of windows.
            length: T, the rows of each.
            uniform: "episodes" or "steps".
            across: False keeps every window inside one episode. True lets it run on into the episodes that were stored
                next in the same part, whose first row has `is_first`; windows then start at any row that has `length`
                rows from there on ("episodes": at any row, moved back where fewer follow), and only a part that holds
                fewer rows pads.
            out: an earlier batch of the same sizes, to be overwritten and returned, instead of new memory.

        Returns:
            A `Batch` [T, B, ...] on the CPU, a copy: observations of the stored type, a dictionary where `obs_shape` is
            a mapping; `mask` True but on rows that pad.

        Raises:
            ValueError: where nothing is stored, an argument is out of range, or `out` doesn't fit.
        """
        check_count(batch_size=batch_size, length=length)
        check_choice("uniform", uniform, UNIFORM)
        check_flag(across=across)
        self._check_readable()
        if out is not None:
            self._sampler.check(out, batch_size, length)
        drawn = self._sampler.draw(batch_size, length, uniform=uniform, across=across)
        return self._sampler.copy(drawn, self._sampler.empty(batch_size, length) if out is None else out)

    def batches(
        self,
        batch_size: int,
        length: int,
        count: int,
        *,
        prefetch: int = 2,
        reuse: bool = False,
        device: torch.device | str | None = None,
        uniform: Uniform = "episodes",
        across: bool = False,
    ) -> Iterator[Batch]:
        """Sample `count` batches, the next ones of which a background thread copies while one is in use.

        They are those that `count` calls of `sample` would return. What a batch holds is drawn in the caller's thread,
        `prefetch` batches before it is asked for; `add` and `append` wait for the copies that are under way. Where the
        iterator is left early, the sampler goes on as if those that nobody asked for had not been drawn (unless others
        were drawn in between).

        Args:
            batch_size: as in `sample`, like length, uniform and across.
            length: T.
            count: how many batches there will be.
            prefetch: how many are copied ahead; 0 starts no thread.
            reuse: True lets buffers go round: a batch is valid until the next one is asked for.
            device: where the batches are sent; to a graphics card from pinned memory, without waiting.
            uniform: "episodes" or "steps".
            across: whether windows run on over the ends of episodes.

        Raises:
            ValueError: where an argument is out of range; once the first batch is asked for, where nothing is stored.
        """
        self._check_readable()
        sent_to = None if device is None else checked_device("device", device)
        check_count(batch_size=batch_size, length=length)
        check_choice("uniform", uniform, UNIFORM)
        check_flag(reuse=reuse, across=across)
        if not is_whole(count, 0, 2**63 - 1) or not is_whole(prefetch, 0, 10_000):
            got = f"{shown(count)} and {shown(prefetch)}"
            raise ValueError(f"count and prefetch must be at least 0, got {got}; whole numbers, prefetch to 10,000")
        drawing = partial(self._sampler.draw, batch_size, length, uniform=uniform, across=across)
        return self._sampler.batches(
            drawing, batch_size, length, count=int(count), ahead=min(prefetch, count), reuse=reuse, device=sent_to
        )

    def episodes(self) -> Iterator[Episode]:
        """Return what is stored, one episode at a time, oldest first, part by part: copies of the finished ones.

        An episode that lost its beginning (see `append`) is left out: it isn't whole. Add nothing meanwhile.
        """
        self._check_readable()
        for number, part in enumerate(self._parts):
            arrays = {name: array[number] for name, array in self._arrays.items()}
            yield from stored_episodes(part, arrays, list(self._flat_shapes))

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's random state, in plain strings and integers that safe checkpoint loading accepts.

        The episodes aren't in it: they are files (`save_episode`, or those of `directory`). The same episodes, added in
        the same order, and this state continue the same samples. Within a loop over `batches`, what was drawn ahead
        counts as drawn: take the state between such loops.
        """
        return {"generator": self._sampler.generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a random state that `state_dict` returned.

        Raises:
            ValueError: where it is no such state; the present one stays.
        """
        self._sampler.load(state)

    def clear(self) -> None:
        """Forget all rows, running episodes included; the sampler's random state stays."""
        self._prepare_to_write()
        self._parts[:] = [Part(part.rows) for part in self._parts]
        self._publish()

    def __enter__(self) -> Self:
        """Return the replay, which is closed at the end of its block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Hand a `directory` to the disk and to whoever opens it next; nothing can be added from then on.

        What was in memory can still be sampled, what was in a directory cannot: it may be somebody else's by then.
        """
        self._is_closed = True
        self._sampler.settle()
        self._store.close()

    def __getstate__(self) -> None:
        """Raise: a copy's arrays, views and files would not belong together."""
        raise TypeError(
            "SequenceReplay cannot be copied or pickled: make another one and extend(replay.episodes()), or open its "
            "directory elsewhere"
        )

    def _check_readable(self) -> None:
        """Raise where the rows may be another's by now."""
        if self._is_closed and isinstance(self._store, DirectoryStore):
            raise ValueError("replay must be open to be read, got one that was closed; open its directory again")

    def _prepare_to_write(self) -> None:
        """Wait for copies that are under way, whose rows may be overwritten; write the index where that is due."""
        if self._is_closed:
            raise ValueError("replay must be open to be added to, got one that was closed; open its directory again")
        if self._process != os.getpid() and isinstance(self._store, DirectoryStore):
            raise ValueError("replay must be written to by the process that opened its directory, got a fork of it")
        self._sampler.settle()
        if self._is_unpublished:
            self._publish()

    def _publish(self) -> None:
        """Tell the store which rows hold finished episodes; where it fails, before the next write."""
        self._is_unpublished = True
        self._store.publish([(part.tail % part.rows, part.finished_rows) for part in self._parts])
        self._is_unpublished = False
