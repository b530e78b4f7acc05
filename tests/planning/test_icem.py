"""The iCEM planner against its description, computed by hand in NumPy, and what it tries."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from planet_lib.planning import ICEMPlanner

ITERATIONS, H, B, J, K, A = 3, 5, 2, 30, 6, 2
LOW, HIGH = np.array([-1.0, 0.0]), np.array([2.0, 0.5])
MIDDLE, HALF = (LOW + HIGH) / 2, (HIGH - LOW) / 2


class Target:
    """return = -sum_t t |action_t - state|^2, where state is [B, A]."""

    def rollout(self, state, actions, noise=None):
        weight = torch.arange(1.0, 1 + len(actions), dtype=actions.dtype)
        return -((actions - state[:, None]).square().sum(-1) * weight[:, None, None]).sum(0)


class Recorded(Target):
    def __init__(self, change=lambda returns: returns):
        self.change, self.tried, self.returns = change, [], []

    def rollout(self, state, actions, noise=None):
        self.tried.append(actions)
        self.returns.append(self.change(super().rollout(state, actions)))
        return self.returns[-1]


def small(dynamics=None, low=LOW, high=HIGH, **changes) -> ICEMPlanner:
    given = {
        "horizon": H,
        "num_candidates": J,
        "num_elites": K,
        "num_iterations": ITERATIONS,
        "noise_beta": 0.0,
        **changes,
    }
    return ICEMPlanner(dynamics or Target(), low, high, **given)


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got, expected, **tolerance):
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), **tolerance)


# The formulas


def by_hand(target, noise, kept=(), start=None, *, momentum=0.1, keep=0.3, decay=1.25, initial_std=1.0):
    """One environment's plan, from white noise [I, H, J, A], and the elites it keeps, by the description alone."""
    weight = np.arange(1.0, H + 1)
    mean = np.tile(MIDDLE, (H, 1)) if start is None else start
    std = np.tile(initial_std * HALF, (H, 1))
    spread = []
    for i in range(ITERATIONS):
        count = max(math.floor(J / decay**i), 2 * K)
        tried = [np.clip(mean + std * noise[i, :, j], LOW, HIGH) for j in range(count)] + list(kept)
        if i == ITERATIONS - 1:
            tried.append(mean)
        returns = [-(weight * ((actions - target) ** 2).sum(1)).sum() for actions in tried]
        best = [tried[j] for j in np.argsort(returns)[::-1][:K]]
        kept = best[: math.ceil(keep * K)]
        elites = np.stack(best)
        mean = (1 - momentum) * elites.mean(0) + momentum * mean
        std = (1 - momentum) * elites.std(0) + momentum * std
        spread.append(elites.std(0))
    return {
        "action": best[0][0],
        "mean": mean,
        "std": std,
        "value": max(returns),
        "elites": np.stack(kept, 1),
        "spread": np.stack(spread),
    }


@pytest.mark.parametrize(
    "changes", [{}, {"momentum": 0.4}, {"keep_fraction": 0.9}, {"decay": 3.0}, {"initial_std": 0.5}, {"decay": 1.0}]
)
def test_two_plans_in_a_row_agree_with_the_description_by_hand(changes):
    targets, noise = normal(2, B, A), normal(2, ITERATIONS, H, B, J, A, seed=1)
    planner = small(**changes)
    changes = {{"keep_fraction": "keep"}.get(key, key): value for key, value in changes.items()}
    cold = planner(targets[0], noise=noise[0], with_spread=True)
    warm = planner(targets[1], previous=cold, noise=noise[1], with_spread=True)
    for row in range(B):
        first = by_hand(targets[0, row].numpy(), noise[0, :, :, row].numpy(), **changes)
        moved = [np.concatenate([elite[1:], [MIDDLE]]) for elite in first["elites"].swapaxes(0, 1)]
        start = np.concatenate([first["mean"][1:], [MIDDLE]])
        second = by_hand(targets[1, row].numpy(), noise[1, :, :, row].numpy(), moved, start, **changes)
        for plan, expected in ((cold, first), (warm, second)):
            close(plan.action[row], expected["action"])
            close(plan.mean[:, row], expected["mean"])
            close(plan.std[:, row], expected["std"])
            close(plan.value[row], expected["value"])
            close(plan.elites[:, row], expected["elites"])
            close(plan.spread[:, :, row], expected["spread"])


def test_the_plan_is_the_best_that_the_last_iteration_tried():
    dynamics = Recorded()
    plan = small(dynamics)(normal(B, A), noise=normal(ITERATIONS, H, B, J, A, seed=1))
    best = dynamics.returns[-1].argmax(1)
    for row in range(B):
        close(plan.action[row], dynamics.tried[-1][0, row, best[row]])
        close(plan.elites[:, row, 0], dynamics.tried[-1][:, row, best[row]])
    close(plan.value, dynamics.returns[-1].amax(1))


