"""What holds for every planner, whatever its settings: laws, replay, devices, compilation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from planet_lib.planning import (
    CEMPlanner,
    DiscreteCEMPlanner,
    ICEMPlanner,
    MPPIPlanner,
    Planner,
    RandomShootingPlanner,
)
from planet_lib.types import Plan

ITERATIONS, H, B, J, K, A = 3, 4, 3, 24, 5, 3
SIZES = {"horizon": H, "num_candidates": J, "num_iterations": ITERATIONS}
ELITES = {**SIZES, "num_elites": K}

PLANNERS = {
    "cem": (CEMPlanner, ELITES),
    "cem_truncate_mad": (CEMPlanner, {**ELITES, "sampling": "truncate", "deviation": "mad", "initial_std": 0.7}),
    "cem_momentum": (CEMPlanner, {**ELITES, "momentum": 0.2}),
    "icem": (ICEMPlanner, ELITES),
    "icem_truncate": (ICEMPlanner, {**ELITES, "sampling": "truncate", "noise_beta": 0.5, "keep_fraction": 0.6}),
    "icem_mad": (ICEMPlanner, {**ELITES, "deviation": "mad", "noise_beta": 0.0, "decay": 2.0, "momentum": 0.0}),
    "mppi": (MPPIPlanner, SIZES),
    "mppi_adapt": (MPPIPlanner, {**SIZES, "adapt_std": True, "noise_beta": 1.0, "temperature": 0.2}),
    "shooting": (RandomShootingPlanner, SIZES),
    "discrete": (DiscreteCEMPlanner, ELITES),
    "discrete_floor": (DiscreteCEMPlanner, {**ELITES, "min_probability": 0.02, "momentum": 0.2}),
}
BOXED = [name for name in PLANNERS if not name.startswith("discrete")]
every_planner = pytest.mark.parametrize("name", PLANNERS)
every_boxed_planner = pytest.mark.parametrize("name", BOXED)
few = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 2**31)


class Target:
    """return = -sum_t w_t |action_t - state|^2, where state is [B, A]; no two one-hot sequences earn the same."""

    def rollout(self, state, actions, noise=None):
        weight = torch.arange(2.0, 2 + len(actions), dtype=state.dtype, device=state.device).sqrt()
        returns = -((actions - state[:, None]).square().sum(-1) * weight[:, None, None]).sum(0)
        return returns if noise is None else returns + noise.sum((0, -1))


class Changed:
    """Another dynamics' returns, changed by a function of (returns, actions)."""

    def __init__(self, change, dynamics=None):
        self.change, self.dynamics = change, dynamics or Target()

    def rollout(self, state, actions, noise=None):
        return self.change(self.dynamics.rollout(state, actions, noise), actions)


class Recorded(Target):
    """Keeps everything it was asked."""

    def __init__(self):
        self.states, self.tried, self.noise = [], [], []

    def rollout(self, state, actions, noise=None):
        self.states.append(state)
        self.tried.append(actions)
        self.noise.append(noise)
        return super().rollout(state, actions, noise)


class Random(Recorded):
    """Offers the noise that it takes: five rows of two numbers, whatever the horizon."""

    def draw_noise(self, actions, generator=None):
        size = (5, *actions.shape[1:3], 2)
        return torch.randn(size, dtype=actions.dtype, device=actions.device, generator=generator)


def make(name, dynamics=None, low=-1.0, high=1.0, **changes) -> Planner:
    kind, given = PLANNERS[name]
    given = {**given, **changes}
    if kind is DiscreteCEMPlanner:
        return kind(dynamics or Target(), A, **given)
    return kind(dynamics or Target(), low, high, action_dim=A, **given)


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def candidate_noise(seed=0) -> Tensor:
    return normal(ITERATIONS, H, B, J, A, seed=seed)


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(plan, index) -> Plan:
    """The plan of some environments."""
    axis = {"action": 0, "mean": 1, "std": 1, "value": 0, "valid": 0, "elites": 1, "spread": 2}
    fields = plan._asdict().items()
    return Plan(**{field: None if x is None else x.index_select(axis[field], index) for field, x in fields})


