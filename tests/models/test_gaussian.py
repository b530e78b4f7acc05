"""Diagonal Gaussians: the closed forms, their laws, and agreement with torch.distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from planet_lib.models import gaussian

FAST = settings(max_examples=60, deadline=None)


@st.composite
def gaussians(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    """Two diagonal Gaussians [4, S], deviations between 0.05 and 20."""
    size, seed = draw(st.integers(1, 6)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    mean, other_mean = 5 * torch.randn(2, 4, size, generator=generator, dtype=torch.float64)
    low, high = math.log(0.05), math.log(20)
    std, other_std = (low + (high - low) * torch.rand(2, 4, size, generator=generator, dtype=torch.float64)).exp()
    return mean, std, other_mean, other_std


@FAST
@given(gaussians())
def test_the_kl_is_positive_and_agrees_with_torch(pair: tuple[torch.Tensor, ...]) -> None:
    mean, std, other_mean, other_std = pair
    kl = gaussian.kl_divergence(mean, std, other_mean, other_std)
    expected = kl_divergence(Independent(Normal(mean, std), 1), Independent(Normal(other_mean, other_std), 1))
    torch.testing.assert_close(kl, expected, rtol=1e-10, atol=1e-10)
    assert (kl > 0).all()


@FAST
@given(gaussians(), st.floats(1e-3, 1.0), st.booleans())
def test_the_kl_is_zero_for_equal_distributions_and_for_no_others(
    pair: tuple[torch.Tensor, ...], difference: float, in_mean: bool
) -> None:
    mean, std, _, _ = pair
    assert torch.equal(gaussian.kl_divergence(mean, std, mean, std), torch.zeros(4, dtype=mean.dtype))
    other_mean, other_std = mean.clone(), std.clone()
    (other_mean if in_mean else other_std)[:, 0] += difference
    expected = difference**2 / (2 * std[:, 0] ** 2)
    kl = gaussian.kl_divergence(mean, std, other_mean, other_std)
    if in_mean:
        torch.testing.assert_close(kl, expected, rtol=1e-6, atol=1e-14)
    assert (kl > 0).all()


def test_the_kl_by_hand_and_which_way_round() -> None:
    zero, one, two = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    assert gaussian.kl_divergence(zero, one, zero, two).item() == pytest.approx(math.log(2) + 1 / 8 - 1 / 2)
    assert gaussian.kl_divergence(zero, two, zero, one).item() == pytest.approx(-math.log(2) + 2 - 1 / 2)
    assert gaussian.kl_divergence(torch.full((1,), 3.0), one, one, one).item() == pytest.approx(2.0)


@FAST
@given(gaussians())
def test_the_log_density_agrees_with_torch(pair: tuple[torch.Tensor, ...]) -> None:
    mean, std, value, _ = pair
    expected = Independent(Normal(mean, std), 1).log_prob(value)
    torch.testing.assert_close(gaussian.log_density(value, mean, std), expected, rtol=1e-10, atol=1e-10)


def test_the_kl_is_the_mean_difference_of_log_densities() -> None:
    torch.manual_seed(0)
    mean, std, other_mean, other_std = (torch.tensor([x, y]) for x, y in ((0.3, -1), (0.5, 2), (0, 0), (1, 1.5)))
    values = gaussian.sample(mean.expand(200_000, 2), std.expand(200_000, 2))
    gaps = gaussian.log_density(values, mean, std) - gaussian.log_density(values, other_mean, other_std)
    kl = gaussian.kl_divergence(mean, std, other_mean, other_std)
    assert gaps.mean().item() == pytest.approx(kl.item(), abs=5 * gaps.std().item() / math.sqrt(200_000))


def test_a_sample_is_mean_plus_std_times_the_given_noise_and_has_gradients() -> None:
    mean = torch.tensor([1.0, -2.0], requires_grad=True)
    std = torch.tensor([0.5, 3.0], requires_grad=True)
    noise = torch.tensor([2.0, -1.0])
    value = gaussian.sample(mean, std, noise)
    assert value.tolist() == [2.0, -5.0]
    value.sum().backward()
    assert mean.grad is not None
    assert std.grad is not None
    assert mean.grad.tolist() == [1.0, 1.0]
    assert std.grad.tolist() == noise.tolist()


def test_without_noise_the_global_generator_is_used() -> None:
    mean, std = torch.zeros(3, 4), torch.full((3, 4), 2.0)
    torch.manual_seed(5)
    drawn = gaussian.sample(mean, std)
    torch.manual_seed(5)
    assert torch.equal(drawn, gaussian.sample(mean, std, torch.randn(3, 4)))
    assert not torch.equal(drawn, gaussian.sample(mean, std))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_widened_before_the_sum(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mean, other_mean = torch.randn(2, 4, 30).to(dtype)
    std, other_std = (torch.rand(2, 4, 30) + 0.1).to(dtype)
    narrow, wide = (mean, std, other_mean, other_std), [v.float() for v in (mean, std, other_mean, other_std)]
    kl = gaussian.kl_divergence(*narrow)
    assert kl.dtype == torch.float32
    assert torch.equal(kl, gaussian.kl_divergence(*wide))
    density = gaussian.log_density(*narrow[:2], narrow[3])
    assert density.dtype == torch.float32
    assert torch.equal(density, gaussian.log_density(*wide[:2], wide[3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_types_stay_as_they_are(dtype: torch.dtype) -> None:
    value = torch.ones(3, dtype=dtype)
    assert gaussian.widen(value) is value
    assert gaussian.kl_divergence(value, value, value, value).dtype == dtype
