"""Pixels between bytes and floats: the quantisation and dequantisation noise a model is trained on.

Pixels stay uint8 in environments, replay and files. `dequantise` turns them into floats once per batch and once per
act, on the device of the images, and the encoder and the image term of the objective receive the *same* floats.
`prepare` does so for whatever an observation is made of: images become floats, vectors pass, dictionaries go entry by
entry. `to_uint8` goes the other way, to show reconstructions. None of them knows models, replay or environments.

Source: Hafner et al. 2019 (arXiv:1811.04551), section 5, "5 bit depth"; google-research/planet, `tools/preprocess.py`.
Differences from the source, to save time: the noise is drawn as bytes, eight to one draw of the generator. It therefore
takes 256 evenly spaced values inside each level, at their centres, whose mean is that of the uniform distribution and
whose variance is smaller by 1 / 65536 of it. And a batch of many frames [T, B, ...] gets the exclusive or of three
tables of fresh bytes, one row per t, one per b and one per t + b: each value is uniform and any five of them are
independent, exactly, at a few percent of the draws.
"""

import math
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from planet_lib._shapes import is_whole, shown
from planet_lib.types import Observation

_BYTES_PER_DRAW = 8
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_PIXELS_AT_ONCE = 2**17  # per thread: what stays in a core's own cache from one operation to the next


