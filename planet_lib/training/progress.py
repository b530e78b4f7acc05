"""What a person sees while a run goes on: live bars on a terminal, a plain line now and then in a log.

Knows only names, counts and numbers. On a terminal with tqdm installed, one bar shows the whole run and one below it
the present phase. Anywhere else (a file, a pipe, a CI log, a terminal of no size) a line is printed every `interval`
seconds.
"""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from planet_lib._shapes import check_count, check_positive, check_scales, check_whole, shown
from planet_lib.training._extras import require


class Progress:
    """Shows how far a run is, how fast it goes, and how long it will take.

    Args:
        total: of the whole run, in `unit`, or None to show phases only.
        done: how much of it a resumed run had done before.
        unit: what the run counts.
        stream: where to; None is the standard error stream. One that fails, such as a pipe whose reader has ended or
            a log on a full disk, is not written to again: what is shown is worth no run.
        interval: seconds between lines where the stream is no terminal.
        clock: seconds, never going back.

    Example:
        >>> import io
        >>> log = io.StringIO()
        >>> progress = Progress(total=2000, stream=log, interval=0.0, clock=lambda: 0.0)
        >>> with progress.phase("updates", total=2, unit="updates") as bar:
        ...     bar.update(2, loss=0.5)
        >>> progress.advance(1000)
        >>> progress.say("evaluation: 250")
        >>> print(log.getvalue().strip())
        updates: 2/2 updates, loss 0.5 | run: 0/2,000 steps (0%)
        evaluation: 250
    """

    def __init__(
        self,
        total: int | None = None,
        *,
        done: int = 0,
        unit: str = "steps",
        stream: TextIO | None = None,
        interval: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if total is not None:
            check_positive(total=total)
            check_count(total=total)
        check_whole("done", done, least=0)
        check_scales(interval=interval)
        given: tuple[object, ...] = (unit, stream, clock)
        if not isinstance(given[0], str):
            raise TypeError(f"unit must be a word, got {shown(unit)}")
        if stream is not None and not all(callable(getattr(stream, name, None)) for name in ("write", "isatty")):
            raise TypeError(f"stream must be an open text file or None, got {shown(stream)}")
        if not callable(given[2]):
            raise TypeError(f"clock must be a function that returns seconds, got {shown(clock)}")
        self._stream: Any = _Patient(sys.stderr if stream is None else stream)
        self._total, self._unit = total, unit
        self._interval, self._clock = interval, clock
        self._last_line = clock()
        # The speed of the whole run is taken over its last stretches: random seed episodes go much faster than the
        # rest, and would promise an end that never comes.
        self._marks = deque([(clock(), done)], maxlen=20)
        self._tqdm = self._find_tqdm()
        self._look = {"file": self._stream, "dynamic_ncols": True, "miniters": 1}  # looks at the clock at each update
        self._run_bar: Any = None
        if self._tqdm is not None and total is not None:
            self._run_bar = self._tqdm(total=total, initial=done, desc="run", unit=f" {unit}", **self._look)

    @contextlib.contextmanager
    def phase(self, name: str, total: int, *, unit: str = "steps") -> Iterator["PhaseBar"]:
        """Show one phase, such as 100 updates or one episode; yields the bar to update.

        The bar disappears when the phase ends, whether by itself or by an exception.
        """
        given: tuple[object, ...] = (name, unit)
        if not all(isinstance(each, str) for each in given):
            raise TypeError(f"name and unit must be texts, got {shown(name)} and {shown(unit)}")
        check_whole("total", total, least=0)
        bar = PhaseBar(self, name, total, unit)
        try:
            yield bar
        finally:
            bar.close()

    def advance(self, count: int) -> None:
        """Count `count` more units of the whole run as done."""
        check_whole("count", count, least=0)
        self._marks.append((self._clock(), self._marks[-1][1] + count))
        if self._run_bar is not None:
            self._run_bar.update(count)

    def say(self, text: str) -> None:
        """Print one line of its own, above the bars."""
        given: object = text
        if not isinstance(given, str):
            raise TypeError(f"text must be a line to print, got {shown(text)}")
        if self._tqdm is not None:
            self._tqdm.write(text, file=self._stream)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the run's bar as it stands and the cursor below it."""
        if self._run_bar is not None:
            self._run_bar.close()
            self._run_bar = None

    def _find_tqdm(self) -> Any:
        if not self._stream.isatty():
            return None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if 0 in os.get_terminal_size(self._stream.fileno()):
                return None  # a terminal of no size, as in containers: tqdm would draw nothing on it
        try:
            tqdm = require("tqdm", purpose="the progress bar").tqdm
        except ImportError:
            return None
        return _interruptible(tqdm)

    def _run_line(self) -> str:
        if self._total is None:
            return ""
        (began, before), (_, done) = self._marks[0], self._marks[-1]
        line = f"run: {done:,}/{self._total:,} {self._unit} ({done / self._total:.0%})"
        elapsed = self._marks[-1][0] - began
        if done > before and elapsed > 0:
            speed = (done - before) / elapsed
            line += f", {speed:.3g} {self._unit}/s, {_duration((self._total - done) / speed)} left"
        return " | " + line

    def _line_is_due(self) -> bool:
        if self._tqdm is not None or self._clock() - self._last_line < self._interval:
            return False
        self._last_line = self._clock()
        return True


class PhaseBar:
    """The bar of one phase; `Progress.phase` makes it."""

    def __init__(self, progress: Progress, name: str, total: int, unit: str) -> None:
        self._progress, self._name, self._total, self._unit = progress, name, total, unit
        self._count = 0
        self._began = progress._clock()
        self._bar: Any = None
        if progress._tqdm is not None:
            self._bar = progress._tqdm(total=total, desc=name, unit=f" {unit}", leave=False, **progress._look)

    def update(self, count: int = 1, **numbers: float) -> None:
        """Count `count` more as done, and show the numbers, such as losses, beside it."""
        check_whole("count", count, least=0)
        texts = ", ".join(f"{name} {_number(name, value)}" for name, value in numbers.items())
        self._count += count
        if self._bar is not None:
            self._bar.set_postfix_str(texts, refresh=False)
            self._bar.update(count)
        elif self._progress._line_is_due():
            self._progress.say(self._line(texts))

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, texts: str) -> str:
        line = f"{self._name}: {self._count:,}/{self._total:,} {self._unit}"
        elapsed = self._progress._clock() - self._began
        if elapsed > 0:
            speed = self._count / elapsed
            line += f", {speed:.3g} {self._unit}/s"
            if 0 < self._count < self._total:
                line += f", {_duration((self._total - self._count) / speed)} left"
        return line + (f", {texts}" if texts else "") + self._progress._run_line()


