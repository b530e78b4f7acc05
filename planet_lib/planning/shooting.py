"""Planning by random shooting: the best of many sequences drawn at random. The baseline that others have to beat.

Source: Nagabandi et al. 2018 (arXiv:1708.02596), section IV.C. Differences from the source: batched over environments;
bounds per dimension; where the search starts is a candidate too.
"""

import torch
from torch import Tensor

from planet_lib._shapes import check_count
from planet_lib.planning._spaces import Bound, Box, make_box
from planet_lib.planning.planner import Planner, Round, top
from planet_lib.planning.protocol import Dynamics
from planet_lib.types import Plan


class RandomShootingPlanner(Planner):
    """Plan by trying I * J sequences of uniformly random actions and keeping the best.

    The plan's mean is the best sequence, its std 0, and its value the highest return. Each iteration also tries where
    it starts from: at first the middle of the box, or the `initial_mean`, or the `previous` plan moved on by one step,
    and then the best so far. In a dimension that lacks a bound candidates are normal with standard deviation 1. See
    `Planner` for the call and what holds for every planner.

    Shapes: H horizon, I iterations, B environments, J candidates, A action.

    Args:
        dynamics: the `Dynamics` that return the candidates' worth.
        low: smallest action: a number, or one per action dimension [A]. May be -inf.
        high: largest action, likewise. May be inf.
        action_dim: A; needed only where `low` and `high` are both single numbers.
        horizon: H.
        num_candidates: J, tried at a time.
        num_iterations: I, how often. All sequences are drawn alike; this only keeps memory small.
        num_particles: P, how often each candidate is rolled out; its return is the mean.

    Raises:
        ValueError: a setting out of its range, or bounds that are not one `low < high` per dimension.

    Example:
        >>> import torch
        >>> class Target:  # the best action is 0.5, whatever the state
        ...     def rollout(self, state, actions, noise=None):
        ...         return -(actions - 0.5).square().sum((0, -1))
        >>> planner = RandomShootingPlanner(Target(), -1.0, 1.0, action_dim=1, horizon=1)
        >>> plan = planner(torch.zeros(2, 7), generator=torch.Generator().manual_seed(0))
        >>> bool((plan.action - 0.5).abs().max() < 0.01)
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
        num_iterations: int = 10,
        num_particles: int = 1,
    ) -> None:
        check_count(num_candidates=num_candidates, num_iterations=num_iterations)
        super().__init__(
            dynamics,
            make_box(low, high, action_dim),
            [Round(num_candidates, known=1)] * num_iterations,
            horizon=horizon,
            num_candidates=num_candidates,
            num_particles=num_particles,
            initial_std=1.0,
        )

    def _candidates(self, plan: Plan, space: Box, noise: Tensor, last: bool) -> Tensor:
        return torch.cat([space.uniform(noise), plan.mean.unsqueeze(2)], dim=2)

    def _refit(self, plan: Plan, space: Box, candidates: Tensor, returns: Tensor) -> Plan:
        best, scores = top(candidates, returns, 1)
        kept = plan.value >= scores[:, 0]  # False where nothing has been found yet, and the value is NaN
        mean = torch.where(kept[:, None], plan.mean, best[:, :, 0])
        none = torch.zeros_like(mean)
        value = torch.where(kept, plan.value, scores[:, 0])
        return plan._replace(action=mean[0], mean=mean, std=none, value=value, elites=None, spread=none)
