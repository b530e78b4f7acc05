"""What the objectives have in common: checks, errors per row, means over valid rows. For this package alone."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from planet_lib._shapes import (
    check_bool,
    check_dense,
    check_device,
    check_floating,
    check_members,
    check_scales,
    check_shape,
    check_states,
    is_finite,
    shown,
)
from planet_lib.models.gaussian import widen
from planet_lib.models.world_model import WorldModel
from planet_lib.types import Batch, Observation

_MOST_NATS = 1e30  # float32 ends soon after
# What a model must have; one that was compiled, or wrapped otherwise, has them too.
_PARTS = ("cell", "decoder", "reward_head", "continue_head")


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


def check_windows(
    model: WorldModel,
    batch: Batch,
    prior: tuple[Tensor, ...],
    posterior: tuple[Tensor, ...],
    *fields: str,
    free_nats: float,
) -> tuple[int, int]:
    """Return T and B, or raise: the flags, the named fields and the states must all be [T, B, ...] on one device."""
    check_members("model", model, "a WorldModel", *_PARTS)
    given: object = batch
    if not isinstance(given, Batch):
        raise TypeError(f"batch must be a planet_lib.Batch, got {type(given).__name__}")
    if not is_finite(free_nats) or not 0 <= free_nats <= _MOST_NATS:
        least = "at least 0" if not is_finite(free_nats) or free_nats < 0 else f"at most {_MOST_NATS:g}"
        raise ValueError(f"free_nats must be {least}, got {shown(free_nats)}")
    check_shape("batch.mask", batch.mask, "T B")
    length, batch_size = batch.mask.shape
    for name in ("is_first", *fields):
        check_shape(f"batch.{name}", getattr(batch, name), "T B", T=length, B=batch_size, because="from batch.mask")
        check_device(f"batch.{name}", getattr(batch, name), batch.mask.device, because="as batch.mask")
    check_bool("batch.mask", batch.mask)
    check_bool("batch.is_first", batch.is_first)
    check_floating("batch.reward", batch.reward)
    # Cells that are trained have an initial state; one that only these functions ever meet may do without.
    own = model.cell.initial(1) if hasattr(model.cell, "initial") else None
    for name, state in (("prior", prior), ("posterior", posterior)):
        check_states(name, state, own, length, batch_size, device=batch.mask.device, because="from batch.mask")
    return length, batch_size


def named_entries(obs: Observation, mask: Tensor) -> dict[str, Tensor]:
    """An observation's entries by the name of their term: "obs" for a single one, "obs/NAME" each for a dictionary.

    Raises where one is no floating tensor [T, B, ...] with the rows of `mask` [T, B], on its device.
    """
    entries = {f"obs/{name}": value for name, value in obs.items()} if isinstance(obs, dict) else {"obs": obs}
    for name, value in entries.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"{name} must be the floats that the encoder saw, got {got}; planet_lib.dequantise makes them of uint8"
            )
        check_dense(name, value)
        check_device(name, value, mask.device, because="as batch.mask")
    return entries


def observation_errors(predicted: Observation, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Half the squared error [T, B] of every entry, summed over its pixels or numbers."""
    if isinstance(predicted, dict):
        means = {f"obs/{name}": value for name, value in predicted.items()}
    else:
        means = {"obs": predicted}
    if means.keys() != entries.keys():
        raise ValueError(f"obs must have the entries {', '.join(means)} (what the decoder predicts), got {[*entries]}")
    errors = {}
    for name, obs in entries.items():
        mean = means[name]
        check_floating(f"the decoder's prediction of {name}", mean)
        if mean.shape != obs.shape:
            raise ValueError(f"{name} must be {list(mean.shape)} (what the decoder predicts), got {list(obs.shape)}")
        if widen(mean).dtype != widen(obs).dtype:
            raise TypeError(f"{name} must be {mean.dtype} (what the decoder predicts), got {obs.dtype}; use .to(...)")
        # The largest tensors of an update: one pass over them each way, and the half after the sum.
        errors[name] = 0.5 * F.mse_loss(widen(mean), widen(obs), reduction="none").flatten(2).sum(-1)
    return errors


def check_obs_scale(obs_scale: float | Mapping[str, float]) -> list[float]:
    """Return the scales, one or one for each entry, or raise where one is negative or not finite."""
    named = obs_scale if isinstance(obs_scale, Mapping) else {"": obs_scale}
    for name, scale in named.items():
        check_scales(**{f"obs_scale[{name!r}]" if name else "obs_scale": scale})
    return [*named.values()]


def observation_scales(obs_scale: float | Mapping[str, float], entries: Mapping[str, Tensor]) -> dict[str, float]:
    """The scale of every entry's term: one number for all, or one for each entry by its name."""
    if not isinstance(obs_scale, Mapping):
        return dict.fromkeys(entries, float(obs_scale))
    scales = {f"obs/{name}": float(value) for name, value in obs_scale.items()}
    if scales.keys() != entries.keys():
        raise ValueError(
            f"obs_scale must be a number, or name every entry of the observation, {[*entries]}, got {[*scales]}"
        )
    return scales
