"""Encoders: where every pixel goes, rows apart from each other, several observations side by side, messages."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planet_lib import ConvEncoder, DictEncoder, PatchEncoder, VectorEncoder
from planet_lib.models.encoders import conv_layers

FAST = settings(max_examples=15, deadline=None)
sides = st.integers(16, 100)


def patches_by_hand(image: np.ndarray, patch: int) -> list[list[float]]:
    """The patches of an image (C, Y, X) row by row, each as its numbers channel by channel, row by row."""
    channels, height, width = image.shape
    return [
        [float(image[c, top + y, left + x]) for c in range(channels) for y in range(patch) for x in range(patch)]
        for top in range(0, height, patch)
        for left in range(0, width, patch)
    ]


def set_identity(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.eye(*layer.weight.shape))
        layer.bias.zero_()


@FAST
@given(st.integers(1, 4), sides, sides, st.sampled_from([None, 7]), st.integers(0, 2**31))
def test_any_image_shape_is_embedded_row_by_row(
    channels: int, height: int, width: int, embed_dim: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    encoder = ConvEncoder((channels, height, width), depth=2, embed_dim=embed_dim)
    images = torch.rand(2, 2, channels, height, width) - 0.5
    with torch.no_grad():
        embed = encoder(images)
        one_by_one = torch.stack([encoder(image[None])[0] for image in images.flatten(0, 1)])
    assert embed.shape == (2, 2, encoder.embed_dim)
    torch.testing.assert_close(embed.flatten(0, 1), one_by_one, rtol=1e-4, atol=1e-6)
    assert embed_dim in (None, encoder.embed_dim)


@pytest.mark.parametrize("make", [ConvEncoder, PatchEncoder])
def test_leading_axes_are_free(make: type[ConvEncoder | PatchEncoder]) -> None:
    torch.manual_seed(0)
    encoder = make((3, 32, 48)).double()
    images = torch.rand(2, 3, 2, 3, 32, 48, dtype=torch.float64) - 0.5
    one_by_one = torch.stack([encoder(image[None])[0] for image in images.flatten(0, 2)])
    torch.testing.assert_close(encoder(images).flatten(0, 2), one_by_one)


def test_the_vector_encoder_is_three_layers_row_by_row() -> None:
    torch.manual_seed(0)
    encoder = VectorEncoder(5, embed_dim=8).double()
    obs = torch.randn(4, 3, 5, dtype=torch.float64)
    hidden = obs
    for layer in list(encoder.layers)[:-1]:
        hidden = F.linear(hidden, layer.weight, layer.bias).clamp(min=0)
    last = encoder.layers[-1]
    torch.testing.assert_close(encoder(obs), F.linear(hidden, last.weight, last.bias))
    assert len(encoder.layers) == 3
    assert (encoder(obs) < 0).any()


def test_the_convolutions_are_the_papers_at_64_pixels() -> None:
    encoder = ConvEncoder((3, 64, 64))
    sizes = [tuple(conv.weight.shape) for conv in encoder.convs]
    assert sizes == [(32, 3, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4)]
    assert [conv.stride for conv in encoder.convs] == [(2, 2)] * 4
    assert encoder.embed_dim == 1024
    assert conv_layers(64, 64) == ([(4, 4)] * 4, (2, 2))


def test_channels_double_up_to_eight_times_the_depth() -> None:
    assert [conv.out_channels for conv in ConvEncoder((1, 260, 140), depth=3).convs] == [3, 6, 12, 24, 24]


@FAST
@given(st.integers(6, 200), st.integers(6, 200))
def test_layers_are_added_as_long_as_two_pixels_stay_and_leave_nothing_over(height: int, width: int) -> None:
    kernels, last = conv_layers(height, width)
    image = torch.zeros(1, 1, height, width)
    for rows, columns in kernels:
        for size, kernel, side in zip(image.shape[2:], (rows, columns), (height, width), strict=True):
            assert kernel in (4, 5)
            assert (size - kernel) % 2 == 0 or side == 64
        image = F.conv2d(image, torch.zeros(1, 1, rows, columns), stride=2)
    assert kernels
    assert tuple(image.shape[2:]) == last
    assert 2 <= min(last) <= 5


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (77, 33), (84, 84), (157, 96), (250, 31), (256, 256)])
def test_the_embedding_depends_on_every_pixel(size: tuple[int, int]) -> None:
    encoder = ConvEncoder((1, *size), depth=1)
    for conv in encoder.convs:
        torch.nn.init.ones_(conv.weight)
    image = torch.ones(1, 1, *size, requires_grad=True)
    (grad,) = torch.autograd.grad(encoder(image).sum(), [image])
    assert (grad > 0).all()


def test_at_the_papers_size_the_last_two_pixels_of_a_side_stay_unseen_as_in_the_original() -> None:
    encoder = ConvEncoder((1, 64, 65), depth=1)
    for conv in encoder.convs:
        torch.nn.init.ones_(conv.weight)
    image = torch.ones(1, 1, 64, 65, requires_grad=True)
    (grad,) = torch.autograd.grad(encoder(image).sum(), [image])
    assert (grad[..., :62, :] > 0).all()
    assert (grad[..., 62:, :] == 0).all()


def test_an_embed_dim_adds_a_linear_layer_on_the_flat_map() -> None:
    torch.manual_seed(0)
    plain, projected = ConvEncoder((3, 64, 64), depth=4), ConvEncoder((3, 64, 64), depth=4, embed_dim=10)
    projected.convs.load_state_dict(plain.convs.state_dict())
    images = torch.rand(2, 3, 64, 64) - 0.5
    project = projected.project
    expected = F.linear(plain(images), project.weight, project.bias)
    torch.testing.assert_close(projected(images), expected)
    assert (expected < 0).any(), "no activation follows the layer"


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 4), (2, 4, 12)])
def test_patches_are_cut_row_by_row_and_channel_by_channel(shape: tuple[int, int, int]) -> None:
    size = shape[0] * shape[1] * shape[2]
    encoder = PatchEncoder(shape, patch=4, patch_dim=shape[0] * 16, embed_dim=size)
    set_identity(encoder.stem)
    set_identity(encoder.project)
    images = torch.arange(2.0 * size).reshape(2, *shape)
    expected = [sum(patches_by_hand(image, 4), []) for image in images.numpy()]  # noqa: RUF017 -- a few short lists
    assert encoder(images).tolist() == expected


def test_the_patch_network_by_hand() -> None:
    torch.manual_seed(0)
    encoder = PatchEncoder((3, 16, 24), patch=8, patch_dim=5, embed_dim=9).double()
    image = torch.rand(3, 16, 24, dtype=torch.float64) - 0.5
    stem, project = encoder.stem, encoder.project
    pieces = [
        F.elu(F.linear(torch.tensor(numbers, dtype=torch.float64), stem.weight, stem.bias))
        for numbers in patches_by_hand(image.numpy(), 8)
    ]
    expected = F.linear(torch.cat(pieces), project.weight, project.bias)
    expected = torch.where(expected > 0, expected, expected.exp() - 1)
    torch.testing.assert_close(encoder(image[None])[0], expected)


def test_a_pixel_changes_only_its_own_patch() -> None:
    encoder = PatchEncoder((1, 12, 20), patch=4, patch_dim=2, embed_dim=2 * 15)
    set_identity(encoder.project)
    with torch.no_grad():
        encoder.stem.weight.fill_(1.0)
        encoder.stem.bias.zero_()
    for y in range(12):
        for x in range(20):
            image = torch.zeros(1, 1, 12, 20)
            image[0, 0, y, x] = 1.0
            changed = encoder(image)[0].reshape(15, 2).amax(1).nonzero().flatten().tolist()
            assert changed == [5 * (y // 4) + x // 4]


ENCODERS = [ConvEncoder((3, 32, 48), depth=2), PatchEncoder((3, 32, 48))]


@pytest.mark.parametrize("encoder", ENCODERS, ids=["conv", "patch"])
def test_wrong_images_are_named(encoder: ConvEncoder | PatchEncoder) -> None:
    cases: list[tuple[Tensor, str]] = [
        (torch.zeros(2, 3, 48, 32), r"images must be \[\.\.\., 3, 32, 48\] .*one leading axis, got \[2, 3, 48, 32\]$"),
        (torch.zeros(3, 32, 48), r"with at least one leading axis, got \[3, 32, 48\]$"),
        (torch.zeros(2, 32, 48, 3), r"got \[2, 32, 48, 3\]; move the channels first with images.movedim\(-1, -3\)$"),
    ]
    for images, message in cases:
        with pytest.raises(ValueError, match=message):
            encoder(images)
    with pytest.raises(TypeError, match=r"images must be floats in \[-0.5, 0.5\], got torch.uint8; .*dequantise"):
        encoder(torch.zeros(2, 3, 32, 48, dtype=torch.uint8))


def test_wrong_settings_are_named() -> None:
    shape = (3, 64, 64)
    for bad in ((64, 64), (3, 0, 64), (1, 3, 64, 64)):
        for make in (ConvEncoder, PatchEncoder):
            with pytest.raises(ValueError, match=r"image_shape must be \(C, Y, X\), three positive whole .*got \("):
                make(bad)
    with pytest.raises(ValueError, match=r"image_shape must be at least 6 pixels high and wide, got \(3, 5, 64\)"):
        ConvEncoder((3, 5, 64))
    with pytest.raises(ValueError, match="patch must divide the image's height 64 and width 60, got 8"):
        PatchEncoder((3, 64, 60))
    for name in ("depth", "embed_dim"):
        with pytest.raises(ValueError, match=f"{name} must be greater than 0, got 0"):
            ConvEncoder(shape, **{name: 0})
    for name in ("patch", "patch_dim", "embed_dim"):
        with pytest.raises(ValueError, match=f"{name} must be greater than 0, got -1"):
            PatchEncoder(shape, **{name: -1})
    for name in ("obs_dim", "embed_dim", "num_layers"):
        with pytest.raises(ValueError, match=f"{name} must be greater than 0, got 0"):
            VectorEncoder(**{"obs_dim": 3, name: 0})


def test_a_wrong_vector_is_named() -> None:
    with pytest.raises(ValueError, match=r"obs must be \[\.\.\., 3\] \(the encoder's obs_dim\), got \[2, 4\]"):
        VectorEncoder(3)(torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"obs must be a tensor \[\.\.\., 3\], got ndarray"):
        VectorEncoder(3)(np.zeros((2, 3)))


def test_observations_that_are_no_float_tensors_are_named() -> None:
    with pytest.raises(TypeError, match="images must be a tensor of floats, got ndarray"):
        ConvEncoder((3, 16, 16), depth=1)(torch.zeros(1, 3, 16, 16).numpy())
    with pytest.raises(TypeError, match=r"obs must be floats, got torch.int64; convert it with obs.float\(\)"):
        VectorEncoder(3)(torch.zeros(2, 3, dtype=torch.int64))


def both() -> DictEncoder:
    torch.manual_seed(0)
    return DictEncoder({"joints": VectorEncoder(5, embed_dim=7), "camera": ConvEncoder((3, 16, 24), depth=2)})


def see(*leading: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "camera": torch.rand(*leading, 3, 16, 24, generator=generator, dtype=dtype) - 0.5,
        "joints": torch.randn(*leading, 5, generator=generator, dtype=dtype),
    }


def test_embeddings_stand_side_by_side_in_the_order_of_the_encoders_not_of_the_observation() -> None:
    encoder, obs = both(), see(3, 2)
    joints, camera = encoder.encoders["joints"], encoder.encoders["camera"]
    assert [*encoder.encoders] == ["joints", "camera"]
    assert encoder.embed_dim == 7 + camera.embed_dim
    expected = torch.cat([joints(obs["joints"]), camera(obs["camera"])], -1)
    for order in (obs, dict(reversed(obs.items()))):
        assert torch.equal(encoder(order), expected)


def test_an_entry_moves_its_own_part_of_the_embedding_alone() -> None:
    encoder, obs = both(), see(3, 2)
    before = encoder(obs)
    moved = encoder({**obs, "camera": obs["camera"] + 0.1})
    assert torch.equal(moved[..., :7], before[..., :7])
    assert (moved[..., 7:] != before[..., 7:]).any(-1).all()


def test_several_observations_are_embedded_on_any_leading_axes_in_the_dtype_of_the_weights() -> None:
    encoder, obs = both().double(), see(2, 3, 2, dtype=torch.float64)
    flat = {name: value.flatten(0, 2) for name, value in obs.items()}
    one_by_one = [encoder({name: value[row : row + 1] for name, value in flat.items()}) for row in range(12)]
    torch.testing.assert_close(encoder(obs).flatten(0, 2), torch.cat(one_by_one))
    assert encoder(obs).dtype == torch.float64


def test_the_weights_of_several_encoders_are_named_after_their_entries() -> None:
    names = {name.rsplit(".", 2)[0] for name in both().state_dict()}
    assert names == {"encoders.joints.layers", "encoders.camera.convs"}


@pytest.mark.parametrize(
    ("change", "got"),
    [({"camera": None}, "joints"), ({"sonar": torch.zeros(2, 1)}, "camera, joints, sonar"), (None, "none")],
)
def test_entries_that_are_missing_or_too_many_are_named(change: dict[str, Tensor | None] | None, got: str) -> None:
    obs = {} if change is None else {name: value for name, value in {**see(2), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=f"^obs must have the entries joints, camera, got {got}$"):
        both()(obs)


def test_an_observation_that_is_no_dictionary_or_has_bytes_in_it_is_named() -> None:
    with pytest.raises(TypeError, match="obs must be a dictionary of joints, camera, got Tensor"):
        both()(torch.zeros(2, 5))
    obs = see(2)
    with pytest.raises(TypeError, match=r"images must be floats .*got torch.uint8"):
        both()({**obs, "camera": obs["camera"].byte()})
    with pytest.raises(TypeError, match=r"obs must be floats, got torch.int64"):
        both()({**obs, "joints": obs["joints"].long()})


@pytest.mark.parametrize("name", ["a.b", "", "a/b", 3])
def test_names_that_cannot_stand_in_a_state_dict_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match=f"encoders must have names without dots and slashes, got {name!r}"):
        DictEncoder({name: VectorEncoder(3)})


@pytest.mark.parametrize("name", ["keys", "type", "training"])
def test_names_that_torch_needs_itself_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"encoders must have names that torch.nn.ModuleDict has not taken, got '{name}'"
    ):
        DictEncoder({name: VectorEncoder(3)})


def test_no_encoders_and_parts_without_a_size_are_named() -> None:
    with pytest.raises(ValueError, match="encoders must hold at least one entry, got none"):
        DictEncoder({})
    for part in (nn.Linear(3, 3), 7):
        message = rf"encoders\['joints'\] must be a torch.nn.Module with an embed_dim, got {type(part).__name__}"
        with pytest.raises(TypeError, match=message):
            DictEncoder({"joints": part})