def dequantise(
    obs: Tensor,
    *,
    bits: int = 5,
    noise: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Turn uint8 pixels into floats of reduced bit depth, with noise that fills the gaps between the levels.

    image = (floor(obs / 2^(8 - bits)) + noise) / 2^bits - 0.5,  noise ~ U(0, 1)

    The result lies in [-0.5, 0.5), uniform within each of the 2^bits levels. Noise that the function draws itself comes
    from torch's global generator of the device of `obs` (`torch.manual_seed` replays it) and takes 256 values per
    level, so that the level is exact: floor((image + 0.5) * 2^bits) is always the pixel's. Noise given by the caller is
    used as it is; where it is within rounding of 1, or `dtype` is narrower than float32, rounding can reach the next
    level, and 0.5.

    Args:
        obs: pixels [..., C, Y, X] uint8, on any device; unchanged.
        bits: the bit depth kept, 1 to 8.
        noise: [..., C, Y, X] floats in [0, 1), of the shape of `obs`, to replay or compare a conversion. Zeros give the
            lower edge of each level.
        dtype: the floating type of the result. The arithmetic of types narrower than float32 happens in float32.
        out: where the result is written instead of new memory: contiguous, of its shape, type and device.

    Returns:
        The images [..., C, Y, X], of `dtype`, on the device of `obs`: `out` where it was given.

    Raises:
        TypeError: where obs is not uint8, or noise or dtype is not floating, or a tensor is not dense.
        ValueError: where bits, the shape or device of noise, or out doesn't fit.

    Source: google-research/planet, `tools/preprocess.py`.

    Example:
        >>> import torch
        >>> pixels = torch.tensor([[[0, 7, 8, 255]]], dtype=torch.uint8)
        >>> dequantise(pixels, noise=torch.zeros(1, 1, 4))
        tensor([[[-0.5000, -0.5000, -0.4688,  0.4688]]])
        >>> image = dequantise(pixels)
        >>> bool((image >= -0.5).all() and (image < 0.5).all())
        True
    """
    _check_pixels(obs, bits, noise, dtype, out)
    bits = int(bits)
    wide = dtype if dtype == torch.float64 else torch.float32
    if noise is not None:
        image = (obs >> (8 - bits)).to(wide).add_(noise).mul_(2.0**-bits).sub_(0.5)
    elif not _is_grid(obs):
        image = _noisy(obs, _random_bytes(obs, obs.shape), bits, wide)
    elif obs.device.type != "cpu" or torch.compiler.is_compiling():
        by_t, by_b, by_both = _noise_tables(obs)
        diagonals = by_both.unfold(0, obs.shape[1], 1).movedim(-1, 1)  # [t, b] -> by_both[t + b]
        image = _noisy(obs, (by_t[:, None] ^ by_b ^ diagonals).view(obs.shape), bits, wide)
    else:
        image = torch.empty(obs.shape, dtype=dtype, device=obs.device) if out is None else out
        return _dequantise_in_pieces(obs, bits, wide, image)
    return image.to(dtype) if out is None else out.copy_(image)


@overload
def prepare(
    obs: Tensor, *, bits: int = 5, noise: Observation | None = None, dtype: torch.dtype = torch.float32
) -> Tensor: ...


@overload
def prepare(
    obs: dict[str, Tensor], *, bits: int = 5, noise: Observation | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]: ...


def prepare(
    obs: Observation, *, bits: int = 5, noise: Observation | None = None, dtype: torch.dtype = torch.float32
) -> Observation:
    """Turn an observation into the floats that encoder and objective take: `dequantise` where it is uint8.

    Tensors of floats, such as vectors, pass through as they are, of whatever floating type. A dictionary gives a new
    one of the same names, each entry by the same rule. Reads types and shapes only, so that no device is waited for.

    Args:
        obs: pixels [..., C, Y, X] uint8, floats of any shape, or a dictionary of such, on any device; unchanged.
        bits: the bit depth kept of pixels, 1 to 8.
        noise: as in `dequantise`, to replay a conversion; where obs is a dictionary, one with an entry for each that is
            uint8. Floats need none, and any that is given for them is not used. None draws it.
        dtype: the floating type that pixels become.

    Raises:
        TypeError: where obs or an entry is neither a uint8 nor a floating tensor, or noise is of another kind than obs.
        ValueError: where the dictionary is empty, or noise lacks an entry or has one that obs has not; otherwise as
            `dequantise`.

    Example:
        >>> import torch
        >>> seen = {"camera": torch.full((1, 1, 2), 255, dtype=torch.uint8), "joints": torch.tensor([1.5, -2.0])}
        >>> floats = prepare(seen, noise={"camera": torch.zeros(1, 1, 2)})
        >>> floats["camera"], floats["joints"] is seen["joints"]
        (tensor([[[0.4688, 0.4688]]]), True)
    """
    if not isinstance(obs, dict):
        if isinstance(noise, dict):
            raise TypeError("noise must be a tensor or None, as obs is no dictionary, got a dictionary")
        return _prepare("obs", obs, bits, noise, dtype)
    if not obs:
        raise ValueError("obs must have at least one entry, got an empty dictionary")
    for name, value in obs.items():  # all of them before the first one draws noise
        _check_prepared(f"obs[{name!r}]", value)
    if noise is None:
        return {name: _prepare(f"obs[{name!r}]", value, bits, None, dtype) for name, value in obs.items()}
    if not isinstance(noise, dict):
        raise TypeError(f"noise must be a dictionary or None, as obs is a dictionary, got {_describe(noise)}")
    needed = [name for name, value in obs.items() if isinstance(value, Tensor) and value.dtype == torch.uint8]
    if any(name not in noise for name in needed) or any(name not in obs for name in noise):
        raise ValueError(f"noise must have the entries {needed}, those of obs that are uint8, got {list(noise)}")
    return {name: _prepare(f"obs[{name!r}]", value, bits, noise.get(name), dtype) for name, value in obs.items()}


def to_uint8(image: Tensor) -> Tensor:
    """Turn floats in [-0.5, 0.5) into uint8 pixels, to be shown: floor((image + 0.5) * 256), clipped to 0 ... 255.

    It undoes `dequantise`: exactly with bits=8, and in the leading `bits` bits otherwise. That is why it rounds down:
    each pixel owns the floats from its lower edge up to the next one's. Values outside, which a decoder may well
    produce, are clipped; nan becomes 0 (black).

    Args:
        image: floats of any shape, on any device; unchanged.

    Returns:
        The pixels, uint8, of the same shape and device.

    Raises:
        TypeError: where image is not floating.

    Example:
        >>> import torch
        >>> to_uint8(torch.tensor([-0.7, -0.5, 0.0, 0.499, 0.5, float("nan")]))
        tensor([  0,   0, 128, 255, 255,   0], dtype=torch.uint8)
    """
    if not isinstance(image, Tensor) or not image.is_floating_point() or image.layout != torch.strided:
        raise TypeError(f"image must be a floating tensor with values in [-0.5, 0.5), got {_describe(image)}")
    wide = image.detach().to(torch.promote_types(image.dtype, torch.float32))
    return wide.add(0.5).mul_(256).nan_to_num_(nan=0.0).floor_().clamp_(0, 255).to(torch.uint8)


def _prepare(name: str, obs: object, bits: int, noise: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Dequantise one tensor where it is uint8, and hand it back where it is floating."""
    tensor = _check_prepared(name, obs)
    return dequantise(tensor, bits=bits, noise=noise, dtype=dtype) if tensor.dtype == torch.uint8 else tensor


def _check_prepared(name: str, obs: object) -> Tensor:
    """Return an observation, or raise where it is neither pixels nor floats."""
    if not isinstance(obs, Tensor):
        remedy = "; flatten nested dictionaries into one" if isinstance(obs, dict) else ""
        raise TypeError(f"{name} must be a uint8 or float tensor, got {type(obs).__name__}{remedy}")
    if obs.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {_describe(obs)}; convert it with to_dense()")
    if obs.dtype != torch.uint8 and not obs.is_floating_point():
        raise TypeError(f"{name} must be uint8 (images) or float (vectors), got {obs.dtype}")
    return obs


def _noisy(obs: Tensor, noise: Tensor, bits: int, wide: torch.dtype) -> Tensor:
    """Put pixels and bytes of noise together: (level + (noise + 1/2) / 256) / 2^bits - 1/2, exact in every step."""
    kept = (obs & _leading(bits)).to(wide)  # the level, times 2^(8 - bits)
    return kept.add_(noise.to(wide), alpha=2.0**-bits).mul_(2.0**-8).add_(2.0 ** -(bits + 9) - 0.5)


def _dequantise_in_pieces(obs: Tensor, bits: int, wide: torch.dtype, image: Tensor) -> Tensor:
    """Do what `_noisy` does with the noise of a grid, a few rows at a time, so that each stays in the cache."""
    by_t, by_b, by_both = _noise_tables(obs)
    num_t, num_b, size = len(by_t), len(by_b), by_t.shape[1]
    rows = min(max(_PIXELS_AT_ONCE * torch.get_num_threads() // size, 1), num_b)
    noise = torch.empty(rows, size, dtype=torch.uint8)
    floats, images = torch.empty(rows, size, dtype=wide), image.view(num_t, num_b, size)
    wider = None if image.dtype == wide else torch.empty_like(floats)
    shift = torch.tensor(2.0 ** -(bits + 9) - 0.5, dtype=wide)
    for start in range(0, num_b, rows):  # outside, so that the rows of the tables stay in the cache as well
        stop = min(start + rows, num_b)
        random, float_noise = noise[: stop - start], floats[: stop - start]
        for t in range(num_t):
            here = images[t, start:stop]
            piece = here if wider is None else wider[: stop - start]
            torch.bitwise_xor(by_both[t + start : t + stop], by_t[t], out=random).bitwise_xor_(by_b[start:stop])
            piece.copy_(obs[t, start:stop].flatten(1) & _leading(bits))
            piece.add_(float_noise.copy_(random), alpha=2.0**-bits)
            torch.add(shift, piece, alpha=2.0**-8, out=piece)
            if wider is not None:
                here.copy_(piece)
    return image


def _leading(bits: int) -> int:
    """The mask of the leading bits of a byte."""
    return 256 - (1 << (8 - bits))


def _is_grid(obs: Tensor) -> bool:
    """Tell whether tables for the two leading axes save most of the draws; reads the shape only."""
    if obs.ndim < 3:
        return False
    num_t, num_b = obs.shape[:2]
    return obs.numel() > 0 and 8 * (num_t + num_b) < num_t * num_b


def _noise_tables(obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the bytes whose exclusive or is the noise of row [t, b]: number t, number b and number t + b of the three.

    A set of rows whose noise cancels has each row of each table an even number of times. Two rows can't, and neither
    can four: they would be the corners of a rectangle, whose t + b are not pairwise the same. Hence any five are
    independent.
    """
    num_t, num_b = obs.shape[:2]
    counts = [num_t, num_b, num_t + num_b - 1]
    size = obs[0, 0].numel()
    by_t, by_b, by_both = torch.split(_random_bytes(obs, (sum(counts), size)), counts)
    return by_t, by_b, by_both


def _random_bytes(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw uniform bytes on the device of `like`, eight per 64-bit draw: the generator is the slow part."""
    count = math.prod(shape)
    draws = (count + _BYTES_PER_DRAW - 1) // _BYTES_PER_DRAW
    words = torch.randint(_LOWEST, _HIGHEST, (draws,), dtype=torch.int64, device=like.device)
    return words.view(torch.uint8)[:count].view(shape)


def _check_pixels(obs: Tensor, bits: int, noise: Tensor | None, dtype: torch.dtype, out: Tensor | None) -> None:
    """Raise for arguments that `dequantise` can't convert; reads types and shapes only."""
    if not isinstance(obs, Tensor) or obs.dtype != torch.uint8 or obs.layout != torch.strided:
        raise TypeError(
            f"obs must be a uint8 tensor of pixels, got {_describe(obs)}; pass the pixels as the environment gives "
            "them, 0 to 255 (floats, such as vector observations, need no dequantise)"
        )
    if not is_whole(bits, 1, 8):
        raise ValueError(f"bits must be between 1 and 8, got {shown(bits)}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating type, got {shown(dtype)}")
    if noise is not None:
        if not isinstance(noise, Tensor) or not noise.is_floating_point() or noise.layout != torch.strided:
            raise TypeError(f"noise must be a floating tensor with values in [0, 1), got {_describe(noise)}")
        if noise.shape != obs.shape:
            raise ValueError(f"noise must have the shape of obs, {list(obs.shape)}, got {list(noise.shape)}")
        if noise.device != obs.device:
            raise ValueError(f"noise must be on the device of obs, {obs.device}, got {noise.device}; move it there")
    if out is not None:
        fits = isinstance(out, Tensor) and (out.shape, out.dtype, out.device) == (obs.shape, dtype, obs.device)
        if not fits or out.layout != torch.strided or not out.is_contiguous() or out.requires_grad:
            got = f"{list(out.shape)} on {out.device}" if isinstance(out, Tensor) else "none"
            got += ", with gradients" if isinstance(out, Tensor) and out.requires_grad else ""
            raise ValueError(
                f"out must be {dtype} {list(obs.shape)}, contiguous on {obs.device} (dtype, obs), got "
                f"{_describe(out)}, {got}"
            )


def _describe(value: object) -> str:
    """Name the type of an argument for an error: a tensor by its dtype, and by its layout where it is sparse."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"a {value.dtype} tensor" if value.layout == torch.strided else f"a {value.dtype} tensor, {value.layout}"
