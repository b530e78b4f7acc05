"""What an environment shows, as planet_lib wants it: images, vectors, or dictionaries of both.

`observer` reads the environment's observation space once and returns the space of the result with the function that
makes it. It knows neither actions nor rewards, and no simulator.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces

from planet_lib._errors import NonFiniteError
from planet_lib.envs.images import Array, Channels, is_channels_last, keep_channels, resize_area

Obs = Literal["pixels", "state", "both"]
Observation: TypeAlias = Array | dict[str, Array]
_REWRITE = "rewrite it with gymnasium.wrappers.TransformObservation"


def observer(
    env: gymnasium.Env[Any, Any], obs: Obs, size: tuple[int, int], channels: Channels = "all"
) -> tuple[spaces.Space[Any], Callable[[Any], Observation]]:
    """Return the space of the observations and the function that turns the environment's own, or the moment, into them.

    pixels: a Box uint8 [C, Y, X]. state: a Box float32 [N]. both: a Dict of "pixels" and "state". A Dict with images
    among its entries stays a Dict of its own entries, whatever `obs` says: images uint8 [C, Y, X], all else vectors.
    Vectors are as `gymnasium.spaces.flatten` makes them: a Discrete number one-hot, entries one after the other.

    Args:
        env: the environment; asked for its observation space and its `render`.
        obs: see above.
        size: (Y, X) of the images.
        channels: kept of images of three channels: "all", "red", or "grey", their mean.

    Raises:
        ValueError: the environment has no such observations, or ones of an unsupported kind; also from the function,
            where an observation isn't what its space says, or isn't finite.

    Example:
        >>> space, observe = observer(gymnasium.make("Pendulum-v1"), "state", (64, 64))
        >>> space.shape, observe(np.array([1, 0, 3])).tolist()
        ((3,), [1.0, 0.0, 3.0])
    """
    own = env.observation_space
    if isinstance(own, spaces.Dict) and _has_image(own):
        return _entries(own, size, channels)
    if obs == "state":
        return _vector(own, "state")
    box = _image_box(own)
    if obs == "pixels":
        return _own_image(box, size, channels) if box is not None else _rendered(env, "pixels", size, channels)
    vector, read = _vector(own, "both")
    image, draw = _rendered(env, "both", size, channels)
    space = spaces.Dict({"pixels": image, "state": vector})
    return space, lambda observation: {"pixels": draw(observation), "state": read(observation)}


def _image_box(space: spaces.Space[Any]) -> spaces.Box | None:
    """Return the observation space where it is one of uint8 images with channels, else None."""
    fits = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
    return space if fits and isinstance(space, spaces.Box) else None


def _has_image(space: spaces.Space[Any]) -> bool:
    """Tell whether the space is one of uint8 images, or has one anywhere inside."""
    parts = list(space.values()) if isinstance(space, spaces.Dict) else space if isinstance(space, spaces.Tuple) else []
    return _image_box(space) is not None or any(_has_image(part) for part in parts)


def _rendered(
    env: gymnasium.Env[Any, Any], obs: Obs, size: tuple[int, int], channels: Channels
) -> tuple[spaces.Box, Callable[[Any], Array]]:
    """Return the space [C, Y, X] of what the environment draws, and the function that draws it."""
    if env.render_mode != "rgb_array":
        images = "uint8 image observations or " if obs == "pixels" else ""
        remedy = "give such images, " if obs == "pixels" else ""
        raise ValueError(
            f'obs="{obs}" needs {images}render_mode="rgb_array", got observation space {env.observation_space} and '
            f'render_mode={env.render_mode!r}; {remedy}set that mode, or use obs="state"'
        )
    space = spaces.Box(0, 255, (3 if channels == "all" else 1, *size), np.uint8)
    return space, lambda observation: _image(env.render(), 3, size, channels, last=True, name="an image")


def _own_image(
    box: spaces.Box, size: tuple[int, int], channels: Channels, name: str = "an image"
) -> tuple[spaces.Box, Callable[[Any], Array]]:
    """Return the space [C, Y, X] and the function that turns the environment's own image into such a one."""
    last = is_channels_last(box.shape)
    given = box.shape[-1 if last else 0]
    kept = channels if given == 3 else "all"
    space = spaces.Box(0, 255, (given if kept == "all" else 1, *size), np.uint8)
    return space, lambda observation: _image(observation, given, size, kept, last=last, name=name)


