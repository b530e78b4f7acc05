"""One update of a world model from one batch. Knows no loop, no files and no environment."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from planet_lib._errors import NonFiniteError
from planet_lib._shapes import check_count, check_positive, check_scales, check_whole, is_finite, shown
from planet_lib.data.pixels import prepare
from planet_lib.models import WorldModel, observe
from planet_lib.objectives import elbo_loss, latent_overshooting
from planet_lib.training._update_checks import checked_groups, checked_weight
from planet_lib.types import Batch, Losses, Observation

_NAMED = 5  # parameters whose gradients an error names


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a world model is trained for: the settings of `elbo_loss` and `latent_overshooting`, the paper's by default.

    Args:
        free_nats: nats per row that cost nothing, in both.
        obs_scale: weight of the observation term, or one weight for each entry of a dictionary.
        reward_scale: weight of the reward term.
        kl_scale: weight of the divergence.
        kl_balance: share of its gradient that trains the prior; None is the plain KL.
        global_kl_scale: weight of the divergence from the global prior.
        continue_scale: weight of the continue head's term, where the model has one.
        overshooting_distance: largest distance of latent overshooting; 1 is none.
        overshooting_scale: weight of its divergences.
        overshooting_reward_scale: weight of its rewards.
        overshooting_obs_scale: weight of its observations.
        overshooting_chunk: windows handled at a time there; None is all.

    Example:
        >>> Objective(free_nats=0.0).reward_scale
        1.0
    """

    free_nats: float = 3.0
    obs_scale: float | Mapping[str, float] = 1.0
    reward_scale: float = 1.0
    kl_scale: float = 1.0
    kl_balance: float | None = None
    global_kl_scale: float = 0.0
    continue_scale: float = 1.0
    overshooting_distance: int = 1
    overshooting_scale: float = 1.0
    overshooting_reward_scale: float = 0.0
    overshooting_obs_scale: float | Mapping[str, float] = 0.0
    overshooting_chunk: int | None = None

    def __post_init__(self) -> None:
        """Raise a `ValueError` for a setting that no loss could mean."""
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_scale"):
                scales = value if isinstance(value, Mapping) else {"": value}
                if isinstance(value, Mapping) and "obs_scale" not in item.name:
                    raise TypeError(f"{item.name} must be one number, got {shown(value)}")
                check_scales(**{f"{item.name}[{name!r}]" if name else item.name: scales[name] for name in scales})
        check_scales(free_nats=self.free_nats)
        balance = 0.0 if self.kl_balance is None else self.kl_balance
        if not (is_finite(balance) and 0 <= balance <= 1):
            raise ValueError(f"kl_balance must be between 0 and 1, or None for the plain KL, got {shown(balance)}")
        chunk = 1 if self.overshooting_chunk is None else self.overshooting_chunk
        check_count(overshooting_distance=self.overshooting_distance, overshooting_chunk=chunk)


class UpdateResult(NamedTuple):
    """What one update measured, detached; grad_norm is the gradient's global norm before clipping.

    overshooting is None where the objective has none.
    """

    losses: Losses
    overshooting: Losses | None
    grad_norm: Tensor

    def metrics(self) -> dict[str, Tensor]:
        """Return the unscaled terms by the names that `metrics.csv` has; a dictionary's observations are one sum.

        Example:
            >>> one = torch.ones(())
            >>> raw = {"obs/camera": one, "obs/joints": one, "reward": one, "kl": one, "kl_clipped": one}
            >>> result = UpdateResult(Losses(total=one, raw=raw, scaled={}), None, one)
            >>> {name: int(value) for name, value in result.metrics().items()}
            {'loss_total': 1, 'loss_obs': 2, 'loss_reward': 1, 'kl': 1, 'kl_clipped': 1, 'grad_norm': 1}
        """
        total = self.losses.total if self.overshooting is None else self.losses.total + self.overshooting.total
        metrics = {"loss_total": total}
        names = {"obs": "loss_obs", "reward": "loss_reward", "continue": "loss_continue"}
        for name, value in _summed(self.losses.raw).items():
            metrics[names.get(name, name)] = value
        if self.overshooting is not None:
            for name, value in _summed(self.overshooting.raw).items():
                if name != "kl_clipped":
                    metrics[f"overshooting_{name}"] = value
        return {**metrics, "grad_norm": self.grad_norm}


