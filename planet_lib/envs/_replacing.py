"""Slots whose environments are replaced where they fail, and brought to where the old ones were.

It knows what a failure means for an episode; which rows run, and how answers become batches, is decided in
`planet_lib.envs.standard_vector`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from planet_lib.envs._history import DifferentError, History
from planet_lib.envs._slots import InProcess, LostError, RefusedError, Slot
from planet_lib.envs.images import Array

Result = tuple[Any, ...]  # what an environment's reset or step gives


class Outcome(NamedTuple):
    """What came of asking some rows.

    results: of the rows whose episode goes on, what reset or step gave. failures: of the rows that got a new worker,
    what happened to the old one. lost: of the rows whose episode is lost, why the new worker did not take it up.
    """

    results: dict[int, Result]
    failures: dict[int, str]
    lost: dict[int, str]


class ReplacingSlots:
    """Asks many slots at once, and replaces those that fail.

    Args:
        slots: one for each row.
        max_restarts: how often a row may fail without finishing an episode, before that is a `RuntimeError`.
    """

    def __init__(self, slots: Sequence[Slot], *, max_restarts: int) -> None:
        self._slots, self._max_restarts = list(slots), max_restarts
        self._remembers = not isinstance(self._slots[0], InProcess)  # those are never lost
        self._failures = [0] * len(self._slots)
        self._histories: dict[int, History] = {}
        self._gone: dict[
            int, str
        ] = {}  # rows whose worker was lost while it answered a question between steps, and how
        self._survived = [False] * len(self._slots)  # whether a row has taken steps that nobody lost since its reset
        self._called = [False] * len(self._slots)  # since it was made: it may no longer be as its constructor makes it

    def reset(self, rows: Sequence[int], seeds: Sequence[int | None], options: dict[str, Any] | None) -> Outcome:
        """Reset some rows; a new worker is asked again. An episode that this cuts short counts as a finished one."""
        outcome = Outcome(results={}, failures={}, lost={})
        for row in rows:
            if self._survived[row]:
                self._failures[row], self._survived[row] = 0, False
            if row not in self._gone:
                self._slots[row].ask("reset", seed=seeds[row], options=options)
        for row in rows:
            while row not in outcome.results:
                try:
                    outcome.results[row] = self._answer(row)
                except LostError as error:
                    gone = " (what `call` had set in the old one is gone)" if self._called[row] else ""
                    outcome.failures[row] = f"{error}{gone}"
                    self._replace(row, outcome.failures[row])
                    self._slots[row].ask("reset", seed=seeds[row], options=options)
            if self._remembers:
                self._histories[row] = History(seeds[row], options, outcome.results[row])
        return outcome

    def step(self, rows: Sequence[int], actions: Array) -> Outcome:
        """Step some rows. Those whose worker fails come last: all new ones start at once, while the others answer."""
        outcome = Outcome(results={}, failures={}, lost={})
        for row in rows:
            if row not in self._gone:
                self._slots[row].ask("step", actions[row])
        for row in rows:
            try:
                outcome.results[row] = self._answer(row)
            except LostError as error:
                outcome.failures[row] = str(error)
                gap = "`call` may have changed its environment" if self._called[row] else self._histories[row].gap
                if gap is not None:
                    outcome.lost[row] = gap
                self._replace(row, outcome.failures[row])
        for row in [row for row in outcome.failures if row not in outcome.lost]:
            try:
                outcome.results[row] = self._taken_up(row, actions[row])
            except DifferentError as error:
                outcome.lost[row] = str(error)
        for row in outcome.lost:
            self._survived[row] = False
        for row, (_, _, terminated, truncated, _) in outcome.results.items():
            self._survived[row] = True
            if self._remembers:
                self._histories[row].add(actions[row], outcome.results[row])
            if terminated or truncated:
                self._failures[row] = 0
        return outcome

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, changes: bool) -> list[Any]:
        """Return what a method or attribute of every environment gives.

        changes: whether the environment may be another one afterwards.
        """
        results = []
        for row, slot in enumerate(self._slots):
            self._called[row] |= changes
            if row not in self._gone:
                slot.ask(name, *args, **kwargs)
        for row, slot in enumerate(self._slots):
            try:
                if row in self._gone:
                    raise RefusedError(f"it has no worker until it is stepped or reset, since {self._gone[row]}")
                results.append(slot.answer())
            except LostError as error:
                if not isinstance(error, RefusedError):
                    self._gone[row] = str(error)
                raise RuntimeError(f"environment {row} failed in {name!r}: {error}") from None
            except KeyboardInterrupt:
                self._gone[row] = f"its answer to {name!r} was interrupted"
                raise
        return results

    def _answer(self, row: int) -> Result:
        """Return what a row gives to the last question, or raise a `LostError`, also where it was lost before that."""
        if row in self._gone:
            raise LostError(self._gone.pop(row))
        result: Result = self._slots[row].answer()
        return result

    def _taken_up(self, row: int, action: Array) -> Result:
        """Return what the step that failed gives in a new worker, once that has played the episode until there.

        One that fails too is replaced again, unless it is in a step that has failed before: then it is no accident.
        """
        history = self._histories[row]
        failed = {len(history) + 1}
        while True:
            try:
                history.play_again(self._slots[row])
                self._slots[row].ask("step", action)
                result: Result = self._slots[row].answer()
            except LostError as error:
                self._replace(row, str(error))
                if history.position in failed:
                    raise DifferentError(f"step {history.position} failed again when it was played again") from None
                failed.add(history.position)
            else:
                return result

    def _replace(self, row: int, reason: str) -> None:
        """Start a new worker for a row, or raise where that was tried often enough."""
        self._failures[row] += 1
        count = self._failures[row]
        if count > self._max_restarts:
            self._failures[row] = 0
            raise RuntimeError(
                f"environment {row} failed {count} times without finishing an episode "
                f"(max_restarts={self._max_restarts}), the last time with: {reason}"
            ) from None
        self._called[row] = False
        self._slots[row].restart()
