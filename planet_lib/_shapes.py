"""Shape checks at public entries, with one style of error.

The checks read only shapes, so they cost no device synchronisation and `torch.compile` traces through them.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST = 2**31 - 1  # counts end here: sizes beyond it overflow somewhere below Python


def shown(value: object) -> str:
    """Return what an error says of a value that it got: short, and of tensors and arrays never the numbers.

    Example:
        >>> shown(2.5), shown(torch.zeros(2, 3)), shown("x" * 200)[-20:]
        ('2.5', 'Tensor torch.float32 [2, 3]', '... (202 characters)')
    """
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {value.dtype} {list(value.shape)}"
    try:
        text = repr(value)
    except Exception:  # an object of the user's, which may not be as it should
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text)} characters)"


def is_number(value: object) -> bool:
    """Tell whether a value is a real number, of Python or NumPy, be it infinite or NaN; True and False are none.

    A size that torch traces without knowing it, for `torch.export` say, is one.
    """
    return not isinstance(value, bool) and isinstance(value, Real | torch.SymInt)


def is_finite(value: object) -> bool:
    """Tell whether a value is a real number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(float(value))  # not by comparing: NumPy's narrow types overflow there
    except OverflowError:
        return False


def is_whole(value: object, least: int = 1, most: int = MOST) -> bool:
    """Tell whether a value is a whole number from `least` to `most`, of Python or NumPy; True and False are none.

    A size that torch traces without knowing it is taken as one: to compare it would fix it.
    """
    if isinstance(value, torch.SymInt):
        return True
    return not isinstance(value, bool) and isinstance(value, Integral) and least <= int(value) <= most


