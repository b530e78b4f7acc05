"""The dynamics of planet_lib.planning that are made of tensors, fuzzed: a model, and functions of all kinds."""

import functools
import math

import pytest
import torch
from fuzzing import Entry, finite, fuzz
from torch import Tensor
from torch.utils._pytree import tree_leaves

import planet_lib as pl
from planet_lib.planning import FunctionDynamics, LatentDynamics, StepDynamics

LEFT_OUT: dict[str, str] = {}
H, B, J, A, S = 3, 2, 4, 2, 3
MISTAKES = [lambda *_: None, lambda *_: 1.0, lambda *_: torch.ones(3), lambda state, action: action[:, :1]]


@functools.cache
def model() -> pl.WorldModel:
    torch.manual_seed(0)
    encoder = pl.VectorEncoder(3, embed_dim=5)
    cell = pl.RSSMCell(action_dim=A, embed_dim=5, deter_dim=4, stoch_dim=S, hidden_dim=5)
    heads = (pl.RewardHead(cell.feature_dim, hidden_dim=5), pl.ContinueHead(cell.feature_dim, hidden_dim=5))
    return pl.WorldModel(encoder, cell, pl.Decoder(cell.feature_dim, (3,), hidden_dim=5), *heads)


@functools.cache
def mortal() -> pl.WorldModel:
    """The model without the head that says whether an episode goes on."""
    parts = model()
    return pl.WorldModel(parts.encoder, parts.cell, parts.decoder, parts.reward_head)


class Theirs(Exception):
    """What a user's function raises, which is passed on as it is."""


def mine(function):
    """The function, whose own errors can be told from the library's."""
    if not callable(function):
        return function

    def guarded(*arguments):
        try:
            return function(*arguments)
        except Exception as error:
            raise Theirs from error

    return guarded


