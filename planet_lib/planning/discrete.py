"""Planning with the cross-entropy method over choices: one-hot actions, and a distribution of probabilities.

Source: de Boer et al. 2005, "A Tutorial on the Cross-Entropy Method", section 4.1 (categorical distributions), in the
loop of Hafner et al. 2019 (arXiv:1811.04551), algorithm 2. Batched over environments.
"""

from torch import Tensor

from planet_lib._shapes import check_count, is_finite, shown
from planet_lib.planning._spaces import OneHot, make_one_hot
from planet_lib.planning.cem import check_elites, check_fit, fit
from planet_lib.planning.planner import Planner, Round, top
from planet_lib.planning.protocol import Dynamics
from planet_lib.types import Plan


class DiscreteCEMPlanner(Planner):
    """Plan one of A choices at each step, by CEM over one-hot actions.

    candidates ~ probabilities;  probabilities = how often the K best candidates made each choice

    The plan's mean [H, B, A] are the probabilities p, its std is sqrt(p (1 - p)), and its action the one-hot vector of
    the likeliest first choice. Candidates are made from standard normal noise by the Gumbel-max trick. See `Planner`
    for the call and what holds for every planner.

    Shapes: H horizon, I iterations, B environments, J candidates, K elites, A choices.

    Args:
        dynamics: the `Dynamics` that return the candidates' worth, of one-hot actions [H, B, J, A].
        num_actions: A, the number of choices, at least 2.
        horizon: H.
        num_candidates: J.
        num_elites: K.
        num_iterations: I.
        min_probability: floor of each choice's probability, less than 1 / A, so that none is ever given up.
        momentum: share of the old probabilities that is kept in each iteration.
        num_particles: P, how often each candidate is rolled out; its return is the mean.

    Raises:
        ValueError: a setting out of its range.

    Example:
        >>> import torch
        >>> class Target:  # choice 2 earns most, whatever the state
        ...     def rollout(self, state, actions, noise=None):
        ...         return (actions * torch.tensor([0.0, -1.0, 1.0])).sum((0, -1))
        >>> planner = DiscreteCEMPlanner(Target(), 3, horizon=4)
        >>> planner(torch.zeros(2, 7), generator=torch.Generator().manual_seed(0)).action
        tensor([[0., 0., 1.],
                [0., 0., 1.]])
    """

    def __init__(
        self,
        dynamics: Dynamics,
        num_actions: int,
        *,
        horizon: int = 12,
        num_candidates: int = 1000,
        num_elites: int = 100,
        num_iterations: int = 10,
        min_probability: float = 0.0,
        momentum: float = 0.0,
        num_particles: int = 1,
    ) -> None:
        check_count(num_actions=num_actions, num_candidates=num_candidates, num_iterations=num_iterations)
        check_elites(num_elites, num_candidates)
        check_fit(0.0, "clip", "std", momentum)
        if num_actions < 2:
            raise ValueError(f"num_actions must be at least 2, got {num_actions}; there is nothing to choose")
        if not is_finite(min_probability) or not 0 <= min_probability < 1 / num_actions:
            raise ValueError(
                f"min_probability must be at least 0 and less than 1 / num_actions, got {shown(min_probability)} "
                f"for {num_actions} actions"
            )
        super().__init__(
            dynamics,
            make_one_hot(num_actions),
            [Round(num_candidates)] * num_iterations,
            horizon=horizon,
            num_candidates=num_candidates,
            num_particles=num_particles,
            initial_std=1.0,
        )
        self.num_elites, self.min_probability, self.momentum = num_elites, min_probability, momentum

    def _candidates(self, plan: Plan, space: OneHot, noise: Tensor, last: bool) -> Tensor:
        return space.sample(plan.mean.unsqueeze(2), noise)

    def _refit(self, plan: Plan, space: OneHot, candidates: Tensor, returns: Tensor) -> Plan:
        elites, scores = top(candidates, returns, self.num_elites)
        share, spread, value = fit(elites, scores, "std")
        share = share + self.momentum * (plan.mean - share)
        mean = self.min_probability + (1 - self.action_dim * self.min_probability) * space.settle(share)
        std = (mean * (1 - mean)).clamp(min=0).sqrt()
        return plan._replace(action=space.clip(mean[0]), mean=mean, std=std, value=value, elites=None, spread=spread)
