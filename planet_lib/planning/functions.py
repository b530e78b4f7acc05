"""Plain functions on tensors as dynamics: one that knows the return, or a step and the reward of what it reaches.

For worlds that are written down and not learned. Knows no model, no simulator and no planner.

Source: ours; the return is that of `LatentDynamics`, with a discount.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# torch's own definition of a pytree; it has no public name yet, and torch.compile traces through it.
from torch.utils._pytree import tree_map

from planet_lib._shapes import check_device, check_dtype, check_shape, check_whole
from planet_lib.planning._checks import check_actions, check_discount, check_generator, check_start, sizes_of


class FunctionDynamics:
    """One function of state and actions as dynamics, for worlds whose return is a formula.

    returns = function(state, actions)

    The function is called as it is and must do all that `Dynamics.rollout` must: leave its arguments alone, and let
    entry [b, j] of the result depend on row b of the state and on actions[:, b, j] alone.

    Shapes: state, any pytree of tensors [B, ...]; actions [H, B, J, A] -> [B, J].

    Args:
        function: `function(state, actions)`.

    Raises:
        TypeError: function cannot be called, or does not return a tensor.
        ValueError: when called: noise is given, which a function of state and actions has no use for; actions or what
            the function returns have another shape.

    Example:
        >>> def reach(state, actions):  # x [B] moves by the action, and ought to be at 2
        ...     return -(state[:, None] + actions[..., 0].sum(0) - 2).square()
        >>> actions = torch.tensor([0.5, 1.0]).expand(2, 1, 2)[..., None]  # the same action twice, two candidates
        >>> FunctionDynamics(reach).rollout(torch.tensor([0.0]), actions)
        tensor([[-1., -0.]])
    """

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        _check_callable(function=function)
        self.function = function

    def rollout(self, state: Any, actions: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the function's value [B, J]; see the class."""
        check_actions(actions)
        check_start(state, actions)
        if noise is not None:
            raise ValueError(
                f"noise must be None, since a function of state and actions is not random, got {sizes_of(noise)}; "
                "StepDynamics with noise_dim takes noise"
            )
        returns = self.function(state, actions)
        _, batch_size, num_candidates, _ = actions.shape
        check_shape("what function returns", returns, "B J", B=batch_size, J=num_candidates, because="from actions")
        return returns


