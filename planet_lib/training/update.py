"""One update of a world model from one batch. Knows no loop, no files and no environment."""

from typing import NamedTuple

import torch
from torch import Tensor

from planet_lib.data.pixels import dequantise
from planet_lib.models import WorldModel, observe
from planet_lib.objectives import elbo_loss, latent_overshooting
from planet_lib.types import Batch, Losses


class UpdateResult(NamedTuple):
    """What one update measured, as detached scalars; grad_norm is the gradient's global norm before clipping."""

    losses: Losses
    overshooting: Tensor
    grad_norm: Tensor


def update(
    model: WorldModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    free_nats: float = 3.0,
    obs_scale: float = 1.0,
    reward_scale: float = 1.0,
    kl_scale: float = 1.0,
    overshooting_distance: int = 1,
    overshooting_scale: float = 1.0,
    grad_clip: float = 1000.0,
) -> UpdateResult:
    """Take one optimiser step on the ELBO, plus latent overshooting where distance > 1.

    uint8 frames are turned into floats once, with fresh noise, for encoder and loss alike; vectors are used as they
    are. If the gradient is not finite, nothing is changed.

    Args:
        model: the world model, on the device where the batch is or shall be moved to.
        optimizer: over the model's parameters.
        batch: windows [T, B, ...].
        free_nats: as in `elbo_loss`, and so the scales.
        obs_scale: weight of the observation term.
        reward_scale: weight of the reward term.
        kl_scale: weight of the divergence.
        overshooting_distance: as in `latent_overshooting`; 1 is none.
        overshooting_scale: weight of latent overshooting.
        grad_clip: largest global norm of the gradient.

    Returns:
        `UpdateResult`.

    Raises:
        FloatingPointError: the gradient is not finite; the message names the terms of the loss that are not.

    Source: arXiv:1811.04551, algorithm 1, lines 5 to 7.

    Example:
        >>> from planet_lib import Decoder, RewardHead, RSSMCell, VectorEncoder
        >>> encoder, cell = VectorEncoder(5, embed_dim=16), RSSMCell(action_dim=1, embed_dim=16)
        >>> model = WorldModel(encoder, cell, Decoder(230, (5,)), RewardHead(230))
        >>> flags = torch.zeros(7, 2, dtype=torch.bool)
        >>> batch = Batch(obs=torch.ones(7, 2, 5), action=torch.zeros(7, 2, 1), reward=torch.ones(7, 2),
        ...     is_first=flags, terminated=flags, mask=~flags)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> first, *_, last = [update(model, optimizer, batch) for _ in range(20)]
        >>> bool(last.losses.total < first.losses.total)
        True
    """
    batch = batch.to(next(model.parameters()).device)
    obs = dequantise(batch.obs) if batch.obs.dtype == torch.uint8 else batch.obs
    prior, posterior = observe(model.cell, model.encoder(obs), batch.action, batch.is_first)
    losses = elbo_loss(
        model,
        batch,
        obs,
        prior,
        posterior,
        free_nats=free_nats,
        obs_scale=obs_scale,
        reward_scale=reward_scale,
        kl_scale=kl_scale,
    )
    overshooting = losses.total.new_zeros(())
    if overshooting_distance > 1:
        overshooting = latent_overshooting(
            model, batch, prior, posterior, distance=overshooting_distance, free_nats=free_nats
        )
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(losses.total + overshooting_scale * overshooting)
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    if not torch.isfinite(grad_norm):
        optimizer.zero_grad(set_to_none=True)
        bad = [name for name, value in losses._asdict().items() if not torch.isfinite(value)] or ["only the gradient"]
        raise FloatingPointError(
            f"the gradient must be finite, got norm {grad_norm.item()} (not finite: {', '.join(bad)})"
        )
    optimizer.step()
    return UpdateResult(Losses(*(value.detach() for value in losses)), overshooting.detach(), grad_norm.detach())
