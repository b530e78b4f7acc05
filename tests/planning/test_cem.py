"""The planner, on dynamics whose best actions are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planet_lib.planning import CEMPlanner

ITERATIONS, H, B, J, K, A = 3, 4, 3, 40, 8, 2


class Target:
    """return = -|actions - target|^2, where the state [B, A] is the target."""

    def rollout(self, state, actions, noise=None):
        returns = -(actions - state[:, None]).square().sum((0, -1))
        return returns if noise is None else returns + noise.sum((0, -1))


class Changed:
    """Another dynamics' returns, changed by a function of (returns, actions)."""

    def __init__(self, change, dynamics=None):
        self.change, self.dynamics = change, dynamics or Target()

    def rollout(self, state, actions, noise=None):
        return self.change(self.dynamics.rollout(state, actions, noise), actions)


class Recorded(Target):
    """Keeps every batch of candidates that was tried."""

    def __init__(self):
        self.tried = []

    def rollout(self, state, actions, noise=None):
        self.tried.append(actions)
        return super().rollout(state, actions, noise)


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(dynamics=None, low=-1.0, high=1.0, **settings) -> CEMPlanner:
    settings = {
        "action_dim": A,
        "horizon": H,
        "num_candidates": J,
        "num_elites": K,
        "num_iterations": ITERATIONS,
        **settings,
    }
    return CEMPlanner(dynamics or Target(), low, high, **settings)


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same_plan(one, other, **tolerance):
    for name, left, right in zip(one._fields, one, other, strict=True):
        torch.testing.assert_close(left, right, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


# What it finds


def test_it_finds_the_optimum_of_a_quadratic():
    target = torch.tensor([[0.5, -0.25], [0.0, 0.9]])
    plan = CEMPlanner(Target(), -1.0, 1.0, action_dim=2, horizon=3)(target, generator=generator())
    torch.testing.assert_close(plan.mean, target.expand(3, 2, 2), atol=2e-3, rtol=0)
    torch.testing.assert_close(plan.value, torch.zeros(2), atol=1e-4, rtol=0)
    assert plan.valid.tolist() == [True, True]


def test_an_optimum_outside_the_box_ends_on_its_boundary():
    target = torch.tensor([[5.0, -5.0]])
    plan = CEMPlanner(Target(), [-0.3, -2.0], [0.2, -0.5], horizon=2)(target, generator=generator())
    torch.testing.assert_close(plan.action, torch.tensor([[0.2, -2.0]]))
    torch.testing.assert_close(plan.std, torch.zeros(2, 1, 2), atol=1e-4, rtol=0)


def test_an_unbounded_optimum_far_from_the_start_is_found():
    target = torch.tensor([[2.5, -1.5]])
    planner = CEMPlanner(Target(), [-math.inf, -math.inf], [math.inf, math.inf], horizon=1, num_iterations=15)
    torch.testing.assert_close(planner(target, generator=generator()).action, target, atol=1e-2, rtol=0)


def test_one_iteration_agrees_with_a_refit_by_hand():
    returns = torch.tensor([[1.0, 4.0, 2.0, 3.0]])

    class Given:
        def rollout(self, state, actions, noise=None):
            return returns

    noise = torch.tensor([-0.5, 0.2, 7.0, 0.6]).reshape(1, 1, 1, 4, 1)
    planner = CEMPlanner(Given(), [-1.0], [3.0], horizon=1, num_candidates=4, num_elites=2, num_iterations=1)
    plan = planner(torch.zeros(1, 5), noise=noise)
    # centre 1 and half-width 2: candidates 0, 1.4, 3 (clipped from 15) and 2.2; the second and the fourth are elite
    torch.testing.assert_close(plan.action, torch.tensor([[1.8]]))
    torch.testing.assert_close(plan.std, torch.tensor([[[0.4]]]))
    torch.testing.assert_close(plan.value, torch.tensor([3.5]))


def test_the_first_candidates_on_the_unit_box_are_the_noise_clipped():
    dynamics, noise = Recorded(), normal(ITERATIONS, H, B, J, A)
    small(dynamics)(torch.zeros(B, A, dtype=torch.float64), noise=noise)
    assert torch.equal(dynamics.tried[0], noise[0].clamp(-1, 1))
    assert len(dynamics.tried) == ITERATIONS


def test_the_first_candidates_of_an_unbounded_dimension_start_near_zero_with_unit_std():
    dynamics, noise = Recorded(), normal(1, H, 1, J, 3)
    low, high = [-math.inf, 2.0, -math.inf], [math.inf, math.inf, -3.0]
    small(dynamics, low, high, action_dim=3, num_iterations=1)(torch.zeros(1, 3, dtype=torch.float64), noise=noise)
    expected = torch.stack([noise[..., 0], (2 + noise[..., 1]).clamp(min=2), (-3 + noise[..., 2]).clamp(max=-3)], -1)
    assert torch.equal(dynamics.tried[0], expected[0])


def test_the_std_never_falls_below_its_floor():
    target = torch.zeros(1, A)
    assert float(small(num_iterations=20)(target, generator=generator()).std.max()) < 0.01
    assert float(small(num_iterations=20, min_std=0.05)(target, generator=generator()).std.min()) >= 0.05


def test_a_search_can_start_from_an_earlier_plan():
    dynamics, noise = Recorded(), torch.zeros(1, H, B, J, A)
    start = torch.linspace(-0.5, 2.0, H * B * A).reshape(H, B, A)
    small(dynamics, num_iterations=1)(torch.zeros(B, A), initial_mean=start, noise=noise)
    assert torch.equal(dynamics.tried[0], start.clamp(-1, 1).unsqueeze(2).expand(H, B, J, A))
    hopeless = small(Changed(lambda returns, _: returns * math.nan))(torch.zeros(B, A), initial_mean=start)
    assert torch.equal(hopeless.mean, start.clamp(-1, 1))


# Laws


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), row=st.integers(0, B - 1))
def test_the_plan_of_an_environment_depends_on_that_environment_alone(seed, row):
    state, noise = normal(B, A, seed=seed), normal(ITERATIONS, H, B, J, A, seed=seed + 1)
    dynamics_noise = normal(ITERATIONS, H, B, J, 1, seed=seed + 2)
    together = small()(state, noise=noise, dynamics_noise=dynamics_noise)
    one = slice(row, row + 1)
    alone = small()(state[one], noise=noise[:, :, one], dynamics_noise=dynamics_noise[:, :, one])
    same_plan(
        alone,
        together._replace(
            action=together.action[one],
            mean=together.mean[:, one],
            std=together.std[:, one],
            value=together.value[one],
            valid=together.valid[one],
        ),
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_the_candidates_does_not_matter(seed):
    state, noise = normal(B, A, seed=seed), normal(ITERATIONS, H, B, J, A, seed=seed + 1)
    dynamics_noise = normal(ITERATIONS, H, B, J, 1, seed=seed + 2)
    order = torch.randperm(J, generator=generator(seed))
    same_plan(
        small()(state, noise=noise[:, :, :, order], dynamics_noise=dynamics_noise[:, :, :, order]),
        small()(state, noise=noise, dynamics_noise=dynamics_noise),
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), constant=st.sampled_from([-1000.0, -1.0, 0.5, 1000.0]))
def test_a_constant_added_to_every_return_changes_only_the_value(seed, constant):
    state, noise = normal(B, A, seed=seed), normal(ITERATIONS, H, B, J, A, seed=seed + 1)
    plan = small()(state, noise=noise)
    moved = small(Changed(lambda returns, _: returns + constant))(state, noise=noise)
    same_plan(moved._replace(value=moved.value - constant), plan)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    low=st.tuples(*[st.floats(-5, 1)] * A),
    width=st.tuples(*[st.floats(0.01, 6)] * A),
    large=st.sampled_from([1.0, 100.0]),
)
def test_no_action_is_ever_outside_its_own_bounds(seed, low, width, large):
    high = [a + b for a, b in zip(low, width, strict=True)]
    dynamics = Recorded()
    state = normal(B, A, seed=seed).float() * large
    plan = small(dynamics, low, high)(state, noise=normal(ITERATIONS, H, B, J, A, seed=seed).float() * large)
    lower, upper = torch.tensor(low), torch.tensor(high)
    for actions in (*dynamics.tried, plan.mean, plan.action):
        assert bool(((actions >= lower) & (actions <= upper)).all())
    assert torch.equal(plan.action, plan.mean[0])


