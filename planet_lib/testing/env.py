"""The contract of environments. Knows `reset` and `step`, no class that has them, and no simulator.

Source: ours. Gymnasium's own `check_env` asks whether spaces and return values are Gymnasium's; this one asks for what
collection, replay and planner rely on, and whose breach spoils data without an error: an image that the next step
writes over, an episode that cannot be played again, an end that is none.
"""

from typing import Any

import numpy as np

from planet_lib._shapes import check_count, check_flag, check_whole, is_whole, shown
from planet_lib.testing._env_play import Counting, Player, one_line
from planet_lib.testing._env_rows import Complaints, Halt, Row, difference, same
from planet_lib.testing.contract import LARGEST_SEED, ContractError
from planet_lib.types import Array

_FEW = 10  # steps of the episodes in between
_WRAPPERS = 100  # looked into at most, since one may hold itself
_REWARD_TOLERANCE = 1e-5


def check_env(
    env: Any,
    *,
    seed: int = 0,
    num_steps: int = 100,
    action_dim: int | None = None,
    random: bool = False,
    bad_actions: bool = True,
    close: bool = True,
) -> None:
    """Try whether an environment keeps what collection, replay and planner rely on.

    It takes what `make_env` returns, and anything else that `planet_lib.data.run_episode` takes. Actions are float32
    [A] in [-1, 1]; one-hot where `env.num_actions` is a number. All that is wrong is told in one error:

    - `reset(seed=...)` returns (observation, info), with None as seed too, and `step(action)` returns observation,
      reward, terminated, truncated, info; each info is a dictionary;
    - an observation is a uint8 image [C, Y, X], a finite vector [N] of floats, or a dictionary of such, with the same
      names, dtypes and shapes at each step, and within `observation_space`, where there is one;
    - an observation is left alone by later steps and resets;
    - a reward is one finite number; terminated and truncated are bools, and a time limit is truncated;
    - the same seed and actions give exactly the same episode, whatever was played in between;
    - a step after the end raises or says once more that the episode has ended: it does not begin another;
    - actions at the ends of the box, or one-hot ones (16 at most), are taken, and no action is written into;
    - an action that is not finite, out of range, not one-hot or of the wrong length raises, and the episode then goes
      on as if it had not been tried;
    - where there is an `action_repeat` and an `env` inside, as in `StandardEnv`, a step takes that many steps of the
      inner one with one and the same action, fewer only at the end, and returns the sum of their rewards;
    - `close`, where there is one, may be called twice.

    It tries and does not prove: a few episodes of at most num_steps random actions. Where none of them ends, what
    follows an end is not tried: give a larger num_steps, or a shorter time limit. Two seeds may give the same episode,
    since an environment may have only one start.

    Args:
        env: the environment; at the end it is closed.
        seed: of the episodes and of the actions.
        num_steps: at most that many steps an episode.
        action_dim: A; needed where `env.action_space` has no shape.
        random: whether nothing replays an episode, as on a real robot. Then all that compares episodes is left out.
        bad_actions: whether actions that must be refused are tried. False where they would do harm, or where the
            environment leaves them to `run_episode` and `StandardEnv`, which refuse most of them.
        close: whether `close` is tried, after which the environment is of no use.

    Raises:
        ContractError: promises are broken; the message says which, what came and what to do.
        TypeError: env is a class or a name instead of an instance.
        ValueError: num_steps is less than 1, or there is no action_dim.

    Example:
        >>> from planet_lib.envs import make_env
        >>> check_env(make_env("gym:Pendulum-v1", obs="state"))
        >>> class Drift:
        ...     def reset(self, *, seed=None):
        ...         self.place, self.time = np.random.default_rng(seed).normal(size=1), 0
        ...         return self.place, {}
        ...     def step(self, action):
        ...         self.place += action
        ...         self.time += 1
        ...         return self.place, -abs(self.place[0]), False, self.time >= 20, {}
        >>> try:
        ...     check_env(Drift(), action_dim=1, bad_actions=False)
        ... except ContractError as error:
        ...     print(error)
        observation at reset must be left alone by later steps, got it changed; return a copy: observation.copy()
    """
    if isinstance(env, type | str):
        kind = f"the class {env.__name__}" if isinstance(env, type) else f"the name {env!r}"
        raise TypeError(f"env must be an instance, got {kind}; make one first")
    if not is_whole(num_steps):
        raise ValueError(f"num_steps must be at least 1, got {shown(num_steps)}")
    check_whole("seed", seed, least=0, most=LARGEST_SEED)
    check_flag(random=random, bad_actions=bad_actions, close=close)
    if action_dim is not None:
        check_count(action_dim=action_dim)
    complaints = Complaints()
    cause: BaseException | None = None
    try:
        _check_members(env, complaints)
        sizes = _action_size(env, action_dim, complaints)
        try:
            player = Player(env, *sizes, complaints)
            _check_episodes(player, int(seed), int(num_steps), random, bad_actions)
        except Halt:
            raise
        except Exception as error:  # whatever else an environment may do wrong
            message = f"env must run as planet_lib.data.run_episode asks, got {one_line(error)}"
            raise complaints.halt("anything else", message, error) from error
    except Halt as stop:
        cause = stop.__cause__
    if close:
        _check_close(env, complaints)
    if complaints.text():
        raise ContractError(complaints.text()) from cause


