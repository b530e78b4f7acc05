"""How weights begin: torch's layers in their order, or Glorot's bounds as in the original; the same seed, the same."""

import math

import pytest
import torch
from torch import Tensor, nn

from planet_lib import ConvEncoder, Decoder, PatchDecoder, RewardHead, RNNCell, RSSMCell, SSMCell, WorldModel
from planet_lib.models import init_glorot_

A, E, D, S, HIDDEN = 3, 50, 60, 20, 40
GRUS = ("reset_after", "reset_before")
AnyCell = RSSMCell | SSMCell | RNNCell


def make(kind: str, seed: int = 0, **settings: object) -> AnyCell:
    torch.manual_seed(seed)
    if kind == "ssm":
        return SSMCell(A, E, stoch_dim=S, hidden_dim=HIDDEN, **settings)
    return (RSSMCell if kind == "rssm" else RNNCell)(A, E, deter_dim=D, stoch_dim=S, hidden_dim=HIDDEN, **settings)


def check_uniform(weight: Tensor, fan_in: int, fan_out: int) -> None:
    """As U(-b, b) with b^2 = 6 / (fan_in + fan_out): never beyond, close to the edge, of the right spread and mean."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    count = weight.numel()
    assert weight.abs().max() <= bound
    assert weight.abs().max() > bound * (1 - 10 / count)  # missed once in e^10
    assert weight.square().mean().item() == pytest.approx(bound**2 / 3, rel=5 / math.sqrt(count))
    assert weight.mean().item() == pytest.approx(0.0, abs=5 * bound / math.sqrt(3 * count))


def check_linear(layer: nn.Linear) -> None:
    check_uniform(layer.weight, layer.in_features, layer.out_features)
    assert (layer.bias == 0).all()


@pytest.mark.parametrize("gru", GRUS)
@pytest.mark.parametrize("kind", ["rssm", "rnn"])
def test_glorot_takes_the_grus_weights_for_input_and_state_as_one_layer(kind: str, gru: str) -> None:
    unit = make(kind, gru=gru, init="glorot").path.gru
    kernel = torch.cat([unit.weight_ih, unit.weight_hh], 1)
    assert kernel.shape == (3 * D, 2 * D)
    check_uniform(kernel[: 2 * D], 2 * D, 2 * D)  # reset and update are one layer of 2 D in TensorFlow
    check_uniform(kernel[2 * D :], 2 * D, D)
    for half in (unit.weight_ih, unit.weight_hh):
        check_uniform(half[: 2 * D], 2 * D, 2 * D)
        check_uniform(half[2 * D :], 2 * D, D)
    assert unit.bias_ih.tolist() == [1.0] * (2 * D) + [0.0] * D
    if gru == "reset_after":
        assert (unit.bias_hh == 0).all(), "or the gates would start at 2"
    else:
        assert unit.bias_hh is None


@pytest.mark.parametrize("kind", ["rssm", "ssm", "rnn"])
def test_glorot_takes_mean_and_deviation_as_two_layers(kind: str) -> None:
    cell = make(kind, num_layers=2, init="glorot")
    for head in (cell.prior_head, cell.posterior_head):
        for layer in head.layers:
            check_linear(layer)
        halves = head.out.weight.chunk(1 if kind == "rnn" else 2)
        for half in halves:
            assert half.shape == (S, HIDDEN)
            check_uniform(half, HIDDEN, S)
        assert (head.out.bias == 0).all()
    if kind != "ssm":
        for layer in cell.path.layers:
            check_linear(layer)


def test_glorot_reaches_every_layer_of_a_world_model() -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder((3, 64, 64), depth=6, embed_dim=E)
    cell = RSSMCell(A, E, deter_dim=D, stoch_dim=S, hidden_dim=HIDDEN)
    decoder = Decoder(D + S, (3, 64, 64), depth=6)
    model = WorldModel(encoder, cell, decoder, RewardHead(D + S, hidden_dim=30))
    init_glorot_(model)
    for conv in encoder.convs:
        check_uniform(conv.weight, 16 * conv.in_channels, 16 * conv.out_channels)
        assert (conv.bias == 0).all()
    for conv in decoder.network.layers:
        pixels = conv.kernel_size[0] * conv.kernel_size[1]
        check_uniform(conv.weight, pixels * conv.in_channels, pixels * conv.out_channels)
        assert (conv.bias == 0).all()
    for layer in (encoder.project, decoder.network.seed, *model.reward_head.layers, *cell.path.layers):
        check_linear(layer)
    ones = {name: int((parameter == 1).sum()) for name, parameter in model.named_parameters() if parameter.ndim == 1}
    assert ones.pop("cell.path.gru.bias_ih") == 2 * D
    assert set(ones.values()) == {0}


def test_other_parts_and_layers_without_a_bias_keep_what_they_have() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((4,), 7.0))
            self.norm = nn.LayerNorm(4)
            self.mix = nn.Linear(30, 40, bias=False)

    module = Own()
    before = module.mix.weight.detach().clone()
    init_glorot_(module)
    assert (module.scale == 7).all()
    assert (module.norm.weight == 1).all()
    assert not torch.isclose(module.mix.weight, before).all()
    check_uniform(module.mix.weight, 30, 40)


@pytest.mark.parametrize("kind", ["rssm", "ssm", "rnn"])
@pytest.mark.parametrize("init", ["torch", "glorot"])
def test_the_same_seed_gives_the_same_weights_and_another_gives_others(kind: str, init: str) -> None:
    once, again, other = (make(kind, seed, init=init).state_dict() for seed in (3, 3, 4))
    for name, weight in once.items():
        assert torch.equal(weight, again[name]), name
        if name.endswith("weight"):
            assert not torch.equal(weight, other[name]), name


def test_init_glorot_is_the_function_applied_to_a_cell_that_torch_began() -> None:
    chosen = make("rssm", 5, init="glorot")
    by_hand = make("rssm", 5)
    init_glorot_(by_hand)
    torch.testing.assert_close(chosen.state_dict(), by_hand.state_dict(), rtol=0.0, atol=0.0)


def torchs_layers(kind: str) -> list[nn.Module]:
    """What a cell is made of, from torch's own layers, in the order in which its weights are drawn."""
    width = {"rssm": 2, "ssm": 2, "rnn": 1}[kind] * S
    if kind == "ssm":
        path: list[nn.Module] = []
        inputs = (S + A, 2 * S + E)
    else:
        path = [nn.Linear(S + A, D), nn.GRUCell(D, D)]
        inputs = (D, D + E)
    heads = [layer for size in inputs for layer in (nn.Linear(size, HIDDEN), nn.Linear(HIDDEN, width))]
    return [*path, *heads]


