"""What a reader broke once: returns of any size, plans of other planners, goals that change, settings at the edge."""

import math

import pytest
import torch

from planet_lib.planning import (
    CEMPlanner,
    CompiledPlanner,
    DiscreteCEMPlanner,
    ICEMPlanner,
    MPPIPlanner,
    StepDynamics,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Goal:
    """The state [B, 1] is the best action."""

    def rollout(self, state, actions, noise=None):
        return -(actions[..., 0] - state).square().sum(0)


@pytest.mark.parametrize("penalty", [-1e19, -1e25, -3e38])
def test_mppi_keeps_away_from_penalties_of_any_size(penalty):
    class Forbidden(Goal):
        def rollout(self, state, actions, noise=None):
            return super().rollout(state, actions).where(actions[0, ..., 0] > 0.2, penalty)

    plan = MPPIPlanner(Forbidden(), -1.0, 1.0, action_dim=1, horizon=1, num_iterations=5)(
        torch.full((2, 1), 0.5), generator=generator()
    )
    assert bool((plan.action > 0.2).all()), plan.action
    assert plan.valid.tolist() == [True, True]
    assert bool(plan.value.isfinite().all())


def test_a_warm_started_choice_can_change():
    class Choice:  # the state [B, A] is what each choice earns
        def rollout(self, state, actions, noise=None):
            return (actions * state[:, None]).sum((0, -1))

    planner = DiscreteCEMPlanner(Choice(), 3, horizon=4, num_candidates=200, num_elites=20)
    first = planner(torch.tensor([[1.0, 0.0, 0.0]]), generator=generator())
    assert first.action.tolist() == [[1.0, 0.0, 0.0]]
    second = planner(torch.tensor([[0.0, 0.0, 1.0]]), previous=first, generator=generator(1))
    assert second.mean.argmax(-1).flatten().tolist() == [2] * 4


def test_a_plan_of_a_wider_box_is_moved_into_this_one():
    wide = ICEMPlanner(Goal(), -5.0, 5.0, action_dim=1, horizon=3)(torch.full((1, 1), 4.5), generator=generator())
    planner = ICEMPlanner(Goal(), -1.0, 1.0, action_dim=1, horizon=3)
    plan = planner(torch.full((1, 1), 4.5), previous=wide, generator=generator())
    assert float(plan.mean.abs().max()) <= 1.0
    torch.testing.assert_close(plan.action, torch.ones(1, 1))


def test_choices_start_even_where_an_initial_mean_gives_no_choice_anything():
    class First:
        def rollout(self, state, actions, noise=None):
            return actions[..., 0].sum(0)

    planner = DiscreteCEMPlanner(First(), 2, horizon=2, num_candidates=50, num_elites=5)
    nothing = torch.tensor([[[0.0, 0.0]], [[-1.0, -2.0]]])
    plan = planner(torch.zeros(1, 1), initial_mean=nothing, generator=generator())
    assert plan.action.tolist() == [[1.0, 0.0]]
    assert bool(plan.mean.isfinite().all())
    gaussian = CEMPlanner(Goal(), -1.0, 1.0, action_dim=2, horizon=2)(torch.zeros(1, 1), generator=generator())
    plan = planner(torch.zeros(1, 1), previous=gaussian, generator=generator())
    assert plan.action.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("kind", [CEMPlanner, ICEMPlanner])
def test_momentum_does_not_undercut_the_floor(kind):
    planner = kind(
        Goal(), -1.0, 1.0, action_dim=1, horizon=2, min_std=0.5, initial_std=0.1, momentum=0.9, num_iterations=2
    )
    assert float(planner(torch.zeros(1, 1), generator=generator()).std.min()) >= 0.5


def test_what_has_ended_stays_ended_though_the_state_after_it_is_nan():
    def step(state, action):
        return torch.where(state > 0.5, torch.nan, state + 1)

    dynamics = StepDynamics(step, lambda state, action: state, goes_on=lambda state: (state < 1).to(state))
    assert dynamics.rollout(torch.zeros(1), torch.zeros(4, 1, 1, 1)).tolist() == [[1.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_truncated_samples_of_half_precision_keep_to_the_box(dtype):
    planner = CEMPlanner(
        Goal(), -0.25, 0.5, action_dim=1, horizon=2, sampling="truncate", num_candidates=100, num_elites=10
    )
    plan = planner(torch.ones(1, 1, dtype=dtype), generator=generator())
    assert plan.mean.dtype == dtype
    assert abs(float(plan.action) - 0.5) < 0.05
    assert float(plan.mean.max()) <= 0.5


def test_noise_of_the_dynamics_is_converted_like_the_candidates():
    class Typed(Goal):
        def rollout(self, state, actions, noise=None):
            assert noise.dtype == actions.dtype == torch.float32
            return super().rollout(state, actions)

    planner = CEMPlanner(Typed(), -1.0, 1.0, action_dim=1, horizon=2, num_candidates=10, num_elites=3, num_iterations=1)
    assert bool(planner(torch.zeros(1, 1), dynamics_noise=torch.zeros(1, 2, 1, 10, 4).double()).valid)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_candidates": 16.0}, "num_candidates must be a whole number of at least 1, got 16.0"),
        ({"horizon": math.inf}, "horizon must be a whole number of at least 1, got inf"),
        ({"decay": 1e200}, "decay must be between 1 and 1000, got 1e.200"),
    ],
)
def test_settings_that_are_no_numbers_of_things_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        ICEMPlanner(Goal(), -1.0, 1.0, action_dim=1, **setting)


def test_a_tensor_in_place_of_the_plan_before_is_named():
    planner = CEMPlanner(Goal(), -1.0, 1.0, action_dim=1, horizon=2, num_candidates=10, num_elites=3)
    with pytest.raises(TypeError, match="previous must be a Plan, got Tensor; a tensor is an initial_mean"):
        planner(torch.zeros(3, 1), previous=torch.zeros(2, 3, 1))


def test_validity_of_another_number_of_rows_is_named():
    planner = CEMPlanner(Goal(), -1.0, 1.0, action_dim=1, horizon=2, num_candidates=10, num_elites=3)
    plan = planner(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"previous.valid must be \[B\] with B=3 .*got \[1\]"):
        planner(torch.zeros(3, 1), previous=plan._replace(valid=plan.valid[:1]))


def test_a_compiled_planner_that_falls_back_draws_what_the_planner_draws_and_keeps_its_settings():
    class Waiting(Goal):
        def rollout(self, state, actions, noise=None):
            worth = super().rollout(state, actions)
            return worth if float(worth.sum()) < 0 else worth.double()

    planner = CEMPlanner(Waiting(), -1.0, 1.0, action_dim=1, horizon=2, num_candidates=20, num_elites=5)
    compiled, state = CompiledPlanner(planner), torch.full((2, 1), 0.3)
    torch.manual_seed(0)
    expected = planner(state)
    torch.manual_seed(0)
    with pytest.warns(RuntimeWarning, match="planning without torch.compile"):
        assert torch.equal(compiled(state).mean, expected.mean)
    planner.num_elites = 1  # the copy's own stays
    torch.manual_seed(0)
    assert torch.equal(compiled(state).mean, expected.mean)


def test_a_decay_over_many_iterations_is_beyond_no_float():
    planner = ICEMPlanner(
        Goal(), -1.0, 1.0, action_dim=1, num_candidates=50, num_elites=5, decay=1000.0, num_iterations=200
    )
    assert planner.num_rollouts[:2] == (52, 12)  # J and two that are kept; then twice the elites
    assert planner.num_rollouts[-1] == 13  # the mean, too


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"dynamics": Goal}, TypeError, r"dynamics must have a method rollout.*, got the class Goal; call it first"),
        ({"dynamics": None}, TypeError, r"dynamics must have a method rollout.*, got None"),
        ({"low": -1e19}, ValueError, r"low must be within 1e\+18 of 0, or infinite for no bound, got -1e\+19"),
        ({"low": "-1"}, TypeError, "low must be a number or one for each dimension of the action, got '-1'"),
        ({"high": [1.0, [2.0]]}, ValueError, "high must be a number or one per dimension, got lists of several"),
        ({"initial_std": 1e30}, ValueError, r"initial_std must be at most 1e\+18, got 1e\+30"),
        ({"num_elites": 2.0}, ValueError, "num_elites must be between 1 and num_candidates=100, got 2.0"),
        ({"num_candidates": True}, ValueError, "num_candidates must be a whole number of at least 1, got True"),
    ],
)
def test_settings_of_another_kind_are_named(changes, kind, message):
    settings = {"dynamics": Goal(), "low": -1.0, "high": 1.0, "action_dim": 1, **changes}
    with pytest.raises(kind, match=message):
        ICEMPlanner(**settings)


