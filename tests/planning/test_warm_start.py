"""Starting from the plan of the step before: what is moved on, what starts afresh, and who is told what is wrong."""

import math

import pytest
import torch
from torch import Tensor

from planet_lib.planning import (
    CEMPlanner,
    DiscreteCEMPlanner,
    ICEMPlanner,
    MPPIPlanner,
    Planner,
    RandomShootingPlanner,
)
from planet_lib.types import Plan

ITERATIONS, H, B, J, K, A = 2, 4, 3, 20, 5, 2
SIZES = {"horizon": H, "num_candidates": J, "num_iterations": ITERATIONS}
LOW, HIGH = [-1.0, 2.0], [3.0, 4.0]
MIDDLE, HALF = torch.tensor([1.0, 3.0]).double(), torch.tensor([2.0, 1.0]).double()

# The planner, and what its deviation is at first in units of half the box (None: it has none to start from).
PLANNERS = {
    "cem": (lambda dynamics: CEMPlanner(dynamics, LOW, HIGH, num_elites=K, **SIZES), 1.0),
    "cem_wide": (lambda dynamics: CEMPlanner(dynamics, LOW, HIGH, num_elites=K, initial_std=0.3, **SIZES), 0.3),
    "icem": (lambda dynamics: ICEMPlanner(dynamics, LOW, HIGH, num_elites=K, **SIZES), 1.0),
    "mppi": (lambda dynamics: MPPIPlanner(dynamics, LOW, HIGH, **SIZES), 0.5),
    "mppi_adapt": (lambda dynamics: MPPIPlanner(dynamics, LOW, HIGH, noise_std=0.4, adapt_std=True, **SIZES), 0.4),
    "shooting": (lambda dynamics: RandomShootingPlanner(dynamics, LOW, HIGH, **SIZES), None),
}
every_boxed_planner = pytest.mark.parametrize("name", PLANNERS)
every_planner = pytest.mark.parametrize("name", [*PLANNERS, "discrete"])


class Target:
    """return = -|actions - state|^2, where state is [B, A]."""

    def rollout(self, state, actions, noise=None):
        return -(actions - state[:, None]).square().sum((0, -1))


class Recorded(Target):
    def __init__(self):
        self.tried = []

    def rollout(self, state, actions, noise=None):
        self.tried.append(actions)
        return super().rollout(state, actions)


class Hopeless:
    """Nothing can be evaluated, so that a plan stays where it started."""

    def rollout(self, state, actions, noise=None):
        return torch.full(actions.shape[1:3], math.nan, dtype=actions.dtype)


def make(name, dynamics=None) -> Planner:
    if name == "discrete":
        return DiscreteCEMPlanner(dynamics or Target(), A, num_elites=K, **SIZES)
    return PLANNERS[name][0](dynamics or Target())


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def earlier(name) -> Plan:
    """A plan whose means differ at every step and in every row; the discrete one's are probabilities."""
    planner = make(name)
    share = torch.linspace(0.1, 0.9, H * B).double().reshape(H, B, 1)
    mean = torch.cat([share, 1 - share], -1)
    if name != "discrete":
        mean = MIDDLE + (mean - 0.5) * 2 * HALF
    plan = planner(normal(B, A), noise=normal(ITERATIONS, H, B, J, A))
    return plan._replace(action=mean[0], mean=mean, valid=torch.ones(B, dtype=torch.bool))


def middle(name) -> Tensor:
    return torch.full((A,), 0.5).double() if name == "discrete" else MIDDLE


def resumed(name, mean) -> Tensor:
    """Where a search goes on from an earlier mean: there, but of one-hot actions half of each probability is even."""
    return (mean + 0.5) / 2 if name == "discrete" else mean


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# What is moved on


@every_planner
def test_the_mean_is_moved_on_by_one_step_and_the_last_action_is_the_middle(name):
    previous = earlier(name)
    plan = make(name, Hopeless())(normal(B, A), previous=previous)
    close(plan.mean[:-1], resumed(name, previous.mean[1:]))
    close(plan.mean[-1], middle(name).expand(B, A))
    assert plan.valid.tolist() == [False] * B
    assert bool(plan.value.isnan().all())