@pytest.mark.parametrize("kind", ["rssm", "ssm", "rnn"])
def test_by_default_a_cell_draws_what_torchs_layers_draw_in_this_order(kind: str) -> None:
    ours = make(kind, 11)
    after = torch.rand(3)
    torch.manual_seed(11)
    layers = torchs_layers(kind)
    expected = [parameter for layer in layers for parameter in layer.parameters()]
    for got, parameter in zip(ours.parameters(), expected, strict=True):
        assert torch.equal(got, parameter)
    assert torch.equal(after, torch.rand(3)), "nothing more is drawn"


# The sums of each part's weights as the first development version drew them with seed 7.
PATH = [0.522927, 1.276079, -2.212414, -0.265456, -0.085819, -1.557533]
FIRST_WEIGHTS = {
    "rssm": [*PATH, -1.056897, -0.612617, 1.003824, 0.304285, 0.623692, 0.209914, -0.015588, -0.064331],
    "ssm": [1.38827, -0.328908, 0.214201, 0.542857, -3.044415, 0.341469, 1.090403, 0.410044],
    "rnn": [*PATH, -1.056897, -0.612617, 0.143662, 0.492271, 0.919245, -0.595748, 1.137803, 0.173828],
    "encoder": [
        *(0.494468, 0.068376, 0.074897, -0.272673, -1.025099, 0.198201, -0.525817, 0.013302),
        *(-0.463236, 0.156273),
    ],
    "decoder": [-2.787648, -0.15317, 7.21333, 0.152725, -0.356909, -0.066765],
    "reward": [0.477365, 0.789947, 0.211533, -0.383663, -0.025395, 0.006266],
}


@pytest.mark.parametrize("name", FIRST_WEIGHTS)
def test_the_weights_of_a_seed_are_those_of_the_first_version(name: str) -> None:
    torch.manual_seed(7)
    part: nn.Module
    if name == "ssm":
        part = SSMCell(2, 5, stoch_dim=3, hidden_dim=7)
    elif name in ("rssm", "rnn"):
        part = (RSSMCell if name == "rssm" else RNNCell)(2, 5, deter_dim=6, stoch_dim=3, hidden_dim=7)
    elif name == "encoder":
        part = ConvEncoder((3, 64, 64), depth=1, embed_dim=2)
    elif name == "decoder":
        part = Decoder(6, (3, 16, 16), depth=2)
    else:
        part = RewardHead(6, hidden_dim=5)
    sums = [parameter.detach().double().sum().item() for parameter in part.parameters()]
    assert sums == pytest.approx(FIRST_WEIGHTS[name], abs=1e-6)


def test_a_patch_decoder_is_linear_layers_too() -> None:
    torch.manual_seed(0)
    decoder = PatchDecoder(40, (3, 32, 32))
    init_glorot_(decoder)
    for layer in (decoder.hidden, decoder.spread, decoder.sketch, decoder.draw):
        check_linear(layer)
