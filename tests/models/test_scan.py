"""The loop that filters in eager mode on a CPU is the plain loop: in values, in gradients, and where it gives way."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import random_cases as cases
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from planet_lib import RSSMCell, State
from planet_lib.models.cells import _passes, _scans
from planet_lib.models.cells._parts import GRU, DeterministicPath, GaussianHead

T, B = 6, 3

COVERED: list[tuple[str, dict[str, Any]]] = [
    *(("rssm", {"activation": name, "num_layers": layers}) for name in ("relu", "elu", "tanh") for layers in (1, 2, 3)),
    *(("rssm", {"min_std_mode": mode, "min_std": 0.6, "num_layers": 2}) for mode in ("add", "clamp")),
    *(("rnn", {"activation": name, "num_layers": layers}) for name in ("relu", "elu", "tanh") for layers in (1, 3)),
]
LEFT_OUT: list[tuple[str, dict[str, Any]]] = [
    ("rssm", {"gru": "reset_before"}),
    ("rssm", {"activation": "silu"}),
    ("rnn", {"activation": "gelu"}),
]


def arguments(cell: Any, *, resets: float = 0.25, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """State, embed, action, is_first and noise, all of them leaves with a gradient."""
    embed, action, is_first, _, noise = cases.draw_sequence(cell, 2, length=T, batch_size=B, resets=resets)
    state = State(*(field.to(dtype).requires_grad_() for field in cases.draw_state(cell, 3, B)))
    embed, action, noise = (value.to(dtype).requires_grad_() for value in (embed, action, noise))
    return state, embed, action, is_first, noise if cell.noise_dim else None


def leaves(cell: Any, state: State, embed: Tensor, action: Tensor, is_first: Tensor, noise: Tensor | None) -> list[Any]:
    weights = [*cell.path.parameters(), *cell.posterior_head.parameters()]
    return [state.deter, state.stoch, embed, action, *([] if noise is None else [noise]), *weights]


def weighted(states: Sequence[Tensor]) -> Tensor:
    """A number to which every entry of every field counts differently."""
    random = torch.Generator().manual_seed(4)
    return sum(
        (field * torch.randn(field.shape, generator=random, dtype=torch.float64).to(field.dtype)).sum()
        for field in states
    )


Loop = Callable[..., State]


def values_and_gradients(loop: Loop, cell: Any, given: tuple[Any, ...]) -> tuple[State, tuple[Tensor, ...]]:
    states = loop(cell.path, cell.posterior_head, *given)
    return states, torch.autograd.grad(weighted(states), leaves(cell, *given))


def never(*_: object) -> State:
    raise AssertionError("the plain loop was taken")


@pytest.mark.parametrize("resets", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("kind", "settings"), COVERED)
def test_values_and_all_gradients_are_those_of_the_plain_loop(
    kind: str, settings: dict[str, Any], resets: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cases.make_cell(kind, 1, **settings)
    given = arguments(cell, resets=resets)
    expected = values_and_gradients(_scans.filter_by_steps, cell, given)
    monkeypatch.setattr(_scans, "filter_by_steps", never)
    got = values_and_gradients(_scans.filter_recurrent, cell, given)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_in_float32_they_agree_to_its_precision_at_the_papers_sizes() -> None:
    torch.manual_seed(0)
    cell = RSSMCell(action_dim=1, embed_dim=16)
    state, is_first = cell.initial(4), torch.rand(20, 4) < 0.1
    given = (state, torch.randn(20, 4, 16), torch.randn(20, 4, 1), is_first, torch.randn(20, 4, 30))
    pairs = []
    for loop in (_scans.filter_recurrent, _scans.filter_by_steps):
        states = loop(cell.path, cell.posterior_head, *given)
        weights = [*cell.path.parameters(), *cell.posterior_head.parameters()]
        pairs.append([*states, *torch.autograd.grad(weighted(states), weights)])
    for got, expected in zip(*pairs, strict=True):
        assert float((got - expected).detach().norm() / expected.detach().norm()) < 1e-5


@pytest.mark.parametrize(("kind", "settings"), [("rssm", {"activation": "tanh"}), ("rnn", {"activation": "elu"})])
def test_its_gradients_and_theirs_are_those_of_finite_differences(kind: str, settings: dict[str, Any]) -> None:
    cell = cases.make_cell(kind, 1, **settings)
    state, *given = arguments(cell)
    wanted = leaves(cell, state, *given)

    def filtered(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(_scans.filter_recurrent(cell.path, cell.posterior_head, state, *given))

    assert torch.autograd.gradcheck(filtered, wanted, fast_mode=True)
    assert torch.autograd.gradgradcheck(filtered, wanted, fast_mode=True)


class Filter(nn.Module):
    """A loop over a cell's layers, for `functional_call`."""

    def __init__(self, loop: Loop, cell: Any) -> None:
        super().__init__()
        self.loop, self.path, self.posterior_head = loop, cell.path, cell.posterior_head

    def forward(self, *given: Any) -> State:
        return self.loop(self.path, self.posterior_head, *given)


