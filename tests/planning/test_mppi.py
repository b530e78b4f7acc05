"""The MPPI planner: its weights by hand, its limits, and what it does where the weights say nothing."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from planet_lib.planning import MPPIPlanner

ITERATIONS, H, B, J, A = 3, 4, 2, 25, 2
LOW, HIGH = np.array([-1.0, 0.0]), np.array([2.0, 0.5])
MIDDLE, HALF = (LOW + HIGH) / 2, (HIGH - LOW) / 2


class Target:
    """return = -|actions - state|^2, where state is [B, A]."""

    def rollout(self, state, actions, noise=None):
        return -(actions - state[:, None]).square().sum((0, -1))


class Given:
    """The same returns [B, J], whatever is tried; it keeps what was tried."""

    def __init__(self, returns):
        self.returns, self.tried = torch.as_tensor(returns).double(), []

    def rollout(self, state, actions, noise=None):
        self.tried.append(actions)
        return self.returns


def small(dynamics=None, low=LOW, high=HIGH, **changes) -> MPPIPlanner:
    given = {"horizon": H, "num_candidates": J, "num_iterations": ITERATIONS, **changes}
    return MPPIPlanner(dynamics or Target(), low, high, **given)


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got, expected, **tolerance):
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), **tolerance)


# The formulas


def weights_of(returns, temperature) -> np.ndarray:
    finite = np.isfinite(returns)
    best, deviation = returns[finite].max(), returns[finite].std()
    weight = np.zeros(len(returns))
    weight[finite] = np.exp((returns[finite] - best) / (temperature * deviation))
    return weight / weight.sum()


def by_hand(target, noise, *, temperature=0.5, noise_std=0.5, adapt_std=False, min_std=0.0):
    """One environment's plan from noise [I, H, J, A], by the description alone."""
    mean, std = np.tile(MIDDLE, (H, 1)), np.tile(noise_std * HALF, (H, 1))
    for i in range(ITERATIONS):
        tried = np.clip(mean[:, None] + std[:, None] * noise[i], LOW, HIGH)
        returns = -((tried - target) ** 2).sum((0, 2))
        weight = weights_of(returns, temperature)[:, None]
        mean = (weight * tried).sum(1)
        if adapt_std:
            std = np.maximum(np.sqrt((weight * (tried - mean[:, None]) ** 2).sum(1)), min_std)
    return mean, std, (weight[:, 0] * returns).sum()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.05},
        {"temperature": 20.0},
        {"noise_std": 1.3},
        {"adapt_std": True},
        {"adapt_std": True, "min_std": 0.2},
    ],
)
def test_a_plan_agrees_with_the_description_by_hand(changes):
    target, noise = normal(B, A), normal(ITERATIONS, H, B, J, A, seed=1)
    plan = small(**changes)(target, noise=noise)
    for row in range(B):
        mean, std, value = by_hand(target[row].numpy(), noise[:, :, row].numpy(), **changes)
        close(plan.mean[:, row], mean)
        close(plan.std[:, row], std)
        close(plan.value[row], value)
    assert torch.equal(plan.action, plan.mean[0])


def test_the_weights_of_four_candidates_by_hand():
    # Returns 0, 1, 2, 5: mean 2, standard deviation sqrt(14 / 4); the candidates are 0, 1, 2, 3 tenths.
    noise = torch.tensor([0.0, 0.1, 0.2, 0.3]).double().reshape(1, 1, 1, 4, 1)
    planner = MPPIPlanner(
        Given([[0.0, 1.0, 2.0, 5.0]]), [-1.0], [1.0], horizon=1, num_candidates=4, num_iterations=1, noise_std=1.0,
        temperature=1.0,
    )  # fmt: skip
    plan = planner(torch.zeros(1, 1).double(), noise=noise)
    powers = [math.exp(-gap / math.sqrt(3.5)) for gap in (5.0, 4.0, 3.0, 0.0)]
    close(plan.mean.item(), (0.1 * powers[1] + 0.2 * powers[2] + 0.3 * powers[3]) / sum(powers))
    close(plan.value.item(), (powers[1] + 2 * powers[2] + 5 * powers[3]) / sum(powers))


# The limits


def test_the_coldest_takes_the_best_and_the_hottest_the_mean():
    state, noise = normal(B, A), normal(1, H, B, J, A, seed=1)
    tried = (torch.from_numpy(MIDDLE) + 0.5 * torch.from_numpy(HALF) * noise[0]).clamp(
        torch.from_numpy(LOW), torch.from_numpy(HIGH)
    )
    returns = Target().rollout(state, tried)
    cold = small(num_iterations=1, temperature=1e-6)(state, noise=noise)
    hot = small(num_iterations=1, temperature=1e9)(state, noise=noise)
    for row in range(B):
        close(cold.mean[:, row], tried[:, row, returns[row].argmax()])
    close(cold.value, returns.amax(1))
    close(hot.mean, tried.mean(2))
    close(hot.value, returns.mean(1))


