"""The discrete planner: one-hot actions, counted probabilities, exploring."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from planet_lib.planning import DiscreteCEMPlanner

ITERATIONS, H, B, J, K, A = 3, 4, 2, 30, 7, 3


class Wages:
    """return = sum_t wages[t, choice] + state[choice], where state is [B, A]; it keeps what was tried."""

    def __init__(self, change=lambda returns: returns):
        self.wages = torch.randn(H, 1, 1, A, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.change, self.tried, self.returns = change, [], []

    def rollout(self, state, actions, noise=None):
        self.tried.append(actions)
        pay = self.wages[: len(actions)] + state[:, None]
        self.returns.append(self.change((actions * pay).sum((0, -1))))
        return self.returns[-1]


def small(dynamics=None, **changes) -> DiscreteCEMPlanner:
    given = {"horizon": H, "num_candidates": J, "num_elites": K, "num_iterations": ITERATIONS, **changes}
    return DiscreteCEMPlanner(dynamics or Wages(), given.pop("num_actions", A), **given)


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got, expected, **tolerance):
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), **tolerance)


def is_one_hot(actions) -> bool:
    return bool(((actions == 0) | (actions == 1)).all()) and bool((actions.sum(-1) == 1).all())


# The formulas


def by_hand(dynamics, state, noise, *, momentum=0.0):
    """One environment's plan from noise [I, H, J, A], by the description alone."""
    wages = dynamics.wages[:, 0, 0].numpy() + state
    probability = np.full((H, A), 1 / A)
    for i in range(ITERATIONS):
        returns, tried = [], []
        for j in range(J):
            choices = []
            for t in range(H):
                gumbel = [-math.log(-math.log(NormalDist().cdf(x))) for x in noise[i, t, j]]
                keys = [math.log(p) + g if p > 0 else -math.inf for p, g in zip(probability[t], gumbel, strict=True)]
                choices.append(int(np.argmax(keys)))
            tried.append(np.eye(A)[choices])
            returns.append(sum(wages[t, choice] for t, choice in enumerate(choices)))
        order = np.argsort(returns)[::-1][:K]
        fit = np.mean([tried[j] for j in order], axis=0)
        probability = (1 - momentum) * fit + momentum * probability
    return probability, np.mean([returns[j] for j in order])


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_a_plan_agrees_with_the_description_by_hand(momentum):
    state, noise, dynamics = normal(B, A), normal(ITERATIONS, H, B, J, A, seed=1), Wages()
    plan = small(dynamics, momentum=momentum)(state, noise=noise)
    for row in range(B):
        mean, value = by_hand(dynamics, state[row].numpy(), noise[:, :, row].numpy(), momentum=momentum)
        close(plan.mean[:, row], mean)
        close(plan.std[:, row], np.sqrt(mean * (1 - mean)))
        close(plan.value[row], value)
        close(plan.action[row], np.eye(A)[mean[0].argmax()])


def test_everything_tried_and_what_is_executed_is_one_hot_and_the_probabilities_add_up():
    dynamics = Wages()
    plan = small(dynamics, min_probability=0.05, momentum=0.1)(normal(B, A))
    assert is_one_hot(plan.action)
    assert all(is_one_hot(actions) for actions in dynamics.tried)
    assert [actions.dtype for actions in dynamics.tried] == [torch.float64] * ITERATIONS
    close(plan.mean.sum(-1), torch.ones(H, B).double())


def test_at_first_every_choice_is_as_likely():
    dynamics = Wages()
    small(dynamics, num_candidates=30000, num_iterations=1, num_actions=A)(normal(1, A))
    close(dynamics.tried[0].mean(2), torch.full((H, 1, A), 1 / 3).double(), atol=0.015, rtol=0.0)


def test_candidates_follow_the_probabilities():
    dynamics = Wages()
    share = torch.tensor([0.7, 0.1, 0.2]).double().expand(H, 1, A)
    small(dynamics, num_candidates=30000, num_iterations=1)(normal(1, A), initial_mean=share)
    close(dynamics.tried[0].mean(2), share, atol=0.015, rtol=0.0)
    # One step's choice says nothing about another's.
    first, second = dynamics.tried[0][0, 0, :, 0], dynamics.tried[0][1, 0, :, 0]
    assert float(torch.corrcoef(torch.stack([first, second]))[0, 1].abs()) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 50.0])