def test_a_gradients_gradient_is_the_plain_loops_for_weights_given_from_outside_too() -> None:
    cell = cases.make_cell("rssm", 1, num_layers=2)
    given = arguments(cell)
    found = []
    for loop in (_scans.filter_recurrent, _scans.filter_by_steps):
        loop_over_cell = Filter(loop, cell)
        others = {name: (0.7 * value.detach()).requires_grad_() for name, value in loop_over_cell.named_parameters()}
        wanted = [*others.values(), given[1]]
        states = torch.func.functional_call(loop_over_cell, others, given)
        first = torch.autograd.grad(weighted(states), wanted, create_graph=True)
        found.append([*first, *torch.autograd.grad(weighted(first), wanted)])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["rssm", "rnn"])
def test_under_create_graph_a_scan_from_anothers_last_state_counts_each_way_once(kind: str) -> None:
    cell = cases.make_cell(kind, 1)
    state, *given = arguments(cell)
    found = []
    for loop, create_graph in ((_scans.filter_recurrent, True), (_scans.filter_by_steps, False)):
        first = loop(cell.path, cell.posterior_head, state, *given)
        second = loop(cell.path, cell.posterior_head, State(*(field[-1] for field in first)), *given)
        slopes = torch.autograd.grad(weighted(second), leaves(cell, state, *given), create_graph=create_graph)
        found.append([slope.detach() for slope in slopes])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


def test_under_create_graph_outputs_without_a_gradient_are_left_out() -> None:
    cell = cases.make_cell("rssm", 1)
    state, embed, action, is_first, noise = arguments(cell)
    state = State(*(field.detach() for field in state))
    given = (state, *(each[:1].detach() for each in (embed, action, is_first, noise)))
    cell.requires_grad_(False)
    cell.posterior_head.requires_grad_(True)  # and so deter of the only step has no gradient
    weights, found = list(cell.posterior_head.parameters()), []
    for loop in (_scans.filter_recurrent, _scans.filter_by_steps):
        states = loop(cell.path, cell.posterior_head, *given)
        slopes = torch.autograd.grad(weighted(states[1:]), weights, create_graph=True)
        found.append([slope.detach() for slope in slopes])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("kind", ["rssm", "rnn"])
def test_several_gradients_at_once_are_those_one_by_one(kind: str) -> None:
    cell = cases.make_cell(kind, 1)
    state, embed, *given = arguments(cell)

    def three(embed: Tensor) -> Tensor:
        return _scans.filter_recurrent(cell.path, cell.posterior_head, state, embed, *given).stoch.sum((0, 1))[:3]

    at_once, one_by_one = (torch.autograd.functional.jacobian(three, embed, vectorize=both) for both in (True, False))
    torch.testing.assert_close(at_once, one_by_one)


@pytest.mark.parametrize("kind", ["rssm", "rnn"])
def test_no_nan_survives_a_reset_in_values_or_gradients(kind: str) -> None:
    cell = cases.make_cell(kind, 1)
    state, embed, action, is_first, noise = arguments(cell, resets=0.0)
    is_first[0], is_first[3, 1] = True, True
    lost = State(*(torch.full_like(field, float("nan")).requires_grad_() for field in state))
    spoilt = embed.detach().clone()
    spoilt[2, 1] = float("nan")
    found = []
    for loop in (_scans.filter_recurrent, _scans.filter_by_steps):
        states = loop(cell.path, cell.posterior_head, lost, spoilt, action, is_first, noise)
        assert bool(torch.isnan(states.mean[2, 1]).all())
        assert all(bool(torch.isfinite(field[3:]).all()) for field in states)
        inputs = torch.autograd.grad(weighted([field[3:] for field in states]), [lost.deter, lost.stoch, action])
        found.append([*states, *inputs])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert all(bool(torch.isfinite(gradient[..., [0, 2], :]).all()) for gradient in found[0][-3:])


