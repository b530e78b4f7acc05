"""Diagonal Gaussians in closed form: sampling with given noise, KL divergence, log-density.

Knows nothing of cells or time. Every function works on any leading axes and treats the last one as the dimensions of
one diagonal Gaussian. The closed forms trace under `torch.compile(fullgraph=True)`, which
`torch.distributions.kl_divergence` does not.
"""

import math

import torch
from torch import Tensor

from planet_lib._shapes import check_dense, check_device


def sample(mean: Tensor, std: Tensor, noise: Tensor | None = None) -> Tensor:
    """Draw from N(mean, std^2) by the reparametrisation mean + std * noise.

    Args:
        mean: [..., S].
        std: [..., S], positive.
        noise: [..., S] standard normal; drawn from torch's global generator when None. Given noise replays a draw.

    Returns:
        A sample [..., S], with gradients to mean and std.

    Raises:
        ValueError: shapes that do not broadcast, or tensors on several devices.
        TypeError: an argument that is no dense tensor of floats.

    Example:
        >>> sample(torch.tensor([1.0]), torch.tensor([2.0]), noise=torch.tensor([0.5]))
        tensor([2.])
    """
    given = {} if noise is None else {"noise": noise}
    mean, std, *_ = _checked(mean=mean, std=std, **given)
    # As large as mean and std together, where one has an axis that the other lacks.
    drawn = torch.randn_like(mean if mean.shape == std.shape else mean + std) if noise is None else noise
    result = mean + std * drawn
    if noise is not None and result.shape != mean.shape and result.shape != (mean + std).shape:
        raise ValueError(f"noise must be {list((mean + std).shape)}, as mean and std, got {list(noise.shape)}")
    return result


def kl_divergence(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(other_mean, other_std^2)) in nats, summed over the last axis.

    Per dimension: ln(other_std / std) + (std^2 + (mean - other_mean)^2) / (2 other_std^2) - 1/2. It is never negative,
    zero only for equal distributions, and not symmetric: the first one is what the expectation is taken over.
    Types narrower than float32 are widened to it first.

    Args:
        mean: [..., S] of the first distribution.
        std: [..., S] of the first, positive.
        other_mean: [..., S] of the second.
        other_std: [..., S] of the second, positive.

    Returns:
        [...] nats.

    Example:
        >>> zero, one = torch.zeros(3), torch.ones(3)
        >>> kl_divergence(one, one, zero, one)
        tensor(1.5000)
    """
    given = _checked(mean=mean, std=std, other_mean=other_mean, other_std=other_std)
    mean, std, other_mean, other_std = (widen(value) for value in given)
    ratio = std / other_std
    shift = (mean - other_mean) / other_std
    return (0.5 * (ratio.square() + shift.square() - 1.0) - ratio.log()).sum(-1)


def log_density(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density ln N(value; mean, std^2) in nats, summed over the last axis.

    Args:
        value: [..., S], where the density is wanted.
        mean: [..., S].
        std: [..., S], positive.

    Returns:
        [...] nats, in float32 at least.

    Example:
        >>> log_density(torch.zeros(1), torch.zeros(1), torch.ones(1))
        tensor(-0.9189)
    """
    value, mean, std = (widen(each) for each in _checked(value=value, mean=mean, std=std))
    return (-0.5 * ((value - mean) / std).square() - std.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)


def widen(value: Tensor) -> Tensor:
    """Return `value` in float32 where its type is narrower (bfloat16, float16), else as it is.

    Example:
        >>> widen(torch.zeros(1, dtype=torch.bfloat16)).dtype, widen(torch.zeros(1, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    check_dense("value", value)
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def _checked(**values: Tensor) -> list[Tensor]:
    """Return whole numbers as floats, or raise unless these are dense tensors [..., S] on one device that broadcast."""
    (first, like), *others = values.items()
    for name, value in values.items():
        check_dense(name, value, " [..., S]")
        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"{name} must be floating, got {value.dtype}; convert it with .float()")
        if value.ndim == 0:
            raise ValueError(f"{name} must be [..., S], got []")
    for name, value in others:
        check_device(name, value, like.device, because=f"as {first}")
    if any(value.shape != like.shape for _, value in others):
        _check_broadcast(values)
    return [value if value.is_floating_point() else value.float() for value in values.values()]


def _check_broadcast(values: dict[str, Tensor]) -> None:
    for axis in range(1, 1 + max(value.ndim for value in values.values())):
        sizes = {value.shape[-axis] for value in values.values() if value.ndim >= axis}
        if len(sizes - {1}) > 1:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
            raise ValueError(f"{', '.join(values)} must have shapes [..., S] that broadcast, got {shapes}")
