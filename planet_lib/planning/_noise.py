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
    # Python's own numbers, so that the filter is a constant wherever this is compiled or captured.
    power = [max(min(k, horizon - k), 1) ** -beta for k in range(horizon)]
    scale = math.sqrt(sum(power) / horizon)
    response = [
        sum(math.sqrt(p) * math.cos(2 * math.pi * k * lag / horizon) for k, p in enumerate(power)) / horizon / scale
        for lag in range(horizon)
    ]
    rows = [[response[(row - column) % horizon] for column in range(horizon)] for row in range(horizon)]
    matrix = torch.tensor(rows, dtype=noise.dtype, device=noise.device)
    return (matrix @ noise.flatten(1)).reshape(noise.shape)
