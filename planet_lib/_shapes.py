"""Shape checks at public entries, with one style of error.

The checks read only shapes, so they cost no device synchronisation and `torch.compile` traces through them.
"""

from collections.abc import Iterable, Sequence
from numbers import Integral

import torch
from torch import Tensor


def check_shape(name: str, value: Tensor, letters: str, *, because: str = "", **sizes: int) -> None:
    """Raise a `ValueError` that names argument, expected and got, unless `value` has the axes `letters`.

    Args:
        name: the argument, as the caller wrote it.
        value: the tensor to check.
        letters: the axes by name, separated by spaces, such as "T B A".
        because: where the sizes come from, such as "the cell's action_dim"; shown behind them.
        **sizes: the axes whose size is known.

    Example:
        >>> import torch
        >>> check_shape("action", torch.zeros(50, 32, 4), "T B A", A=6, because="the cell's action_dim")
        Traceback (most recent call last):
            ...
        ValueError: action must be [T, B, A] with A=6 (the cell's action_dim), got [50, 32, 4]
    """
    axes = letters.split()
    fits = isinstance(value, Tensor) and value.ndim == len(axes)
    if fits:
        for axis, size in zip(axes, value.shape, strict=True):
            if axis in sizes and sizes[axis] != size:
                fits = False
    if not fits:
        known = [axis for axis in axes if axis in sizes]
        expected = "[" + ", ".join(axes) + "]"
        if known:
            expected += " with " + ", ".join(f"{axis}={sizes[axis]}" for axis in known)
        if because:
            expected += f" ({because})"
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor {expected}, got {type(value).__name__}")
        raise ValueError(f"{name} must be {expected}, got {list(value.shape)}")


def check_last(name: str, value: Tensor, size: int, *, because: str = "") -> None:
    """Raise unless the last axis of `value` has `size`; leading axes are free.

    Example:
        >>> import torch
        >>> check_last("features", torch.zeros(5, 7), 230, because="the head's feature_dim")
        Traceback (most recent call last):
            ...
        ValueError: features must be [..., 230] (the head's feature_dim), got [5, 7]
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor [..., {size}], got {type(value).__name__}")
    if value.ndim == 0 or value.shape[-1] != size:
        reason = f" ({because})" if because else ""
        raise ValueError(f"{name} must be [..., {size}]{reason}, got {list(value.shape)}")


def check_bool(name: str, value: Tensor) -> None:
    """Raise a `TypeError` unless `value` is a bool tensor: in bytes, `~` would mean something else.

    Example:
        >>> check_bool("is_first", torch.zeros(2))
        Traceback (most recent call last):
            ...
        TypeError: is_first must be bool, got torch.float32; convert it with is_first.bool()
    """
    if value.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {value.dtype}; convert it with {name}.bool()")


def check_dtype(name: str, value: Tensor, dtype: torch.dtype, *, because: str) -> None:
    """Raise a `TypeError` unless `value` is of `dtype`; under autocast, which converts by itself, any floats will do.

    Example:
        >>> check_dtype("images", torch.zeros(1, dtype=torch.float64), torch.float32, because="the encoder's weights")
        Traceback (most recent call last):
            ...
        TypeError: images must be torch.float32 (the encoder's weights), got torch.float64; convert it with .to(...)
    """
    if value.dtype != dtype and not (value.is_floating_point() and torch.is_autocast_enabled(value.device.type)):
        raise TypeError(f"{name} must be {dtype} ({because}), got {value.dtype}; convert it with .to(...)")


def check_scales(**values: float) -> None:
    """Raise a `ValueError` for the first keyword whose value is not a finite number of at least 0.

    Example:
        >>> check_scales(kl_scale=-1.0)
        Traceback (most recent call last):
            ...
        ValueError: kl_scale must be finite and at least 0, got -1.0
    """
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be finite and at least 0, got {value}")


def check_positive(**values: int | float) -> None:
    """Raise a `ValueError` for the first keyword whose value is not greater than zero.

    Example:
        >>> check_positive(horizon=0)
        Traceback (most recent call last):
            ...
        ValueError: horizon must be greater than 0, got 0
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be greater than 0, got {value}")


def check_count(**values: int) -> None:
    """Raise a `ValueError` for the first keyword whose value is not a whole number of at least 1.

    Example:
        >>> check_count(distance=2.5)
        Traceback (most recent call last):
            ...
        ValueError: distance must be a whole number of at least 1, got 2.5
    """
    for name, value in values.items():
        given: object = value
        if not value >= 1 or not isinstance(given, Integral):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value}")


def check_image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return `shape` as (C, Y, X), or raise where it is none: three positive sizes, channels first."""
    if len(shape) != 3 or any(int(size) != size or size < 1 for size in shape):
        raise ValueError(f"{name} must be (C, Y, X), three positive whole sizes, channels first, got {tuple(shape)}")
    channels, height, width = (int(size) for size in shape)
    return channels, height, width


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise a `ValueError` unless `value` is one of `choices`.

    Example:
        >>> check_choice("init", "zeros", ("torch", "glorot"))
        Traceback (most recent call last):
            ...
        ValueError: init must be one of torch, glorot, got 'zeros'
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