def same_plan(one, other, **tolerance):
    for name, left, right in zip(Plan._fields, one, other, strict=True):
        assert (left is None) == (right is None), name
        if left is not None:
            tell = lambda text, name=name: f"{name}: {text}"  # noqa: E731
            torch.testing.assert_close(left, right, msg=tell, equal_nan=True, **tolerance)


def moved(plan, value) -> Plan:
    return plan._replace(value=value)


# What the order, the level and the unit of the returns may change


@every_planner
@few
@given(seed=seeds)
def test_the_order_of_the_candidates_does_not_matter(name, seed):
    state, noise = normal(B, A, seed=seed), candidate_noise(seed + 1)
    planner = make(name)
    shuffled = noise.clone()
    for i in range(ITERATIONS):
        # Later iterations of iCEM use fewer candidates, the first ones; never fewer than twice the elites.
        used = 2 * K if name.startswith("icem") and i else J
        order = torch.randperm(used, generator=generator(seed + i))
        shuffled[i, :, :, :used] = noise[i, :, :, order]
    same_plan(planner(state, noise=shuffled), planner(state, noise=noise))


@every_planner
@few
@given(seed=seeds, constant=st.sampled_from([-1000.0, -1.0, 0.5, 1000.0]))
def test_a_constant_added_to_every_return_changes_only_the_value(name, seed, constant):
    state, noise = normal(B, A, seed=seed), candidate_noise(seed + 1)
    plan = make(name)(state, noise=noise)
    more = make(name, Changed(lambda returns, _: returns + constant))(state, noise=noise)
    same_plan(moved(more, more.value - constant), plan)


@every_planner
@few
@given(seed=seeds, unit=st.sampled_from([1e-6, 0.3, 7.0, 1e6]))
def test_the_unit_of_the_returns_changes_only_the_value(name, seed, unit):
    state, noise = normal(B, A, seed=seed), candidate_noise(seed + 1)
    plan = make(name)(state, noise=noise)
    scaled = make(name, Changed(lambda returns, _: returns * unit))(state, noise=noise)
    same_plan(moved(scaled, scaled.value / unit), plan)


@pytest.mark.parametrize("name", [name for name in PLANNERS if not name.startswith("mppi")])
@few
@given(seed=seeds)
def test_only_the_rank_of_the_returns_counts(name, seed):
    state, noise = normal(B, A, seed=seed), candidate_noise(seed + 1)
    plan = make(name)(state, noise=noise)
    curved = make(name, Changed(lambda returns, _: (returns / 10).exp()))(state, noise=noise)
    same_plan(moved(curved, plan.value), plan)


# The box


@every_boxed_planner
@few
@given(seed=seeds, middle=st.floats(-5, 5), half=st.sampled_from([0.01, 0.5, 3.0, 100.0]))
def test_another_box_with_the_same_problem_in_it_gives_the_same_plan_in_its_units(name, seed, middle, half):
    state, noise = normal(B, A, seed=seed), candidate_noise(seed + 1)

    class Moved(Target):
        def rollout(self, state, actions, noise=None):
            return super().rollout(state, (actions - middle) / half, noise)

    floor = {} if name == "shooting" else {"min_std": 0.01}
    unit = make(name, **floor)(state, noise=noise, with_spread=True)
    floor = {key: value * half for key, value in floor.items()}
    plan = make(name, Moved(), middle - half, middle + half, **floor)(state, noise=noise, with_spread=True)
    expected = unit._replace(
        action=unit.action * half + middle,
        mean=unit.mean * half + middle,
        std=unit.std * half,
        elites=None if unit.elites is None else unit.elites * half + middle,
        spread=unit.spread * half,
    )
    same_plan(plan, expected, rtol=1e-6, atol=1e-6 * half)


