"""Batches that are copied ahead of time by one background thread.

What a batch will hold is settled in the thread of the caller, in the order of its calls, so that a prefetched batch is
the one that would have come anyway. The thread only copies.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from planet_lib.types import Batch

T = TypeVar("T")


class Prefetch(Generic[T]):
    """An iterator over `count` batches, up to `ahead` of which are being copied while the caller uses another.

    Args:
        draw: settles what the next batch will hold; called in the caller's thread.
        copy: copies that into the buffers, and returns them; called in the background where `ahead` is not 0.
        give_back: told how the batches that were drawn but never asked for were drawn, in order, where the caller stops
            early.
        empty: makes buffers; `pin_memory` asks for pinned ones.
        copies: where copies that are under way are entered, for whoever must not disturb them.
        count: how many batches there will be.
        ahead: how many are copied ahead; 0 starts no thread.
        reuse: whether buffers go round, so that a batch is valid until the next one is asked for.
        device: where batches go, None to leave them on the CPU.
    """

    def __init__(
        self,
        draw: Callable[[], T],
        copy: Callable[[T, Batch], Batch],
        give_back: Callable[[list[T]], None],
        empty: Callable[..., Batch],
        copies: "set[Future[Batch]]",
        *,
        count: int,
        ahead: int,
        reuse: bool,
        device: torch.device | None,
    ) -> None:
        self._draw, self._copy, self._give_back, self._empty = draw, copy, give_back, empty
        self._copies, self._count, self._ahead = copies, count, ahead
        self._device = device
        self._is_cuda = device is not None and device.type == "cuda"
        # Pinned memory is dear to make, so it always goes round: what is handed out is a copy on the device.
        self._buffers: list[Batch | None] | None = [None] * (ahead + 1) if reuse or self._is_cuda else None
        self._sent: list[torch.cuda.Event | None] = [None] * (ahead + 1)

    def __iter__(self) -> Iterator[Batch]:
        if self._ahead == 0:
            for number in range(self._count):
                yield self._deliver(self._fill(self._draw(), number), number)
            return
        waiting: deque[tuple[T, Future[Batch]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="replay") as pool:
            try:
                for number in range(min(self._ahead, self._count)):
                    self._start(pool, waiting, number)
                for number in range(self._count):
                    batch = waiting[0][1].result()
                    waiting.popleft()
                    if number + self._ahead < self._count:
                        self._start(pool, waiting, number + self._ahead)
                    yield self._deliver(batch, number)
            finally:
                for _, future in waiting:
                    future.cancel()
                if waiting:
                    self._give_back([drawn for drawn, _ in waiting])

    def _start(self, pool: ThreadPoolExecutor, waiting: "deque[tuple[T, Future[Batch]]]", number: int) -> None:
        drawn = self._draw()
        future = pool.submit(self._fill, drawn, number)
        self._copies.add(future)
        future.add_done_callback(self._copies.discard)
        waiting.append((drawn, future))

    def _fill(self, drawn: T, number: int) -> Batch:
        """Copy one batch, into the buffers whose turn it is."""
        if self._buffers is None:
            return self._copy(drawn, self._empty())
        slot = number % len(self._buffers)
        sent, buffers = self._sent[slot], self._buffers[slot]
        if sent is not None:
            sent.synchronize()
        if buffers is None:
            buffers = self._buffers[slot] = self._empty(pin_memory=self._is_cuda)
        return self._copy(drawn, buffers)

    def _deliver(self, batch: Batch, number: int) -> Batch:
        """Send a batch to the device, without waiting for it where that is a graphics card."""
        if self._device is None:
            return batch
        moved = batch.to(self._device)
        if self._is_cuda:
            sent = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            sent.record(torch.cuda.current_stream(self._device))
            self._sent[number % len(self._sent)] = sent
        return moved
