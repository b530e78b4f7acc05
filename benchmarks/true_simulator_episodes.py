"""The episodes of `true_simulator.py`: how one is named and sized, and how it is played.

Source of the task's question and the full size: Hafner et al. 2019 (arXiv:1811.04551), table 1, "CEM + true simulator".
"""

import inspect
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from true_simulator_report import PAPER, Row

from planet_lib.planning import CEMPlanner, ICEMPlanner, MPPIPlanner, RandomShootingPlanner

# The class, and whether the plan of the step before is handed in.
PLANNERS: dict[str, tuple[Any, bool]] = {
    "cem": (CEMPlanner, False),
    "cem-warm": (CEMPlanner, True),
    "icem": (ICEMPlanner, True),
    "mppi": (MPPIPlanner, True),
    "shooting": (RandomShootingPlanner, False),
}
# Iterations within a budget: up to BRIEF rollouts per decision, and above. The paper's, but fewer where the candidates
# would become too few. Those of iCEM and MPPI come from short trials.
ITERATIONS = {"cem": (5, 10), "cem-warm": (5, 10), "icem": (3, 5), "mppi": (3, 5), "shooting": (5, 10)}
BRIEF = 200
MIN_ELITES = 2
SIZES = ("num_candidates", "num_iterations", "num_elites", "horizon")


class Entry(NamedTuple):
    """One episode to be played."""

    task: str
    planner: str
    candidates: int
    iterations: int
    elites: int | None  # None for planners that have none
    horizon: int
    settings: dict[str, Any]
    env_steps: int
    seed: int

    def build(self, dynamics: Any, action_dim: int) -> Any:
        """Return the planner over these dynamics, for actions in [-1, 1]."""
        sizes = dict(zip(SIZES, (self.candidates, self.iterations, self.elites, self.horizon), strict=True))
        given = {name: value for name, value in sizes.items() if value is not None}
        return PLANNERS[self.planner][0](dynamics, -1.0, 1.0, action_dim=action_dim, **given, **self.settings)

    @property
    def rollouts(self) -> int:
        """Candidate sequences that one decision simulates at most."""
        return sum(self.build(NoDynamics(), 1).num_rollouts)

    @property
    def physics_steps(self) -> float:
        """Physics steps of the episode, as planned: a share of those at the paper's size."""
        share = self.rollouts / 10_000 * self.horizon / 12 * self.env_steps / 1000
        return PAPER[self.task].physics_steps * share

    def cells(self) -> Row:
        """What names this entry in the table of results."""
        settings = " ".join(f"{name}={value}" for name, value in sorted(self.settings.items()))
        named = {**self._asdict(), "settings": settings, "elites": self.elites or ""}
        return {name: str(value) for name, value in named.items()}


class Counted:
    """Dynamics whose rollouts are counted."""

    def __init__(self, dynamics: Any) -> None:
        self.dynamics, self.rollouts = dynamics, 0

    def rollout(self, state: Any, actions: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the dynamics return, and count the candidates [H, B, J, A]."""
        self.rollouts += actions.shape[1] * actions.shape[2]
        returns: torch.Tensor = self.dynamics.rollout(state, actions, noise)
        return returns


class NoDynamics:
    """Stands where a planner is only asked for its sizes."""

    def rollout(self, state: Any, actions: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Never called."""
        raise RuntimeError("this planner only counts")


def settings_of(planner: str) -> dict[str, Any]:
    """Return the settings of a planner besides its sizes, with their defaults."""
    parameters = inspect.signature(PLANNERS[planner][0]).parameters.values()
    keywords = {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}
    return {name: value for name, value in keywords.items() if name not in (*SIZES, "action_dim")}


def has_elites(planner: str) -> bool:
    """Whether a planner has a number of elites."""
    return "num_elites" in inspect.signature(PLANNERS[planner][0]).parameters


def change(planner: str, changes: Iterable[str]) -> dict[str, Any]:
    """Return a planner's settings after "name=value" texts, each of its default's type, or say what is wrong."""
    settings = settings_of(planner)
    kinds = {name: type(value) for name, value in settings.items()}
    for text in changes:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set must be name=value, got {text!r}")
        if name in SIZES:
            raise ValueError(f"--set must leave {name} to its own flag, --{name.removeprefix('num_')}, got {text!r}")
        if name not in settings:
            known = ", ".join(settings) or "none"
            raise ValueError(f"--set must name a setting of {planner} ({known}), got {name!r}")
        try:
            settings[name] = {"true": True, "false": False}[value] if kinds[name] is bool else kinds[name](value)
        except (KeyError, ValueError) as error:
            wanted = "true or false" if kinds[name] is bool else f"of type {kinds[name].__name__}"
            raise ValueError(f"--set {name} must be {wanted}, got {value!r}") from error
    return settings


def elites_for(planner: str, candidates: int) -> int | None:
    """A tenth of the candidates, as in the paper, and at least MIN_ELITES; None for planners without elites."""
    return min(candidates, max(MIN_ELITES, candidates // 10)) if has_elites(planner) else None


def fit(entry: Entry, rollouts: int) -> Entry:
    """Return the entry with its planner's iterations and the most candidates that keep within `rollouts`."""
    iterations = ITERATIONS[entry.planner][rollouts > BRIEF]

    def sized(candidates: int) -> Entry:
        elites = elites_for(entry.planner, candidates)
        return entry._replace(candidates=candidates, iterations=iterations, elites=elites)

    most = bisect_right(range(1, rollouts + 1), rollouts, key=lambda candidates: sized(candidates).rollouts)
    if most == 0:
        raise ValueError(f"rollouts must be at least {sized(1).rollouts} for {entry.planner}, got {rollouts}")
    return sized(most)


def play(entry: Entry, env: Any, dynamics: Any, tell: Callable[[float, float], None]) -> dict[str, float]:
    """Play one episode; `tell` hears after each decision what share of it is over and the return so far.

    The steps counted are those of the candidates: H actions each, also where the episode ends earlier. Reading the
    state and the one extra step that reads a rollout's last sensors are not among them.
    """
    env.reset(seed=entry.seed)
    generator = torch.Generator().manual_seed(entry.seed)
    counted = Counted(dynamics)
    planner = entry.build(counted, math.prod(env.action_space.shape))
    plan, total, decisions = None, 0.0, 0
    planned = math.ceil(entry.env_steps / env.action_repeat)
    start = time.perf_counter()
    for number in range(1, planned + 1):
        previous = plan if PLANNERS[entry.planner][1] else None
        plan = planner(dynamics.state(), previous=previous, generator=generator)
        if not bool(plan.valid.all()):
            raise RuntimeError(f"no candidate had a finite return at decision {number} of {describe(entry)}")
        _, reward, terminated, truncated, _ = env.step(plan.action[0].numpy())
        total, decisions = total + reward, number
        tell(number / planned, total)
        if terminated or truncated:
            break
    seconds = time.perf_counter() - start
    steps = counted.rollouts * dynamics.steps_per_rollout(entry.horizon)
    results = {"return": round(total, 4), "decisions": decisions, "rollouts": counted.rollouts}
    return {**results, "physics_steps": steps, "seconds": round(seconds, 2), "steps_per_second": round(steps / seconds)}


def describe(entry: Entry) -> str:
    """Name an entry on one line."""
    elites = f"/{entry.elites}" if entry.elites else ""
    return f"{entry.task} {entry.planner} {entry.candidates}x{entry.iterations}{elites} seed {entry.seed}"
