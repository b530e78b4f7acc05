"""What an update takes, checked before anything moves: the model, the optimizer of it, and the batch. For `update`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from planet_lib._shapes import check_dense, check_floating, shown
from planet_lib.types import Batch


def checked_weight(model: object, optimizer: object, batch: object) -> Tensor:
    """Return one of the model's weights, or raise unless each is of its kind, and the optimizer of this model."""
    if not isinstance(model, torch.nn.Module) or not (hasattr(model, "encoder") and hasattr(model, "cell")):
        raise TypeError(f"model must be a WorldModel, got {shown(model)}")
    groups = checked_groups(optimizer)
    if not isinstance(batch, Batch):
        raise TypeError(f"batch must be a planet_lib.Batch, got {shown(batch)}")
    own = {id(parameter) for parameter in model.parameters()}
    stepped = (parameter for group in groups for parameter in group["params"])
    if not any(id(parameter) in own for parameter in stepped):
        raise ValueError("optimizer must step weights of the model, got one of others: make it from model.parameters()")
    entries = batch.obs if isinstance(batch.obs, Mapping) else {}
    values = {f"batch.obs[{name!r}]": value for name, value in entries.items()}
    values |= {f"batch.{name}": value for name, value in batch._asdict().items() if name != "obs" or not entries}
    check_dense("batch.mask", batch.mask)
    for name, value in values.items():
        check_dense(name, value)
        if value.is_meta:
            raise ValueError(f"{name} must hold numbers, got a tensor on the device meta")
        if value.shape[:2] != batch.mask.shape:
            raise ValueError(
                f"{name} must begin with the {list(batch.mask.shape)} of batch.mask, got {list(value.shape)}"
            )
    for name in ("action", "reward"):
        check_floating(f"batch.{name}", getattr(batch, name))
    return next(model.parameters())


def checked_groups(optimizer: object) -> list[dict[str, Any]]:
    """Return the optimizer's groups, or raise a `TypeError` where it is none of torch's, and not made like them."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {shown(optimizer)}")
    return optimizer.param_groups
