"""The states that actions lead to, in fewer operations: equal to stepping the cell, or left to it."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from planet_lib.models import ContinueHead, Decoder, RewardHead, VectorEncoder, WorldModel, foresight
from planet_lib.models.cells import RNNCell, RSSMCell, SSMCell
from planet_lib.models.cells._parts import GRU, DeterministicPath, GaussianHead
from planet_lib.models.foresight import features_ahead
from planet_lib.planning import CEMPlanner, LatentDynamics
from planet_lib.types import State

H, N, A = 5, 7, 2
SIZES = {"action_dim": A, "embed_dim": 3, "stoch_dim": 4, "hidden_dim": 6}
CELLS = [
    *((RSSMCell, {"activation": name, "num_layers": count}) for name in ("relu", "elu", "tanh") for count in (1, 3)),
    *((RSSMCell, {"min_std": 0.6, "min_std_mode": mode}) for mode in ("add", "clamp")),
    *((RNNCell, {"activation": name, "num_layers": count}) for name in ("relu", "elu", "tanh") for count in (1, 2)),
]


def made(kind, settings, dtype=torch.float64):
    torch.manual_seed(0)
    return kind(**SIZES, deter_dim=8, **settings).to(dtype)


def inputs(cell, dtype=torch.float64):
    state = State(*(torch.randn_like(field) for field in cell.initial(N)))
    noise = torch.randn(H, N, cell.noise_dim, dtype=dtype) if cell.noise_dim else None
    return state, torch.rand(H, N, A, dtype=dtype) * 2 - 1, noise


def stepped(cell, state, action, noise):
    features = []
    for t in range(len(action)):
        state = cell.prior(state, action[t], torch.zeros(N, cell.noise_dim).to(action) if noise is None else noise[t])
        features.append(cell.features(state))
    return torch.stack(features)


@pytest.mark.parametrize(("at_once", "lengths"), [(foresight._AT_ONCE, [H]), (2 * N * 12, [2, 2, 1]), (1, [1] * H)])
@pytest.mark.parametrize(("kind", "settings"), CELLS)
def test_it_equals_the_cells_own_steps(kind, settings, at_once, lengths, monkeypatch):
    monkeypatch.setattr(foresight, "_AT_ONCE", at_once)
    cell = made(kind, settings)
    state, action, noise = inputs(cell)
    for given in (noise, None):
        with torch.no_grad():
            pieces = list(features_ahead(cell, state, action, given))
        assert [len(piece) for piece in pieces] == lengths
        torch.testing.assert_close(torch.cat(pieces), stepped(cell, state, action, given), rtol=1e-12, atol=1e-12)


def test_it_changes_nothing_that_it_is_given():
    cell = made(RSSMCell, {})
    given = inputs(cell)
    before = [tensor.clone() for tensor in (*given[0], *given[1:], *cell.parameters())]
    with torch.no_grad():
        list(features_ahead(cell, *given))
    after = (*given[0], *given[1:], *cell.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


class Other(RSSMCell):
    """May compute anything."""


class OtherPath(DeterministicPath):
    """Likewise."""


def watch(module):
    module.register_forward_hook(lambda module, args, output: output)


def override(module, name="forward"):
    setattr(module, name, lambda *args: None)


def replace(module, name, value):
    setattr(module, name, value)


CHANGES = {
    "gru": lambda cell: replace(cell.path, "gru", GRU(8, 8, "reset_before")),
    "path": lambda cell: replace(cell, "path", OtherPath(A, 8, 4, 1, "relu", "reset_after")),
    "head": lambda cell: replace(cell, "prior_head", nn.Linear(8, 8)),
    "a layer": lambda cell: cell.prior_head.layers.__setitem__(0, nn.Sequential(cell.prior_head.layers[0])),
    "a bias": lambda cell: replace(cell.path.layers[0], "bias", None),
    "the gru's bias": lambda cell: replace(cell.path.gru, "bias_ih", None),
    "sparse": lambda cell: replace(
        cell.path.layers[0], "weight", nn.Parameter(cell.path.layers[0].weight.detach().to_sparse_csr(), False)
    ),
    "bfloat16": lambda cell: cell.to(torch.bfloat16),
    "a deviation that is not finite": lambda cell: cell.prior_head.out.bias.data[-1:].fill_(torch.inf),
    "prior": lambda cell: override(cell, "prior"),
    "features": lambda cell: override(cell, "features"),
    "the head's distribution": lambda cell: override(cell.prior_head, "distribution"),
    "the path's hidden layers": lambda cell: override(cell.path, "hidden"),
    **{
        f"{what} {name}": lambda cell, change=change, find=find: change(find(cell))
        for what, change in (("watched", watch), ("overridden", override))
        for name, find in (
            ("path", lambda cell: cell.path),
            ("gru", lambda cell: cell.path.gru),
            ("head", lambda cell: cell.prior_head),
            ("layer of the path", lambda cell: cell.path.layers[0]),
            ("layer of the head", lambda cell: cell.prior_head.layers[0]),
            ("last layer", lambda cell: cell.prior_head.out),
        )
    },
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_what_was_changed_in_a_cell_is_left_to_the_cell(change):
    cell = made(RSSMCell, {}, torch.float32)
    state, action, _ = inputs(cell, torch.float32)
    assert features_ahead(cell, state, action, None) is not None
    change(cell)
    assert features_ahead(cell, state, action, None) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [(RSSMCell, "prior"), (RSSMCell, "features"), (GaussianHead, "distribution"), (DeterministicPath, "hidden")],
)
@torch.no_grad()
def test_what_was_changed_in_a_class_is_left_to_the_cell(kind, name, monkeypatch):
    cell = made(RSSMCell, {}, torch.float32)
    state, action, _ = inputs(cell, torch.float32)
    monkeypatch.setattr(kind, name, lambda *_: None)
    assert features_ahead(cell, state, action, None) is None
    monkeypatch.undo()
    assert features_ahead(cell, state, action, None) is not None


@pytest.mark.parametrize(
    "cell",
    [SSMCell(**SIZES), Other(**SIZES), RSSMCell(**SIZES, gru="reset_before"), RSSMCell(**SIZES, activation="silu")],
    ids=["SSM", "subclass", "reset_before", "silu"],
)
@torch.no_grad()
def test_what_it_does_not_know_is_left_to_the_cell(cell):
    state, action, _ = inputs(cell, torch.float32)
    assert features_ahead(cell, state, action, None) is None


@torch.no_grad()
def test_noise_for_a_cell_without_any_is_left_to_the_cell():
    cell = made(RNNCell, {})
    state, action, _ = inputs(cell)
    assert features_ahead(cell, state, action, None) is not None
    assert features_ahead(cell, state, action, torch.zeros(H, N, 0)) is None


def test_where_operations_must_be_seen_they_are_left_to_the_cell():
    cell = made(RSSMCell, {}, torch.float32)
    state, action, noise = inputs(cell, torch.float32)
    assert features_ahead(cell, state, action, noise) is None  # gradients
    with torch.no_grad():
        assert features_ahead(cell, state, action, noise) is not None
        with torch.autocast("cpu"):
            assert features_ahead(cell, state, action, noise) is None
        with FlopCounterMode(display=False):
            assert features_ahead(cell, state, action, noise) is None
        with TorchFunctionMode():
            assert features_ahead(cell, state, action, noise) is None
        handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: output)
        assert features_ahead(cell, state, action, noise) is None
        handle.remove()
        seen = []
        torch.func.vmap(lambda row: seen.append(features_ahead(cell, state, row, noise)) or row)(action[None])
        assert seen == [None]


def make_model(kind=RSSMCell, *, goes_on=False):
    torch.manual_seed(1)
    cell = kind(**SIZES, deter_dim=8)
    heads = (Decoder(cell.feature_dim, (3,), hidden_dim=6), RewardHead(cell.feature_dim, hidden_dim=6))
    last = (ContinueHead(cell.feature_dim, hidden_dim=6),) if goes_on else ()
    return WorldModel(VectorEncoder(3, embed_dim=3), cell, *heads, *last).double()


@pytest.mark.parametrize("kind", [RSSMCell, RNNCell])
@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"discount": 0.9}, {"start": "sampled"}, {"transition": "mean", "discount": 0.5}],
    ids=["drawn", "discount", "sampled", "mean"],
)
def test_returns_equal_those_of_stepping(kind, goes_on, settings, monkeypatch):
    dynamics = LatentDynamics(make_model(kind, goes_on=goes_on), **settings)
    state = State(*(torch.randn_like(field) for field in dynamics.model.cell.initial(3)))
    actions = torch.rand(H, 3, N, A, dtype=torch.float64)
    noise = dynamics.draw_noise(actions)
    plain = dynamics.rollout(state, actions, noise)
    assert plain.requires_grad
    taken = watched(monkeypatch)
    for at_once in (foresight._AT_ONCE, 1):
        monkeypatch.setattr(foresight, "_AT_ONCE", at_once)
        with torch.no_grad():
            torch.testing.assert_close(dynamics.rollout(state, actions, noise), plain.detach(), rtol=1e-12, atol=1e-12)
    assert taken == [True, True]


def watched(monkeypatch):
    """Whether each rollout from here on took the fast way."""
    taken = []

    def ask(*args):
        pieces = features_ahead(*args)
        taken.append(pieces is not None)
        return pieces

    monkeypatch.setattr("planet_lib.planning.dynamics.features_ahead", ask)
    return taken


@torch.no_grad()
def test_an_objective_of_ones_own_is_what_is_summed(monkeypatch):
    taken, model = watched(monkeypatch), make_model()
    actions = torch.rand(H, 2, N, A, dtype=torch.float64)
    effort = LatentDynamics(model, objective=lambda state, action: -action.square().sum(-1))
    returns = effort.rollout(model.cell.initial(2), actions)
    torch.testing.assert_close(returns, -actions.square().sum((0, -1)))
    assert taken == []


class Own(RewardHead):
    """May compute anything."""


class OwnContinue(ContinueHead):
    """Likewise."""


HEADS = {
    "own": lambda head: replace(head, "__class__", Own if type(head) is RewardHead else OwnContinue),
    "watched": watch,
    "overridden": lambda head: replace(head, "forward", lambda features: features.sum(-1)),
    "watched layer": lambda head: watch(head.layers[0]),
    "replaced layer": lambda head: head.layers.__setitem__(0, nn.Sequential(head.layers[0], nn.BatchNorm1d(6))),
    "changes what it reads": lambda head: head.layers.__setitem__(0, nn.Sequential(nn.ReLU(True), head.layers[0])),
}


@pytest.mark.parametrize("name", ["reward_head", "continue_head"])
@pytest.mark.parametrize("change", HEADS.values(), ids=HEADS)
@torch.no_grad()
def test_a_head_that_was_changed_is_asked_at_each_step(name, change, monkeypatch):
    taken, model = watched(monkeypatch), make_model(goes_on=True)
    state, actions = model.cell.initial(1), torch.zeros(H, 1, N, A).double()
    LatentDynamics(model).rollout(state, actions)
    change(getattr(model, name))
    LatentDynamics(model.double()).rollout(state, actions)
    assert taken == [True]


def test_a_plan_waits_for_no_gradient_and_equals_the_plan_by_steps(monkeypatch):
    model = make_model(goes_on=True)
    planner = CEMPlanner(LatentDynamics(model), -1.0, 1.0, action_dim=A, horizon=H, num_candidates=20, num_elites=4)
    state = model.cell.initial(2)
    taken = watched(monkeypatch)
    torch.manual_seed(5)
    fast = planner(state)
    assert taken == [True] * planner.num_iterations
    monkeypatch.setattr("planet_lib.planning.dynamics.features_ahead", lambda *args: None)
    torch.manual_seed(5)
    torch.testing.assert_close(planner(state), fast, rtol=1e-9, atol=1e-9, equal_nan=True)