@pytest.mark.parametrize("level", [0.0, -3.0, 1e8])
def test_where_all_returns_are_equal_all_candidates_weigh_the_same(level):
    dynamics = Given(torch.full((B, J), level))
    plan = small(dynamics, num_iterations=1, adapt_std=True)(normal(B, A), noise=normal(1, H, B, J, A))
    close(plan.mean, dynamics.tried[0].mean(2))
    close(plan.std, dynamics.tried[0].std(2, correction=0))
    close(plan.value, torch.full((B,), level).double())
    assert plan.valid.tolist() == [True] * B


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_returns_of_any_size_are_weighed_in_float32(unit):
    state, noise = normal(B, A).float(), normal(ITERATIONS, H, B, J, A, seed=1).float()
    plain, plan = (small(Given(normal(B, J) * scale))(state, noise=noise) for scale in (1.0, unit))
    close(plan.mean, plain.mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_returns_that_are_not_finite_have_no_weight_and_no_part_in_the_deviation(bad):
    returns = normal(B, J).numpy()
    returns[:, ::3] = bad
    dynamics = Given(returns)
    plan = small(dynamics, num_iterations=1, adapt_std=True)(normal(B, A), noise=normal(1, H, B, J, A, seed=1))
    for row in range(B):
        weight = weights_of(returns[row], 0.5)
        tried = dynamics.tried[0][:, row].numpy()
        close(plan.mean[:, row], np.einsum("j,hja->ha", weight, tried))
        close(plan.value[row], np.nansum(weight * np.where(np.isfinite(returns[row]), returns[row], 0.0)))


def test_a_single_finite_return_decides_alone():
    returns = torch.full((B, J), math.nan)
    returns[:, 7] = 3.0
    dynamics = Given(returns)
    plan = small(dynamics, num_iterations=1, adapt_std=True, min_std=0.1)(normal(B, A), noise=normal(1, H, B, J, A))
    close(plan.mean, dynamics.tried[0][:, :, 7])
    close(plan.std, torch.full((H, B, A), 0.1).double())
    close(plan.value, torch.full((B,), 3.0).double())


# The deviation and the noise


def test_the_deviation_stays_unless_it_is_fitted():
    plan = small(noise_std=0.4)(normal(B, A), noise=normal(ITERATIONS, H, B, J, A))
    close(plan.std, torch.from_numpy(0.4 * HALF).expand(H, B, A))
    fitted = small(noise_std=0.4, adapt_std=True, temperature=0.1)(normal(B, A), noise=normal(ITERATIONS, H, B, J, A))
    assert bool((fitted.std < 0.8 * plan.std).all())


def test_the_noise_can_be_coloured_and_keeps_its_variance():
    white, pink = (Given(torch.zeros(1, 4000)) for _ in range(2))
    for dynamics, beta in ((white, 0.0), (pink, 2.0)):
        planner = MPPIPlanner(
            dynamics, [-math.inf], [math.inf], horizon=12, num_candidates=4000, num_iterations=1, noise_beta=beta
        )
        planner(torch.zeros(1, 1), generator=torch.Generator().manual_seed(0))
    for dynamics in (white, pink):
        close(dynamics.tried[0].std(2).flatten(), torch.full((12,), 0.5), rtol=0.05, atol=0.0)
    tried = pink.tried[0][:, 0, :, 0] / 0.5
    power = torch.fft.rfft(tried, dim=0).abs().square().mean(1)[1:]
    close(power / power[0], torch.arange(1.0, 7.0) ** -2, rtol=0.15, atol=0.0)
    tried = white.tried[0][:, 0, :, 0]
    assert float((tried[:-1] * tried[1:]).mean().abs()) < 0.01


# Messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, r"horizon must be .*got 0"),
        ({"num_candidates": 0}, r"num_candidates must be .*got 0"),
        ({"num_iterations": 0}, r"num_iterations must be .*got 0"),
        ({"num_particles": 0}, r"num_particles must be .*got 0"),
        ({"temperature": 0.0}, r"temperature must be .*got 0.0"),
        ({"temperature": -1.0}, r"temperature must be .*got -1.0"),
        ({"temperature": math.nan}, r"temperature must be .*got nan"),
        ({"noise_std": 0.0}, r"noise_std must be .*got 0.0"),
        ({"noise_std": math.inf}, r"noise_std must be .*got inf"),
        ({"noise_beta": -0.5}, r"noise_beta must be .*got -0.5"),
        ({"min_std": math.nan}, r"min_std must be .*got nan"),
        ({"low": 3.0}, r"low must be less than high in every dimension"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
