"""Pictures of what a model sees and imagines: videos and strips to look at.

Truth and prediction stand side by side, enlarged without smoothing so that every pixel can be judged, under a label and
a count of frames. Knows only arrays of frames. Needs the `train` extra, imported when a picture is made. Files are
written whole or not at all.

Source: the open-loop video follows google-research/planet's summaries (a few frames seen, the rest imagined; truth,
prediction, difference). Labels, borders and counts are ours.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planet_lib._files import atomic_path
from planet_lib._shapes import check_count, check_path, check_positive, is_whole, shown
from planet_lib.training._extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

Frames = np.ndarray[Any, Any]

_BACKGROUND = (24, 26, 31)
_TEXT = (236, 238, 242)
_SEEN = (245, 178, 66)  # amber: the model is shown these frames
_IMAGINED = (84, 160, 255)  # blue: it has to make them up
_PLAIN = (122, 128, 140)
_SLOWEST, _FASTEST = 0.01, 1000.0  # frames per second that the file's format has room for
_PANEL = 256  # pixels that a panel is wide at least, where `scale` is left to us
_BORDER, _GAP, _LINE = 4, 18, 34


def reconstruction_video(
    path: str | os.PathLike[str], truth: Frames, prediction: Frames, *, fps: float = 15.0, scale: int | None = None
) -> None:
    """Write an mp4 with the observation on the left and the model's reconstruction on the right.

    Args:
        path: where, ending in .mp4.
        truth: [T, C, Y, X] uint8, with C = 1 (grey) or 3 (red, green, blue).
        prediction: the same shape: what the decoder makes of the posterior.
        fps: frames per second.
        scale: how many pixels wide and high a pixel is shown; None makes the longer side at least 256 (4 for 64x64).

    Raises:
        ValueError: shapes differ, no frame, another number of channels, or another ending.
        TypeError: frames that are no uint8 arrays.
        ImportError: imageio-ffmpeg or Pillow is not installed; the message says how to get them.
        OSError: the encoder failed, for instance on a full disk. Nothing is left at `path` that was not there.

    Example:
        >>> import tempfile
        >>> frames = np.zeros((3, 3, 16, 16), np.uint8)
        >>> place = Path(tempfile.mkdtemp()) / "reconstruction.mp4"
        >>> reconstruction_video(place, frames, frames)
        >>> place.exists()
        True
    """
    _check_pair(truth, prediction)
    _check_ending(path, ".mp4")
    panels = {"observation": truth, "reconstruction": prediction}
    scale = _scale(truth, scale)
    length = len(truth)
    _write_video(
        Path(path), (_page(panels, t, scale, _PLAIN, f"frame {t + 1} of {length}") for t in range(length)), length, fps
    )


def open_loop_video(
    path: str | os.PathLike[str],
    truth: Frames,
    prediction: Frames,
    *,
    context: int = 5,
    fps: float = 15.0,
    scale: int | None = None,
) -> None:
    """Write an mp4 of truth, model and difference: the first `context` frames seen, the rest imagined open loop.

    The border is amber while the model sees the frames, and blue once it imagines them. The difference is model minus
    truth, halved and centred: grey where they agree, brighter where the model is brighter.

    Args:
        path: where, ending in .mp4.
        truth: [T, C, Y, X] uint8, with C = 1 or 3.
        prediction: the same shape: reconstructions in the first `context` frames, then predictions.
        context: how many frames the model has seen, 0 to T.
        fps: frames per second.
        scale: as in `reconstruction_video`.

    Raises:
        ValueError, TypeError, ImportError, OSError: as `reconstruction_video`.
    """
    _check_pair(truth, prediction)
    _check_context(context, len(truth))
    _check_ending(path, ".mp4")
    panels = {"truth": truth, "model": prediction, "difference": difference(truth, prediction)}
    scale = _scale(truth, scale)
    length = len(truth)
    pages = (
        _page(panels, t, scale, _SEEN if t < context else _IMAGINED, _open_loop_caption(t, context, length))
        for t in range(length)
    )
    _write_video(Path(path), pages, length, fps)


def open_loop_strip(
    path: str | os.PathLike[str],
    truth: Frames,
    prediction: Frames,
    *,
    context: int = 5,
    num_frames: int = 10,
    scale: int | None = None,
) -> None:
    """Write a PNG of the open-loop video: `num_frames` columns evenly over time; rows truth, model, difference.

    Arguments, colours and errors are those of `open_loop_video`. Fewer columns are drawn where there are fewer frames.

    Example:
        >>> import tempfile
        >>> frames = np.zeros((20, 1, 16, 16), np.uint8)
        >>> place = Path(tempfile.mkdtemp()) / "open_loop.png"
        >>> open_loop_strip(place, frames, frames)
        >>> place.exists()
        True
    """
    _check_pair(truth, prediction)
    _check_context(context, len(truth))
    _check_ending(path, ".png")
    check_positive(num_frames=num_frames)
    check_count(num_frames=num_frames)
    scale = _scale(truth, scale, panel=_PANEL // 2)
    times = np.unique(np.linspace(0, len(truth) - 1, num_frames).round().astype(int))
    height, width = truth.shape[2] * scale, truth.shape[3] * scale
    left = 110
    page = _canvas(left + len(times) * (width + _GAP), _LINE + 3 * (height + _GAP))
    rows = {"truth": truth, "model": prediction, "difference": difference(truth, prediction)}
    for row, (name, frames) in enumerate(rows.items()):
        top = _LINE + row * (height + _GAP)
        _write_text(page, (left - _GAP, top + height // 2), name, anchor="rm")
        for column, t in enumerate(times):
            colour = _SEEN if t < context else _IMAGINED
            place = (left + column * (width + _GAP), top)
            _paste(page, frames[t], scale, place, colour)
            if row == 0:
                label = f"seen {t + 1}" if t < context else f"imagined +{t + 1 - context}"
                _write_text(page, (place[0] + width // 2, _LINE // 2), label, anchor="mm", colour=colour)
    with atomic_path(path) as temporary:
        page.save(temporary)


def difference(truth: Frames, prediction: Frames) -> Frames:
    """Return prediction minus truth as frames to look at: 128 where they agree, halved so that all values fit.

    Example:
        >>> difference(np.array([0, 100, 255], np.uint8), np.array([255, 100, 0], np.uint8))
        array([255, 128,   0], dtype=uint8)
    """
    signed = prediction.astype(np.int16) - truth.astype(np.int16)
    return ((signed + 256) // 2).astype(np.uint8)


def _open_loop_caption(t: int, context: int, length: int) -> str:
    if t < context:
        return f"seen {t + 1} of {context}"
    return f"imagined +{t + 1 - context} of {length - context}"


def _page(
    panels: dict[str, Frames], t: int, scale: int, colour: tuple[int, int, int], caption: str
) -> np.ndarray[Any, Any]:
    """One frame of a video, [Y, X, 3] uint8, sides even as the encoder needs them."""
    _, height, width = next(iter(panels.values()))[t].shape
    height, width = height * scale, width * scale
    page_width = _GAP + len(panels) * (width + _GAP)
    page = _canvas(page_width + page_width % 2, 2 * _LINE + height + height % 2)
    for index, (name, frames) in enumerate(panels.items()):
        left = _GAP + index * (width + _GAP)
        _write_text(page, (left + width // 2, _LINE // 2), name, anchor="mm")
        _paste(page, frames[t], scale, (left, _LINE), colour)
    _write_text(page, (_GAP, _LINE + height + _LINE // 2), caption, anchor="lm", colour=colour)
    return np.asarray(page)


def _canvas(width: int, height: int) -> "Image":
    image: Image = require("PIL.Image", purpose="the picture").new("RGB", (width, height), _BACKGROUND)
    return image


def _write_text(
    page: "Image", place: tuple[int, int], text: str, *, anchor: str, colour: tuple[int, int, int] = _TEXT
) -> None:
    draw = require("PIL.ImageDraw", purpose="the picture").Draw(page)
    draw.text(place, text, fill=colour, font=_font(), anchor=anchor)


@functools.cache
def _font() -> Any:
    return require("PIL.ImageFont", purpose="the picture").load_default(size=16)


def _paste(page: "Image", frame: Frames, scale: int, place: tuple[int, int], border: tuple[int, int, int]) -> None:
    """Draw one frame [C, Y, X], each pixel `scale` wide and high, with a border around it (outside the pixels)."""
    grown = np.broadcast_to(frame, (3, *frame.shape[1:])).transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
    image = require("PIL.Image", purpose="the picture").fromarray(np.ascontiguousarray(grown))
    left, top = place
    page.paste(border, (left - _BORDER, top - _BORDER, left + image.width + _BORDER, top + image.height + _BORDER))
    page.paste(image, place)


def _write_video(path: Path, pages: Iterable[np.ndarray[Any, Any]], length: int, fps: float) -> None:
    """Encode pages [Y, X, 3] as H.264, count the frames that are in the file, and only then put it in its place."""
    check_positive(fps=fps)
    fps = float(fps)
    if not _SLOWEST <= fps <= _FASTEST:
        raise ValueError(f"fps must be between {_SLOWEST} and {_FASTEST:.0f}, got {fps}")
    require("imageio_ffmpeg", purpose="the video")
    with atomic_path(path) as temporary:
        try:
            written = _encode(temporary, iter(pages), fps)
        except (OSError, RuntimeError) as error:  # imageio-ffmpeg's own message is the encoder's whole log
            raise OSError(f"{path} could not be encoded: ffmpeg failed (is the disk full?)") from error
        if written != length:
            raise OSError(f"{path} could not be encoded: {written} of {length} frames were written (is the disk full?)")


def _encode(path: Path, pages: Iterator[np.ndarray[Any, Any]], fps: float) -> int:
    """Return how many frames can be read back."""
    ffmpeg = require("imageio_ffmpeg", purpose="the video")
    first = next(pages)
    writer = ffmpeg.write_frames(
        str(path),
        (first.shape[1], first.shape[0]),
        fps=fps,
        codec="libx264",
        quality=8,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-movflags", "+faststart"],
    )
    with contextlib.closing(writer):
        writer.send(None)
        for page in itertools.chain([first], pages):
            writer.send(np.ascontiguousarray(page))
    return int(ffmpeg.count_frames_and_secs(str(path))[0])


def _scale(frames: Frames, scale: int | None, *, panel: int = _PANEL) -> int:
    if scale is None:
        return -(-panel // int(max(frames.shape[2:])))
    check_positive(scale=scale)
    check_count(scale=scale)
    return int(scale)


def _check_pair(truth: Frames, prediction: Frames) -> None:
    for name, frames in (("truth", truth), ("prediction", prediction)):
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
            got = f"{frames.dtype} array" if isinstance(frames, np.ndarray) else type(frames).__name__
            raise TypeError(f"{name} must be a uint8 array [T, C, Y, X], got {got}")
        if frames.ndim != 4 or frames.shape[1] not in (1, 3) or 0 in frames.shape:
            raise ValueError(
                f"{name} must be [T, C, Y, X] with C=1 (grey) or 3 (red, green, blue), got {list(frames.shape)}"
            )
    if truth.shape != prediction.shape:
        raise ValueError(f"prediction must be {list(truth.shape)} like truth, got {list(prediction.shape)}")


def _check_context(context: int, length: int) -> None:
    if not is_whole(context, 0, length):
        raise ValueError(f"context must be between 0 and the number of frames T={length}, got {shown(context)}")


def _check_ending(path: str | os.PathLike[str], ending: str) -> None:
    text = check_path("path", path)
    if Path(text).suffix != ending:
        raise ValueError(f"path must end in {ending}, got {shown(text)}")
