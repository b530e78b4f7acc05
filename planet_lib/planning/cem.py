"""Planning with the cross-entropy method: candidates go out, returns come back, the best are kept.

For choosing the next action where a `Dynamics` can say what action sequences are worth: a learned model, a simulator,
a formula. This module knows none of them: neither what a state is made of (any pytree of tensors [B, ...]) nor how a
return comes about.

Source: Hafner et al. 2019 (arXiv:1811.04551), section 3 and algorithm 2; google-research/planet `control/planning.py`.
Differences from the source:

- B environments are planned for at once, and the plan of one depends on that one alone.
- Bounds are per dimension; the first distribution is the box's centre and half-width. On [-1, 1] this is the paper's
  zero mean and unit variance.
- The standard deviation is the population's (as in the original code, without its 1e-6). The paper's text prints a mean
  absolute deviation, which for normal samples is sqrt(2 / pi) times that.
- A return that is not finite never counts.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

# torch's own definition of a pytree; it has no public name yet, and torch.compile traces through it.
from torch.utils._pytree import tree_leaves

from planet_lib._shapes import check_positive, check_shape
from planet_lib.types import Plan

Bound = float | Sequence[float] | np.ndarray[Any, Any] | Tensor


class Dynamics(Protocol):
    """What a planner plans with: anything that can say what action sequences are worth.

    returns[b, j] = the sum of the H rewards met when `actions[:, b, j]` is executed from `state[b]`

    Nothing to subclass: any object with this method will do. A row of the result may depend on its own row of the
    state, the actions and the noise alone. What cannot be evaluated (a diverged simulator) is NaN or -inf.

    Example:
        >>> import torch
        >>> class Integrator:  # the state x [B] moves by the action, and ought to be at 0
        ...     def rollout(self, state, actions, noise=None):
        ...         x = state[:, None] + actions[..., 0].cumsum(0)  # [H, B, J]
        ...         return -x.square().sum(0)
        >>> Integrator().rollout(torch.tensor([1.0]), torch.tensor([-1.0, 0.0]).expand(3, 1, 2)[..., None])
        tensor([[-5., -3.]])
    """

    def rollout(self, state: Any, actions: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return what every candidate earns.

        Args:
            state: any pytree of tensors [B, ...], one row per environment.
            actions: [H, B, J, A], J candidate sequences for every environment, within the bounds.
            noise: [H, B, J, S], standard normal, for dynamics that are random; None lets them draw their own.

        Returns:
            [B, J], higher is better.
        """
        ...