class Returning(Goal):
    """Dynamics that return, or draw, what they are told to."""

    def __init__(self, returned, drawn=None):
        self.returned, self.drawn = returned, drawn

    def rollout(self, state, actions, noise=None):
        return self.returned

    def draw_noise(self, actions, generator=None):
        return self.drawn


@pytest.mark.parametrize(
    ("returned", "drawn", "kind", "message"),
    [
        (None, None, TypeError, r"what dynamics.rollout returns must be a tensor \[B, J\].* got NoneType"),
        (torch.zeros(2, 10, dtype=torch.complex64), None, TypeError, "what dynamics.rollout returns must be real"),
        (torch.zeros(2, 10, device="meta"), None, ValueError, "what dynamics.rollout returns must be on .*got .*meta"),
        (torch.zeros(2, 10).to_sparse(), None, TypeError, "what dynamics.rollout returns must be a dense tensor"),
        (torch.zeros(2, 10), [1.0], TypeError, "what dynamics.draw_noise returns must be a tensor .*, got list"),
        (torch.zeros(2, 10), torch.zeros(2, 2, 9, 1), ValueError, r"draw_noise returns must be .*J=10.* got \[2, 2, 9"),
    ],
)
def test_what_dynamics_return_and_cannot_be_used_is_named(returned, drawn, kind, message):
    planner = CEMPlanner(
        Returning(returned, drawn), -1.0, 1.0, action_dim=1, horizon=2, num_candidates=10, num_elites=3
    )
    with pytest.raises(kind, match=message):
        planner(torch.zeros(2, 1))


def test_what_dynamics_raise_is_passed_on_as_it_is():
    class Broken(Goal):
        def rollout(self, state, actions, noise=None):
            raise KeyError("the wheel")

    with pytest.raises(KeyError, match="the wheel"):
        CEMPlanner(Broken(), -1.0, 1.0, action_dim=1)(torch.zeros(2, 1))


def test_a_state_on_two_devices_is_named():
    planner = CEMPlanner(Goal(), -1.0, 1.0, action_dim=1)
    with pytest.raises(ValueError, match=r"state must hold tensors on one device, got \['cpu', 'meta'\]"):
        planner([torch.zeros(2, 1), torch.zeros(2, 1, device="meta")])
