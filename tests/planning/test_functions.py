"""Plain functions as dynamics: returns by hand, against a loop over candidates, and the words for what is wrong."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from planet_lib.planning import CEMPlanner, FunctionDynamics, StepDynamics

H, B, J, A, S = 4, 2, 3, 2, 2


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Cart(NamedTuple):
    position: Tensor
    velocity: Tensor


def push(cart, action):
    velocity = 0.9 * cart.velocity + action[:, 0]
    return Cart(cart.position + velocity, velocity)


def shaken(cart, action, noise):
    return push(cart, action + 0.1 * noise)


def cost(cart, action):
    return -cart.position.square() - 0.1 * action.square().sum(-1)


def near(cart):
    return torch.sigmoid(3 - cart.position.abs())


def carts() -> Cart:
    return Cart(normal(B, seed=1), normal(B, seed=2))


def scripted(**settings):
    """Dynamics whose rewards (and ends) are written into the actions: column 0 is the reward, column 1 goes_on."""
    return StepDynamics(lambda state, action: action, lambda state, action: state[:, 0], **settings)


def script(*rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 1, 1, 2)


def play(dynamics, *rows) -> float:
    return float(dynamics.rollout(torch.zeros(1, 2), script(*rows)))


def test_a_function_is_called_with_state_and_actions_and_its_value_is_the_return():
    state, actions = {"x": normal(B)}, normal(H, B, J, A)
    asked = []

    def function(state, actions):
        asked.append((state, actions))
        return state["x"][:, None] * actions.sum((0, 3))

    returns = FunctionDynamics(function).rollout(state, actions)
    assert torch.equal(returns, state["x"][:, None] * actions.sum((0, 3)))
    assert len(asked) == 1
    assert asked[0][0] is state
    assert asked[0][1] is actions


def test_a_step_and_a_reward_by_hand():
    actions = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).reshape(2, 1, 2, 1)
    dynamics = StepDynamics(lambda x, a: x + a[:, 0], lambda x, a: 10 * x + a[:, 0])
    # From 5: 6, 9 and 7, 6 are reached. What is reached counts, and the action that led there; the start does not.
    assert dynamics.rollout(torch.tensor([5.0]), actions).tolist() == [[60.0 + 1 + 90 + 3, 70.0 + 2 + 60 - 1]]


def test_a_discount_begins_at_the_second_reward():
    assert play(scripted(discount=0.5), (1.0, 0.0), (10.0, 0.0), (100.0, 0.0)) == 1 + 5 + 25


def test_what_comes_after_an_end_counts_in_proportion_and_the_first_reward_fully():
    dynamics = scripted(goes_on=lambda state: state[:, 1])
    assert play(dynamics, (1.0, 0.5), (10.0, 0.25), (100.0, 7.0)) == 1 + 5 + 12.5
    assert play(dynamics, (1.0, 0.0), (10.0, 1.0), (100.0, 1.0)) == 1
    assert play(scripted(goes_on=lambda state: state[:, 1], discount=0.5), (1.0, 0.5), (10.0, 1.0)) == 1 + 2.5


def test_an_end_may_be_a_bool_and_is_not_asked_after_the_last_step():
    asked = []

    def goes_on(state):
        asked.append(state)
        return state[:, 1] > 0

    assert play(scripted(goes_on=goes_on), (1.0, 1.0), (10.0, 0.0), (100.0, 1.0)) == 11
    assert len(asked) == 2


def test_nan_after_a_certain_end_does_not_count_and_any_other_nan_does():
    nan = float("nan")
    ends = scripted(goes_on=lambda state: state[:, 1])
    assert play(ends, (1.0, 0.0), (nan, 1.0), (nan, 1.0)) == 1
    assert play(ends, (1.0, 0.0), (nan, nan), (nan, nan)) == 1
    for rows in [
        ((1.0, 1.0), (nan, 0.0)),
        ((nan, 0.0), (1.0, 1.0)),
        ((1.0, nan), (1.0, 1.0)),
        ((1.0, 0.5), (nan, 1.0)),
    ]:
        assert play(ends, *rows) != play(ends, *rows)
    spoilt = script((1.0, 1.0), (nan, 1.0)).expand(2, 1, 3, 2).clone()
    spoilt[1, 0, 1:, 0] = 5.0
    assert scripted().rollout(torch.zeros(1, 2), spoilt)[0, 1:].tolist() == [6.0, 6.0]


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("goes_on", [None, near])
@pytest.mark.parametrize("noise_dim", [0, S])
def test_all_candidates_at_once_earn_what_each_earns_alone(noise_dim, goes_on, discount):
    step = shaken if noise_dim else push
    dynamics = StepDynamics(step, cost, discount=discount, goes_on=goes_on, noise_dim=noise_dim)
    state, actions = carts(), normal(H, B, J, A, seed=3)
    noise = normal(H, B, J, S, seed=4) if noise_dim else None
    returns = dynamics.rollout(state, actions, noise)
    for b in range(B):
        for j in range(J):
            cart, total, alive = Cart(state.position[b : b + 1], state.velocity[b : b + 1]), 0.0, 1.0
            for t in range(H):
                action = actions[t, b, j][None]
                cart = step(cart, action, *([] if noise is None else [noise[t, b, j][None]]))
                total += discount**t * alive * float(cost(cart, action))
                alive *= 1.0 if goes_on is None else float(goes_on(cart))
            assert float(returns[b, j]) == pytest.approx(total, rel=1e-12)


def test_a_state_may_be_any_pytree_and_what_is_no_tensor_reaches_the_step_as_it_is():
    seen = []

    def step(state, action):
        seen.append((state["label"], state["pair"][0].tolist(), state["pair"][1].shape))
        return state

    state = {"pair": (torch.tensor([1, 2]), torch.zeros(2, 4, 5)), "label": "left"}
    dynamics = StepDynamics(step, lambda state, action: action[:, 0] * state["pair"][0])
    returns = dynamics.rollout(state, torch.ones(1, 2, 3, 1))
    assert returns.tolist() == [[1.0] * 3, [2.0] * 3]
    assert seen == [("left", [1, 1, 1, 2, 2, 2], (6, 4, 5))]


def test_a_step_may_return_another_structure_than_it_was_given():
    dynamics = StepDynamics(
        lambda state, action: {"sum": (state["sum"] if isinstance(state, dict) else state) + action[:, 0]},
        lambda state, action: state["sum"],
    )
    assert dynamics.rollout(torch.tensor([1.0]), torch.ones(3, 1, 1, 1)).tolist() == [[2.0 + 3 + 4]]


def test_noise_is_drawn_for_each_step_and_candidate_and_by_the_generator_given():
    dynamics = StepDynamics(shaken, cost, noise_dim=S)
    actions = torch.zeros(H, B, 1000, A, dtype=torch.float64)
    noise = dynamics.draw_noise(actions, generator=torch.Generator().manual_seed(0))
    again = dynamics.draw_noise(actions, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise, again)
    assert noise.shape == (H, B, 1000, S)
    assert noise.dtype == torch.float64
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    state = carts()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = dynamics.rollout(state, actions)
    assert torch.equal(drawn, dynamics.rollout(state, actions, noise))
    assert drawn.unique().numel() == B * 1000


def test_without_noise_dim_nothing_is_drawn_and_no_noise_is_taken():
    dynamics = StepDynamics(push, cost)
    random = torch.get_rng_state()
    assert dynamics.draw_noise(torch.zeros(H, B, J, A)) is None
    dynamics.rollout(carts(), normal(H, B, J, A))
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(ValueError, match=r"noise must be None where noise_dim is 0, got \[4, 2, 3, 2\]; set noise_dim"):
        dynamics.rollout(carts(), normal(H, B, J, A), normal(H, B, J, S))


def test_a_return_is_differentiable_in_state_and_actions_and_leaves_them_alone():
    state, actions = carts(), normal(H, B, J, A).requires_grad_()
    state.position.requires_grad_()
    kept = [leaf.detach().clone() for leaf in (*state, actions)]
    StepDynamics(push, cost, goes_on=near).rollout(state, actions).sum().backward()
    assert bool((actions.grad[..., 0].abs().sum((1, 2)) > 0).all())
    assert bool((state.position.grad != 0).all())
    assert all(torch.equal(leaf, before) for leaf, before in zip((*state, actions), kept, strict=True))


@pytest.mark.parametrize("settings", [{}, {"goes_on": near}, {"discount": 0.9}])
def test_it_traces_into_one_graph(settings):
    dynamics = StepDynamics(shaken, cost, noise_dim=S, **settings)
    state, actions, noise = carts(), normal(H, B, J, A), normal(H, B, J, S, seed=1)
    traced = torch.compile(dynamics.rollout, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(state, actions, noise), dynamics.rollout(state, actions, noise))


def test_planning_with_a_step_and_a_reward_comes_to_the_best_actions():
    # One step of an integrator towards 2 costs (x + a - 2)^2 + a^2, least at a = (2 - x) / 2.
    dynamics = StepDynamics(lambda x, a: x + a[:, 0], lambda x, a: -(x - 2).square() - a[:, 0].square())
    planner = CEMPlanner(dynamics, [-5.0], [5.0], horizon=1, num_candidates=500, num_elites=20)
    plan = planner(torch.tensor([0.0, 1.0, -4.0]), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plan.action[:, 0], torch.tensor([1.0, 0.5, 3.0]), atol=0.01, rtol=0)
    same = FunctionDynamics(lambda x, a: -(x[:, None] + a[0, ..., 0] - 2).square() - a[0, ..., 0].square())
    planner.dynamics = same
    other = planner(torch.tensor([0.0, 1.0, -4.0]), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plan.action, other.action, atol=1e-6, rtol=0)


WRONG_SETTINGS = [
    (lambda: FunctionDynamics(3.0), TypeError, "function must be a function, got float"),
    (lambda: StepDynamics(None, cost), TypeError, "step must be a function, got NoneType"),
    (lambda: StepDynamics(push, "cost"), TypeError, "reward must be a function, got str"),
    (lambda: StepDynamics(push, cost, goes_on=0.9), TypeError, "goes_on must be a function, got float"),
    (
        lambda: StepDynamics(push, cost, discount=0.0),
        ValueError,
        "discount must be greater than 0 and at most 1, got 0",
    ),
    (lambda: StepDynamics(push, cost, discount=1.01), ValueError, "discount must be greater than 0 .* got 1.01"),
    (lambda: StepDynamics(push, cost, discount=float("nan")), ValueError, "discount must be greater than 0 .* got nan"),
    (lambda: StepDynamics(push, cost, noise_dim=-1), ValueError, "noise_dim must be a whole number of at least 0, got"),
    (
        lambda: StepDynamics(push, cost, noise_dim=1.5),
        ValueError,
        "noise_dim must be a whole number of at least 0, got",
    ),
]


@pytest.mark.parametrize(("make", "kind", "match"), WRONG_SETTINGS)
def test_a_wrong_setting_is_named(make, kind, match):
    with pytest.raises(kind, match=match):
        make()


def test_a_wrong_argument_or_result_is_named():
    state, actions = carts(), normal(H, B, J, A)

    def ask(dynamics, match, state=state, actions=actions, noise=None, kind=ValueError):
        with pytest.raises(kind, match=match):
            dynamics.rollout(state, actions, noise)

    step = StepDynamics(push, cost)
    ask(step, r"actions must be \[H, B, J, A\], got \[2, 3, 2\]", actions=actions[0])
    ask(
        step,
        r"state must hold tensors \[2, ...\] \(the B of actions\), got one of \[1\]; what is no row",
        Cart(*state[:1], normal(1)),
    )
    ask(step, r"state must hold tensors \[2, ...\] .* got one of \[\]", Cart(normal(B), torch.tensor(1.0)))
    noisy = StepDynamics(shaken, cost, noise_dim=S)
    ask(noisy, r"noise must be \[H, B, J, S\] with H=4, B=2, J=3, S=2 .*, got \[4, 2, 1, 2\]", noise=normal(H, B, 1, S))
    one = StepDynamics(push, lambda cart, action: cart.position[:, None])
    ask(one, r"what reward returns must be \[N\] with N=6 \(one for each candidate, B \* J\), got \[6, 1\]")
    ask(
        StepDynamics(push, lambda cart, action: 1.0),
        "what reward returns must be a tensor .*, got float",
        kind=TypeError,
    )
    ends = StepDynamics(push, cost, goes_on=lambda cart: torch.ones(()))
    ask(ends, r"what goes_on returns must be \[N\] with N=6 .*, got \[\]")
    ask(
        FunctionDynamics(lambda state, actions: actions[:, :, :, 0]),
        r"what function returns must be \[B, J\] with B=2, J=3",
    )
    ask(
        FunctionDynamics(lambda state, actions: 1.0),
        "what function returns must be a tensor .*, got float",
        kind=TypeError,
    )
    ask(FunctionDynamics(cost), r"actions must be \[H, B, J, A\], got \[2, 3, 2\]", actions=actions[0])
    ask(
        FunctionDynamics(cost),
        r"noise must be None, since a function .* got \[4, 2, 3, 2\]; StepDynamics with",
        noise=actions,
    )