def check_dense(name: str, value: object, expected: str = "") -> None:
    """Raise a `TypeError` unless `value` is a tensor, and a dense one.

    Example:
        >>> check_dense("action", [1.0], " [B, A]")
        Traceback (most recent call last):
            ...
        TypeError: action must be a tensor [B, A], got list
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor{expected}, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        got = "a nested one" if value.is_nested else f"one of {value.layout}"
        raise TypeError(f"{name} must be a dense tensor{expected}, got {got}; convert it with .to_dense()")


def check_device(name: str, value: Tensor, device: torch.device, *, because: str) -> None:
    """Raise a `ValueError` unless `value` is on `device`; "meta" is a device like any other.

    Example:
        >>> check_device("images", torch.zeros(1, device="meta"), torch.device("cpu"), because="the encoder's weights")
        Traceback (most recent call last):
            ...
        ValueError: images must be on cpu (the encoder's weights), got a tensor on meta; move it with .to(...)
    """
    if value.device != device:
        raise ValueError(
            f"{name} must be on {device} ({because}), got a tensor on {value.device}; move it with .to(...)"
        )


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
    fits = isinstance(value, Tensor) and value.layout == torch.strided and value.ndim == len(axes)
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
        check_dense(name, value, f" {expected}")
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
    check_dense(name, value, f" [..., {size}]")
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
    check_dense(name, value, " of bool")
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
    check_dense(name, value, f" of {dtype}")
    if value.dtype != dtype and not (value.is_floating_point() and _is_cast(value)):
        raise TypeError(f"{name} must be {dtype} ({because}), got {value.dtype}; convert it with .to(...)")


def _is_cast(value: Tensor) -> bool:
    """Whether autocast converts the tensor by itself; about the meta device torch answers with an error."""
    return not value.is_meta and torch.is_autocast_enabled(value.device.type)


def check_floating(name: str, value: Tensor) -> None:
    """Raise a `TypeError` unless `value` is a dense tensor of floats, of whatever width.

    Example:
        >>> check_floating("reward", torch.zeros(2, dtype=torch.int64))
        Traceback (most recent call last):
            ...
        TypeError: reward must be floating, got torch.int64; convert it with .float()
    """
    check_dense(name, value, " of floats")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating, got {value.dtype}; convert it with .float()")


def check_members(name: str, value: object, kind: str, *members: str) -> None:
    """Raise a `TypeError` unless `value` is an object that has these members; of which class it is does not matter.

    Example:
        >>> check_members("model", 3, "a WorldModel", "cell", "decoder")
        Traceback (most recent call last):
            ...
        TypeError: model must be a WorldModel, got int without cell, decoder
    """
    missing = [member for member in members if not hasattr(value, member)]
    if isinstance(value, type):
        raise TypeError(f"{name} must be {kind}, got the class {value.__name__}; call it first")
    if missing:
        raise TypeError(f"{name} must be {kind}, got {type(value).__name__} without {', '.join(missing)}")


def check_states(
    name: str,
    state: tuple[Tensor, ...],
    like: tuple[Tensor, ...] | None,
    *sizes: int,
    device: torch.device,
    because: str,
) -> None:
    """Raise unless `state` is a tuple of tensors [*sizes, ...] of the kind, sizes and types of `like`, fields [1, ...].

    Args:
        name: the argument, as the caller wrote it.
        state: what to check.
        like: the cell's own state of one row; None where it has none, and only the leading axes are checked.
        *sizes: the leading axes.
        device: where the state must be.
        because: where sizes and device come from.

    Example:
        >>> given, own = (torch.zeros(3, 4),), (torch.zeros(1, 5),)
        >>> check_states("state", given, own, 3, device=torch.device("cpu"), because="B")
        Traceback (most recent call last):
            ...
        ValueError: state[0] must be [3, 5] (B, and the cell's sizes), got [3, 4]
    """
    given: object = state
    kind = tuple if like is None else type(like)
    if not isinstance(given, kind) or (like is not None and len(given) != len(like)):
        raise TypeError(f"{name} must be the cell's {kind.__name__}, got {type(given).__name__}")
    fields = {f"{name}.{field}": getattr(state, field) for field in getattr(state, "_fields", ())}
    fields = fields or {f"{name}[{place}]": value for place, value in enumerate(state)}
    for field, value in fields.items():
        check_dense(field, value)
        if tuple(value.shape[: len(sizes)]) != sizes:
            expected = ", ".join(map(str, sizes))
            raise ValueError(f"{name} must have fields [{expected}, ...] ({because}), got one of {list(value.shape)}")
        check_device(field, value, device, because=because)
    for (field, value), own in zip(fields.items(), like or (), strict=like is not None):
        if value.shape[len(sizes) :] != own.shape[1:]:
            expected = ", ".join(map(str, (*sizes, *own.shape[1:])))
            raise ValueError(f"{field} must be [{expected}] ({because}, and the cell's sizes), got {list(value.shape)}")
        check_dtype(field, value, own.dtype, because="as in the cell's initial state")


def check_scales(**values: float) -> None:
    """Raise a `ValueError` for the first keyword whose value is not a finite number of at least 0.

    Example:
        >>> check_scales(kl_scale=-1.0)
        Traceback (most recent call last):
            ...
        ValueError: kl_scale must be finite and at least 0, got -1.0
    """
    for name, value in values.items():
        if not is_finite(value) or value < 0:
            raise ValueError(f"{name} must be finite and at least 0, got {shown(value)}")


def check_positive(**values: int | float) -> None:
    """Raise a `ValueError` for the first keyword whose value is not greater than zero.

    Example:
        >>> check_positive(horizon=0)
        Traceback (most recent call last):
            ...
        ValueError: horizon must be greater than 0, got 0
    """
    for name, value in values.items():
        if not is_number(value) or not value > 0:
            raise ValueError(f"{name} must be greater than 0, got {shown(value)}")


def check_count(**values: int) -> None:
    """Raise a `ValueError` for the first keyword whose value is not a whole number of at least 1.

    Example:
        >>> check_count(distance=2.5)
        Traceback (most recent call last):
            ...
        ValueError: distance must be a whole number of at least 1, got 2.5
    """
    for name, value in values.items():
        check_whole(name, value, least=1)


def check_whole(name: str, value: int, *, least: int, most: int = MOST) -> None:
    """Raise a `ValueError` unless `value` is a whole number from `least` to `most`, of Python or NumPy.

    Example:
        >>> check_whole("start", -1, least=0)
        Traceback (most recent call last):
            ...
        ValueError: start must be a whole number of at least 0, got -1
    """
    if not is_whole(value, least, most):
        is_large = is_whole(value, least, 2**10_000)
        bound = f"at most {most}" if is_large else f"at least {least}"
        raise ValueError(f"{name} must be a whole number of {bound}, got {shown(value)}")


def check_flag(**values: bool) -> None:
    """Raise a `TypeError` for the first keyword whose value is neither True nor False: "no" would count as True.

    Example:
        >>> check_flag(workers="no")
        Traceback (most recent call last):
            ...
        TypeError: workers must be True or False, got 'no'
    """
    for name, value in values.items():
        given: object = value
        if not isinstance(given, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {shown(given)}")


def check_mapping(name: str, value: object) -> None:
    """Raise a `TypeError` unless `value` is a dictionary, or acts as one.

    Example:
        >>> check_mapping("settings", [("seed", 1)])
        Traceback (most recent call last):
            ...
        TypeError: settings must be a dictionary, got [('seed', 1)]
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dictionary, got {shown(value)}")


def names_of(name: str, value: object) -> list[str]:
    """Return a list of names, or raise a `TypeError`: a single text is none, since its letters would count.

    Example:
        >>> names_of("fresh", "reward_head")
        Traceback (most recent call last):
            ...
        TypeError: fresh must be a list of names, got 'reward_head'
    """
    is_one = isinstance(value, str | bytes | Tensor | np.ndarray) or not isinstance(value, Iterable)
    names = [] if is_one or not isinstance(value, Iterable) else list(value)
    if is_one or not all(isinstance(each, str) for each in names):
        raise TypeError(f"{name} must be a list of names, got {shown(value)}")
    return names


def check_path(name: str, value: Any) -> str:
    """Return a path as text, or raise unless it is a text, or a `Path`, that a file system could know.

    Example:
        >>> check_path("path", 3)
        Traceback (most recent call last):
            ...
        TypeError: path must be a path (str or os.PathLike), got 3
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path (str or os.PathLike), got {shown(value)}")
    try:
        is_one = bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        is_one = False
    if not is_one:
        raise ValueError(f"{name} must be the path of a file or directory, got {text!r}")
    return text


def checked_device(name: str, value: torch.device | str) -> torch.device:
    """Return a device that is here, or raise: one that torch does not know, or that this machine has not.

    Example:
        >>> checked_device("device", "gpu")
        Traceback (most recent call last):
            ...
        ValueError: device must be a device that is here, such as "cpu" or "cuda", got 'gpu'
    """
    expected = f'{name} must be a device that is here, such as "cpu" or "cuda", got {shown(value)}'
    given: object = value
    if not isinstance(given, str | torch.device):
        raise TypeError(expected)
    try:
        torch.empty(0, device=given)
        return torch.device(given)
    except Exception as error:  # torch raises about anything: RuntimeError, AssertionError, NotImplementedError
        raise ValueError(expected) from error


def check_image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return `shape` as (C, Y, X), or raise where it is none: three positive sizes, channels first."""
    sizes = whole_sizes(shape)
    if sizes is None or len(sizes) != 3:
        got = shown(tuple(shape) if isinstance(shape, list) else shape)
        raise ValueError(f"{name} must be (C, Y, X), three positive whole sizes, channels first, got {got}")
    return sizes[0], sizes[1], sizes[2]


def whole_sizes(shape: object) -> tuple[int, ...] | None:
    """Return a sequence of whole numbers of at least 1 as a tuple of ints, or None where it is none.

    Example:
        >>> whole_sizes([3, 64, 64]), whole_sizes((0, 2)), whole_sizes("3")
        ((3, 64, 64), None, None)
    """
    if not isinstance(shape, Sequence | np.ndarray) or isinstance(shape, str | bytes):
        return None
    sizes: list[Any] = list(shape) if not isinstance(shape, np.ndarray) or shape.ndim == 1 else []
    return tuple(int(size) for size in sizes) if sizes and all(is_whole(size) for size in sizes) else None


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise a `ValueError` unless `value` is one of `choices`.

    Example:
        >>> check_choice("init", "zeros", ("torch", "glorot"))
        Traceback (most recent call last):
            ...
        ValueError: init must be one of torch, glorot, got 'zeros'
    """
    given: object = value
    if not isinstance(given, str) or given not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(given)}")
