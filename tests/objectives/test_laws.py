"""Laws of the objectives, for every cell: what counts, what does not, and where each gradient goes and stops."""

from typing import Any

import pytest
import random_cases as cases
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planet_lib import Batch, Losses, State, elbo_loss, imagine, latent_overshooting
from planet_lib.models.rollout import map_state

FAST = settings(max_examples=20)
T, B, D = 6, 3, 4
Chosen = tuple[str, dict[str, Any]]
ALL = {"reward_scale": 2.0, "obs_scale": 0.5}


def draw(chosen: Chosen, seed: int, **kwargs: Any) -> Any:
    kind, of_cell = chosen
    return cases.draw_case(kind, seed, batch_size=B, distance=D, **kwargs, **of_cell)


def smooth(chosen: Chosen) -> Chosen:
    """The same cell without flat pieces, where a gradient of zero means that there is no path."""
    kind, of_cell = chosen
    return kind, {name: value for name, value in of_cell.items() if not name.startswith("min_std")} | {
        "activation": "tanh"
    }


def leaves_of(states: tuple[State, State]) -> tuple[State, State]:
    prior, posterior = (map_state(lambda field: field.detach().clone().requires_grad_(), state) for state in states)
    return prior, posterior


def elbo(case: Any, states: tuple[State, State], **kwargs: Any) -> Losses:
    return elbo_loss(case.model, case.batch, case.obs, *states, **{"global_kl_scale": 0.1, **kwargs})


def overshooting(case: Any, states: tuple[State, State], **kwargs: Any) -> Losses:
    kwargs = {"distance": D, "noise": case.chain_noise, "free_nats": 0.5, "obs": case.obs, **ALL, **kwargs}
    return latent_overshooting(case.model, case.batch, *states, **kwargs)


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    if not loss.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(loss, leaves, materialize_grads=True, retain_graph=True)


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def columns(case: Any, b: int) -> Any:
    """One column of a case as a case of its own."""

    def part(field: Any) -> Any:
        return {k: v[:, b : b + 1] for k, v in field.items()} if isinstance(field, dict) else field[:, b : b + 1]

    return case._replace(
        batch=Batch(*(part(field) for field in case.batch)),
        obs=part(case.obs),
        sequence=cases.Sequence(*(part(field) for field in case.sequence)),
        chain_noise=case.chain_noise[:, :, b : b + 1],
    )


def spoil(case: Any, states: tuple[State, State], where: Tensor, value: float) -> tuple[Any, tuple[State, State]]:
    """The case with `value` in everything that stands in the rows `where` [T, B], but for the flags."""

    def fill(field: Any) -> Any:
        if isinstance(field, dict):
            return {name: fill(entry) for name, entry in field.items()}
        return field.masked_fill(where.reshape(*where.shape, *[1] * (field.ndim - 2)), value)

    batch = case.batch
    spoilt = batch._replace(obs=fill(batch.obs), action=fill(batch.action), reward=fill(batch.reward))
    spoilt = spoilt._replace(terminated=batch.terminated ^ where)
    noise = case.chain_noise.masked_fill(where[None, :, :, None], value)
    prior, posterior = (map_state(fill, state) for state in states)
    return case._replace(batch=spoilt, obs=fill(case.obs), chain_noise=noise), (prior, posterior)


@FAST
@given(cases.some_cells, cases.seeds, st.booleans(), st.sampled_from([None, 2]))
def test_overshooting_to_distance_one_adds_nothing(
    chosen: Chosen, seed: int, stop: bool, chunk_size: int | None
) -> None:
    case = draw(chosen, seed)
    states = case.states()
    kwargs = {"noise": case.chain_noise[:1], "stop_start_gradient": stop, "chunk_size": chunk_size, "distance": 1}
    losses = overshooting(case, states, **kwargs)
    assert losses.total.item() == 0.0
    assert all(value.item() == 0.0 for value in [*losses.raw.values(), *losses.scaled.values()])
    assert not any(gradient.any() for gradient in gradients(losses.total, *case.model.parameters()))