class StepDynamics:
    """A step and a reward, both functions on tensors, as dynamics: candidates advance side by side, step by step.

    state_t+1 = step(state_t, action_t[, noise_t]) from state_0 = state
    return = sum over t = 1..H of discount^(t-1) alive_t reward(state_t, action_t-1)

    with alive_1 = 1 and alive_t+1 = alive_t goes_on(state_t) where goes_on is given, else 1. The reward is that of the
    state which a step reaches, and of the action that led there; the state that is already reached earns nothing.
    After a certain end (alive 0) nothing counts, not even NaN; and after the last step goes_on is not asked.

    The functions see one axis of rows: N = B * J, row b * J + j for candidate j of environment b. Tensors of the state
    are repeated accordingly, whatever else it holds is handed over as it is; `step` may return another structure.

    Shapes: state, any pytree of tensors [B, ...]; actions [H, B, J, A]; noise [H, B, J, S], S = noise_dim -> [B, J].

    Args:
        step: `step(state, action)` with a state of N rows and action [N, A] returns the next state; with noise_dim > 0
            it is called as `step(state, action, noise)`, noise [N, S] standard normal.
        reward: `reward(next_state, action)` returns [N].
        discount: in (0, 1]; 1 is the plain sum.
        goes_on: `goes_on(next_state)` returns [N], the probability that the episode does not end there, or bool.
        noise_dim: S, numbers of noise for each step of each candidate; 0 where nothing is random.

    Raises:
        TypeError: step, reward or goes_on cannot be called, or does not return a tensor where it should.
        ValueError: discount is not in (0, 1], noise_dim is no whole number of at least 0; when called: a tensor of the
            state does not have the rows of the actions, noise has another shape or noise_dim is 0, or what reward or
            goes_on returns is not [N].

    Example:
        >>> def step(x, action):
        ...     return x + action[:, 0]
        >>> def reward(x, action):
        ...     return -(x - 2).abs()
        >>> dynamics = StepDynamics(step, reward, discount=0.5)
        >>> actions = torch.tensor([0.5, 1.0]).expand(2, 1, 2)[..., None]  # the same action twice, two candidates
        >>> dynamics.rollout(torch.tensor([0.0]), actions)
        tensor([[-2., -1.]])
    """

    def __init__(
        self,
        step: Callable[..., Any],
        reward: Callable[[Any, Tensor], Tensor],
        *,
        discount: float = 1.0,
        goes_on: Callable[[Any], Tensor] | None = None,
        noise_dim: int = 0,
    ) -> None:
        _check_callable(step=step, reward=reward)
        if goes_on is not None:
            _check_callable(goes_on=goes_on)
        check_discount(discount)
        check_whole("noise_dim", noise_dim, least=0)
        self.step, self.reward, self.goes_on = step, reward, goes_on
        self.discount, self.noise_dim = float(discount), int(noise_dim)

    def draw_noise(self, actions: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Return the noise [H, B, J, S] for actions [H, B, J, A], standard normal, or None where noise_dim is 0."""
        check_actions(actions)
        check_generator(generator, actions)
        if self.noise_dim == 0:
            return None
        shape = (*actions.shape[:-1], self.noise_dim)
        return torch.randn(shape, dtype=actions.dtype, device=actions.device, generator=generator)

    def rollout(self, state: Any, actions: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the return [B, J] of every candidate; see the class."""
        check_actions(actions)
        horizon, batch_size, num_candidates, _ = actions.shape
        check_start(state, actions)
        noise = self._noise(actions, noise)
        rows = batch_size * num_candidates
        actions = actions.flatten(1, 2)
        state = tree_map(
            lambda leaf: leaf.repeat_interleave(num_candidates, dim=0) if isinstance(leaf, Tensor) else leaf, state
        )
        total: Tensor = actions.new_zeros(rows)
        alive: Tensor | None = None
        for t in range(horizon):
            given = () if noise is None else (noise[t],)
            state = self.step(state, actions[t], *given)
            reward = self.reward(state, actions[t])
            check_shape("what reward returns", reward, "N", N=rows, because="one for each candidate, B * J")
            if alive is not None:
                reward = torch.where(alive == 0, 0.0, alive * reward)  # 0 * NaN would be NaN
            total = total + self.discount**t * reward
            if self.goes_on is not None and t + 1 < horizon:
                goes_on = self.goes_on(state)
                check_shape("what goes_on returns", goes_on, "N", N=rows, because="one for each candidate, B * J")
                # What has ended stays so, even if the state after it is NaN.
                alive = goes_on if alive is None else torch.where(alive == 0, alive, alive * goes_on)
        return total.reshape(batch_size, num_candidates)

    def _noise(self, actions: Tensor, noise: Tensor | None) -> Tensor | None:
        """Return noise [H, N, S], drawn where none is given, or None where nothing is random."""
        if noise is None:
            noise = self.draw_noise(actions)
        elif self.noise_dim == 0:
            raise ValueError(
                f"noise must be None where noise_dim is 0, got {sizes_of(noise)}; set noise_dim if step takes noise"
            )
        else:
            horizon, batch_size, num_candidates, _ = actions.shape
            sizes = {"H": horizon, "B": batch_size, "J": num_candidates, "S": self.noise_dim}
            check_shape("noise", noise, "H B J S", because="as the actions, and noise_dim", **sizes)
            check_dtype("noise", noise, actions.dtype, because="as the actions")
            check_device("noise", noise, actions.device, because="as the actions")
        return None if noise is None else noise.flatten(1, 2)


def _check_callable(**functions: object) -> None:
    """Raise a `TypeError` for the first keyword that cannot be called."""
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {type(function).__name__}")