def update(
    model: WorldModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    objective: Objective | None = None,
    *,
    grad_clip: float = 1000.0,
    autocast: torch.dtype | None = None,
) -> UpdateResult:
    """Take one optimiser step on the ELBO, plus latent overshooting where its distance is greater than 1.

    uint8 frames are turned into floats once, with fresh noise, for encoder and loss alike; vectors are used as they
    are. If loss or gradient is not finite, nothing is changed.

    Args:
        model: the world model. The batch is brought to its device, and floats to the type of its weights.
        optimizer: over the model's parameters.
        batch: windows [T, B, ...].
        objective: terms and scales; None is `Objective()`, the paper's.
        grad_clip: largest global norm of the gradient.
        autocast: torch.bfloat16 makes matrix products and convolutions in that type. Weights, the
            latent state, divergences and losses stay in float32. None makes everything in the weights' type.

    Returns:
        `UpdateResult`.

    Raises:
        ValueError: grad_clip is not greater than 0, autocast is another type, or a setting of the objective is wrong.
        NonFiniteError: loss or gradient is not finite; the message names the terms of the loss that are not, or the
            parameters, and the first row of the batch that has such a number. `SkipNonFinite` goes on after it.

    Source: arXiv:1811.04551, algorithm 1, lines 5 to 7.

    Example:
        >>> from planet_lib import Decoder, RewardHead, RSSMCell, VectorEncoder
        >>> encoder, cell = VectorEncoder(5, embed_dim=16), RSSMCell(action_dim=1, embed_dim=16)
        >>> model = WorldModel(encoder, cell, Decoder(230, (5,)), RewardHead(230))
        >>> flags = torch.zeros(7, 2, dtype=torch.bool)
        >>> batch = Batch(obs=torch.ones(7, 2, 5), action=torch.zeros(7, 2, 1), reward=torch.ones(7, 2),
        ...     is_first=flags, terminated=flags, mask=~flags)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> first, *_, last = [update(model, optimizer, batch, Objective(free_nats=1.0)) for _ in range(20)]
        >>> bool(last.losses.total < first.losses.total)
        True
    """
    objective = Objective() if objective is None else objective
    check_positive(grad_clip=grad_clip)
    if autocast is not None and autocast is not torch.bfloat16:
        got = shown(autocast)
        raise ValueError(f"autocast must be torch.bfloat16 or None, got {got}; float16 would need a scaled loss")
    given: object = objective
    if not isinstance(given, Objective):
        raise TypeError(f"objective must be an Objective or None, got {shown(given)}")
    like = checked_weight(model, optimizer, batch)
    batch, obs = _to(batch, like)
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]  # running means, say; ours have none
    with torch.autocast(like.device.type, dtype=autocast, enabled=autocast is not None):
        losses, overshooting = _losses(model, batch, obs, objective)
    optimizer.zero_grad(set_to_none=True)
    model.zero_grad(set_to_none=True)  # the norm is that of the whole model, whatever part of it is optimised
    total = losses.total if overshooting is None else losses.total + overshooting.total
    torch.autograd.backward(total)
    parameters = list(model.parameters())
    grad_norm = torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    norm, loss = torch.stack([grad_norm, total.detach()]).tolist()
    if not (math.isfinite(norm) and math.isfinite(loss)):
        bad = losses.non_finite()
        bad += [] if overshooting is None else [f"overshooting {name}" for name in overshooting.non_finite()]
        bad = bad or [f"the gradient of {name}" for name in _non_finite_gradients(model)]
        bad = bad or ["the sum of the gradient's squares, which are too large"]
        bad += _non_finite_rows(batch)
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        optimizer.zero_grad(set_to_none=True)
        model.zero_grad(set_to_none=True)
        raise NonFiniteError(
            f"loss and gradient must be finite, got {loss} and norm {norm} (not finite: {', '.join(bad)})"
        )
    if norm > grad_clip:  # seldom, and it goes over every gradient
        torch.nn.utils.clip_grads_with_norm_(parameters, grad_clip, grad_norm)
    optimizer.step()
    return UpdateResult(losses.detach(), None if overshooting is None else overshooting.detach(), grad_norm.detach())


