"""Going on after a number that is not finite: leave out the update or the episode that had it, count it, say so.

Knows neither updates nor episodes, only that they raise `planet_lib.NonFiniteError` before anything has changed.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from planet_lib._errors import NonFiniteError
from planet_lib._shapes import check_count


class SkipNonFinite:
    """Leaves out what raises `NonFiniteError`, and stops where that happens too often in a row.

    One bad episode of a simulator that lost its footing, or one overflow, should not cost a run of ten hours; a model
    that has diverged should not run on for ten hours either.

    Args:
        limit: how many may be left out in a row; one more is an error.
        say: called with one line about each that is left out.

    Attributes:
        count: how many were left out in all.
        in_a_row: how many of them since the last one that went well.

    Raises:
        ValueError: limit is no whole number of at least 1.

    Example:
        >>> skip = SkipNonFinite(limit=2)
        >>> for reward in (1.0, float("nan"), 2.0):
        ...     with skip.leaving_out("episode 7"):
        ...         if reward != reward:
        ...             raise NonFiniteError(f"step 3: reward must be finite, got {reward}")
        ...         print(reward)
        1.0
        episode 7 is left out (step 3: reward must be finite, got nan)
        2.0
        >>> skip.count, skip.in_a_row
        (1, 0)
    """

    def __init__(self, limit: int = 10, *, say: Callable[[str], object] = print) -> None:
        check_count(limit=limit)
        self.limit, self.count, self.in_a_row = limit, 0, 0
        self._say = say

    @contextlib.contextmanager
    def leaving_out(self, what: str) -> Iterator[None]:
        """Run the block; where it raises `NonFiniteError`, end it there and go on behind it.

        Args:
            what: the block is, for the line and the error: "update 812", "episode 7".

        Raises:
            NonFiniteError: `limit` were left out in a row, and this is one more. The message has the last reason.
        """
        try:
            yield
        except NonFiniteError as error:
            self.count += 1
            self.in_a_row += 1
            if self.in_a_row > self.limit:
                raise NonFiniteError(
                    f"{what} would be number {self.in_a_row} in a row to be left out, and {self.limit} may be: {error}"
                ) from error
            self._say(f"{what} is left out ({error})")
        else:
            self.in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """Return both counts, for a checkpoint."""
        return {"count": self.count, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the counts that `state_dict` returned.

        Raises:
            ValueError: they are none. Raised before anything changes.
        """
        found = [state.get(name) if isinstance(state, Mapping) else None for name in ("count", "in_a_row")]
        if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in found):
            raise ValueError(f"state must hold count and in_a_row, whole numbers of at least 0, got {state!r}")
        self.count, self.in_a_row = state["count"], state["in_a_row"]
