"""The evidence lower bound that a world model is trained on: a pure function that keeps nothing.

Source: PlaNet (arXiv:1811.04551), equation 3; free nats as in Kaixhin/PlaNet (google-research/planet subtracts them
instead, which has the same gradient). Difference: rows that pad a window and rewards that do not exist are left out.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planet_lib._shapes import check_bool, check_scales, check_shape, is_finite, shown
from planet_lib.models.cells import Cell
from planet_lib.models.gaussian import widen
from planet_lib.models.rollout import map_state
from planet_lib.models.world_model import WorldModel
from planet_lib.objectives._terms import (
    check_obs_scale,
    check_windows,
    masked_mean,
    named_entries,
    observation_errors,
    observation_scales,
)
from planet_lib.types import Batch, Losses, Observation


def elbo_loss(
    model: WorldModel,
    batch: Batch,
    obs: Observation,
    prior: tuple[Tensor, ...],
    posterior: tuple[Tensor, ...],
    *,
    free_nats: float = 3.0,
    obs_scale: float | Mapping[str, float] = 1.0,
    reward_scale: float = 1.0,
    kl_scale: float = 1.0,
    kl_balance: float | None = None,
    global_kl_scale: float = 0.0,
    continue_scale: float = 1.0,
) -> Losses:
    """Negative evidence lower bound of a batch of windows, per row, in nats up to a constant.

    total = obs_scale * mean_t 1/2 |o_t - decode(f_t)|^2 + reward_scale * mean_t 1/2 (r_t - reward(f_t))^2
    + kl_scale * mean_t max(KL(posterior_t || prior_t), free_nats), with f_t the posterior's features,
    + continue_scale * mean_t H(goes on_t, sigmoid(continue(f_t))), if the model has a continue head,
    + global_kl_scale * mean_t KL(posterior_t || N(0, I)), if that scale is positive.

    The squared error of an observation is summed over its pixels or numbers (a Gaussian of unit variance without its
    constant); a dictionary has one such term for each entry. The KL is summed over latent dimensions, and clipped per
    row before the mean. H is the cross entropy in nats; an episode goes on where it is not terminated. Means are over
    valid rows (batch.mask); the reward's also leaves out rows where is_first holds, since no reward exists there.

    KL balancing trains prior and posterior at different speeds: with sg for a stopped gradient, the divergence is
    kl_balance * KL(sg(posterior) || prior) + (1 - kl_balance) * KL(posterior || sg(prior)), of the same value. 0.8 is
    DreamerV2's. Note that 0.5 halves the gradients of the plain KL.

    Args:
        model: the decoder, the heads and the cell (for its features and divergence).
        batch: the windows, of which reward, is_first, mask and, by a continue head, terminated are read. What stands in
            padded rows does not count, but NaN there would spoil the gradient.
        obs: [T, B, C, Y, X] or [T, B, N] floats, the very ones that the encoder saw, or a dictionary of such.
        prior: state [T, B, ...] from `observe`.
        posterior: state [T, B, ...] from `observe`.
        free_nats: nats per row that cost nothing; below them the KL has no gradient.
        obs_scale: weight of the observation term; for a dictionary also one number for each entry, by its name.
        reward_scale: weight of the reward term; 10 in google-research/planet.
        kl_scale: weight of the divergence.
        kl_balance: share of the divergence's gradient that trains the prior, 0 to 1; None is the plain KL.
        global_kl_scale: weight of the divergence from the global prior; the cell must have a `global_prior`.
        continue_scale: weight of the continue head's term.

    Returns:
        `Losses`. raw: "obs" (or "obs/NAME" for each entry), "reward", "kl", "kl_clipped", and where they exist
        "continue" and "global_kl". scaled: the same without "kl_clipped", "kl" being the clipped one times its scale.

    Raises:
        ValueError: free_nats is negative, a scale negative or not finite, kl_balance not between 0 and 1, obs_scale
            names other entries than obs, or shapes do not fit, those of what the model's parts return included.
        TypeError: obs is not floating, a flag of the batch not bool, an argument of another kind or type (prior and
            posterior must be the cell's own), or the cell has no global prior where one is asked for.

    Source: arXiv:1811.04551, equation 3 and appendix A; KL balancing: arXiv:2010.02193, section 2; the global prior:
    google-research/planet, its first version.

    Example:
        >>> from planet_lib import Decoder, RewardHead, RSSMCell, VectorEncoder, observe
        >>> encoder, cell = VectorEncoder(5, embed_dim=16), RSSMCell(action_dim=1, embed_dim=16)
        >>> model = WorldModel(encoder, cell, Decoder(230, (5,)), RewardHead(230))
        >>> flags = torch.zeros(7, 2, dtype=torch.bool)
        >>> batch = Batch(obs=torch.zeros(7, 2, 5), action=torch.zeros(7, 2, 1), reward=torch.zeros(7, 2),
        ...     is_first=flags, terminated=flags, mask=~flags)
        >>> prior, posterior = observe(cell, encoder(batch.obs), batch.action, batch.is_first)
        >>> losses = elbo_loss(model, batch, batch.obs, prior, posterior, free_nats=3.0)
        >>> sorted(losses.raw), bool(losses.total >= losses.raw["kl_clipped"] >= 3.0)
        (['kl', 'kl_clipped', 'obs', 'reward'], True)
    """
    fields = ("reward",) if getattr(model, "continue_head", None) is None else ("reward", "terminated")
    length, batch_size = check_windows(model, batch, prior, posterior, *fields, free_nats=free_nats)
    check_obs_scale(obs_scale)
    check_scales(reward_scale=reward_scale, kl_scale=kl_scale)
    check_scales(global_kl_scale=global_kl_scale, continue_scale=continue_scale)
    if kl_balance is not None and (not is_finite(kl_balance) or not 0 <= kl_balance <= 1):
        raise ValueError(f"kl_balance must be between 0 and 1, or None for the plain KL, got {shown(kl_balance)}")
    if model.continue_head is not None:
        check_bool("batch.terminated", batch.terminated)
    global_prior: Callable[..., tuple[Tensor, ...]] | None = getattr(model.cell, "global_prior", None)
    if global_kl_scale > 0 and global_prior is None:
        got = type(model.cell).__name__
        raise TypeError(f"global_kl_scale needs a cell with a method global_prior(state), got {got} without one")
    entries = named_entries(obs, batch.mask)
    scales = {**observation_scales(obs_scale, entries), "reward": float(reward_scale), "kl": float(kl_scale)}
    features = model.cell.features(posterior)
    rows = observation_errors(model.decoder(features), entries)
    raw = {name: masked_mean(error, batch.mask) for name, error in rows.items()}

    predicted: Tensor = model.reward_head(features)
    check_shape("the reward head's output", predicted, "T B", T=length, B=batch_size, because="from batch.mask")
    has_reward = batch.mask & ~batch.is_first
    # Left out before the square, so that NaN where no reward exists stays out of the gradient too.
    reward_error = 0.5 * torch.where(has_reward, widen(predicted) - batch.reward, 0.0).square()
    raw["reward"] = masked_mean(reward_error, has_reward)

    kl = _divergence(model.cell, posterior, prior, kl_balance)
    check_shape("the cell's divergence", kl, "T B", T=length, B=batch_size, because="from batch.mask")
    raw["kl"] = masked_mean(kl, batch.mask)
    raw["kl_clipped"] = masked_mean(kl.clamp(min=float(free_nats)), batch.mask)
    if model.continue_head is not None:
        logits = widen(model.continue_head(features))
        check_shape("the continue head's output", logits, "T B", T=length, B=batch_size, because="from batch.mask")
        goes_on = (~batch.terminated).to(logits.dtype)
        raw["continue"] = masked_mean(F.binary_cross_entropy_with_logits(logits, goes_on, reduction="none"), batch.mask)
        scales["continue"] = float(continue_scale)
    if global_kl_scale > 0 and global_prior is not None:
        raw["global_kl"] = masked_mean(model.cell.divergence(posterior, global_prior(posterior)), batch.mask)
        scales["global_kl"] = float(global_kl_scale)
    scaled = {name: scale * raw["kl_clipped" if name == "kl" else name] for name, scale in scales.items()}
    return Losses(total=torch.stack([*scaled.values()]).sum(), raw=raw, scaled=scaled)


def _divergence(
    cell: Cell[Any], posterior: tuple[Tensor, ...], prior: tuple[Tensor, ...], kl_balance: float | None
) -> Tensor:
    """KL(posterior || prior) per row; balanced, its gradient is shared out between the two."""
    if kl_balance is None:
        return cell.divergence(posterior, prior)
    to_prior = cell.divergence(map_state(Tensor.detach, posterior), prior)
    to_posterior = cell.divergence(posterior, map_state(Tensor.detach, prior))
    return float(kl_balance) * to_prior + (1 - float(kl_balance)) * to_posterior
