"""What the planners ask of their arguments, beyond shapes. Reads types and devices, and waits for none."""

from typing import Any

import torch
from torch import Tensor

# torch's own definition of a pytree; it has no public name yet, and torch.compile traces through it.
from torch.utils._pytree import tree_leaves

from planet_lib._shapes import (
    check_bool,
    check_dense,
    check_device,
    check_flag,
    check_floating,
    check_members,
    check_shape,
    check_whole,
    is_finite,
    shown,
)
from planet_lib.planning.protocol import Dynamics
from planet_lib.types import Plan

# Bounds, deviations and their products have to stay finite in float32, which ends at 3.4e38.
LARGEST = 1e18


def check_dynamics(dynamics: Dynamics) -> None:
    """Raise a `TypeError` unless `dynamics` has the one method that a planner asks."""
    given: object = dynamics
    if isinstance(given, type) or not callable(getattr(given, "rollout", None)):
        got = f"the class {given.__name__}; call it first" if isinstance(given, type) else shown(given)
        raise TypeError(f"dynamics must have a method rollout(state, actions, noise=None), got {got}")


def check_actions(actions: Tensor) -> None:
    """Raise unless these are floats [H, B, J, A], none of these 0."""
    check_shape("actions", actions, "H B J A")
    if 0 in actions.shape:
        raise ValueError(f"actions must be [H, B, J, A] with at least one of each, got {list(actions.shape)}")
    check_floating("actions", actions)


def check_discount(discount: float) -> None:
    """Raise a `ValueError` unless the discount is in (0, 1]."""
    if not is_finite(discount) or not 0 < discount <= 1:
        raise ValueError(f"discount must be greater than 0 and at most 1, got {shown(discount)}")


def check_start(state: Any, actions: Tensor) -> None:
    """Raise unless the state has a tensor, and all its tensors the rows [B, ...] and the device of the actions."""
    leaves = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    if not leaves:
        raise TypeError(f"state must hold at least one tensor [B, ...], got {type(state).__name__} without any")
    batch_size = actions.shape[1]
    for leaf in leaves:
        check_dense("each tensor of state", leaf)
        if leaf.ndim == 0 or leaf.shape[0] != batch_size:
            raise ValueError(
                f"state must hold tensors [{batch_size}, ...] (the B of actions), got one of {list(leaf.shape)}; what "
                "is no row of an environment belongs into the function"
            )
        check_device("each tensor of state", leaf, actions.device, because="as actions")


def sizes_of(value: object) -> str:
    """Return what an error says of noise that nobody asked for: a tensor's shape."""
    return str(list(value.shape)) if isinstance(value, Tensor) else shown(value)


