"""Latent overshooting: train predictions of several steps, all in latent space. A pure function.

Source: PlaNet (arXiv:1811.04551), section 4, equation 7. Differences: distance 1 is the ordinary KL and already part of
the ELBO, so it is not counted again; chains stop at episode ends; distances that no chain of the window reaches add
nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from planet_lib._shapes import (
    check_count,
    check_device,
    check_dtype,
    check_flag,
    check_floating,
    check_last,
    check_scales,
    check_shape,
    shown,
)
from planet_lib.models.gaussian import widen
from planet_lib.models.rollout import check_leading, map_state
from planet_lib.models.world_model import WorldModel
from planet_lib.objectives._terms import (
    check_obs_scale,
    check_windows,
    named_entries,
    observation_errors,
    observation_scales,
)
from planet_lib.types import Batch, Losses, Observation


def latent_overshooting(
    model: WorldModel,
    batch: Batch,
    prior: tuple[Tensor, ...],
    posterior: tuple[Tensor, ...],
    *,
    distance: int,
    obs: Observation | None = None,
    free_nats: float = 3.0,
    kl_scale: float = 1.0,
    reward_scale: float = 0.0,
    obs_scale: float | Mapping[str, float] = 0.0,
    weights: Sequence[float] | None = None,
    stop_start_gradient: bool = False,
    chunk_size: int | None = None,
    noise: Tensor | None = None,
) -> Losses:
    """Errors of open-loop predictions 2 to `distance` steps ahead: in latent space, and of rewards and observations.

    term = 1/distance * sum_{d=2}^{distance} beta_d * mean_t e_t(d), where s_t(d) is drawn from p(s_t | s_{t-d}) and

    - kl: e_t(d) = max(KL(posterior_t || p(s_t | s_{t-d})), free_nats)
    - reward: e_t(d) = 1/2 (r_t - reward(features(s_t(d))))^2
    - obs: e_t(d) = 1/2 |o_t - decode(features(s_t(d)))|^2, summed over pixels or numbers

    The posteriors as targets carry no gradient. Chains start from every posterior of the window, not from the zero
    state, and run all at once: at distance d the state predicted for row t comes from the one predicted for row t-1 at
    distance d-1, and distance 1 is the ordinary prior. A chain that would cross an is_first, a padded row or the end of
    the window counts no further. The mean is over the rows that distance d reaches; a distance without any adds
    nothing, and so does distance 1.

    Args:
        model: its cell is used, and for their terms the reward head and the decoder.
        batch: the windows, of which action, is_first and mask are read, and for its term reward.
        prior: state [T, B, ...] from `observe`, the start of every chain at distance 1.
        posterior: state [T, B, ...] from `observe`, the targets, whose gradient is stopped.
        distance: the largest distance in rows; 1 gives zero.
        obs: for the observation term, the floats that the encoder saw, or a dictionary of such.
        free_nats: nats per row and distance that cost nothing.
        kl_scale: weight of the divergences; 0 keeps them as a figure.
        reward_scale: weight of the rewards' term; 0 leaves it out.
        obs_scale: weight of the observations' term; 0 leaves it out, and for a dictionary one number per entry will do.
            It decodes about T distance / 2 frames for each of the B windows: give chunk_size too.
        weights: beta_d for d = 2 to distance, distance - 1 numbers; ones when None.
        stop_start_gradient: stop the gradient into the state a chain starts from; it flows in the original.
        chunk_size: windows (of B) handled at a time. Less memory for more time: what happens inside a chunk is computed
            anew in the backward pass. Same numbers; None takes all at once and keeps everything.
        noise: [distance, T, B, noise_dim] standard normal for d = 1, 2, ..., indexed by the target's row; drawn when
            None. That of d = 1 is read only with stop_start_gradient, where the first step is taken anew.

    Returns:
        `Losses`, whose total is to be added to the ELBO's. raw: "kl", "kl_clipped" and, where their scale is positive,
        "reward" and "obs" (or "obs/NAME" for each entry). scaled: those of the total, "kl" being the clipped one.

    Raises:
        ValueError: distance or chunk_size no whole number of at least 1, free_nats negative, a scale or weight negative
            or not finite, a wrong number of weights, obs
            missing for its term, or shapes that do not fit, those of what the model's parts return included.
        TypeError: batch.is_first or batch.mask is not bool, or obs not floating.

    Source: arXiv:1811.04551, equation 7; google-research/planet tools/overshooting.py. The reward's term is that of
    Kaixhin/PlaNet; the observations' that of equation 6, which the paper leaves out for its cost.

    Example:
        >>> from planet_lib import Decoder, RewardHead, SSMCell, VectorEncoder, observe
        >>> encoder, cell = VectorEncoder(5, embed_dim=16), SSMCell(action_dim=1, embed_dim=16)
        >>> model = WorldModel(encoder, cell, Decoder(30, (5,)), RewardHead(30))
        >>> flags = torch.zeros(7, 2, dtype=torch.bool)
        >>> batch = Batch(obs=torch.zeros(7, 2, 5), action=torch.zeros(7, 2, 1), reward=torch.zeros(7, 2),
        ...     is_first=flags, terminated=flags, mask=~flags)
        >>> prior, posterior = observe(cell, encoder(batch.obs), batch.action, batch.is_first)
        >>> float(latent_overshooting(model, batch, prior, posterior, distance=1).total)
        0.0
        >>> bool(latent_overshooting(model, batch, prior, posterior, distance=4).total >= 3 * 3.0 / 4)
        True
    """
    check_count(distance=distance, chunk_size=1 if chunk_size is None else chunk_size)
    check_flag(stop_start_gradient=stop_start_gradient)
    weights = None if weights is None else _checked_weights(weights, distance)
    length, batch_size = check_windows(model, batch, prior, posterior, "reward", free_nats=free_nats)
    _check_drawn(model, batch, noise, posterior, distance)
    scales, entries = _terms(obs, batch.mask, kl_scale, reward_scale, obs_scale)
    check_leading("obs", tuple(entries.values()), length, batch_size, because="from batch.mask")
    reach = max(min(distance, length - 1), 0)
    alive = _alive(batch.is_first, batch.mask, reach)
    dtype = widen(batch.action).dtype
    chains = partial(
        _chain_terms,
        model,
        names=tuple(scales),
        free_nats=float(free_nats),
        stop_start_gradient=stop_start_gradient,
        # What one row of distance d = 2, 3, ... adds to a term: its share of the mean over the rows that d reaches.
        shares=[
            (1.0 if weights is None else weights[d - 2]) / distance / alive[d - 1].sum(dtype=dtype).clamp(min=1)
            for d in range(2, reach + 1)
        ],
        recompute=chunk_size is not None,
    )
    action = batch.action.masked_fill(batch.is_first.unsqueeze(-1), 0.0)  # no chain that counts passes there
    windows = _Windows(action, batch.reward, entries, prior, map_state(Tensor.detach, posterior), alive, noise)
    if chunk_size is None:
        terms = chains(windows)
    else:
        if noise is None and model.cell.noise_dim:  # drawn beforehand, since every chunk is computed twice
            like = widen(batch.action)
            noise = like.new_empty(reach, length, batch_size, model.cell.noise_dim).normal_()
            windows = windows._replace(noise=noise)
        parts = [slice(first, first + chunk_size) for first in range(0, batch_size, chunk_size)]
        terms = torch.stack([checkpoint(chains, windows.columns(part), use_reentrant=False) for part in parts]).sum(0)
    clipped, *others = terms[1:].unbind()
    raw = {"kl": terms[0], "kl_clipped": clipped, **dict(zip([*scales][1:], others, strict=True))}
    scaled = {name: scale * raw["kl_clipped" if name == "kl" else name] for name, scale in scales.items()}
    return Losses(total=torch.stack([*scaled.values()]).sum(), raw=raw, scaled=scaled)


class _Windows(NamedTuple):
    """What chains are made from, time first; `alive[d - 1]` tells which rows, from d on, a chain of d steps meets."""

    action: Tensor
    reward: Tensor
    obs: dict[str, Tensor]
    prior: Any
    target: Any
    alive: list[Tensor]
    noise: Tensor | None

    def columns(self, part: slice) -> "_Windows":
        """Some of the windows."""
        return _Windows(
            action=self.action[:, part],
            reward=self.reward[:, part],
            obs={name: value[:, part] for name, value in self.obs.items()},
            prior=map_state(lambda field: field[:, part], self.prior),
            target=map_state(lambda field: field[:, part], self.target),
            alive=[rows[:, part] for rows in self.alive],
            noise=None if self.noise is None else self.noise[:, :, part],
        )


def _chain_terms(
    model: WorldModel,
    windows: _Windows,
    *,
    names: tuple[str, ...],
    free_nats: float,
    stop_start_gradient: bool,
    shares: Sequence[Tensor],
    recompute: bool,
) -> Tensor:
    """The terms, unscaled: kl, kl_clipped and, as far as they are named, reward and observations."""
    cell, (action, reward, obs, prior, target, alive, noise) = model.cell, windows
    # Row i of `chain` predicts row i + d of the window at distance d.
    chain = map_state(lambda field: field[1:], prior)
    if stop_start_gradient:
        start = map_state(lambda field: field[:-1], target)
        chain = cell.prior(start, action[1:], None if noise is None else noise[0, 1:])
    total = widen(action).new_zeros(1 + len(names))
    for d in range(2, len(alive) + 1):
        chain = cell.prior(
            map_state(lambda field: field[:-1], chain), action[d:], None if noise is None else noise[d - 1, d:]
        )
        kl = cell.divergence(map_state(lambda field, first=d: field[first:], target), chain)
        check_shape("the cell's divergence", kl, "T B", T=len(action) - d, B=action.shape[1], because="from batch.mask")
        errors = [kl, kl.clamp(min=free_nats)]
        if "reward" in names:
            predicted = model.reward_head(cell.features(chain))
            check_shape("the reward head's output", predicted, "T B", T=kl.shape[0], B=kl.shape[1])
            errors.append(0.5 * torch.where(alive[d - 1], predicted - reward[d:], 0.0).square())
        if obs:
            seen = {name: value[d:] for name, value in obs.items()}
            # A distance's frames are by far the largest of what is kept, so they are drawn again in the backward pass.
            decode: Callable[..., list[Tensor]] = _decode
            if recompute:
                decode = partial(checkpoint, _decode, use_reentrant=False)
            errors += decode(model, cell.features(chain), seen)
        total = total + shares[d - 2] * torch.stack([torch.where(alive[d - 1], error, 0.0).sum() for error in errors])
    return total


def _decode(model: WorldModel, features: Tensor, obs: dict[str, Tensor]) -> list[Tensor]:
    """Errors of the observations named in `obs`, in their order."""
    predicted: Observation = model.decoder(features)
    if isinstance(predicted, dict):
        predicted = {name: value for name, value in predicted.items() if f"obs/{name}" in obs}
    return [*observation_errors(predicted, obs).values()]


def _alive(is_first: Tensor, mask: Tensor, reach: int) -> list[Tensor]:
    """For d = 1 to reach, which rows d to T of the window [T - d, B] a chain of d steps meets within one episode."""
    same_episode = ~is_first & mask
    alive: list[Tensor] = []
    for d in range(1, reach + 1):
        alive.append((alive[-1] if alive else mask)[:-1] & same_episode[d:])
    return alive


def _checked_weights(weights: Sequence[float], distance: int) -> list[float]:
    """The weights as floats, or raise where they are not one number of at least 0 for each distance from 2 on."""
    given: object = weights
    if not isinstance(given, list | tuple | np.ndarray) or (isinstance(given, np.ndarray) and given.ndim != 1):
        raise TypeError(f"weights must be a list of {distance - 1} numbers, got {shown(given)}")
    if len(weights) != distance - 1:
        raise ValueError(f"weights must be {distance - 1} numbers, for distances 2 to {distance}, got {len(weights)}")
    for d, weight in enumerate(weights, start=2):
        check_scales(**{f"the weight of distance {d}": weight})
    return [float(weight) for weight in weights]


def _check_drawn(
    model: WorldModel, batch: Batch, noise: Tensor | None, posterior: tuple[Tensor, ...], distance: int
) -> None:
    """Raise unless actions and noise are what the cell takes, for every row of the batch."""
    length, batch_size = batch.mask.shape
    check_shape("batch.action", batch.action, "T B A", T=length, B=batch_size, because="from batch.mask")
    check_last("batch.action", batch.action, model.cell.action_dim, because="the cell's action_dim")
    given = {"batch.action": batch.action}
    if noise is not None:
        check_shape("noise", noise, "D T B S", D=distance, T=length, B=batch_size, S=model.cell.noise_dim)
        given["noise"] = noise
    dtype = next((field.dtype for field in posterior if field.is_floating_point()), batch.reward.dtype)
    for name, value in given.items():
        check_floating(name, value)
        check_device(name, value, batch.mask.device, because="as batch.mask")
        check_dtype(name, value, dtype, because="as the states")


def _terms(
    obs: Observation | None,
    mask: Tensor,
    kl_scale: float,
    reward_scale: float,
    obs_scale: float | Mapping[str, float],
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The scales of all terms that are wanted, by name, and the entries of the observation that have one."""
    entries = {} if obs is None else named_entries(obs, mask)
    check_scales(kl_scale=kl_scale, reward_scale=reward_scale)
    wanted = check_obs_scale(obs_scale)
    if obs is None and any(scale > 0 for scale in wanted):
        raise ValueError(
            "obs must be given where obs_scale is greater than 0: the floats that the encoder saw, got None"
        )
    scales = {"kl": float(kl_scale)} | ({"reward": float(reward_scale)} if reward_scale > 0 else {})
    if entries:
        of_entries = observation_scales(obs_scale, entries)
        entries = {name: value for name, value in entries.items() if of_entries[name] > 0}
        scales |= {name: of_entries[name] for name in entries}
    return scales, entries
