"""Laws of the cells and the time loops, for every cell and setting: what may depend on what, in value and gradient."""

from typing import Any

import pytest
import random_cases as cases
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planet_lib import State, imagine, observe
from planet_lib.models.rollout import map_state

FAST = settings(max_examples=25)
T, B = 6, 3
Chosen = tuple[str, dict[str, Any]]
any_cell = cases.settings_of_cells()


def make(chosen: Chosen, seed: int) -> Any:
    return cases.make_cell(chosen[0], seed, **chosen[1])


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def rows(states: tuple[State, State], first: int | None, last: int | None = None) -> list[State]:
    return [map_state(lambda field: field[first:last], state) for state in states]


def column(states: tuple[State, State], b: int) -> list[State]:
    return [map_state(lambda field: field[:, b], state) for state in states]


def weighted(states: tuple[State, State] | list[State], weights: Tensor) -> Tensor:
    """A number that every entry of the states moves, weighted by row [T, B] (or [T])."""
    fields = [field for state in states for field in state]
    return sum(
        (weights.unsqueeze(-1) * field * (1 + i + torch.arange(field.shape[-1]))).sum()
        for i, field in enumerate(fields)
    )


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves, materialize_grads=True, retain_graph=True)


@FAST
@given(any_cell, cases.seeds)
def test_a_divergence_is_never_negative_and_zero_for_equal_states(chosen: Chosen, seed: int) -> None:
    cell = make(chosen, seed)
    prior, posterior = cases.draw_sequence(cell, seed, length=T, batch_size=B).filter(cell)
    nats = cell.divergence(posterior, prior)
    assert nats.shape == (T, B)
    assert (nats > 0).all()
    close(cell.divergence(prior, prior), torch.zeros(T, B, dtype=torch.float64))


@FAST
@given(any_cell, cases.seeds, st.floats(1e-3, 1.0), st.integers(0, cases.S - 1), st.booleans())
def test_a_divergence_of_zero_means_equal_distributions(
    chosen: Chosen, seed: int, shift: float, dimension: int, of_mean: bool
) -> None:
    cell = make(chosen, seed)
    state = cases.draw_state(cell, seed, 1)
    field = "mean" if of_mean or chosen[0] == "rnn" else "std"
    moved = getattr(state, field).clone()
    moved[:, dimension] += shift
    other = state._replace(**{field: moved})
    assert cell.divergence(other, state).item() > 0
    assert cell.divergence(state, other).item() > 0


@FAST
@given(any_cell, cases.seeds, st.integers(0, B - 1))
def test_rows_of_a_batch_know_nothing_of_each_other(chosen: Chosen, seed: int, changed: int) -> None:
    cell = make(chosen, seed)
    sequence = cases.draw_sequence(cell, seed, length=T, batch_size=B)
    other = cases.draw_sequence(cell, seed + 1, length=T, batch_size=B)
    mixed = cases.Sequence(*(field.clone() for field in sequence))
    for field, new in zip(mixed, other, strict=True):
        field[:, changed] = new[:, changed]
    before, after = sequence.filter(cell), mixed.filter(cell)
    for b in range(B):
        if b != changed:
            close(column(after, b), column(before, b))
            # What row b asks of the weights is its own affair too.
            asked = [
                gradients(weighted(column(states, b), torch.ones(T)), *cell.parameters()) for states in (before, after)
            ]
            torch.testing.assert_close(*asked, rtol=1e-9, atol=1e-9)
    with pytest.raises(AssertionError):
        close(column(after, changed), column(before, changed))


