"""Episodes as files: one compressed `.npz` each, written whole or not at all.

A run that is stopped at any moment leaves only complete episodes behind, from which it resumes. The module knows the
`Episode` and its files, and neither replay nor environments. NumPy's own reader opens the files; nothing in them is
ever unpickled.

The files are compressed: rendered frames, smooth for the most part, shrink well. One array per field of `Episode`;
where observations are dictionaries, their entries are the arrays `obs/NAME`.

Source: google-research/planet, `tools/numpy_episodes.py`.
Differences from the source: names that sort by collection order; files appear atomically; nothing is overwritten
unasked.
"""

import io
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from numbers import Integral
from pathlib import Path

import numpy as np

from planet_lib.data._checks import check_episode
from planet_lib.data._obs import flat_fields, nested_obs
from planet_lib.types import Episode

_NAME = re.compile(r"episode-(\d{6,})-(\d{4,})\.npz")
# What zipfile, zlib and NumPy raise on truncated, damaged and foreign content; the last line is about headers, which
# NumPy parses as Python and believes when they tell of more rows than any memory holds.
_DAMAGE = (
    *(ValueError, TypeError, KeyError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error),
    *(tokenize.TokenError, SyntaxError, ArithmeticError, MemoryError),
)


def save_episode(directory: str | os.PathLike[str], episode: Episode, index: int, *, replace: bool = False) -> Path:
    """Write an episode to `directory` as `episode-<index>-<rows>.npz`, and return its path.

    The file is written under a temporary name in the same directory, flushed to the disk and then renamed, so that it
    is never seen half done. The directory is made if it is missing.

    Args:
        directory: where the episodes of one run lie.
        episode: the episode; checked first, so that a broken one is never stored.
        index: its number in order of collection, from 0. At least six digits in the name, and four for the rows.
        replace: whether an episode of that index may be there already, to be removed once this one is written: a
            resumed run collects the episode anew that its checkpoint had not yet counted.

    Raises:
        FileExistsError: where the directory has an episode of that index already and replace is False.
        TypeError, ValueError: where the episode or the index is wrong; nothing is written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> flags = np.zeros(3, bool)
        >>> episode = Episode(obs=np.zeros((3, 2), np.float32), action=np.zeros((3, 1), np.float32),
        ...     reward=np.array([0, 1, 2], np.float32), is_first=np.arange(3) == 0, terminated=flags, truncated=flags)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = save_episode(directory, episode, index=12)
        ...     path.name, float(load_episode(path).reward.sum())
        ('episode-000012-0003.npz', 3.0)
    """
    given: object = index
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if not whole or index < 0:
        kind = ValueError if whole else TypeError
        raise kind(f"index must be a whole number of at least 0, got {index!r}; count episodes from 0")
    check_episode(episode)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    old = [path for present, path in _episode_paths(folder) if present == index]
    if old and not replace:
        raise FileExistsError(
            f"index must be new, got {index}, which {old[0]} has; take the next free one or pass replace=True"
        )
    final = folder / f"episode-{index:06d}-{len(episode.reward):04d}.npz"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **flat_fields(episode._asdict()))
            file.flush()
            os.fsync(file.fileno())
        for path in old:  # first, so that a kill in between can't leave two files of one index
            if path != final:
                path.unlink()
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    return final


def episode_checksum(episode: Episode, start: int = 0) -> int:
    """Return a checksum (CRC-32) of all fields of an episode: names, types, shapes and values.

    It tells whether recordings are still those of an earlier day, and not whether somebody forged them.

    Args:
        episode: the episode.
        start: the checksum of the episodes before it, so that one number stands for all of them in their order.

    Example:
        >>> flags = np.zeros(3, bool)
        >>> episode = Episode(obs=np.zeros((3, 2), np.float32), action=np.zeros((3, 1), np.float32),
        ...     reward=np.array([0, 1, 2], np.float32), is_first=np.arange(3) == 0, terminated=flags, truncated=flags)
        >>> checksum = episode_checksum(episode)
        >>> episode.reward[2] = 3
        >>> checksum == episode_checksum(episode)
        False
    """
    for name, value in flat_fields(episode._asdict()).items():
        start = zlib.crc32(f"{name} {value.dtype} {value.shape}".encode(), start)
        start = zlib.crc32(np.ascontiguousarray(value).tobytes(), start)
    return start


def load_episode(path: str | os.PathLike[str]) -> Episode:
    """Read an episode that `save_episode` wrote, and check it.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is truncated, damaged, or something else; the message names it.
    """
    content = io.BytesIO(Path(path).read_bytes())  # a disk that fails does so here; below, only the content can
    try:
        with zipfile.ZipFile(content) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        obs_names = [name for name in names if name == "obs" or name.startswith("obs/")]
        others = set(Episode._fields) - {"obs"}
        if not obs_names or ("obs" in obs_names and obs_names != ["obs"]) or set(names) - set(obs_names) != others:
            raise ValueError(f"it holds {sorted(names)} instead of {sorted(Episode._fields)}, or obs/NAME for obs")
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            obs = nested_obs({name: arrays[name] for name in obs_names})
            episode = Episode(obs=obs, **{name: arrays[name] for name in others})
        check_episode(episode)
    except _DAMAGE as error:
        raise ValueError(f"{path} is not a whole episode file ({error}); remove it or restore it") from error
    return episode


def load_episodes(directory: str | os.PathLike[str], *, count: int | None = None) -> Iterator[Episode]:
    """Read all episodes of a directory in order of their index, one at a time.

    Other files, and temporary ones of a run that was killed, are ignored. An episode file that can't be read is an
    error, raised when its turn comes.

    Args:
        directory: where the episodes of one run lie.
        count: only those with indices below it, all of which must be there; None reads what there is.

    Raises:
        FileNotFoundError: where there is no such directory.
        ValueError: where two files have the same index, or there are fewer than `count`.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"directory must be a folder of episodes, got {folder}, which is none")
    paths = sorted(_episode_paths(folder))
    for (index, path), (following, other) in pairwise(paths):
        if index == following:
            raise ValueError(f"each index must be there once, got {path.name} and {other.name}; remove one of them")
    if count is not None:
        paths = [(index, path) for index, path in paths if index < count]
        if len(paths) != count:
            raise ValueError(f"{folder} must hold {count} episodes by now, got {len(paths)}: restore them")
    return (load_episode(path) for _, path in paths)


def _episode_paths(folder: Path) -> list[tuple[int, Path]]:
    """Return index and path of each file that is named as an episode, in no particular order."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return [(int(match[1]), path) for match, path in matches if match]
