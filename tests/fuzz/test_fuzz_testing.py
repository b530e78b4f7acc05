"""The contracts of planet_lib.testing, fuzzed: with settings that are none, and with cells, dynamics, environments."""

import numpy as np
import pytest
import torch
from fuzzing import Entry, fuzz
from torch import nn

from planet_lib.models import RNNCell
from planet_lib.planning import StepDynamics
from planet_lib.testing import ContractError, _noise, check_cell, check_dynamics, check_env
from planet_lib.types import State

ACTION, EMBED, STOCH = 1, 2, 2


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    """Statistics of a few draws: what they tell apart is tried elsewhere, and here they take too long."""
    for name, few in (("_STEP_LEAD", (4, 8)), ("_START_LEAD", (4, 8)), ("_MIDDLE_BATCH", 8), ("_GIVEN", 8)):
        monkeypatch.setattr(_noise, name, few)


class But:
    """Another object, of which some members are not as they must be; one that is an exception is raised."""

    def __init__(self, of, **members):
        self._of, self._members = of, members

    def __getattr__(self, name):
        if name not in self._members:
            return getattr(self._of, name)
        if isinstance(self._members[name], Exception):
            raise self._members[name]
        return self._members[name]

    def __repr__(self):
        return (
            f"{type(self._of).__name__} but {', '.join(f'{name}={value!r}' for name, value in self._members.items())}"
        )


def gives(answer):
    return lambda *args, **kwargs: answer


def fails(error):
    def fail(*args, **kwargs):
        raise error

    return fail


torch.manual_seed(0)
CELL = RNNCell(ACTION, EMBED, deter_dim=3, stoch_dim=STOCH, hidden_dim=3).requires_grad_(False)
ODD = (
    None,
    3,
    "text",
    (),
    object(),
    torch.zeros(3, 2),
    torch.zeros(0),
    (torch.zeros(1),),
    np.zeros(2),
    nn.Linear(1, 1),
)
STATES = [
    State(None, None, None, None),
    State(*(torch.zeros(3, n) for n in (3, 2, 2, 2))),
    State(*(torch.zeros(1, n).to_sparse() for n in (3, 2, 2, 2))),
    State(*(torch.zeros(1, n, device="meta") for n in (3, 2, 2, 2))),
    State(*(torch.zeros(1, n, dtype=torch.complex64) for n in (3, 2, 2, 2))),
    State(*(torch.full((1, n), torch.nan) for n in (3, 2, 2, 2))),
]
ERRORS = (RuntimeError("broken"), KeyError("deter"), AssertionError(), RecursionError("deep"), StopIteration())
METHODS = ("initial", "prior", "posterior", "features", "divergence", "global_prior", "redraw", "scan")
OPTIONAL = ("global_prior", "redraw")  # None is as good as none
CELLS = [
    RNNCell,
    nn.Linear(2, 2),
    RNNCell(ACTION, EMBED, deter_dim=3, stoch_dim=2, hidden_dim=3).to("meta"),
    *(
        But(CELL, **{size: odd})
        for size in ("action_dim", "feature_dim", "noise_dim")
        for odd in (*ODD[:5], -1, 2.0, True)
    ),
    *(But(CELL, **{method: odd}) for method in METHODS for odd in (ODD if method not in OPTIONAL else ODD[1:])),
    *(But(CELL, **{method: gives(odd)}) for method in METHODS for odd in (*ODD, *STATES)),
    *(But(CELL, **{method: fails(error)}) for method in METHODS for error in ERRORS),
    *(But(CELL, **{method: ERRORS[0]}) for method in METHODS),
]


class Cars:
    """Dynamics of two cars that are pushed."""

    def rollout(self, state, actions, noise=None):
        places = state[None, :, None] + actions[..., 0].cumsum(0)
        return -places.square().sum(0)


class Moody(Cars):
    """Dynamics of which each answer is another one's."""

    def __init__(self, answer):
        self.answer, self.asked = answer, 0

    def rollout(self, state, actions, noise=None):
        self.asked += 1
        return self.answer if self.asked > 2 else super().rollout(state, actions, noise)

    def __repr__(self):
        return f"Moody({self.answer!r})"


DYNAMICS = [
    Cars,
    StepDynamics,
    *(But(Cars(), rollout=odd) for odd in (*ODD, RuntimeError("broken"))),
    *(
        But(Cars(), rollout=gives(odd))
        for odd in (*ODD, torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, device="meta"))
    ),
    *(But(Cars(), rollout=gives(torch.full((2, 5), number))) for number in (0.0, torch.nan, torch.inf, -torch.inf)),
    *(But(Cars(), rollout=fails(error)) for error in ERRORS),
    *(But(Cars(), draw_noise=odd) for odd in (*ODD[1:], RuntimeError("broken"))),
    *(
        But(Cars(), draw_noise=gives(odd))
        for odd in (*ODD[1:], torch.zeros(3, 2, 5, 0), torch.ones(3, 2, 5, 1).to_sparse())
    ),
    *(But(Cars(), draw_noise=fails(error)) for error in ERRORS),
    *(Moody(odd) for odd in (None, torch.zeros(2, 5), torch.zeros(0), "text")),
]
HOLDS_ITSELF = []
HOLDS_ITSELF.append(HOLDS_ITSELF)
START = torch.tensor([1.0, -2.0])
PLACES = [
    HOLDS_ITSELF,
    {"a": START, "b": START[:1]},
    {"a": START, 3: START, None: "text"},
    (START, object(), None, "text"),
    START.to_sparse(),
    START.to(torch.complex64),
    [START.bool(), START.to(torch.int64)],
    torch.full((2,), torch.nan),
]
BOUNDS = [
    "text",
    None,
    [[]],
    [1, [2]],
    [None],
    np.array(["1"]),
    1j,
    torch.zeros(1, device="meta"),
    [-1.0],
    np.float32(-1),
    -np.inf,
]