@every_boxed_planner
def test_how_widely_it_searches_starts_afresh(name):
    previous = earlier(name)
    narrow = previous._replace(std=previous.std * 1e-6)
    plan = make(name, Hopeless())(normal(B, A), previous=narrow)
    if PLANNERS[name][1] is not None:
        close(plan.std, (PLANNERS[name][1] * HALF).expand(H, B, A))
    noise = normal(ITERATIONS, H, B, J, A)
    one, other = (make(name)(normal(B, A), previous=plan, noise=noise) for plan in (previous, narrow))
    close(one.mean, other.mean)


@pytest.mark.parametrize("name", ["cem", "cem_wide", "icem", "mppi", "mppi_adapt"])
def test_the_candidates_stand_around_the_moved_mean(name):
    previous, dynamics = earlier(name)._replace(elites=None), Recorded()
    make(name, dynamics)(normal(B, A), previous=previous, noise=torch.zeros(ITERATIONS, H, B, J, A).double())
    start = torch.cat([previous.mean[1:], MIDDLE.expand(1, B, A)])
    close(dynamics.tried[0][:, :, :J], start.unsqueeze(2).expand(H, B, J, A))


def test_shooting_tries_the_moved_plan_and_keeps_it_where_it_is_the_best():
    previous = earlier("shooting")
    start = torch.cat([previous.mean[1:], MIDDLE.expand(1, B, A)])

    class Faithful(Recorded):
        def rollout(self, state, actions, noise=None):
            self.tried.append(actions)
            return -(actions - start.unsqueeze(2)).square().sum((0, -1))

    dynamics = Faithful()
    plan = make("shooting", dynamics)(normal(B, A), previous=previous, noise=normal(ITERATIONS, H, B, J, A))
    assert bool((dynamics.tried[0] == start.unsqueeze(2)).all(-1).all(0).any(-1).all())
    close(plan.mean, start)
    close(plan.value, torch.zeros(B).double())


def test_a_discrete_plan_that_was_sure_can_change_its_mind():
    # What the first plan gave up (its probabilities are 0 and 1) is the best of the second step.
    first = make("discrete")(torch.tensor([[50.0, 0.0]]).double(), noise=normal(ITERATIONS, H, 1, J, A))
    assert first.mean[1:, 0].tolist() == [[1.0, 0.0]] * (H - 1)
    second = make("discrete")(
        torch.tensor([[0.0, 50.0]]).double(), previous=first, noise=normal(ITERATIONS, H, 1, J, A, seed=1)
    )
    assert second.action.tolist() == [[0.0, 1.0]]


# What starts afresh


@every_planner
def test_the_rows_that_begin_start_from_the_middle(name):
    previous, is_first = earlier(name), torch.tensor([True, False, True])
    plan = make(name, Hopeless())(normal(B, A), previous=previous, is_first=is_first)
    close(plan.mean[:, [0, 2]], middle(name).expand(H, 2, A))
    close(plan.mean[:-1, 1], resumed(name, previous.mean[1:, 1]))
    noise = normal(ITERATIONS, H, B, J, A)
    fresh = make(name)(normal(B, A), noise=noise)
    warm = make(name)(normal(B, A), previous=previous, noise=noise)
    mixed = make(name)(normal(B, A), previous=previous, is_first=is_first, noise=noise)
    close(mixed.mean, torch.where(is_first[:, None], fresh.mean, warm.mean))
    close(mixed.action, torch.where(is_first[:, None], fresh.action, warm.action))
    close(mixed.value, torch.where(is_first, fresh.value, warm.value))


@every_planner
def test_the_rows_whose_plan_was_not_valid_start_from_the_middle(name):
    previous = earlier(name)._replace(valid=torch.tensor([True, True, False]))
    plan = make(name, Hopeless())(normal(B, A), previous=previous)
    close(plan.mean[:, 2], middle(name).expand(H, A))
    close(plan.mean[:-1, :2], resumed(name, previous.mean[1:, :2]))


@every_planner
def test_numbers_that_are_none_in_a_row_that_starts_afresh_do_no_harm(name):
    previous, noise = earlier(name), normal(ITERATIONS, H, B, J, A)
    row = torch.tensor([1])
    spoilt = previous._replace(
        mean=previous.mean.index_fill(1, row, math.nan),
        std=previous.std.index_fill(1, row, math.nan),
        valid=torch.tensor([True, False, True]),
        elites=None if previous.elites is None else previous.elites.index_fill(1, row, math.nan),
    )
    plan = make(name)(normal(B, A), previous=spoilt, noise=noise)
    close(plan.mean[:, 1], make(name)(normal(B, A), noise=noise).mean[:, 1])
    close(plan.mean[:, [0, 2]], make(name)(normal(B, A), previous=previous, noise=noise).mean[:, [0, 2]])
    assert plan.valid.tolist() == [True] * B