@every_boxed_planner
@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    low=st.tuples(*[st.floats(-5, 1) | st.just(-math.inf)] * A),
    width=st.tuples(*[st.floats(0.01, 6) | st.just(math.inf)] * A),
    large=st.sampled_from([1.0, 100.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_no_action_is_ever_outside_its_own_bounds(name, seed, low, width, large, dtype):
    high = [(0.0 if math.isinf(a) else a) + b for a, b in zip(low, width, strict=True)]
    dynamics = Recorded()
    planner = make(name, dynamics, low, high)
    state = normal(B, A, seed=seed).to(dtype) * large
    first = planner(state, noise=candidate_noise(seed).to(dtype) * large)
    plan = planner(-state, previous=first, noise=candidate_noise(seed + 1).to(dtype) * large)
    explored = planner.explore(plan.action, 3.0, normal(B, A, seed=seed).to(dtype) * large)
    lower, upper = torch.tensor(low, dtype=dtype), torch.tensor(high, dtype=dtype)
    for actions in (*dynamics.tried, first.mean, plan.mean, plan.action, plan.elites, explored):
        if actions is not None:
            assert bool(((actions >= lower) & (actions <= upper) & actions.isfinite()).all())
    assert bool(plan.std.isfinite().all())
    if not name.startswith("icem"):
        assert torch.equal(plan.action, plan.mean[0])


@every_boxed_planner
def test_clip_moves_an_action_into_the_box_and_exploring_adds_noise_in_units_of_the_action(name):
    planner = make(name, None, [-1.0, -0.5, -math.inf], [2.0, 0.5, math.inf])
    assert planner.clip(torch.tensor([[-3.0, 3.0, 99.0]])).tolist() == [[-1.0, 0.5, 99.0]]
    action, noise = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[1.0, -9.0, 2.0]])
    torch.testing.assert_close(planner.explore(action, 0.3, noise), torch.tensor([[0.3, -0.5, 0.6]]))
    assert torch.equal(planner.explore(action, 0.0, noise), action)
    drawn = planner.explore(torch.zeros(4000, A), 0.3, None)[:, 0]
    assert 0.28 < float(drawn.std()) < 0.32


# Environments


@every_planner
@few
@given(seed=seeds)
def test_the_plan_of_an_environment_depends_on_that_environment_alone(name, seed):
    poisoned = normal(B, A, seed=seed)
    poisoned[1] = math.nan  # this row's first plan is invalid
    planner = make(name)
    first = planner(poisoned, noise=candidate_noise(seed))
    assert first.valid.tolist() == [True, False, True]
    state, is_first = normal(B, A, seed=seed + 1), torch.tensor([True, False, False])
    noise, dynamics_noise = candidate_noise(seed + 1), normal(ITERATIONS, 2, B, max(planner.num_rollouts), 2, seed=seed)
    recorded = {"noise": noise, "dynamics_noise": dynamics_noise}
    together = planner(state, previous=first, is_first=is_first, with_spread=True, **recorded)
    for row in range(B):
        one = torch.tensor([row])
        alone = planner(
            state[one],
            previous=rows(first, one),
            is_first=is_first[one],
            with_spread=True,
            **{key: value[:, :, one] for key, value in recorded.items()},
        )
        same_plan(alone, rows(together, one))
    # The row that begins and the row whose plan was invalid are as if there had been nothing before.
    fresh = torch.tensor([0, 1])
    warm = planner(state, previous=first, is_first=is_first, noise=noise)
    same_plan(rows(warm, fresh), rows(planner(state, noise=noise), fresh))


# Returns that are not numbers