@pytest.mark.parametrize(("kind", "settings"), LEFT_OUT)
def test_settings_that_it_does_not_cover_take_the_plain_loop(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cases.make_cell(kind, 1, **settings)
    monkeypatch.setattr(_scans, "filter_by_steps", never)
    with pytest.raises(AssertionError, match="plain loop"):
        _scans.filter_recurrent(cell.path, cell.posterior_head, *arguments(cell))


@pytest.mark.parametrize("part", ["path.layers.1", "path.gru", "posterior_head.out"])
def test_a_layer_with_a_hook_is_called(part: str) -> None:
    cell = cases.make_cell("rssm", 1, num_layers=2)
    calls = []
    cell.get_submodule(part).register_forward_hook(lambda *_: calls.append(part))
    _scans.filter_recurrent(cell.path, cell.posterior_head, *arguments(cell))
    assert len(calls) == T


def test_a_parametrised_layer_keeps_its_gradient() -> None:
    cell = cases.make_cell("rssm", 1)
    nn.utils.parametrizations.weight_norm(cell.posterior_head.out)
    found = [
        torch.autograd.grad(
            weighted(loop(cell.path, cell.posterior_head, *arguments(cell))), list(cell.posterior_head.parameters())
        )
        for loop in (_scans.filter_recurrent, _scans.filter_by_steps)
    ]
    torch.testing.assert_close(*found, rtol=0.0, atol=0.0)


# torch has no rule of vmap for its GRU step, and scripts its rules of forward derivatives.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_transforms_of_functions_and_forward_derivatives_pass_through() -> None:
    cell = cases.make_cell("rssm", 1)
    state, embed, action, is_first, noise = arguments(cell)
    state, embed, action = State(*(field.detach() for field in state)), embed.detach(), action.detach()

    def mean(embed: Tensor) -> Tensor:
        return _scans.filter_recurrent(
            cell.path, cell.posterior_head, state, embed, action, is_first, noise.detach()
        ).mean

    several = torch.stack([embed, -embed])
    torch.testing.assert_close(torch.vmap(mean)(several), torch.stack([mean(embed), mean(-embed)]))
    by_transform = torch.func.grad(lambda embed: mean(embed).square().sum())(embed)
    watched = embed.clone().requires_grad_()
    (expected,) = torch.autograd.grad(mean(watched).square().sum(), watched)
    torch.testing.assert_close(by_transform, expected)
    _, forwards = torch.func.jvp(mean, (embed,), (torch.ones_like(embed),))
    step = 1e-6
    with forward_ad.dual_level():
        dual = mean(forward_ad.make_dual(embed, torch.ones_like(embed)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, forwards)
    torch.testing.assert_close(forwards, (mean(embed + step) - mean(embed - step)) / (2 * step), rtol=1e-5, atol=1e-7)


def test_under_autocast_it_is_the_plain_loop() -> None:
    cell = RSSMCell(action_dim=2, embed_dim=16)
    given = (cell.initial(B), torch.randn(T, B, 16), torch.randn(T, B, 2), torch.zeros(T, B, dtype=torch.bool))
    noise = torch.randn(T, B, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = (
            loop(cell.path, cell.posterior_head, *given, noise)
            for loop in (_scans.filter_recurrent, _scans.filter_by_steps)
        )
    torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)


def test_what_needs_no_gradient_gets_none_and_without_any_there_is_no_graph() -> None:
    cell = cases.make_cell("rssm", 1)
    state, embed, action, is_first, noise = arguments(cell)
    given = (State(*(field.detach() for field in state)), embed, action.detach(), is_first, noise.detach())
    cell.requires_grad_(False)
    states = _scans.filter_recurrent(cell.path, cell.posterior_head, *given)
    weighted(states).backward()
    assert embed.grad is not None
    assert all(weight.grad is None for weight in cell.parameters())
    without = (given[0], embed.detach(), *given[2:])
    cell.requires_grad_(True)
    with torch.no_grad():
        unwatched = _scans.filter_recurrent(cell.path, cell.posterior_head, *without)
    cell.requires_grad_(False)
    frozen = _scans.filter_recurrent(cell.path, cell.posterior_head, *without)
    for fields in (unwatched, frozen):
        torch.testing.assert_close(fields, states, rtol=0.0, atol=0.0)
        assert not any(field.requires_grad for field in fields)


def test_it_keeps_no_more_for_the_backward_pass_than_the_plain_loop() -> None:
    cell = RSSMCell(action_dim=1, embed_dim=256)
    given = (cell.initial(8), torch.randn(20, 8, 256), torch.randn(20, 8, 1), torch.zeros(20, 8, dtype=torch.bool))
    noise = torch.randn(20, 8, 30)
    kept = []
    for loop in (_scans.filter_recurrent, _scans.filter_by_steps):
        storages: dict[int, int] = {}

        def keep(value: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            states = loop(cell.path, cell.posterior_head, *given, noise)
        kept.append(sum(storages.values()))
        del states
    assert kept[0] <= kept[1]


@pytest.mark.parametrize("changed", ["weight", "embed"])
def test_what_is_changed_before_the_backward_pass_is_refused(changed: str) -> None:
    cell = cases.make_cell("rssm", 1)
    given = arguments(cell)
    states = _scans.filter_recurrent(cell.path, cell.posterior_head, *given)
    with torch.no_grad():
        (cell.path.gru.weight_hh if changed == "weight" else given[1]).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        weighted(states).backward()


def test_what_the_plain_loop_lets_one_change_in_place_can_be_changed() -> None:
    for kind in ("rssm", "rnn"):
        cell = cases.make_cell(kind, 1)
        found = []
        for loop in (_scans.filter_recurrent, _scans.filter_by_steps):
            state, embed, action, is_first, noise = arguments(cell)
            given = (state, embed, action.detach(), is_first, noise)
            states = loop(cell.path, cell.posterior_head, *given)
            given[2].zero_()
            states.mean.mul_(2.0)
            slopes = torch.autograd.grad(weighted(states), [embed, *cell.path.parameters()])
            found.append([*(field.detach() for field in states), *slopes])
        torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("part", ["path.layers.1", "posterior_head.layers.1", "posterior_head.out"])
def test_a_layer_without_a_bias_takes_the_plain_loop(part: str) -> None:
    cell = cases.make_cell("rssm", 1, num_layers=2)
    cell.get_submodule(part).bias = None
    given = arguments(cell)
    found = [loop(cell.path, cell.posterior_head, *given) for loop in (_scans.filter_recurrent, _scans.filter_by_steps)]
    torch.testing.assert_close(*found, rtol=0.0, atol=0.0)


class HalfGRU(GRU):
    def forward(self, inputs: Tensor, deter: Tensor) -> Tensor:
        return 0.5 * super().forward(inputs, deter)


class BoundedHead(GaussianHead):
    def distribution(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = super().distribution(hidden)
        return torch.tanh(mean), std


class SharpPath(DeterministicPath):
    def hidden_from(self, first: Tensor) -> Tensor:
        return 2.0 * super().hidden_from(first)


@pytest.mark.parametrize(
    ("part", "kind"), [("path.gru", HalfGRU), ("posterior_head", BoundedHead), ("path", SharpPath)]
)
def test_parts_of_other_classes_are_called(part: str, kind: type[nn.Module]) -> None:
    cell = cases.make_cell("rssm", 1)
    given = arguments(cell)
    before = _scans.filter_recurrent(cell.path, cell.posterior_head, *given)
    cell.get_submodule(part).__class__ = kind
    found = [loop(cell.path, cell.posterior_head, *given) for loop in (_scans.filter_recurrent, _scans.filter_by_steps)]
    torch.testing.assert_close(*found, rtol=0.0, atol=0.0)
    assert not torch.allclose(found[0].stoch, before.stoch)


@pytest.mark.parametrize("narrow", ["state", "embed", "action", "noise"])
def test_what_has_one_row_is_repeated_as_in_the_plain_loop(narrow: str) -> None:
    cell = cases.make_cell("rssm", 1)
    state, embed, action, is_first, noise = arguments(cell)
    given = {"state": state, "embed": embed, "action": action, "is_first": is_first, "noise": noise}
    given[narrow] = State(*(field[:1] for field in state)) if narrow == "state" else given[narrow][:, :1]
    found = [
        loop(cell.path, cell.posterior_head, *given.values())
        for loop in (_scans.filter_recurrent, _scans.filter_by_steps)
    ]
    assert found[0].stoch.shape[:2] == (T, B)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_one_layer_in_two_places_gets_the_gradient_of_both() -> None:
    cell = cases.make_cell("rssm", 1, num_layers=3)
    cell.path.layers[2] = cell.path.layers[1]
    given, found = arguments(cell), []
    for loop in (_scans.filter_recurrent, _scans.filter_by_steps):
        states = loop(cell.path, cell.posterior_head, *given)
        slopes = torch.autograd.grad(weighted(states), leaves(cell, *given), create_graph=True)
        found.append([slope.detach() for slope in slopes])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


def test_the_factors_of_the_gradient_lie_where_the_values_do_whatever_the_default_device() -> None:
    gates, memory = torch.rand(T, B, 6), torch.rand(T, B, 2)
    trace = _passes.Trace(memory, memory, memory, memory, gates, memory, [], [])
    expected = _passes._gate_factors(memory, trace)
    with torch.device("meta"):
        assert torch.equal(_passes._gate_factors(memory, trace), expected)