def warm_up(optimizer: torch.optim.Optimizer, learning_rate: float, updates: int, warmup_updates: int) -> None:
    """Set the learning rate of the next update: it rises linearly over the first ones, then stays.

    rate = learning_rate * min(1, (updates + 1) / warmup_updates)

    It follows from the number of updates done alone, so a resumed run needs nothing else.

    Args:
        optimizer: its groups' "lr" are set.
        learning_rate: the rate after the warm-up.
        updates: updates done so far.
        warmup_updates: how many the rise takes; 0 is none.

    Source: google-research/planet tools/schedule.py (its first version used it).

    Example:
        >>> optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        >>> warm_up(optimizer, 1e-3, updates=49, warmup_updates=200)
        >>> optimizer.param_groups[0]["lr"]
        0.00025
    """
    groups = checked_groups(optimizer)
    check_scales(learning_rate=learning_rate)
    check_whole("updates", updates, least=0)
    check_whole("warmup_updates", warmup_updates, least=0)
    for group in groups:
        group["lr"] = learning_rate * min(1.0, (updates + 1) / max(warmup_updates, 1))


def _losses(model: WorldModel, batch: Batch, obs: Observation, objective: Objective) -> tuple[Losses, Losses | None]:
    prior, posterior = observe(model.cell, model.encoder(obs), batch.action, batch.is_first)
    losses = elbo_loss(
        model,
        batch,
        obs,
        prior,
        posterior,
        free_nats=objective.free_nats,
        obs_scale=objective.obs_scale,
        reward_scale=objective.reward_scale,
        kl_scale=objective.kl_scale,
        kl_balance=objective.kl_balance,
        global_kl_scale=objective.global_kl_scale,
        continue_scale=objective.continue_scale,
    )
    if objective.overshooting_distance <= 1:
        return losses, None
    overshooting = latent_overshooting(
        model,
        batch,
        prior,
        posterior,
        distance=objective.overshooting_distance,
        obs=obs,
        free_nats=objective.free_nats,
        kl_scale=objective.overshooting_scale,
        reward_scale=objective.overshooting_reward_scale,
        obs_scale=objective.overshooting_obs_scale,
        chunk_size=objective.overshooting_chunk,
    )
    return losses, overshooting


def _to(batch: Batch, like: Tensor) -> tuple[Batch, Observation]:
    """The batch on the device and in the floating type of the weights, and its observations as floats."""
    batch = batch.to(like.device)
    obs = prepare(batch.obs, dtype=like.dtype)
    obs = {name: value.to(like.dtype) for name, value in obs.items()} if isinstance(obs, dict) else obs.to(like.dtype)
    return batch._replace(action=batch.action.to(like.dtype), reward=batch.reward.to(like.dtype)), obs


def _summed(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms by name, with those of a dictionary's observations as one."""
    terms = {name: value for name, value in raw.items() if not name.startswith("obs/")}
    entries = [value for name, value in raw.items() if name.startswith("obs/")]
    return {**({"obs": torch.stack(entries).sum()} if entries else {}), **terms}


def _non_finite_rows(batch: Batch) -> list[str]:
    """The first number of each part of the batch that is not finite, with its time step and window."""
    entries = (
        {f"batch.obs[{name!r}]": value for name, value in batch.obs.items()} if isinstance(batch.obs, dict) else {}
    )
    entries |= {} if isinstance(batch.obs, dict) else {"batch.obs": batch.obs}
    found = []
    for name, value in {**entries, "batch.action": batch.action, "batch.reward": batch.reward}.items():
        places = torch.isfinite(value).logical_not().nonzero()
        if len(places):
            step, window, *_ = places[0].tolist()
            found.append(f"{name} at step {step} of window {window}")
    return found


def _non_finite_gradients(model: WorldModel) -> list[str]:
    grads = ((name, parameter.grad) for name, parameter in model.named_parameters())
    bad = [name for name, grad in grads if grad is not None and not bool(torch.isfinite(grad).all())]
    return bad if len(bad) <= _NAMED else [*bad[:_NAMED], f"{len(bad) - _NAMED} more"]
