"""The arithmetic of `_fused`: the loop of `filter_recurrent` forwards, and its gradient. For this package alone.

At the sizes of a small batch a time step costs less arithmetic than calls. Forwards a step writes into buffers made for
all steps. Backwards only what is truly recurrent is done step by step: the gradients of weights, actions and embeddings
are one product each over all steps, and every derivative within a step is a factor that is made for all steps at once.
With d the gradient of deter' = (1 - z) n + z h, and m = U_n h + c_n what the reset gate multiplies, the gradients of
the sums inside the gates are d times

    n: (1 - z) (1 - n^2)    r: (factor of n) m r (1 - r)    z: (h - n) z (1 - z)    m: (factor of n) r

In blocks of the order n, r, z, m, the first three meet the input's weights and the last three the memory's.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Layer = tuple[Tensor, Tensor]


def _elu_slope(value: Tensor) -> Tensor:
    return value.clamp(max=0.0).add_(1.0)


# In place, beside the derivative as a function of the value.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (torch.relu_, torch.sign),
    "elu": (F.elu_, _elu_slope),
    "tanh": (torch.tanh_, lambda value: 1.0 - value.square()),
}


class Settings(NamedTuple):
    """What is not a tensor. min_std is of no meaning without noise, where the sample is the mean."""

    activation: str
    min_std: float
    clamp: bool


class Weights(NamedTuple):
    """Weight and bias of every layer; of the GRU weight_ih, weight_hh, bias_ih and bias_hh."""

    path: list[Layer]
    gru: Sequence[Tensor]
    head: list[Layer]
    out: Layer

    @classmethod
    def of(cls, flat: Sequence[Tensor], num_path: int) -> "Weights":
        """The same from one sequence."""
        gru = 2 * num_path
        path, (*head, out) = _pairs(flat[:gru]), _pairs(flat[gru + 4 :])
        return cls(path, flat[gru : gru + 4], head, out)

    def flat(self) -> tuple[Tensor, ...]:
        """Undo `of`."""
        return tuple(
            tensor for layers in (self.path, [self.gru], self.head, [self.out]) for layer in layers for tensor in layer
        )


class Inputs(NamedTuple):
    """deter and stoch [B, ...] before the first step; embed, action, noise and is_first [T, B, ...].

    Actions are zero where is_first holds.
    """

    deter: Tensor
    stoch: Tensor
    embed: Tensor
    action: Tensor
    noise: Tensor | None
    is_first: Tensor


class Trace(NamedTuple):
    """What the forward pass leaves, [T, B, ...].

    Of the GRU r, z and n (gates) and m (memory); the head's last product (out); the values of every hidden layer, in
    front of the GRU (path) and in the head. Without noise stoch is out, and there is no std.
    """

    deter: Tensor
    stoch: Tensor
    std: Tensor
    out: Tensor
    gates: Tensor
    memory: Tensor
    path: list[Tensor]
    head: list[Tensor]


def forward(inputs: Inputs, weights: Weights, settings: Settings, *, keep: bool) -> Trace:
    """Filter. Unless `keep`, what only the gradient reads is that of the last step."""
    trace = _buffers(inputs, weights, keep=keep)
    activate, _ = ACTIVATIONS[settings.activation]
    deter, stoch = inputs.deter, inputs.stoch
    deter_dim, stoch_dim = deter.shape[-1], stoch.shape[-1]
    path, head = (
        [((weight.t(), bias), values) for (weight, bias), values in zip(layers[1:], buffers[1:], strict=True)]
        for layers, buffers in ((weights.path, trace.path), (weights.head, trace.head))
    )
    # Transposed once, so that the products of all steps read them in order.
    stoch_weight, deter_weight, weight_ih, weight_hh, out_weight = (
        weight.t().contiguous()
        for weight in (
            weights.path[0][0][:, :stoch_dim],
            weights.head[0][0][:, :deter_dim],
            *weights.gru[:2],
            weights.out[0],
        )
    )
    gates_weight, candidate_weight = weight_hh[:, : 2 * deter_dim], weight_hh[:, 2 * deter_dim :]
    candidate_bias = weights.gru[3][2 * deter_dim :]
    bias = weights.gru[2] + F.pad(weights.gru[3][: 2 * deter_dim], (0, deter_dim))
    both, new = trace.gates[..., : 2 * deter_dim], trace.gates[..., 2 * deter_dim :]
    reset_gate, update_gate = both[..., :deter_dim], both[..., deter_dim:]
    mean = trace.out[..., :stoch_dim]
    spread = trace.out.new_empty(trace.out.shape[1:])
    raw_spread = spread[:, stoch_dim:]
    for t, reset in enumerate(_resets(inputs.is_first)):
        if reset is not None:
            deter, stoch = deter.masked_fill(reset, 0.0), stoch.masked_fill(reset, 0.0)
        row = t if keep else 0
        hidden = activate(trace.path[0][t].addmm_(stoch, stoch_weight))
        for (weight, layer_bias), values in path:
            hidden = activate(torch.addmm(layer_bias, hidden, weight, out=values[row]))
        torch.addmm(bias, hidden, weight_ih, out=trace.gates[row])
        both[row].addmm_(deter, gates_weight).sigmoid_()
        memory = torch.addmm(candidate_bias, deter, candidate_weight, out=trace.memory[row])
        candidate = new[row].addcmul_(reset_gate[row], memory).tanh_()
        deter = torch.lerp(candidate, deter, update_gate[row], out=trace.deter[t])
        hidden = activate(trace.head[0][t].addmm_(deter, deter_weight))
        for (weight, layer_bias), values in head:
            hidden = activate(torch.addmm(layer_bias, hidden, weight, out=values[row]))
        stoch = torch.addmm(weights.out[1], hidden, out_weight, out=trace.out[t])
        if inputs.noise is not None:
            # Of the mean's half too: of half of each row alone, softplus takes several times longer.
            F.softplus(stoch, out=spread)  # type: ignore[call-arg]  # out is missing in its stub
            if settings.clamp:
                std = torch.clamp_min(raw_spread, settings.min_std, out=trace.std[t])
            else:
                std = torch.add(raw_spread, settings.min_std, out=trace.std[t])
            stoch = torch.addcmul(mean[t], std, inputs.noise[t], out=trace.stoch[t])
    return trace


def backward(
    inputs: Inputs, weights: Weights, settings: Settings, trace: Trace, grads: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of deter, stoch, embed, action and noise, then of the weights as in `Weights.flat`.

    Args:
        inputs: as given to `forward`, like weights and settings.
        weights: likewise.
        settings: likewise.
        trace: what `forward` left, all of it kept.
        grads: gradients of deter and mean, and with noise of stoch and std.
    """
    stoch_dim, deter_dim = inputs.stoch.shape[-1], inputs.deter.shape[-1]
    first = inputs.is_first.unsqueeze(-1)
    deters = torch.cat([inputs.deter.unsqueeze(0), trace.deter[:-1]]).masked_fill_(first, 0.0)
    # What begins as the derivatives within each step becomes, step by step, the gradients.
    _, slope = ACTIVATIONS[settings.activation]
    to_path, to_head = ([slope(values) for values in layers] for layers in (trace.path, trace.head))
    to_gates, (to_out, pull) = _gate_factors(deters, trace), _out_factors(inputs, settings, trace, grads)
    # With rows in the order of the blocks, and the sample's weights once for the mean and once for the spread.
    gru = (weights.gru[0].roll(deter_dim, 0), weights.gru[2])
    stoch_weight = weights.path[0][0][:, :stoch_dim].repeat(1, to_out.shape[-1] // stoch_dim)
    deter_weight = weights.head[0][0][:, :deter_dim]
    above_path, above_head = [*weights.path[1:], gru], [*weights.head[1:], weights.out]
    by_row = to_gates.flatten(2)
    to_input, to_memory, kept = by_row[..., : 3 * deter_dim], by_row[..., deter_dim:-deter_dim], to_gates[:, :, 4]
    carry, carry_stoch = torch.zeros_like(inputs.deter), torch.zeros_like(to_out[0])
    for t, reset in reversed(list(enumerate(_resets(inputs.is_first)))):
        out = to_out[t].add_(carry_stoch) if pull is None else to_out[t].addcmul_(carry_stoch, pull[t])
        hidden = _descend(out, above_head, to_head, t)
        carry = torch.addmm(carry, hidden, deter_weight).add_(grads[0][t])
        to_gates[t].mul_(carry.unsqueeze(1))
        carry_stoch = _descend(to_input[t], above_path, to_path, t) @ stoch_weight
        carry = torch.addmm(kept[t], to_memory[t], weights.gru[1])
        if reset is not None:
            carry.masked_fill_(reset, 0.0)
            carry_stoch.masked_fill_(reset, 0.0)
    to_stoch = to_out[..., :stoch_dim]
    action_weight, embed_weight = weights.path[0][0][:, stoch_dim:], weights.head[0][0][:, deter_dim:]
    of_inputs = [
        carry,
        carry_stoch[:, :stoch_dim],
        to_head[0] @ embed_weight,
        to_path[0] @ action_weight,
        None if inputs.noise is None else (to_stoch - grads[1]) * trace.std,
    ]
    stochs = torch.cat([inputs.stoch.unsqueeze(0), trace.stoch[:-1]]).masked_fill_(first, 0.0)
    weight_ih, bias_ih = _products(to_input, trace.path[-1])
    path = [_products(to_path[0], stochs, inputs.action)]
    path += [_products(*pair) for pair in zip(to_path[1:], trace.path[:-1], strict=True)]
    head = [_products(to_head[0], trace.deter, inputs.embed)]
    head += [_products(*pair) for pair in zip(to_head[1:], trace.head[:-1], strict=True)]
    weight_hh, bias_hh = _products(to_memory, deters)
    of_gru = (weight_ih.roll(-deter_dim, 0), weight_hh, bias_ih.roll(-deter_dim, 0), bias_hh)
    return *of_inputs, *Weights(path, of_gru, head, _products(to_out, trace.head[-1])).flat()


def _buffers(inputs: Inputs, weights: Weights, *, keep: bool) -> Trace:
    """Where the steps write to. In the first hidden layers stand already the products with actions and embeddings."""
    length, batch_size = inputs.is_first.shape
    (path_weight, path_bias), (head_weight, head_bias) = weights.path[0], weights.head[0]
    deter_dim, stoch_dim = inputs.deter.shape[-1], inputs.stoch.shape[-1]

    def buffer(width: int, *, rows: int) -> Tensor:
        return inputs.deter.new_empty(rows, batch_size, width)

    rows = length if keep else 1
    out = buffer(len(weights.out[1]), rows=length)
    is_drawn = inputs.noise is not None
    return Trace(
        deter=buffer(deter_dim, rows=length),
        stoch=buffer(stoch_dim, rows=length) if is_drawn else out,
        std=buffer(stoch_dim, rows=length if is_drawn else 0),
        out=out,
        gates=buffer(3 * deter_dim, rows=rows),
        memory=buffer(deter_dim, rows=rows),
        path=[F.linear(inputs.action, path_weight[:, stoch_dim:], path_bias)]
        + [buffer(len(bias), rows=rows) for _, bias in weights.path[1:]],
        head=[F.linear(inputs.embed, head_weight[:, deter_dim:], head_bias)]
        + [buffer(len(bias), rows=rows) for _, bias in weights.head[1:]],
    )


def _gate_factors(deters: Tensor, trace: Trace) -> Tensor:
    """What the gradient of deter' is multiplied with, [T, B, 5, D]: for n, r, z, m, and for h itself, which is z."""
    (reset, update, new), memory = trace.gates.chunk(3, -1), trace.memory
    factors = memory.new_empty(*memory.shape[:2], 5, memory.shape[2])
    to_new, to_reset, to_update, to_memory, to_deter = factors.unbind(2)
    torch.ops.aten.tanh_backward.grad_input(1.0 - update, new, grad_input=to_new)
    torch.ops.aten.sigmoid_backward.grad_input(to_new * memory, reset, grad_input=to_reset)
    torch.ops.aten.sigmoid_backward.grad_input(deters - new, update, grad_input=to_update)
    torch.mul(to_new, reset, out=to_memory)
    to_deter.copy_(update)
    return factors


def _out_factors(
    inputs: Inputs, settings: Settings, trace: Trace, grads: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """The gradient of the head's last product, but for what the next step asks of the sample, and its factor."""
    if inputs.noise is None:
        return grads[1].clone(memory_format=torch.contiguous_format), None
    _, to_mean, to_stoch, to_std = grads
    raw = trace.out[..., inputs.stoch.shape[-1] :]
    slope = torch.ops.aten.softplus_backward(torch.ones_like(raw), raw, 1.0, 20.0)
    if settings.clamp:
        slope.masked_fill_(trace.std <= settings.min_std, 0.0)
    gradient = torch.cat([to_mean + to_stoch, torch.addcmul(to_std, to_stoch, inputs.noise).mul_(slope)], -1)
    return gradient, torch.cat([torch.ones_like(slope), slope.mul_(inputs.noise)], -1)


def _descend(gradient: Tensor, layers: Sequence[Layer], slopes: Sequence[Tensor], t: int) -> Tensor:
    """From the gradient of the last layer's product to that of the first one's, each written over its slope."""
    for (weight, _), slope in zip(reversed(layers), reversed(slopes), strict=True):
        gradient = slope[t].mul_(gradient @ weight)
    return gradient


def _products(gradient: Tensor, *inputs: Tensor) -> Layer:
    """The gradients of a layer's weight and bias, given that of its products and what it read, over all steps."""
    gradient = gradient.flatten(0, 1)
    weights = [gradient.t() @ read.flatten(0, 1) for read in inputs]
    return torch.cat(weights, 1) if len(weights) > 1 else weights[0], gradient.sum(0)


def _resets(is_first: Tensor) -> list[Tensor | None]:
    """For each step which rows begin an episode [B, 1], None where none does."""
    anywhere = is_first.any(1).tolist()
    return [reset if needed else None for reset, needed in zip(is_first.unsqueeze(-1).unbind(), anywhere, strict=True)]


def _pairs(flat: Sequence[Tensor]) -> list[Layer]:
    return list(zip(flat[::2], flat[1::2], strict=True))