@every_planner
def test_a_first_call_with_no_plan_before_it_may_say_so(name):
    noise = normal(ITERATIONS, H, B, J, A)
    plain = make(name)(normal(B, A), noise=noise)
    said = make(name)(normal(B, A), previous=None, is_first=torch.ones(B, dtype=torch.bool), noise=noise)
    assert torch.equal(said.mean, plain.mean)


@every_planner
def test_a_plan_of_another_planner_will_do(name):
    for other in ("icem", "cem", "shooting"):
        if name != "discrete":
            assert make(name)(normal(B, A), previous=earlier(other)).valid.tolist() == [True] * B


@every_planner
def test_with_a_horizon_of_one_nothing_is_left_to_move_on(name):
    kind = type(make(name))
    box = (A,) if name == "discrete" else (LOW, HIGH)
    elites = {} if kind in (MPPIPlanner, RandomShootingPlanner) else {"num_elites": K}
    planner = kind(Hopeless(), *box, horizon=1, num_candidates=J, num_iterations=1, **elites)
    first = planner(normal(B, A))._replace(valid=torch.ones(B, dtype=torch.bool))
    close(planner(normal(B, A), previous=first).mean, middle(name).expand(1, B, A))


# What it is good for


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (CEMPlanner, {"num_elites": 8, "initial_std": 0.5}),
        (ICEMPlanner, {"num_elites": 8, "noise_beta": 0.0, "initial_std": 0.5}),
        (MPPIPlanner, {"temperature": 0.2, "adapt_std": True}),
    ],
)
def test_small_searches_that_go_on_from_each_other_come_nearer_than_those_that_start_anew(kind, given):
    # What is best jumps to and fro: a plan that is not moved on would be a hindrance.
    best = 0.8 * torch.tensor([1.0, -1.0, -1.0, 1.0, -0.5]).double().repeat(6)

    class Track:  # return = -|actions - what is best from now on|^2, where state [B, 1] is the time
        def rollout(self, state, actions, noise=None):
            wanted = best[state.long().T + torch.arange(len(actions))[:, None]]  # [H, B]
            return -(actions[..., 0] - wanted[:, :, None]).square().sum(0)

    planner = kind(Track(), [-1.0], [1.0], horizon=8, num_candidates=60, num_iterations=2, **given)
    wrong = {"warm": 0.0, "cold": 0.0}
    for start in wrong:
        generator, previous = torch.Generator().manual_seed(0), None
        for t in range(20):
            state = torch.full((20, 1), t).double()
            previous = planner(state, previous=previous if start == "warm" else None, generator=generator)
            wrong[start] += (previous.action[:, 0] - best[t]).abs() / 20
    assert bool((wrong["warm"] < 0.6 * wrong["cold"]).all())


# Messages


@every_planner
def test_a_plan_and_a_mean_to_start_from_are_one_too_many(name):
    previous = earlier(name)
    with pytest.raises(ValueError, match=r"previous.*initial_mean|initial_mean.*previous"):
        make(name)(normal(B, A), previous=previous, initial_mean=previous.mean)


@every_planner
def test_a_plan_of_another_size_is_named(name):
    previous = earlier(name)
    with pytest.raises(ValueError, match=r"previous.* must be \[H, B, A\] with H=4, B=2, A=2 .*got \[4, 3, 2\]"):
        make(name)(normal(2, A), previous=previous)
    shorter = previous._replace(mean=previous.mean[1:])
    with pytest.raises(ValueError, match=r"previous.* must be \[H, B, A\] with H=4, .*got \[3, 3, 2\]"):
        make(name)(normal(B, A), previous=shorter)


@every_planner
def test_a_mask_that_does_not_fit_is_named(name):
    previous = earlier(name)
    with pytest.raises(ValueError, match=r"is_first must be \[B\] with B=3 .*got \[2\]"):
        make(name)(normal(B, A), previous=previous, is_first=torch.ones(2, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"is_first must be bool, got torch.float32"):
        make(name)(normal(B, A), previous=previous, is_first=torch.ones(B))


@every_planner
def test_something_else_than_a_plan_is_named(name):
    with pytest.raises(TypeError, match=r"previous"):
        make(name)(normal(B, A), previous=torch.zeros(H, B, A))
