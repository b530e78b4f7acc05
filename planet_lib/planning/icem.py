"""Planning with the improved cross-entropy method: as good as CEM with far fewer candidates. Knows no dynamics.

Source: Pinneri et al. 2020, "Sample-efficient Cross-Entropy Method for Real-time Planning" (arXiv:2008.06389),
algorithm 1. Differences from the source: batched over environments, each with its own past and its own reset; bounds
per dimension; elites moved on by one step end with the middle of the box, not with a random action; the search starts
twice as wide, which earned more in short trials on the control suite (docs/results/true-simulator.md says which).
"""

import math

import torch
from torch import Tensor

from planet_lib._shapes import check_count, check_scales, is_finite, shown
from planet_lib.planning._checks import check_width
from planet_lib.planning._noise import colour
from planet_lib.planning._spaces import Bound, Box, Sampling, make_box
from planet_lib.planning.cem import Deviation, check_elites, check_fit, fit, mix
from planet_lib.planning.planner import Planner, Round, top
from planet_lib.planning.protocol import Dynamics
from planet_lib.types import Plan


class ICEMPlanner(Planner):
    """Plan by CEM with slowly changing candidates, the best of which are tried again; meant to be warm-started.

    candidates = clip(mean + std * coloured noise), and the best n of before;
    mean, std = those of the K best, mixed with `momentum` of the old ones

    Iteration i = 0, 1, ... makes J_i = max(J / decay^i, 2K) new candidates, at most J; the last one tries the mean too.
    With `previous`, the first iteration tries its n elites again, moved on by one step. The action to execute is the
    first one of the best candidate of the last iteration, and the plan's value is that candidate's return. See
    `Planner` for the call and what holds for every planner.

    Shapes: H horizon, I iterations, B environments, J candidates, K elites, A action; the plan's elites [H, B, n, A].

    Args:
        dynamics: the `Dynamics` that return the candidates' worth.
        low: smallest action: a number, or one per action dimension [A]. May be -inf.
        high: largest action, likewise. May be inf.
        action_dim: A; needed only where `low` and `high` are both single numbers.
        horizon: H.
        num_candidates: J, the new candidates of the first iteration.
        num_elites: K.
        num_iterations: I.
        noise_beta: how slowly candidates change: their power over time falls as 1 / frequency^noise_beta. 0 is white.
        decay: by what the number of new candidates shrinks from one iteration to the next, at least 1.
        keep_fraction: share of the elites that are tried again, n = ceil(keep_fraction * K).
        momentum: share of the old mean and deviation that is kept in each iteration.
        min_std: floor of the fitted deviation, in units of the action.
        initial_std: the first deviation, in units of half the box (of 1 in a dimension without a bound).
        sampling: "clip" or "truncate", as in `CEMPlanner`.
        deviation: "std" or "mad", as in `CEMPlanner`.
        num_particles: P, how often each candidate is rolled out; its return is the mean.

    Raises:
        ValueError: a setting out of its range, or bounds that are not one `low < high` per dimension.

    Source: arXiv:2008.06389, algorithm 1 and table S1 (momentum, decay, keep_fraction).

    Example:
        >>> import torch
        >>> class Target:  # the best action is 0.5, whatever the state
        ...     def rollout(self, state, actions, noise=None):
        ...         return -(actions - 0.5).square().sum((0, -1))
        >>> planner = ICEMPlanner(Target(), -1.0, 1.0, action_dim=1, horizon=4)
        >>> generator, state = torch.Generator().manual_seed(0), torch.zeros(2, 7)
        >>> plan = planner(state, generator=generator)
        >>> plan = planner(state, previous=plan, is_first=torch.tensor([False, True]), generator=generator)
        >>> bool((plan.action - 0.5).abs().max() < 0.1), sum(planner.num_rollouts)
        (True, 254)
    """

    def __init__(
        self,
        dynamics: Dynamics,
        low: Bound,
        high: Bound,
        *,
        action_dim: int | None = None,
        horizon: int = 12,
        num_candidates: int = 100,
        num_elites: int = 10,
        num_iterations: int = 3,
        noise_beta: float = 2.0,
        decay: float = 1.25,
        keep_fraction: float = 0.3,
        momentum: float = 0.1,
        min_std: float = 0.0,
        initial_std: float = 1.0,
        sampling: Sampling = "clip",
        deviation: Deviation = "std",
        num_particles: int = 1,
    ) -> None:
        check_count(num_candidates=num_candidates, num_iterations=num_iterations)
        check_elites(num_elites, num_candidates)
        check_fit(min_std, sampling, deviation, momentum)
        check_scales(noise_beta=noise_beta)
        check_width(initial_std=initial_std)
        if not is_finite(decay) or not 1 <= decay <= 1000:
            raise ValueError(f"decay must be between 1 and 1000, got {shown(decay)}")
        if not is_finite(keep_fraction) or not 0 <= keep_fraction <= 1:
            raise ValueError(f"keep_fraction must be between 0 and 1, got {shown(keep_fraction)}")
        num_kept = math.ceil(float(keep_fraction) * int(num_elites))
        counts = [max(_after(i, num_candidates, float(decay)), 2 * num_elites) for i in range(num_iterations)]
        rounds = [Round(min(count, num_candidates), num_kept) for count in counts]
        rounds[-1] = rounds[-1]._replace(known=num_kept + 1)  # the mean
        super().__init__(
            dynamics,
            make_box(low, high, action_dim),
            rounds,
            horizon=horizon,
            num_candidates=num_candidates,
            num_particles=num_particles,
            initial_std=initial_std,
            num_kept=num_kept,
        )
        self.num_elites, self.min_std, self.momentum = num_elites, min_std, momentum
        self.sampling, self.deviation, self.noise_beta = sampling, deviation, noise_beta

    def _candidates(self, plan: Plan, space: Box, noise: Tensor, last: bool) -> Tensor:
        noise = colour(noise, self.noise_beta)
        parts = [space.sample(plan.mean.unsqueeze(2), plan.std.unsqueeze(2), noise, self.sampling)]
        if plan.elites is not None:
            parts.append(plan.elites)
        if last:
            parts.append(plan.mean.unsqueeze(2))
        return torch.cat(parts, dim=2)

    def _refit(self, plan: Plan, space: Box, candidates: Tensor, returns: Tensor) -> Plan:
        elites, scores = top(candidates, returns, self.num_elites)
        mean, std, _ = fit(elites, scores, self.deviation)
        mean, kept = mix(space, plan, mean, std, self.momentum)
        best = torch.where((scores > -torch.inf)[..., None], elites, torch.nan)[:, :, : self.num_kept]
        return plan._replace(
            action=elites[0, :, 0],
            mean=mean,
            std=kept.clamp(min=self.min_std),
            value=scores[:, 0],
            elites=best if self.num_kept else None,
            spread=std,
        )


def _after(i: int, count: int, decay: float) -> int:
    """Return count / decay^i, rounded down; 0 where the power is beyond all floats."""
    return int(count / decay**i) if i * math.log(decay) < 700 else 0