@pytest.mark.parametrize("momentum", [0.0, 0.4])
@pytest.mark.parametrize(("floor", "deviation"), [(0.3, "std"), (0.0, "mad")])
def test_the_deviation_has_a_floor_in_units_of_the_action_or_is_the_mean_absolute_one(floor, deviation, momentum):
    dynamics, noise = Recorded(), normal(1, H, B, J, A)
    planner = small(dynamics, num_iterations=1, momentum=momentum, min_std=floor, deviation=deviation, initial_std=0.4)
    plan = planner(normal(B, A), noise=noise)
    for row in range(B):
        best = dynamics.returns[0][row].argsort(descending=True)[:K]
        elites = dynamics.tried[0][:, row, best].numpy()
        absolute = np.abs(elites - elites.mean(1, keepdims=True)).mean(1)
        fit = elites.std(1) if deviation == "std" else absolute
        close(plan.std[:, row], np.maximum((1 - momentum) * fit + momentum * 0.4 * HALF, floor))


# How many are tried, and which


@pytest.mark.parametrize(
    ("changes", "fresh"),
    [
        ({}, [30, 24, 19]),  # 30, 24, 19.2
        ({"num_iterations": 6}, [30, 24, 19, 15, 12, 12]),  # never fewer than twice the elites
        ({"decay": 1.0}, [30, 30, 30]),
        ({"num_candidates": 8}, [8, 8, 8]),  # twice the elites would be more than there are
    ],
)
def test_the_number_of_new_candidates_shrinks(changes, fresh):
    dynamics = Recorded()
    planner = small(dynamics, **changes)
    planner(normal(B, A))
    # Two of the six elites are tried again, and the last iteration tries the mean.
    again = [0] + [2] * (len(fresh) - 1)
    mean = [0] * (len(fresh) - 1) + [1]
    assert [actions.shape[2] for actions in dynamics.tried] == [sum(n) for n in zip(fresh, again, mean, strict=True)]
    assert planner.num_rollouts == tuple(n + 2 + last for n, last in zip(fresh, mean, strict=True))


def is_among(sequence, tried) -> bool:
    """Whether the sequence [H, A] is one of those tried [H, J, A]."""
    return bool(((tried - sequence[:, None]).abs() < 1e-12).all(-1).all(0).any())


def test_the_best_of_an_iteration_are_tried_again_in_the_next():
    dynamics = Recorded()
    small(dynamics, noise_beta=2.0, keep_fraction=0.5)(normal(B, A), noise=normal(ITERATIONS, H, B, J, A, seed=1))
    for i in range(ITERATIONS - 1):
        for row in range(B):
            order = dynamics.returns[i][row].argsort(descending=True)
            again = [is_among(dynamics.tried[i][:, row, j], dynamics.tried[i + 1][:, row]) for j in order]
            assert again[:5] == [True, True, True, False, False]


def test_the_best_of_a_plan_are_moved_on_and_tried_first_in_the_next_but_not_where_an_episode_begins():
    dynamics, state = Recorded(), normal(B, A)
    planner = small(dynamics, noise_beta=2.0)
    first = planner(state, noise=normal(ITERATIONS, H, B, J, A, seed=1))
    assert first.elites.shape == (H, B, 2, A)
    dynamics.tried.clear()
    planner(state, previous=first, is_first=torch.tensor([False, True]), noise=normal(ITERATIONS, H, B, J, A, seed=2))
    for k in range(2):
        moved = first.elites[1:, :, k]
        assert is_among(moved[:, 0], dynamics.tried[0][:-1, 0])
        assert not is_among(moved[:, 1], dynamics.tried[0][:-1, 1])


def test_the_last_iteration_tries_the_mean():
    dynamics, noise = Recorded(), normal(ITERATIONS, H, B, J, A, seed=1)
    # So narrow that the mean, tried by the shorter one too, is no elite there and changes nothing.
    small(dynamics, initial_std=0.5)(normal(B, A), noise=noise)
    shorter = small(num_iterations=ITERATIONS - 1, initial_std=0.5)(normal(B, A), noise=noise[:-1])
    for row in range(B):
        assert is_among(shorter.mean[:, row], dynamics.tried[-1][:, row])
        assert not is_among(torch.as_tensor(np.tile(MIDDLE, (H, 1))), dynamics.tried[0][:, row])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_fewer_finite_returns_than_elites_leave_no_trace_of_the_others(bad):
    one = Recorded(lambda returns: returns.where(torch.arange(returns.shape[1]) == 3, bad))
    planner = small(one, num_iterations=1, momentum=0.0, keep_fraction=0.5)
    plan = planner(normal(B, A), noise=normal(1, H, B, J, A, seed=1))
    only = one.tried[0][:, :, 3]
    close(plan.mean, only)
    close(plan.std, torch.zeros_like(only))
    close(plan.action, only[0])
    close(plan.elites[:, :, 0], only)
    # The missing elites are not tried again as if they were something, and harm nothing.
    healthy = small(Recorded(), num_iterations=2, keep_fraction=0.5)
    again = healthy(normal(B, A), previous=plan, noise=normal(2, H, B, J, A, seed=2))
    assert again.valid.tolist() == [True] * B
    assert all(bool(actions.isfinite().all()) for actions in healthy.dynamics.tried)
    assert bool(again.mean.isfinite().all())
    assert bool(again.elites.isfinite().all())


