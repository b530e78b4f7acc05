"""The objectives against a second implementation in NumPy: ELBO row by row, overshooting by brute force.

Both sides start from the same weights, inputs and noise; each filters the window and computes the loss on its own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy_cells
import numpy_losses
import pytest
import random_cases as cases
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from planet_lib import Losses, elbo_loss, latent_overshooting

T, B = 6, 2
FAST = settings(max_examples=40)
padding = st.sampled_from(["none", "tail", "holes"])
resets = st.sampled_from([0.0, 0.25])
observations = st.sampled_from(["vector", "image", "both"])
scales = st.sampled_from([0.5, 1.0, 3.0])


def numbers(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def layers_of(module: nn.Module) -> dict[str, np.ndarray]:
    """The weights of linear layers in a row, by the names `layers.0`, `layers.1`, ..."""
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    return {f"layers.{i}.{name}": value for i, part in enumerate(linear) for name, value in numbers(part).items()}


def decode(decoder: nn.Module, kind: str, features: np.ndarray) -> np.ndarray:
    out = numpy_cells.mlp(layers_of(decoder), features)
    return out.reshape(2, 3, 5) if kind == "image" else out


def decode_all(model: Any, obs: str, features: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
    if obs != "both":
        return decode(model.decoder, obs, features)
    return {name: decode(part, name, features) for name, part in model.decoder.decoders.items()}


class Twin:
    """A case as NumPy sees it, with its own states."""

    def __init__(self, case: Any, kind: str, chosen: Mapping[str, Any], obs: str) -> None:
        model = case.model
        self.cell = numpy_cells.NumpyCell(kind, numbers(model.cell), **chosen)
        goes_on = model.continue_head and layers_of(model.continue_head)
        reward = layers_of(model.reward_head)
        self.heads = numpy_losses.Heads(
            obs=lambda features: decode_all(model, obs, features),
            reward=lambda features: numpy_cells.mlp(reward, features)[0],
            goes_on=goes_on and (lambda features: numpy_cells.mlp(goes_on, features)[0]),
        )
        fields = (field.numpy() for field in case.batch[1:])
        seen = {k: v.numpy() for k, v in case.obs.items()} if isinstance(case.obs, dict) else case.obs.numpy()
        self.window = numpy_losses.Window(seen, *fields)
        self.priors, self.posteriors = numpy_cells.observe(self.cell, *(field.numpy() for field in case.sequence))
        self.noise = case.chain_noise.numpy()

    def elbo(self, **kwargs: Any) -> Any:
        return numpy_losses.elbo(self.cell, self.heads, self.window, self.priors, self.posteriors, **kwargs)

    def overshooting(self, **kwargs: Any) -> Any:
        states = (self.priors, self.posteriors)
        return numpy_losses.overshooting(self.cell, self.heads, self.window, *states, noise=self.noise, **kwargs)


def agree(got: Losses, expected: Any) -> None:
    assert got.raw.keys() == expected.raw.keys()
    assert got.scaled.keys() == expected.scaled.keys()
    for ours, theirs in ((got.raw, expected.raw), (got.scaled, expected.scaled)):
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name].item(), value, rtol=1e-9, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(got.total.item(), expected.total, rtol=1e-9, atol=1e-9)


def obs_scale_for(obs: str, scale: float, apart: bool) -> float | dict[str, float]:
    return {"image": scale, "vector": 2.0 * scale} if obs == "both" and apart else scale


@FAST
@given(
    cases.settings_of_cells(),
    cases.seeds,
    padding,
    resets,
    observations,
    st.booleans(),
    st.sampled_from([0.0, 1.0, 4.0]),
    st.tuples(scales, scales, scales, scales),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([None, 0.0, 0.8]),
)
def test_the_elbo_is_its_terms_row_by_row(
    chosen: tuple[str, dict[str, Any]],
    seed: int,
    padding: str,
    resets: float,
    obs: str,
    goes_on: bool,
    free_nats: float,
    four_scales: tuple[float, float, float, float],
    global_kl_scale: float,
    kl_balance: float | None,
) -> None:
    kind, of_cell = chosen
    case = cases.draw_case(kind, seed, padding=padding, resets=resets, obs=obs, goes_on=goes_on, **of_cell)
    obs_scale, reward_scale, kl_scale, continue_scale = four_scales
    given_to_both = {
        "free_nats": free_nats,
        "obs_scale": obs_scale_for(obs, obs_scale, seed % 2 == 0),
        "reward_scale": reward_scale,
        "kl_scale": kl_scale,
        "global_kl_scale": global_kl_scale,
        "continue_scale": continue_scale,
    }
    got = elbo_loss(case.model, case.batch, case.obs, *case.states(), kl_balance=kl_balance, **given_to_both)
    agree(got, Twin(case, kind, of_cell, obs).elbo(**given_to_both))


@FAST
@given(
    cases.settings_of_cells(),
    cases.seeds,
    padding,
    resets,
    observations,
    st.integers(1, T + 3),
    st.sampled_from([0.0, 1.0, 4.0]),
    st.booleans(),
    st.sampled_from([None, "rising", "gaps"]),
    st.sampled_from([None, 1, 2, 5]),
    st.sampled_from([(0.0, 0.0), (2.0, 0.0), (0.0, 0.5), (2.0, 0.5)]),
)
def test_overshooting_is_brute_force_over_starts_and_distances(
    chosen: tuple[str, dict[str, Any]],
    seed: int,
    padding: str,
    resets: float,
    obs: str,
    distance: int,
    free_nats: float,
    stop: bool,
    betas: str | None,
    chunk_size: int | None,
    optional: tuple[float, float],
) -> None:
    kind, of_cell = chosen
    case = cases.draw_case(kind, seed, distance=distance, padding=padding, resets=resets, obs=obs, **of_cell)
    rising = [0.5 + d for d in range(distance - 1)]
    weights = {None: None, "rising": rising, "gaps": [beta * (d % 2) for d, beta in enumerate(rising)]}[betas]
    reward_scale, obs_scale = optional
    given_to_both = {
        "distance": distance,
        "free_nats": free_nats,
        "kl_scale": 1.5,
        "reward_scale": reward_scale,
        "obs_scale": obs_scale,
        "weights": weights,
    }
    got = latent_overshooting(
        case.model,
        case.batch,
        *case.states(),
        obs=case.obs if obs_scale else None,
        stop_start_gradient=stop,
        chunk_size=chunk_size,
        noise=case.chain_noise,
        **given_to_both,
    )
    expected = Twin(case, kind, of_cell, obs).overshooting(redraw_first_step=stop, **given_to_both)
    # A term that was asked for exists even where no chain is long enough to have it.
    for name in [*got.raw]:
        expected.raw.setdefault(name, 0.0)
    for name in [*got.scaled]:
        expected.scaled.setdefault(name, 0.0)
    wanted = {"kl", *(["reward"] if reward_scale else [])}
    wanted |= {"obs/image", "obs/vector"} if obs_scale and obs == "both" else {"obs"} if obs_scale else set()
    assert set(got.scaled) == wanted
    agree(got, expected)


def test_the_random_windows_hold_what_the_agreement_is_about() -> None:
    case = cases.draw_case("rssm", 3, distance=4, padding="holes")
    twin = Twin(case, "rssm", {}, "vector")
    assert case.batch.is_first[1:].any()
    assert not case.batch.mask.all()
    common = {"distance": 4, "free_nats": 0.0}
    plain, anew = (twin.overshooting(redraw_first_step=stop, **common).total for stop in (False, True))
    assert 0.0 < plain != anew > 0.0
    whole = case._replace(batch=case.batch._replace(mask=torch.ones_like(case.batch.mask)))
    assert Twin(whole, "rssm", {}, "vector").overshooting(**common).total != plain
    clipped = twin.elbo(free_nats=4.0)
    assert clipped.raw["kl"] < clipped.raw["kl_clipped"]


def torch_weights(case: Any, direction: Mapping[str, np.ndarray], size: float) -> dict[str, np.ndarray]:
    own = numbers(case.model.cell)
    return {name: own[name] + size * direction[name] for name in own}


@pytest.mark.parametrize(("kind", "of_cell"), cases.SOME_CELLS)
@pytest.mark.parametrize("stop", [False, True])
def test_the_gradient_of_overshooting_is_the_slope_of_brute_force_with_targets_held_fast(
    kind: str, of_cell: dict[str, Any], stop: bool
) -> None:
    smooth = {**of_cell, "activation": "tanh"}
    if "min_std_mode" in smooth:
        smooth["min_std_mode"] = "add"  # a clamp has a kink
    case = cases.draw_case(kind, 5, distance=4, padding="holes", resets=0.1, length=7, **smooth)
    twin = Twin(case, kind, smooth, "vector")
    model, asked = case.model, {"distance": 4, "free_nats": 0.0, "reward_scale": 2.0, "obs_scale": 0.5}
    states = case.states()
    loss = latent_overshooting(
        model, case.batch, *states, obs=case.obs, noise=case.chain_noise, stop_start_gradient=stop, **asked
    ).total
    named = dict(model.cell.named_parameters())
    slopes = torch.autograd.grad(loss, [*named.values()], materialize_grads=True)
    random = np.random.default_rng(0)
    direction = {name: random.standard_normal(value.shape) for name, value in named.items()}
    along = sum((slope.numpy() * direction[name]).sum() for name, slope in zip(named, slopes, strict=True))
    values = []
    for size in (-1e-5, 1e-5):
        moved = numpy_cells.NumpyCell(kind, torch_weights(case, direction, size), **smooth)
        inputs = (field.numpy() for field in case.sequence)
        priors, posteriors = numpy_cells.observe(moved, *inputs)
        if stop:
            posteriors = twin.posteriors
        terms = numpy_losses.overshooting(
            moved,
            twin.heads,
            twin.window,
            priors,
            posteriors,
            noise=twin.noise,
            targets=twin.posteriors,
            redraw_first_step=stop,
            **asked,
        )
        values.append(terms.total)
    np.testing.assert_allclose(along, (values[1] - values[0]) / 2e-5, rtol=1e-6, atol=1e-8)
    assert abs(along) > 1e-3


@pytest.mark.parametrize(("kind", "of_cell"), cases.SOME_CELLS)
@pytest.mark.parametrize("balance", [None, 0.8])
def test_the_gradient_of_the_elbo_is_the_slope_of_its_terms(
    kind: str, of_cell: dict[str, Any], balance: float | None
) -> None:
    smooth = {**of_cell, "activation": "tanh"}
    if "min_std_mode" in smooth:
        smooth["min_std_mode"] = "add"
    case = cases.draw_case(kind, 5, padding="holes", length=5, goes_on=True, **smooth)
    twin = Twin(case, kind, smooth, "vector")
    asked = {"free_nats": 0.0, "global_kl_scale": 0.1, "reward_scale": 2.0}
    loss = elbo_loss(case.model, case.batch, case.obs, *case.states(), kl_balance=balance, **asked).total
    named = dict(case.model.cell.named_parameters())
    slopes = torch.autograd.grad(loss, [*named.values()], materialize_grads=True)
    random = np.random.default_rng(0)
    direction = {name: random.standard_normal(value.shape) for name, value in named.items()}
    along = sum((slope.numpy() * direction[name]).sum() for name, slope in zip(named, slopes, strict=True))
    values = []
    for size in (-1e-5, 1e-5):
        moved = numpy_cells.NumpyCell(kind, torch_weights(case, direction, size), **smooth)
        priors, posteriors = numpy_cells.observe(moved, *(field.numpy() for field in case.sequence))

        def total(priors: Any, posteriors: Any, kl_scale: float, cell: Any = moved) -> float:
            terms = numpy_losses.elbo(cell, twin.heads, twin.window, priors, posteriors, kl_scale=kl_scale, **asked)
            return float(terms.total)

        if balance is None:
            values.append(total(priors, posteriors, 1.0))
        else:
            # Without the KL all moves; of the KL, the prior alone moves in one part and the posterior in the other.
            rest = total(priors, posteriors, 0.0)
            of_prior = total(priors, twin.posteriors, 1.0) - total(priors, twin.posteriors, 0.0)
            of_posterior = total(twin.priors, posteriors, 1.0) - total(twin.priors, posteriors, 0.0)
            values.append(rest + balance * of_prior + (1.0 - balance) * of_posterior)
    np.testing.assert_allclose(along, (values[1] - values[0]) / 2e-5, rtol=1e-6, atol=1e-8)
    assert abs(along) > 1e-3
