"""The cells and the time loops over them, fuzzed."""

from types import SimpleNamespace

import pytest
import torch
from fuzzing import Entry, fuzz

from planet_lib.models import RNNCell, RSSMCell, SSMCell, imagine, observe, step
from planet_lib.models.rollout import map_state
from planet_lib.types import State

T, B, ACTION, EMBED, DETER, STOCH = 3, 2, 2, 5, 6, 3
SIZES = {"action_dim": ACTION, "embed_dim": EMBED, "stoch_dim": STOCH, "hidden_dim": 4, "num_layers": 1}
CHOICES = {"activation": "elu", "init": "glorot"}
SPREAD = {"min_std": 0.1, "min_std_mode": "clamp"}
SETTINGS = {
    RSSMCell: {**SIZES, "deter_dim": DETER, **CHOICES, **SPREAD, "gru": "reset_before"},
    SSMCell: {**SIZES, **CHOICES, **SPREAD},
    RNNCell: {**SIZES, "deter_dim": DETER, **CHOICES, "gru": "reset_after"},
}
CELLS = {}
for kind in SETTINGS:
    torch.manual_seed(0)
    own = {"deter_dim": DETER} if kind is not SSMCell else {}
    CELLS[kind] = kind(**SIZES, **own).requires_grad_(False)


def state(cell, *lead):
    return State(
        torch.randn(*lead, cell.deter_dim),
        *(torch.randn(*lead, STOCH) for _ in range(2)),
        torch.rand(*lead, STOCH) + 0.1,
    )


def untouched(_):
    """The weights of all cells, and torch's random numbers, which an error must leave alone."""
    versions = tuple(value._version for cell in CELLS.values() for value in cell.parameters())
    return versions, torch.get_rng_state().numpy().tobytes()


def same(one, other):
    torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-4, atol=1e-5)


def is_made(given, cell):
    assert all(type(getattr(cell, name)) is int for name in ("action_dim", "embed_dim", "feature_dim", "noise_dim"))
    assert cell.feature_dim == cell.deter_dim + cell.stoch_dim
    prior = cell.prior(cell.initial(2), torch.zeros(2, cell.action_dim))
    posterior = cell.posterior(prior, torch.zeros(2, cell.embed_dim))
    assert cell.features(posterior).shape == (2, cell.feature_dim)
    assert cell.divergence(posterior, prior).shape == (2,)


def is_initial(given, got):
    assert got.deter.shape[0] == got.stoch.shape[0] == given["batch_size"]
    assert not any(bool(field.any()) for field in got)


def is_drawn(cell):
    """Whether the sample is the mean moved by the noise, and the spread as wide as it must be."""

    def check(given, got):
        old = given["state"] if "state" in given else given["prior"]
        lead = old.deter.shape[:-1]
        assert got.deter.shape == (*lead, cell.deter_dim)
        assert all(field.shape == (*lead, STOCH) for field in got[1:])
        noise = given["noise"] if cell.noise_dim else 0.0
        if noise is not None:
            same(got.stoch, got.mean + got.std * noise)
        assert not bool((got.std < 0.1).any())
        if "prior" in given:
            same(got.deter, old.deter)

    return check


def are_features(cell):
    def check(given, got):
        read = [given["state"].deter, given["state"].stoch] if cell.deter_dim else [given["state"].stoch]
        same(got, torch.cat(read, -1))

    return check


def is_no_less_than_nothing(given, nats):
    assert nats.shape == given["posterior"].mean.shape[:-1]
    assert not bool((nats < -1e-4).any())


def has_mean_zero(given, got):
    same(got.deter, given["state"].deter)
    same(got.mean, torch.zeros_like(got.mean))
    same(got.std, torch.ones_like(got.std))


def is_redrawn(cell):
    def check(given, got):
        same(got.mean, given["state"].mean)
        if cell.noise_dim and given["noise"] is not None:
            same(got.stoch, given["state"].mean + given["state"].std * given["noise"])

    return check


def is_stepping(cell):
    """Whether filtering equals steps, one after the other, where the noise is known."""

    def check(given, got):
        state = given.get("state", given.get("initial"))
        state = cell.initial(given["embed"].shape[1]) if state is None else state
        state = state._replace(
            mean=torch.zeros_like(state.stoch), std=torch.ones_like(state.stoch)
        )  # which are not read
        for t in range(len(given["embed"])):
            noise = {} if cell.noise_dim == 0 else {name: given[name] for name in ("prior_noise", "posterior_noise")}
            noise = {name: None if value is None else value[t] for name, value in noise.items()}
            row = {name: given[name][t] for name in ("action", "embed", "is_first")}
            prior, state = step(cell, state, **row, **noise)
            if cell.noise_dim == 0 or given["posterior_noise"] is not None:
                same([got[0].mean[t], got[1].mean[t]], [prior.mean, state.mean])
                same(got[1].stoch[t], state.stoch)

    return check