@pytest.mark.parametrize("elites", [3, 5, 6, 7, 11, 13])
def test_a_mean_of_actions_on_the_boundary_is_not_rounded_beyond_it(elites):
    noise = torch.full((1, H, 1, J, A), 9.0)
    plan = small(None, [-1.3, -0.7], [0.1, 0.3], num_elites=elites, num_iterations=1)(torch.zeros(1, A), noise=noise)
    assert bool((plan.mean <= torch.tensor([0.1, 0.3])).all())
    torch.testing.assert_close(plan.mean, torch.tensor([0.1, 0.3]).expand(H, 1, A))


# Returns that are not numbers


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_a_return_that_is_not_finite_is_never_elite(bad):
    state, noise = normal(B, A), normal(ITERATIONS, H, B, J, A, seed=1)
    # Worst where the first action is positive: the elites must all have it negative, as if the others scored -1e9.
    spoilt = Changed(lambda returns, actions: returns.where(actions[0, ..., 0] < 0, bad))
    worst = Changed(lambda returns, actions: returns.where(actions[0, ..., 0] < 0, -1e9))
    plan = small(spoilt)(state, noise=noise)
    assert plan.valid.tolist() == [True] * B
    assert bool((plan.action[:, 0] < 0).all())
    same_plan(plan, small(worst)(state, noise=noise))


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_where_fewer_than_num_elites_returns_are_finite_those_alone_count(bad):
    noise = normal(1, H, B, J, A)
    finite = torch.arange(J) < 3  # of K = 8
    plan = small(Changed(lambda returns, _: returns.where(finite, bad)), num_iterations=1)(
        torch.zeros(B, A, dtype=torch.float64), noise=noise
    )
    kept = noise[0, :, :, :3].clamp(-1, 1)
    torch.testing.assert_close(plan.mean, kept.mean(2))
    torch.testing.assert_close(plan.std, kept.std(2, correction=0))
    torch.testing.assert_close(plan.value, -kept.square().sum((0, -1)).mean(1))
    assert plan.valid.tolist() == [True] * B


