"""Many environments of planet_lib's contract as one of Gymnasium's vector environments, whose workers are replaced.

Which rows run, what a lost worker means for its row, and how answers become batches; where an environment lives
(`planet_lib.envs._slots`) is no matter. `planet_lib.envs.make_vector_env` makes one.

Source: Gymnasium's vector API, autoreset mode DISABLED. Differences: `gymnasium.vector.AsyncVectorEnv` cannot replace a
worker, and steps on over an episode's end unless each end is reset; here a row without a running episode is left alone.
"""

import contextlib
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from planet_lib.envs._checks import check_reset, numbers_of, seeds_of
from planet_lib.envs._infos import batch_infos
from planet_lib.envs._replacing import ReplacingSlots
from planet_lib.envs._slots import Description, InProcess, Slot, end_all
from planet_lib.envs.images import Array
from planet_lib.envs.observations import Observation

_TOLERANCE = 1e-6


class StandardVectorEnv(gymnasium.vector.VectorEnv[Observation, Array, Array]):
    """N environments under planet_lib's contract (`planet_lib.envs.wrappers.StandardEnv`), reset and stepped at once.

    A row is running from its reset until its episode ends or is lost. `step` moves the running rows and leaves the
    others as they are: the last observation, reward 0, and the flags with which they ended, until they are reset. So
    nothing resets itself (autoreset mode DISABLED), and the last observation of an episode is always seen.

    A worker that raises, dies or takes longer than the timeout is replaced, with a `RuntimeWarning` that says why. In
    `reset` the new worker is asked again. In `step` it plays the episode again, from the same seed with the same
    actions, and then takes the step that failed: the row goes on as if nothing had happened, but for
    infos["restored"]. The other rows wait meanwhile, for as long as the episode took until then.

    Otherwise the episode is lost: where its reset had no seed; where `call` was used on that worker; where the same
    step fails again; where the new worker gives other observations, rewards or flags than the old one; and after
    100,000 steps. The row then has infos["restarted"] and keeps the last observation that came, neither terminated nor
    truncated, and must be reset. Either way infos["restart_reason"] says what happened. A row that fails more than
    `max_restarts` times without finishing an episode is an error: what always fails is no accident. One that was
    stepped and is reset has finished it, too.

    Shapes: observations [N, ...] of what `StandardEnv` returns, or a dictionary of such; actions [N, A]; rewards [N]
    float64; terminations, truncations, infos["restarted"] and infos["restored"] [N] bool. Arrays are new at each call.
    Infos that do not fit together are object arrays [N]; those that cannot be pickled do not leave their worker.

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
        self._replacing = ReplacingSlots(self._slots, max_restarts=max_restarts)
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
        check_reset(None, options)
        settings = dict(options or {})
        rows = self._masked(settings.pop("reset_mask", None))
        seeds = seeds_of(seed, self.num_envs)
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        infos: dict[int, dict[str, Any]] = {}
        with self._all_or_nothing():
            outcome = self._replacing.reset(rows, seeds, settings or None)
            for row, result in outcome.results.items():
                self._rows[row], infos[row] = result
            self._running[rows] = True
            self._terminated[rows] = self._truncated[rows] = self._restarted[rows] = False
        for row, reason in outcome.failures.items():
            _warn(row, "", reason)
        return self._observations(), batch_infos(infos, self.num_envs)

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Step the running rows: observations, rewards, terminations, truncations, infos, each [N, ...]."""
        self._check_open()
        rows = np.flatnonzero(self._running).tolist()
        if not rows:
            raise ResetNeeded("step needs a running episode in at least one row: call reset() first")
        values = self._checked(actions, rows)
        rewards = np.zeros(self.num_envs)
        infos: dict[int, dict[str, Any]] = {}
        with self._all_or_nothing():
            results, failures, lost = self._replacing.step(rows, values)
            for row, result in results.items():
                self._rows[row], rewards[row], self._terminated[row], self._truncated[row], infos[row] = result
            self._restarted[list(lost)] = True
            self._running &= ~(self._terminated | self._truncated | self._restarted)
        told: dict[int, dict[str, Any]] = {}
        for row in range(self.num_envs):
            restored = row in failures and row not in lost
            told[row] = {**infos.get(row, {}), "restarted": self._restarted[row], "restored": restored}
            if row in failures:
                told[row]["restart_reason"] = failures[row]
        batch = batch_infos(told, self.num_envs)
        for row, reason in failures.items():
            _warn(row, f", and its episode is lost ({lost[row]})" if row in lost else ", which goes on for it", reason)
        return self._observations(), rewards, self._terminated.copy(), self._truncated.copy(), batch

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or read an attribute, and return what each gives.

        A new worker's environment is as its constructor makes it: what was set by a call is gone. So an episode is lost
        with a worker on which this was used. Reading with `get_attr` and drawing with `render` change nothing, and the
        episodes go on even where that raises.

        Raises:
            RuntimeError: in a worker, one of them raised, or has no such attribute; the message has its traceback.
                Without workers the error is raised as it is, and so is a `NonFiniteError` from anywhere. After `call`
                all rows must then be reset. A row whose worker dies of it is replaced at its next step or reset.
        """
        return self._call(name, args, kwargs, changes=True)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment."""
        return self._call(name, (), {}, changes=False)

    def render(self) -> tuple[Any, ...]:
        """Return what each environment draws."""
        return self._call("render", (), {}, changes=False)

    def close_extras(self, **kwargs: Any) -> None:
        """End every worker: each may close its environment first, and is killed where that takes seconds."""
        self._finalizer()

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, changes: bool) -> tuple[Any, ...]:
        """Ask every environment, and return what each answers; `changes`: whether it may be another one then."""
        self._check_open()
        with self._all_or_nothing() if changes else contextlib.nullcontext():
            return tuple(self._replacing.call(name, args, kwargs, changes=changes))

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
        given = numbers_of('options["reset_mask"]', mask, f"[{self.num_envs}] bool")
        if given.shape != (self.num_envs,) or given.dtype != np.bool_ or not given.any():
            raise ValueError(
                f'options["reset_mask"] must be [{self.num_envs}] bool with at least one row True, got {mask!r:.200}'
            )
        rows: list[int] = np.flatnonzero(given).tolist()
        return rows

    def _checked(self, actions: Any, rows: list[int]) -> Array:
        """Return the actions as float32 [N, A], those of `rows` checked, before anything moves."""
        space: Any = self.single_action_space
        expected = (self.num_envs, *space.shape)
        with np.errstate(over="ignore"):  # what overflows becomes inf, which is outside
            values = numbers_of("actions", actions, "[N, A]").astype(np.float32)
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


def _warn(row: int, outcome: str, reason: str) -> None:
    """Say that a row has a new worker, and why; last of all, since a warning may be made an error."""
    warnings.warn(f"environment {row} has a new worker{outcome}: {reason}", RuntimeWarning, stacklevel=3)
