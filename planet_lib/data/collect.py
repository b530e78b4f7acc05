"""Collection: episodes of a policy, in one environment or in many at once, as arrays.

`run_episode` and `run_episodes` know the environment's `reset` and `step` and call the policy; they know neither models
nor planners nor where episodes go. Whatever the policy remembers (a filter's belief, a planner's last plan) travels
through here as `state` and is never looked into.

Source: google-research/planet, `control/simulate.py` and `control/wrappers.py` (`CollectDataset`).
Differences from the source: the final observation is recorded too, and each row holds the action and reward that led
to its observation; termination and truncation stay apart; what enters is checked at the step where it enters.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from planet_lib._shapes import check_count, check_flag, check_positive, check_whole
from planet_lib.data._collect_checks import (
    action_dim_of,
    check_action,
    check_players,
    check_vector_env,
    checked_actions,
    checked_answer,
    checked_flag,
    checked_obs,
    checked_rows,
    checked_seeds,
    checked_steps,
)
from planet_lib.data._record import Record, blank, row_of, tensors
from planet_lib.types import Episode, Observation


class Environment(Protocol):
    """What `run_episode` needs of an environment: Gymnasium's reset and step, with actions in [-1, 1]."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        """Start an episode; return the first observation and a dictionary of anything."""
        ...

    def step(self, action: Any, /) -> tuple[Any, Any, Any, Any, Any]:
        """Take an action [A]; return observation, reward, terminated, truncated and a dictionary of anything."""
        ...


class VectorEnvironment(Protocol):
    """What `run_episodes` needs of several environments at once: Gymnasium's vector API without automatic resets.

    B rows, one environment each. `step` leaves alone every row without a running episode, whatever its action. Where
    infos["restarted"] [B] bool holds, the row's episode is lost, and it waits for its reset.
    `planet_lib.envs.make_vector_env` makes one; Gymnasium's own fail when a row is stepped past its end.
    """

    num_envs: int

    def reset(self, *, seed: list[int | None], options: dict[str, Any]) -> tuple[Any, Any]:
        """Start episodes in the rows of options["reset_mask"]; return all observations [B, ...] and a dictionary."""
        ...

    def step(self, actions: Any, /) -> tuple[Any, Any, Any, Any, Any]:
        """Take actions [B, A]; return observations, rewards, terminated, truncated, each [B, ...], and a dictionary."""
        ...


class Policy(Protocol):
    """Something that acts: observation, whether it is an episode's first, and its own state in; action and state out.

    Shapes: obs [B, C, Y, X] uint8 or [B, N] float32, or a dictionary of such; is_first [B] bool; the action [B, A] in
    [-1, 1]. B is 1 in `run_episode`, and the number of environments in `run_episodes`. The state is None at the first
    call, and then whatever the call before returned; a row begins anew where is_first holds.
    """

    def __call__(self, obs: Observation, is_first: Tensor, state: Any, /) -> tuple[Tensor, Any]:
        """Return the actions for these observations, and the state for the next call."""
        ...


def run_episode(
    env: Environment,
    policy: Policy,
    *,
    seed: int | None = None,
    on_step: Callable[[int], object] | None = None,
) -> Episode:
    """Run one episode to its end, terminated or truncated, and return its rows.

    An episode of n steps gives L = n + 1 rows: row 0 is the reset, with zero action and reward; row t is observation t
    with the action and reward that led to it. The environment decides when it ends: wrap one that never does in a time
    limit. The policy runs without gradients. An interruption or error leaves no episode behind.

    Args:
        env: anything with Gymnasium's reset and step. Observations: uint8 images (C, Y, X), vectors (N,) of finite
            floats, stored as float32, or a dictionary of such, of the same names at every step.
        policy: called as policy(obs, is_first, state); see `Policy`.
        seed: passed to reset; None lets the environment choose.
        on_step: called after each step with its number, from 1: for progress.

    Raises:
        TypeError: where an observation is neither a uint8 image nor a vector of floats, a dictionary within a
            dictionary, or named by something else than a string, or the action isn't a floating tensor.
        ValueError: where an observation, action or reward isn't finite, in range or of the right shape, an image is
            channels last, or the names of a dictionary change, are none, or have a slash, backslash or dot in them.
            Each message names the step, 0 being the reset, and the entry.

    Example:
        >>> import numpy as np
        >>> class Countdown:
        ...     def reset(self, *, seed=None):
        ...         self.left = 3.0
        ...         return np.array([self.left]), {}
        ...     def step(self, action):
        ...         self.left -= 1
        ...         return np.array([self.left]), 1.0, self.left == 0, False, {}
        >>> episode = run_episode(Countdown(), random_policy(1, np.random.default_rng(0)))
        >>> episode.obs.ravel().tolist(), episode.reward.tolist(), episode.terminated.tolist()
        ([3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0], [False, False, False, True])
    """
    check_players(env, policy, on_step=on_step)
    if seed is not None:
        check_whole("seed", seed, least=0, most=2**10_000)  # how large it may be is for the environment to say
    action_dim = action_dim_of(getattr(env, "action_space", None), "env.action_space")
    record = Record(checked_answer(env.reset(seed=seed), "env.reset", "step 0")[0])
    state: Any = None
    terminated = truncated = False
    while not (terminated or truncated):
        step, where = record.steps + 1, record.next_step
        with torch.no_grad():
            answer = policy(tensors([record.obs[-1]]), torch.tensor([step == 1]), state)
        given, state = checked_answer(answer, "policy", where)
        action = checked_actions(given, where, None, action_dim)[0]
        check_action(action, where)
        action_dim = len(action)
        obs, reward, ended, out_of_time, _ = checked_answer(env.step(action.copy()), "env.step", where)
        record.add(action, obs, reward)
        terminated = checked_flag(ended, "terminated", where)
        truncated = checked_flag(out_of_time, "truncated", where)
        if on_step is not None:
            on_step(step)
    return record.episode(terminated, truncated)


