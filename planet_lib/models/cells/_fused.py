"""The loop of `filter_recurrent` in eager mode on a CPU: the same mathematics from fewer and larger operations.

`covers` tells where it can stand in for the plain loop; the arithmetic is in `_passes`. A gradient of the gradient, and
several gradients at once, are taken through the plain loop, made anew.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from planet_lib.models.cells import _passes
from planet_lib.models.cells._parts import GRU, DeterministicPath, GaussianHead, MeanHead
from planet_lib.types import State

Head = GaussianHead | MeanHead
_LINEAR = nn.Linear.forward
_REPLACED = ("prior", "features", "forward", "hidden", "hidden_from", "split", "distribution")
# Of path, head, state, embed, action, is_first and noise.
PlainLoop = Callable[[DeterministicPath, Head, State, Tensor, Tensor, Tensor, Tensor | None], State]


def covers(
    path: DeterministicPath,
    head: Head,
    state: State,
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    noise: Tensor | None,
) -> bool:
    """Whether layers, settings, tensors and circumstances allow `filter_fused`."""
    return (
        allows()
        and _knows_layers(path, head, noise)
        and _knows_tensors(path, head, state, embed, action, is_first, noise)
    )


def allows() -> bool:
    """Whether operations may stand for others now: nobody traces, transforms or counts them."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or torch.is_autocast_enabled("cpu"):
        return False
    # Transforms of functions, forward-mode derivatives, counters of operations and hooks of all modules have to see
    # plain operations.
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._len_torch_function_stack() or _has_any_global_hook():  # type: ignore[no-untyped-call]  # as torch has it
        return False
    return forward_ad._current_level < 0 and nn.Linear.forward is _LINEAR


def _knows_layers(path: DeterministicPath, head: Head, noise: Tensor | None) -> bool:
    # Other classes may compute something else. The Gaussian head is known with noise alone, the other without.
    if type(path) is not DeterministicPath or type(head) is not (MeanHead if noise is None else GaussianHead):
        return False
    if type(path.gru) is not GRU or path.gru.kind != "reset_after":
        return False
    if not all(map(is_unchanged, (path, head, path.gru))):
        return False
    if path.activation not in _passes.ACTIVATIONS or head.activation != path.activation:
        return False
    # A layer that was replaced, parametrised or hooked has to be called.
    layers = [*path.layers, *head.layers, head.out]
    return all(type(layer) is nn.Linear for layer in layers) and not any(
        is_hooked(part) for part in (*layers, path.gru)
    )


def _knows_tensors(
    path: DeterministicPath,
    head: Head,
    state: State,
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    noise: Tensor | None,
) -> bool:
    weights = _weights(path, head)
    # A layer may have been given no bias, or the weights of another one.
    if any(weight is None for weight in weights) or len({id(weight) for weight in weights}) < len(weights):
        return False
    fields = [state.deter, state.stoch]
    by_step = [embed, action] if noise is None else [embed, action, noise]
    # What has fewer rows is repeated by the plain loop.
    if is_first.dim() != 2 or any(each.shape[:-1] != is_first.shape for each in by_step):
        return False
    return all(field.shape[:-1] == is_first.shape[1:] for field in fields) and are_plain(
        [*fields, *by_step, *weights], embed.dtype
    )


