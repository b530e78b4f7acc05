"""Any Python environment as dynamics, if its state can be saved and restored. Slow, exact, and good for first tries.

It knows Gymnasium's `step` and imports nothing of it; what a state is, the environment's own two functions say.

Source: ours, after the original's row "CEM + true simulator state" (Hafner et al. 2019, arXiv:1811.04551, table 1).
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from planet_lib._shapes import check_shape, shown
from planet_lib.planning.simulators._checks import (
    check_actions,
    check_discount,
    check_env,
    check_functions,
    outcome,
    places,
)


class SavedEnv:
    """One saved environment. A planner's state holds it, and looks at nothing in it: tensors there are no rows of B.

    env: the environment that it was saved from, in which candidates are played; None where `state` is a copy of it.
    state: what `get_state` returned, or the copy. wrappers: the attributes of each wrapper around the environment.
    """

    def __init__(self, env: Any, state: Any, wrappers: tuple[dict[str, Any], ...] = ()) -> None:
        self.env, self.state, self.wrappers = env, state, wrappers


class EnvState(NamedTuple):
    """Saved environments as a planner's state. row: int64 [B], which entry of `saved` each row starts from."""

    row: Tensor
    saved: tuple[SavedEnv, ...]


class EnvDynamics:
    """A Python environment as dynamics: each candidate is played in it, one after the other, from the saved state.

    return = sum over t = 1..H of discount^(t-1) reward_t, up to the end of the episode: after `terminated` or
    `truncated` nothing is earned, and the environment is not stepped.

    A candidate with a reward that is not finite, or that raises one of `errors`, has the return NaN. Whatever happens,
    the environment has afterwards the state that it had before.

    Two ways to save: with `get_state` and `set_state`, candidates are played in the environment itself, set back each
    time; the attributes of the wrappers around it, such as the steps that Gymnasium's `TimeLimit` has counted, are set
    back too. Without, the state is a `copy.deepcopy` of the whole environment, wrappers and random numbers included,
    made for each candidate: simple, and several times slower. Two traps:

    - Time. A time limit is part of the saved state: near it, candidates earn nothing past it, all of them alike. An
      environment that counts its own steps must have the count in `get_state`, or rollouts use up the real episode.
    - Chance. Where random numbers are saved (a deep copy has them), every candidate meets the very chances that the
      environment will have: the planner foresees them. Where they are not, each candidate meets new ones, the
      environment goes on with later ones, and the luckiest candidate wins: give the planner particles.

    Wrappers that record or learn (video, running normalisation) must not be there: what they change in place stays.

    Shapes: state, what `state()` returns; actions [H, B, J, A] -> returns [B, J], float64 on the actions' device.

    Args:
        env: the environment, with Gymnasium's `step`, in a running episode whenever it is used.
        get_state: function of an environment that returns its state, nothing of which later steps change.
        set_state: function of an environment and such a state, which it must not keep for the environment to change.
        to_action: function of an action, float64 array [A], that returns what `env.step` takes. None is, by the
            environment's `action_space`: an array of its shape and dtype; for a discrete one the largest entry's index
            (a one-hot action); the array as it is where there is no space.
        errors: exceptions of `step` that mean that a candidate cannot be simulated, such as a physics error.
        discount: in (0, 1].

    Raises:
        ValueError: one of `get_state` and `set_state` without the other, a discount out of its range, or shapes that do
            not fit. What `env.step` raises passes through.

    Example:
        >>> class Lift:  # up or down by the action; the reward is the height
        ...     height = 0.0
        ...     def step(self, action):
        ...         self.height += float(action[0])
        ...         return self.height, self.height, False, False, {}
        >>> lift = Lift()
        >>> def put(env, height):
        ...     env.height = height
        >>> dynamics = EnvDynamics(lift, get_state=lambda env: env.height, set_state=put)
        >>> dynamics.rollout(dynamics.state(), torch.tensor([1.0, -1.0]).expand(3, 1, 2)[..., None]), lift.height
        (tensor([[ 6., -6.]], dtype=torch.float64), 0.0)
    """

    def __init__(
        self,
        env: Any,
        *,
        get_state: Callable[[Any], Any] | None = None,
        set_state: Callable[[Any, Any], None] | None = None,
        to_action: Callable[[Any], Any] | None = None,
        errors: tuple[type[Exception], ...] = (),
        discount: float = 1.0,
    ) -> None:
        if (get_state is None) != (set_state is None):
            given, other = ("get_state", "set_state") if set_state is None else ("set_state", "get_state")
            raise ValueError(f"{other} must be given with {given}, got None; give both, or none for deep copies")
        check_env("env", env)
        check_functions(get_state=get_state, set_state=set_state, to_action=to_action)
        check_discount(discount)
        kinds = errors if isinstance(errors, tuple) else (errors,)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise TypeError(f"errors must be a tuple of exceptions' classes, got {shown(errors)}")
        self.env = env
        self.errors, self.discount = kinds, float(discount)
        self._get_state, self._set_state = get_state, set_state
        self._to_action = to_action or _for_space(getattr(env, "action_space", None))

    def state(self, envs: Sequence[Any] | None = None) -> EnvState:
        """Return where `envs` (None: the one environment) stand now, one row for each, in their order.

        With `get_state`, each row is played in its own environment of these, which must stay open meanwhile.
        """
        given: object = [self.env] if envs is None else envs
        if not isinstance(given, list | tuple):
            raise TypeError(f"envs must be a list of environments, or None, got {shown(given)}")
        if not given:
            raise ValueError("envs must be a list of at least one environment, or None, got an empty one")
        for each in given:
            check_env("envs", each)
        saved = tuple(self._save(each) for each in given)
        return EnvState(row=torch.arange(len(saved)), saved=saved)

    def rollout(self, state: EnvState, actions: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the return [B, J] of every candidate; `noise` is not used. See the class."""
        check_actions(actions)
        given: object = state
        if not isinstance(given, EnvState) or not isinstance(given.saved, tuple):
            raise TypeError(f"state must be an EnvState, what state() returns, got {shown(given)}")
        for each in state.saved:
            kept: object = each
            if not isinstance(kept, SavedEnv):
                raise TypeError(f"state.saved must be saved environments, got {shown(kept)}")
        _, batch_size, num_candidates, _ = actions.shape
        check_shape("state.row", state.row, "B", B=batch_size, because="as the actions")
        values = actions.detach().to("cpu", torch.float64).numpy()
        returns = np.zeros((batch_size, num_candidates))
        rows = [state.saved[row] for row in places("state.row", state.row, len(state.saved), "those in state.saved")]
        with self._unchanged(rows):
            for b, saved in enumerate(rows):
                for j in range(num_candidates):
                    returns[b, j] = self._play(self._restored(saved), values[:, b, j])
        return torch.from_numpy(returns).to(actions.device)

    def _play(self, env: Any, actions: Any) -> float:
        """Return what one candidate [H, A] earns in `env`, which is changed."""
        total, weight = 0.0, 1.0
        for action in actions:
            try:
                # A copy, since an environment may work on its argument in place.
                returned = env.step(self._to_action(action.copy()))
            except self.errors:
                return math.nan
            reward, is_over = outcome(returned)
            total += weight * reward
            weight *= self.discount
            if not math.isfinite(total):
                return math.nan
            if is_over:
                break
        return total

    def _save(self, env: Any) -> SavedEnv:
        """Return all that `_restored` needs to bring `env` back."""
        if self._get_state is None:
            try:
                return SavedEnv(None, copy.deepcopy(env))
            except (TypeError, copy.Error) as error:
                raise TypeError(
                    f"env must be one that copy.deepcopy can copy, got {type(env).__name__} ({error}); give get_state "
                    "and set_state"
                ) from error
        return SavedEnv(env, self._get_state(env), tuple(dict(vars(layer)) for layer in _wrappers(env)))

    def _restored(self, saved: SavedEnv) -> Any:
        """Return an environment in a saved state, which stays as it is."""
        if self._set_state is None:
            return copy.deepcopy(saved.state)
        for layer, attributes in zip(_wrappers(saved.env), saved.wrappers, strict=True):
            vars(layer).update(attributes)
        self._set_state(saved.env, saved.state)
        return saved.env

    @contextmanager
    def _unchanged(self, rows: Sequence[SavedEnv]) -> Iterator[None]:
        """Give the environments that are played in the state back that they have now, also after an exception."""
        played = {id(saved.env): saved.env for saved in rows if saved.env is not None}
        before = [self._save(env) for env in played.values()]
        try:
            yield
        finally:
            for saved in before:
                self._restored(saved)


def _wrappers(env: Any) -> Iterator[Any]:
    """Yield Gymnasium's wrappers around an environment, from outside in."""
    innermost = getattr(env, "unwrapped", env)
    while env is not innermost:
        yield env
        env = env.env


def _for_space(space: Any) -> Callable[[Any], Any]:
    """Return the function that makes of a float array [A] what an environment with this action space takes."""
    if hasattr(space, "n"):
        start = int(getattr(space, "start", 0))
        return lambda action: start + int(np.argmax(action))
    if space is not None and space.shape is not None:
        return lambda action: action.reshape(space.shape).astype(space.dtype)
    return lambda action: action
