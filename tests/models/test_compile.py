"""`observe` and `imagine` compile whole (no graph break), for every cell, and compute what they compute uncompiled.

The test with a real compiler is in tests/objectives/test_compile.py, for time loops and objectives together.
"""

from typing import Any

import pytest
import random_cases as cases
import torch
from torch import Tensor

from planet_lib import State, imagine, observe

T, B = 3, 2


def filter_and_imagine(cell: Any, sequence: Any, initial: State) -> tuple[State, State, State]:
    embed, action, is_first, prior_noise, posterior_noise = sequence
    prior, posterior = observe(
        cell, embed, action, is_first, initial, prior_noise=prior_noise, posterior_noise=posterior_noise
    )
    last = State(*(field[-1] for field in posterior))
    return prior, posterior, imagine(cell, last, action, noise=prior_noise)


def gradients(states: tuple[State, ...], cell: Any) -> tuple[Tensor, ...]:
    loss = sum((field * (1 + torch.arange(field.shape[-1]))).sum() for state in states for field in state)
    return torch.autograd.grad(loss, list(cell.parameters()))


@pytest.mark.parametrize(("kind", "settings"), cases.SOME_CELLS)
def test_they_trace_whole_for_every_cell(kind: str, settings: dict[str, Any]) -> None:
    torch.compiler.reset()
    cell = cases.make_cell(kind, **settings)
    sequence = cases.draw_sequence(cell, 1, length=T, batch_size=B, resets=0.3)
    initial = cases.draw_state(cell, 2, B)
    expected = filter_and_imagine(cell, sequence, initial)
    got = torch.compile(filter_and_imagine, fullgraph=True, backend="eager")(cell, sequence, initial)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-11)
    torch.testing.assert_close(gradients(got, cell), gradients(expected, cell), rtol=1e-9, atol=1e-9)


def test_a_cell_without_a_scan_of_its_own_traces_whole_too() -> None:
    torch.compiler.reset()
    cell = cases.make_cell("ssm")

    class Stepping:
        action_dim, feature_dim, noise_dim = cell.action_dim, cell.feature_dim, cell.noise_dim
        initial, prior, posterior = cell.initial, cell.prior, cell.posterior

    sequence, initial = cases.draw_sequence(cell, 1, length=T, batch_size=B), cases.draw_state(cell, 2, B)
    expected = filter_and_imagine(cell, sequence, initial)
    got = torch.compile(filter_and_imagine, fullgraph=True, backend="eager")(Stepping(), sequence, initial)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-11)
