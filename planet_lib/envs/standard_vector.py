"""Many environments of planet_lib's contract as one of Gymnasium's vector environments, whose workers are replaced.

Which rows run, what a lost worker means for its row, and how answers become batches; where an environment lives
(`planet_lib.envs._slots`) is no matter. `planet_lib.envs.make_vector_env` makes one.

Source: Gymnasium's vector API, autoreset mode DISABLED. Differences: `gymnasium.vector.AsyncVectorEnv` cannot replace a
worker, and steps on over an episode's end unless each end is reset; here a row without a running episode is left alone.
"""

import contextlib
import operator
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from planet_lib.envs._infos import batch_infos
from planet_lib.envs._slots import Description, InProcess, LostError, Slot, end_all
from planet_lib.envs.images import Array
from planet_lib.envs.observations import Observation

_TOLERANCE = 1e-6


class StandardVectorEnv(gymnasium.vector.VectorEnv[Observation, Array, Array]):
    """N environments under planet_lib's contract (`planet_lib.envs.wrappers.StandardEnv`), reset and stepped at once.

    A row is running from its reset until its episode ends or is lost. `step` moves the running rows and leaves the
    others as they are: the last observation, reward 0, and the flags with which they ended, until they are reset. So
    nothing resets itself (autoreset mode DISABLED), and the last observation of an episode is always seen.

    A worker that raises, dies or takes longer than the timeout is replaced, with a `RuntimeWarning` that says why. Its
    row then has infos["restarted"], the reason in infos["restart_reason"], and keeps the last observation that came:
    the episode is lost, neither terminated nor truncated, and the row must be reset. In `reset` the replaced worker is
    asked again, with the same seed. A row that fails more than `max_restarts` times without finishing an episode is an
    error: what always fails is no accident.

    Shapes: observations [N, ...] of what `StandardEnv` returns, or a dictionary of such; actions [N, A]; rewards [N]
    float64; terminations, truncations and infos["restarted"] [N] bool. Arrays are new at each call. Infos that do not
    fit together are object arrays [N]; those that cannot be pickled do not leave their worker.

    Attributes:
        action_repeat: of each environment, as are `renderer` and `num_actions`.
        spec: Gymnasium's specification of the first environment, whose max_episode_steps counts steps before action
            repeat; None for an environment without one, such as the suite's, or one that cannot be pickled.

    Raises:
        ValueError: at construction, environments that differ in their spaces; in `step`, actions of the wrong shape, or
            ones of a running row that are not finite or not in the action space; in `reset`, bad seeds or a bad mask.
        RuntimeError: a row failed too often; the message has the worker's traceback.
        gymnasium.error.ResetNeeded: `step` while no row is running; also after an error or Ctrl-C within `step`, which
            may have moved some rows and not others.
    """

    def __init__(self, slots: Sequence[Slot], *, max_restarts: int = 3) -> None:
        self._slots = list(slots)
        # With this object workers end, and with the program; in this process a driver may be gone by then.
        self._finalizer = weakref.finalize(self, end_all, self._slots)
        self._finalizer.atexit = not isinstance(self._slots[0], InProcess)
        try:
            first = _described(self._slots)
        except BaseException:
            self._finalizer()
            raise
        self.num_envs = len(self._slots)
        self.metadata = {**first.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self.render_mode, self.spec = first.render_mode, first.spec
        self.action_repeat, self.renderer, self.num_actions = first.action_repeat, first.renderer, first.num_actions
        self.single_observation_space, self.single_action_space = first.observation_space, first.action_space
        self.observation_space = batch_space(first.observation_space, self.num_envs)
        self.action_space = batch_space(first.action_space, self.num_envs)
        self.max_restarts = max_restarts
        self._failures = [0] * self.num_envs
        blank = create_empty_array(self.single_observation_space, self.num_envs, np.zeros)
        self._rows: list[Observation] = list(iterate(self.observation_space, blank))
        self._running, self._terminated, self._truncated, self._restarted = np.zeros((4, self.num_envs), np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start episodes, in all rows or those of a mask.

        Args:
            seed: s gives row i the seed s + i; a sequence gives each row its own, or None; None lets them choose.
            options: "reset_mask", [N] bool, names the rows; anything else is passed on to each of these.

        Returns:
            The observations [N, ...], of the other rows as they were, and the infos of the rows that were reset.
        """
        self._check_open()
        settings = dict(options or {})
        rows = self._masked(settings.pop("reset_mask", None))
        seeds = self._seeds(seed)
        if isinstance(seed, int):
            super().reset(seed=seed)
        infos: dict[int, dict[str, Any]] = {}
        failures: dict[int, str] = {}
        with self._all_or_nothing():
            for row in rows:
                self._slots[row].ask("reset", seed=seeds[row], options=settings or None)
            for row in rows:
                self._rows[row], infos[row] = self._insist(row, seeds[row], settings or None, failures)
        self._running[rows] = True
        self._terminated[rows] = self._truncated[rows] = self._restarted[rows] = False
        _warn(failures)
        return self._observations(), batch_infos(infos, self.num_envs)

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Step the running rows: observations, rewards, terminations, truncations, infos, each [N, ...]."""
        self._check_open()
        rows = np.flatnonzero(self._running).tolist()
        if not rows:
            raise ResetNeeded("step needs a running episode in at least one row: call reset() first")
        values = self._checked(actions, rows)
        rewards = np.zeros(self.num_envs)
        infos: dict[int, dict[str, Any]] = {row: {} for row in range(self.num_envs)}
        failures: dict[int, str] = {}
        with self._all_or_nothing():
            for row in rows:
                self._slots[row].ask("step", values[row])
            for row in rows:
                try:
                    result = self._slots[row].answer()
                except LostError as error:
                    failures[row] = str(error)
                    self._replace(row, failures[row])
                    self._restarted[row] = True
                    infos[row] = {"restart_reason": failures[row]}
                else:
                    self._rows[row], rewards[row], self._terminated[row], self._truncated[row], infos[row] = result
        ended = self._terminated | self._truncated
        for row in rows:
            self._failures[row] *= not ended[row]
        self._running &= ~(ended | self._restarted)
        told = {row: {**info, "restarted": self._restarted[row]} for row, info in infos.items()}
        batch = batch_infos(told, self.num_envs)
        _warn(failures)
        return self._observations(), rewards, self._terminated.copy(), self._truncated.copy(), batch

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or read an attribute, and return what each gives.

        A restarted environment is as its constructor makes it: what was set by a call is gone.
        """
        self._check_open()
        results = []
        with self._all_or_nothing():
            for slot in self._slots:
                slot.ask(name, *args, **kwargs)
            for row, slot in enumerate(self._slots):
                try:
                    results.append(slot.answer())
                except LostError as error:
                    raise RuntimeError(f"environment {row} failed in {name!r}: {error}") from None
        return tuple(results)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment."""
        return self.call(name)

    def render(self) -> tuple[Any, ...]:
        """Return what each environment draws."""
        return self.call("render")

    def close_extras(self, **kwargs: Any) -> None:
        """End every worker: each may close its environment first, and is killed where that takes seconds."""
        self._finalizer()

    def _insist(
        self, row: int, seed: int | None, options: dict[str, Any] | None, failures: dict[int, str]
    ) -> tuple[Observation, dict[str, Any]]:
        """Return what resetting a row gives, from a new worker where the one that was asked is lost."""
        while True:
            try:
                result: tuple[Observation, dict[str, Any]] = self._slots[row].answer()
            except LostError as error:
                failures[row] = str(error)
                self._replace(row, failures[row])
                self._slots[row].ask("reset", seed=seed, options=options)
            else:
                return result

    def _replace(self, row: int, reason: str) -> None:
        """Start a new worker for a row, or raise where that was tried often enough."""
        self._failures[row] += 1
        count = self._failures[row]
        if count > self.max_restarts:
            self._failures[row] = 0
            raise RuntimeError(
                f"environment {row} failed {count} times without finishing an episode "
                f"(max_restarts={self.max_restarts}), the last time with: {reason}"
            ) from None
        self._slots[row].restart()

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """After an error or Ctrl-C some rows have moved and others not: let none run on."""
        try:
            yield
        except BaseException:
            self._running[:] = False
            raise

    def _observations(self) -> Observation:
        """Return the rows as one batch of new arrays."""
        out: Any = create_empty_array(self.single_observation_space, self.num_envs, np.empty)
        batch: Any = concatenate(self.single_observation_space, self._rows, out)
        result: Observation = batch
        return result

    def _check_open(self) -> None:
        """Raise where the environments are closed."""
        if self.closed:
            raise ClosedEnvironmentError("the environments are closed: make new ones with make_vector_env")

    def _masked(self, mask: Any) -> list[int]:
        """Return the rows that a mask names, or all."""
        if mask is None:
            return list(range(self.num_envs))
        given = np.asarray(mask)
        if given.shape != (self.num_envs,) or given.dtype != np.bool_ or not given.any():
            raise ValueError(
                f'options["reset_mask"] must be [{self.num_envs}] bool with at least one row True, got {mask!r}'
            )
        rows: list[int] = np.flatnonzero(given).tolist()
        return rows

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        """Return the seed of each row."""
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + row for row in range(self.num_envs)]
        seeds = [None if one is None else operator.index(one) for one in seed]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one number, or one for each of {self.num_envs} rows, got {len(seeds)}")
        return seeds

    def _checked(self, actions: Any, rows: list[int]) -> Array:
        """Return the actions as float32 [N, A], those of `rows` checked, before anything moves."""
        values = np.asarray(actions, np.float32)
        space: Any = self.single_action_space
        expected = (self.num_envs, *space.shape)
        if values.shape != expected:
            raise ValueError(f"actions must be [N, A] with N={expected[0]}, A={expected[1]}, got {list(values.shape)}")
        for row in rows:
            action = values[row]
            # Not a number is outside too.
            if not ((action >= space.low - _TOLERANCE) & (action <= space.high + _TOLERANCE)).all():
                raise ValueError(f"the action of row {row} must be finite and in {space}, got {action}; clip it first")
            if self.num_actions is not None and not np.allclose(
                np.sort(action), np.eye(len(action))[-1], atol=_TOLERANCE
            ):
                raise ValueError(f"the action of row {row} must be one-hot, a 1 among zeros, got {action}")
        return values


def _described(slots: list[Slot]) -> Description:
    """Return what the environments are, or raise where they differ."""
    first = slots[0].describe()
    for row, slot in enumerate(slots):
        other = slot.describe()
        if (other.observation_space, other.action_space) != (first.observation_space, first.action_space):
            raise ValueError(
                f"all environments must have the spaces of the first, {first.observation_space} and "
                f"{first.action_space}; number {row} has {other.observation_space} and {other.action_space}"
            )
    return first


def _warn(failures: dict[int, str]) -> None:
    """Say which rows have a new worker, and why; last of all, since a warning may be made an error."""
    for row, reason in failures.items():
        warnings.warn(f"environment {row} has a new worker: {reason}", RuntimeWarning, stacklevel=3)
