"""The evidence lower bound that a world model is trained on: a pure function that keeps nothing.

Source: PlaNet (arXiv:1811.04551), equation 3; free nats as in Kaixhin/PlaNet (google-research/planet subtracts them
instead, which has the same gradient). Difference: rows that pad a window and rewards that do not exist are left out.
"""

import torch
from torch import Tensor

from planet_lib._shapes import check_bool, check_shape
from planet_lib.models.rollout import check_leading
from planet_lib.models.world_model import WorldModel
from planet_lib.types import Batch, Losses


def elbo_loss(
    model: WorldModel,
    batch: Batch,
    obs: Tensor,
    prior: tuple[Tensor, ...],
    posterior: tuple[Tensor, ...],
    *,
    free_nats: float = 3.0,
    obs_scale: float = 1.0,
    reward_scale: float = 1.0,
    kl_scale: float = 1.0,
) -> Losses:
    """Negative evidence lower bound of a batch of windows, per row, in nats up to a constant.

    total = obs_scale * mean_t 1/2 |o_t - decode(f_t)|^2 + reward_scale * mean_t 1/2 (r_t - reward(f_t))^2
    + kl_scale * mean_t max(KL(posterior_t || prior_t), free_nats), with f_t the posterior's features.

    The squared error of an observation is summed over its pixels or numbers (a Gaussian of unit variance without its
    constant). The KL is summed over latent dimensions, and clipped per row before the mean. Means are over valid rows
    (batch.mask); the reward's also leaves out rows where is_first holds, since no reward exists there.

    Args:
        model: the decoder, reward head and cell (for its features and divergence).
        batch: the windows, of which reward, is_first and mask are read. What stands in padded rows does not count, but
            NaN there would spoil the gradient.
        obs: [T, B, C, Y, X] or [T, B, N] floats, the very ones that the encoder saw.
        prior: state [T, B, ...] from `observe`.
        posterior: state [T, B, ...] from `observe`.
        free_nats: nats per row that cost nothing; below them the KL has no gradient.
        obs_scale: weight of the observation term.
        reward_scale: weight of the reward term; 10 in google-research/planet.
        kl_scale: weight of the divergence.

    Returns:
        `Losses`, scalars: total, the unscaled terms, the raw KL and the clipped one.

    Raises:
        ValueError: free_nats is negative, or shapes do not fit, those of what the model's parts return included.
        TypeError: obs is not floating, or batch.is_first or batch.mask not bool.

    Source: arXiv:1811.04551, equation 3 and appendix A.

    Example:
        >>> from planet_lib import Decoder, RewardHead, RSSMCell, VectorEncoder, observe
        >>> encoder, cell = VectorEncoder(5, embed_dim=16), RSSMCell(action_dim=1, embed_dim=16)
        >>> model = WorldModel(encoder, cell, Decoder(230, (5,)), RewardHead(230))
        >>> flags = torch.zeros(7, 2, dtype=torch.bool)
        >>> batch = Batch(obs=torch.zeros(7, 2, 5), action=torch.zeros(7, 2, 1), reward=torch.zeros(7, 2),
        ...     is_first=flags, terminated=flags, mask=~flags)
        >>> prior, posterior = observe(cell, encoder(batch.obs), batch.action, batch.is_first)
        >>> losses = elbo_loss(model, batch, batch.obs, prior, posterior, free_nats=3.0)
        >>> bool(losses.total >= losses.kl_clipped >= 3.0)
        True
    """
    if not free_nats >= 0:
        raise ValueError(f"free_nats must be at least 0, got {free_nats}")
    check_shape("batch.mask", batch.mask, "T B")
    length, batch_size = batch.mask.shape
    for name in ("reward", "is_first"):
        check_shape(f"batch.{name}", getattr(batch, name), "T B", T=length, B=batch_size, because="from batch.mask")
    check_bool("batch.mask", batch.mask)
    check_bool("batch.is_first", batch.is_first)
    if not obs.is_floating_point():
        raise TypeError(
            f"obs must be the floats that the encoder saw, got {obs.dtype}; planet_lib.dequantise makes them of uint8"
        )
    for name, state in (("prior", prior), ("posterior", posterior)):
        check_leading(name, state, length, batch_size, because="from batch.mask")
    features = model.cell.features(posterior)
    decoded: Tensor = model.decoder(features)
    if decoded.shape != obs.shape:
        raise ValueError(f"obs must be {list(decoded.shape)} (what the decoder predicts), got {list(obs.shape)}")
    predicted: Tensor = model.reward_head(features)
    check_shape("the reward head's output", predicted, "T B", T=length, B=batch_size, because="from batch.mask")
    obs_error = 0.5 * (decoded - obs).square().flatten(2).sum(-1)
    has_reward = batch.mask & ~batch.is_first
    # Left out before the square, so that NaN where no reward exists stays out of the gradient too.
    reward_error = 0.5 * torch.where(has_reward, predicted - batch.reward, 0.0).square()
    kl = model.cell.divergence(posterior, prior)
    check_shape("the cell's divergence", kl, "T B", T=length, B=batch_size, because="from batch.mask")
    obs_term = masked_mean(obs_error, batch.mask)
    reward_term = masked_mean(reward_error, has_reward)
    kl_clipped = masked_mean(kl.clamp(min=free_nats), batch.mask)
    return Losses(
        total=obs_scale * obs_term + reward_scale * reward_term + kl_scale * kl_clipped,
        obs=obs_term,
        reward=reward_term,
        kl=masked_mean(kl, batch.mask),
        kl_clipped=kl_clipped,
    )


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` holds; 0 where it holds nowhere. Values outside never matter, not even NaN.

    Their gradient is zero, too; what made a NaN turns it into NaN on the way back, so pad with finite numbers.

    Args:
        values: any shape.
        mask: bool, the same shape.

    Returns:
        A scalar.

    Example:
        >>> masked_mean(torch.tensor([1.0, 2.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(1.5000)
    """
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