def test_a_row_without_any_finite_return_is_invalid_and_leaves_the_others_alone():
    bad_row = torch.tensor([False, True, False])[:, None]
    state, noise = normal(B, A), normal(ITERATIONS, H, B, J, A, seed=1)
    plan = small(Changed(lambda returns, _: returns.masked_fill(bad_row, math.nan)), [-1.0, 0.0], [1.0, 4.0])(
        state, noise=noise
    )
    assert plan.valid.tolist() == [True, False, True]
    assert plan.value.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(plan.mean[:, 1], torch.tensor([0.0, 2.0], dtype=torch.float64).expand(H, A))
    torch.testing.assert_close(plan.std[:, 1], torch.tensor([1.0, 2.0], dtype=torch.float64).expand(H, A))
    healthy = small(None, [-1.0, 0.0], [1.0, 4.0])(state, noise=noise)
    assert torch.equal(plan.mean[:, [0, 2]], healthy.mean[:, [0, 2]])


def test_an_iteration_without_any_finite_return_is_as_if_it_had_not_been():
    class Flaky(Target):
        calls = 0

        def rollout(self, state, actions, noise=None):
            self.calls += 1
            returns = super().rollout(state, actions, noise)
            return returns * math.nan if self.calls == ITERATIONS else returns

    state, noise = normal(B, A), normal(ITERATIONS, H, B, J, A, seed=1)
    same_plan(small(Flaky())(state, noise=noise), small(num_iterations=ITERATIONS - 1)(state, noise=noise[:-1]))


# States, devices, noise


