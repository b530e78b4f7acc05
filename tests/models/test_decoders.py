"""Decoders and heads: exact shapes, every pixel drawn from the features, patches in place, messages."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from planet_lib import ContinueHead, ConvEncoder, Decoder, DictDecoder, PatchDecoder, PatchEncoder, RewardHead

FAST = settings(max_examples=20, deadline=None)
sides = st.integers(16, 100)


def set_identity(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.eye(*layer.weight.shape))
        layer.bias.zero_()


@FAST
@given(st.integers(1, 4), sides, sides, st.integers(0, 2**31))
def test_the_decoder_mirrors_the_encoders_image_shape(channels: int, height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    shape = (channels, height, width)
    encoder, decoder = ConvEncoder(shape, depth=2), Decoder(6, shape, depth=2)
    features = torch.randn(5, 2, 6)
    with torch.no_grad():
        images = decoder(features)
        assert images.shape[2:] == encoder.image_shape
        assert encoder(images).shape == (5, 2, encoder.embed_dim)
        one_by_one = torch.stack([decoder(row[None])[0] for row in features.flatten(0, 1)])
    torch.testing.assert_close(images.flatten(0, 1), one_by_one, rtol=1e-4, atol=1e-6)


@FAST
@given(st.integers(6, 100), st.integers(6, 100), st.integers(0, 2**31))
def test_every_pixel_depends_on_the_features_those_at_the_edge_too(height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    decoder = Decoder(4, (1, height, width), depth=8)
    with torch.no_grad():
        for parameter in decoder.parameters():  # positive weights, so that no relu hides a connection
            parameter.abs_()
        images = decoder(torch.rand(8, 4))
    assert (images.std(0) > 0).all()


@pytest.mark.parametrize("size", [64, 65, 84, 100])
def test_the_last_row_and_column_vary_as_much_as_the_first(size: int) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        spread = Decoder(10, (1, size, size), depth=16)(torch.randn(64, 10)).std(0)[0]
    for first, last in ((spread[0], spread[-1]), (spread[:, 0], spread[:, -1])):
        assert 0.4 < last.mean() / first.mean() < 2.5


@settings(FAST, max_examples=15)
@given(st.integers(1, 9), st.integers(16, 256), st.integers(16, 256), st.integers(0, 2**31))
def test_any_image_is_mirrored_every_pixel_asks_every_feature_and_every_weight_is_trained(
    channels: int, height: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = (channels, height, width)
    encoder, decoder = ConvEncoder(shape, depth=1).double(), Decoder(2, shape, depth=1, seed_dim=4).double()
    with torch.no_grad():
        for part in (encoder, decoder):
            for parameter in part.parameters():  # positive weights and inputs, so that no relu hides a connection
                parameter.abs_().add_(0.01)
    images = decoder(torch.tensor([[0.3, 0.6], [1.3, 0.6], [0.3, 1.6]], dtype=torch.float64))
    assert images.shape == (3, *encoder.image_shape)
    for moved in images[1:]:
        assert (moved > images[0]).all()
    (images.mean() + encoder(images).mean()).backward()
    for part in (encoder, decoder):
        for name, parameter in part.named_parameters():
            assert (parameter.grad > 0).all(), name


def test_the_deconvolutions_are_the_papers_at_64_pixels() -> None:
    decoder = Decoder(230, (3, 64, 64)).network
    sizes = [tuple(layer.weight.shape) for layer in decoder.layers]
    assert sizes == [(1024, 128, 5, 5), (128, 64, 5, 5), (64, 32, 6, 6), (32, 3, 6, 6)]
    assert tuple(decoder.seed.weight.shape) == (1024, 230)


def test_channels_halve_from_at_most_eight_times_the_depth() -> None:
    layers = Decoder(4, (1, 270, 270), depth=3).network.layers
    assert [layer.out_channels for layer in layers] == [24, 24, 12, 6, 3, 1]


def test_a_vector_is_decoded_by_three_layers() -> None:
    torch.manual_seed(0)
    decoder = Decoder(6, (4,), hidden_dim=9).double()
    features = torch.randn(3, 2, 6, dtype=torch.float64)
    first, second, third = decoder.network.layers
    hidden = F.linear(features, first.weight, first.bias).clamp(min=0)
    hidden = F.linear(hidden, second.weight, second.bias).clamp(min=0)
    torch.testing.assert_close(decoder(features), F.linear(hidden, third.weight, third.bias))


def test_the_reward_head_is_two_hidden_layers_and_one_number() -> None:
    torch.manual_seed(0)
    head = RewardHead(6, hidden_dim=9).double()
    features = torch.randn(3, 2, 6, dtype=torch.float64)
    first, second, third = head.layers
    hidden = F.linear(features, first.weight, first.bias).clamp(min=0)
    hidden = F.linear(hidden, second.weight, second.bias).clamp(min=0)
    expected = F.linear(hidden, third.weight, third.bias)
    torch.testing.assert_close(head(features), expected[..., 0])
    assert len(RewardHead(6, num_hidden=3).layers) == 4


ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "silu": lambda x: x / (1 + (-x).exp()),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "tanh": lambda x: 1 - 2 / (1 + (2 * x).exp()),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("make", [RewardHead, ContinueHead])
def test_a_head_of_any_depth_and_activation_by_hand(make: type[RewardHead], activation: str) -> None:
    torch.manual_seed(0)
    head = make(6, hidden_dim=9, num_hidden=3, activation=activation).double()
    features = torch.randn(3, 2, 6, dtype=torch.float64)
    *hidden_layers, last = head.layers
    assert len(hidden_layers) == 3
    hidden = features
    for layer in hidden_layers:
        hidden = ACTIVATIONS[activation](F.linear(hidden, layer.weight, layer.bias))
    expected = (hidden * last.weight).sum(-1) + last.bias
    torch.testing.assert_close(head(features), expected)
    with torch.no_grad():
        last.bias.add_(5.0)
    assert (head(features) > 1).all(), "a logit, not a probability"


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 4), (2, 4, 12)])
def test_patches_that_were_cut_are_put_back_where_they_were(shape: tuple[int, int, int]) -> None:
    numbers = shape[0] * 16
    size = shape[0] * shape[1] * shape[2]
    encoder = PatchEncoder(shape, patch=4, patch_dim=numbers, embed_dim=size)
    decoder = PatchDecoder(size, shape, patch=4, patch_dim=numbers, hidden_dim=size, draw_dim=numbers)
    for layer in (encoder.stem, encoder.project, decoder.hidden, decoder.spread, decoder.sketch, decoder.draw):
        set_identity(layer)
    images = torch.rand(3, 2, *shape)
    assert torch.equal(decoder(encoder(images)), images)


def test_one_number_draws_one_pixel_of_one_patch() -> None:
    channels, height, width, patch = 2, 4, 6, 2
    size = channels * height * width
    decoder = PatchDecoder(size, (channels, height, width), patch=patch, patch_dim=8, hidden_dim=size, draw_dim=8)
    for layer in (decoder.hidden, decoder.spread, decoder.sketch, decoder.draw):
        set_identity(layer)
    images = decoder(torch.eye(size))
    for number, image in enumerate(images):
        piece, within = divmod(number, channels * patch * patch)
        channel, y, x = within // 4, within % 4 // 2, within % 2
        expected = torch.zeros(channels, height, width)
        expected[channel, patch * (piece // 3) + y, patch * (piece % 3) + x] = 1.0
        assert torch.equal(image, expected)


def elu_by_hand(value: torch.Tensor) -> torch.Tensor:
    return torch.where(value > 0, value, value.exp() - 1)


def test_the_patch_network_by_hand() -> None:
    torch.manual_seed(0)
    decoder = PatchDecoder(6, (3, 16, 24), patch_dim=5, hidden_dim=9, draw_dim=7).double()
    features = torch.randn(4, 6, dtype=torch.float64)
    hidden = elu_by_hand(F.linear(features, decoder.hidden.weight, decoder.hidden.bias))
    pieces = elu_by_hand(F.linear(hidden, decoder.spread.weight, decoder.spread.bias))
    images = decoder(features)
    for index in range(6):
        row, column = divmod(index, 3)
        piece = pieces[:, 5 * index : 5 * index + 5]
        sketch = elu_by_hand(F.linear(piece, decoder.sketch.weight, decoder.sketch.bias))
        drawn = F.linear(sketch, decoder.draw.weight, decoder.draw.bias).reshape(4, 3, 8, 8)
        torch.testing.assert_close(images[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8], drawn)


def test_leading_axes_are_free() -> None:
    torch.manual_seed(0)
    for part in (Decoder(6, (2, 20, 17), depth=2), Decoder(6, (3,)), PatchDecoder(6, (2, 16, 8)), RewardHead(6)):
        features = torch.randn(2, 3, 2, 6)
        flat = torch.stack([part(row[None])[0] for row in features.flatten(0, 2)])
        torch.testing.assert_close(part(features).flatten(0, 2), flat)


@pytest.mark.parametrize(
    ("part", "owner"),
    [
        (Decoder(6, (2, 20, 20), depth=2), "decoder"),
        (Decoder(6, (3,)), "decoder"),
        (PatchDecoder(6, (2, 16, 8)), "decoder"),
        (RewardHead(6), "head"),
        (ContinueHead(6), "head"),
        (DictDecoder({"joints": Decoder(6, (3,))}), "decoder"),
    ],
)
def test_wrong_features_are_named(part: nn.Module, owner: str) -> None:
    with pytest.raises(
        ValueError, match=rf"features must be \[\.\.\., 6\] \(the {owner}'s feature_dim\), got \[2, 7\]"
    ):
        part(torch.zeros(2, 7))
    with pytest.raises(TypeError, match=r"features must be a tensor \[\.\.\., 6\], got list"):
        part([0.0] * 6)


def test_wrong_settings_are_named() -> None:
    for shape in ((3, 64), (), (1, 3, 64, 64)):
        with pytest.raises(ValueError, match=r"obs_shape must be \(C, Y, X\) or \(N,\), got \("):
            Decoder(6, shape)
    with pytest.raises(ValueError, match="obs_dim must be greater than 0, got 0"):
        Decoder(6, (0,))
    with pytest.raises(ValueError, match=r"obs_shape must be \(C, Y, X\), three positive whole .*got \(3, 0, 64\)"):
        Decoder(6, (3, 0, 64))
    with pytest.raises(ValueError, match=r"obs_shape must be at least 6 pixels high and wide, got \(3, 64, 5\)"):
        Decoder(6, (3, 64, 5))
    for name in ("feature_dim", "depth", "seed_dim", "hidden_dim", "num_layers"):
        with pytest.raises(ValueError, match=f"{name} must be greater than 0, got 0"):
            Decoder(**{"feature_dim": 6, "obs_shape": (3, 64, 64), name: 0})
    for name in ("feature_dim", "patch", "patch_dim", "hidden_dim", "draw_dim"):
        with pytest.raises(ValueError, match=f"{name} must be greater than 0, got 0"):
            PatchDecoder(**{"feature_dim": 6, "image_shape": (3, 64, 64), name: 0})
    with pytest.raises(ValueError, match=r"image_shape must be \(C, Y, X\), three positive whole sizes"):
        PatchDecoder(6, (64, 64))
    with pytest.raises(ValueError, match="patch must divide the image's height 64 and width 60, got 8"):
        PatchDecoder(6, (3, 64, 60))
    for name in ("feature_dim", "hidden_dim", "num_hidden"):
        with pytest.raises(ValueError, match=f"{name} must be greater than 0, got 0"):
            RewardHead(**{"feature_dim": 6, name: 0})
    for make in (RewardHead, ContinueHead):
        with pytest.raises(ValueError, match="activation must be one of relu, elu, silu, gelu, tanh, got 'swish'"):
            make(6, activation="swish")


@pytest.mark.parametrize("part", [Decoder(4, (3, 16, 8), depth=2), PatchDecoder(4, (3, 16, 8)), Decoder(4, (3,))])
def test_no_features_give_no_observations(part: Decoder | PatchDecoder) -> None:
    assert part(torch.zeros(2, 0, 4)).shape == (2, 0, *part.obs_shape)


def both() -> DictDecoder:
    torch.manual_seed(0)
    return DictDecoder({"joints": Decoder(6, (5,), hidden_dim=9), "camera": Decoder(6, (3, 16, 24), depth=2)})


def test_several_observations_are_predicted_each_by_its_own_decoder() -> None:
    decoder = both().double()
    features = torch.randn(2, 3, 2, 6, dtype=torch.float64)
    predicted = decoder(features)
    assert [*predicted] == ["joints", "camera"]
    for name, shape in (("joints", (5,)), ("camera", (3, 16, 24))):
        assert torch.equal(predicted[name], decoder.decoders[name](features))
        assert predicted[name].shape == (2, 3, 2, *shape)
        assert predicted[name].dtype == torch.float64
    assert decoder.feature_dim == 6
    names = {name.split(".")[1] for name in decoder.state_dict()}
    assert names == {"joints", "camera"}


def test_decoders_that_read_different_features_are_named_with_their_sizes() -> None:
    message = r"decoders must all have one feature_dim, the cell's, got \{'joints': 6, 'camera': 7\}"
    with pytest.raises(ValueError, match=message):
        DictDecoder({"joints": Decoder(6, (5,)), "camera": Decoder(7, (5,))})


@pytest.mark.parametrize("name", ["a.b", "", "a/b", 3])
def test_names_that_cannot_stand_in_a_state_dict_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match=f"decoders must have names without dots and slashes, got {name!r}"):
        DictDecoder({name: Decoder(6, (3,))})


def test_no_decoders_and_parts_without_a_size_are_named() -> None:
    with pytest.raises(ValueError, match="decoders must hold at least one entry, got none"):
        DictDecoder({})
    for part in (nn.Linear(3, 3), 7):
        message = rf"decoders\['joints'\] must be a torch.nn.Module with a feature_dim, got {type(part).__name__}"
        with pytest.raises(TypeError, match=message):
            DictDecoder({"joints": part})
