"""Planning with model predictive path integral control: every candidate counts, the better the more.

Source: Williams et al. 2017, "Information Theoretic MPC for Model-Based Reinforcement Learning" (ICRA), algorithms 1
and 2. Differences from the source: batched over environments; bounds per dimension; returns are measured in units of
their own standard deviation, so that one temperature serves all tasks; repeated num_iterations times, on request with
a deviation that is fitted too (as in TD-MPC, Hansen et al. 2022, arXiv:2203.04955). The cost of the control that
belongs to the source's derivation is left to the dynamics' rewards.
"""

import torch
from torch import Tensor

from planet_lib._shapes import check_count, check_flag, check_scales
from planet_lib.planning._checks import check_size, check_width
from planet_lib.planning._noise import colour
from planet_lib.planning._spaces import Bound, Box, make_box
from planet_lib.planning.planner import Planner, Round
from planet_lib.planning.protocol import Dynamics
from planet_lib.types import Plan


class MPPIPlanner(Planner):
    """Plan by path integrals: move the mean to the candidates, weighted by the exponential of their returns.

    candidates = clip(mean + std * noise);  mean = sum_j w_j candidate_j
    with w = softmax(R / (temperature * sd(R))) over the J returns R, where sd(R) is their standard deviation

    The deviation stays what it was at first unless `adapt_std` fits it with the same weights. The plan's value is
    sum_j w_j R_j. Returns that are not finite have no weight. See `Planner` for the call and what holds for every
    planner.

    Shapes: H horizon, I iterations, B environments, J candidates, A action.

    Args:
        dynamics: the `Dynamics` that return the candidates' worth.
        low: smallest action: a number, or one per action dimension [A]. May be -inf.
        high: largest action, likewise. May be inf.
        action_dim: A; needed only where `low` and `high` are both single numbers.
        horizon: H.
        num_candidates: J.
        num_iterations: I.
        temperature: how much better a candidate must be to count e times more, in standard deviations of the returns.
        noise_std: the first deviation, in units of half the box (of 1 in a dimension without a bound).
        adapt_std: whether each iteration fits the deviation.
        min_std: its floor, in units of the action.
        noise_beta: how slowly candidates change, as in `ICEMPlanner`; 0 is white noise.
        num_particles: P, how often each candidate is rolled out; its return is the mean.

    Raises:
        ValueError: a setting out of its range, or bounds that are not one `low < high` per dimension.

    Example:
        >>> import torch
        >>> class Target:  # the best action is 0.5, whatever the state
        ...     def rollout(self, state, actions, noise=None):
        ...         return -(actions - 0.5).square().sum((0, -1))
        >>> planner = MPPIPlanner(Target(), -1.0, 1.0, action_dim=1, horizon=4, temperature=0.1)
        >>> plan = planner(torch.zeros(2, 7), generator=torch.Generator().manual_seed(0))
        >>> bool((plan.action - 0.5).abs().max() < 0.1)
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
        temperature: float = 0.5,
        noise_std: float = 0.5,
        adapt_std: bool = False,
        min_std: float = 0.0,
        noise_beta: float = 0.0,
        num_particles: int = 1,
    ) -> None:
        check_count(num_candidates=num_candidates, num_iterations=num_iterations)
        check_width(temperature=temperature, noise_std=noise_std)
        check_size(min_std=min_std)
        check_scales(noise_beta=noise_beta)
        check_flag(adapt_std=adapt_std)
        super().__init__(
            dynamics,
            make_box(low, high, action_dim),
            [Round(num_candidates)] * num_iterations,
            horizon=horizon,
            num_candidates=num_candidates,
            num_particles=num_particles,
            initial_std=noise_std,
        )
        self.temperature, self.noise_std, self.adapt_std = temperature, noise_std, adapt_std
        self.min_std, self.noise_beta = min_std, noise_beta

    def _candidates(self, plan: Plan, space: Box, noise: Tensor, last: bool) -> Tensor:
        return space.clip(plan.mean.unsqueeze(2) + plan.std.unsqueeze(2) * colour(noise, self.noise_beta))

    def _refit(self, plan: Plan, space: Box, candidates: Tensor, returns: Tensor) -> Plan:
        finite = returns > -torch.inf
        count = finite.sum(1, keepdim=True).clamp(min=1)
        best = returns.max(1, keepdim=True).values
        # Halves, and in units of the largest: the squares of very large differences would be infinite.
        below = torch.where(finite, returns / 2 - best / 2, 0.0)
        tiny = torch.finfo(returns.dtype).tiny
        scaled = below / below.abs().max(1, keepdim=True).values.clamp(min=tiny)
        apart = torch.where(finite, scaled - scaled.sum(1, keepdim=True) / count, 0.0)
        deviation = (apart.square().sum(1, keepdim=True) / count).sqrt()
        # Where all returns are equal so are the weights.
        weight = torch.where(finite, (scaled / (self.temperature * deviation).clamp(min=tiny)).exp(), 0.0)
        weight = weight / weight.sum(1, keepdim=True)
        mean = space.clip((weight[None, :, :, None] * candidates).sum(2))
        std = (weight[None, :, :, None] * (candidates - mean.unsqueeze(2)).square()).sum(2).sqrt()
        return plan._replace(
            action=mean[0],
            mean=mean,
            std=std.clamp(min=self.min_std) if self.adapt_std else plan.std,
            value=2 * (weight * below).sum(1) + best[:, 0],
            elites=None,
            spread=std,
        )