@FAST
@given(any_cell, cases.seeds, st.integers(0, T - 1), st.integers(0, B - 1))
def test_a_state_asks_only_what_came_before_it_in_its_own_episode_and_row(
    chosen: Chosen, seed: int, row: int, b: int
) -> None:
    cell = make((chosen[0], {**chosen[1], "activation": "tanh"}), seed)  # never flat, so that zero means no path
    sequence = cases.draw_sequence(cell, seed, length=T, batch_size=B, resets=0.3)
    leaves = [sequence.embed.requires_grad_(), sequence.action.requires_grad_()]
    if cell.noise_dim:
        leaves.append(sequence.posterior_noise.requires_grad_())
    initial = map_state(Tensor.requires_grad_, cases.draw_state(cell, seed, B))
    weights = torch.zeros(T, B)
    weights[row, b] = 1.0
    prior, posterior = sequence.filter(cell, initial)
    asked = gradients(weighted([posterior], weights), *leaves, initial.deter, initial.stoch)
    embed, action, *noise, deter, stoch = asked
    first = sequence.is_first[: row + 1, b].nonzero().flatten().tolist()
    begin = first[-1] if first else 0
    reached = torch.zeros(T, B, dtype=torch.bool)
    reached[begin : row + 1, b] = True
    for gradient in (embed, *noise):
        assert torch.equal(gradient.abs().sum(-1) > 0, reached)
    # The prediction of a row has not seen that row.
    (predicted,) = gradients(weighted([prior], weights), sequence.embed)
    before = reached.clone()
    before[row] = False
    assert torch.equal(predicted.abs().sum(-1) > 0, before)
    # The action that led to an episode's first row does not exist.
    assert torch.equal(action.abs().sum(-1) > 0, reached & ~sequence.is_first)
    handed_over = torch.zeros(B, dtype=torch.bool)
    handed_over[b] = not first
    assert torch.equal(stoch.abs().sum(-1) > 0, handed_over)
    if deter.shape[-1]:
        assert torch.equal(deter.abs().sum(-1) > 0, handed_over)


@FAST
@given(any_cell, cases.seeds, st.integers(0, T - 2))
def test_the_future_changes_nothing_in_the_past(chosen: Chosen, seed: int, now: int) -> None:
    cell = make(chosen, seed)
    sequence = cases.draw_sequence(cell, seed, length=T, batch_size=B)
    other = cases.draw_sequence(cell, seed + 1, length=T, batch_size=B)
    changed = cases.Sequence(
        *(torch.cat([old[: now + 1], new[now + 1 :]]) for old, new in zip(sequence, other, strict=True))
    )
    before, after = sequence.filter(cell), changed.filter(cell)
    close(rows(after, None, now + 1), rows(before, None, now + 1))


@FAST
@given(any_cell, cases.seeds, st.integers(1, T - 1), st.booleans())
def test_two_parts_with_the_state_handed_over_are_the_whole(
    chosen: Chosen, seed: int, cut: int, with_initial: bool
) -> None:
    cell = make(chosen, seed)
    sequence = cases.draw_sequence(cell, seed, length=T, batch_size=B)
    initial = cases.draw_state(cell, seed, B) if with_initial else None
    whole = sequence.filter(cell, initial)
    first = sequence.rows(None, cut).filter(cell, initial)
    left = map_state(lambda field: field[-1], first[1])
    second = sequence.rows(cut).filter(cell, left)
    parts = [map_state(lambda *halves: torch.cat(halves), *pair) for pair in zip(first, second, strict=True)]
    close(parts, list(whole))
    weights = torch.ones(T, B)
    together, apart = (gradients(weighted(states, weights), *cell.parameters()) for states in (whole, parts))
    torch.testing.assert_close(apart, together, rtol=1e-9, atol=1e-9)


@FAST
@given(any_cell, cases.seeds, st.integers(0, T - 1), st.integers(0, B - 1), st.booleans())
def test_nothing_before_an_episodes_start_matters_after_it(
    chosen: Chosen, seed: int, start: int, b: int, nan: bool
) -> None:
    cell = make(chosen, seed)
    sequence = cases.draw_sequence(cell, seed, length=T, batch_size=B)
    sequence.is_first[start, b] = True
    spoilt = cases.Sequence(*(field.clone() for field in sequence))
    initial = cases.draw_state(cell, seed, B)
    for field in initial:
        field[b] = torch.nan if nan else 1e3
    for field in (spoilt.embed, spoilt.action, spoilt.prior_noise, spoilt.posterior_noise):
        field[:start, b] = torch.nan if nan else 1e3
    spoilt.action[start, b] = torch.nan if nan else 1e3
    before = [map_state(lambda field: field[start:, b], state) for state in sequence.filter(cell)]
    after = [map_state(lambda field: field[start:, b], state) for state in spoilt.filter(cell, initial)]
    close(after, before)
    if not nan or start == 0:  # a NaN that was multiplied by a weight spoils that weight's gradient by 0 * NaN
        weights = torch.ones(T - start)
        asked = [gradients(weighted(states, weights), *cell.parameters()) for states in (before, after)]
        torch.testing.assert_close(*asked, rtol=1e-9, atol=1e-9)