def run_episodes(
    env: VectorEnvironment,
    policy: Policy,
    *,
    seeds: Sequence[int],
    on_step: Callable[[int], object] | None = None,
    on_episode: Callable[[int, Episode], object] | None = None,
) -> list[Episode]:
    """Run one episode for each seed on B environments at once, with one call of the policy per step for all of them.

    The environments step together. One that has finished takes the next seed, and its row then has is_first; which one
    that is depends on the lengths of the episodes, never on how fast a worker is. Rows are always B: one without work
    keeps its last observation (zeros where it never had one), has is_first at every call, and its action is ignored.

    Each episode equals `run_episode` of its seed where the policy treats rows alike and apart, and is not random. An
    agent that draws its noise from one generator draws other noise in another row, so its episodes are the same each
    time for the same seeds, generator and B.

    An episode that is lost (infos["restarted"]) is played again from its seed; the steps that were in vain have moved a
    policy's generator on. `planet_lib.envs.make_vector_env` brings a failed worker's episode back where it can, and
    then everything is as if it had not failed.

    Args:
        env: several environments; see `VectorEnvironment`, and `Environment` for the observations of each.
        policy: called as policy(obs, is_first, state), all [B, ...]; see `Policy`.
        seeds: one for each episode.
        on_step: called after each step of an environment with the number of steps so far, of all together: for
            progress. Steps of lost episodes count.
        on_episode: called as on_episode(number, episode) as soon as seeds[number] is played, so that it can be saved
            before another fails.

    Returns:
        The episodes, in the order of `seeds`.

    Raises:
        TypeError, ValueError: as `run_episode`; each message names the seed and the step. Also an `env` that resets
            its rows by itself, which loses final observations.

    Example:
        >>> import numpy as np
        >>> class Countdowns:
        ...     num_envs = 2
        ...     def reset(self, *, seed, options):
        ...         if not hasattr(self, "left"):
        ...             self.left = np.zeros((2, 1))
        ...         for row in np.flatnonzero(options["reset_mask"]):
        ...             self.left[row] = seed[row]
        ...         return self.left.copy(), {}
        ...     def step(self, actions):
        ...         self.left -= self.left > 0
        ...         return self.left.copy(), np.ones(2), self.left[:, 0] == 0, np.zeros(2, bool), {}
        >>> episodes = run_episodes(Countdowns(), random_policy(1, np.random.default_rng(0)), seeds=[3, 1, 2])
        >>> [episode.obs.ravel().tolist() for episode in episodes]
        [[3.0, 2.0, 1.0, 0.0], [1.0, 0.0], [2.0, 1.0, 0.0]]
    """
    check_players(env, policy, on_step=on_step, on_episode=on_episode)
    check_vector_env(env)
    action_dim = action_dim_of(getattr(env, "single_action_space", None), "env.single_action_space")
    wanted = checked_seeds(seeds)
    waiting, lost = deque(range(len(wanted))), dict[int, int]()
    playing: dict[int, Record] = {}
    last: list[Any] = [None] * env.num_envs
    episodes: dict[int, Episode] = {}
    state: Any = None
    calls = steps = 0
    while waiting or lost or playing:
        _give_work(env, playing, waiting, lost, wanted, last)
        begins = [row not in playing or playing[row].steps == 0 for row in range(env.num_envs)]
        calls += 1
        with torch.no_grad():
            answer = policy(tensors(last), torch.tensor(begins), state)
        given, state = checked_answer(answer, "policy", f"call {calls}")
        actions = checked_actions(given, f"call {calls} of the policy", env.num_envs, action_dim)
        action_dim = actions.shape[1]
        for row in range(env.num_envs):
            if row in playing:
                check_action(actions[row], playing[row].next_step)
            else:
                actions[row] = 0
        found = checked_steps(env.step(actions.copy()), f"call {calls}", env.num_envs)
        obs, reward, terminated, truncated, restarted = found
        for row, record in list(playing.items()):
            steps += 1
            if not restarted[row]:
                record.add(actions[row], row_of(obs, row), reward[row])
                last[row] = record.obs[-1]
            if on_step is not None:
                on_step(steps)
            if restarted[row]:
                lost[row] = playing.pop(row).number
            elif terminated[row] or truncated[row]:
                number = playing.pop(row).number
                episodes[number] = record.episode(bool(terminated[row]), bool(truncated[row]))
                if on_episode is not None:
                    on_episode(number, episodes[number])
    return [episodes[number] for number in range(len(wanted))]


