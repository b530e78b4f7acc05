"""Random shooting: what it tries, and that it keeps the best it ever saw."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from planet_lib.planning import RandomShootingPlanner

ITERATIONS, H, B, J, A = 3, 4, 2, 25, 2
LOW, HIGH = [-1.0, 0.0], [2.0, 0.5]


class Target:
    """return = -|actions - state|^2, where state is [B, A]; it keeps what was tried."""

    def __init__(self):
        self.tried, self.returns = [], []

    def rollout(self, state, actions, noise=None):
        self.tried.append(actions)
        self.returns.append(-(actions - state[:, None]).square().sum((0, -1)))
        return self.returns[-1]


def small(dynamics=None, low=LOW, high=HIGH, **changes) -> RandomShootingPlanner:
    given = {"horizon": H, "num_candidates": J, "num_iterations": ITERATIONS, **changes}
    return RandomShootingPlanner(dynamics or Target(), low, high, **given)


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got, expected, **tolerance):
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), **tolerance)


def test_a_candidate_is_the_share_of_the_normal_distribution_below_its_noise_in_the_box():
    dynamics, noise = Target(), normal(ITERATIONS, H, B, J, A)
    small(dynamics)(normal(B, A), noise=noise)
    share = noise.clone().apply_(NormalDist().cdf)
    low, high = torch.tensor(LOW).double(), torch.tensor(HIGH).double()
    for i in range(ITERATIONS):
        close(dynamics.tried[i][:, :, :J], low + (high - low) * share[i])


def test_candidates_fill_the_box_evenly():
    dynamics = Target()
    small(dynamics, num_candidates=20000, horizon=1, num_iterations=1)(normal(1, A))
    tried = (dynamics.tried[0][0, 0, :20000] - torch.tensor(LOW)) / (torch.tensor(HIGH) - torch.tensor(LOW))
    for dim in range(A):
        counts = torch.histc(tried[:, dim], bins=10, min=0.0, max=1.0)
        assert bool(((counts - 2000).abs() < 5 * math.sqrt(1800)).all())
    assert float(torch.corrcoef(tried.T)[0, 1].abs()) < 0.04


def test_a_dimension_without_a_bound_is_normal_around_its_middle():
    dynamics, noise = Target(), normal(1, H, B, J, 3)
    low, high = [-math.inf, 2.0, -1.0], [math.inf, math.inf, 1.0]
    small(dynamics, low, high, num_iterations=1)(normal(B, 3), noise=noise)
    close(dynamics.tried[0][:, :, :J, 0], noise[0, ..., 0])
    assert bool((dynamics.tried[0][..., 1] >= 2).all())
    assert float(dynamics.tried[0][..., 1].max()) > 3
    assert bool((dynamics.tried[0][..., 2].abs() <= 1).all())


@pytest.mark.parametrize("best_round", range(ITERATIONS))
def test_the_plan_is_the_best_sequence_of_all_rounds(best_round):
    class Drifting(Target):
        """One round's returns are better than the others'."""

        def rollout(self, state, actions, noise=None):
            super().rollout(state, actions)
            self.returns[-1] = self.returns[-1] + 100.0 * (len(self.tried) - 1 == best_round)
            return self.returns[-1]

    dynamics = Drifting()
    plan = small(dynamics)(normal(B, A), noise=normal(ITERATIONS, H, B, J, A, seed=1))
    value, index = dynamics.returns[best_round].max(1)
    for row in range(B):
        close(plan.mean[:, row], dynamics.tried[best_round][:, row, index[row]])
    close(plan.value, value)
    close(plan.std, torch.zeros(H, B, A).double())
    assert torch.equal(plan.action, plan.mean[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_round_without_any_finite_return_is_passed_over(bad):
    class Flaky(Target):
        def rollout(self, state, actions, noise=None):
            returns = super().rollout(state, actions)
            return torch.full_like(returns, bad) if len(self.tried) == 2 else returns

    state, noise = normal(B, A), normal(ITERATIONS, H, B, J, A, seed=1)
    plan = small(Flaky())(state, noise=noise)
    dynamics = Target()
    small(dynamics)(state, noise=noise)
    close(plan.value, torch.cat([dynamics.returns[0], dynamics.returns[2][:, :J]], 1).amax(1))
    assert plan.valid.tolist() == [True] * B


@pytest.mark.parametrize("start", [None, [0.25, 0.1]])
def test_where_the_search_starts_is_tried_too(start):
    dynamics = Target()
    mean = torch.tensor([0.5, 0.25] if start is None else start).double().expand(H, B, A)
    small(dynamics)(normal(B, A), initial_mean=None if start is None else mean, noise=normal(ITERATIONS, H, B, J, A))
    assert bool((dynamics.tried[0] == mean.unsqueeze(2)).all(-1).all(0).any(-1).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, r"horizon must be .*got 0"),
        ({"num_candidates": 0}, r"num_candidates must be .*got 0"),
        ({"num_iterations": 0}, r"num_iterations must be .*got 0"),
        ({"num_particles": 0}, r"num_particles must be .*got 0"),
        ({"low": 3.0}, r"low must be less than high in every dimension"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
