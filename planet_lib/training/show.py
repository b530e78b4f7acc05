"""All pictures of one episode: what a model sees in it, and what it foresees. Joins `diagnostics` and `pictures`."""

import os
from pathlib import Path

import numpy as np

from planet_lib._shapes import check_count, check_path
from planet_lib.models import WorldModel
from planet_lib.training.diagnostics import check_given, open_loop, reconstruct
from planet_lib.training.pictures import open_loop_strip, open_loop_video, reconstruction_video
from planet_lib.types import Episode


def draw_episode(
    stem: str | os.PathLike[str], model: WorldModel, episode: Episode, *, context: int = 5, length: int = 50
) -> list[Path]:
    """Draw the reconstruction of an episode, and an open-loop prediction from its beginning, as video and strip.

    Files: STEM-reconstruction.mp4, STEM-open-loop.mp4 and STEM-open-loop.png; where the observation is a dictionary,
    STEM-NAME-... for each entry with pixels. Without pixels nothing is drawn.

    Args:
        stem: how the files' paths begin.
        model: the world model.
        episode: any episode that it fits.
        context: rows that are seen before the open-loop prediction; fewer where the episode is shorter.
        length: rows in all of it.

    Returns:
        The files that were written.

    Raises:
        ImportError: imageio-ffmpeg or Pillow is not installed; the message says how to get them.
        OSError: the encoder failed, for instance on a full disk.

    Example:
        >>> import tempfile
        >>> from planet_lib.training.presets import PRESETS, build_model
        >>> model = build_model(PRESETS["cpu"], "rssm", (3, 16, 16), 1)
        >>> rows = np.arange(7)
        >>> episode = Episode(obs=np.zeros((7, 3, 16, 16), np.uint8), action=np.zeros((7, 1), np.float32),
        ...     reward=np.zeros(7, np.float32), is_first=rows == 0, terminated=rows > 6, truncated=rows == 6)
        >>> [path.name for path in draw_episode(Path(tempfile.mkdtemp()) / "first", model, episode)]
        ['first-reconstruction.mp4', 'first-open-loop.mp4', 'first-open-loop.png']
    """
    path = check_path("stem", stem)
    check_given(model, episode)
    check_count(context=context, length=length)
    if length < min(context, len(episode.reward)):
        raise ValueError(f"length must be at least context={context}, got {length}")
    entries = episode.obs if isinstance(episode.obs, dict) else {"": episode.obs}
    written = []
    for name, frames in entries.items():
        if frames.dtype != np.uint8 or frames.ndim != 4:
            continue
        begin = f"{path}-{name}" if name else path
        seen = min(context, len(frames))
        foreseen = open_loop(model, episode, context=seen, length=length, image=name or None)
        shown = frames[: len(foreseen)]
        files = [Path(f"{begin}-{what}") for what in ("reconstruction.mp4", "open-loop.mp4", "open-loop.png")]
        reconstruction_video(files[0], frames, reconstruct(model, episode, image=name or None))
        open_loop_video(files[1], shown, foreseen, context=seen)
        open_loop_strip(files[2], shown, foreseen, context=seen)
        written += files
    return written
