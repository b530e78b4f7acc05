"""The closed forms of diagonal Gaussians, fuzzed."""

import numpy as np
import pytest
import torch
from fuzzing import Entry, fuzz

from planet_lib.models import gaussian


def same(one, other):
    torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-4, atol=1e-5)


def is_sampled(given, value):
    if given["noise"] is not None:
        same(value, given["mean"] + given["std"] * given["noise"])
    assert value.shape[-1] == max(given["mean"].shape[-1], given["std"].shape[-1])


def by_hand(formula):
    """Whether the answer is that of a formula in float64, wherever the numbers are of a usual size."""

    def check(given, got):
        wide = {name: value.detach().double() for name, value in given.items()}
        expected = formula(**wide)
        assert got.shape == expected.shape
        usual = torch.stack(
            torch.broadcast_tensors(*((value.abs() > 1e-3) & (value.abs() < 10) for value in wide.values()))
        )
        spreads = torch.broadcast_tensors(
            *(value > 0 for name, value in wide.items() if "std" in name), expected[..., None]
        )
        sound = usual.all(0).all(-1)
        for spread in spreads[:-1]:
            sound = sound & spread.all(-1)
        torch.testing.assert_close(got.double()[sound], expected[sound], rtol=1e-3, atol=1e-2)

    return check


def is_widened(given, got):
    assert got.dtype not in (torch.float16, torch.bfloat16)
    same(got, given["value"].to(got.dtype))


def kl(mean, std, other_mean, other_std):
    terms = (other_std / std).log() + (std**2 + (mean - other_mean) ** 2) / (2 * other_std**2) - 0.5
    return terms.sum(-1)


def density(value, mean, std):
    return (-((value - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * np.log(2 * np.pi)).sum(-1)


def numbers(*names):
    return lambda: {name: torch.rand(2, 3) + 0.5 for name in names}


ENTRIES = [
    Entry("models.gaussian.sample", gaussian.sample, numbers("mean", "std", "noise"), is_sampled),
    Entry(
        "models.gaussian.kl_divergence",
        gaussian.kl_divergence,
        numbers("mean", "std", "other_mean", "other_std"),
        by_hand(kl),
    ),
    Entry("models.gaussian.log_density", gaussian.log_density, numbers("value", "mean", "std"), by_hand(density)),
    Entry(
        "models.gaussian.widen",
        gaussian.widen,
        lambda: {"value": torch.randn(2, 3)},
        is_widened,
    ),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(entry)
