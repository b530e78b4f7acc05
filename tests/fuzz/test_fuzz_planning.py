"""The planners of planet_lib.planning, fuzzed: their settings, their calls, and dynamics that return anything."""

import functools
import math

import numpy as np
import pytest
import torch
from fuzzing import Entry, finite, fuzz
from torch import Tensor
from torch.utils._pytree import tree_leaves

import planet_lib as pl
from planet_lib.planning import ICEMPlanner, Planner
from planet_lib.types import Plan

LEFT_OUT = {
    "planning.Planner": "abstract; its kinds are fuzzed, and with them what they share",
    "planning.Dynamics": "a protocol, which has no code of its own",
}
LOW, HIGH = [-1.0, -2.0], [1.0, 0.3]
B, H, J, K, ITERATIONS = 2, 2, 8, 3, 2
COUNTS = {"horizon": H, "num_candidates": J, "num_elites": K, "num_iterations": ITERATIONS, "num_particles": 1}
FIT = {"min_std": 0.01, "initial_std": 1.0, "sampling": "clip", "deviation": "std", "momentum": 0.1}


class Target:
    """The best action is 0.5, in every row whose state is finite; no other row has a return."""

    def rollout(self, state, actions, noise=None):
        return (-(actions - 0.5).square().sum((0, -1))).where(finite_rows(state)[:, None], math.nan)


class Returns:
    """Dynamics that return what they are told to, and draw the noise that they are told to."""

    def __init__(self, returned, drawn=None):
        self.returned, self.drawn = returned, drawn

    def rollout(self, state, actions, noise=None):
        return self.returned

    def draw_noise(self, actions, generator=None):
        return self.drawn


def finite_rows(state) -> Tensor:
    rows = torch.isfinite(next(leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)))
    return rows.all(tuple(range(1, rows.ndim))) if rows.ndim > 1 else rows


def within(action: Tensor, low, high) -> bool:
    """Whether actions are finite, and within the bounds up to the rounding of their type."""
    slack = 2 * torch.finfo(action.dtype).eps
    lower, upper = (torch.as_tensor(bound).detach().double() for bound in (low, high))
    moved = action.double()
    inside = (moved >= lower - slack * lower.abs().nan_to_num()) & (moved <= upper + slack * upper.abs().nan_to_num())
    return finite(action) and bool(inside.all())


def check_made(given, planner) -> None:
    """A planner that was made plans: valid, in every row, within its bounds."""
    torch.manual_seed(0)
    plan = planner(torch.zeros(B, 3))
    low, high = given.get("low", 0.0), given.get("high", 1.0)
    assert plan.valid.all()
    assert within(plan.action, low, high)
    assert plan.mean.shape == (int(given["horizon"]), B, planner.action_dim)
    assert len(planner.num_rollouts) == int(given["num_iterations"])
    assert min(planner.num_rollouts) >= int(given["num_particles"])


def check_plan(given, plan: Plan, planner: Planner) -> None:
    """Rows whose state is finite are valid, and their actions can be executed; the others say that they are not."""
    assert plan.mean.shape == (H, len(plan.valid), planner.action_dim)
    if plan.action.is_meta:
        return
    start = given["initial_mean"]
    possible = finite_rows(given["state"])
    if start is not None and not isinstance(planner, pl.RandomShootingPlanner):  # which starts nowhere
        possible = possible & ~start.isnan().any(-1).any(0)
    assert torch.equal(plan.valid, possible) or not finite([given["previous"], given["noise"]])
    assert within(plan.action[plan.valid], planner.low, planner.high)
    assert (plan.spread is None) != given["with_spread"]


@functools.cache
def planner_of(kind) -> Planner:
    counts = {name: count for name, count in COUNTS.items() if name != "num_elites" or kind in ELITES}
    bounds = {"num_actions": 2} if kind is pl.DiscreteCEMPlanner else {"low": LOW, "high": HIGH}
    return kind(Target(), **bounds, **counts)


ELITES = (pl.CEMPlanner, ICEMPlanner, pl.DiscreteCEMPlanner)


@functools.cache
def plan_before(kind) -> Plan:
    return planner_of(kind)(torch.zeros(B, 3), generator=torch.Generator().manual_seed(0))


def making(kind, **settings) -> Entry:
    counts = {name: count for name, count in COUNTS.items() if name != "num_elites" or kind in ELITES}
    bounds = {} if kind is pl.DiscreteCEMPlanner else {"low": LOW, "high": HIGH, "action_dim": 2}
    also = {"low": [-math.inf, torch.tensor(LOW), np.array(LOW), 1e308, [LOW]], "dynamics": [Target]}
    return Entry(
        f"planning.{kind.__name__}",
        kind,
        lambda: {"dynamics": Target()} | bounds | counts | settings,
        check_made,
        also=also,
        known_as={"action_dim": ["low"], "low": ["high"], "high": ["low"]},
    )