def _check_members(env: Any, complaints: Complaints) -> None:
    """Complain of a missing method, and of an action space or repeat that is none of ours."""
    for name in ("reset", "step"):
        if not callable(_member(env, name, complaints)):
            raise complaints.halt(name, f"env.{name} must be a method, got none; see planet_lib.data.run_episode")
    space = _member(env, "action_space", complaints)
    lowest = -1.0 if _member(env, "num_actions", complaints) is None else 0.0
    if space is not None and not _is_box(space, lowest):
        raise complaints.halt(
            "action space",
            f"env.action_space must be a Box from {lowest:g} to 1 of shape (A,), got {shown(space)}; "
            "planet_lib.envs.make_env(lambda: env) makes it one, of Discrete spaces too",
        )
    space = _member(env, "observation_space", complaints)
    if space is not None and not callable(getattr(space, "contains", None)):
        complaints.add("space", f"env.observation_space must be None or have a method contains, got {shown(space)}")
    repeat = _member(env, "action_repeat", complaints, 1)
    if not is_whole(repeat):
        got = shown(repeat)
        complaints.add("repeat", f"env.action_repeat must be a whole number of at least 1, got {got}; give 1")


def _member(env: object, name: str, complaints: Complaints, default: object = None) -> Any:
    """Return a member of anything, or the default where there is none."""
    try:
        return getattr(env, name, default)
    except Exception as error:
        message = f"env.{name} must be there or be absent, got {one_line(error)}"
        raise complaints.halt(name, message, error) from error


def _is_box(space: Any, lowest: float) -> bool:
    """Tell whether a space is a box [A] from `lowest` to 1, whatever it is."""
    try:
        is_between = bool(np.all(space.low == lowest) and np.all(space.high == 1.0))
        return is_between and len(space.shape) == 1 and is_whole(space.shape[0])
    except Exception:
        return False


def _action_size(env: Any, action_dim: int | None, complaints: Complaints) -> tuple[int, int | None]:
    """Return A, and the number of one-hot actions or None."""
    shape = getattr(_member(env, "action_space", complaints), "shape", None)
    size, count = (action_dim if shape is None else int(shape[0])), _member(env, "num_actions", complaints)
    if size is None or size < 1:
        raise ValueError(f"action_dim must be at least 1 where env has no action_space with a shape, got {size}")
    if action_dim not in (None, size):
        raise ValueError(f"action_dim must be {size}, as env.action_space says, got {action_dim}; leave it out")
    if count is not None and not is_whole(count, 1, size):
        got = f"got {shown(count)}; it is n of Discrete(n)"
        raise complaints.halt("count", f"env.num_actions must be None or from 1 to A={size}, {got}")
    return int(size), None if count is None else int(count)


def _check_episodes(player: Player, seed: int, num_steps: int, random: bool, bad_actions: bool) -> None:
    """Play, and complain of all that shows in one episode or between two."""
    actions = player.random_actions(seed, num_steps)
    first = player.episode(seed, actions)
    _check_after_end(player, first[-1], actions[0])
    for corner in player.corners():
        player.episode(seed, [corner])
    _check_repeat(player, seed, actions)
    player.episode(None, player.random_actions(seed + 1, _FEW))
    player.episode(seed + 1, player.random_actions(seed + 2, _FEW))
    what = None if random else difference(first, player.episode(seed, actions))
    if what:
        player.complaints.add(
            "replay",
            f"reset(seed={seed}) and the same actions must give exactly the same episode, got another; it differs in "
            f"{what}; draw all random numbers from a generator that reset makes of the seed, and put back everything "
            "in reset",
        )
    if bad_actions:
        _check_refusals(player, seed, actions[:_FEW], None if random or what else first)
    _check_memory(player)


