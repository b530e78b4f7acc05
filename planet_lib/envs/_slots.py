"""Where one of many environments lives, behind a few calls: ask, answer, restart, end.

Here in this process; `planet_lib.envs._worker` has one in a process of its own.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

END_SECONDS = 5.0  # that closing an environment may take


class Description(NamedTuple):
    """What a vector environment tells about its environments."""

    observation_space: Any
    action_space: Any
    metadata: dict[str, Any]
    render_mode: str | None
    action_repeat: int
    renderer: str | None
    num_actions: int | None
    spec: Any


class LostError(Exception):
    """A worker failed; the text says how, with its traceback where it has one.

    original: the exception that its environment raised, where it could be brought over.
    """

    def __init__(self, reason: str, original: BaseException | None = None) -> None:
        super().__init__(reason)
        self.original = original


class RefusedError(LostError):
    """What was asked raised an error, or gave what cannot be read here; the worker is well, its environment there."""


class Slot(Protocol):
    """Where one environment lives."""

    def describe(self) -> Description:
        """Wait until the environment is made, and tell what it is."""
        ...

    def ask(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Have a method called, or an attribute read; don't wait."""
        ...

    def answer(self) -> Any:
        """Wait for what the last question gives; raise `LostError` where nothing more can come."""
        ...

    def restart(self) -> None:
        """Make the environment anew; don't wait."""
        ...

    def hang_up(self) -> None:
        """Tell it to end; don't wait."""
        ...

    def end(self, deadline: float) -> None:
        """Wait until it has ended, and see to it when `time.monotonic()` is past the deadline."""
        ...


S = TypeVar("S", bound=Slot)


def fill(num_slots: int, make: Callable[[int], S]) -> list[S]:
    """Return the slots that `make(number)` gives, or none at all."""
    slots: list[S] = []
    try:
        for number in range(num_slots):
            slots.append(make(number))  # noqa: PERF401 -- where one fails, the others are known and ended
    except BaseException:
        end_all(slots)
        raise
    return slots


def end_all(slots: Sequence[Slot]) -> None:
    """End all at once, and then wait for each."""
    for slot in slots:
        slot.hang_up()
    deadline = time.monotonic() + END_SECONDS
    for slot in slots:
        slot.end(deadline)


class InProcess:
    """An environment in this process: errors are the caller's, as they are, and nothing is ever restarted."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._env = make()
        self._question: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None

    def describe(self) -> Description:
        """Tell what the environment is."""
        return describe(self._env)

    def ask(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Keep the question."""
        self._question = name, args, kwargs

    def answer(self) -> Any:
        """Do what was asked."""
        if self._question is None:
            raise RuntimeError("nothing was asked")
        return call(self._env, *self._question)

    def restart(self) -> None:
        """Never needed: `answer` raises what the environment raises."""
        raise RuntimeError("an environment in this process cannot be restarted")

    def hang_up(self) -> None:
        """Nothing runs by itself."""

    def end(self, deadline: float) -> None:
        """Close the environment."""
        self._env.close()


def call(env: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a method of the environment or of what it wraps, or read an attribute."""
    value = env.get_wrapper_attr(name)
    return value(*args, **kwargs) if callable(value) else value


def describe(env: Any) -> Description:
    """Return what a `StandardEnv` tells about itself."""
    return Description(
        observation_space=env.observation_space,
        action_space=env.action_space,
        metadata=dict(env.metadata),
        render_mode=env.render_mode,
        action_repeat=env.action_repeat,
        renderer=env.renderer,
        num_actions=env.num_actions,
        spec=env.spec,
    )