@every_planner
@few
@given(seed=seeds)
def test_a_return_that_is_not_finite_never_counts(name, seed):
    # Where the first action leans to its first dimension nothing is known; that is where the target lies.
    state, noise = normal(B, A, seed=seed).abs() + 1, candidate_noise(seed + 1)
    plans = [
        make(name, Changed(lambda returns, actions, bad=bad: returns.where(actions[0, ..., 0] <= 0, bad)))(
            state, noise=noise, with_spread=True
        )
        for bad in (math.nan, -math.inf, math.inf)
    ]
    same_plan(plans[0], plans[1], atol=0, rtol=0)
    same_plan(plans[0], plans[2], atol=0, rtol=0)
    assert plans[0].valid.tolist() == [True] * B
    assert bool((plans[0].action[:, 0] <= 0).all())
    assert bool(plans[0].value.isfinite().all())
    if name == "discrete":
        assert plans[0].mean[0, :, 0].tolist() == [0.0] * B
    elif not name.startswith("discrete"):
        assert bool((plans[0].mean[0, :, 0] <= 0).all())


@every_planner
@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_a_row_without_any_finite_return_is_invalid_and_leaves_the_others_alone(name, bad):
    bad_row = torch.tensor([False, True, False])[:, None]
    state, noise = normal(B, A), candidate_noise(1)
    dynamics = Changed(lambda returns, _: returns.masked_fill(bad_row, bad))
    low, high = [-1.0, 0.0, 2.0], [1.0, 4.0, 5.0]
    plan = make(name, dynamics, low, high)(state, noise=noise)
    assert plan.valid.tolist() == [True, False, True]
    assert plan.value.isnan().tolist() == [False, True, False]
    middle = torch.full((A,), 1 / A) if name.startswith("discrete") else torch.tensor([0.0, 2.0, 3.5])
    torch.testing.assert_close(plan.mean[:, 1], middle.double().expand(H, A))
    assert bool(plan.std[:, 1].isfinite().all())
    assert torch.equal(make(name, None, low, high).clip(plan.action), plan.action)
    others = torch.tensor([0, 2])
    same_plan(rows(plan, others), rows(make(name, None, low, high)(state, noise=noise), others))


# Particles


