"""`make_vector_env`: several of one environment at once, each in a worker process or all in this one.

It checks arguments and packs the constructor for the way; what comes out is `StandardVectorEnv`. Importing this module
imports no extra.
"""

import functools
import importlib.util
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from planet_lib._shapes import check_count, check_flag, check_positive, check_whole
from planet_lib.envs.extras import require
from planet_lib.envs.registry import default_action_repeat
from planet_lib.envs.rendering import select_backend
from planet_lib.envs.tasks import make_padded

if TYPE_CHECKING:
    import gymnasium

    from planet_lib.envs.standard_vector import StandardVectorEnv

_LONGEST = 1e9  # seconds, 30 years: what the system can wait for ends somewhere above


def make_vector_env(
    env: "str | Callable[..., gymnasium.Env[Any, Any]]",
    num_envs: int,
    *,
    workers: bool = True,
    timeout: float = 60.0,
    max_restarts: int = 3,
    action_dim: int | None = None,
    **settings: Any,
) -> "StandardVectorEnv":
    """Return `num_envs` environments behind Gymnasium's vector API, each as `make_env` makes it.

    reset(seed=s) gives environment i the seed s + i. Nothing resets itself: reset(options={"reset_mask": mask}) starts
    those rows anew, and `step` leaves alone rows whose episode is over. See
    `planet_lib.envs.standard_vector.StandardVectorEnv`; `planet_lib.data.run_episodes` plays episodes on it.

    With workers, each environment lives in a spawned process. One that raises, dies or hangs is replaced by a new one,
    which plays the episode again to where the old one was, so that nothing but a `RuntimeWarning` shows it. Where it
    cannot, the episode is lost, and infos["restarted"] says so.

    Workers ignore Ctrl-C, which interrupts this process, and end with `close()`, with this object, and with this
    process, even where that is killed. A script that makes workers needs `if __name__ == "__main__":` around what it
    does, as with every spawned process in Python. Infos that cannot be pickled, such as lambdas, stay in their worker:
    they are missing from what `reset` and `step` return.

    Args:
        env: a name, or a callable that returns a Gymnasium environment; see `make_env`. With workers it must be
            picklable; lambdas and classes of a notebook or a function are (with cloudpickle), open files are not.
        num_envs: N.
        workers: False keeps all of them in this process: for cheap environments, and for debugging. An error is then
            raised as it is, and nothing is restarted.
        timeout: seconds that a reset or a step may take before a worker counts as hung, each step that is played again
            too; its start may take 120 if that is longer.
        max_restarts: how often an environment may fail without finishing an episode in between, before that is an
            error; resetting one that was stepped finishes its episode.
        action_dim: the length of the actions where it is more than the environment's own, which uses the first: for
            several tasks in one agent (`widest_action`). None is its own.
        **settings: of `make_env`: obs, image_size, action_repeat and so on.

    Raises:
        ValueError, TypeError, ImportError: as `make_env`, with the worker's traceback as a note where it was raised
            there; also num_envs, timeout or max_restarts out of range.
        TypeError: env or settings cannot be pickled.
        RuntimeError: a worker could not start; the message says how it ended.

    Example:
        >>> envs = make_vector_env("gym:Pendulum-v1", 2, workers=False, obs="state")
        >>> observations, infos = envs.reset(seed=1)
        >>> observations.shape, envs.single_action_space.shape
        ((2, 3), (1,))
        >>> observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
        >>> rewards.shape, terminations.tolist(), infos["restarted"].tolist()
        ((2,), [False, False], [False, False])
        >>> envs.close()
    """
    check_count(num_envs=num_envs)
    check_flag(workers=workers)
    check_positive(timeout=timeout)
    if timeout > _LONGEST:
        raise ValueError(f"timeout must be at most {_LONGEST:.0f} seconds, got {timeout}")
    check_whole("max_restarts", max_restarts, least=0)
    default_action_repeat(env)  # an unknown kind of name is told without a worker
    require("gymnasium", extra="gym")
    from planet_lib.envs._slots import InProcess, LostError, fill  # noqa: PLC0415 -- beside what needs gymnasium
    from planet_lib.envs._worker import Worker  # noqa: PLC0415 -- likewise
    from planet_lib.envs.standard_vector import StandardVectorEnv  # noqa: PLC0415 -- gymnasium is an extra

    make = functools.partial(make_padded, env, action_dim=action_dim, **settings)
    if not workers:
        return StandardVectorEnv(fill(num_envs, lambda number: InProcess(make)), max_restarts=max_restarts)
    packed = _packed(make)
    if isinstance(env, str) and importlib.util.find_spec("mujoco") is not None:
        select_backend(required=False)  # once for all: the workers inherit it
    slots = fill(num_envs, lambda number: Worker(packed, name=f"environment {number}", timeout=timeout))
    try:
        return StandardVectorEnv(slots, max_restarts=max_restarts)
    except LostError as lost:
        if lost.original is None:
            raise RuntimeError(f"a worker could not make its environment: {lost}") from None
        lost.original.add_note(f"It was raised in a worker process:\n{lost}")
        raise lost.original from None


def _packed(make: Callable[[], Any]) -> bytes:
    """Return the pickled constructor, or raise with the remedy."""
    from gymnasium.vector.utils import CloudpickleWrapper  # noqa: PLC0415 -- gymnasium is an extra

    try:
        return pickle.dumps(CloudpickleWrapper(make))
    except Exception as error:  # pickling runs what the objects define, and that raises anything
        raise TypeError(
            f"env and its settings must be picklable, to be sent to worker processes, got {type(error).__name__}: "
            f"{error}; let the constructor open or make what cannot be pickled (files, locks, generators), "
            "or keep the environments in this process with workers=False"
        ) from error