@FAST
@given(
    cases.some_cells,
    cases.seeds,
    st.integers(1, B + 2),
    st.booleans(),
    st.sampled_from(["vector", "both"]),
    st.booleans(),
)
def test_the_size_of_chunks_changes_neither_values_nor_gradients(
    chosen: Chosen, seed: int, chunk_size: int, stop: bool, obs: str, padded: bool
) -> None:
    case = draw(chosen, seed, obs=obs, padding="holes" if padded else "none")
    states = case.states()
    whole = overshooting(case, states, stop_start_gradient=stop)
    parts = overshooting(case, states, stop_start_gradient=stop, chunk_size=chunk_size)
    close(parts, whole)
    pair = [gradients(losses.total, *case.model.parameters()) for losses in (parts, whole)]
    close(*pair)


@FAST
@given(cases.some_cells, cases.seeds, st.integers(1, B))
def test_chunks_without_given_noise_draw_it_once(chosen: Chosen, seed: int, chunk_size: int) -> None:
    case = draw(chosen, seed)
    prior, posterior = leaves_of(case.states())
    torch.manual_seed(seed)
    losses = overshooting(case, (prior, posterior), noise=None, chunk_size=chunk_size)
    torch.manual_seed(seed)
    noise = torch.randn(D, T, B, case.model.cell.noise_dim, dtype=torch.float64)
    expected = overshooting(case, (prior, posterior), noise=noise)
    # Nothing can be drawn anew when the chunks are computed a second time, in the backward pass.
    torch.manual_seed(seed + 1)
    close(losses, expected)
    close(*(gradients(loss.total, *case.model.parameters(), *prior) for loss in (losses, expected)))


@FAST
@given(cases.some_cells, cases.seeds, st.sampled_from(["vector", "both"]), st.sampled_from(["tail", "holes"]))
def test_what_stands_in_padded_rows_matters_to_nothing(chosen: Chosen, seed: int, obs: str, padding: str) -> None:
    case = draw(chosen, seed, obs=obs, padding=padding, goes_on=True)
    states = leaves_of(case.states())
    spoilt, filled = spoil(case, states, ~case.batch.mask, 7.0)
    hollow, holes = spoil(case, states, ~case.batch.mask, torch.nan)
    for objective in (elbo, overshooting):
        losses, same, of_nan = objective(case, states), objective(spoilt, filled), objective(hollow, holes)
        close(same, losses)
        close(of_nan, losses)
        asked = [gradients(loss.total, *case.model.parameters()) for loss in (same, losses)]
        close(*asked)
        for gradient in gradients(losses.total, *states[0], *states[1]):
            assert not gradient[~case.batch.mask].any()


@FAST
@given(cases.some_cells, cases.seeds, st.sampled_from([7.0, torch.nan]))
def test_a_reward_at_an_episodes_start_matters_to_nothing(chosen: Chosen, seed: int, value: float) -> None:
    case = draw(chosen, seed, resets=0.5)
    states = case.states()
    reward = case.batch.reward.masked_fill(case.batch.is_first, value)
    other = case._replace(batch=case.batch._replace(reward=reward))
    for objective in (elbo, overshooting):
        before, after = objective(case, states), objective(other, states)
        close(after, before)
        close(*(gradients(losses.total, *case.model.parameters()) for losses in (after, before)))


@FAST
@given(cases.some_cells, cases.seeds)
def test_a_batch_costs_the_mean_of_its_columns(chosen: Chosen, seed: int) -> None:
    case = draw(chosen, seed, resets=0.0, goes_on=True)
    for objective in (elbo, overshooting):
        whole = objective(case, case.states())
        apart = [objective(part, part.states()) for part in (columns(case, b) for b in range(B))]
        for name, value in whole.raw.items():
            close(value, torch.stack([losses.raw[name] for losses in apart]).mean())
        mean = torch.stack([losses.total for losses in apart]).mean()
        close(whole.total, mean)
        close(*(gradients(total, *case.model.parameters()) for total in (whole.total, mean)))


@FAST
@given(cases.some_cells, cases.seeds, st.booleans())
def test_the_total_is_the_sum_of_the_scaled_terms(chosen: Chosen, seed: int, of_elbo: bool) -> None:
    case = draw(chosen, seed, obs="both", padding="tail", goes_on=True)
    states = case.states()
    twice = {"kl_scale": 2.0, "reward_scale": 4.0, "obs_scale": {"image": 1.0, "vector": 3.0}}
    objective = elbo if of_elbo else overshooting
    losses = objective(case, states, **twice)
    close(losses.total, sum(losses.scaled.values()))
    close(losses.scaled["kl"], 2.0 * losses.raw["kl_clipped"])
    close(losses.scaled["reward"], 4.0 * losses.raw["reward"])
    close(losses.scaled["obs/image"], losses.raw["obs/image"])
    close(losses.scaled["obs/vector"], 3.0 * losses.raw["obs/vector"])


