"""Images as environments give them, as planet_lib wants them: uint8, channels first, one size.

This module knows arrays only. Resizing averages areas, exactly and in NumPy, so that a picture does not depend on
which image library happens to be installed.
"""

from typing import Any, Literal, get_args

import numpy as np

from planet_lib._shapes import check_choice, shown

Array = np.ndarray[Any, Any]
Channels = Literal["all", "red", "grey"]


def check_channels(channels: str) -> None:
    """Raise a `ValueError` unless `channels` is one of "all", "red", "grey"."""
    check_choice("channels", channels, get_args(Channels))


def check_obs(obs: str) -> None:
    """Raise a `ValueError` unless `obs` is one of "pixels", "state", "both"."""
    given: object = obs
    if not isinstance(given, str) or given not in ("pixels", "state", "both"):
        raise ValueError(f'obs must be "pixels", "state" or "both", got {shown(given)}')


def keep_channels(image: Array, channels: Channels) -> Array:
    """Return the channels of an image [Y, X, 3] that shall be seen: all three, the red one, or their rounded mean.

    Example:
        >>> image = np.array([[[30, 60, 91]]], np.uint8)
        >>> [keep_channels(image, channels).tolist() for channels in ("all", "red", "grey")]
        [[[[30, 60, 91]]], [[[30]]], [[[60]]]]
    """
    if channels == "all":
        return image
    if channels == "red":
        return image[..., :1]
    mean: Array = np.rint(image.mean(-1, keepdims=True)).astype(np.uint8)
    return mean


def is_channels_last(shape: tuple[int, ...]) -> bool:
    """Tell whether an image shape is [Y, X, C] rather than [C, Y, X]: the channels are the shorter end.

    Example:
        >>> is_channels_last((96, 96, 3)), is_channels_last((9, 64, 64))
        (True, False)
    """
    return shape[-1] <= shape[0]


def resize_area(image: Array, size: tuple[int, int]) -> Array:
    """Return `image` at `size`, every new pixel the mean of the area it covers, rounded to the nearest level.

    The means are computed in whole numbers up to the last division: the same input gives the same bytes everywhere.

    Args:
        image: [Y, X, C] uint8.
        size: the new (Y, X), larger or smaller.

    Returns:
        [Y', X', C] uint8. The image itself where the size is right already.

    Example:
        >>> import numpy as np
        >>> image = np.array([[0, 100], [200, 100]], np.uint8)[:, :, None]
        >>> resize_area(image, (1, 1)).item()
        100
    """
    height, width, _ = image.shape
    if (height, width) == size:
        return image
    rows = _sum_areas(image, size[0])
    total = _sum_areas(rows.swapaxes(0, 1), size[1]).swapaxes(0, 1)
    mean: Array = np.rint(total / (height * width)).astype(np.uint8)
    return mean


def _sum_areas(values: Array, new: int) -> Array:
    """Sum whole numbers [old, ...] over `new` equal stretches of the first axis, in units of 1/new of a row.

    The sum up to a stretch's edge is that of the rows before it and a part of the row that it cuts; a stretch is the
    difference of its two edges.
    """
    old = len(values)
    before = np.zeros((old + 1, *values.shape[1:]), np.int64)
    np.cumsum(values, axis=0, dtype=np.int64, out=before[1:])
    row, part = np.divmod(np.arange(new + 1) * old, new)
    part = part.reshape(-1, *[1] * (values.ndim - 1))
    up_to_edge: Array = before[row] * new + values[np.minimum(row, old - 1)].astype(np.int64) * part
    return np.diff(up_to_edge, axis=0)
