"""The entries of planet_lib.objectives, fuzzed."""

import functools

import pytest
import torch
from fuzzing import Entry, fuzz

import planet_lib as pl
from planet_lib.models.gaussian import widen

LEFT_OUT: dict[str, str] = {}
T, B = 4, 2
SCALES = {"kl": "kl_clipped"}  # the raw term that a scaled one is made of, where the names differ


@functools.cache
def model(kind):
    torch.manual_seed(0)
    encoder = pl.VectorEncoder(3, embed_dim=5)
    cell = kind(action_dim=2, embed_dim=5, stoch_dim=3, hidden_dim=5)
    heads = (pl.RewardHead(cell.feature_dim, hidden_dim=5), pl.ContinueHead(cell.feature_dim, hidden_dim=5))
    return pl.WorldModel(encoder, cell, pl.Decoder(cell.feature_dim, (3,), hidden_dim=5), *heads)


@functools.cache
def windows(kind):
    """A batch and the states that the model has after it; fuzzing changes none of them."""
    torch.manual_seed(1)
    parts = model(kind)
    obs, action = torch.randn(T, B, 3), torch.rand(T, B, 2)
    is_first, mask = torch.zeros(T, B, dtype=torch.bool), torch.ones(T, B, dtype=torch.bool)
    is_first[0, 0] = is_first[2, 1] = True
    mask[3, 0] = False
    batch = pl.Batch(obs, action, torch.randn(T, B), is_first, torch.zeros_like(is_first), mask)
    with torch.no_grad():
        prior, posterior = pl.observe(parts.cell, parts.encoder(obs), action, is_first)
    return {"model": parts, "batch": batch, "prior": prior, "posterior": posterior}


def scaled_as_asked(given, answer, **names):
    """Every scaled term is its raw one times the scale that was given, and the total is their sum."""
    for name, scaled in answer.scaled.items():
        scale = given[names.get(name, f"{name}_scale")]
        scale = scale["state"] if isinstance(scale, dict) else scale
        assert_same(scaled, float(scale) * answer.raw[SCALES.get(name, name)])
    assert_same(answer.total, torch.stack([*answer.scaled.values()]).sum())


def assert_same(one, other):
    torch.testing.assert_close(one, other, equal_nan=True, check_dtype=False, atol=1e-4, rtol=1e-4)


def mean_over(rows, values):
    return torch.where(rows, values.float(), 0).sum() / rows.sum().clamp(min=1)


def check_elbo(given, answer):
    batch, parts, free = given["batch"], given["model"], float(given["free_nats"])
    features = parts.cell.features(given["posterior"])
    obs = 0.5 * (widen(given["obs"]) - parts.decoder(features)).square().sum(-1)
    reward = 0.5 * (batch.reward - parts.reward_head(features)).square()
    kl = parts.cell.divergence(given["posterior"], given["prior"])
    assert_same(answer.raw["obs"], mean_over(batch.mask, obs))
    assert_same(answer.raw["reward"], mean_over(batch.mask & ~batch.is_first, reward))
    assert_same(answer.raw["kl"], mean_over(batch.mask, kl))
    assert_same(answer.raw["kl_clipped"], mean_over(batch.mask, kl.clamp(min=free)))
    scaled_as_asked(given, answer)


def check_overshooting(given, answer):
    free, distance = float(given["free_nats"]), int(given["distance"])
    scaled_as_asked(given, answer)
    assert set(answer.raw) - {"kl_clipped"} == set(answer.scaled)
    if distance == 1:
        assert answer.total == 0
    # From row 0 of either window one chain of two steps, and more, meets a row that counts.
    if torch.isfinite(answer.raw["kl"]) and distance > 1 and given["weights"] is None:
        assert_same(answer.raw["kl_clipped"].clamp(min=answer.raw["kl"].item()), answer.raw["kl_clipped"])
        assert answer.raw["kl_clipped"] >= 0.9 * free / distance


def elbo_case(kind):
    settings = {"free_nats": 0.5, "obs_scale": 1.0, "reward_scale": 2.0, "kl_scale": 0.5, "kl_balance": 0.8}
    settings |= {"global_kl_scale": 0.1 if kind is not pl.RNNCell else 0.0, "continue_scale": 1.0}
    return windows(kind) | settings | {"obs": windows(kind)["batch"].obs}


def overshooting_case(kind, **settings):
    parts = {"distance": 3, "obs": windows(kind)["batch"].obs, "free_nats": 0.5, "kl_scale": 0.5, "reward_scale": 2.0}
    parts |= {"obs_scale": 1.0, "weights": None, "stop_start_gradient": False, "chunk_size": None, "noise": None}
    return windows(kind) | parts | settings


def overshooting_with_everything():
    noise = torch.randn(3, T, B, model(pl.RSSMCell).cell.noise_dim, generator=torch.Generator().manual_seed(0))
    return overshooting_case(pl.RSSMCell, weights=[1.0, 0.5], stop_start_gradient=True, chunk_size=1, noise=noise)


KNOWN = {"weights": ["the weight of distance"], "obs_scale": ["obs"]}
ENTRIES = [
    Entry("objectives.elbo_loss", pl.elbo_loss, lambda: elbo_case(pl.RSSMCell), check_elbo),
    Entry("objectives.elbo_loss", pl.elbo_loss, lambda: elbo_case(pl.RNNCell), check_elbo),
    Entry(
        "objectives.latent_overshooting",
        pl.latent_overshooting,
        lambda: overshooting_case(pl.SSMCell),
        check_overshooting,
        known_as=KNOWN,
    ),
    Entry(
        "objectives.latent_overshooting",
        pl.latent_overshooting,
        overshooting_with_everything,
        check_overshooting,
        known_as=KNOWN,
    ),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)
