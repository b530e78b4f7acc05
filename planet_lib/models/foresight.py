"""The states that actions lead to, for planners: without gradients, in eager mode on a CPU, from fewer operations.

Equal to calling `cell.prior` step by step, but for rounding: products with actions are made for all steps beforehand,
what a step computes goes into memory that the next one uses again, and where only the means are wanted no deviation is
computed. `features_ahead` tells by None where it cannot stand in for the cell itself.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planet_lib.models.cells._fused import allows, are_plain, is_hooked, is_unchanged, methods_of
from planet_lib.models.cells._parts import GRU, DeterministicPath, GaussianHead, MeanHead
from planet_lib.models.cells._passes import ACTIVATIONS
from planet_lib.models.cells.rnn import RNNCell
from planet_lib.models.cells.rssm import RSSMCell
from planet_lib.models.decoders import ContinueHead, RewardHead

_METHODS = methods_of(RSSMCell, RNNCell)
_AT_ONCE = 2**18  # numbers of features: more of them leave the cache, and fewer make the heads' products small


def features_ahead(cell: Any, state: Any, action: Tensor, noise: Tensor | None) -> Iterator[Tensor] | None:
    """Return the features [K, N, D + S] of the H states after `state`, K at a time.

    None where it does not know the cell, or something has to see the plain operations: step the cell instead.

    Args:
        cell: any cell.
        state: its state [N, ...].
        action: [H, N, A].
        noise: [H, N, S] standard normal; None takes each state's mean.

    Example:
        >>> cell = RSSMCell(action_dim=2, embed_dim=5, deter_dim=4, stoch_dim=3)
        >>> with torch.no_grad():
        ...     pieces = features_ahead(cell, cell.initial(10), torch.zeros(12, 10, 2), None)
        >>> [list(features.shape) for features in pieces or ()]
        [[12, 10, 7]]
    """
    if torch.is_grad_enabled() or type(cell) not in (RSSMCell, RNNCell) or not allows():
        return None
    if not is_unchanged(cell, _METHODS):
        return None
    path, head = cell.path, cell.prior_head
    if not _knows_layers(path, head) or (noise is not None and type(head) is MeanHead):
        return None
    given = [state.deter, state.stoch, action] if noise is None else [state.deter, state.stoch, action, noise]
    if not are_plain([*given, *path.parameters(), *head.parameters()], action.dtype):
        return None
    deviates = slice(state.stoch.shape[-1], None)  # of no use for means, but where it is not finite nothing is
    if noise is None and not (head.out.weight[deviates].isfinite().all() and head.out.bias[deviates].isfinite().all()):
        return None
    return _walk(path, head, state.deter, state.stoch, action, noise)


def reads_many_steps(head: Any) -> bool:
    """Whether a head is the library's, layer by layer, and nobody watches: asked once for many steps, it is the same.

    Example:
        >>> reads_many_steps(RewardHead(7)), reads_many_steps(torch.nn.Linear(7, 1))
        (True, False)
    """
    if type(head) not in (RewardHead, ContinueHead):
        return False
    return all(type(layer) is nn.Linear for layer in head.layers) and not any(map(is_hooked, (head, *head.layers)))


def _knows_layers(path: Any, head: Any) -> bool:
    """Whether these compute what `_walk` does; other classes, and layers that were replaced or hooked, may not."""
    if type(path) is not DeterministicPath or type(head) not in (GaussianHead, MeanHead):
        return False
    if type(path.gru) is not GRU or path.gru.bias_ih is None or path.gru.bias_hh is None:
        return False
    if path.activation not in ACTIVATIONS or head.activation not in ACTIVATIONS:
        return False
    if not all(map(is_unchanged, (path, head, path.gru))):
        return False
    layers = [*path.layers, *head.layers, head.out]
    if any(type(layer) is not nn.Linear or layer.bias is None for layer in layers):
        return False
    return not any(is_hooked(part) for part in (path, head, path.gru, *layers))


def _transposed(layers: Any) -> list[tuple[Tensor, Tensor]]:
    """Weights [inputs, outputs], laid out so that the products of all steps read them in order, and biases."""
    return [(layer.weight.t().contiguous(), layer.bias) for layer in layers]


@torch.no_grad()
def _walk(
    path: DeterministicPath,
    head: GaussianHead | MeanHead,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    noise: Tensor | None,
) -> Iterator[Tensor]:
    """The loop itself."""
    (rows, deter_dim), stoch_dim = deter.shape, stoch.shape[-1]
    activate_path, activate_head = (ACTIVATIONS[part.activation][0] for part in (path, head))
    (stoch_weight, action_weight), bias = path.split(*path.sizes)
    stoch_weight = stoch_weight.t().contiguous()
    path_layers, head_layers = _transposed(path.layers), _transposed(head.layers)
    gru: Any = path.gru
    input_weight, memory_weight = gru.weight_ih.t().contiguous(), gru.weight_hh.t().contiguous()
    gates_weight, candidate_weight = memory_weight[:, : 2 * deter_dim], memory_weight[:, 2 * deter_dim :]
    candidate_bias = gru.bias_hh[2 * deter_dim :]
    gru_bias = gru.bias_ih + F.pad(gru.bias_hh[: 2 * deter_dim], (0, deter_dim))
    ((out_weight, out_bias),) = _transposed([head.out])
    gates, memory = deter.new_empty(rows, 3 * deter_dim), torch.empty_like(deter)
    both, new = gates[:, : 2 * deter_dim], gates[:, 2 * deter_dim :]
    reset_gate, update_gate = both[:, :deter_dim], both[:, deter_dim:]
    size = max(1, _AT_ONCE // (rows * (deter_dim + stoch_dim)))
    for begin in range(0, len(action), size):
        into_path = F.linear(action[begin : begin + size], action_weight, bias)
        features = deter.new_empty(len(into_path), rows, deter_dim + stoch_dim)
        for t in range(len(into_path)):
            hidden = activate_path(into_path[t].addmm_(stoch, stoch_weight))
            for weight, layer_bias in path_layers[1:]:
                hidden = activate_path(torch.addmm(layer_bias, hidden, weight))
            torch.addmm(gru_bias, hidden, input_weight, out=gates)
            both.addmm_(deter, gates_weight).sigmoid_()
            torch.addmm(candidate_bias, deter, candidate_weight, out=memory)
            candidate = new.addcmul_(reset_gate, memory).tanh_()
            deter = torch.lerp(candidate, deter, update_gate, out=features[t, :, :deter_dim])
            hidden = deter
            for weight, layer_bias in head_layers:
                hidden = activate_head(torch.addmm(layer_bias, hidden, weight))
            stoch = features[t, :, deter_dim:]
            torch.addmm(out_bias[:stoch_dim], hidden, out_weight[:, :stoch_dim], out=stoch)
            if noise is not None and isinstance(head, GaussianHead):
                spread = F.softplus(torch.addmm(out_bias[stoch_dim:], hidden, out_weight[:, stoch_dim:]))
                std = spread.add_(head.min_std) if head.min_std_mode == "add" else spread.clamp_(min=head.min_std)
                stoch.addcmul_(std, noise[begin + t])
        yield features