def test_a_plan_that_keeps_another_number_of_elites_is_named():
    previous = small(keep_fraction=0.9)(normal(B, A))
    with pytest.raises(ValueError, match=r"previous.elites must be \[H, B, .*, A\] with .*got \[5, 2, 6, 2\]"):
        small()(normal(B, A), previous=previous)


# The coloured noise


def colouring(beta: float, horizon: int) -> np.ndarray:
    """The matrix that turns white noise over time into the planner's, read off from what it tries."""
    dynamics = Recorded()
    planner = ICEMPlanner(
        dynamics, [-math.inf], [math.inf], horizon=horizon, num_candidates=horizon, num_elites=1, num_iterations=1,
        initial_std=1.0, noise_beta=beta,
    )  # fmt: skip
    planner(torch.zeros(1, 1).double(), noise=torch.eye(horizon).double().reshape(1, horizon, 1, horizon, 1))
    return dynamics.tried[0][:, 0, :horizon, 0].numpy()


@pytest.mark.parametrize("horizon", [2, 3, 8, 12, 13])
@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0, 4.0])
def test_every_step_of_the_noise_has_unit_variance_whatever_its_colour(beta, horizon):
    matrix = colouring(beta, horizon)
    close((matrix**2).sum(1), np.ones(horizon))


@pytest.mark.parametrize("horizon", [8, 12, 13])
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 4.0])
def test_the_power_of_the_noise_falls_with_frequency(beta, horizon):
    power = (np.abs(np.fft.rfft(colouring(beta, horizon), axis=0)) ** 2).sum(1)
    frequency = np.arange(1, len(power))
    close(power[1:] / power[1], frequency**-beta)


def test_without_colour_the_noise_is_what_was_given():
    close(colouring(0.0, 9), np.eye(9))


def test_the_noise_is_coloured_over_time_alone_and_for_every_candidate():
    beta, dynamics, noise = 2.0, Recorded(), normal(1, H, B, J, A)
    unbounded = [-math.inf] * A, [math.inf] * A
    small(dynamics, *unbounded, noise_beta=beta, num_iterations=1, initial_std=1.0)(normal(B, A), noise=noise)
    matrix = torch.from_numpy(colouring(beta, H))
    close(dynamics.tried[0][:, :, :J], torch.einsum("th,hbja->tbja", matrix, noise[0]))


def test_what_it_tries_changes_slowly():
    dynamics = Recorded()
    unbounded = [-math.inf] * A, [math.inf] * A
    planner = small(dynamics, *unbounded, noise_beta=2.0, horizon=12, num_candidates=4000, num_iterations=1)
    planner(torch.zeros(1, A).double(), generator=torch.Generator().manual_seed(0))
    tried = dynamics.tried[0][:, 0, :4000]  # in units of the first deviation
    close(tried.std(1), torch.ones(12, A).double(), rtol=0.05, atol=0.0)
    next_to_it = (tried[:-1] * tried[1:]).mean((1, 2))
    assert bool((next_to_it > 0.6).all())
    white = small(Recorded(), *unbounded, horizon=12, num_candidates=4000, num_iterations=1)
    white(torch.zeros(1, A).double(), generator=torch.Generator().manual_seed(0))
    tried = white.dynamics.tried[0][:, 0, :4000]
    assert bool(((tried[:-1] * tried[1:]).mean((1, 2)).abs() < 0.06).all())


def test_a_horizon_of_one_has_no_colour():
    close(colouring(2.0, 1), np.ones((1, 1)))


# Messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_elites": 31}, r"num_elites must be .*got 31"),
        ({"num_elites": 0}, r"num_elites must be .*got 0"),
        ({"horizon": 0}, r"horizon must be .*got 0"),
        ({"num_candidates": 0}, r"num_candidates must be .*got 0"),
        ({"num_iterations": 0}, r"num_iterations must be .*got 0"),
        ({"num_particles": 0}, r"num_particles must be .*got 0"),
        ({"noise_beta": -1.0}, r"noise_beta must be .*got -1.0"),
        ({"noise_beta": math.nan}, r"noise_beta must be .*got nan"),
        ({"decay": 0.9}, r"decay must be .*got 0.9"),
        ({"decay": math.nan}, r"decay must be .*got nan"),
        ({"keep_fraction": 1.1}, r"keep_fraction must be .*got 1.1"),
        ({"keep_fraction": -0.1}, r"keep_fraction must be .*got -0.1"),
        ({"momentum": 1.0}, r"momentum must be .*got 1.0"),
        ({"momentum": -0.1}, r"momentum must be .*got -0.1"),
        ({"initial_std": 0.0}, r"initial_std must be .*got 0.0"),
        ({"initial_std": math.inf}, r"initial_std must be .*got inf"),
        ({"min_std": -1.0}, r"min_std must be .*got -1.0"),
        ({"sampling": "reflect"}, r"sampling must be one of clip, truncate, got 'reflect'"),
        ({"deviation": "var"}, r"deviation must be one of std, mad, got 'var'"),
        ({"low": 3.0}, r"low must be less than high in every dimension"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
