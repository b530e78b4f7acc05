"""How a command-line program ends: a mistake in one line, Ctrl-C in one or none, never a traceback."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

MISTAKES = (ValueError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError)


@contextlib.contextmanager
def ending_in_one_line(program: str) -> Iterator[None]:
    """End the process with one line where the body meets a mistake in arguments, files or data, or Ctrl-C.

    A ValueError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError or MemoryError becomes
    `sys.exit("PROGRAM: MESSAGE")`, with the message's lines joined, or its kind where it has none; a KeyboardInterrupt
    becomes `sys.exit("PROGRAM: stopped")`. Anything else is a fault of the program and keeps its traceback.

    Args:
        program: its name, which the line begins with.

    Raises:
        TypeError: the name is no string.
        SystemExit: the body raised one of those.

    Example:
        >>> with ending_in_one_line("train.py"):
        ...     raise ValueError("--seed must be at least 0, got -1")
        Traceback (most recent call last):
        SystemExit: train.py: --seed must be at least 0, got -1
    """
    if not isinstance(program, str):
        raise TypeError(f"program must be a string, got {type(program).__name__}: give the program's name")
    try:
        yield
    except MISTAKES as error:
        sys.exit(f"{program}: {' '.join(str(error).split()) or type(error).__name__}")
    except KeyboardInterrupt:
        sys.exit(f"{program}: stopped")


def run_program(main: Callable[[], object]) -> None:
    """Call `main()` so that Ctrl-C reaches it as a KeyboardInterrupt, and after it ends the process silently.

    While Python ends it waits for threads and closes what is open, and while it starts it imports for seconds; a Ctrl-C
    then prints a traceback of places that nobody wrote. For the start a program that is slow to import sets
    `signal.signal(signal.SIGINT, signal.SIG_DFL)` before its imports, as the ones in `examples/` do. Where Ctrl-C is
    ignored, as shells have it for what runs in their background, it stays so.

    Args:
        main: the program. What it raises, SystemExit included, goes on.

    Raises:
        TypeError: `main` cannot be called.
        ValueError: not in the main thread, where alone Python allows signals to be set.

    Example:
        >>> before = signal.getsignal(signal.SIGINT)
        >>> run_program(lambda: print("done"))
        done
        >>> _ = signal.signal(signal.SIGINT, before)  # only where a process does not end after it, as here
    """
    if not callable(main):
        raise TypeError(f"main must be a function without arguments, got {type(main).__name__}")
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("run_program must be called in the main thread, got another: call main itself there")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        main()
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