@pytest.mark.parametrize("name", [name for name in PLANNERS if name != "cem_momentum"])
def test_particles_of_deterministic_dynamics_change_nothing_but_the_number_of_rollouts(name):
    state, noise = normal(B, A), candidate_noise(1)
    one, three = make(name), make(name, Recorded(), num_particles=3)
    same_plan(three(state, noise=noise), one(state, noise=noise))
    assert three.num_rollouts == tuple(3 * number for number in one.num_rollouts)
    for actions in three.dynamics.tried:
        copies = actions.unflatten(2, (-1, 3))
        assert torch.equal(copies, copies[:, :, :, :1].expand_as(copies))


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "shooting", "discrete"])
def test_the_return_of_a_candidate_is_the_mean_over_its_particles(name):
    state, noise = normal(B, A), candidate_noise(1)
    two = make(name, num_particles=2)
    first, second = normal(2, ITERATIONS, 1, B, max(two.num_rollouts) // 2, 1, seed=2)
    both = torch.stack([first, second], 4).flatten(3, 4)  # the copies of a candidate are neighbours
    one = make(name)(state, noise=noise, dynamics_noise=(first + second) / 2)
    same_plan(two(state, noise=noise, dynamics_noise=both), one)
    # Half of the candidates lose one particle: as if they had lost both.
    lost = torch.arange(first.shape[3])[:, None] % 2 == 0
    spoilt = torch.stack([first.masked_fill(lost, math.nan), second], 4).flatten(3, 4)
    one = make(name)(state, noise=noise, dynamics_noise=((first + second) / 2).masked_fill(lost, math.nan))
    same_plan(two(state, noise=noise, dynamics_noise=spoilt), one)


# Replay


@every_planner
def test_recorded_noise_replays_to_the_last_bit_and_nothing_that_was_given_is_changed(name):
    planner = make(name)
    state, noise = normal(B, A), candidate_noise(1)
    dynamics_noise = normal(ITERATIONS, 2, B, max(planner.num_rollouts), 1)
    first = planner(state, noise=noise)
    given = [state, noise, dynamics_noise, *(field for field in first if field is not None)]
    copies = [tensor.clone() for tensor in given]
    calls = [planner(state, previous=first, noise=noise, dynamics_noise=dynamics_noise) for _ in range(2)]
    same_plan(*calls, atol=0, rtol=0)
    torch.testing.assert_close(given, copies, atol=0, rtol=0, equal_nan=True)


@every_planner
def test_a_generator_decides_everything_also_what_the_dynamics_draw(name):
    state = normal(B, A)
    planner = make(name, Random())
    plans = [planner(state, generator=generator(seed)) for seed in (1, 1, 2)]
    same_plan(plans[0], plans[1], atol=0, rtol=0)
    assert not torch.equal(plans[0].value, plans[2].value)
    # The candidates' noise being given, the dynamics' still comes from the generator.
    plans = [planner(state, noise=candidate_noise(), generator=generator(seed)) for seed in (1, 1, 2)]
    same_plan(plans[0], plans[1], atol=0, rtol=0)
    assert not torch.equal(plans[0].value, plans[2].value)
    for actions, noise in zip(planner.dynamics.tried, planner.dynamics.noise, strict=True):
        assert noise.shape == (5, *actions.shape[1:3], 2)


@every_planner
def test_what_the_dynamics_would_draw_is_not_drawn_where_it_is_given(name):
    class Never(Random):
        def draw_noise(self, actions, generator=None):
            raise AssertionError("drawn, although it was given")

    planner = make(name, Never())
    given = normal(ITERATIONS, 5, B, max(planner.num_rollouts), 2)
    planner(normal(B, A), dynamics_noise=given, generator=generator())
    for i, (actions, noise) in enumerate(zip(planner.dynamics.tried, planner.dynamics.noise, strict=True)):
        assert torch.equal(noise, given[i, :, :, : actions.shape[2]])


@every_planner
def test_the_rollouts_are_as_many_as_it_says(name):
    planner = make(name, Recorded())
    first = planner(normal(B, A), generator=generator())
    cold = [actions.shape[2] for actions in planner.dynamics.tried]
    planner(normal(B, A), previous=first, generator=generator())
    warm = [actions.shape[2] for actions in planner.dynamics.tried[ITERATIONS:]]
    assert tuple(warm) == planner.num_rollouts
    assert all(one <= most for one, most in zip(cold, planner.num_rollouts, strict=True))


@every_planner
def test_asking_for_the_spread_changes_nothing_else_and_tells_one_for_each_iteration(name):
    state, noise = normal(B, A), candidate_noise(1)
    plan = make(name)(state, noise=noise, with_spread=True)
    same_plan(plan._replace(spread=None), make(name)(state, noise=noise), atol=0, rtol=0)
    assert plan.spread.shape == (ITERATIONS, H, B, A)
    assert bool((plan.spread >= 0).all())
    if name in ("cem", "cem_truncate_mad", "icem_mad", "mppi_adapt", "discrete"):  # no momentum, no floor
        torch.testing.assert_close(plan.spread[-1], plan.std)
    if not name.startswith("shooting"):
        # The recorded first iteration is that of a plan of one iteration.
        short = make(name, num_iterations=1)(state, noise=noise[:1], with_spread=True)
        if not name.startswith("icem"):  # whose last iteration tries the mean too
            torch.testing.assert_close(plan.spread[:1], short.spread)


# States, gradients, dtypes


@every_planner
def test_the_state_reaches_the_dynamics_as_it_is(name):
    state = {"clock": torch.arange(B), "rest": [(torch.zeros(B, A), "name"), torch.zeros(B, 1, 3)]}

    class Seen(Target):
        def rollout(self, given, actions, noise=None):
            assert given is state
            return super().rollout(given["rest"][0][0], actions, noise)

    assert make(name, Seen())(state, generator=generator()).mean.dtype == torch.float32


@every_planner
def test_a_plan_carries_no_gradient(name):
    scale = torch.ones((), requires_grad=True)
    planner = make(name, Changed(lambda returns, _: returns * scale))
    state = torch.ones(B, A, requires_grad=True)
    first = planner(state, initial_mean=torch.full((H, B, A), 1 / A, requires_grad=True), with_spread=True)
    plan = planner(state, previous=first, with_spread=True)
    assert not any(field.requires_grad for field in (*first, *plan) if field is not None)


@every_planner
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_follows_the_state_whatever_the_noise_and_the_returns_are(name, dtype):
    other = torch.float32 if dtype == torch.float64 else torch.float64
    planner = make(name, Changed(lambda returns, _: returns.to(other)))
    state, noise = torch.ones(B, A, dtype=dtype), candidate_noise().to(other)
    first = planner(state, generator=generator())
    warm = planner(state, previous=first, noise=noise, with_spread=True)
    for plan in (first, warm):
        fields = [field for field in plan if field is not None and field.dtype != torch.bool]
        assert {field.dtype for field in fields} == {dtype}


# Devices and compilation


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the processor wait for the device: numbers asked for, and copies that block."""

    REFUSED = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if func.overloadpacket.__name__ in self.REFUSED and any(x.device != torch.device("cpu") for x in tensors):
            raise AssertionError(f"{func} waits for the device")
        result = func(*args, **kwargs)
        if tensors and isinstance(result, Tensor) and tensors[0].device != result.device:
            assert kwargs.get("non_blocking"), f"{func} copies and waits"
        return result


class NoUploads(TorchFunctionMode):
    """Refuses Python numbers made into a tensor of the device: each of them is a copy that the processor waits for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        makers = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
        result = func(*args, **(kwargs or {}))
        assert func not in makers or result.device.type == "cpu", f"{func} copies and waits"
        return result


def on_device(*shape, **kwargs) -> Tensor:
    """A tensor without numbers, on a device of its own: whoever asks for a number or mixes devices is found out."""
    return torch.zeros(*shape, device="meta", **kwargs)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: torch.equal(x, x),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x + torch.zeros(3),
        lambda x: torch.tensor([1.0], device=x.device),
    ],
)
def test_the_guard_of_the_next_test_notices_what_waits(wait):
    with NoWaiting(), NoUploads(), pytest.raises((AssertionError, RuntimeError)):
        wait(on_device(3))