def calling(kind, **arguments) -> Entry:
    """A call with the noise that is drawn, or with all of it given."""
    given = {"previous": None, "initial_mean": None, "noise": None, "dynamics_noise": None, "generator": None}
    return Entry(
        f"planning.{kind.__name__}.__call__",
        planner_of(kind),
        lambda: (
            {"state": torch.ones(B, 3), "is_first": torch.zeros(B, dtype=torch.bool), "with_spread": False}
            | given
            | {name: make() for name, make in arguments.items()}
        ),
        lambda given, plan: check_plan(given, plan, planner_of(kind)),
        state=lambda _: torch.get_rng_state().sum().item(),
        also={"state": [{"a": torch.ones(B, 3), "b": torch.ones(1)}, [torch.ones(B), torch.ones(B, device="meta")]]},
    )


def drawn(*shape):
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def warm(kind) -> Entry:
    return calling(kind, previous=lambda: plan_before(kind), generator=torch.Generator)


def recorded(kind) -> Entry:
    most = max(planner_of(kind).num_rollouts)
    noise = {"noise": drawn(ITERATIONS, H, B, J, 2), "dynamics_noise": drawn(ITERATIONS, H, B, most, 4)}
    return calling(kind, initial_mean=lambda: torch.full((H, B, 2), 0.2), **noise)


def check_returned(given, plan: Plan) -> None:
    """What counts are the finite returns, of which the plan's value is the mean of the K best."""
    returned = given["returned"]
    best = returned.double().where(torch.isfinite(returned.to(torch.float32)), -math.inf).topk(K, dim=1).values
    known = best > -math.inf
    value = best.where(known, 0).sum(1) / known.sum(1)
    torch.testing.assert_close(plan.value.double(), value, equal_nan=True, rtol=1e-2, atol=1e-2)
    assert torch.equal(plan.valid, known.any(1))
    assert within(plan.action, LOW, HIGH)


def plan_with(returned, drawn_noise):
    planner = pl.CEMPlanner(Returns(returned, drawn_noise), LOW, HIGH, **COUNTS)
    return planner(torch.zeros(B, 3), generator=torch.Generator().manual_seed(0))


def check_explored(given, action) -> None:
    assert action.shape == given["action"].shape
    assert action.is_meta or not finite(given["action"]) or not finite(given["noise"]) or within(action, LOW, HIGH)


def check_chosen(given, action) -> None:
    """One of the two actions, whatever the noise; what was planned stays where it was not finite."""
    if not action.is_meta and finite(given["action"]):
        assert set(action.flatten().tolist()) <= set(given["action"].flatten().tolist()) | {0.0, 1.0}


HOSTILE = {"returned": ["dynamics.rollout returns"], "drawn_noise": ["dynamics.draw_noise returns"]}
MPPI = {"temperature": 0.5, "noise_std": 0.5, "adapt_std": True, "min_std": 0.01, "noise_beta": 1.0}
ENTRIES = [
    making(pl.CEMPlanner, **FIT),
    making(pl.ICEMPlanner, **FIT, noise_beta=2.0, decay=1.25, keep_fraction=0.3),
    making(pl.MPPIPlanner, **MPPI),
    making(pl.RandomShootingPlanner),
    making(pl.DiscreteCEMPlanner, num_actions=3, min_probability=0.01, momentum=0.1),
    *(warm(kind) for kind in (pl.CEMPlanner, pl.ICEMPlanner, pl.MPPIPlanner, pl.DiscreteCEMPlanner)),
    *(recorded(kind) for kind in (pl.CEMPlanner, pl.ICEMPlanner, pl.RandomShootingPlanner)),
    Entry(
        "planning.CEMPlanner.__call__",
        plan_with,
        lambda: {"returned": drawn(B, J)(), "drawn_noise": drawn(H, B, J, 4)()},
        check_returned,
        known_as=HOSTILE,
        also={"returned": [torch.full((B, J), math.nan), torch.full((B, J), math.inf)], "drawn_noise": [None]},
    ),
    Entry(
        "planning.CEMPlanner.explore",
        planner_of(pl.CEMPlanner).explore,
        lambda: {"action": torch.zeros(B, 2), "scale": 0.3, "noise": drawn(B, 2)()},
        check_explored,
    ),
    Entry(
        "planning.DiscreteCEMPlanner.explore",
        planner_of(pl.DiscreteCEMPlanner).explore,
        lambda: {"action": torch.eye(2), "scale": 0.3, "noise": drawn(2, 2)()},
        check_chosen,
    ),
    Entry(
        "planning.CEMPlanner.clip",
        planner_of(pl.CEMPlanner).clip,
        lambda: {"action": 3 * drawn(B, 2)()},
        lambda given, action: check_explored({"noise": None} | given, action),
    ),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)
