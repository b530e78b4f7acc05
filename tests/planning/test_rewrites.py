"""The spelled-out graphs compute what the layers do, and keep none of the operations they replace."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from planet_lib.planning._rewrites import gru_of_exponentials, spell_out


class Layers(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.linear, self.cell = nn.Linear(3, 4, bias=bias), nn.GRUCell(4, 5, bias=bias)

    def forward(self, x, h):
        hidden = torch.relu(nn.functional.linear(x, self.linear.weight, self.linear.bias))
        weights = (self.cell.weight_ih, self.cell.weight_hh, self.cell.bias_ih, self.cell.bias_hh)
        return torch.gru_cell(hidden, h, *weights)


def operations(graph):
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_graph_spelled_out_is_the_same_function_without_cells_and_biased_products(bias):
    torch.manual_seed(0)
    layers = Layers(bias)
    x, h = torch.randn(7, 3), torch.randn(7, 5)
    graph = spell_out(torch.fx.symbolic_trace(layers))
    torch.testing.assert_close(graph(x, h), layers(x, h), rtol=1e-5, atol=1e-6)
    assert torch.gru_cell not in operations(graph)
    biased = [node for node in graph.graph.nodes if node.target is nn.functional.linear and len(node.args) > 2]
    assert [node for node in biased if node.args[2] is not None] == []


@given(st.floats(-500, 500), st.floats(-500, 500))
def test_gates_of_exponentials_saturate_and_are_never_nan(value, hidden):
    torch.manual_seed(0)
    cell = nn.GRUCell(1, 2)
    x, h = torch.full((1, 1), value), torch.full((1, 2), hidden)
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    with torch.no_grad():
        torch.testing.assert_close(gru_of_exponentials(x, h, *weights), cell(x, h), rtol=1e-5, atol=1e-5)


def test_products_without_a_bias_stay_as_they_are():
    class Plain(nn.Module):
        def forward(self, x, weight):
            return nn.functional.linear(x, weight)

    graph = torch.fx.symbolic_trace(Plain())
    before = operations(graph)
    assert operations(spell_out(graph)) == before