def _check_after_end(player: Player, last: Row, action: Array) -> None:
    """Complain where an episode that has ended goes on."""
    if not (last.terminated or last.truncated):
        return
    try:
        answer = player.give(action)
    except Exception:
        return
    if isinstance(answer, tuple) and len(answer) == 5 and not (answer[2] or answer[3]):
        player.complaints.add(
            "after the end",
            "env.step after the end must raise, or end again, got a step that goes on; reset nothing by yourself, and "
            "remember the end until reset is called",
        )


def _check_repeat(player: Player, seed: int, actions: list[Array]) -> None:
    """Complain where a step is not `action_repeat` steps of the inner environment."""
    outer = player.env
    for _ in range(_WRAPPERS):
        if not hasattr(getattr(outer, "env", None), "action_repeat"):
            break
        outer = outer.env
    inner, repeat = getattr(outer, "env", None), getattr(outer, "action_repeat", None)
    # One with __slots__ cannot be watched.
    if not isinstance(repeat, int) or not callable(getattr(inner, "step", None)) or not hasattr(inner, "__dict__"):
        return
    player.reset(seed)
    for number, action in enumerate(actions[:_FEW], 1):
        with Counting(inner) as counting:
            row = player.step(action, number)
        calls, ended = counting.calls, row.terminated or row.truncated
        total = sum(reward for _, reward in calls)
        if not (len(calls) == repeat or (ended and 1 <= len(calls) < repeat)):
            problem = f"take {repeat} steps of the inner environment, got {len(calls)}"
        elif not all(same(given, calls[0][0]) for given, _ in calls):
            problem = "repeat one and the same action, got others; an inner step may write into it: hand out copies"
        elif abs(total - row.reward) > _REWARD_TOLERANCE * max(1.0, abs(total)):
            problem = f"return the sum of the inner rewards, {total:.6g}, got {row.reward:.6g}"
        else:
            problem = ""
        if problem:
            player.complaints.add(
                "repeat", f"env.step must {problem} (step {number}); planet_lib.envs.wrappers.StandardEnv does it right"
            )
        if problem or ended:
            return


def _check_refusals(player: Player, seed: int, actions: list[Array], first: list[Row] | None) -> None:
    """Complain of bad actions that are taken, or that change the episode though they are refused."""
    for what, remedy, action in player.bad_actions():
        start = player.reset(seed)
        try:
            player.give(action)
        except Exception:
            if first is None:
                continue
            trial = Player(player.env, player.action_dim, player.num_actions, Complaints())
            try:
                got = difference(first[: _FEW + 1], [start, *trial.go_on(actions)])
            except Halt as stop:
                raise player.complaints.halt("untouched", f"{_untouched(what)}, got an error; {stop}") from stop
            if got:
                player.complaints.add("untouched", f"{_untouched(what)}, got another episode; it differs in {got}")
        else:
            player.complaints.add(f"refusal {remedy}", f"env.step must refuse an action with {what}, took it; {remedy}")


def _untouched(what: str) -> str:
    return f"an action with {what} must be refused before anything changes"


def _check_memory(player: Player) -> None:
    """Complain where a row is not what it was when it came."""
    for row in player.seen:
        for name, array in row.arrays.items():
            if not same(array, row.copies[name]):
                when = "at reset" if row.is_reset else "of a step"
                player.complaints.add(
                    "memory",
                    f"{name} {when} must be left alone by later steps, got it changed; return a copy: "
                    "observation.copy()",
                )


def _check_close(env: Any, complaints: Complaints) -> None:
    """Complain where closing fails, once or twice."""
    try:
        end = _member(env, "close", complaints)
    except Halt:
        return
    if end is not None and not callable(end):
        complaints.add("close", f"env.close must be a method, got {shown(end)}; leave it out where nothing is to close")
    for when in ("run", "be harmless when called twice") if callable(end) else ():
        try:
            env.close()
        except Exception as error:
            complaints.add("close", f"env.close must {when}, got {one_line(error)}; free each thing once")
            return