@FAST
@given(cases.some_cells, cases.seeds, st.floats(0.0, 1.0), st.sampled_from([0.0, 2.0]))
def test_balancing_shares_the_gradient_of_the_kl_out_between_prior_and_posterior(
    chosen: Chosen, seed: int, share: float, free_nats: float
) -> None:
    case = draw(smooth(chosen), seed, padding="tail")
    prior, posterior = leaves_of(case.states())
    only_kl = {"free_nats": free_nats, "obs_scale": 0.0, "reward_scale": 0.0, "global_kl_scale": 0.0, "kl_scale": 3.0}
    plain, balanced = (elbo(case, (prior, posterior), kl_balance=a, **only_kl) for a in (None, share))
    close(balanced, plain)
    of_plain, of_balanced = (
        [gradients(loss.total, *side) for side in (prior, posterior)] for loss in (plain, balanced)
    )
    close(of_balanced[0], tuple(share * gradient for gradient in of_plain[0]))
    close(of_balanced[1], tuple((1.0 - share) * gradient for gradient in of_plain[1]))
    if free_nats == 0.0:
        assert all(gradients(plain.total, side.mean)[0].any() for side in (prior, posterior))


@FAST
@given(cases.some_cells, cases.seeds)
def test_each_term_of_the_elbo_asks_only_its_own_states(chosen: Chosen, seed: int) -> None:
    case = draw(smooth(chosen), seed, padding="holes", goes_on=True)
    prior, posterior = leaves_of(case.states())
    raw = elbo(case, (prior, posterior), free_nats=0.0).raw
    valid, rewarded = case.batch.mask, case.batch.mask & ~case.batch.is_first
    is_rnn = chosen[0] == "rnn"
    # The reward head has relu: a row without gradient there need not be one that was left out.
    flat = {"reward", "continue", "obs"}
    for name, rows in (("obs", valid), ("reward", rewarded), ("continue", valid), ("kl", valid), ("global_kl", valid)):
        by_prior, by_posterior = (
            dict(zip(State._fields, gradients(raw[name], *side), strict=True)) for side in (prior, posterior)
        )
        asked = {"stoch", "deter"} if name in flat else {"mean"} if is_rnn else {"mean", "std"}
        for field in State._fields:
            touched = by_posterior[field].abs().sum(-1) > 0
            if field not in asked:
                assert not touched.any(), (name, field)
            elif name in flat:
                assert not touched[~rows].any(), (name, field)
            else:
                assert torch.equal(touched, rows), (name, field)
            expected = field in asked and name == "kl"
            assert torch.equal(by_prior[field].abs().sum(-1) > 0, rows & expected), (name, field)
    if rewarded.any():
        assert gradients(raw["obs"] + raw["reward"] + raw["continue"], posterior.stoch)[0].any()


@FAST
@given(cases.some_cells, cases.seeds, st.sampled_from([0.5, 3.0]))
def test_rows_below_the_free_nats_have_no_gradient_and_rows_above_have_all_of_it(
    chosen: Chosen, seed: int, free_nats: float
) -> None:
    case = draw(smooth(chosen), seed, padding="holes")
    prior, posterior = leaves_of(case.states())
    losses = elbo(case, (prior, posterior), free_nats=free_nats)
    above = case.batch.mask & (case.model.cell.divergence(posterior, prior) > free_nats)
    clipped, plain = (gradients(losses.raw[name], prior.mean, posterior.mean) for name in ("kl_clipped", "kl"))
    for some, full in zip(clipped, plain, strict=True):
        close(some, full * above.unsqueeze(-1))