class CEMPlanner:
    """Plan by the cross-entropy method: sample action sequences, keep the best, fit the next samples to them.

    candidates = clip(mean + std * noise, low, high);  mean, std = those of the K candidates of highest return

    This is repeated num_iterations times, from the middle of the box. The first action of the last mean is the one to
    execute; afterwards one plans anew. Planning runs without gradients, waits for no device, and traces under
    `torch.compile(fullgraph=True)`. Device and dtype are those of the state.

    Shapes: H horizon, I iterations, B environments, J candidates, A action. The defaults are the paper's numbers.

    Special cases: a dimension without a bound starts from standard deviation 1, and as near to 0 as its other bound
    allows. NaN, -inf and +inf are never elite: a return of +inf is a broken model, not a good plan. If fewer than
    num_elites returns are finite, those alone count; if none is, the distribution stays as it was, and if none is in
    any iteration, the row's `valid` is False, its value NaN, and its mean still a finite action within the box.

    Args:
        dynamics: the `Dynamics` that returns the candidates' worth.
        low: smallest action: a number, or one per action dimension [A]. May be -inf.
        high: largest action, likewise. May be inf.
        action_dim: A; needed only where `low` and `high` are both single numbers.
        horizon: H, the number of actions planned ahead.
        num_candidates: J, the number of action sequences tried in each iteration.
        num_elites: K, how many of them the next distribution is fitted to.
        num_iterations: I.
        min_std: floor of the fitted standard deviation, in units of the action. 0 is no floor.

    Raises:
        ValueError: a setting out of its range, or bounds that are not one `low < high` per dimension.

    Example:
        >>> import torch
        >>> class Target:  # the best action is 0.5, whatever the state
        ...     def rollout(self, state, actions, noise=None):
        ...         return -(actions - 0.5).square().sum((0, -1))
        >>> planner = CEMPlanner(Target(), [-1.0, -1.0], [1.0, 0.3], horizon=2)
        >>> plan = planner(torch.zeros(3, 7), generator=torch.Generator().manual_seed(0))
        >>> plan.action.shape, plan.mean.shape, plan.valid
        (torch.Size([3, 2]), torch.Size([2, 3, 2]), tensor([True, True, True]))
        >>> bool(torch.allclose(plan.action, torch.tensor([0.5, 0.3]), atol=0.01))
        True
    """

    def __init__(
        self,
        dynamics: Dynamics,
        low: Bound,
        high: Bound,
        *,
        action_dim: int | None = None,
        horizon: int = 12,
        num_candidates: int = 1000,
        num_elites: int = 100,
        num_iterations: int = 10,
        min_std: float = 0.0,
    ) -> None:
        check_positive(horizon=horizon, num_candidates=num_candidates, num_iterations=num_iterations)
        if not 1 <= num_elites <= num_candidates:
            raise ValueError(f"num_elites must be between 1 and num_candidates={num_candidates}, got {num_elites}")
        if not (min_std >= 0 and isfinite(min_std)):
            raise ValueError(f"min_std must be finite and not negative, got {min_std}")
        self.dynamics = dynamics
        self.horizon, self.num_candidates = horizon, num_candidates
        self.num_elites, self.num_iterations = num_elites, num_iterations
        self.min_std = min_std
        self.low, self.high = _box(low, high, action_dim)
        bounded = self.low.isfinite() & self.high.isfinite()
        # Where a bound is missing the middle is not a number; `where` drops it.
        zero = torch.zeros_like(self.low).clamp(self.low, self.high)
        self._initial_mean = torch.where(bounded, (self.low + self.high) / 2, zero)
        self._initial_std = torch.where(bounded, (self.high - self.low) / 2, 1.0)

    @property
    def action_dim(self) -> int:
        """A, the number of action dimensions."""
        return self.low.shape[0]

    def clip(self, action: Tensor) -> Tensor:
        """Return `action` [..., A] moved into the planner's box."""
        return action.clamp(_like(self.low, action), _like(self.high, action))

    def __call__(
        self,
        state: Any,
        *,
        initial_mean: Tensor | None = None,
        noise: Tensor | None = None,
        dynamics_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Plan:
        """Plan for every row of `state`.

        Args:
            state: what the dynamics start from, any pytree of tensors [B, ...].
            initial_mean: [H, B, A] finite, where the search starts, such as an earlier plan moved on by one step. None
                is the middle of the box, as in the paper, which starts anew at each step to avoid local optima.
            noise: [I, H, B, J, A], standard normal, from which the candidates are made. None draws it.
            dynamics_noise: [I, H, B, J, S]; each iteration's is passed to `dynamics.rollout`. None lets them draw.
            generator: what the candidates' noise is drawn from; the dynamics draw their own elsewhere.

        Raises:
            ValueError: a shape that does not fit, including that of the returns.
            TypeError: a state without any tensor.
        """
        batch_size, like = _batch_of(state)
        sizes = {"I": self.num_iterations, "H": self.horizon, "B": batch_size}
        sizes |= {"J": self.num_candidates, "A": self.action_dim}
        because = "the planner's settings and the rows of state"
        if noise is not None:
            check_shape("noise", noise, "I H B J A", because=because, **sizes)
        if dynamics_noise is not None:
            check_shape("dynamics_noise", dynamics_noise, "I H B J S", because=because, **sizes)
        shape = (self.horizon, batch_size, self.action_dim)
        if initial_mean is None:
            mean = _like(self._initial_mean, like).expand(shape)
        else:
            check_shape("initial_mean", initial_mean, "H B A", because=because, **sizes)
            mean = self.clip(initial_mean.to(like))
        with torch.no_grad():
            plan = Plan(
                action=mean[0],
                mean=mean,
                std=_like(self._initial_std, like).expand(shape),
                value=like.new_full((batch_size,), torch.nan),
                valid=torch.zeros(batch_size, dtype=torch.bool, device=like.device),
            )
            for i in range(self.num_iterations):
                if noise is None:
                    size = (self.horizon, batch_size, self.num_candidates, self.action_dim)
                    draw = torch.randn(size, dtype=like.dtype, device=like.device, generator=generator)
                else:
                    draw = noise[i]
                candidates = self.clip(plan.mean.unsqueeze(2) + plan.std.unsqueeze(2) * draw)
                given = None if dynamics_noise is None else dynamics_noise[i]
                returns = self.dynamics.rollout(state, candidates, noise=given)
                check_shape("what dynamics.rollout returns", returns, "B J", B=batch_size, J=self.num_candidates)
                plan = self._refit(plan, candidates, returns.to(like))
        return plan

    def _refit(self, plan: Plan, candidates: Tensor, returns: Tensor) -> Plan:
        """Fit mean and std to the elites; a row without any finite return stays as it was."""
        finite = returns.isfinite()
        scores, index = torch.where(finite, returns, -torch.inf).topk(self.num_elites, dim=1)
        index = index[None, :, :, None].expand(self.horizon, -1, -1, self.action_dim)
        elites = candidates.gather(2, index)
        counts = scores.isfinite()  # [B, K], False where too few returns are finite
        total = counts.sum(1).clamp(min=1).to(returns)  # [B]
        weight = (counts / total.unsqueeze(1))[None, :, :, None]
        mean = (weight * elites).sum(2)
        std = (weight * (elites - mean.unsqueeze(2)).square()).sum(2).sqrt().clamp(min=self.min_std)
        # The mean of numbers within the box can be outside by a rounding error.
        mean = self.clip(mean)
        value = torch.where(counts, scores, 0.0).sum(1) / total
        found = counts.any(1)
        mean = torch.where(found[:, None], mean, plan.mean)
        return Plan(
            action=mean[0],
            mean=mean,
            std=torch.where(found[:, None], std, plan.std),
            value=torch.where(found, value, plan.value),
            valid=plan.valid | found,
        )


def _box(low: Bound, high: Bound, action_dim: int | None) -> tuple[Tensor, Tensor]:
    """Return both bounds as floating tensors [A], or say what is wrong with them."""
    if action_dim is not None:
        check_positive(action_dim=action_dim)
    # A copy, so that the caller's array can change without the box; 64 bits, so that the middle is exact.
    lower, upper = (torch.as_tensor(bound, dtype=torch.float64).detach().clone() for bound in (low, high))
    shapes = [list(bound.shape) for bound in (lower, upper)]
    if lower.ndim > 1 or upper.ndim > 1:
        raise ValueError(f"low and high must be numbers or [A], got {shapes[0]} and {shapes[1]}")
    sizes = [shape[0] for shape in shapes if shape]
    if not sizes:
        if action_dim is None:
            raise ValueError("action_dim must be given where low and high are both single numbers, got None")
        sizes = [action_dim]
    if sizes[0] == 0:
        raise ValueError(f"low and high must have at least one dimension, got {shapes[0]} and {shapes[1]}")
    if sizes[-1] != sizes[0]:
        raise ValueError(f"high must be a number or [A], like low, with A={sizes[0]}, got {shapes[1]}")
    if action_dim not in (None, sizes[0]):
        raise ValueError(f"action_dim must be the size of low and high, {sizes[0]}, got {action_dim}")
    lower, upper = lower.expand(sizes[0]).contiguous(), upper.expand(sizes[0]).contiguous()
    if not bool((lower < upper).all()):
        raise ValueError(f"low must be less than high in every dimension, got {lower.tolist()} and {upper.tolist()}")
    return lower, upper


def _like(bound: Tensor, other: Tensor) -> Tensor:
    """Return `bound` in the dtype and on the device of `other`, without waiting for the device."""
    return bound.to(other.dtype).to(other.device, non_blocking=True)


def _batch_of(state: Any) -> tuple[int, Tensor]:
    """Return B, and an empty tensor with the device and floating dtype of the state."""
    leaves = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    if not leaves:
        raise TypeError(f"state must hold at least one tensor [B, ...], got {type(state).__name__} without any")
    sizes = [leaf.shape[0] if leaf.ndim else None for leaf in leaves]
    batch_size = sizes[0]
    if batch_size is None or any(size != batch_size for size in sizes):
        shapes = [list(leaf.shape) for leaf in leaves]
        raise ValueError(f"state must hold tensors [B, ...] of one batch size B, got shapes {shapes}")
    dtype = next((leaf.dtype for leaf in leaves if leaf.is_floating_point()), torch.get_default_dtype())
    return batch_size, torch.empty(0, dtype=dtype, device=leaves[0].device)
