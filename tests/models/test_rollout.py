"""The time loops: what may depend on what, and that scanning, stepping and compiling give the same."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planet_lib import RNNCell, RSSMCell, SSMCell, State, imagine, observe
from planet_lib.models import step
from planet_lib.models.rollout import check_leading, map_state

KINDS = ["rssm", "ssm", "rnn"]
T, B, A, E, S = 7, 3, 2, 5, 3
FAST = settings(max_examples=20, deadline=None)
AnyCell = RSSMCell | SSMCell | RNNCell
seeds = st.integers(0, 2**31)
kinds = st.sampled_from(KINDS)


def make(kind: str) -> AnyCell:
    torch.manual_seed(0)
    if kind == "rssm":
        return RSSMCell(A, E, deter_dim=6, stoch_dim=S, hidden_dim=7).double()
    if kind == "ssm":
        return SSMCell(A, E, stoch_dim=S, hidden_dim=7).double()
    return RNNCell(A, E, deter_dim=6, stoch_dim=S, hidden_dim=7).double()


class Sequence(NamedTuple):
    embed: Tensor
    action: Tensor
    is_first: Tensor
    prior_noise: Tensor
    posterior_noise: Tensor

    def rows(self, first: int | None = None, last: int | None = None) -> "Sequence":
        return Sequence(*(field[first:last] for field in self))

    def filter(self, cell: AnyCell, initial: State | None = None) -> tuple[State, State]:
        embed, action, is_first, prior_noise, posterior_noise = self
        return observe(cell, embed, action, is_first, initial, prior_noise=prior_noise, posterior_noise=posterior_noise)


def draw(cell: AnyCell, seed: int, *, resets: float = 0.3) -> Sequence:
    random = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return torch.randn(T, B, size, generator=random, dtype=torch.float64)

    is_first = torch.rand(T, B, generator=random) < resets
    return Sequence(normal(E), normal(A), is_first, normal(cell.noise_dim), normal(cell.noise_dim))


def draw_state(cell: AnyCell) -> State:
    sizes = (cell.deter_dim, S, S, S)
    return State(*(torch.randn(B, size, dtype=torch.float64) for size in sizes))


def by_stepping(cell: AnyCell, sequence: Sequence, initial: State | None = None) -> tuple[State, State]:
    """What observe does, written with the cell's prior and posterior alone."""
    state = cell.initial(B) if initial is None else initial
    priors, posteriors = [], []
    for embed, action, is_first, prior_noise, posterior_noise in zip(*sequence, strict=True):
        keep = (~is_first).double()[:, None]
        state = State(state.deter * keep, state.stoch * keep, state.mean * keep, state.std * keep)
        prior = cell.prior(state, action * keep, prior_noise)
        state = cell.posterior(prior, embed, posterior_noise)
        priors.append(prior)
        posteriors.append(state)
    return map_state(lambda *rows: torch.stack(rows), *priors), map_state(lambda *rows: torch.stack(rows), *posteriors)


def close(got: object, expected: object) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def part(states: tuple[State, State], first: int | None, last: int | None, *, row: int | None = None) -> list[Tensor]:
    fields = [field[first:last] for state in states for field in state]
    return fields if row is None else [field[:, row] for field in fields]


