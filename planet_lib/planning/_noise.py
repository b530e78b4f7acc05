"""Coloured noise: candidates whose actions change slowly. For the planners; knows no dynamics and no returns."""

import math

import torch
from torch import Tensor


def colour(noise: Tensor, beta: float) -> Tensor:
    """Return standard normal noise [H, ...] whose power over the H steps falls as 1 / frequency^beta.

    A circular filter over the first axis, which leaves each number standard normal: y = F^-1 (s F x) with the Fourier
    transform F and s_k in proportion to max(k, 1)^(-beta / 2). beta = 0 changes nothing; the larger it is, the more
    slowly the noise moves.

    Source: Timmer & Koenig 1995, as used by Pinneri et al. 2020 (arXiv:2008.06389), section 3.1.

    Example:
        >>> x = torch.randn(12, 5000)
        >>> torch.equal(colour(x, 0.0), x), 0.9 < float(colour(x, 2.0).std()) < 1.1
        (True, True)
    """
    horizon = noise.shape[0]
    if beta == 0 or horizon == 1:
        return noise
    # Made on the device: a matrix from the host would have to be waited for.
    step = torch.arange(horizon, dtype=torch.float64, device=noise.device)
    root = torch.minimum(step, horizon - step).clamp(min=1) ** (-beta / 2)
    root = root / root.square().mean().sqrt()
    response = (root[:, None] * torch.cos(2 * math.pi / horizon * step[:, None] * step)).mean(0)
    matrix = response[(step[:, None] - step).remainder(horizon).long()].to(noise.dtype)
    return (matrix @ noise.flatten(1)).reshape(noise.shape)
