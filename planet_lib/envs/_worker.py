"""One environment in a process of its own.

It knows processes, pipes and signals; what is asked, and what a failure means for an episode, is decided in
`planet_lib.envs.standard_vector`. Observations travel through the pipe: for pictures of a learner's size that takes
little beside drawing them, and there is no shared memory that a killed process could leave half written or behind.

A worker is spawned, never forked: a driver's threads don't survive a fork, and the child of a parent that has rendered
would hang. It ignores Ctrl-C, which the parent answers for all, and ends when its pipe closes or its parent is gone.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from planet_lib._errors import NonFiniteError
from planet_lib._shapes import shown
from planet_lib.envs._slots import END_SECONDS, Description, LostError, RefusedError, call, describe
from planet_lib.envs.rendering import draw_only

_VALUE, _ERROR, _DIED = "value", "error", "died"  # what a message brings; after an error the worker is still well
_START_SECONDS = 120.0  # imports and the first GL context, of many workers on few cores
_NOT_STARTED = (
    "; what it printed says why. A script that makes workers needs `if __name__ == '__main__':` around what it does, "
    "since each worker imports it"
)


class Worker:
    """An environment in a spawned process, which starts at once.

    Args:
        make: the pickled function that makes the environment.
        name: of the process.
        timeout: seconds that an answer may take; the start may take 120 if that is longer.
    """

    def __init__(self, make: bytes, *, name: str, timeout: float) -> None:
        self._make, self._name, self._timeout, self._owner = make, name, timeout, os.getpid()
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self.restart()

    def describe(self) -> Description:
        """Wait until the environment is made, and tell what it is."""
        try:
            described: Description = self._start()
        except LostError:
            self._kill()
            raise
        return described

    def ask(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Send a question. A worker that died is noticed when it should answer; one that was given up starts anew.

        Raises:
            TypeError: an argument cannot be pickled; nothing was sent.
        """
        if self._process is None:
            self.restart()
        try:
            question = ForkingPickler.dumps((self._asked + 1, name, args, kwargs))
        except MemoryError:
            raise
        except Exception as error:  # pickling runs what the objects define, and that raises anything
            raise TypeError(
                f"{name!r} must be given what can be pickled, since a worker is another process, got "
                f"{shown((args, kwargs))} ({type(error).__name__}: {error}): pass plain values and arrays"
            ) from error
        self._asked += 1
        self._asked_at = time.monotonic()
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(question)

    def answer(self) -> Any:
        """Wait for the answer to the last question; the process is well after it, except after a mere `LostError`."""
        try:
            if self._description is None:
                self._start()
                self._asked_at = time.monotonic()
            return self._read(self._asked, self._asked_at + self._timeout)
        except RefusedError:
            raise
        except LostError:
            self._kill()
            raise

    def restart(self) -> None:
        """End the process, if there is one, and start another; the pipe is new, so nothing old can be read."""
        self._kill()
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=work, args=(theirs, self._make), name=self._name, daemon=True)
        try:
            with _ctrl_c_waits():
                self._process.start()
        finally:
            theirs.close()
        self._asked, self._started_at = 0, time.monotonic()
        self._description: Description | None = None

    def hang_up(self) -> None:
        """Close the pipe: a worker that waits for a question, or is about to answer one, then ends."""
        self._pipe.close()

    def end(self, deadline: float) -> None:
        """Let the worker close its environment, if it has one; then kill it. A fork of this process leaves it alone."""
        self.hang_up()
        if os.getpid() != self._owner:
            return
        if self._process is not None and self._description is not None:
            self._process.join(max(0.0, deadline - time.monotonic()))
        self._kill()

    def _start(self) -> Description:
        """Wait until the environment is made."""
        if self._description is None:
            limit = max(self._timeout, _START_SECONDS)
            description: Description = self._read(0, self._started_at + limit)
            self._description = description
        return self._description

    def _read(self, number: int, deadline: float) -> Any:
        """Return the answer to question `number`; earlier ones were interrupted, and nobody waits for theirs."""
        while True:
            try:
                if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                    raise LostError(f"its process gave no answer within {self._limit():g} seconds (timeout)")
                answered, kind, packed = self._received()
            except (EOFError, OSError) as error:
                raise LostError(self._obituary()) from error
            if kind == _DIED:
                reason, original = pickle.loads(packed)
                raise LostError(reason, _unpacked(original))
            if answered == number:
                return _opened(packed, kind)

    def _received(self) -> tuple[int, str, bytes]:
        """Return the next message: to which question, of which kind, and packed what."""
        try:
            message: tuple[int, str, bytes] = self._pipe.recv()
        except KeyboardInterrupt:  # in the middle of a message, maybe: nothing behind it could be read
            self._kill()
            raise
        return message

    def _limit(self) -> float:
        """Return the seconds that are waited for now."""
        return max(self._timeout, _START_SECONDS) if self._description is None else self._timeout

    def _obituary(self) -> str:
        """Say how the process ended."""
        self._process.join(END_SECONDS)
        code = self._process.exitcode
        if code is None:
            return "its process closed the pipe"
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        early = _NOT_STARTED if self._description is None else ""
        return f"its process ended with exit code {code}{early}"

    def _kill(self) -> None:
        """Leave no process behind, nor anything of it."""
        if self._process is not None:
            self._pipe.close()
            if self._process.pid is not None:
                self._process.kill()
                self._process.join()
            self._process.close()
            self._process = None