def test_a_choice_without_probability_is_never_made(size, dtype):
    dynamics = Wages()
    share = torch.tensor([0.5, 0.0, 0.5]).to(dtype).expand(H, B, A)
    noise = (normal(1, H, B, J, A) * size).to(dtype)
    noise[..., 1] = noise[..., 1].abs() + 2  # as if it were the likeliest
    small(dynamics, num_iterations=1)(normal(B, A).to(dtype), initial_mean=share, noise=noise)
    assert dynamics.tried[0][..., 1].sum() == 0
    assert is_one_hot(dynamics.tried[0])


@pytest.mark.parametrize("least", [0.02, 0.2])
def test_no_probability_falls_below_the_floor_and_they_still_add_up(least):
    plan = small(num_iterations=10, min_probability=least)(100 * normal(B, A), noise=normal(10, H, B, J, A))
    assert float(plan.mean.min()) >= least - 1e-9
    assert float(plan.mean.max()) <= 1 - 2 * least + 1e-9
    close(plan.mean.sum(-1), torch.ones(H, B).double())
    close(plan.std, (plan.mean * (1 - plan.mean)).sqrt())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_where_fewer_than_num_elites_returns_are_finite_those_alone_are_counted(bad):
    finite = torch.arange(J) < 3
    dynamics = Wages(lambda returns: returns.where(finite, bad))
    plan = small(dynamics, num_iterations=1)(normal(B, A), noise=normal(1, H, B, J, A))
    close(plan.mean, dynamics.tried[0][:, :, :3].mean(2))
    close(plan.value, dynamics.returns[0][:, :3].mean(1))


def test_the_action_is_the_likeliest_first_choice_even_where_nothing_could_be_evaluated():
    share = torch.tensor([0.2, 0.3, 0.5]).double().expand(H, B, A)
    plan = small(Wages(lambda returns: returns * math.nan))(normal(B, A), initial_mean=share)
    assert plan.valid.tolist() == [False] * B
    assert plan.action.tolist() == [[0.0, 0.0, 1.0]] * B


# Executing and exploring


def test_clip_returns_the_nearest_one_hot_vector():
    action = torch.tensor([[0.1, 0.9, 0.3], [-1.0, -3.0, -0.5], [7.0, 6.0, 0.0]])
    assert small().clip(action).tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert small().clip(action[None, None]).shape == (1, 1, 3, 3)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_exploring_makes_a_uniformly_random_choice_with_the_given_probability(scale, recorded):
    number = 30000
    action = torch.eye(A)[torch.arange(number) % A]
    noise = normal(number, A).float() if recorded else None
    executed = small().explore(action, scale, noise)
    assert is_one_hot(executed)
    for start in range(A):
        shares = executed[start::A].mean(0)
        expected = torch.full((A,), scale / A)
        expected[start] += 1 - scale
        close(shares, expected, atol=0.018, rtol=0.0)  # five standard deviations of a share of 10,000
    if scale == 0.0:
        assert torch.equal(executed, action)


def test_exploring_replays_recorded_noise_and_draws_anew_without():
    action, noise = torch.eye(A).repeat(50, 1), normal(150, A).float()
    copy = action.clone()
    one, again = (small().explore(action, 0.5, noise) for _ in range(2))
    assert torch.equal(one, again)
    assert torch.equal(action, copy)
    assert not torch.equal(small().explore(action, 0.5, None), small().explore(action, 0.5, None))
    alone = small().explore(action[3:4], 0.5, noise[3:4])
    assert torch.equal(alone, one[3:4])


def test_it_has_one_action_dimension_for_each_choice():
    assert small().action_dim == A
    assert small(num_actions=5).action_dim == 5


# Messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_actions": 1}, r"num_actions must be .*got 1"),
        ({"num_actions": 0}, r"num_actions must be .*got 0"),
        ({"num_elites": 31}, r"num_elites must be .*got 31"),
        ({"num_elites": 0}, r"num_elites must be .*got 0"),
        ({"horizon": 0}, r"horizon must be .*got 0"),
        ({"num_candidates": 0}, r"num_candidates must be .*got 0"),
        ({"num_iterations": 0}, r"num_iterations must be .*got 0"),
        ({"num_particles": 0}, r"num_particles must be .*got 0"),
        ({"min_probability": -0.1}, r"min_probability must be .*got -0.1"),
        ({"min_probability": 0.5}, r"min_probability must be .*got 0.5"),
        ({"min_probability": math.nan}, r"min_probability must be .*got nan"),
        ({"momentum": 1.0}, r"momentum must be .*got 1.0"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