class OpenLoop:
    """A cell that looks at nothing: its posterior is the prior."""

    def __init__(self, cell: Any) -> None:
        self.action_dim, self.feature_dim, self.noise_dim = cell.action_dim, cell.feature_dim, cell.noise_dim
        self.initial, self.prior, self.features, self.divergence = (
            cell.initial,
            cell.prior,
            cell.features,
            cell.divergence,
        )

    def posterior(self, prior: State, embed: Tensor, noise: Tensor | None = None) -> State:
        return prior


@FAST
@given(any_cell, cases.seeds, st.none() | st.integers(0, T - 1))
def test_imagining_is_observing_with_the_prior_in_the_posteriors_place(
    chosen: Chosen, seed: int, reset: int | None
) -> None:
    cell = make(chosen, seed)
    embed, action, _, noise, _ = cases.draw_sequence(cell, seed, length=T, batch_size=B)
    start = cases.draw_state(cell, seed, B)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    if reset is not None:
        is_first[reset] = True
    prior, posterior = observe(OpenLoop(cell), embed, action, is_first, start, prior_noise=noise)
    if reset is None:
        expected = [imagine(cell, start, action, noise=noise)]
    else:
        anew = torch.cat([torch.zeros_like(action[:1]), action[reset + 1 :]])
        expected = [imagine(cell, start, action[:reset], noise=noise[:reset])] if reset else []
        expected.append(imagine(cell, cell.initial(B), anew, noise=noise[reset:]))
    whole = map_state(lambda *parts: torch.cat(parts), *expected)
    close(prior, whole)
    close(posterior, whole)
    loss, imagined = weighted([posterior], torch.ones(T, B)), weighted([whole], torch.ones(T, B))
    pair = [gradients(value, *cell.parameters()) for value in (loss, imagined)]
    torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-9)


@FAST
@given(any_cell, cases.seeds)
def test_an_imagined_state_asks_every_action_before_it_and_the_start(chosen: Chosen, seed: int) -> None:
    cell = make((chosen[0], {**chosen[1], "activation": "tanh"}), seed)
    _, action, _, noise, _ = cases.draw_sequence(cell, seed, length=T, batch_size=B)
    start = map_state(Tensor.requires_grad_, cases.draw_state(cell, seed, B))
    states = imagine(cell, start, action.requires_grad_(), noise=noise)
    for row in range(T):
        weights = torch.zeros(T, B)
        weights[row] = 1.0
        by_action, by_start = gradients(weighted([states], weights), action, start.stoch)
        assert (by_action[: row + 1].abs().sum(-1) > 0).all()
        assert (by_action[row + 1 :] == 0).all()
        assert (by_start.abs().sum(-1) > 0).all()


@FAST
@given(any_cell, cases.seeds)
def test_a_cells_own_scan_is_stepping_in_value_and_gradient(chosen: Chosen, seed: int) -> None:
    cell = make(chosen, seed)
    sequence = cases.draw_sequence(cell, seed, length=T, batch_size=B)
    initial = map_state(Tensor.requires_grad_, cases.draw_state(cell, seed, B))
    stepping = OpenLoop(cell)
    stepping.posterior = cell.posterior
    scanned, stepped = sequence.filter(cell, initial), sequence.filter(stepping, initial)
    close(scanned, stepped)
    leaves = [*cell.parameters(), initial.deter, initial.stoch]
    pair = [gradients(weighted(states, torch.ones(T, B)), *leaves) for states in (scanned, stepped)]
    torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-9)