@every_planner
def test_a_plan_on_a_device_stays_there_and_never_waits_for_it(name):
    planner = make(name, Random())
    with NoWaiting(), NoUploads():
        state, is_first = on_device(B, A), on_device(B, dtype=torch.bool)
        noise = on_device(ITERATIONS, H, B, J, A)
        first = planner(state, noise=noise, initial_mean=on_device(H, B, A), with_spread=True)
        warm = planner(state, previous=first, is_first=is_first, with_spread=True)
        explored = planner.explore(planner.clip(warm.action), 0.3, None)
    fields = [field for field in (*first, *warm, explored) if field is not None]
    assert {field.device.type for field in fields} == {"meta"}


@pytest.mark.parametrize("name", ["cem", "cem_truncate_mad", "icem", "mppi_adapt", "shooting", "discrete_floor"])
def test_it_compiles_into_one_graph_and_plans_the_same(name):
    torch._dynamo.reset()  # the graphs of other tests count against its limit
    state, noise = normal(B, A), candidate_noise(1)
    planner = make(name, Changed(lambda returns, actions: returns.where(actions[0, ..., 0] < 0.5, math.nan)))
    compiled = torch.compile(planner, fullgraph=True, backend="eager")
    first = planner(state, noise=noise)
    same_plan(compiled(state, noise=noise), first)
    warm = {"previous": first, "is_first": torch.tensor([True, False, False]), "noise": noise, "with_spread": True}
    same_plan(compiled(state, **warm), planner(state, **warm))
    assert compiled(state).valid.tolist() == [True] * B