def check_generator(generator: torch.Generator | None, like: Tensor) -> None:
    """Raise unless `generator` is None, or one of the device of `like`."""
    given: object = generator
    if given is None:
        return
    if not isinstance(given, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {shown(given)}")
    if given.device.type != like.device.type and not like.is_meta:
        raise ValueError(f"generator must be of {like.device.type} (the state's device), got one of {given.device}")


def batch_of(state: Any) -> tuple[int, Tensor]:
    """Return B, and an empty tensor with the device and floating dtype of the state."""
    leaves = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    if not leaves:
        raise TypeError(f"state must hold at least one tensor [B, ...], got {type(state).__name__} without any")
    for leaf in leaves:
        check_dense("each tensor of state", leaf)
    sizes = [leaf.shape[0] if leaf.ndim else None for leaf in leaves]
    batch_size = sizes[0]
    if batch_size is None or any(size != batch_size for size in sizes):
        shapes = [list(leaf.shape) for leaf in leaves]
        raise ValueError(f"state must hold tensors [B, ...] of one batch size B, got shapes {shapes}")
    device = leaves[0].device
    if any(leaf.device != device for leaf in leaves):
        raise ValueError(f"state must hold tensors on one device, got {[str(leaf.device) for leaf in leaves]}")
    dtype = next((leaf.dtype for leaf in leaves if leaf.is_floating_point()), torch.get_default_dtype())
    if dtype.itemsize < 2:
        raise TypeError(f"state must hold floats of at least 16 bits, got {dtype}, in which nothing can be planned")
    return batch_size, torch.empty(0, dtype=dtype, device=device)


def check_noise(name: str, value: Tensor, letters: str, like: Tensor, *, because: str, **sizes: int) -> None:
    """Raise unless `value` is floats with the axes `letters` that can be brought to the device of `like`."""
    check_shape(name, value, letters, because=because, **sizes)
    check_movable(name, value, like)


def check_rows(name: str, value: Tensor, like: Tensor, *, because: str, **sizes: int) -> None:
    """Raise unless `value` is flags [B] that can be brought to the device of `like`."""
    check_shape(name, value, "B", because=because, **sizes)
    check_bool(name, value)
    check_numbers(name, value, like)


def check_plan(name: str, plan: Plan, like: Tensor, *, num_kept: int, because: str, **sizes: int) -> None:
    """Raise unless `plan` is one to start from: of as many rows and steps, and with `num_kept` elites if it has any."""
    given: object = plan
    if not isinstance(given, Plan):
        raise TypeError(f"{name} must be a Plan, got {type(given).__name__}; a tensor is an initial_mean")
    check_noise(f"{name}.mean", plan.mean, "H B A", like, because=because, **sizes)
    check_rows(f"{name}.valid", plan.valid, like, B=sizes["B"], because="the rows of state")
    if plan.elites is not None and num_kept:
        check_noise(f"{name}.elites", plan.elites, "H B K A", like, because=because, K=num_kept, **sizes)


def check_movable(name: str, value: Tensor, like: Tensor) -> None:
    """Raise unless `value` is floats that can be brought to the device of `like`, which those on meta are not."""
    check_floating(name, value)
    check_numbers(name, value, like)


def check_numbers(name: str, value: Tensor, like: Tensor) -> None:
    """Raise unless `value` has real numbers that can be brought to the device of `like`."""
    if value.is_complex():
        raise TypeError(f"{name} must be real, got {value.dtype}")
    if value.is_meta and not like.is_meta:
        raise ValueError(f"{name} must be on a device that has numbers, such as {like.device}, got a tensor on meta")


def check_width(**values: float) -> None:
    """Raise a `ValueError` for the first keyword whose value is not finite and greater than 0."""
    for name, value in values.items():
        if not is_finite(value) or value <= 0:
            raise ValueError(f"{name} must be finite and greater than 0, got {shown(value)}")
        check_size(**{name: value})


def check_size(**values: float) -> None:
    """Raise a `ValueError` for the first keyword whose value is no number from 0 to `LARGEST`."""
    for name, value in values.items():
        if not is_finite(value) or value < 0:
            raise ValueError(f"{name} must be finite and at least 0, got {shown(value)}")
        if value > LARGEST:
            raise ValueError(f"{name} must be at most {LARGEST:g}, got {shown(value)}")


def check_acting(model: Any, planner: Any, exploration_std: float, bits: int, warm_start: bool) -> None:
    """Raise unless a `PlanningAgent` can be made of these."""
    check_members("model", model, "a WorldModel", "encoder", "cell", "parameters")
    check_members("model.cell", model.cell, "a planet_lib.Cell", "action_dim", "initial", "prior", "posterior")
    check_members("planner", planner, "a Planner", "action_dim", "explore", "__call__")
    if planner.action_dim != model.cell.action_dim:
        raise ValueError(
            f"planner must plan actions of the cell's action_dim={model.cell.action_dim}, got {planner.action_dim}"
        )
    if not is_finite(exploration_std) or exploration_std < 0:
        raise ValueError(f"exploration_std must not be negative, got {shown(exploration_std)}")
    check_size(exploration_std=exploration_std)
    check_whole("bits", bits, least=1, most=8)
    check_flag(warm_start=warm_start)
