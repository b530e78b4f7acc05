"""How a planner's loop is spelled for torch's inductor on a CPU, where the products should be all that takes time.

As captured, a linear layer is one product with its bias, and a GRU one operation that inductor calls and cannot look
into. Spelled out, biases and gates become part of the elementwise kernels around the products, and the gates are made
of exponentials, which inductor computes on whole vectors. Knows graphs of operations, no planner and no model.

Source: ours; GRU as in Cho et al. 2014 (arXiv:1406.1078) with PyTorch's reset gate after the product.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

_LINEAR = (F.linear, torch._C._nn.linear)
_GRU = (torch.gru_cell,)


def compile_spelled_out(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a captured graph with inductor; on a CPU spelled out. A backend for `torch.compile`."""
    import torch._inductor  # noqa: PLC0415 -- takes a second, and only where something is compiled

    options: dict[str, Any] | None = None
    if all(value.device.type == "cpu" for value in inputs if isinstance(value, Tensor)):
        graph = spell_out(graph)
        options = {"pattern_matcher": False}  # or inductor's patterns would put product and bias together again
    compiled: Callable[..., Any] = torch._inductor.compile(graph, list(inputs), options=options)
    return compiled


def spell_out(graph: GraphModule) -> GraphModule:
    """Replace linear layers and GRU cells in `graph` by the operations that they are; changes it in place.

    Example:
        >>> class Layer(torch.nn.Module):
        ...     def forward(self, x, weight, bias):
        ...         return F.linear(x, weight, bias)
        >>> graph = spell_out(torch.fx.symbolic_trace(Layer()))
        >>> [node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"]
        ['linear', 'add']
    """
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in _LINEAR:
            _spell_linear(graph, node)
        elif node.op == "call_function" and node.target in _GRU:
            _spell_gru(graph, node)
    graph.graph.lint()
    graph.recompile()
    return graph


def _spell_linear(graph: GraphModule, node: Node) -> None:
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if bias is None:
        return
    with graph.graph.inserting_before(node):
        product = graph.graph.call_function(F.linear, node.args[:2])
        whole = graph.graph.call_function(operator.add, (product, bias))
    node.replace_all_uses_with(whole)
    graph.graph.erase_node(node)


def _spell_gru(graph: GraphModule, node: Node) -> None:
    if len(node.args) != 6 or node.kwargs:
        return
    with graph.graph.inserting_before(node):
        whole = graph.graph.call_function(gru_of_exponentials, node.args)
    node.replace_all_uses_with(whole)
    graph.graph.erase_node(node)


def gru_of_exponentials(
    inputs: Tensor,
    hidden: Tensor,
    weight_inputs: Tensor,
    weight_hidden: Tensor,
    bias_inputs: Tensor | None,
    bias_hidden: Tensor | None,
) -> Tensor:
    """Return what `torch.gru_cell` does, from products and exponentials alone.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> cell = torch.nn.GRUCell(3, 4)
        >>> x, h = torch.randn(2, 3), torch.randn(2, 4)
        >>> ours = gru_of_exponentials(x, h, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        >>> torch.allclose(ours, cell(x, h), atol=1e-6)
        True
    """
    from_inputs, from_hidden = F.linear(inputs, weight_inputs), F.linear(hidden, weight_hidden)
    if bias_inputs is not None and bias_hidden is not None:
        from_inputs, from_hidden = from_inputs + bias_inputs, from_hidden + bias_hidden
    (r_x, u_x, n_x), (r_h, u_h, n_h) = from_inputs.chunk(3, -1), from_hidden.chunk(3, -1)
    reset, update = _sigmoid(r_x + r_h), _sigmoid(u_x + u_h)
    new = 2 * _sigmoid(2 * (n_x + reset * n_h)) - 1  # tanh
    return (hidden - new) * update + new


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))