def are_plain(tensors: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether all of these are dense tensors of this type in memory, float32 or float64, and of no other class."""
    return dtype in (torch.float32, torch.float64) and all(
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.dtype == dtype
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        for tensor in tensors
    )


def filter_fused(
    plain: PlainLoop,
    path: DeterministicPath,
    head: Head,
    state: State,
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    noise: Tensor | None,
) -> State:
    """Do what `plain` does with the other arguments."""
    weights = _weights(path, head)
    # Out here, so that what is kept for the gradient is not the caller's own action, which may be changed.
    action = action.masked_fill(is_first.unsqueeze(-1), 0.0)
    tensors = (state.deter, state.stoch, embed, action, noise, *weights)
    has_gradient = any(tensor.requires_grad for tensor in tensors if tensor is not None)
    loop = _Loop(plain, path, head, keep=torch.is_grad_enabled() and has_gradient)
    deter, mean, *drawn = _Fused.apply(loop, is_first, *tensors)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    stoch, std = drawn if drawn else (mean.clone(), torch.ones_like(mean))
    return State(deter=deter, stoch=stoch, mean=mean, std=std)


class _Loop(NamedTuple):
    """What is not a tensor; `keep` is whether a gradient may be asked for."""

    plain: PlainLoop
    path: DeterministicPath
    head: Head
    keep: bool

    @property
    def settings(self) -> _passes.Settings:
        activation, head = self.path.activation, self.head
        if isinstance(head, MeanHead):
            return _passes.Settings(activation, min_std=0.0, clamp=False)
        return _passes.Settings(activation, min_std=head.min_std, clamp=head.min_std_mode == "clamp")


class _Fused(torch.autograd.Function):
    """deter, mean and, where there is noise, stoch and std; see `_passes`."""

    @staticmethod
    def forward(ctx: Any, loop: _Loop, is_first: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        inputs, weights = _split(loop, is_first, tensors)
        trace = _passes.forward(inputs, weights, loop.settings, keep=loop.keep)
        mean = trace.out[..., : inputs.stoch.shape[-1]].clone(memory_format=torch.contiguous_format)
        if loop.keep:
            ctx.loop, ctx.num_tensors, ctx.num_path = loop, len(tensors), len(trace.path)
            ctx.save_for_backward(is_first, *tensors, *trace[:-2], *trace.path, *trace.head)
        return (trace.deter, mean) if inputs.noise is None else (trace.deter, mean, trace.stoch, trace.std)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        loop, num_path = ctx.loop, ctx.num_path
        is_first, *saved = ctx.saved_tensors
        tensors: list[Any] = saved[: ctx.num_tensors]
        deter, stoch, std, out, gates, memory, *hidden = saved[ctx.num_tensors :]
        # By create_graph=True, and for several gradients at once.
        if torch.is_grad_enabled() or any(is_legacy_batchedtensor(grad) for grad in grads if grad is not None):
            return None, None, *_plain_gradients(loop, is_first, tensors, grads)
        inputs, weights = _split(loop, is_first, tensors)
        trace = _passes.Trace(deter, stoch, std, out, gates, memory, hidden[:num_path], hidden[num_path:])
        return None, None, *_passes.backward(inputs, weights, loop.settings, trace, grads)


class _Filter(nn.Module):
    """The plain loop, whose weights can be given from outside."""

    def __init__(self, loop: _Loop) -> None:
        super().__init__()
        self.plain, self.path, self.head = loop.plain, loop.path, loop.head

    def forward(
        self, is_first: Tensor, deter: Tensor, stoch: Tensor, embed: Tensor, action: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, ...]:
        state = State(deter=deter, stoch=stoch, mean=stoch, std=stoch)
        posterior = self.plain(self.path, self.head, state, embed, action, is_first, noise)
        drawn = () if noise is None else (posterior.stoch, posterior.std)
        return posterior.deter, posterior.mean, *drawn


def _plain_gradients(
    loop: _Loop, is_first: Tensor, tensors: Sequence[Any], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients of `tensors` through the plain loop, themselves with gradients where these are enabled."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # An input that was made from another one would lead to it too: the gradient is that of views, one each.
        views: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        named = dict(zip(_weight_names(loop.path, loop.head), views[5:], strict=True))
        outputs = torch.func.functional_call(_Filter(loop), named, (is_first, *views[:5]))
    # Of a single step deter, or all but std, may depend on nothing that is asked for.
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    wanted = [view for view in views if view is not None and view.requires_grad]
    reached, given = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(reached, wanted, given, create_graph=create_graph, allow_unused=True))
    return [next(found) if view is not None and view.requires_grad else None for view in views]


def _split(loop: _Loop, is_first: Tensor, tensors: Sequence[Any]) -> tuple[_passes.Inputs, _passes.Weights]:
    deter, stoch, embed, action, noise, *weights = tensors
    inputs = _passes.Inputs(deter, stoch, embed, action, noise, is_first)
    return inputs, _passes.Weights.of(weights, len(loop.path.layers))


def _weight_names(path: DeterministicPath, head: Head) -> list[str]:
    """In the order of `_weights`."""
    gru = [f"path.gru.{name}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    of_path = [f"path.layers.{i}.{name}" for i in range(len(path.layers)) for name in ("weight", "bias")]
    of_head = [f"head.layers.{i}.{name}" for i in range(len(head.layers)) for name in ("weight", "bias")]
    return [*of_path, *gru, *of_head, "head.out.weight", "head.out.bias"]


def _weights(path: DeterministicPath, head: Head) -> list[Tensor]:
    gru = path.gru
    of_path = [tensor for layer in path.layers for tensor in (layer.weight, layer.bias)]
    of_head = [tensor for layer in (*head.layers, head.out) for tensor in (layer.weight, layer.bias)]
    return [*of_path, gru.weight_ih, gru.weight_hh, gru.bias_ih, gru.bias_hh, *of_head]


def methods_of(*kinds: type[nn.Module]) -> dict[tuple[type[nn.Module], str], Any]:
    """The methods, as these classes have them now, for which the fast loops stand."""
    return {(kind, name): getattr(kind, name) for kind in kinds for name in _REPLACED if hasattr(kind, name)}


_METHODS = methods_of(DeterministicPath, GaussianHead, MeanHead, GRU)


def is_unchanged(part: nn.Module, methods: Mapping[tuple[type[nn.Module], str], Any] = _METHODS) -> bool:
    """Whether the part has the methods of its class, and the class those that it was written with."""
    return not any(name in part.__dict__ for name in _REPLACED) and all(
        getattr(kind, name) is method for (kind, name), method in methods.items() if kind is type(part)
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody asked to be called when the module is, or in its place."""
    return "forward" in module.__dict__ or bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
