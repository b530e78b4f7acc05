"""The three cells, one step at a time: formulas by hand, laws, messages."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor

from planet_lib import Cell, RNNCell, RSSMCell, SSMCell, State, imagine, observe
from planet_lib.models import gaussian
from planet_lib.models.cells._parts import GRU
from planet_lib.models.rollout import map_state

KINDS = ["rssm", "ssm", "rnn"]
A, E, D, S, HIDDEN = 2, 5, 6, 3, 7


def make(kind: str) -> RSSMCell | SSMCell | RNNCell:
    torch.manual_seed(0)
    if kind == "rssm":
        return RSSMCell(A, E, deter_dim=D, stoch_dim=S, hidden_dim=HIDDEN).double()
    if kind == "ssm":
        return SSMCell(A, E, stoch_dim=S, hidden_dim=HIDDEN).double()
    return RNNCell(A, E, deter_dim=D, stoch_dim=S, hidden_dim=HIDDEN).double()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def draw_state(cell: RSSMCell | SSMCell | RNNCell, *shape: int) -> State:
    return State(draw(*shape, cell.deter_dim), draw(*shape, S), draw(*shape, S), draw(*shape, S).abs() + 0.1)


def close(got: object, expected: object) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_initial_state_is_zero_in_the_cells_dtype(kind: str) -> None:
    cell = make(kind)
    deter = 0 if kind == "ssm" else D
    for field, size in zip(cell.initial(4), (deter, S, S, S), strict=True):
        assert torch.equal(field, torch.zeros(4, size, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_each_cell_offers_the_interface(kind: str) -> None:
    cell = make(kind)
    assert isinstance(cell, Cell)
    assert cell.feature_dim == cell.features(cell.initial(1)).shape[-1]
    assert cell.noise_dim == (0 if kind == "rnn" else S)


def test_something_without_the_members_is_no_cell() -> None:
    assert not isinstance(torch.nn.Linear(1, 1), Cell)


@pytest.mark.parametrize("kind", ["rssm", "rnn"])
def test_features_are_deter_then_stoch(kind: str) -> None:
    cell = make(kind)
    state = draw_state(cell, 4)
    assert torch.equal(cell.features(state), torch.cat([state.deter, state.stoch], -1))


def two_layers(head: torch.nn.Module, inputs: Tensor) -> Tensor:
    weights = dict(head.named_parameters())
    hidden = F.linear(inputs, weights["layers.0.weight"], weights["layers.0.bias"]).clamp(min=0)
    return F.linear(hidden, weights["out.weight"], weights["out.bias"])


def test_the_ssm_by_hand() -> None:
    cell = make("ssm")
    state, action, embed, noise = draw_state(cell, 4), draw(4, A), draw(4, E), draw(4, S)
    out = two_layers(cell.prior_head, torch.cat([state.stoch, action], -1))
    mean, std = out[:, :S], (1 + out[:, S:].exp()).log() + 0.1
    prior = cell.prior(state, action, noise)
    close(prior, State(deter=state.deter, stoch=mean + std * noise, mean=mean, std=std))
    out = two_layers(cell.posterior_head, torch.cat([mean, std, embed], -1))
    mean, std = out[:, :S], (1 + out[:, S:].exp()).log() + 0.1
    close(cell.posterior(prior, embed, noise), State(prior.deter, mean + std * noise, mean, std))


def test_the_rnn_by_hand() -> None:
    cell = make("rnn")
    state, action, embed = draw_state(cell, 4), draw(4, A), draw(4, E)
    path, layer = cell.path, cell.path.layers[0]
    hidden = F.linear(torch.cat([state.stoch, action], -1), layer.weight, layer.bias).clamp(min=0)
    from_hidden = F.linear(hidden, path.gru.weight_ih, path.gru.bias_ih).chunk(3, -1)
    from_deter = F.linear(state.deter, path.gru.weight_hh, path.gru.bias_hh).chunk(3, -1)
    reset, update = ((from_hidden[i] + from_deter[i]).sigmoid() for i in (0, 1))
    deter = (1 - update) * (from_hidden[2] + reset * from_deter[2]).tanh() + update * state.deter
    prior, posterior = cell.prior(state, action), cell.posterior(cell.prior(state, action), embed)
    mean = two_layers(cell.prior_head, deter)
    close(prior, State(deter=deter, stoch=mean, mean=mean, std=torch.ones_like(mean)))
    mean = two_layers(cell.posterior_head, torch.cat([deter, embed], -1))
    close(posterior, State(deter=deter, stoch=mean, mean=mean, std=torch.ones_like(mean)))


def test_the_ssm_posterior_ignores_the_priors_sample() -> None:
    cell = make("ssm")
    prior, embed, noise = draw_state(cell, 4), draw(4, E), draw(4, S)
    moved = prior._replace(stoch=prior.stoch + 10)
    assert torch.equal(cell.posterior(prior, embed, noise).stoch, cell.posterior(moved, embed, noise).stoch)
    wider = prior._replace(std=prior.std + 1)
    assert not torch.allclose(cell.posterior(prior, embed, noise).mean, cell.posterior(wider, embed, noise).mean)


@pytest.mark.parametrize("kind", ["rssm", "rnn"])
def test_the_posterior_reads_only_deter_and_the_embedding(kind: str) -> None:
    cell = make(kind)
    prior, embed, noise = draw_state(cell, 4), draw(4, E), draw(4, cell.noise_dim)
    moved = State(prior.deter, *(field + 10 for field in prior[1:]))
    assert torch.equal(cell.posterior(prior, embed, noise).stoch, cell.posterior(moved, embed, noise).stoch)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prior_reads_the_sample_and_not_its_distribution(kind: str) -> None:
    cell = make(kind)
    state, action, noise = draw_state(cell, 4), draw(4, A), draw(4, cell.noise_dim)
    moved = state._replace(mean=state.mean + 10, std=state.std + 10)
    assert torch.equal(cell.prior(state, action, noise).stoch, cell.prior(moved, action, noise).stoch)
    other = state._replace(stoch=state.stoch + 1)
    assert not torch.allclose(cell.prior(state, action, noise).mean, cell.prior(other, action, noise).mean)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_do_not_touch_each_other(kind: str) -> None:
    cell = make(kind)
    state, action, embed, noise = draw_state(cell, 4), draw(4, A), draw(4, E), draw(4, cell.noise_dim)

    def run(rows: slice) -> State:
        prior = cell.prior(map_state(lambda field: field[rows], state), action[rows], noise[rows])
        return cell.posterior(prior, embed[rows], noise[rows])

    together = run(slice(None))
    for row in range(4):
        close(run(slice(row, row + 1)), map_state(lambda field, row=row: field[row : row + 1], together))


@pytest.mark.parametrize("kind", KINDS)
def test_leading_axes_are_free(kind: str) -> None:
    cell = make(kind)
    state, action, noise = draw_state(cell, 3, 4), draw(3, 4, A), draw(3, 4, cell.noise_dim)
    flat = cell.prior(map_state(lambda field: field.flatten(0, 1), state), action.flatten(0, 1), noise.flatten(0, 1))
    close(map_state(lambda field: field.flatten(0, 1), cell.prior(state, action, noise)), flat)
    empty = cell.prior(map_state(lambda field: field[:0], state), action[:0], noise[:0])
    assert [tuple(field.shape) for field in empty] == [(0, 4, field.shape[-1]) for field in state]


def test_the_rnn_has_no_noise() -> None:
    cell = make("rnn")
    state, action, embed = draw_state(cell, 4), draw(4, A), draw(4, E)
    torch.manual_seed(1)
    first = cell.posterior(cell.prior(state, action), embed)
    torch.manual_seed(2)
    second = cell.posterior(cell.prior(state, action, draw(4, S)), embed, draw(4, S))
    assert torch.equal(first.stoch, second.stoch)
    assert torch.equal(first.stoch, first.mean)


def test_the_rnn_divergence_is_half_the_squared_distance_of_the_means() -> None:
    cell = make("rnn")
    posterior, prior = draw_state(cell, 4), draw_state(cell, 4)
    kl = cell.divergence(posterior, prior)
    rows = zip(posterior.mean.tolist(), prior.mean.tolist(), strict=True)
    by_hand = [sum((p - q) ** 2 for p, q in zip(*row, strict=True)) / 2 for row in rows]
    assert kl.tolist() == pytest.approx(by_hand)
    one = torch.ones_like(prior.mean)
    close(kl, gaussian.kl_divergence(posterior.mean, one, prior.mean, one))


@pytest.mark.parametrize("kind", ["rssm", "ssm"])
def test_the_divergence_is_the_kl_of_posterior_from_prior(kind: str) -> None:
    cell = make(kind)
    posterior, prior = draw_state(cell, 4), draw_state(cell, 4)
    expected = gaussian.kl_divergence(posterior.mean, posterior.std, prior.mean, prior.std)
    assert torch.equal(cell.divergence(posterior, prior), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_trains_the_prior_and_the_posterior(kind: str) -> None:
    cell = make(kind)
    prior = cell.prior(draw_state(cell, 4), draw(4, A), draw(4, cell.noise_dim))
    posterior = cell.posterior(prior, draw(4, E), draw(4, cell.noise_dim))
    cell.divergence(posterior, prior).sum().backward()
    for name, parameter in cell.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["rssm", "ssm"])
def test_no_deviation_falls_below_min_std(kind: str) -> None:
    make_cell = RSSMCell if kind == "rssm" else SSMCell
    cell = make_cell(A, E, stoch_dim=S, hidden_dim=HIDDEN, min_std=0.7)
    with torch.no_grad():
        for head in (cell.prior_head, cell.posterior_head):
            head.out.bias.fill_(-100.0)
            head.out.weight.zero_()
    prior = cell.prior(cell.initial(2), torch.ones(2, A))
    for state in (prior, cell.posterior(prior, torch.ones(2, E))):
        torch.testing.assert_close(state.std, torch.full((2, S), 0.7))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_sizes_are_named(kind: str) -> None:
    cell = make(kind)
    state = cell.initial(4)
    with pytest.raises(ValueError, match=r"action must be \[\.\.\., 2\] \(the cell's action_dim\), got \[4, 3\]"):
        cell.prior(state, draw(4, 3))
    with pytest.raises(TypeError, match=r"action must be a tensor \[\.\.\., 2\], got list"):
        cell.prior(state, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"embed must be \[\.\.\., 5\] \(the cell's embed_dim\), got \[4, 6\]"):
        cell.posterior(state, draw(4, 6))
    with pytest.raises(TypeError, match=r"embed must be a tensor \[\.\.\., 5\], got NoneType"):
        cell.posterior(state, None)
    with pytest.raises(ValueError, match="batch_size must be greater than 0, got 0"):
        cell.initial(0)


@pytest.mark.parametrize("make_cell", [RSSMCell, SSMCell, RNNCell])
def test_sizes_below_one_and_bad_min_std_are_named(make_cell: type[RSSMCell | SSMCell | RNNCell]) -> None:
    good = {"action_dim": 1, "embed_dim": 1, "stoch_dim": 1, "hidden_dim": 1}
    if make_cell is not SSMCell:
        good["deter_dim"] = 1
    for name in good:
        with pytest.raises(ValueError, match=f"{name} must be greater than 0, got 0"):
            make_cell(**{**good, name: 0})
    if make_cell is not RNNCell:
        for bad in (-0.1, float("nan")):
            with pytest.raises(ValueError, match=f"min_std must be finite and at least 0, got {bad}"):
                make_cell(**good, min_std=bad)


def test_the_gru_that_resets_before_the_product_in_numbers() -> None:
    gru = GRU(1, 1, "reset_before").double()
    weights = {"weight_ih": [[0.5], [-0.3], [1.2]], "weight_hh": [[0.7], [0.4], [-0.9]], "bias_ih": [0.1, 0.2, -0.4]}
    gru.load_state_dict({name: torch.tensor(rows, dtype=torch.float64) for name, rows in weights.items()})
    x, h = 0.8, -0.6
    reset = 1 / (1 + math.exp(-(0.5 * x + 0.7 * h + 0.1)))
    update = 1 / (1 + math.exp(-(-0.3 * x + 0.4 * h + 0.2)))
    candidate = math.tanh(1.2 * x - 0.9 * (reset * h) - 0.4)
    got = gru(torch.tensor([[x]], dtype=torch.float64), torch.tensor([[h]], dtype=torch.float64))
    assert got.item() == pytest.approx(update * h + (1 - update) * candidate, rel=1e-14)


def test_the_gru_that_resets_before_the_product_is_tensorflows() -> None:
    torch.manual_seed(0)
    gru = GRU(4, 3, "reset_before").double()
    x, h = draw(5, 4), draw(5, 3)
    kernel = torch.cat([gru.weight_ih, gru.weight_hh], 1)  # over [x, h], as GRUBlockCell keeps it
    reset, update = (torch.cat([x, h], 1) @ kernel[:6].T + gru.bias_ih[:6]).sigmoid().chunk(2, -1)
    candidate = (torch.cat([x, reset * h], 1) @ kernel[6:].T + gru.bias_ih[6:]).tanh()
    close(gru(x, h), update * h + (1 - update) * candidate)
    assert [name for name, _ in gru.named_parameters()] == ["weight_ih", "weight_hh", "bias_ih"]


def test_the_gru_that_resets_after_the_product_is_torchs_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    ours, torchs = GRU(4, 3, "reset_after").double(), torch.nn.GRUCell(4, 3).double()
    torchs.load_state_dict(ours.state_dict())
    x, h, weights = draw(5, 4), draw(5, 3), draw(5, 3)
    outputs = [gru(x, h) for gru in (ours, torchs)]
    close(*outputs)
    pair = [
        torch.autograd.grad((weights * output).sum(), [*gru.parameters()])
        for gru, output in zip((ours, torchs), outputs, strict=True)
    ]
    close(*pair)


@pytest.mark.parametrize("make_cell", [RSSMCell, RNNCell])
def test_the_kind_of_gru_is_the_cells(make_cell: type[RSSMCell | RNNCell]) -> None:
    for kind in ("reset_after", "reset_before"):
        cell = make_cell(A, E, deter_dim=D, stoch_dim=S, hidden_dim=HIDDEN, gru=kind).double()
        state, action = draw_state(cell, 4), draw(4, A)
        hidden = cell.path.hidden(torch.cat([state.stoch, action], -1))
        gru = GRU(D, D, kind).double()
        gru.load_state_dict(cell.path.gru.state_dict())
        close(cell.prior(state, action).deter, gru(hidden, state.deter))


def elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x.exp() - 1)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "elu": elu,
    "silu": lambda x: x / (1 + (-x).exp()),
    "gelu": gelu,
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
}


def stack(part: torch.nn.Module, inputs: Tensor, activation: str) -> Tensor:
    for layer in part.layers:
        inputs = ACTIVATIONS[activation](F.linear(inputs, layer.weight, layer.bias))
    return inputs


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_hidden_layers_in_front_of_gru_and_distributions_by_hand(activation: str, num_layers: int) -> None:
    torch.manual_seed(0)
    cell = RSSMCell(
        A, E, deter_dim=D, stoch_dim=S, hidden_dim=HIDDEN, num_layers=num_layers, activation=activation
    ).double()
    state, action, embed = draw_state(cell, 4), draw(4, A), draw(4, E)
    deter = cell.path.gru(stack(cell.path, torch.cat([state.stoch, action], -1), activation), state.deter)
    prior = cell.prior(state, action)
    posterior = cell.posterior(prior, embed)
    close(prior.deter, deter)
    for head, inputs, got in (
        (cell.prior_head, deter, prior),
        (cell.posterior_head, torch.cat([deter, embed], -1), posterior),
    ):
        out = F.linear(stack(head, inputs, activation), head.out.weight, head.out.bias)
        close(got.mean, out[:, :S])
        close(got.std, (1 + out[:, S:].exp()).log() + 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_num_layers_counts_the_hidden_layers_of_every_part(kind: str) -> None:
    sizes = {"stoch_dim": S, "hidden_dim": HIDDEN, "num_layers": 3}
    if kind == "ssm":
        cell: RSSMCell | SSMCell | RNNCell = SSMCell(A, E, **sizes)
        widths = {"prior_head": S + A, "posterior_head": 2 * S + E}
    else:
        cell = (RSSMCell if kind == "rssm" else RNNCell)(A, E, deter_dim=D, **sizes)
        widths = {"prior_head": D, "posterior_head": D + E}
        assert [tuple(layer.weight.shape) for layer in cell.path.layers] == [(D, S + A), (D, D), (D, D)]
    for name, width in widths.items():
        head = getattr(cell, name)
        assert [tuple(layer.weight.shape) for layer in head.layers] == [(HIDDEN, width), *[(HIDDEN, HIDDEN)] * 2]
        assert tuple(head.out.weight.shape) == (S if kind == "rnn" else 2 * S, HIDDEN)


@pytest.mark.parametrize("make_cell", [RSSMCell, SSMCell])
def test_a_clamped_deviation_is_the_larger_of_the_two_and_has_no_gradient_below(
    make_cell: type[RSSMCell | SSMCell],
) -> None:
    raw = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    softplus = [math.log(1 + math.exp(x)) for x in raw.tolist()]  # 0.13, 0.69, 3.05
    expected = {"clamp": [max(x, 0.5) for x in softplus], "add": [x + 0.5 for x in softplus]}
    slope = [1 / (1 + math.exp(-x)) for x in raw.tolist()]
    slopes = {"clamp": [0.0, *slope[1:]], "add": slope}
    for mode in ("clamp", "add"):
        cell = make_cell(A, E, stoch_dim=S, hidden_dim=HIDDEN, min_std=0.5, min_std_mode=mode).double()
        for head in (cell.prior_head, cell.posterior_head):
            with torch.no_grad():
                head.out.weight.zero_()
                head.out.bias.copy_(torch.cat([torch.zeros(S), raw]))
        prior = cell.prior(cell.initial(1), draw(1, A))
        for head, state in ((cell.prior_head, prior), (cell.posterior_head, cell.posterior(prior, draw(1, E)))):
            assert state.std[0].tolist() == pytest.approx(expected[mode])
            (grad,) = torch.autograd.grad(state.std.sum(), [head.out.bias], retain_graph=True)
            assert grad[S:].tolist() == pytest.approx(slopes[mode])


@pytest.mark.parametrize("make_cell", [RSSMCell, SSMCell, RNNCell])
def test_unknown_choices_and_no_layers_are_named(make_cell: type[RSSMCell | SSMCell | RNNCell]) -> None:
    cases = [
        ({"activation": "swish"}, "activation must be one of relu, elu, silu, gelu, tanh, got 'swish'"),
        ({"init": "zeros"}, "init must be one of torch, glorot, got 'zeros'"),
        ({"num_layers": 0}, "num_layers must be greater than 0, got 0"),
    ]
    if make_cell is not SSMCell:
        cases.append(({"gru": "before"}, "gru must be one of reset_after, reset_before, got 'before'"))
    if make_cell is not RNNCell:
        cases.append(({"min_std_mode": "max"}, "min_std_mode must be one of add, clamp, got 'max'"))
    for setting, message in cases:
        with pytest.raises(ValueError, match=f"^{message}$"):
            make_cell(A, E, **setting)


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_prior_is_the_standard_normal_with_the_states_own_path(kind: str) -> None:
    cell = make(kind)
    state = draw_state(cell, 2, 4)
    prior = cell.global_prior(state)
    zero = torch.zeros(2, 4, S, dtype=torch.float64)
    close(prior, State(deter=state.deter, stoch=zero, mean=zero, std=zero + 1))
    expected = state.mean.square() / 2
    if kind != "rnn":
        expected = expected + (state.std.square() - 1) / 2 - state.std.log()
    close(cell.divergence(state, prior), expected.sum(-1))


@pytest.mark.parametrize("kind", ["rssm", "ssm"])
def test_a_state_is_drawn_again_from_its_own_mean_and_deviation(kind: str) -> None:
    cell = make(kind)
    state, noise = draw_state(cell, 2, 4), draw(2, 4, S)
    close(cell.redraw(state, noise), state._replace(stoch=state.mean + state.std * noise))
    torch.manual_seed(3)
    drawn = cell.redraw(state)
    torch.manual_seed(3)
    close(drawn.stoch, state.mean + state.std * torch.randn_like(state.mean))


def test_the_state_of_the_rnn_drawn_again_is_that_state() -> None:
    cell = make("rnn")
    state = draw_state(cell, 4)
    assert cell.redraw(state) is state
    assert cell.redraw(state, draw(4, S)) is state


@pytest.mark.parametrize("change", ["weight_norm", "spectral_norm", "prune"])
@pytest.mark.parametrize("kind", [RSSMCell, SSMCell, RNNCell])
def test_a_cell_whose_layers_are_parametrised_filters_as_before(kind, change):
    cell = kind(action_dim=2, embed_dim=4, deter_dim=6, stoch_dim=3, hidden_dim=5) if kind is not SSMCell else None
    cell = kind(action_dim=2, embed_dim=4, stoch_dim=3, hidden_dim=5) if cell is None else cell
    wrap = {
        "weight_norm": torch.nn.utils.parametrizations.weight_norm,
        "spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
        "prune": lambda layer: torch.nn.utils.prune.identity(layer, "weight"),
    }[change]
    for layer in [each for each in cell.modules() if isinstance(each, torch.nn.Linear)]:
        wrap(layer)
    embed, action = torch.ones(4, 2, 4), torch.ones(4, 2, 2)
    prior, posterior = observe(cell, embed, action, torch.zeros(4, 2, dtype=torch.bool))
    assert all(bool(torch.isfinite(field).all()) for field in (*prior, *posterior))
    with pytest.raises(TypeError, match=r"must be torch.float32"):
        cell.prior(cell.initial(2), action[0].double())


def test_a_batch_of_unknown_size_can_be_exported():
    class Dream(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = RNNCell(action_dim=1, embed_dim=2, deter_dim=4, hidden_dim=3)

        def forward(self, action):
            return imagine(self.cell, self.cell.initial(action.shape[1]), action).deter

    module, action = Dream(), torch.ones(4, 3, 1)
    exported = torch.export.export(module, (action,), dynamic_shapes=({1: torch.export.Dim("B")},), strict=False)
    wider = torch.ones(4, 7, 1)
    torch.testing.assert_close(exported.module()(wider), module(wider))