def work(pipe: Connection, make: bytes) -> None:
    """Make the environment and answer until the pipe closes; the worker's process does nothing else."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_die_with_parent, daemon=True).start()
    draw_only()
    env, number = None, 0
    with contextlib.suppress(EOFError, OSError):  # nobody asks any more
        try:
            env = pickle.loads(make)()
            described = describe(env)
            if not _can_leave(described.spec):
                described = described._replace(spec=None)
            pipe.send((number, _VALUE, _packed_whole(described)))
            while True:
                number, name, args, kwargs = _asked(pipe)
                pipe.send((number, *_answered(env, name, args, kwargs)))
        except _HungUp:
            pass
        except BaseException as error:  # also SystemExit, which an environment has no business to raise
            pipe.send((number, _DIED, pickle.dumps((traceback.format_exc().strip(), _packed(error)))))
        finally:
            if env is not None:
                env.close()


def _answered(env: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, bytes]:
    """Return what the environment gives, or the error where the worker is well nonetheless; else raise it."""
    try:
        value = call(env, name, args, kwargs)
        if name in ("reset", "step") and not _can_leave(value[-1]):
            value = (*value[:-1], _portable(value[-1]))
        return _VALUE, _packed_whole(value)
    except NonFiniteError as error:
        return _ERROR, pickle.dumps(error)
    except Exception:
        if name in ("reset", "step"):
            raise
        return _ERROR, pickle.dumps(RefusedError(traceback.format_exc().strip()))


def _packed_whole(value: Any) -> bytes:
    """Return the value as bytes: whoever waits for it unpacks it, and no other message suffers where that fails."""
    return bytes(ForkingPickler.dumps(value))


def _opened(packed: bytes, kind: str) -> Any:
    """Return what `_packed_whole` packed, or raise where it is an error or cannot be made here."""
    try:
        value = pickle.loads(packed)
    except Exception as error:  # unpickling runs what the objects define, and that raises anything
        raise RefusedError(f"its answer cannot be read in this process, {type(error).__name__}: {error}") from error
    if kind == _ERROR:
        raise value
    return value


class _HungUp(Exception):
    """The parent closed the pipe."""


def _asked(pipe: Connection) -> Any:
    """Return the next question."""
    try:
        return pipe.recv()
    except (EOFError, OSError) as error:
        raise _HungUp from error


def _can_leave(value: Any) -> bool:
    """Tell whether the value can be sent through a pipe."""
    try:
        ForkingPickler.dumps(value)
    except Exception:  # pickling runs what the objects define, and that raises anything
        return False
    return True


def _portable(info: dict[Any, Any], inside: frozenset[int] = frozenset()) -> dict[Any, Any]:
    """Return the infos without those that cannot be pickled: nobody may read them, and an episode is worth more.

    What holds itself is among those, as far as it holds anything of the kind. inside: identities of those around.
    """
    inside |= {id(info)}
    others = {key: value for key, value in info.items() if id(value) not in inside}
    pairs = ((key, _portable(value, inside) if type(value) is dict else value) for key, value in others.items())
    return {key: value for key, value in pairs if _can_leave((key, value))}


def _packed(error: BaseException) -> bytes | None:
    """Return the exception as bytes, or None for one that does not survive the way."""
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:
        return None
    return packed


def _unpacked(packed: bytes | None) -> BaseException | None:
    """Return the exception, or None for one that is known only over there."""
    try:
        error = None if packed is None else pickle.loads(packed)
    except Exception:
        return None
    return error if isinstance(error, Exception) else None


def _die_with_parent() -> None:
    """End this process as soon as the parent has ended, however it did and whatever the environment does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Hold Ctrl-C back while a process starts: the child inherits this, and is not interrupted during its imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    if sys.platform != "win32":
        resource_tracker.ensure_running()  # starting it for the first time would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