def _interruptible(tqdm: Any) -> Any:
    """A tqdm that gives its lock back whatever happens while it draws, Ctrl-C for one.

    Otherwise the thread that watches over tqdm's bars would wait for the lock for ever, and the end of the program for
    the thread. These bars need none: they look at the clock at every update.
    """

    class Bar(tqdm):  # type: ignore[misc]  # tqdm is imported where it is installed
        monitor_interval = 0

        def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:
            with contextlib.nullcontext() if nolock else self.get_lock():
                return super().refresh(nolock=True)

        def clear(self, nolock: bool = False) -> Any:
            with contextlib.nullcontext() if nolock else self.get_lock():
                return super().clear(nolock=True)

        def close(self) -> None:
            if not hasattr(self, "start_t"):  # interrupted while it was made: older ones of tqdm would raise
                self.disable = True
            super().close()

    return Bar


class _Patient:
    """A text stream that is silent from its first failure on, or from the start where there is none.

    Example:
        >>> class Full:
        ...     def write(self, text):
        ...         raise OSError("No space left on device")
        >>> stream = _Patient(Full())
        >>> stream.write("lost"), stream.isatty(), _Patient(None).write("lost too")
        (None, False, None)
    """

    def __init__(self, stream: Any) -> None:
        self._target = stream

    def write(self, text: str) -> None:
        """Write, if it can be."""
        self._try("write", text)

    def flush(self) -> None:
        """Flush, if it can be."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return bool(self._try("isatty"))

    def _try(self, name: str, *args: str) -> Any:
        try:
            return None if self._target is None else getattr(self._target, name)(*args)
        except UnicodeEncodeError as error:
            return self._try(name, *(text.encode(error.encoding, "replace").decode(error.encoding) for text in args))
        except BlockingIOError:  # a reader that is slow: what comes later may find its place
            return None
        except (OSError, ValueError):  # a ValueError where it was closed
            self._target = self._target if name == "isatty" else None
            return None

    def __getattr__(self, name: str) -> Any:
        """Have what else the stream has, such as its encoding."""
        if name.startswith("__") or name == "_target":  # while it is copied
            raise AttributeError(name)
        return getattr(self._target, name)

    def __eq__(self, other: object) -> bool:
        """Be the stream, so that tqdm makes room for what others write to it."""
        return bool(self._target == getattr(other, "_target", other))

    def __hash__(self) -> int:
        return hash(self._target)


def _number(name: str, value: object) -> str:
    """A number as it is shown, or raise; a tensor of one number is one."""
    try:
        return f"{value:.4g}"
    except Exception as error:  # each kind has its own way to refuse the format
        raise TypeError(f"{name} must be a number, got {shown(value)}") from error


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> _duration(3725.4)
        '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