def random_policy(
    action_dim: int, generator: np.random.Generator | torch.Generator, *, one_hot: bool = False
) -> Policy:
    """Return a policy that draws each action uniformly from [-1, 1), whatever it sees; for any number of rows.

    Args:
        action_dim: A, the length of an action.
        generator: NumPy's or torch's (on the CPU); its seed makes the episodes repeat. It moves on with every action.
        one_hot: whether an action is one of A choices, drawn uniformly, as a 1 among zeros.

    Raises:
        ValueError: where action_dim isn't positive.
        TypeError: where generator is neither.

    Example:
        >>> import torch
        >>> policy = random_policy(2, torch.Generator().manual_seed(0))
        >>> action, state = policy(torch.zeros(1, 3), torch.tensor([True]), None)
        >>> action.shape, state is None
        (torch.Size([1, 2]), True)
        >>> choose = random_policy(4, torch.Generator().manual_seed(0), one_hot=True)
        >>> choose(torch.zeros(3, 3), torch.ones(3, dtype=torch.bool), None)[0].sum(1).tolist()
        [1.0, 1.0, 1.0]
    """
    check_positive(action_dim=action_dim)
    check_count(action_dim=action_dim)
    check_flag(one_hot=one_hot)
    if not isinstance(generator, (np.random.Generator, torch.Generator)):
        raise TypeError(
            f"generator must be a numpy.random.Generator or torch.Generator, got {type(generator).__name__}; "
            "make one with numpy.random.default_rng(seed)"
        )

    def act(obs: Observation, is_first: Tensor, state: Any, /) -> tuple[Tensor, Any]:
        """Draw an action for each row; what is seen doesn't matter, and the state passes through."""
        rows = len(is_first)
        if one_hot:
            if isinstance(generator, torch.Generator):
                choice = torch.randint(action_dim, (rows,), generator=generator)
            else:
                choice = torch.from_numpy(generator.integers(action_dim, size=rows))
            return torch.nn.functional.one_hot(choice, action_dim).float(), state
        if isinstance(generator, torch.Generator):
            uniform = torch.rand(rows, action_dim, generator=generator)
        else:
            uniform = torch.from_numpy(generator.random((rows, action_dim), np.float32))
        return uniform.mul_(2).sub_(1), state

    return act


def _give_work(
    env: VectorEnvironment,
    playing: dict[int, Record],
    waiting: deque[int],
    lost: dict[int, int],
    seeds: list[int],
    last: list[Any],
) -> None:
    """Start the next episodes in the rows that have none, all of them with one reset.

    A lost one begins again in its own row: where it fails there again and again, the environment gives up.
    """
    given = dict(lost)
    lost.clear()
    for row in range(env.num_envs):
        if row not in playing and row not in given and waiting:
            given[row] = waiting.popleft()
    if not given:
        return
    seed = [seeds[given[row]] if row in given else None for row in range(env.num_envs)]
    mask = np.array([row in given for row in range(env.num_envs)])
    obs, _ = checked_answer(env.reset(seed=seed, options={"reset_mask": mask}), "env.reset", "reset")
    checked_rows(obs, "observation", "reset", env.num_envs)
    for row, number in given.items():
        playing[row] = Record(row_of(obs, row), number, seeds[number])
        last[row] = playing[row].obs[0]
    unseen = blank(next(seen for seen in last if seen is not None))
    for row, number in given.items():  # rows that differ would make no batch
        checked_obs(last[row], f"seed {seeds[number]}, step 0", unseen)
    last[:] = [unseen if seen is None else seen for seen in last]
