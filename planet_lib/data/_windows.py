"""Windows out of the rows of a ring: drawn first, copied then, which another thread may do.

The module knows rows by number. `_ring.py` says which of them hold what.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from planet_lib._shapes import shown
from planet_lib.data._obs import dtype_of, flat_fields, nested_obs
from planet_lib.data._prefetch import Prefetch
from planet_lib.data._ring import Part, Uniform, draw
from planet_lib.data._store import read_ring
from planet_lib.types import Array, Batch, Episode

STORED = ("action", "reward", "is_first", "terminated")  # what a batch has of a row besides the observation


class Drawn(NamedTuple):
    """What a batch will hold.

    rows [T * B], time first; mask [T, B], False where a place only pads; padding [P], the numbers of these places;
    before and after: the states of the generator around it.
    """

    rows: Tensor
    mask: Tensor
    padding: Tensor
    before: Mapping[str, Any]
    after: Mapping[str, Any]


class Sampler:
    """Draws windows, and copies them.

    Args:
        arrays: the rows of all parts, one part after the other.
        shapes: the shapes of the observations, by flat name.
        parts: the episodes of each part.
        seed: starts the generator.
    """

    def __init__(
        self, arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], parts: list[Part], seed: int
    ) -> None:
        self.generator = np.random.Generator(np.random.PCG64(seed))
        self._parts = parts
        # Views on the same memory, one row of numbers per step: torch gathers those on all its threads.
        self._rows = {name: torch.from_numpy(arrays[name]).flatten(1) for name in shapes}
        self._rows |= {name: torch.from_numpy(arrays[name]).view(len(arrays[name]), -1) for name in STORED}
        self._obs_shapes = shapes
        self._copies: set[Future[Batch]] = set()  # under way in the background

    def empty(self, batch_size: int, length: int, *, device: str = "cpu", pin_memory: bool = False) -> Batch:
        """Return buffers for a batch."""

        def make(*shape: int, dtype: DTypeLike) -> Tensor:
            sizes = (length, batch_size, *shape)
            if device == "cpu" and not pin_memory:
                # NumPy asks for large pages where the system has them, which halves the cost of new memory.
                return torch.from_numpy(np.empty(sizes, dtype))
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            return torch.empty(sizes, dtype=kind, device=device, pin_memory=pin_memory)

        return Batch(
            obs=nested_obs({name: make(*shape, dtype=dtype_of(shape)) for name, shape in self._obs_shapes.items()}),
            action=make(self._rows["action"].shape[1], dtype=np.float32),
            reward=make(dtype=np.float32),
            **{name: make(dtype=np.bool_) for name in ("is_first", "terminated", "mask")},
        )

    def check(self, out: Batch, batch_size: int, length: int) -> None:
        """Raise unless `out` can take a batch of these sizes.

        Raises:
            TypeError: where it is no `Batch`.
            ValueError: where a field has another shape, type or place.
        """
        if not isinstance(out, Batch):
            raise TypeError(f"out must be a Batch that sample returned, or None, got {type(out).__name__}")
        expected = flat_fields(self.empty(batch_size, length, device="meta")._asdict())
        given = flat_fields(out._asdict())
        if set(given) != set(expected):
            raise ValueError(f"out must have the fields {sorted(expected)}, got {sorted(given)}; leave it out once")
        for name, value in expected.items():
            got = given[name]
            if not isinstance(got, Tensor):
                raise TypeError(f"out.{name} must be a tensor, got {shown(got)}; give a Batch that sample returned")
            fits = (got.shape, got.dtype, got.device.type) == (value.shape, value.dtype, "cpu")
            if not fits or got.layout != torch.strided or not got.is_contiguous() or got.requires_grad:
                kind = "with gradients" if got.requires_grad else f"on {got.device}"
                raise ValueError(
                    f"out.{name} must be {value.dtype} {list(value.shape)}, contiguous on the CPU, got {got.dtype} "
                    f"{list(got.shape)} {kind}; give a batch of the same batch_size and length"
                )
        if len({value.data_ptr() for value in given.values()}) < len(given):
            raise ValueError("out must have memory of its own for each field, got fields that share it; clone them")

    def draw(self, batch_size: int, length: int, *, uniform: Uniform, across: bool) -> Drawn:
        """Settle what the next batch holds.

        Raises:
            ValueError: where nothing is stored.
        """
        if not any(part.used for part in self._parts):
            raise ValueError("replay must hold an episode to sample from, got none; add one first")
        before = self.generator.bit_generator.state
        part, start, valid = draw(self._parts, self.generator, batch_size, length, uniform=uniform, across=across)
        after = self.generator.bit_generator.state
        size, steps = self._parts[0].rows, np.arange(length)[:, None]
        rows = part * size + (start + np.minimum(steps, valid - 1)) % size
        mask = steps < valid
        padding = np.flatnonzero(~mask) if valid.min() < length else np.empty(0, np.int64)
        return Drawn(
            rows=torch.from_numpy(rows.ravel()),
            mask=torch.from_numpy(mask),
            padding=torch.from_numpy(padding),
            before=before,
            after=after,
        )

    def copy(self, drawn: Drawn, out: Batch) -> Batch:
        """Copy what was drawn into buffers, and return them."""
        fields = flat_fields(out._asdict())
        for name, rows in self._rows.items():
            flat = fields[name].view(len(drawn.rows), -1)
            torch.index_select(rows, 0, drawn.rows, out=flat)
            if len(drawn.padding):
                flat.index_fill_(0, drawn.padding, 0)
        out.mask.copy_(drawn.mask)
        return out

    def batches(
        self,
        drawing: Callable[[], Drawn],
        batch_size: int,
        length: int,
        *,
        count: int,
        ahead: int,
        reuse: bool,
        device: torch.device | None,
    ) -> Iterator[Batch]:
        """Return `count` batches, up to `ahead` of them copied in the background before they are asked for."""
        empty = partial(self.empty, batch_size, length)
        parts = (drawing, self.copy, self.give_back, empty, self._copies)
        return iter(Prefetch(*parts, count=count, ahead=ahead, reuse=reuse, device=device))

    def settle(self) -> None:
        """Wait for the copies that are under way."""
        wait(list(self._copies))

    def give_back(self, drawn: list[Drawn]) -> None:
        """Undo draws, given in order, unless the generator has moved on since."""
        if self.generator.bit_generator.state == drawn[-1].after:
            self.generator.bit_generator.state = drawn[0].before

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state of the generator.

        Raises:
            ValueError: where it is none; the present one stays.
        """
        fresh = np.random.PCG64(0)
        try:
            if not isinstance(state, Mapping):
                raise TypeError("no mapping")
            fresh.state = state["generator"]
            if fresh.state != state["generator"]:
                raise ValueError("numbers that NumPy rounds")
        except Exception as error:  # whatever NumPy raises on anything
            raise ValueError(f"state must be what SequenceReplay.state_dict() returned, got {shown(state)}") from error
        self.generator = np.random.Generator(fresh)


def stored_episodes(part: Part, arrays: Mapping[str, Array], obs_names: list[str]) -> Iterator[Episode]:
    """Return copies of the finished episodes of one part, oldest first, without one that lost its beginning."""
    firsts, ends = part.bounds(np.arange(part.num_finished))
    for first, end in zip(firsts.tolist(), ends.tolist(), strict=True):
        rows = {name: read_ring(array, first % part.rows, end - first) for name, array in arrays.items()}
        if rows["is_first"][0]:
            obs = nested_obs({name: rows.pop(name) for name in obs_names})
            yield Episode(obs=obs, **rows)
