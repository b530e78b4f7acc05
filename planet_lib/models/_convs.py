"""Stacks of stride-2 convolutions on a processor: the same sums, in pieces that stay in its cache.

For `encoders` and `decoders`. It knows weights and maps, and nothing of what is on the images. It takes a few frames at
a time through all layers, forward and backward, and besides:

- maps have their channels last, which the convolutions of a processor are made for;
- relu works in place, and the gradient's part of it too;
- the encoder's first map, two thirds of all its numbers, is computed again in the backward pass: new memory costs more;
- the encoder's last convolution, whose map has a few pixels, is one matrix product of the pixels' neighbourhoods;
- a transposed convolution of one pixel is a linear layer;
- the decoder's last transposed convolution is one of stride 1 with four times the channels, one for each phase of a
  pixel (Shi et al. 2016, arXiv:1609.05158), which are then shuffled into the image.

The gradient of a gradient is that of the plain formulas. Where these functions cannot be used, the layers are called
one after the other as they stand: on other devices, compiled, traced, under autocast, in torch.func's transforms and
forward mode, where something watches the operations, for a few frames, where they don't pay, and for layers that are
not plain ones, have hooks or other settings than the stride of 2.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

_FRAMES = 50  # at a time
_FEW = 16  # frames up to which arranging the weights costs more than it saves
_WINDOWS = 9  # pixels of a map up to which its convolution is a matrix product
# What these functions compute, by the layers' names for it.
_SETTINGS = {
    "stride": (2, 2),
    "padding": (0, 0),
    "output_padding": (0, 0),
    "dilation": (1, 1),
    "groups": 1,
    "padding_mode": "zeros",
}


def encode(images: Tensor, convs: nn.ModuleList) -> Tensor:
    """Convolutions with relu behind each: images [N, C, Y, X] -> maps [N, C', Y', X']."""
    if _is_plain(images, convs, nn.Conv2d):
        for conv in convs:
            images = torch.relu(conv(images))
        return images
    return _run(True, images, *_parameters(convs))


def decode(maps: Tensor, layers: nn.ModuleList) -> Tensor:
    """Transposed convolutions with relu between them: maps [N, C', Y', X'] -> images [N, C, Y, X]."""
    if _is_plain(maps, layers, nn.ConvTranspose2d):
        for layer in layers[:-1]:
            maps = torch.relu(layer(maps))
        image: Tensor = layers[-1](maps)
        return image
    weights, biases = _parameters(layers)
    if maps.shape[2:] == (1, 1) and len(weights) > 1:
        rows, columns = weights[0].shape[2:]
        matrix = weights[0].permute(0, 2, 3, 1).flatten(1)
        flat = torch.addmm(biases[0].repeat(rows * columns), maps.flatten(1), matrix).relu_()
        maps = flat.reshape(len(maps), rows, columns, -1).permute(0, 3, 1, 2)
        weights, biases = weights[1:], biases[1:]
    return _run(False, maps, weights, biases)


def _is_plain(frames: Tensor, layers: nn.ModuleList, kind: type[nn.Module]) -> bool:
    return (
        torch.compiler.is_compiling()
        or frames.device.type != "cpu"
        or len(frames) <= _FEW
        or frames.dtype not in (torch.float32, torch.float64)
        or torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or not all(type(layer) is kind and _is_computed(layer) for layer in layers)
    )


def _is_computed(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    as_known = all(getattr(layer, name) == value for name, value in _SETTINGS.items())
    return as_known and layer.bias is not None and not any(hooks)


def _parameters(layers: Any) -> tuple[list[Tensor], list[Tensor]]:
    return [layer.weight for layer in layers], [layer.bias for layer in layers]


def _run(is_encoder: bool, frames: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    keeps = torch.is_grad_enabled()
    made: Tensor = _Stack.apply(is_encoder, keeps, frames, *weights, *biases)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return made


class _Stack(torch.autograd.Function):
    """All layers, a few frames at a time. The maps between them are kept; the encoder's first is made again."""

    @staticmethod
    def forward(ctx: Any, is_encoder: bool, keeps: bool, frames: Tensor, *parameters: Tensor) -> Tensor:
        layers = _layers(is_encoder, frames, parameters)
        made = frames.new_empty(len(frames), *_shape_above(is_encoder, frames, parameters))
        kept: list[Tensor] = []
        for below, above in zip(_pieces(frames), _pieces(made), strict=True):
            maps = [_channels_last(below)]
            for layer in layers[:-1]:
                maps.append(layer(maps[-1]).relu_())
            layers[-1].write(maps[-1], above)
            if is_encoder:
                above.relu_()
            kept += maps[1 + is_encoder :] if keeps else []
        ctx.is_encoder = is_encoder
        # The decoder's outcome is the caller's to change: no gradient asks for it.
        ctx.save_for_backward(frames, *parameters, *([made] if is_encoder else []), *kept)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        is_encoder, (needs_frames, *needs) = ctx.is_encoder, ctx.needs_input_grad[2:]
        frames, *saved = ctx.saved_tensors
        parameters, kept = saved[: len(needs)], saved[len(needs) :]
        made = kept.pop(0) if is_encoder else grad  # the decoder's is not looked at
        # By create_graph=True, and for several gradients at once.
        if torch.is_grad_enabled() or is_legacy_batchedtensor(grad):
            return None, None, *_plain_gradients(is_encoder, frames, parameters, grad, ctx.needs_input_grad[2:])
        layers = _layers(is_encoder, frames, parameters)
        for number, layer in enumerate(layers):
            layer.begin_sums(is_trained=needs[number] or needs[len(layers) + number])
        pieces = list(zip(_pieces(frames), _pieces(made), _pieces(grad), strict=True))
        per_piece, slopes = len(kept) // len(pieces), []
        for number, (below, above, piece) in enumerate(pieces):
            maps = [_channels_last(below)]
            if is_encoder and len(layers) > 1:
                maps.append(layers[0](maps[0]).relu_())
            maps += kept[number * per_piece :][:per_piece]
            slope = torch.ops.aten.threshold_backward(piece, above, 0) if is_encoder else piece
            for index in reversed(range(len(layers))):
                slope = layers[index].back(_channels_last(slope), maps[index], needs_frames or index > 0)
                if index:
                    torch.ops.aten.threshold_backward.grad_input(slope, maps[index], 0, grad_input=slope)
            slopes.append(slope)
        sums = [layer.weight_sum for layer in layers] + [layer.bias_sum for layer in layers]
        return None, None, torch.cat(slopes) if needs_frames else None, *sums


class _Layer:
    """One convolution of stride 2, transposed or not, and the sums of its gradients over the pieces."""

    def __init__(self, weight: Tensor, bias: Tensor, is_transposed: bool) -> None:
        self.weight, self.bias, self.is_transposed = _channels_last(weight), bias, is_transposed
        self.weight_sum: Tensor | None = None
        self.bias_sum: Tensor | None = None

    def begin_sums(self, *, is_trained: bool) -> None:
        if is_trained:
            self.weight_sum, self.bias_sum = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def __call__(self, below: Tensor) -> Tensor:
        convolve = F.conv_transpose2d if self.is_transposed else F.conv2d
        return convolve(below, self.weight, self.bias, stride=2)

    def write(self, below: Tensor, above: Tensor) -> None:
        above.copy_(self(below))

    def back(self, slope: Tensor, below: Tensor, needs_below: bool) -> Tensor:
        """From the gradient of what is above to that of what is below, where it is needed; adds to the sums."""
        grads = torch.ops.aten.convolution_backward(
            slope, below, self.weight, None, (2, 2), (0, 0), (1, 1), self.is_transposed, (0, 0), 1,
            (needs_below, self.weight_sum is not None, False),
        )  # fmt: skip
        if self.weight_sum is not None and self.bias_sum is not None:
            self.weight_sum += grads[1]
            self.bias_sum += slope.sum((0, 2, 3))
        below_slope: Tensor = grads[0]
        return below_slope


class _Product(_Layer):
    """A convolution as a matrix product: the neighbourhoods [pixels, ky kx C] times the weight [ky kx C, C']."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias, is_transposed=False)
        self.matrix = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        above, channels, rows, columns = weight.shape
        self.order = (rows, columns, channels, above)

    def begin_sums(self, *, is_trained: bool) -> None:
        if is_trained:  # in the order of the matrix
            self.weight_sum = self.matrix.new_zeros(self.order).permute(3, 2, 0, 1)
            self.bias_sum = torch.zeros_like(self.bias)

    def _windows(self, maps: Tensor) -> Tensor:
        rows, columns = self.weight.shape[2:]
        return maps.permute(0, 2, 3, 1).unfold(1, rows, 2).unfold(2, columns, 2).permute(0, 1, 2, 4, 5, 3)

    def write(self, below: Tensor, above: Tensor) -> None:
        windows = self._windows(below)
        made = torch.addmm(self.bias, windows.reshape(-1, len(self.matrix)), self.matrix)
        above.copy_(made.view(*windows.shape[:3], -1).permute(0, 3, 1, 2))

    def back(self, slope: Tensor, below: Tensor, needs_below: bool) -> Tensor:
        rows = slope.permute(0, 2, 3, 1).reshape(-1, slope.shape[1])
        windows = self._windows(below)
        if self.weight_sum is not None and self.bias_sum is not None:
            matrix_sum = self.weight_sum.permute(2, 3, 1, 0).view(self.matrix.shape)
            matrix_sum.addmm_(windows.reshape(-1, len(self.matrix)).t(), rows)
            self.bias_sum += rows.sum(0)
        below_slope = torch.zeros_like(below)
        parts = (rows @ self.matrix.t()).view(windows.shape)
        for row in range(windows.shape[1]):
            for column in range(windows.shape[2]):
                self._windows(below_slope)[:, row, column] += parts[:, row, column]
        return below_slope


class _Shuffled(_Layer):
    """A transposed convolution whose image is made phase by phase: rows and columns 2 i + p by weights 2 a + p."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias, is_transposed=True)
        below, above, rows, columns = weight.shape
        taps = (rows + 1) // 2, (columns + 1) // 2
        padded = F.pad(weight, (0, columns % 2, 0, rows % 2)).view(below, above, taps[0], 2, taps[1], 2)
        phases = padded.flip(2, 4).permute(3, 5, 1, 0, 2, 4).reshape(4 * above, below, *taps)
        self.phases, self.biases = _channels_last(phases), bias.repeat(4)
        self.padding = taps[0] - 1, taps[1] - 1

    def write(self, below: Tensor, above: Tensor) -> None:
        made = F.conv2d(below, self.phases, self.biases, padding=self.padding)
        made = made.view(len(below), 2, 2, -1, *made.shape[2:])
        for row in range(2):
            for column in range(2):
                target = above[:, :, row::2, column::2]
                target.copy_(made[:, row, column, :, : target.shape[2], : target.shape[3]])


def _layers(is_encoder: bool, frames: Tensor, parameters: Sequence[Tensor]) -> list[_Layer]:
    weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
    layers = [_Layer(*pair, not is_encoder) for pair in zip(weights[:-1], biases[:-1], strict=True)]
    if not is_encoder:
        return [*layers, _Shuffled(weights[-1], biases[-1])]
    rows, columns = _shape_above(is_encoder, frames, parameters)[1:]
    last = _Product(weights[-1], biases[-1]) if rows * columns <= _WINDOWS else _Layer(weights[-1], biases[-1], False)
    return [*layers, last]


def _shape_above(is_encoder: bool, frames: Tensor, parameters: Sequence[Tensor]) -> tuple[int, int, int]:
    """Channels, rows and columns of what comes out."""
    rows, columns = frames.shape[2:]
    for weight in parameters[: len(parameters) // 2]:
        if is_encoder:
            rows, columns = (rows - weight.shape[2]) // 2 + 1, (columns - weight.shape[3]) // 2 + 1
        else:
            rows, columns = 2 * (rows - 1) + weight.shape[2], 2 * (columns - 1) + weight.shape[3]
    return len(parameters[-1]), rows, columns


def _plain_gradients(
    is_encoder: bool, frames: Tensor, parameters: Sequence[Tensor], grad: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients by plain operations, which can be differentiated again where gradients are enabled."""
    half, create_graph = len(parameters) // 2, torch.is_grad_enabled()
    with torch.enable_grad():
        # Frames that were made with these weights would lead to them too: the gradient is that of views, one each.
        views = [each.view_as(each) for each in (frames, *parameters)]
        made, convolve = views[0], F.conv2d if is_encoder else F.conv_transpose2d
        for index, (weight, bias) in enumerate(zip(views[1 : half + 1], views[half + 1 :], strict=True)):
            made = convolve(made, weight, bias, stride=2)
            if is_encoder or index < half - 1:
                made = torch.relu(made)
    inputs = [view for view, need in zip(views, needs, strict=True) if need]
    found = iter(torch.autograd.grad(made, inputs, grad, create_graph=create_graph))
    return [next(found) if need else None for need in needs]


def _pieces(frames: Tensor) -> tuple[Tensor, ...]:
    """Nearly equal numbers of frames, _FRAMES at most."""
    return frames.tensor_split(-(-len(frames) // _FRAMES))


def _channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)