@FAST
@given(kinds, seeds, st.booleans())
def test_observe_equals_stepping_in_values_and_gradients(kind: str, seed: int, with_initial: bool) -> None:
    cell = make(kind)
    torch.manual_seed(seed)
    sequence, initial = draw(cell, seed), draw_state(cell) if with_initial else None
    inputs = [field for field in sequence if field.is_floating_point()] + list(initial or ())
    weights = [torch.randn(T, B, size, dtype=torch.float64) for size in (cell.deter_dim, S, S, S)] * 2

    def run(way: Callable[..., tuple[State, State]]) -> tuple[tuple[State, State], list[Tensor]]:
        for leaf in inputs:
            leaf.requires_grad_(True)
        states = way(cell, sequence, initial)
        total = sum((weight * field).sum() for weight, field in zip(weights, part(states, None, None), strict=True))
        leaves = [*inputs, *cell.parameters()]
        return states, list(torch.autograd.grad(total, leaves, materialize_grads=True))

    values, gradients = run(lambda cell, sequence, initial: sequence.filter(cell, initial))
    expected, expected_gradients = run(by_stepping)
    close(values, expected)
    close(gradients, expected_gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_the_public_step_is_one_row_of_observe(kind: str) -> None:
    cell = make(kind)
    sequence, state = draw(cell, 3), draw_state(cell)
    expected = sequence.filter(cell, state)
    for t, (embed, action, is_first, prior_noise, posterior_noise) in enumerate(zip(*sequence, strict=True)):
        prior, state = step(
            cell, state, action, embed, is_first, prior_noise=prior_noise, posterior_noise=posterior_noise
        )
        close((prior, state), tuple(map_state(lambda field, t=t: field[t], sequence) for sequence in expected))


@FAST
@given(kinds, seeds, st.integers(0, T - 1))
def test_the_posterior_does_not_know_the_future(kind: str, seed: int, now: int) -> None:
    cell = make(kind)
    sequence = draw(cell, seed)
    expected = sequence.filter(cell)
    later = Sequence(*(field.clone() for field in sequence))
    later.is_first[now + 1 :] ^= True
    for field in (later.embed, later.action, later.prior_noise, later.posterior_noise):
        field[now + 1 :] += 1
    close(part(later.filter(cell), None, now + 1), part(expected, None, now + 1))
    later.embed[now] += 1
    prior, posterior = later.filter(cell)
    close(map_state(lambda field: field[: now + 1], prior), map_state(lambda field: field[: now + 1], expected[0]))
    assert not torch.allclose(posterior.mean[now], expected[1].mean[now])


@FAST
@given(kinds, seeds, st.integers(1, T - 1))
def test_two_parts_of_a_window_with_the_state_handed_over_are_the_whole(kind: str, seed: int, cut: int) -> None:
    cell = make(kind)
    sequence = draw(cell, seed)
    whole = sequence.filter(cell)
    first = sequence.rows(None, cut).filter(cell)
    handed_over = map_state(lambda field: field[-1], first[1])
    second = sequence.rows(cut).filter(cell, handed_over)
    close(part(whole, None, cut), part(first, None, None))
    close(part(whole, cut, None), part(second, None, None))


@FAST
@given(kinds, seeds, st.integers(0, T - 1), st.integers(0, B - 1))
def test_nothing_before_an_episodes_start_matters_after_it(kind: str, seed: int, start: int, row: int) -> None:
    cell = make(kind)
    torch.manual_seed(seed)
    sequence = draw(cell, seed)
    sequence.is_first[start, row] = True
    expected = sequence.filter(cell)
    other = Sequence(*(field.clone() for field in sequence))
    other.is_first[:start, row] ^= True
    for field in (other.embed, other.action, other.prior_noise, other.posterior_noise):
        field[:start, row] += 3
    other.action[start, row] += 3
    close(part(other.filter(cell, draw_state(cell)), start, None, row=row), part(expected, start, None, row=row))


@pytest.mark.parametrize("kind", KINDS)
def test_is_first_counts_as_the_zero_state_and_a_zero_action(kind: str) -> None:
    cell = make(kind)
    sequence = draw(cell, 1, resets=0.0)
    sequence.is_first[4, 1] = True
    got = sequence.filter(cell, draw_state(cell))
    alone = Sequence(*(field[4:, 1:2].clone() for field in sequence))
    alone.is_first[:] = False
    alone.action[0] = 0.0
    expected = alone.filter(cell, map_state(torch.zeros_like, cell.initial(1)))
    close([field[4:, 1:2] for state in got for field in state], part(expected, None, None))


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_that_starts_inside_an_episode_uses_its_first_action(kind: str) -> None:
    cell = make(kind)
    sequence = draw(cell, 1, resets=0.0)
    prior, _ = sequence.filter(cell)
    expected = cell.prior(cell.initial(B), sequence.action[0], sequence.prior_noise[0])
    close(map_state(lambda field: field[0], prior), expected)
    assert not torch.allclose(prior.mean[0], cell.prior(cell.initial(B), 0 * sequence.action[0]).mean)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_are_filtered_apart(kind: str) -> None:
    cell = make(kind)
    sequence = draw(cell, 2)
    together = sequence.filter(cell)
    for row in range(B):
        alone = Sequence(*(field[:, row : row + 1] for field in sequence)).filter(cell)
        close(part(alone, None, None, row=0), part(together, None, None, row=row))


@pytest.mark.parametrize("kind", KINDS)
def test_imagine_repeats_the_prior(kind: str) -> None:
    cell = make(kind)
    sequence, state = draw(cell, 4), draw_state(cell)
    states = imagine(cell, state, sequence.action, noise=sequence.prior_noise)
    for t in range(T):
        state = cell.prior(state, sequence.action[t], sequence.prior_noise[t])
        close(map_state(lambda field, t=t: field[t], states), state)


@pytest.mark.parametrize("kind", ["rssm", "ssm"])
def test_without_noise_the_global_seed_decides(kind: str) -> None:
    cell = make(kind)
    sequence = draw(cell, 5)

    def run(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(seed)
        prior, posterior = observe(cell, *sequence[:3])
        return prior.stoch, posterior.stoch, imagine(cell, cell.initial(B), sequence.action).stoch

    for once, again, other in zip(run(1), run(1), run(2), strict=True):
        assert torch.equal(once, again)
        assert not torch.isclose(once, other).any()


class Count(NamedTuple):
    """A state of one's own: neither Gaussian nor of the usual fields."""

    steps: Tensor
    seen: Tensor


class CountingCell:
    """Counts the steps since the episode began, adds up actions, and keeps the last embedding."""

    action_dim, feature_dim, noise_dim = 1, 2, 0

    def initial(self, batch_size: int) -> Count:
        return Count(steps=torch.zeros(batch_size), seen=torch.zeros(batch_size, 2))

    def prior(self, state: Count, action: Tensor, noise: Tensor | None = None) -> Count:
        return Count(steps=state.steps + 1 + 10 * action[..., 0], seen=state.seen)

    def posterior(self, prior: Count, embed: Tensor, noise: Tensor | None = None) -> Count:
        return prior._replace(seen=prior.seen + embed)

    def features(self, state: Count) -> Tensor:
        return state.seen

    def divergence(self, posterior: Count, prior: Count) -> Tensor:
        return (posterior.seen - prior.seen).abs().sum(-1)


def test_a_cell_with_a_state_of_its_own_is_filtered_and_imagined() -> None:
    cell = CountingCell()
    is_first = torch.tensor([[True, False], [False, False], [False, True], [False, False]])
    embed = torch.ones(4, 2, 2)
    action = torch.tensor([[7.0, 1.0], [0.0, 0.0], [2.0, 7.0], [0.0, 0.0]])[..., None]
    prior, posterior = observe(cell, embed, action, is_first)
    assert posterior.steps.tolist() == [[1, 11], [2, 12], [23, 1], [24, 2]]
    assert prior.seen[..., 0].tolist() == [[0, 0], [1, 1], [2, 0], [3, 1]]
    assert posterior.seen[..., 1].tolist() == [[1, 1], [2, 2], [3, 1], [4, 2]]
    last = map_state(lambda field: field[-1], posterior)
    assert imagine(cell, last, torch.zeros(3, 2, 1)).steps.tolist() == [[25, 3], [26, 4], [27, 5]]


@pytest.mark.parametrize("kind", KINDS)
def test_observe_and_imagine_compile_whole_and_give_the_same(kind: str) -> None:
    cell = make(kind)
    sequence, initial = draw(cell, 6).rows(None, 3), draw_state(cell)
    torch._dynamo.reset()
    compiled = torch.compile(observe, fullgraph=True, backend="eager")
    embed, action, is_first, prior_noise, posterior_noise = sequence
    got = compiled(cell, embed, action, is_first, initial, prior_noise=prior_noise, posterior_noise=posterior_noise)
    close(got, sequence.filter(cell, initial))
    compiled = torch.compile(imagine, fullgraph=True, backend="eager")
    close(compiled(cell, initial, action, noise=prior_noise), imagine(cell, initial, action, noise=prior_noise))


def test_wrong_shapes_in_observe_are_named() -> None:
    cell = make("rssm")
    embed, action, is_first, noise, _ = draw(cell, 7)
    cases: list[tuple[dict[str, object], str]] = [
        ({"embed": embed[0]}, r"embed must be \[T, B, E\], got \[3, 5\]"),
        ({"embed": embed[:0]}, "embed must have at least one row along its first axis, got 0"),
        (
            {"action": action[1:]},
            r"action must be \[T, B, A\] with T=7, B=3, A=2 \(from embed and the cell's action_dim\), got \[6, 3, 2\]",
        ),
        ({"is_first": is_first[..., None]}, r"is_first must be \[T, B\] with T=7, B=3 \(from embed\), got \[7, 3, 1\]"),
        (
            {"prior_noise": noise[:, :, 1:]},
            r"prior_noise must be \[T, B, S\] with T=7, B=3, S=3 \(from embed and the cell's noise_dim\), "
            r"got \[7, 3, 2\]",
        ),
        ({"posterior_noise": noise[:, 1:]}, r"posterior_noise must be \[T, B, S\] .*got \[7, 2, 3\]"),
        (
            {"initial": cell.initial(1)},
            r"initial.deter must be \[3, 6\] \(B from embed, and the cell's sizes\), got \[1, 6\]",
        ),
    ]
    good = {"embed": embed, "action": action, "is_first": is_first}
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            observe(cell, **{**good, **change})
    with pytest.raises(TypeError, match=r"is_first must be bool, got torch.float64"):
        observe(cell, embed, action, is_first.double())
    with pytest.raises(TypeError, match=r"embed must be a tensor \[T, B, E\], got ndarray"):
        observe(cell, embed.numpy(), action, is_first)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_of_another_size_is_named_whichever_way_the_cell_filters(kind: str) -> None:
    cell = make(kind)
    embed, action, is_first, _, _ = draw(cell, 7)
    with pytest.raises(ValueError, match=r"embed must be \[\.\.\., 5\] \(the cell's embed_dim\)"):
        observe(cell, embed[..., 1:], action, is_first)


def test_wrong_shapes_in_imagine_are_named() -> None:
    cell = make("rssm")
    _, action, _, noise, _ = draw(cell, 7)
    state = cell.initial(B)
    cases: list[tuple[dict[str, object], str]] = [
        ({"action": action[0]}, r"action must be \[H, B, A\] with A=2 \(the cell's action_dim\), got \[3, 2\]"),
        ({"action": action[:0]}, "action must have at least one row along its first axis, got 0"),
        (
            {"noise": noise[1:]},
            r"noise must be \[H, B, S\] with H=7, B=3, S=3 \(from action and the cell's noise_dim\), got \[6, 3, 3\]",
        ),
        (
            {"initial": cell.initial(2)},
            r"initial.deter must be \[3, 6\] \(B from action, and the cell's sizes\), got \[2, 6\]",
        ),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            imagine(cell, **{"initial": state, "action": action, **change})


def test_every_field_of_a_state_is_checked() -> None:
    state = make("rssm").initial(4)
    check_leading("start", state, 4, because="from action")
    with pytest.raises(ValueError, match=r"start must have fields \[4, \.\.\.\] \(why\), got one of \[3, 3\]"):
        check_leading("start", state._replace(std=state.std[1:]), 4, because="why")


@pytest.mark.parametrize("kind", KINDS)
def test_nan_before_an_episodes_start_is_gone_after_it_in_values_and_gradients(kind: str) -> None:
    cell = make(kind)
    sequence = draw(cell, 8, resets=0.0)
    sequence.is_first[0] = True
    nan = map_state(lambda field: torch.full_like(field, torch.nan), cell.initial(B))
    spoilt = sequence._replace(action=sequence.action.clone())
    spoilt.action[0] = torch.nan
    expected, got = sequence.filter(cell), spoilt.filter(cell, nan)
    close(got, expected)
    gradients = [
        torch.autograd.grad(sum(field.sum() for field in prior + posterior), list(cell.parameters()))
        for prior, posterior in (expected, got)
    ]
    close(*gradients)


def test_wrong_shapes_in_one_step_are_named() -> None:
    cell = make("rssm")
    embed, action, is_first, noise, _ = (field[0] for field in draw(cell, 7))
    good = {"state": cell.initial(B), "action": action, "embed": embed, "is_first": is_first}
    cases: list[tuple[dict[str, object], str]] = [
        ({"is_first": is_first[:, None]}, r"is_first must be \[B\], got \[3, 1\]"),
        ({"action": action[:1]}, r"action must be \[B, A\] with B=3, A=2 \(from is_first and the cell\), got \[1, 2\]"),
        ({"embed": embed[:1]}, r"embed must be \[B, E\] with B=3 \(from is_first\), got \[1, 5\]"),
        (
            {"state": cell.initial(1)},
            r"state.deter must be \[3, 6\] \(B from is_first, and the cell's sizes\), got \[1, 6\]",
        ),
        ({"prior_noise": noise[:1]}, r"prior_noise must be \[B, S\] with B=3, S=3 .*, got \[1, 3\]"),
        ({"posterior_noise": noise[0]}, r"posterior_noise must be \[B, S\] with B=3, S=3 .*, got \[3\]"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            step(cell, **{**good, **change})
    with pytest.raises(TypeError, match=r"is_first must be bool, got torch.uint8; convert it with is_first.bool\(\)"):
        step(cell, **{**good, "is_first": is_first.byte()})


class ForgetfulCell(CountingCell):
    """Its prior answers for the first row of the batch alone."""

    def prior(self, state: Count, action: Tensor, noise: Tensor | None = None) -> Count:
        return Count(*(field[:1] for field in super().prior(state, action)))


def test_a_cell_that_returns_states_of_another_shape_is_named() -> None:
    embed, action, is_first = torch.ones(4, 2, 2), torch.zeros(4, 2, 1), torch.zeros(4, 2, dtype=torch.bool)
    cell = ForgetfulCell()
    message = r"the cell's prior must have fields \[4, 2, \.\.\.\] \(from embed\), got one of \[4, 1\]"
    with pytest.raises(ValueError, match=message):
        observe(cell, embed, action, is_first)
    message = r"the cell's prior must have fields \[4, 2, \.\.\.\] \(from action\), got one of \[4, 1\]"
    with pytest.raises(ValueError, match=message):
        imagine(cell, cell.initial(2), action)
