"""What curves are drawn from and with, checked before a picture is begun. For `curves`."""

import os
from collections.abc import Mapping

import numpy as np

from planet_lib._shapes import check_mapping, check_path, is_finite, shown
from planet_lib.training.foresight import OpenLoopError


def check_text(path: str | os.PathLike[str], title: object) -> None:
    """Raise unless the path is one of a PNG, and the title a text."""
    text = check_path("path", path)
    if not text.endswith(".png"):
        raise ValueError(f"path must end in .png, got {shown(text)}")
    if not isinstance(title, str):
        raise TypeError(f"title must be a text, got {shown(title)}")


def check_levels(random_return: object, free_nats: object) -> None:
    """Raise unless what is drawn as a line is a number, or one for each task."""
    levels = dict(random_return) if isinstance(random_return, Mapping) else {"": random_return}
    for task, level in levels.items():
        if not isinstance(task, str) or not (is_finite(level) or (level is None and not task)):
            raise TypeError(f"random_return must be a number, or one for each task, got {shown(random_return)}")
    if free_nats is not None and not is_finite(free_nats):
        raise TypeError(f"free_nats must be a finite number or None, got {shown(free_nats)}")


def check_errors(errors: object) -> None:
    """Raise unless these are errors by the model's name, each with a number for every horizon."""
    check_mapping("errors", errors)
    by_name: dict[object, object] = dict(errors) if isinstance(errors, Mapping) else {}
    if not by_name:
        raise ValueError("errors must hold at least one model's, got none")
    for name, error in by_name.items():
        if not isinstance(name, str) or not isinstance(error, OpenLoopError):
            raise TypeError(f"errors must be OpenLoopErrors by the model's name, got {shown(error)} of {shown(name)}")
        horizon = np.shape(error.horizon)
        for field, value in error._asdict().items():
            shape = () if field in ("reward_variance", "num_windows") else horizon
            is_number = isinstance(value, np.ndarray) and value.dtype.kind in "iuf" if shape else is_finite(value)
            if not is_number or np.shape(value) != shape or len(horizon) != 1 or 0 in horizon:
                what = "an array [H] of numbers" if shape else "a finite number"
                raise TypeError(f"errors[{name!r}].{field} must be {what}, got {shown(value)}")
