"""Latent overshooting: train predictions of several steps, all in latent space. A pure function.

Source: PlaNet (arXiv:1811.04551), section 4, equation 7. Differences: distance 1 is the ordinary KL and already part of
the ELBO, so it is not counted again; chains stop at episode ends; distances that no chain of the window reaches add
nothing.
"""

from collections.abc import Sequence

from torch import Tensor

from planet_lib._shapes import check_bool, check_shape
from planet_lib.models.rollout import check_leading, map_state
from planet_lib.models.world_model import WorldModel
from planet_lib.objectives.elbo import masked_mean
from planet_lib.types import Batch


def latent_overshooting(
    model: WorldModel,
    batch: Batch,
    prior: tuple[Tensor, ...],
    posterior: tuple[Tensor, ...],
    *,
    distance: int,
    free_nats: float = 3.0,
    weights: Sequence[float] | None = None,
    stop_start_gradient: bool = False,
    noise: Tensor | None = None,
) -> Tensor:
    """KL of open-loop predictions 2 to `distance` steps ahead from the posteriors they should meet.

    loss = 1/distance * sum_{d=2}^{distance} beta_d * mean_t max(KL(posterior_t || p(s_t | s_{t-d})), free_nats)

    The posteriors as targets carry no gradient. Chains start from every posterior of the window, not from the zero
    state, and run all at once: at distance d the state predicted for row t comes from the one predicted for row t-1 at
    distance d-1, and distance 1 is the ordinary prior. A chain that would cross an is_first, a padded row or the end of
    the window counts no further. The mean is over the rows that distance d reaches; a distance without any adds
    nothing, and so does distance 1.

    Args:
        model: its cell is used.
        batch: the windows, of which action, is_first and mask are read.
        prior: state [T, B, ...] from `observe`, the start of every chain at distance 1.
        posterior: state [T, B, ...] from `observe`, the targets, whose gradient is stopped.
        distance: the largest distance in rows; 1 gives zero.
        free_nats: nats per row and distance that cost nothing.
        weights: beta_d for d = 2 to distance, distance - 1 numbers; ones when None.
        stop_start_gradient: stop the gradient into the state a chain starts from; it flows in the original.
        noise: [distance, T, B, noise_dim] standard normal for d = 1, 2, ..., indexed by the target's row; drawn when
            None. That of d = 1 is read only with stop_start_gradient, where the first step is taken anew.

    Returns:
        A scalar, to be added to the total with a scale of your choice.

    Raises:
        ValueError: distance below 1, free_nats negative, a wrong number of weights, or shapes that do not fit, that of
            the cell's divergence included.
        TypeError: batch.is_first or batch.mask is not bool.

    Source: arXiv:1811.04551, equation 7; google-research/planet tools/overshooting.py.

    Example:
        >>> from planet_lib import Decoder, RewardHead, SSMCell, VectorEncoder, observe
        >>> import torch
        >>> encoder, cell = VectorEncoder(5, embed_dim=16), SSMCell(action_dim=1, embed_dim=16)
        >>> model = WorldModel(encoder, cell, Decoder(30, (5,)), RewardHead(30))
        >>> flags = torch.zeros(7, 2, dtype=torch.bool)
        >>> batch = Batch(obs=torch.zeros(7, 2, 5), action=torch.zeros(7, 2, 1), reward=torch.zeros(7, 2),
        ...     is_first=flags, terminated=flags, mask=~flags)
        >>> prior, posterior = observe(cell, encoder(batch.obs), batch.action, batch.is_first)
        >>> float(latent_overshooting(model, batch, prior, posterior, distance=1))
        0.0
        >>> bool(latent_overshooting(model, batch, prior, posterior, distance=4) >= 3 * 3.0 / 4)
        True
    """
    if distance < 1:
        raise ValueError(f"distance must be at least 1, got {distance}")
    if not free_nats >= 0:
        raise ValueError(f"free_nats must be at least 0, got {free_nats}")
    if weights is None:
        weights = [1.0] * (distance - 1)
    if len(weights) != distance - 1:
        raise ValueError(f"weights must be {distance - 1} numbers, for distances 2 to {distance}, got {len(weights)}")
    check_shape("batch.mask", batch.mask, "T B")
    length, batch_size = batch.mask.shape
    check_shape("batch.is_first", batch.is_first, "T B", T=length, B=batch_size, because="from batch.mask")
    check_bool("batch.mask", batch.mask)
    check_bool("batch.is_first", batch.is_first)
    check_shape("batch.action", batch.action, "T B A", T=length, B=batch_size, because="from batch.mask")
    for name, state in (("prior", prior), ("posterior", posterior)):
        check_leading(name, state, length, batch_size, because="from batch.mask")
    if noise is not None:
        check_shape("noise", noise, "D T B S", D=distance, T=length, B=batch_size, S=model.cell.noise_dim)
    cell = model.cell
    target = map_state(Tensor.detach, posterior)
    same_episode = ~batch.is_first & batch.mask
    # Row i of `chain` predicts row i + d of the window at distance d.
    chain, alive = map_state(lambda field: field[1:], prior), same_episode[1:] & batch.mask[:-1]
    if stop_start_gradient:
        start = map_state(lambda field: field[:-1], target)
        chain = cell.prior(start, batch.action[1:], None if noise is None else noise[0, 1:])
    loss = batch.action.new_zeros(())
    for d in range(2, min(distance, length - 1) + 1):
        step_noise = None if noise is None else noise[d - 1, d:]
        chain = cell.prior(map_state(lambda field: field[:-1], chain), batch.action[d:], step_noise)
        alive = alive[:-1] & same_episode[d:]
        kl = cell.divergence(map_state(lambda field, first=d: field[first:], target), chain)
        check_shape("the cell's divergence", kl, "T B", T=length - d, B=batch_size, because="from batch.mask")
        loss = loss + weights[d - 2] * masked_mean(kl.clamp(min=free_nats), alive)
    return loss / distance
