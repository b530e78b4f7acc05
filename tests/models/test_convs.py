"""The fast way through the convolutions on a processor: what it makes, and when the layers are called instead."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from planet_lib import ConvEncoder, Decoder
from planet_lib.models import _convs

SHAPES = [(3, 64, 64), (1, 17, 40), (2, 84, 84), (3, 6, 6), (3, 9, 7), (1, 65, 33), (3, 31, 64), (2, 40, 150)]
FRAMES = 113  # three pieces, not of the same size


def encoder_of(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> ConvEncoder:
    torch.manual_seed(0)
    return ConvEncoder(shape, depth=4).to(dtype)


def decoder_of(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> Decoder:
    torch.manual_seed(1)
    return Decoder(7, shape, depth=4).to(dtype)


def encode_by_layers(encoder: nn.Module, images: Tensor) -> Tensor:
    for conv in encoder.convs:
        images = torch.relu(conv(images))
    return images.flatten(1)


def decode_by_layers(decoder: nn.Module, features: Tensor) -> Tensor:
    network = decoder.network
    maps = network.seed(features).reshape(-1, *network.seed_shape)
    for layer in network.layers[:-1]:
        maps = torch.relu(layer(maps))
    return network.layers[-1](maps)


def input_of(part: nn.Module, frames: int = FRAMES, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(2)
    shape = part.image_shape if isinstance(part, ConvEncoder) else (7,)
    return (torch.rand(frames, *shape, dtype=dtype) - 0.5).requires_grad_()


def by_layers(part: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
    return encode_by_layers if isinstance(part, ConvEncoder) else decode_by_layers


def weigh(made: Tensor) -> Tensor:
    """A number that every number of `made` counts in, each by its own weight, in no pattern."""
    return (made * torch.linspace(0, 999, made.numel(), dtype=made.dtype).sin().view_as(made)).sum()


def everything(made: Tensor, seen: Tensor, part: nn.Module, weigh: Callable[[Tensor], Tensor] = weigh) -> list[Tensor]:
    return [made, *torch.autograd.grad(weigh(made), [seen, *part.parameters()])]


def is_fast(made: Tensor) -> bool:
    names, todo = set(), [made.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            names.add(node.name())
            todo += [above for above, _ in node.next_functions]
    return "_StackBackward" in names


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_outcome_and_gradients_are_those_of_layer_by_layer(
    make: Callable[..., nn.Module], shape: tuple[int, int, int]
) -> None:
    part = make(shape)
    seen = input_of(part)
    made = part(seen)
    assert is_fast(made)
    expected = everything(by_layers(part)(part, seen), seen, part)
    torch.testing.assert_close(everything(made, seen, part), expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_in_float32_they_differ_by_rounding_alone(make: Callable[..., nn.Module]) -> None:
    part = make((3, 64, 64), torch.float32)
    seen = input_of(part, 20, torch.float32)
    # A loss in which no gradients cancel, which would leave the rounding alone.
    fast, plain = (
        everything(made, seen, part, lambda made: (made + 1).square().sum())
        for made in (part(seen), by_layers(part)(part, seen))
    )
    for found, expected in zip(fast, plain, strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_the_gradient_of_a_gradient_is_that_of_layer_by_layer(make: Callable[..., nn.Module]) -> None:
    part = make((2, 20, 20))
    seen = input_of(part, 20)

    def twice(made: Tensor) -> tuple[Tensor, ...]:
        wanted = [seen, *part.parameters()]
        slopes = torch.autograd.grad(weigh(made.square()), wanted, create_graph=True)
        length = torch.stack([slope.square().sum() for slope in slopes]).sum()
        return torch.autograd.grad(length, wanted)

    torch.testing.assert_close(twice(part(seen)), twice(by_layers(part)(part, seen)), rtol=1e-10, atol=1e-10)


def test_under_create_graph_an_image_made_with_the_same_weights_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of((3, 17, 23))
    decoder = Decoder(encoder.embed_dim, (3, 17, 23), depth=4).double()
    seen, wanted = input_of(encoder, 20), [*encoder.parameters(), *decoder.parameters()]

    def slopes(*, create_graph: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(weigh(encoder(decoder(encoder(seen)))), wanted, create_graph=create_graph)

    found = slopes(create_graph=True)
    monkeypatch.setattr(_convs, "_is_plain", lambda *_: True)
    torch.testing.assert_close([slope.detach() for slope in found], [*slopes(create_graph=False)])


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_several_gradients_at_once_are_those_one_by_one(make: Callable[..., nn.Module]) -> None:
    part = make((2, 20, 20))
    seen = input_of(part, 20)

    def three(seen: Tensor) -> Tensor:
        return part(seen).square().sum(0).flatten()[:3]

    at_once, one_by_one = (torch.autograd.functional.jacobian(three, seen, vectorize=both) for both in (True, False))
    torch.testing.assert_close(at_once, one_by_one)


def test_a_decoded_image_may_be_changed_in_place() -> None:
    decoder = decoder_of((3, 20, 20))
    seen = input_of(decoder, 20)
    expected = everything(decode_by_layers(decoder, seen).clamp(-0.1, 0.1), seen, decoder)
    torch.testing.assert_close(everything(decoder(seen).clamp_(-0.1, 0.1), seen, decoder), expected)


CHANGES = [
    {"stride": 1},
    {"stride": (2, 1)},
    {"padding": 1},
    {"dilation": 2},
    {"groups": 2},
    {"bias": False},
]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((kind, change) for kind in (nn.Conv2d, nn.ConvTranspose2d) for change in CHANGES),
        (nn.Conv2d, {"padding": 1, "padding_mode": "reflect"}),
        (nn.ConvTranspose2d, {"output_padding": 1}),
    ],
)
def test_layers_with_other_settings_go_layer_by_layer(
    kind: type[nn.Module], change: dict[str, Any], index: int
) -> None:
    torch.manual_seed(3)
    layers = [kind(4, 4, 3, **{"stride": 2, **(change if each == index else {})}).double() for each in range(2)]
    run = _convs.encode if kind is nn.Conv2d else _convs.decode
    maps = torch.rand(20, 4, 17, 17, dtype=torch.float64) - 0.5
    last = torch.relu if kind is nn.Conv2d else nn.Identity()
    found, expected = run(maps, nn.ModuleList(layers)), last(layers[1](torch.relu(layers[0](maps))))
    assert not is_fast(found)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_a_counter_of_operations_sees_the_plain_layers(make: Callable[..., nn.Module]) -> None:
    part = make((3, 20, 20))
    counts = []
    for frames in (10, 20):
        with FlopCounterMode(display=False) as counter:
            weigh(part(input_of(part, frames))).backward()
        counts.append(counter.get_total_flops())
    assert counts[1] == 2 * counts[0] > 0


@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_a_graph_that_is_kept_gives_the_same_gradient_again(make: Callable[..., nn.Module]) -> None:
    part = make((3, 64, 64))
    seen = input_of(part, 60)
    made = weigh(part(seen))
    wanted = [seen, *part.parameters()]
    first = [slope.clone() for slope in torch.autograd.grad(made, wanted, retain_graph=True)]
    assert all(map(torch.equal, first, torch.autograd.grad(made, wanted)))


@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_only_what_is_asked_for_gets_a_gradient(make: Callable[..., nn.Module]) -> None:
    part = make((3, 20, 20))
    seen = input_of(part, 20)
    *_, expected = torch.autograd.grad(weigh(part(seen)), [*part.parameters(), seen])
    part.requires_grad_(False)
    (found,) = torch.autograd.grad(weigh(part(seen)), [seen])
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)
    layer = (part.convs if isinstance(part, ConvEncoder) else part.network.layers)[-1]
    layer.bias.requires_grad_(True)
    (slope,) = torch.autograd.grad(part(seen.detach()).sum(), [layer.bias])
    assert slope.shape == layer.bias.shape
    assert (slope > 0).all()


@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_without_a_gradient_the_outcome_is_the_same_and_no_map_is_kept(make: Callable[..., nn.Module]) -> None:
    part = make((3, 64, 64))
    seen = input_of(part, 60)
    expected = part(seen)
    with torch.no_grad():
        assert torch.equal(part(seen), expected)
    with torch.inference_mode():
        assert torch.equal(part(seen), expected)
    kept: list[int] = []

    class Context:
        def save_for_backward(self, *tensors: Tensor) -> None:
            kept.append(len(tensors))

    layers = part.convs if isinstance(part, ConvEncoder) else part.network.layers
    weights, biases = _convs._parameters(layers)
    maps = seen.detach() if isinstance(part, ConvEncoder) else seen.new_zeros(60, *part.network.seed_shape)
    with torch.no_grad():
        for keeps in (True, False):
            _convs._Stack.forward(Context(), isinstance(part, ConvEncoder), keeps, maps, *weights, *biases)
    # Input and eight parameters, the encoder's outcome; two pieces of the second and third or first three maps.
    assert kept == ([10 + 2 * 2, 10] if isinstance(part, ConvEncoder) else [9 + 2 * 3, 9])


@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_weights_that_changed_before_the_backward_pass_are_noticed(make: Callable[..., nn.Module]) -> None:
    part = make((3, 20, 20))
    made = part(input_of(part, 20)).sum()
    layer = (part.convs if isinstance(part, ConvEncoder) else part.network.layers)[-1]
    with torch.no_grad():
        layer.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(made)


@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_few_frames_hooks_other_layers_and_autocast_go_layer_by_layer(make: Callable[..., nn.Module]) -> None:
    part = make((3, 20, 20), torch.float32)
    assert is_fast(part(input_of(part, 17, torch.float32)))
    assert not is_fast(part(input_of(part, 16, torch.float32)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_fast(part(input_of(part, 20, torch.float32)))
    layers = part.convs if isinstance(part, ConvEncoder) else part.network.layers
    calls: list[nn.Module] = []
    handle = layers[0].register_forward_hook(lambda module, *_: calls.append(module))
    assert not is_fast(part(input_of(part, 20, torch.float32)))
    assert calls == [layers[0]]
    handle.remove()
    nn.utils.parametrizations.weight_norm(layers[0])
    made = part(seen := input_of(part, 20, torch.float32))
    assert not is_fast(made)
    torch.testing.assert_close(made, by_layers(part)(part, seen))


@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_functional_transforms_and_compilers_see_the_plain_layers(make: Callable[..., nn.Module]) -> None:
    part = make((3, 20, 20))
    seen = input_of(part, 20)
    parameters = dict(part.named_parameters())

    def loss(given: dict[str, Tensor], seen: Tensor) -> Tensor:
        return weigh(torch.func.functional_call(part, given, (seen,)))

    expected = torch.autograd.grad(loss(parameters, seen), [*part.parameters()])
    found = torch.func.grad(loss)({name: value.detach() for name, value in parameters.items()}, seen.detach())
    torch.testing.assert_close([*found.values()], [*expected])
    stacked = torch.stack([seen.detach(), -seen.detach()])
    torch.testing.assert_close(torch.func.vmap(part)(stacked), torch.stack([part(each) for each in stacked]))
    torch.compiler.reset()
    compiled = torch.compile(part, fullgraph=True, backend="eager")(seen)
    assert not is_fast(compiled)
    torch.testing.assert_close(compiled, part(seen), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own forward mode
@pytest.mark.parametrize("make", [encoder_of, decoder_of])
def test_forward_mode_gives_the_slope_along_a_direction(make: Callable[..., nn.Module]) -> None:
    part = make((3, 20, 20))
    seen = input_of(part, 20)
    direction = torch.rand_like(seen)
    (grad,) = torch.autograd.grad(weigh(part(seen)), [seen])
    with forward_ad.dual_level():
        along = forward_ad.unpack_dual(weigh(part(forward_ad.make_dual(seen.detach(), direction)))).tangent
    torch.testing.assert_close(along, (grad * direction).sum())