@functools.cache
def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def sums(state, actions) -> Tensor:
    """A return that is easy to know: the sum of the actions, and of what the state says."""
    first = next(leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
    known = first.real if first.is_complex() else first
    return actions.sum((0, -1)) + known.to(actions).reshape(len(first), -1).sum(1)[:, None]


def known_sums(given) -> Tensor:
    return sums(given["state"], given["actions"])


def same(answer, expected) -> None:
    bound = max(1e-4, 16 * torch.finfo(expected.dtype).eps) if expected.is_floating_point() else 1e-4
    torch.testing.assert_close(answer, expected, equal_nan=True, rtol=bound, atol=bound)


def check_latent(given, dynamics) -> None:
    """The dynamics that were made give finite returns; what an objective returns is fuzzed elsewhere."""
    if given["objective"] is not None:
        assert dynamics.objective is given["objective"]
        return
    state, actions = model().cell.initial(B), drawn(H, B, J, A)
    returns = dynamics.rollout(state, actions, dynamics.draw_noise(actions))
    assert returns.shape == (B, J)
    assert finite(returns)
    assert dynamics.discount == float(given["discount"])


def check_rollout(given, returns) -> None:
    """Returns follow the actions alone, candidate by candidate, and what is not finite stays in its own."""
    assert returns.shape == given["actions"].shape[1:3]
    actions, rows = given["actions"].detach(), torch.ones(B, dtype=torch.bool)
    for field in given["state"]:
        rows = rows & field.isfinite().reshape(B, -1).all(1)
    known = actions.isfinite().all(-1).all(0) & rows[:, None]
    if given["noise"] is not None:
        known = known & given["noise"].isfinite().all(-1).all(0)
    assert finite(returns[known & (actions.abs() < 1e6).all(-1).all(0) & small(given["state"])])


def small(state) -> Tensor:
    return torch.stack([(field.abs() < 1e6).reshape(B, -1).all(1) for field in state]).all(0)[:, None]


def check_noise(given, noise) -> None:
    assert noise.shape == (*given["actions"].shape[:3], S)
    assert noise.dtype == given["actions"].dtype
    assert finite(noise)


def check_stepped(given, returns) -> None:
    """The reward is the action's sum, so the return is that of all actions, each by its discount."""
    weight = given["discount"] ** torch.arange(H, dtype=torch.float32)
    same(returns, (drawn(H, B, J, A).sum(-1) * weight[:, None, None]).sum(0))


def step_with(step, reward, discount, goes_on, noise_dim) -> Tensor:
    functions = [mine(function) for function in (step, reward, goes_on)]
    dynamics = StepDynamics(*functions[:2], discount=discount, goes_on=functions[2], noise_dim=noise_dim)
    return dynamics.rollout(torch.zeros(B, 1), drawn(H, B, J, A))


def keep(state, action, noise=None):
    return state


def reward_of_action(state, action) -> Tensor:
    return action.sum(-1)


STEPS = StepDynamics(
    lambda state, action, noise: state, reward_of_action, goes_on=lambda state: torch.ones(B * J), noise_dim=S
)
RETURNED = {name: [f"what {name} returns"] for name in ("step", "reward", "goes_on", "function", "objective")}
ENTRIES = [
    Entry(
        "planning.LatentDynamics",
        LatentDynamics,
        lambda: {"model": model(), "start": "sampled", "transition": "drawn", "discount": 0.9, "objective": None},
        check_latent,
        also={"transition": ["mean"], "start": ["shared"]},
        known_as={"start": ["transition"], "transition": ["start"]},
    ),
    Entry(
        "planning.LatentDynamics",
        lambda objective: LatentDynamics(mortal(), objective=mine(objective)).rollout(
            model().cell.initial(B), drawn(H, B, J, A)
        ),
        lambda: {"objective": reward_of_action},
        lambda given, returns: check_stepped({"discount": 1.0}, returns) if given["objective"] else None,
        errors=(Theirs,),
        also={"objective": MISTAKES},
        known_as=RETURNED,
    ),
    Entry(
        "planning.LatentDynamics.rollout",
        LatentDynamics(model()).rollout,
        lambda: {"state": model().cell.initial(B), "actions": drawn(H, B, J, A), "noise": drawn(H, B, J, S)},
        check_rollout,
    ),
    Entry(
        "planning.LatentDynamics.rollout",
        LatentDynamics(model(), transition="mean").rollout,
        lambda: {"state": model().cell.initial(B), "actions": drawn(H, B, J, A), "noise": None},
        check_rollout,
    ),
    Entry(
        "planning.LatentDynamics.draw_noise",
        LatentDynamics(model()).draw_noise,
        lambda: {"actions": drawn(H, B, J, A), "generator": torch.Generator()},
        check_noise,
    ),
    Entry(
        "planning.FunctionDynamics",
        lambda function: FunctionDynamics(mine(function)).rollout(torch.zeros(B, 1), drawn(H, B, J, A)),
        lambda: {"function": sums},
        lambda given, returns: same(returns, drawn(H, B, J, A).sum((0, -1))),
        errors=(Theirs,),
        also={"function": [*MISTAKES, FunctionDynamics]},
        known_as=RETURNED,
    ),
    Entry(
        "planning.FunctionDynamics.rollout",
        FunctionDynamics(sums).rollout,
        lambda: {"state": drawn(B, 3), "actions": drawn(H, B, J, A), "noise": None},
        lambda given, returns: returns.is_meta or same(returns, known_sums(given)),
        also={"state": [{"a": drawn(B, 3), "b": torch.ones(1)}, [drawn(B), torch.ones(B, device="meta")]]},
    ),
    Entry(
        "planning.StepDynamics",
        step_with,
        lambda: {"step": keep, "reward": reward_of_action, "discount": 0.5, "goes_on": None, "noise_dim": 2},
        check_stepped,
        errors=(Theirs,),
        also={"reward": MISTAKES, "goes_on": [*MISTAKES, lambda state: torch.ones(B * J)]},
        known_as=RETURNED,
    ),
    Entry(
        "planning.StepDynamics.rollout",
        STEPS.rollout,
        lambda: {"state": drawn(B, 3), "actions": drawn(H, B, J, A), "noise": drawn(H, B, J, S)},
        lambda given, returns: same(
            returns.to(given["actions"].dtype), given["actions"].float().sum((0, -1)).to(given["actions"].dtype)
        ),
        also={"state": [{"a": drawn(B, 3), "b": torch.ones(1)}, [drawn(B), math.nan]]},
        known_as={"actions": ("goes_on",)},  # which is made for so many
    ),
    Entry(
        "planning.StepDynamics.draw_noise",
        STEPS.draw_noise,
        lambda: {"actions": drawn(H, B, J, A), "generator": torch.Generator()},
        check_noise,
    ),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)