def sequence(cell):
    return {
        "embed": torch.randn(T, B, EMBED),
        "action": torch.randn(T, B, ACTION).tanh(),
        "is_first": torch.tensor([[True, False], [False, False], [False, True]]),
        "prior_noise": torch.randn(T, B, cell.noise_dim),
        "posterior_noise": torch.randn(T, B, cell.noise_dim),
    }


def entries_of(kind):
    cell, name = CELLS[kind], f"models.{kind.__name__}"
    fields = {"state": state(cell, B)}

    def entry(method, valid, check):
        return Entry(f"{name}.{method}", getattr(cell, method), valid, check, state=untouched)

    def noise():
        return torch.randn(B, cell.noise_dim)

    return [
        Entry(name, kind, lambda: dict(SETTINGS[kind]), is_made),
        entry("initial", lambda: {"batch_size": 3}, is_initial),
        entry("prior", lambda: {**fields, "action": torch.randn(B, ACTION), "noise": noise()}, is_drawn(cell)),
        entry(
            "posterior",
            lambda: {"prior": state(cell, B), "embed": torch.randn(B, EMBED), "noise": noise()},
            is_drawn(cell),
        ),
        entry("features", lambda: {"state": state(cell, 4, B)}, are_features(cell)),
        entry("divergence", lambda: {"posterior": state(cell, B), "prior": state(cell, B)}, is_no_less_than_nothing),
        entry("global_prior", lambda: {"state": state(cell, B)}, has_mean_zero),
        entry("redraw", lambda: {"state": state(cell, B), "noise": noise()}, is_redrawn(cell)),
        entry("scan", lambda: {"state": state(cell, B), **sequence(cell)}, is_stepping(cell)),
    ]


class Faulty:
    """A cell of which one member is not as it must be."""

    def __init__(self, **members):
        self._cell = CELLS[RSSMCell]
        vars(self).update(members)

    def __getattr__(self, name):
        if name == "scan":
            raise AttributeError(name)
        return getattr(self._cell, name)

    def __repr__(self):
        return f"a cell with another {', '.join(name for name in vars(self) if name != '_cell')}"


NARROW = State(*(torch.zeros(B, n) for n in (1, 1, 1, 1)))
WRONG_CELLS = [
    RSSMCell,
    SimpleNamespace(action_dim=ACTION, noise_dim=STOCH),
    *(Faulty(**{name: value}) for name in ("action_dim", "feature_dim", "noise_dim") for value in (None, "2", -1, 2.5)),
    *(Faulty(**{name: value}) for name in ("initial", "prior") for value in (None, 3)),
    Faulty(initial=lambda batch_size: None),
    Faulty(initial=lambda batch_size: torch.zeros(batch_size, 3)),
    Faulty(initial=lambda batch_size: (torch.zeros(batch_size, 3),) * 4),
    Faulty(initial=lambda batch_size: State(None, None, None, None)),
    Faulty(initial=lambda batch_size: CELLS[RSSMCell].initial(batch_size + 1)),
    Faulty(prior=lambda state, action, noise=None: NARROW),
    Faulty(prior=lambda state, action, noise=None: None),
    Faulty(prior=lambda state, action, noise=None: tuple(state)),
]
WRONG_FILTERS = [
    *(Faulty(posterior=lambda prior, embed, noise=None, made=made: made) for made in (None, NARROW, ())),
    *(
        Faulty(scan=lambda *args, made=made: made)
        for made in (None, (), (None, None), (NARROW, NARROW), torch.zeros(2))
    ),
    Faulty(scan=3),
]


def is_prior(given, got):
    cell, noise = given["cell"], given["noise"]
    if noise is not None:
        first = cell.prior(given["initial"], given["action"][0], noise[0])
        same(map_state(lambda field: field[0], got), first)
    assert len(got.stoch) == len(given["action"])


def is_step(given, got):
    prior, posterior = got
    same(posterior.deter, prior.deter)
    for made, name in zip(got, ("prior_noise", "posterior_noise"), strict=True):
        if given[name] is not None:
            same(made.stoch, made.mean + made.std * given[name])


def row(cell):
    moved = {name: value[0] for name, value in sequence(cell).items()}
    return {"cell": cell, "state": state(cell, B), **moved}


RSSM = CELLS[RSSMCell]
ENTRIES = [
    *(entry for kind in CELLS for entry in entries_of(kind)),
    Entry(
        "models.observe",
        observe,
        lambda: {"cell": RSSM, "initial": state(RSSM, B), **sequence(RSSM)},
        is_stepping(RSSM),
        state=untouched,
        also={"cell": WRONG_CELLS + WRONG_FILTERS},
    ),
    Entry(
        "models.imagine",
        imagine,
        lambda: {
            "cell": RSSM,
            "initial": state(RSSM, B),
            "action": torch.randn(T, B, ACTION),
            "noise": torch.randn(T, B, STOCH),
        },
        is_prior,
        state=untouched,
        also={"cell": WRONG_CELLS},
    ),
    Entry("models.step", step, lambda: row(RSSM), is_step, state=untouched, also={"cell": WRONG_CELLS}),
]
LEFT_OUT = {"models.Cell": "a protocol", "models.cells.Cell": "a protocol"}


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)