def _image(given: Any, count: int, size: tuple[int, int], channels: Channels, *, last: bool, name: str) -> Array:
    """Return an image as uint8 [C, Y, X] of its own memory, or raise."""
    image = np.asarray(given)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1 if last else 0] != count:
        raise ValueError(
            f"{name} must be uint8 with {count} channels, {'last' if last else 'first'}, "
            f"got {image.dtype} {list(image.shape)}"
        )
    if not last:
        image = image.transpose(1, 2, 0)
    return np.array(resize_area(keep_channels(image, channels), size).transpose(2, 0, 1), order="C")


def _vector(
    space: spaces.Space[Any], obs: str, name: str = "the environment's observation"
) -> tuple[spaces.Box, Callable[[Any], Array]]:
    """Return the space [N] and the function that flattens an observation into such a vector."""
    if _has_image(space):
        raise ValueError(f'obs="{obs}" needs vectors, but this environment observes images, {space}: use obs="pixels"')
    try:
        size = spaces.flatdim(space)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f'obs="{obs}" needs an observation of fixed size, got {space}; {_REWRITE}') from error

    def observe(observation: Any) -> Array:
        try:
            if np.iscomplexobj(observation):  # NumPy would drop the imaginary parts, with a warning
                raise TypeError("complex numbers are no observation")
            with np.errstate(over="ignore"):
                vector = np.asarray(spaces.flatten(space, observation), np.float32)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} must be one of {space}, got {observation!r}") from error
        if vector.shape != (size,):
            raise ValueError(f"{name} must flatten to [{size}], got {list(vector.shape)}")
        if not np.isfinite(vector).all():
            raise NonFiniteError(f"{name} must be finite in float32, got {vector}")
        return vector

    return spaces.Box(-np.inf, np.inf, (size,), np.float32), observe


def _entries(
    own: spaces.Dict, size: tuple[int, int], channels: Channels
) -> tuple[spaces.Dict, Callable[[Any], dict[str, Array]]]:
    """Return the Dict of images [C, Y, X] and vectors [N], and the function that makes each entry such a one."""
    parts = {name: _entry(name, space, size, channels) for name, space in own.items()}

    def observe(observation: Any) -> dict[str, Array]:
        got = list(observation) if isinstance(observation, Mapping) else type(observation).__name__
        if not isinstance(observation, Mapping) or set(observation) != set(parts):
            raise ValueError(f"the environment's observation must have the entries {list(parts)}, got {got}")
        return {name: make(observation[name]) for name, (_, make) in parts.items()}

    return spaces.Dict({name: space for name, (space, _) in parts.items()}), observe


def _entry(
    name: Any, space: spaces.Space[Any], size: tuple[int, int], channels: Channels
) -> tuple[spaces.Box, Callable[[Any], Array]]:
    """Return space and function of one entry of a Dict, or raise where the entry or its name is unsupported."""
    if not isinstance(name, str) or not name.isprintable() or not name or any(letter in "/\\." for letter in name):
        raise ValueError(
            "the environment's observation must have printable names without slash, backslash or dot, "
            f"got {name!r}; {_REWRITE}"
        )
    where = f"the environment's observation[{name!r}]"
    box = _image_box(space)
    if box is not None:
        return _own_image(box, size, channels, where)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        raise ValueError(f"{where} must be one image or vector, got {space}; flatten nested spaces: {_REWRITE}")
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise ValueError(f"{where} must be a Box or Discrete, got {space}; make it a Box of floats: {_REWRITE}")
    axes = len(space.shape or ())
    is_grey = space.dtype == np.uint8 and axes == 2
    if is_grey or axes == 3:
        remedy = "give it a last axis of one channel" if is_grey else "give uint8 0 to 255, or a vector"
        raise ValueError(f"{where} must be a uint8 image [Y, X, C] or a vector, got {space}; {remedy}: {_REWRITE}")
    return _vector(space, "state", where)