def test_the_state_may_be_any_pytree_and_reaches_the_dynamics_as_it_is():
    state = {"clock": torch.arange(B), "rest": [(torch.zeros(B, 2), "name"), torch.zeros(B, 1, 3)]}

    class Seen(Target):
        def rollout(self, given, actions, noise=None):
            assert given is state
            return super().rollout(given["rest"][0][0], actions, noise)

    plan = small(Seen())(state, generator=generator())
    assert plan.mean.dtype == torch.float32  # the first floating tensor's, not the clock's
    assert plan.action.shape == (B, A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_follows_the_state(dtype):
    plan = small(Changed(lambda returns, _: returns.double()))(torch.zeros(B, A, dtype=dtype), generator=generator())
    assert {plan.action.dtype, plan.mean.dtype, plan.std.dtype, plan.value.dtype} == {dtype}


def test_each_iteration_gets_its_own_slice_of_the_dynamics_noise():
    given = normal(ITERATIONS, H, B, J, 5)
    seen = []

    class Noisy(Target):
        def rollout(self, state, actions, noise=None):
            seen.append(noise)
            return super().rollout(state, actions)

    small(Noisy())(torch.zeros(B, A, dtype=torch.float64), dynamics_noise=given, generator=generator())
    assert torch.equal(torch.stack(seen), given)


def test_a_generator_decides_what_is_drawn():
    state = torch.zeros(B, A) + 0.3
    same_plan(small()(state, generator=generator(1)), small()(state, generator=generator(1)), atol=0, rtol=0)
    assert not torch.equal(small()(state, generator=generator(1)).mean, small()(state, generator=generator(2)).mean)


def test_a_plan_carries_no_gradient():
    assert not any(field.requires_grad for field in small()(torch.zeros(B, A, requires_grad=True))[:5])


def test_bounds_may_be_arrays_tensors_or_a_mixture_and_are_copied():
    low = np.array([-1.0, -0.5])
    planner = small(None, low, 2)
    low[:] = 9.0
    assert planner.low.tolist() == [-1.0, -0.5]
    assert planner.high.tolist() == [2.0, 2.0]
    assert planner.clip(torch.tensor([[-3.0, 3.0]])).tolist() == [[-1.0, 2.0]]
    assert small(None, torch.tensor([-1, -2]), torch.tensor([1.0, 2.0])).action_dim == 2
    assert small(None, [0.1, -0.3], 0.7).low.tolist() == [0.1, -0.3]  # not their nearest float32


def test_it_compiles_into_one_graph_and_plans_the_same():
    state, noise = normal(B, A), normal(ITERATIONS, H, B, J, A, seed=1)
    planner = small(Changed(lambda returns, actions: returns.where(actions[0, ..., 0] < 0, math.nan)), min_std=1e-3)

    compiled = torch.compile(planner, fullgraph=True, backend="eager")
    same_plan(compiled(state, noise=noise), planner(state, noise=noise))
    assert compiled(state).valid.tolist() == [True] * B


# Messages


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_elites": J + 1}, r"num_elites must be between 1 and num_candidates=40, got 41"),
        ({"num_elites": 0}, r"num_elites must be between 1 and num_candidates=40, got 0"),
        ({"horizon": 0}, r"horizon must be a whole number of at least 1, got 0"),
        ({"num_iterations": 0}, r"num_iterations must be a whole number of at least 1, got 0"),
        ({"num_candidates": 0}, r"num_candidates must be a whole number of at least 1, got 0"),
        ({"min_std": -1.0}, r"min_std must be finite and at least 0, got -1.0"),
        ({"min_std": math.nan}, r"min_std must be finite and at least 0, got nan"),
        ({"low": [0.0, 1.0]}, r"low must be less than high in every dimension, got \[0.0, 1.0\] and \[1.0, 1.0\]"),
        ({"low": math.nan}, r"low must be less than high in every dimension, got \[nan, nan\]"),
        ({"high": [1.0, 1.0, 1.0], "low": [0.0, 0.0], "action_dim": None}, r"high must be .* A=2, got \[3\]"),
        ({"low": [[0.0, 0.0]]}, r"low and high must be numbers or \[A\], got \[1, 2\] and \[\]"),
        ({"action_dim": None}, r"action_dim must be given where low and high are both single numbers"),
        ({"action_dim": 0}, r"action_dim must be greater than 0, got 0"),
        ({"low": [0.0] * 3}, r"action_dim must be the size of low and high, 3, got 2"),
        ({"low": [], "action_dim": None}, r"low and high must have at least one dimension"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"noise": torch.zeros(ITERATIONS, H, B, J, 5)},
            r"noise must be \[I, H, B, J, A\] with .*A=2 .*, got \[3, 4, 3, 40, 5\]",
        ),
        (
            {"dynamics_noise": torch.zeros(ITERATIONS, H, 1, J, 5)},
            r"dynamics_noise must be \[I, H, B, R, S\] with I=3, B=3, R=40 .*, got \[3, 4, 1,",
        ),
        (
            {"initial_mean": torch.zeros(H, A)},
            r"initial_mean must be \[H, B, A\] with H=4, B=3, A=2 \(.*\), got \[4, 2\]",
        ),
    ],
)
def test_a_wrong_shape_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(B, A), **arguments)


def test_returns_of_a_wrong_shape_are_named():
    dynamics = Changed(lambda returns, _: returns.T)
    with pytest.raises(
        ValueError, match=r"what dynamics.rollout returns must be \[B, J\] with B=3, J=40, got \[40, 3\]"
    ):
        small(dynamics)(torch.zeros(B, A))


def test_a_state_without_one_batch_size_is_named():
    with pytest.raises(TypeError, match=r"state must hold at least one tensor \[B, ...\], got dict without any"):
        small()({"a": 1})
    with pytest.raises(ValueError, match=r"of one batch size B, got shapes \[\[3, 2\], \[4\]\]"):
        small()((torch.zeros(3, 2), torch.zeros(4)))
    with pytest.raises(ValueError, match=r"of one batch size B, got shapes \[\[\]\]"):
        small()(torch.zeros(()))
