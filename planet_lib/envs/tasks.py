"""Several tasks for one agent: how long the actions must be that fit all of them, and environments that take such.

Source: Hafner et al. 2019 (arXiv:1811.04551), the section on one agent for all tasks: shorter actions are padded with
elements that the environment ignores.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from planet_lib._shapes import is_whole, shown
from planet_lib.envs.images import check_obs
from planet_lib.envs.registry import default_action_repeat, make_env

if TYPE_CHECKING:
    import gymnasium

    from planet_lib.envs.wrappers import PadActions, StandardEnv


def widest_action(tasks: "Sequence[str | Callable[..., gymnasium.Env[Any, Any]]]", *, obs: str = "pixels") -> int:
    """Return the length of the longest action among `tasks`: the `action_dim` to give each `make_vector_env`.

    Each environment is made once, without pixels, and closed.

    Args:
        tasks: names or constructors, as for `make_env`, all of continuous actions, or all of equally many choices.
        obs: what the agent will see of them; where vectors are part of it, they must be of one length.

    Raises:
        ValueError: no task, one that is given twice, or continuous actions and choices, or different numbers of
            choices, among them: there is no such thing as a padded choice; vectors of different lengths that are to be
            seen. Also as `make_env`.

    Example:
        >>> widest_action(["gym:Pendulum-v1", "gym:MountainCarContinuous-v0"])
        1
        >>> widest_action(["gym:Pendulum-v1", "gym:CartPole-v1"])
        Traceback (most recent call last):
            ...
        ValueError: tasks must have continuous actions, or all the same number of choices, got gym:Pendulum-v1: \
continuous, gym:CartPole-v1: 2 choices
    """
    check_obs(obs)
    given: object = tasks
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise TypeError(f"tasks must be a list of names or constructors, got {shown(given)}")
    for task in tasks:
        default_action_repeat(task)  # neither a name nor a constructor is told before any is made
    if not tasks or any(task in tasks[:number] for number, task in enumerate(tasks)):
        raise ValueError(f"tasks must be at least one, each given once, got {', '.join(map(str, tasks)) or 'none'}")
    widths, kinds, vectors = [], {}, {}
    for task in tasks:
        env = make_env(task, obs="state")
        widths.append(math.prod(env.action_space.shape or ()))
        kinds[str(task)] = "continuous" if env.num_actions is None else f"{env.num_actions} choices"
        vectors[str(task)] = str(env.observation_space.shape)
        env.close()
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{task}: {kind}" for task, kind in kinds.items())
        raise ValueError(f"tasks must have continuous actions, or all the same number of choices, got {listed}")
    if obs != "pixels" and len(set(vectors.values())) > 1:
        listed = ", ".join(f"{task}: {shape}" for task, shape in vectors.items())
        raise ValueError(f'tasks must have vectors of one length for obs="{obs}", got {listed}; use obs="pixels"')
    return max(widths)


def make_padded(
    env: "str | Callable[..., gymnasium.Env[Any, Any]]", *, action_dim: int | None = None, **settings: Any
) -> "StandardEnv | PadActions":
    """Return `make_env(env, **settings)`, in `PadActions` where action_dim is more than the length of its actions.

    Raises:
        ValueError: action_dim is less than that; also as `make_env`.

    Example:
        >>> env = make_padded("gym:Pendulum-v1", action_dim=3, obs="state")
        >>> env.action_space.shape
        (3,)
        >>> env.close()
    """
    made = make_env(env, **settings)
    if action_dim is None or (is_whole(action_dim) and made.action_space.shape == (action_dim,)):
        return made
    from planet_lib.envs.wrappers import PadActions  # noqa: PLC0415 -- gymnasium is an extra

    try:
        return PadActions(made, action_dim)
    except ValueError:
        made.close()
        raise
