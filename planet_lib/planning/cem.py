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
  absolute deviation, which for normal samples is sqrt(2 / pi) times that; `deviation="mad"` is that one (divided by K,
  where the paper divides by K - 1).
- A return that is not finite never counts.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from planet_lib._shapes import check_choice, check_count, is_finite, is_whole, shown
from planet_lib.planning._checks import check_size, check_width
from planet_lib.planning._spaces import Bound, Box, Sampling, make_box
from planet_lib.planning.planner import Planner, Round, top
from planet_lib.planning.protocol import Dynamics
from planet_lib.types import Plan

__all__ = ["CEMPlanner", "Dynamics"]

Deviation = Literal["std", "mad"]


class CEMPlanner(Planner):
    """Plan by the cross-entropy method: sample action sequences, keep the best, fit the next samples to them.

    candidates = clip(mean + std * noise, low, high);  mean, std = those of the K candidates of highest return

    This is repeated num_iterations times, from the middle of the box. The first action of the last mean is the one to
    execute. See `Planner` for the call and what holds for every planner.

    Shapes: H horizon, I iterations, B environments, J candidates, K elites, A action. The defaults are the paper's.

    Special cases: a dimension without a bound starts from standard deviation 1, and as near to 0 as its other bound
    allows. If fewer than num_elites returns are finite, those alone count; of a single one the deviation is 0, so where
    dynamics often fail a `min_std` keeps the search alive.

    Args:
        dynamics: the `Dynamics` that returns the candidates' worth.
        low: smallest action: a number, or one per action dimension [A]. May be -inf.
        high: largest action, likewise. May be inf.
        action_dim: A; needed only where `low` and `high` are both single numbers.
        horizon: H, the number of actions planned ahead.
        num_candidates: J, the number of action sequences tried in each iteration.
        num_elites: K, how many of them the next distribution is fitted to.
        num_iterations: I.
        min_std: floor of the fitted deviation, in units of the action. 0 is no floor.
        initial_std: the first deviation, in units of half the box (of 1 in a dimension without a bound).
        sampling: how candidates keep to the box: "clip" moves what is outside to the bound, "truncate" draws from the
            normal distribution within the bounds.
        deviation: of the elites: "std", the standard deviation, or "mad", the mean absolute deviation of the paper's
            text, under which the search narrows faster.
        momentum: share of the old mean and deviation that is kept in each iteration.
        num_particles: P, how often each candidate is rolled out. Its return is the mean, and not finite if one of them
            is not.

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
        initial_std: float = 1.0,
        sampling: Sampling = "clip",
        deviation: Deviation = "std",
        momentum: float = 0.0,
        num_particles: int = 1,
    ) -> None:
        check_count(num_candidates=num_candidates, num_iterations=num_iterations)
        check_width(initial_std=initial_std)
        super().__init__(
            dynamics,
            make_box(low, high, action_dim),
            [Round(num_candidates)] * num_iterations,
            horizon=horizon,
            num_candidates=num_candidates,
            num_particles=num_particles,
            initial_std=initial_std,
        )
        check_elites(num_elites, num_candidates)
        check_fit(min_std, sampling, deviation, momentum)
        self.num_elites, self.min_std, self.momentum = num_elites, min_std, momentum
        self.sampling, self.deviation = sampling, deviation

    def _candidates(self, plan: Plan, space: Box, noise: Tensor, last: bool) -> Tensor:
        return space.sample(plan.mean.unsqueeze(2), plan.std.unsqueeze(2), noise, self.sampling)

    def _refit(self, plan: Plan, space: Box, candidates: Tensor, returns: Tensor) -> Plan:
        elites, scores = top(candidates, returns, self.num_elites)
        mean, std, value = fit(elites, scores, self.deviation)
        mean, kept = mix(space, plan, mean, std, self.momentum)
        return plan._replace(
            action=mean[0], mean=mean, std=kept.clamp(min=self.min_std), value=value, elites=None, spread=std
        )


def check_elites(num_elites: int, num_candidates: int) -> None:
    """Raise a `ValueError` unless there are candidates for so many elites."""
    if not is_whole(num_elites, most=num_candidates):
        raise ValueError(f"num_elites must be between 1 and num_candidates={num_candidates}, got {shown(num_elites)}")


def check_fit(min_std: float, sampling: str, deviation: str, momentum: float) -> None:
    """Raise a `ValueError` for a setting of the fit that is out of its range."""
    check_size(min_std=min_std)
    check_choice("sampling", sampling, get_args(Sampling))
    check_choice("deviation", deviation, get_args(Deviation))
    if not is_finite(momentum) or not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and less than 1, got {shown(momentum)}")


def fit(elites: Tensor, scores: Tensor, deviation: Deviation) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and deviation [H, B, A] of the elites [H, B, K, A] whose score [B, K] is finite, and their value."""
    counts = scores > -torch.inf  # False where too few returns are finite
    total = counts.sum(1).clamp(min=1).to(scores)  # [B]
    weight = (counts / total.unsqueeze(1))[None, :, :, None]
    mean = (weight * elites).sum(2)
    distance = elites - mean.unsqueeze(2)
    mad = deviation == "mad"
    spread = (weight * distance.abs()).sum(2) if mad else (weight * distance.square()).sum(2).sqrt()
    return mean, spread, torch.where(counts, scores, 0.0).sum(1) / total


def mix(space: Box, plan: Plan, mean: Tensor, std: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """Return the next mean, within the box, and deviation, with `momentum` of the old ones."""
    if momentum:
        mean, std = torch.lerp(mean, plan.mean, momentum), torch.lerp(std, plan.std, momentum)
    # The mean of numbers within the box can be outside by a rounding error.
    return space.clip(mean), std
