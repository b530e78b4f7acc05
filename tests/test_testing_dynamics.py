"""The contract of dynamics: those of the library keep it, and each way to break it is named."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import planet_lib as pl
from planet_lib.envs import make_env
from planet_lib.planning import EnvDynamics, FunctionDynamics, MuJoCoDynamics, StepDynamics
from planet_lib.testing import ContractError, check_dynamics

A, S = 2, 3


class Cart(NamedTuple):
    position: Tensor
    velocity: Tensor


def carts() -> Cart:
    return Cart(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.0, -1.0]))


def push(cart, action):
    velocity = 0.9 * cart.velocity + action.sum(-1)
    return Cart(cart.position + 0.1 * velocity, velocity)


def shaken(cart, action, noise):
    return push(cart, action + 0.1 * noise[:, :A])


def cost(cart, action):
    return -(cart.position - 1).square() - 0.1 * action.square().sum(-1)


class Cars:
    """Right dynamics, written out, to be broken one piece at a time."""

    def rollout(self, state, actions, noise=None):
        return self.sum_up(self.move(state, actions, noise), actions)

    def move(self, state, actions, noise):
        """Positions [H, B, J]."""
        return state.position[:, None] + (0.5 * state.velocity[:, None] + actions.sum(-1)).cumsum(0)

    def sum_up(self, positions, actions):
        return -(positions - 1).square().sum(0)


def broken_by(**members):
    return type("Broken", (Cars,), members)()


def then(change):
    """Cars whose returns are changed: a function of (returns, state, actions)."""

    def rollout(self, state, actions, noise=None):
        return change(Cars.rollout(self, state, actions), state, actions)

    return broken_by(rollout=rollout)


def acting(change):
    """Cars that are given changed actions."""

    def rollout(self, state, actions, noise=None):
        return Cars.rollout(self, state, change(actions))

    return broken_by(rollout=rollout)


def noisy(change=lambda noise, actions: noise, **members):
    """Cars that are pushed by noise too, changed as asked, and drawn by torch where it is not given."""

    def rollout(self, state, actions, noise=None):
        noise = torch.randn(*actions.shape[:3], S) if noise is None else noise
        return Cars.rollout(self, state, actions + 0.1 * change(noise, actions)[..., :A])

    return broken_by(rollout=rollout, **members)


def drawing(draw):
    """Such cars that offer draw_noise: a function of (actions, generator)."""
    return noisy(draw_noise=lambda self, actions, generator=None: draw(actions, generator))


def normal(actions, generator=None):
    return torch.randn(*actions.shape[:3], S, generator=generator)


def check(dynamics, state=None, **settings):
    check_dynamics(dynamics, carts() if state is None else state, **{"action_dim": A, **settings})


def broken(dynamics, match, state=None, **settings):
    with pytest.raises(ContractError, match=match) as caught:
        check(dynamics, state, **settings)
    return caught.value


# What keeps the contract.


@pytest.mark.parametrize("seed", range(5))
def test_a_class_written_by_hand_keeps_the_contract_at_any_seed_and_traces(seed):
    check(Cars(), seed=seed, compile=seed == 0)
    check(drawing(normal), seed=seed, compile=seed == 0)
    check(noisy(), noise_dim=S, seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_functions_and_steps_keep_the_contract(dtype):
    state = Cart(*(field.to(dtype) for field in carts()))
    check(FunctionDynamics(lambda state, actions: Cars().rollout(state, actions)), state, compile=True)
    for settings in ({}, {"discount": 0.9}, {"goes_on": lambda cart: torch.sigmoid(2 - cart.position.abs())}):
        check(StepDynamics(push, cost, **settings), state, compile=True)
        check(StepDynamics(shaken, cost, noise_dim=S, **settings), state, compile=True)


@pytest.mark.parametrize("start", ["shared", "sampled"])
@pytest.mark.parametrize("kind", [pl.RSSMCell, pl.SSMCell, pl.RNNCell])
def test_learned_models_keep_the_contract(kind, start):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = pl.VectorEncoder(5, embed_dim=7)
        cell = kind(action_dim=A, embed_dim=7, stoch_dim=4, hidden_dim=8)
        head, goes_on = (make(cell.feature_dim, hidden_dim=8) for make in (pl.RewardHead, pl.ContinueHead))
        model = pl.WorldModel(encoder, cell, pl.Decoder(cell.feature_dim, (5,)), head, continue_head=goes_on)
        state = cell.posterior(cell.initial(3), encoder(torch.randn(3, 5)))
    check(pl.LatentDynamics(model, start=start), state, compile=kind is pl.RSSMCell)


def test_bounds_may_differ_be_missing_and_actions_may_be_one_hot():
    asked = []

    def watched(actions):
        asked.append(actions)
        return actions

    check(acting(watched), low=[0.0, -torch.inf], high=[2.0, -3.0], action_dim=None)
    seen = torch.cat([actions.flatten(0, -2) for actions in asked])
    seen = seen[seen.isfinite().all(1)]
    assert (seen.min(0).values >= torch.tensor([0.0, -torch.inf])).all()
    assert (seen.max(0).values <= torch.tensor([2.0, -3.0])).all()
    asked.clear()
    check(acting(lambda actions: watched(actions) * torch.tensor([-1.0, 0.3, 2.0])), discrete=True, action_dim=3)
    seen = torch.cat([actions.flatten(0, -2) for actions in asked])
    seen = seen[seen.isfinite().all(1)]
    assert sorted(set(map(tuple, seen.tolist()))) == [(0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)]


class Shelf:
    """A state that is no tensor alone: objects by place, and which place belongs to which row."""

    def rollout(self, state, actions, noise=None):
        positions = torch.tensor([state["saved"][place]["x"] for place in state["row"]])
        return -(positions[:, None] + actions.sum(-1).cumsum(0) - 1).square().sum(0)


def shelf():
    return {"row": torch.tensor([2, 0, 1]), "saved": ({"x": 0.5}, {"x": -1.0}, {"x": 2.0})}


def take_from_shelf(state, index):
    return {**state, "row": state["row"][index]}


def test_a_state_may_hold_what_is_no_tensor_and_is_taken_apart_by_the_function_given():
    check(Shelf(), shelf())
    check(Shelf(), shelf(), rows=take_from_shelf)


def test_without_rows_a_state_that_holds_other_things_is_not_taken_apart():
    class Sizes(Shelf):
        def rollout(self, state, actions, noise=None):
            sizes.add(len(state["row"]))
            return super().rollout(state, actions)

    sizes = set()
    check(Sizes(), shelf())
    assert sizes == {3}
    check(Sizes(), shelf(), rows=take_from_shelf)
    assert sizes == {1, 3}
    mixing = then(lambda returns, state, actions: returns)
    mixing.rollout = lambda state, actions, noise=None: Shelf().rollout({**state, "row": state["row"].flip(0)}, actions)
    check(mixing, shelf())
    broken(mixing, "of one environment must not depend on the state of others", shelf(), rows=take_from_shelf)


def test_what_nothing_replays_passes_with_random_alone():
    own = torch.Generator().manual_seed(0)
    dynamics = acting(lambda actions: actions + torch.rand(actions.shape, generator=own))
    check(dynamics, random=True)
    broken(dynamics, "must be the same when the same is asked again.*or pass random=True")
    broken(then(lambda returns, *_: returns.sum(1)), r"must be \[B, J\]", random=True)


def test_rewards_that_are_mostly_the_same_pass_with_sparse_alone():
    dynamics = then(lambda returns, *_: (returns > -1e-9).float())
    check(dynamics, sparse=True)
    broken(dynamics, "must depend on the actions of step 1 of 1.*sparse=True where most rewards are the same")


def test_an_action_that_shows_one_step_later_passes_with_delay_alone():
    late = StepDynamics(
        lambda cart, action: Cart(cart.position + cart.velocity, cart.velocity + action.sum(-1)),
        lambda cart, action: -cart.position.square(),
    )
    check(late, delay=1)
    broken(late, "must depend on the actions of step 1 of 1, .* or delay where it takes steps until an action shows")


def test_nan_may_be_refused_with_a_value_error_and_need_not_be_tried():
    def refuse(kind):
        def change(actions):
            if bool(actions.isnan().any()):
                raise kind("actions must be finite")
            return actions

        return acting(change)

    check(refuse(ValueError))
    broken(refuse(RuntimeError), r"dynamics.rollout must run with H=4, B=3, J=5, got RuntimeError: actions must be fin")
    check(refuse(RuntimeError), nan=False)


def test_rounding_may_decide_a_few_candidates_otherwise():
    def jump(returns, state, actions):
        return returns + (actions[0, ..., 0] / 49 * 49 > actions[0, ..., 0])

    check(then(jump), num_candidates=100)


def test_returns_may_be_minus_infinity_or_nan_here_and_there():
    def diverge(returns, state, actions):
        return torch.where(actions[0, ..., 0] > 0, returns, torch.where(actions[0, ..., 1] > 0, -torch.inf, torch.nan))

    check(then(diverge), num_candidates=40)


@pytest.mark.parametrize("grad", [True, False])
def test_it_leaves_everything_as_it_was(grad):
    state = carts()
    with torch.random.fork_rng():
        torch.manual_seed(12345)  # no seed that a check sets
        random = torch.get_rng_state()
        with torch.set_grad_enabled(grad):
            check(drawing(normal), state)
            assert torch.is_grad_enabled() is grad
            broken(then(lambda returns, *_: returns[0]), "must be", state)
        assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(field, before) for field, before in zip(state, carts(), strict=True))


def test_it_runs_under_inference_mode_with_a_state_from_there():
    def downhill(place, action):  # the slope of the square, by autograd
        with torch.enable_grad():
            place = place.detach().requires_grad_()
            (slope,) = torch.autograd.grad(place.square().sum(), [place])
        return place.detach() - 0.1 * slope + action[:, 0]

    with torch.inference_mode():
        check(StepDynamics(downhill, lambda place, action: -place.abs()), torch.tensor([1.0, -2.0]), action_dim=1)


def test_it_asks_without_gradients_as_planners_do():
    weight = torch.nn.Parameter(torch.ones(()))
    check(acting(lambda actions: torch.from_numpy((weight * actions).numpy())))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_tries_on_the_device_of_the_state():
    state = Cart(*(field.to("cuda") for field in carts()))
    check(StepDynamics(shaken, cost, noise_dim=S), state)
    here = then(lambda returns, *_: returns.cpu())
    broken(here, "must be floating on cuda:0, got torch.float32 on cpu", state)


# What cannot be tried.


WRONG_SETTINGS = [
    ({"state": {"x": 1.0}}, r"state must hold at least one tensor \[B, ...\], got none"),
    ({"state": (torch.zeros(2), torch.zeros(3))}, r"one batch size B, got shapes \[\[2\], \[3\]\]"),
    ({"state": torch.zeros(())}, r"one batch size B, got shapes \[\[\]\]"),
    ({"state": torch.zeros(1, 4)}, "state must have at least 2 rows, got 1; rows could mix unseen"),
    ({"state": torch.ones(3, 4)}, "state must have rows that differ, got equal ones; rows could mix unseen"),
    ({"horizon": 1}, "horizon and num_candidates must be at least 2, got 1 and 5"),
    ({"num_candidates": 1}, "horizon and num_candidates must be at least 2, got 4 and 1"),
    ({"noise_dim": 0}, "noise_dim must be a whole number of at least 1, got 0"),
    ({"action_dim": None}, "action_dim must be given where low and high are both single numbers, got None"),
    ({"action_dim": 0}, "action_dim must be a whole number of at least 1, got 0"),
    ({"low": [0.0, 0.0, 0.0]}, r"low and high must be numbers or \[A\] with A=action_dim, got \[3\], \[\] and 2"),
    ({"low": torch.zeros(2, 2)}, r"low and high must be numbers or \[A\] with A=action_dim, got \[2, 2\], \[\] and 2"),
    ({"low": 1.0}, r"low must be less than high in every dimension, got \[1.0, 1.0\] and \[1.0, 1.0\]"),
]


@pytest.mark.parametrize(("settings", "match"), WRONG_SETTINGS)
def test_a_setting_that_would_prove_nothing_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        check(Cars(), **settings)


def test_a_class_and_what_has_no_rollout_are_named():
    with pytest.raises(TypeError, match="dynamics must be an instance, got the class Cars; call it first"):
        check(Cars)
    for thing in (cost, torch.nn.Linear(1, 1), broken_by(rollout=None)):
        broken(thing, "dynamics.rollout must be a method, got none; wrap a plain function in planet_lib.planning.Funct")


def test_a_contract_error_keeps_its_cause():
    dynamics = then(lambda returns, state, actions: {}["reward"])
    assert isinstance(broken(dynamics, "must run with H=4, B=3, J=5, got KeyError: 'reward'").__cause__, KeyError)


# What breaks it.


def remembering(self, state, actions, noise=None):
    self.calls = getattr(self, "calls", 0) + 1
    return Cars.rollout(self, state, actions) * self.calls


def caching(self, state, actions, noise=None):
    if getattr(self, "at", None) != actions.shape:
        self.at, self.first = actions.shape, Cars.rollout(self, state, actions)
    return self.first.clone()


def reusing(self, state, actions, noise=None):
    returns = Cars.rollout(self, state, actions)
    self.buffers = getattr(self, "buffers", {})
    return self.buffers.setdefault(returns.shape, torch.empty_like(returns)).copy_(returns)


def writing_state(self, state, actions, noise=None):
    state.velocity.mul_(0.5)
    return Cars.rollout(self, state, actions)


def writing_zero(self, state, actions, noise=None):
    state.velocity[1] = -0.0  # equal to what was there, but for its sign
    return Cars.rollout(self, state, actions)


def moving_one(self, state, actions, noise=None):
    batch_size, count = actions.shape[1:3]
    position = state.position[:, None].expand(batch_size, count).reshape(-1)  # a view, if there is one candidate
    if count > 1:
        position = position.clone()
    position += 0.0 if count > 1 else 1.0
    return Cars.rollout(self, state, actions) + 0.0 * position.reshape(batch_size, count)


def needs_no_noise(self, state, actions):
    return Cars.rollout(self, state, actions)


def state_in_wrong_order(self, state, actions, noise=None):
    count = actions.shape[2]
    spread = Cart(*(field.repeat(count).reshape(-1, count) for field in state))
    return self.sum_up(spread.position + (spread.velocity[None] + actions.sum(-1)).cumsum(0), actions)


def with_fixed_horizon(actions):
    return torch.stack([actions[t] for t in range(4)])


def in_place(actions):
    return actions.mul_(2.0)


def numbered(returns, axis):
    shape = [1, 1]
    shape[axis] = returns.shape[axis]
    return returns + torch.arange(returns.shape[axis]).reshape(shape)


def zero_times(value, dim):
    return 0.0 * value.sum(dim, keepdim=True)


MIXED_STATES = {
    "a mean over the batch": lambda field: field - field.mean(),
    "rows compared with the first": lambda field: field - 0.5 * field[:1],
}
BROKEN = {
    "takes no noise": (
        lambda: broken_by(rollout=needs_no_noise),
        "dynamics.rollout must run with H=4, B=3, J=5, got TypeError",
    ),
    "returns no tensor": (
        lambda: then(lambda returns, *_: returns.numpy()),
        r"what dynamics.rollout returns must be a tensor \[B, J\], got ndarray",
    ),
    "keeps an axis": (
        lambda: then(lambda returns, *_: returns[..., None]),
        r"must be \[B, J\] = \[3, 5\], got \[3, 5, 1\]; one return for each candidate",
    ),
    "turns the axes": (
        lambda: then(lambda returns, *_: returns.T),
        r"must be \[B, J\] = \[3, 5\], got \[5, 3\]",
    ),
    "one return for each step": (
        lambda: then(lambda returns, state, actions: actions.sum(-1)),
        r"must be \[B, J\] = \[3, 5\], got \[4, 3, 5\]; one return for each candidate, summed over H",
    ),
    "whole numbers": (
        lambda: then(lambda returns, *_: returns.long()),
        "must be floating on cpu, got torch.int64 on cpu",
    ),
    "another device": (
        lambda: then(lambda returns, *_: returns.to("meta")),
        "must be floating on cpu, got torch.float32 on meta",
    ),
    "plus infinity": (
        lambda: then(lambda returns, *_: returns.masked_fill(returns == returns.max(), torch.inf)),
        r"must not be \+inf, which no planner follows; what cannot be evaluated is -inf or NaN",
    ),
    "a row without a finite return": (
        lambda: then(lambda returns, state, actions: returns.masked_fill(state.position[:, None] < 0, -torch.inf)),
        "must be finite for some actions, got only -inf and the like in row 1; nothing to plan by",
    ),
    "a horizon of its own": (lambda: acting(with_fixed_horizon), "must run with H=1, B=3, J=5, got IndexError"),
    "one candidate squeezed": (
        lambda: then(lambda returns, *_: returns.squeeze(1)),
        r"must be \[B, J\] = \[3, 1\], got \[3\]; .* no squeeze\(\) of axes of size 1",
    ),
    "one environment squeezed": (
        lambda: then(lambda returns, *_: returns.squeeze(0)),
        r"must be \[B, J\] = \[1, 5\], got \[5\]",
    ),
    "a view of the actions": (
        lambda: acting(lambda actions: actions.view(-1).view(actions.shape)),
        r"must run on actions that are not contiguous \(reshape, not view\), got RuntimeError",
    ),
    "expanded actions written over": (
        lambda: acting(lambda actions: in_place(actions) if 0 in actions.stride() else actions),
        r"must run on expanded actions \(write into no argument\), got RuntimeError",
    ),
    "actions written over": (
        lambda: acting(in_place),
        "actions must be left as it was by dynamics.rollout, got it changed; write into no argument",
    ),
    "the state written over": (
        lambda: broken_by(rollout=writing_state),
        "state must be left as it was by dynamics.rollout, got it changed",
    ),
    "the state of one candidate, which shares its memory, written over": (
        lambda: broken_by(rollout=moving_one),
        "state must be left as it was by dynamics.rollout, got it changed",
    ),
    "the sign of a zero written over": (
        lambda: broken_by(rollout=writing_zero),
        "state must be left as it was by dynamics.rollout, got it changed",
    ),
    "calls counted": (
        lambda: broken_by(rollout=remembering),
        "must be the same when the same is asked again; keep nothing from call to call: a simulator is put back first",
    ),
    "the first answer kept": (
        lambda: broken_by(rollout=caching),
        "must be permuted as the candidates are",
    ),
    "one buffer for all answers": (
        lambda: broken_by(rollout=reusing),
        "must not be written over by the next call; return a tensor of its own each time",
    ),
    "random numbers of torch's": (
        lambda: acting(lambda actions: actions + torch.randn_like(actions)),
        "must be the same at any seed where no noise is taken; offer draw_noise, or pass noise_dim or random=True",
    ),
    "candidates in the order of their returns": (
        lambda: then(lambda returns, *_: returns.sort(1).values),
        "must be permuted as the candidates are; take no rank, mean or other statistic over candidates",
    ),
    "candidates normalised": (
        lambda: then(lambda returns, *_: returns - returns.mean(1, keepdim=True)),
        "must be the same for one candidate as among others; take no rank, mean",
    ),
    "candidates numbered": (
        lambda: then(lambda returns, *_: numbered(returns, 1)),
        "must be permuted as the candidates are",
    ),
    "candidates compared with the worst": (
        lambda: then(lambda returns, *_: returns - (returns.amin(1, keepdim=True) if returns.shape[1] > 1 else 0)),
        "must be the same for one candidate as among others",
    ),
    "a bonus for the spread of candidates": (
        lambda: then(lambda returns, *_: returns + returns.std(1, unbiased=False, keepdim=True)),
        "must be the same for one candidate as among others; take no rank, mean or other statistic over candidates",
    ),
    "actions less their mean over environments": (
        lambda: acting(lambda actions: actions - actions.mean(1, keepdim=True)),
        "of one environment must not depend on the actions of others; take no statistic over the batch",
    ),
    **{
        f"state with {name}": (
            lambda change=change: broken_by(
                move=lambda self, state, actions, noise: Cars.move(self, Cart(*map(change, state)), actions, noise)
            ),
            "of one environment must not depend on the state of others; .* row b of the state goes with",
        )
        for name, change in MIXED_STATES.items()
    },
    "the state repeated in the wrong order": (
        lambda: broken_by(rollout=state_in_wrong_order),
        "must be permuted as the candidates are; .* repeat the state so that each has its own copy",
    ),
    "environments numbered": (
        lambda: then(lambda returns, *_: numbered(returns, 0)),
        "must be permuted as the environments are",
    ),
    "other numbers for one environment": (
        lambda: then(lambda returns, *_: returns if len(returns) > 1 else 2 * returns),
        r"must be the same for one environment alone as in a larger batch; .* no squeeze\(\)",
    ),
    "other numbers for one candidate of one": (
        lambda: then(lambda returns, *_: returns if returns.numel() > 1 else 2 * returns),
        "must be the same for one candidate of one as in a larger batch",
    ),
    "other numbers in float64": (
        lambda: acting(lambda actions: 2 * actions if actions.dtype == torch.float64 else actions),
        "must be the same for actions in torch.float64, got 15 of 15 returns that differ; compute in the precision",
    ),
    "NaN of one candidate in all": (
        lambda: then(lambda returns, state, actions: returns + zero_times(actions[0, ..., 0], 1)),
        r"must not be spoilt by NaN in one candidate's actions; select with torch.where, since 0 \* NaN is NaN",
    ),
    "NaN of one candidate in other environments": (
        lambda: then(lambda returns, state, actions: returns + zero_times(actions[0, ..., 0], 0)),
        "must not be spoilt by NaN in one candidate's actions",
    ),
    "NaN of one row in all": (
        lambda: then(lambda returns, state, actions: returns + zero_times(state.position, 0)),
        "must not be spoilt by NaN in another row of the state",
    ),
    "actions ignored": (
        lambda: acting(torch.zeros_like),
        "must depend on the actions of step 1 of 1, got the same returns from any",
    ),
    "later actions ignored": (
        lambda: acting(lambda actions: actions[:1].expand_as(actions)),
        "must depend on the actions of step 2 of 4",
    ),
    "actions after the usual horizon ignored": (
        lambda: acting(lambda actions: torch.cat([actions[:4], 0 * actions[4:]])),
        "must depend on the actions of step 5 of 7",
    ),
    "rewards before the step": (
        lambda: broken_by(
            move=lambda self, state, actions, noise: torch.cat(
                [state.position[:, None].expand(1, *actions.shape[1:3]), Cars.move(self, state, actions, noise)[:-1]]
            )
        ),
        "must depend on the actions of step 1 of 1, .* the last ones count by the states that they lead to, so use it",
    ),
    "the state ignored": (
        lambda: broken_by(rollout=lambda self, state, actions, noise=None: -actions.square().sum((0, 3))),
        "dynamics.rollout must depend on the state, got the same returns from any; use it, or try a longer horizon",
    ),
}


@pytest.mark.parametrize(("make", "match"), BROKEN.values(), ids=BROKEN)
def test_broken_dynamics_are_caught(make, match):
    broken(make(), match)


def test_an_entry_put_into_a_dictionary_is_caught():
    def rollout(self, state, actions, noise=None):
        state["cart"] = Cart(state["cart"].position.clone(), state["cart"].velocity)
        return Cars.rollout(self, state["cart"], actions)

    def one_more(self, state, actions, noise=None):
        state["calls"] = torch.zeros(3)
        return Cars.rollout(self, state["cart"], actions)

    for method in (rollout, one_more):
        broken(broken_by(rollout=method), "state must be left as it was by dynamics.rollout", {"cart": carts()})


def test_an_object_in_the_state_that_is_moved_on_is_caught():
    class Forgetful(Shelf):
        def rollout(self, state, actions, noise=None):
            returns = super().rollout(state, actions)
            for saved in state["saved"]:
                saved["x"] += 0.1
            return returns

    match = "must be the same when the same is asked again; keep nothing from call to call: a simulator is put back"
    broken(Forgetful(), f"{match}|state must be left as it was", shelf())


def test_what_another_call_left_behind_is_caught():
    class Warm(Cars):
        before = 4

        def rollout(self, state, actions, noise=None):
            horizon, self.before = self.before, len(actions)
            return super().rollout(state, actions) + (horizon == 5)

    broken(Warm(), "must not depend on calls in between; keep nothing from call to call", nan=False)


def test_actions_read_in_reverse_of_the_order_of_environments_are_caught():
    broken(acting(lambda actions: actions.flip(1)), "of one environment must not depend on the actions of others")


# Noise.


def test_noise_that_is_ignored_is_caught():
    broken(Cars(), "dynamics.rollout must depend on its noise, got the same returns from any; use it", noise_dim=S)


def test_noise_drawn_although_it_is_given_is_caught():
    dynamics = noisy(lambda noise, actions: noise + torch.randn_like(noise))
    broken(dynamics, "must be the same at any seed, since the noise is given; draw nothing where it is", noise_dim=S)


def test_noise_written_over_is_caught():
    dynamics = noisy(lambda noise, actions: noise.mul_(0.5) if 0 not in noise.stride() else noise)
    broken(dynamics, "noise must be left as it was by dynamics.rollout", noise_dim=S)


def test_noise_that_is_mixed_over_candidates_is_caught():
    broken(noisy(lambda noise, actions: noise.roll(1, 2)), "must be the same for one candidate as among", noise_dim=S)


def test_dynamics_that_need_noise_or_do_not_replay_it_are_caught():
    def needs(self, state, actions, noise=None):
        return Cars.rollout(self, state, actions + noise[..., :A])

    broken(broken_by(rollout=needs), "must run with H=4, B=3, J=5, got TypeError", noise_dim=S)
    own = torch.Generator().manual_seed(0)

    def draws(self, state, actions, noise=None):
        return needs(self, state, actions, normal(actions, own) if noise is None else noise)

    broken(broken_by(rollout=draws), "must be replayed by torch.manual_seed where noise is None", noise_dim=S)

    def never(self, state, actions, noise=None):
        return needs(self, state, actions, torch.zeros(*actions.shape[:3], S) if noise is None else noise)

    broken(broken_by(rollout=never), "must follow torch.manual_seed where noise is None", noise_dim=S)


def test_other_shapes_of_noise_than_the_ones_drawn_are_refused_by_the_dynamics_themselves():
    broken(
        StepDynamics(shaken, cost, noise_dim=S),
        r"must be \[H, 3, 5, 2\] for these actions, got \[4, 3, 5, 3\]",
        noise_dim=2,
    )


OWN = torch.Generator()
WRONG_DRAWS = {
    "needs no generator": (lambda: noisy(draw_noise=lambda self, actions: normal(actions)), "draw_noise must run with"),
    "returns no tensor": (lambda: drawing(lambda *_: [0.0]), "must be a floating tensor or None, got list"),
    "returns whole numbers": (
        lambda: drawing(lambda actions, generator: torch.ones(*actions.shape[:3], S, dtype=torch.int64)),
        "must be a floating tensor or None, got torch.int64",
    ),
    "leaves out an axis": (
        lambda: drawing(lambda actions, generator: normal(actions, generator)[:, 0]),
        r"must be \[H, 3, 5, S\] for these actions, got \[4, 5, 3\]",
    ),
    "one for all candidates": (
        lambda: drawing(lambda actions, generator: normal(actions, generator)[:, :, :1]),
        r"must be \[H, 3, 5, S\] for these actions, got \[4, 3, 1, 3\]",
    ),
    "another device": (
        lambda: drawing(lambda actions, generator: normal(actions, generator).to("meta")),
        "must be on cpu, got meta; take it from the actions",
    ),
    "ignores the generator": (
        lambda: drawing(lambda actions, generator: normal(actions)),
        "must be the same at the same seed of its generator; draw from that alone",
    ),
    "a seed of its own": (
        lambda: drawing(lambda actions, generator: normal(actions, torch.Generator().manual_seed(0))),
        "must follow its generator, got the same at another seed; pass it on",
    ),
    "uses the global one too": (
        lambda: drawing(lambda actions, generator: (torch.randn(1), normal(actions, generator))[1]),
        "must come from the generator given, got torch's global one used; pass it on",
    ),
    "reads the actions": (
        lambda: drawing(lambda actions, generator: normal(actions, generator) + 0 * actions[..., :1]),
        "must not depend on what actions hold; read their shape alone",
    ),
    "uniform": (
        lambda: drawing(lambda actions, generator: torch.rand(*actions.shape[:3], S, generator=generator)),
        "must be standard normal, got a mean that is off by",
    ),
    "off the middle": (
        lambda: drawing(lambda actions, generator: 0.5 + normal(actions, generator)),
        "must be standard normal, got a mean that is off by 0.[567]",
    ),
    "too wide": (
        lambda: drawing(lambda actions, generator: 1.5 * normal(actions, generator)),
        "must be standard normal, got .* or a variance by 1",
    ),
    "not replayed": (
        lambda: drawing(lambda actions, generator: normal(actions, OWN if generator is None else generator)),
        "must be replayed by torch.manual_seed where generator is None",
    ),
    "sometimes none": (
        lambda: drawing(lambda actions, generator: None if bool(actions.isnan().any()) else normal(actions, generator)),
        "must return noise for any actions or for none, got both",
    ),
}


@pytest.mark.parametrize(("make", "match"), WRONG_DRAWS.values(), ids=WRONG_DRAWS)
def test_a_wrong_draw_noise_is_caught(make, match):
    broken(make(), match)


def test_noise_that_candidates_share_and_dynamics_that_draw_none_are_right():
    check(drawing(lambda actions, generator: normal(actions[:, :, :1], generator).expand(*actions.shape[:3], S)))
    check(broken_by(draw_noise=lambda self, actions, generator=None: None))


# Tracing.


def test_a_python_branch_on_what_a_tensor_holds_is_caught_by_tracing_alone():
    def change(actions):
        return actions if bool(actions.abs().max() < 100) else actions.clamp(-1, 1)

    check(acting(change))
    match = r"must trace under torch.compile\(fullgraph=True\) \(no .item\(\), no Python branch.*or pass compile=False"
    broken(acting(change), match, compile=True)


# The true simulators, and planning.


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a line to a file for each simulation that NaN spoils


def started(name):
    envs = [make_env(name, obs="state") for _ in range(3)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    return envs


@pytest.mark.parametrize(("task", "sparse"), [("cartpole-swingup", False), ("reacher-easy", True)])
def test_mujoco_itself_keeps_the_contract(elsewhere, task, sparse):
    pytest.importorskip("dm_control")
    envs = started(f"dmc:{task}")
    dynamics, action_dim = MuJoCoDynamics.from_env(envs), envs[0].action_space.shape[0]
    check(dynamics, dynamics.state(), action_dim=action_dim, sparse=sparse)


@pytest.mark.parametrize(("name", "extra"), [("gym:Pendulum-v1", "gymnasium"), ("dmc:cartpole-swingup", "dm_control")])
def test_python_environments_keep_the_contract(elsewhere, name, extra):
    pytest.importorskip(extra)
    envs = started(name)
    dynamics = EnvDynamics(envs[0])
    check(
        dynamics,
        dynamics.state(envs),
        action_dim=1,
        horizon=2,
        num_candidates=2,
        rows=lambda state, index: state._replace(row=state.row[index]),
    )


def test_the_class_that_was_broken_plans():
    planner = pl.CEMPlanner(Cars(), -1.0, 1.0, action_dim=A, horizon=1, num_candidates=200, num_elites=20)
    plan = planner(carts(), generator=torch.Generator().manual_seed(0))
    best = (1 - carts().position - 0.5 * carts().velocity).clamp(-2, 2)
    torch.testing.assert_close(plan.mean[0].sum(-1), best, atol=0.02, rtol=0)
