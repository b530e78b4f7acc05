"""The agent of planet_lib.planning, fuzzed."""

import functools

import pytest
import torch
from fuzzing import Entry, finite, fuzz

import planet_lib as pl
from planet_lib.planning import AgentNoise, AgentState, CompiledPlanner, PlanningAgent

LEFT_OUT = {
    "planning.AgentNoise": "a NamedTuple; PlanningAgent.__call__ checks what it holds",
    "planning.AgentState": "a NamedTuple; PlanningAgent.__call__ checks what it holds",
}
B, A, H, J, S = 2, 2, 2, 6, 3


@functools.cache
def model() -> pl.WorldModel:
    torch.manual_seed(0)
    encoder = pl.VectorEncoder(3, embed_dim=5)
    cell = pl.RSSMCell(action_dim=A, embed_dim=5, deter_dim=4, stoch_dim=S, hidden_dim=5)
    head = pl.RewardHead(cell.feature_dim, hidden_dim=5)
    return pl.WorldModel(encoder, cell, pl.Decoder(cell.feature_dim, (3,), hidden_dim=5), head)


@functools.cache
def planner() -> pl.ICEMPlanner:
    counts = {"horizon": H, "num_candidates": J, "num_elites": 2, "num_iterations": 2}
    return pl.ICEMPlanner(pl.LatentDynamics(model()), -1.0, 1.0, action_dim=A, **counts)


@functools.cache
def agent() -> PlanningAgent:
    return PlanningAgent(model(), planner(), warm_start=True)


@functools.cache
def state_before() -> AgentState:
    torch.manual_seed(0)
    return agent()(torch.ones(B, 3), torch.ones(B, dtype=torch.bool), None, explore=False)[1]


@functools.cache
def noise() -> AgentNoise:
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    most = max(planner().num_rollouts)
    candidates, moves = draw(2, H, B, J, A), draw(2, H, B, most, S)
    return AgentNoise(None, draw(B, S), draw(B, S), candidates, moves, draw(B, A))


def act_once(made: PlanningAgent):
    return made(torch.ones(B, 3), torch.ones(B, dtype=torch.bool), None, explore=True)


def check_act(answer) -> None:
    """What is executed is finite and within the bounds, and it is what the agent remembers."""
    action, state, plan = answer
    assert action.shape == (B, A)
    assert finite(action)
    assert float(action.abs().max()) <= 1.0
    assert torch.equal(state.action, action)
    assert plan.valid.all()
    assert finite(state.latent)


def check_loaded(given, loaded) -> None:
    known = given["saved"]
    assert isinstance(loaded, AgentState)
    for one, other in zip([loaded.action, *loaded.latent], [known["action"], *known["latent"]], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


SEEN = {"obs": ["observation", "embed"], "noise": ["noise"], "state": ["state", "previous"]}
ENTRIES = [
    Entry(
        "planning.PlanningAgent",
        PlanningAgent,
        lambda: {
            "model": model(),
            "planner": planner(),
            "exploration_std": 0.3,
            "bits": 5,
            "warm_start": True,
        },
        lambda given, made: check_act(act_once(made)),
        also={"planner": [pl.ICEMPlanner, CompiledPlanner], "model": [pl.WorldModel]},
    ),
    Entry(
        "planning.PlanningAgent.__call__",
        agent(),
        lambda: {
            "obs": torch.ones(B, 3),
            "is_first": torch.zeros(B, dtype=torch.bool),
            "state": state_before(),
            "explore": True,
            "noise": noise(),
        },
        lambda given, answer: check_act(answer),
        also={"obs": [{"camera": torch.ones(B, 3)}, {}], "noise": [None], "state": [None]},
        known_as=SEEN,
    ),
    Entry(
        "planning.PlanningAgent.initial",
        lambda batch_size: agent().initial(batch_size),
        lambda: {"batch_size": 3},
        lambda given, state: torch.testing.assert_close(state.action, torch.zeros(int(given["batch_size"]), A)),
    ),
    Entry(
        "planning.PlanningAgent.policy",
        lambda explore: agent().policy(explore=explore),
        lambda: {"explore": True},
        lambda given, policy: check_act(
            (*policy(torch.ones(B, 3), torch.ones(B, dtype=torch.bool), None), state_before().plan)
        ),
    ),
    Entry(
        "planning.PlanningAgent.save_state",
        lambda state: agent().save_state(state),
        lambda: {"state": state_before()},
        lambda given, saved: check_loaded({"saved": saved}, given["state"]),
    ),
    Entry(
        "planning.PlanningAgent.load_state",
        lambda saved: agent().load_state(saved),
        lambda: {"saved": agent().save_state(state_before())},
        check_loaded,
    ),
    Entry(
        "planning.CompiledPlanner",
        CompiledPlanner,
        lambda: {"planner": planner()},
        lambda given, made: (made.horizon, made.action_dim, made.mode) == (H, A, None) or pytest.fail("its sizes"),
        also={"planner": [pl.ICEMPlanner, pl.LatentDynamics(model())]},
    ),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)
