"""Ctrl-C, held back where it would leave something half made. For this package alone."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done: what a foreign library makes in it is whole, or was never begun.

    Not by a mask, since another thread would take the signal. In another thread than the main one, which alone is
    interrupted, nothing is done.

    Example:
        >>> with ctrl_c_waits():
        ...     done = "whole"
        >>> done
        'whole'
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:  # None: not Python's to put back
        yield
        return
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)
