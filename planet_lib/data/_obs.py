"""What an observation may be: an array, or a dictionary of arrays by name; one rule wherever data enters.

Images are uint8 (C, Y, X), channels first; vectors are float32 (N,). Collection, replay and files share these checks,
words and names. The module knows none of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from planet_lib.types import Array

T = TypeVar("T")

FLOAT_IMAGE = "give uint8 0 to 255: multiply by 255 first where it lies in 0 to 1, then cast with astype(np.uint8)"
_CHANNELS = (1, 3, 4)
_LONGEST_NAME = 200  # an entry of a file, and a column of a log, may be named by it


def check_names(where: str, names: Iterable[object]) -> None:
    """Raise unless the names of a dictionary can name files' entries, modules and loss terms.

    Raises:
        TypeError: where a name is no string.
        ValueError: where there is no name, or one is empty, too long or not printable, or has a slash, backslash or dot
            in it.

    Example:
        >>> check_names("obs_shape", ["camera", "arm/joints"])
        Traceback (most recent call last):
            ...
        ValueError: obs_shape must have printable names without slash, backslash or dot, got 'arm/joints'; rename it
    """
    names = list(names)
    if not names:
        raise ValueError(f"{where} must have at least one entry, got an empty dictionary")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{where} must have strings as names, got {name!r} ({type(name).__name__}); rename it")
        if not name or not name.isprintable() or any(letter in "/\\." for letter in name):
            raise ValueError(
                f"{where} must have printable names without slash, backslash or dot, got {name!r}; rename it"
            )
        if len(name.encode()) > _LONGEST_NAME:
            raise ValueError(
                f"{where} must have names of at most {_LONGEST_NAME} bytes, got one of {len(name.encode())}; rename it"
            )


def dtype_of(shape: tuple[int, ...]) -> np.dtype[Any]:
    """Return the type that observations of this shape have: uint8 for images (C, Y, X), float32 for vectors (N,).

    Example:
        >>> print(dtype_of((3, 64, 64)), dtype_of((7,)))
        uint8 float32
    """
    return np.dtype(np.uint8 if len(shape) == 3 else np.float32)


def looks_channels_last(shape: tuple[int, ...]) -> bool:
    """Tell whether the shape of an image is (Y, X, C) by all appearance: 1, 3 or 4 at its end, more than 4 in front.

    Example:
        >>> looks_channels_last((64, 64, 3)), looks_channels_last((9, 64, 64)), looks_channels_last((3, 4, 3))
        (True, False, False)
    """
    return len(shape) == 3 and shape[-1] in _CHANNELS and shape[0] > max(_CHANNELS)


def flat_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the entries of a dictionary "obs" side by side, as "obs/NAME".

    Example:
        >>> flat_fields({"obs": {"camera": 1, "joints": 2}, "reward": 3})
        {'obs/camera': 1, 'obs/joints': 2, 'reward': 3}
    """
    obs = fields["obs"]
    entries = {f"obs/{name}": value for name, value in obs.items()} if isinstance(obs, Mapping) else {"obs": obs}
    return {**entries, **{name: value for name, value in fields.items() if name != "obs"}}


def nested_obs(flat: Mapping[str, T]) -> T | dict[str, T]:
    """Return the observation among flat fields: undo `flat_fields`.

    Example:
        >>> nested_obs({"obs/camera": 1, "obs/joints": 2, "reward": 3}), nested_obs({"obs": 1, "reward": 3})
        ({'camera': 1, 'joints': 2}, 1)
    """
    if "obs" in flat:
        return flat["obs"]
    return {name.removeprefix("obs/"): value for name, value in flat.items() if name.startswith("obs/")}


def obs_entries(obs: Array | dict[str, Array], name: str) -> dict[str, Array]:
    """Return the arrays of an observation by the words that an error names them with.

    Example:
        >>> list(obs_entries({"camera": np.zeros(1)}, "episode.obs")), list(obs_entries(np.zeros(1), "episode.obs"))
        (["episode.obs['camera']"], ['episode.obs'])
    """
    return {f"{name}[{key!r}]": value for key, value in obs.items()} if isinstance(obs, dict) else {name: obs}