@FAST
@given(cases.some_cells, cases.seeds, st.sampled_from(["none", "holes"]), st.sampled_from([None, 2]))
def test_overshooting_asks_the_states_that_chains_start_from_and_no_others(
    chosen: Chosen, seed: int, padding: str, chunk_size: int | None
) -> None:
    case = draw(smooth(chosen), seed, padding=padding)
    prior, posterior = leaves_of(case.states())
    valid, is_first = case.batch.mask, case.batch.is_first
    goes_on = valid & ~is_first
    # A prior is where a chain stands after one step; it counts if that step and at least one more are possible.
    begins = torch.zeros_like(valid)
    begins[1:-1] = valid[:-2] & goes_on[1:-1] & goes_on[2:]
    # Read by what comes after: the sample, and the deterministic path where there is one.
    read = {"stoch"} if chosen[0] == "ssm" else {"stoch", "deter"}
    for stop in (False, True):
        kwargs = {"free_nats": 0.0, "stop_start_gradient": stop, "chunk_size": chunk_size}
        total = overshooting(case, (prior, posterior), **kwargs).total
        assert not any(gradient.any() for gradient in gradients(total, *posterior))
        for field, gradient in zip(State._fields, gradients(total, *prior), strict=True):
            expected = begins if field in read and not stop else torch.zeros_like(begins)
            assert torch.equal(gradient.abs().sum(-1) > 0, expected), field
        if begins.any():
            assert all(gradient.any() for gradient in gradients(total, *case.model.cell.prior_head.parameters()))
        assert not any(gradient.any() for gradient in gradients(total, *case.model.cell.posterior_head.parameters()))


@FAST
@given(cases.some_cells, cases.seeds)
def test_through_the_start_states_overshooting_trains_what_made_them(chosen: Chosen, seed: int) -> None:
    case = draw(smooth(chosen), seed, resets=0.0)
    case.sequence.embed.requires_grad_()
    flowing, stopped = (overshooting(case, case.states(), free_nats=0.0, stop_start_gradient=s) for s in (False, True))
    (by_embed,) = gradients(flowing.total, case.sequence.embed)
    # The last two rows start no chain that gets as far as distance 2.
    assert torch.equal(by_embed.abs().sum(-1) > 0, (torch.arange(T) < T - 2).unsqueeze(-1).expand(T, B))
    assert not gradients(stopped.total, case.sequence.embed)[0].any()


@FAST
@given(cases.some_cells, cases.seeds, st.integers(2, D))
def test_overshooting_is_imagining_from_every_posterior(chosen: Chosen, seed: int, distance: int) -> None:
    case = draw(chosen, seed, resets=0.0)
    prior, posterior = case.states()
    cell = case.model.cell
    per_distance: dict[int, list[Tensor]] = {d: [] for d in range(2, distance + 1)}
    for start in range(T - 1):
        begin = map_state(lambda field, row=start: field[row], posterior)
        steps = min(distance, T - 1 - start)
        noise = torch.stack([case.chain_noise[d - 1, start + d] for d in range(1, steps + 1)])
        imagined = imagine(cell, begin, case.batch.action[start + 1 : start + 1 + steps], noise=noise)
        met = map_state(lambda field, row=start, n=steps: field[row + 1 : row + 1 + n], posterior)
        for d in range(2, steps + 1):
            per_distance[d].append(cell.divergence(met, imagined)[d - 1])
    expected = sum(torch.stack(nats).mean() for nats in per_distance.values()) / distance
    kwargs = {"distance": distance, "noise": case.chain_noise[:distance], "stop_start_gradient": True}
    close(overshooting(case, (prior, posterior), **kwargs).raw["kl"], expected)


@FAST
@given(cases.some_cells, cases.seeds, st.integers(1, D - 1))
def test_weights_of_zero_beyond_a_distance_are_that_distance(chosen: Chosen, seed: int, shorter: int) -> None:
    case = draw(chosen, seed, padding="tail")
    states = case.states()
    far = overshooting(case, states, weights=[1.0] * (shorter - 1) + [0.0] * (D - shorter))
    near = overshooting(case, states, distance=shorter, noise=case.chain_noise[:shorter])
    close(far.total * D, near.total * shorter)


@FAST
@given(cases.some_cells, cases.seeds)
def test_overshooting_is_linear_in_its_weights(chosen: Chosen, seed: int) -> None:
    case = draw(chosen, seed, padding="tail")
    states = case.states()
    one, other, both = (overshooting(case, states, weights=w).total for w in ([1, 0, 3], [0, 2, 1], [1, 2, 4]))
    close(one + other, both)


@pytest.mark.parametrize("chosen", cases.SOME_CELLS)
def test_a_batch_of_nothing_but_padding_costs_nothing_and_spoils_no_gradient(chosen: Chosen) -> None:
    case = draw(chosen, 0, goes_on=True)
    case = case._replace(batch=case.batch._replace(mask=torch.zeros_like(case.batch.mask)))
    for objective in (elbo, overshooting):
        losses = objective(case, case.states())
        assert losses.total.item() == 0.0
        assert not any(gradient.any() for gradient in gradients(losses.total, *case.model.parameters()))