class Drift:
    """An environment of one number that drifts."""

    action_space = None

    def reset(self, *, seed=None):
        self.place, self.time, self.ended = np.random.default_rng(seed).normal(size=1), 0, False
        return self.place.copy(), {}

    def step(self, action):
        if self.ended or np.shape(action) != (1,) or not np.all(np.abs(action) <= 1):
            raise ValueError("action")
        self.place, self.time = self.place + action, self.time + 1
        self.ended = self.time >= 4
        return self.place.copy(), -float(abs(self.place[0])), False, self.ended, {}


class Answers(Drift):
    """An environment one of whose answers has another thing in one place."""

    def __init__(self, place, odd):
        self.at, self.odd = place, odd

    def step(self, action):
        answer = list(super().step(action))
        answer[self.at] = self.odd
        return tuple(answer)

    def __repr__(self):
        return f"Answers({self.at}, {self.odd!r})"


class Narrow(Drift):
    """With slots, and itself inside."""

    __slots__ = ("env",)
    action_repeat = 1

    def __init__(self):
        self.env = self


class BadArray:
    def __array__(self, *args, **kwargs):
        raise OSError("torn")


SPACES = [
    *ODD[1:],
    But(object(), low=-1, high=1, shape=3),
    But(object(), low=-1, high=1, shape=("a",)),
    But(object(), low=ERRORS[0]),
]
INFOS = (*ODD, BadArray(), np.nan, 1j, [[], [1]])
ENVS = [
    Drift,
    "gym:CartPole-v1",
    *(But(Drift(), **{method: odd}) for method in ("reset", "step") for odd in ODD),
    *(But(Drift(), **{method: gives(odd)}) for method in ("reset", "step") for odd in (*ODD, (1, 2), (1,) * 5)),
    *(But(Drift(), close=odd) for odd in ODD[1:-1]),
    *(But(Drift(), **{method: fails(error)}) for method in ("reset", "step", "close") for error in ERRORS),
    *(But(Drift(), action_space=odd) for odd in SPACES),
    *(But(Drift(), observation_space=odd) for odd in (*ODD[1:], But(object(), contains=fails(ERRORS[0])))),
    *(But(Drift(), action_repeat=odd) for odd in (None, *ODD[2:], -1, 0, True, 2.5)),
    *(But(Drift(), num_actions=odd) for odd in (*ODD[1:], -1, 0, True, 2.5)),
    *(But(Drift(), **{name: ERRORS[0]}) for name in ("action_space", "num_actions", "action_repeat", "env", "close")),
    *(Answers(place, odd) for place in range(5) for odd in INFOS if place != 1 or type(odd) is not int),
    *(Answers(place, odd) for place in range(4) for odd in ({}, {"": 1}, {3: np.zeros(1)})),
]


def passes(given, answer):
    """Whether what passed may do so: nothing that is known to be wrong."""
    assert answer is None
    for name, wrong in (("cell", CELLS), ("dynamics", DYNAMICS), ("env", ENVS)):
        assert not any(given.get(name) is thing for thing in wrong)


def as_it_was(_):
    """Torch's random numbers and its mode, which each check must leave alone."""
    return torch.get_rng_state().numpy().tobytes(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()


COMMON = {"check": passes, "state": as_it_was, "errors": (ContractError,)}
ENTRIES = [
    Entry(
        "testing.check_cell",
        check_cell,
        lambda: {"cell": CELL, "embed_dim": EMBED, "batch_size": 2, "length": 4, "seed": 1, "compile": False},
        keep=("compile",),
        slow=5,
        also={"cell": CELLS, "seed": [-1, 2**63 - 2, 2**64]},
        **COMMON,
    ),
    Entry(
        "testing.check_dynamics",
        check_dynamics,
        lambda: {
            "dynamics": Cars(),
            "state": START,
            "low": -1.0,
            "high": 1.0,
            "action_dim": 1,
            "discrete": False,
            "horizon": 2,
            "num_candidates": 3,
            "noise_dim": None,
            "random": False,
            "sparse": False,
            "delay": 0,
            "nan": True,
            "rows": None,
            "seed": 1,
        },
        also={
            "dynamics": DYNAMICS,
            "state": PLACES,
            "low": BOUNDS,
            "high": BOUNDS,
            "noise_dim": [1],
            "rows": [lambda state, index: state[index]],
        },
        **COMMON,
    ),
    Entry(
        "testing.check_env",
        check_env,
        lambda: {
            "env": Drift(),
            "seed": 1,
            "num_steps": 5,
            "action_dim": 1,
            "random": False,
            "bad_actions": True,
            "close": True,
        },
        also={"env": [*ENVS, Narrow()], "seed": [-1, 2**63 - 2, 2**64]},
        **COMMON,
    ),
]
LEFT_OUT = {"testing.ContractError": "an exception"}


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)


@pytest.mark.parametrize("given", [None, "no", 2, torch.tensor(True)], ids=repr)
@pytest.mark.parametrize(("check", "thing"), [(check_cell, [CELL]), (check_dynamics, [Cars(), START])])
def test_whether_to_trace_is_yes_or_no(check, thing, given):
    with pytest.raises(TypeError, match="compile must be True or False, got"):
        check(*thing, compile=given)
