"""Which rows of a ring belong to which episode, and where windows may start: numbers only, none of the data.

A ring is split into parts of equal size, one per environment. Within a part rows are counted without end: position p
lies in row p mod rows, and the rows that are held are the positions from `tail` to `head`. Episodes follow each other
without gaps, so that one table of first positions says all: episode i begins at first[i] and ends where i + 1 begins.
The table is itself a ring, of rows + 1 places, so that nothing is ever moved, and a new episode costs the same however
many there are.
"""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from planet_lib.types import Array

Uniform: TypeAlias = Literal["episodes", "steps"]

UNIFORM: tuple[Uniform, ...] = ("episodes", "steps")
NUM_CACHED_LENGTHS = 2
INDEX_BYTES = 8 * (1 + NUM_CACHED_LENGTHS)  # one place of the tables of a part: a position, and a sum per length


class Windows(NamedTuple):
    """Drawn windows [B]: their part, their first position in it, and how many of their rows exist (the others pad)."""

    part: Array
    start: Array
    valid: Array


class Part:
    """The episodes of one part of the ring.

    Args:
        rows: how many rows the part has.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.head = 0  # the position that is written next
        self.oldest, self.newest = 0, 0  # the episodes held are oldest ... newest - 1
        self.is_open = False  # whether the newest one is still running
        try:
            self._first = np.zeros(rows + 1, np.int64)
            # By window length: sums[i] windows in the episodes before i, known up to the episode beside it.
            self._sums = {-1 - slot: (np.zeros(rows + 1, np.int64), 0) for slot in range(NUM_CACHED_LENGTHS)}
        except MemoryError as error:
            raise ValueError(f"capacity must be rows whose index memory can hold, got {rows} ({error})") from error

    @property
    def nbytes(self) -> int:
        """The bytes of the tables."""
        return self._first.nbytes + sum(sums.nbytes for sums, _ in self._sums.values())

    @property
    def tail(self) -> int:
        """The position of the oldest row held."""
        return int(self._first[self.oldest % len(self._first)])

    @property
    def used(self) -> int:
        """How many rows are held."""
        return self.head - self.tail

    @property
    def num_finished(self) -> int:
        """How many episodes are held that no longer run."""
        return self.newest - self.oldest - self.is_open

    @property
    def finished_rows(self) -> int:
        """How many rows are held of episodes that no longer run: they are the oldest ones."""
        return int(self._first[(self.newest - self.is_open) % len(self._first)]) - self.tail

    def restore(self, tail: int, is_first: Array) -> None:
        """Take over finished episodes: their flags in order, from position `tail` on."""
        starts = np.flatnonzero(is_first | (np.arange(len(is_first)) == 0))  # the oldest may have lost its beginning
        self.head, self.oldest, self.newest = tail + len(is_first), 0, len(starts)
        self._first[: len(starts)] = tail + starts
        self._first[len(starts)] = self.head

    def make_room(self, rows: int) -> bool:
        """Let go of the oldest episodes until `rows` more fit; True where any finished one went.

        Where only the running one is left, it lets go of its own oldest rows.
        """
        has_dropped = False
        while self.used + rows > self.rows:
            if self.num_finished:
                self.oldest += 1
                has_dropped = True
            else:
                self._first[self.oldest % len(self._first)] = self.head + rows - self.rows
        return has_dropped

    def begin(self) -> None:
        """Begin an episode at the head; one that still runs ends there."""
        self.newest += 1
        self.is_open = True

    def grow(self, rows: int) -> None:
        """Count rows that were written to the newest episode."""
        self.head += rows
        self._first[self.newest % len(self._first)] = self.head

    def finish(self) -> None:
        """End the running episode."""
        self.is_open = False

    def drop_newest(self) -> None:
        """Forget the newest episode, which no longer runs and was sampled from by nobody."""
        self.newest -= 1
        self.head = int(self._first[self.newest % len(self._first)])

    def bounds(self, episodes: Array) -> tuple[Array, Array]:
        """First positions and ends of episodes, given by their numbers among those held, the oldest being 0."""
        numbers = self.oldest + episodes
        size = len(self._first)
        return self._first[numbers % size], self._first[(numbers + 1) % size]

    def num_windows(self, length: int) -> int:
        """How many windows of `length` rows there are; an episode that is shorter counts as one."""
        sums = self._sums_of(length)
        return int(sums[self.newest % len(sums)] - sums[self.oldest % len(sums)])

    def locate(self, windows: Array, length: int) -> tuple[Array, Array]:
        """Find windows by their number: which of the episodes held, counted from the oldest, and the offset in it."""
        sums = self._sums_of(length)
        size = len(sums)
        low, high = (self.oldest + 1) % size, (self.newest + 1) % size
        pieces = [sums[low:high]] if low < high else [sums[low:], sums[:high]]
        wanted = windows + sums[self.oldest % size]
        # The sums rise from piece to piece, so that what lies below in each adds up to the place in all.
        episodes = sum((np.searchsorted(piece, wanted, side="right") for piece in pieces), np.zeros_like(windows))
        return episodes, wanted - sums[(self.oldest + episodes) % size]

    def _sums_of(self, length: int) -> Array:
        """Return the sums for a window length, brought up to date by the episodes that are new since the last call."""
        if length in self._sums:
            sums, known = self._sums.pop(length)
        else:  # the length that was asked for longest ago gives its table away
            (sums, _), known = self._sums.pop(next(iter(self._sums))), self.oldest
            sums[known % len(sums)] = 0
        if known < self.oldest:
            known = self.oldest
            sums[known % len(sums)] = 0
        numbers = np.arange(known, self.newest)
        first, end = self.bounds(numbers - self.oldest)
        counts = np.maximum(end - first - length + 1, 1)
        sums[(numbers + 1) % len(sums)] = sums[known % len(sums)] + np.cumsum(counts)
        self._sums[length] = (sums, self.newest - self.is_open)  # one that runs is counted anew each time
        return sums


def draw(
    parts: list[Part], generator: np.random.Generator, batch_size: int, length: int, *, uniform: Uniform, across: bool
) -> Windows:
    """Draw windows from all parts, with replacement; at least one row must be held.

    uniform: "episodes", an episode and then a window in it, or "steps", a window. across: windows run on over the ends
    of episodes, to the head of their part; of those that would run out there the start moves back.
    """
    if uniform == "episodes":
        sizes = [part.newest - part.oldest for part in parts]
    elif across:
        sizes = [max(part.used - length + 1, 1) if part.used else 0 for part in parts]
    else:
        sizes = [part.num_windows(length) for part in parts]
    counts = np.array(sizes, np.int64)
    ends = np.cumsum(counts)
    number = generator.integers(0, ends[-1], batch_size)
    chosen = np.searchsorted(ends, number, side="right")
    number -= (ends - counts)[chosen]
    start, end = np.empty_like(number), np.empty_like(number)
    offset = np.zeros_like(number)
    for index in np.unique(chosen):
        part, here = parts[index], chosen == index
        if uniform == "episodes":
            start[here], end[here] = part.bounds(number[here])
        elif across:
            start[here], end[here] = part.tail + number[here], part.head
        else:
            episodes, offset[here] = part.locate(number[here], length)
            start[here], end[here] = part.bounds(episodes)
    if uniform == "episodes":
        offset = generator.integers(0, end - start if across else np.maximum(end - start - length + 1, 1))
    start += offset
    if across:
        tails, end = np.array([(part.tail, part.head) for part in parts], np.int64)[chosen].T
        start = np.minimum(start, np.maximum(end - length, tails))
    return Windows(part=chosen, start=start, valid=np.minimum(end - start, length))
