"""The cells and the time loops against a second implementation in NumPy, written from the equations alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy_cells
import pytest
import random_cases as cases
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planet_lib import State, imagine
from planet_lib.models import gaussian, step

TESTS = Path(__file__).parents[1]


FAST = settings(max_examples=40)


def twin(cell: Any, kind: str, chosen: dict[str, Any]) -> Any:
    """The NumPy cell with the weights of the torch one."""
    weights = {name: value.numpy() for name, value in cell.state_dict().items()}
    return numpy_cells.NumpyCell(kind, weights, **chosen)


def rows_of(state: State) -> list[Any]:
    """A torch state [B, ...] as NumPy rows."""
    return [numpy_cells.Row(*(field[b].numpy() for field in state)) for b in range(len(state.stoch))]


def agree(got: State, expected: Sequence[Sequence[Any]]) -> None:
    for field in State._fields:
        theirs = np.array([[getattr(row, field) for row in rows] for rows in expected])
        np.testing.assert_allclose(getattr(got, field).detach().numpy(), theirs, rtol=1e-9, atol=1e-9, err_msg=field)


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(TESTS / "golden" / f"{name}.npz") as file:
        return dict(file)


def golden_cell(weights: dict[str, np.ndarray]) -> Any:
    names = {
        "fc_embed_state_action": "path.layers.0",
        "rnn": "path.gru",
        "fc_embed_belief_prior": "prior_head.layers.0",
        "fc_state_prior": "prior_head.out",
        "fc_embed_belief_posterior": "posterior_head.layers.0",
        "fc_state_posterior": "posterior_head.out",
    }
    ours = {}
    for name, value in weights.items():
        if name.startswith("cell."):
            layer, kind = name.removeprefix("cell.").split(".")
            ours[f"{names[layer]}.{kind}"] = value
    return numpy_cells.NumpyCell("rssm", ours)


def test_the_numpy_reference_itself_agrees_with_the_port() -> None:
    port, later = golden("rssm_observe"), golden("rssm_imagine")
    cell = golden_cell(port)
    nothing_first = np.zeros(port["kl"].shape, bool)
    noises = (port["prior_noise"], port["posterior_noise"])
    priors, posteriors = numpy_cells.observe(cell, port["embed"], port["action"], nothing_first, *noises)
    for t, b in np.ndindex(*nothing_first.shape):
        prior, posterior = priors[t][b], posteriors[t][b]
        np.testing.assert_allclose(posterior.deter, port["deter"][t, b], atol=1e-12)
        for name, row in (("prior", prior), ("posterior", posterior)):
            for field in ("mean", "std", "stoch"):
                np.testing.assert_allclose(getattr(row, field), port[f"{name}_{field}"][t, b], atol=1e-12)
        np.testing.assert_allclose(cell.divergence(posterior, prior), port["kl"][t, b], atol=1e-12)
        head = {
            f"layers.{i - 1}.{kind}": port[f"reward.fc{i}.{kind}"] for i in (1, 2, 3) for kind in ("weight", "bias")
        }
        reward = numpy_cells.mlp(head, cell.features(posterior))
        np.testing.assert_allclose(reward, port["reward"][t, b], atol=1e-12)
    states = numpy_cells.imagine(cell, posteriors[-1], later["action"], later["noise"])
    for field in State._fields:
        got = [[getattr(row, field) for row in rows] for rows in states]
        np.testing.assert_allclose(got, later[field], atol=1e-12)
    assert not cell.weights.unread


@FAST
@given(cases.settings_of_cells(), cases.seeds, st.sampled_from([0.0, 0.3, 0.8]), st.booleans())
def test_filtering_is_the_equations(
    chosen: tuple[str, dict[str, Any]], seed: int, resets: float, with_initial: bool
) -> None:
    kind, settings_of_it = chosen
    cell = cases.make_cell(kind, seed, **settings_of_it)
    reference = twin(cell, kind, settings_of_it)
    sequence = cases.draw_sequence(cell, seed, resets=resets)
    initial = cases.draw_state(cell, seed, 2) if with_initial else None
    with torch.no_grad():
        prior, posterior = sequence.filter(cell, initial)
    noises = (sequence.prior_noise.numpy(), sequence.posterior_noise.numpy())
    inputs = (sequence.embed.numpy(), sequence.action.numpy(), sequence.is_first.numpy())
    priors, posteriors = numpy_cells.observe(reference, *inputs, *noises, initial and rows_of(initial))
    agree(prior, priors)
    agree(posterior, posteriors)
    assert not reference.weights.unread
    for t, b in np.ndindex(*inputs[-1].shape):
        ours = State(*(field[t, b] for field in posterior)), State(*(field[t, b] for field in prior))
        theirs = posteriors[t][b], priors[t][b]
        np.testing.assert_allclose(cell.divergence(*ours).item(), reference.divergence(*theirs), rtol=1e-9, atol=1e-9)
        features = reference.features(posteriors[t][b])
        np.testing.assert_allclose(cell.features(ours[0]).numpy(), features, rtol=1e-9, atol=1e-9)


@FAST
@given(cases.settings_of_cells(), cases.seeds)
def test_one_public_step_is_the_equations(chosen: tuple[str, dict[str, Any]], seed: int) -> None:
    kind, settings_of_it = chosen
    cell = cases.make_cell(kind, seed, **settings_of_it)
    reference = twin(cell, kind, settings_of_it)
    sequence = cases.draw_sequence(cell, seed, length=1, batch_size=3, resets=0.5)
    state = cases.draw_state(cell, seed, 3)
    row = sequence.rows()
    noises = {"prior_noise": row.prior_noise[0], "posterior_noise": row.posterior_noise[0]}
    with torch.no_grad():
        prior, posterior = step(cell, state, row.action[0], row.embed[0], row.is_first[0], **noises)
    numbers = (field.numpy() for field in sequence)
    priors, posteriors = numpy_cells.observe(reference, *numbers, rows_of(state))
    agree(State(*(field[None] for field in prior)), priors)
    agree(State(*(field[None] for field in posterior)), posteriors)


@FAST
@given(cases.settings_of_cells(), cases.seeds)
def test_imagining_is_the_equations(chosen: tuple[str, dict[str, Any]], seed: int) -> None:
    kind, settings_of_it = chosen
    cell = cases.make_cell(kind, seed, **settings_of_it)
    reference = twin(cell, kind, settings_of_it)
    sequence = cases.draw_sequence(cell, seed)
    start = cases.draw_state(cell, seed, 2)
    with torch.no_grad():
        states = imagine(cell, start, sequence.action, noise=sequence.prior_noise)
    noise = sequence.prior_noise.numpy()
    agree(states, numpy_cells.imagine(reference, rows_of(start), sequence.action.numpy(), noise))


def draw_gaussians(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(2, 4, generator=random, dtype=torch.float64) for _ in range(2))
    return left[0], left[1].exp(), right[0], right[1].exp()


@given(cases.seeds)
def test_the_kl_is_the_sum_over_dimensions(seed: int) -> None:
    drawn = draw_gaussians(seed)
    nothing = np.zeros(0)
    left, right = (numpy_cells.Row(nothing, nothing, mean.numpy(), std.numpy()) for mean, std in (drawn[:2], drawn[2:]))
    np.testing.assert_allclose(gaussian.kl_divergence(*drawn).item(), numpy_cells.kl(left, right), rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_the_kl_is_the_integral_that_defines_it(seed: int) -> None:
    mean, std, other_mean, other_std = (value[:1].numpy() for value in draw_gaussians(seed))
    x = np.linspace(mean - 12 * std, mean + 12 * std, 20_001)[:, 0]

    def log_density(m: np.ndarray, s: np.ndarray) -> np.ndarray:
        return -(((x - m) / s) ** 2) / 2 - np.log(s) - np.log(2 * np.pi) / 2

    left, right = log_density(mean, std), log_density(other_mean, other_std)
    nats = (np.exp(left) * (left - right)).sum() * (x[1] - x[0])
    got = gaussian.kl_divergence(*(torch.from_numpy(value) for value in (mean, std, other_mean, other_std)))
    np.testing.assert_allclose(got.item(), nats, rtol=1e-9)
