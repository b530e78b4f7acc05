"""Recorded data as episodes: runs, folders and files of `.npz`, and Minari's datasets, without any environment.

Whatever the source, what comes out is `Episode` under the library's conventions: rows aligned, actions in [-1, 1],
images uint8 and channels first. The module knows files and datasets, and neither replay nor models. Minari, an extra,
is imported only where one of its datasets is asked for; nothing is ever downloaded.

Source: the layout of a dataset is that of Minari (https://minari.farama.org), T + 1 observations and T actions.
"""

import importlib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from planet_lib._shapes import check_path, shown
from planet_lib.data._checks import check_episode
from planet_lib.data._obs import check_names
from planet_lib.data.episodes import load_episode, load_episodes
from planet_lib.types import Array, Episode

_SCHEME = "minari:"
_TOLERANCE = 1e-6  # of an action beyond its box: what rounding explains
_FILES = "episode-NNNNNN-LLLL.npz"

Bound: TypeAlias = float | Sequence[float] | Array | None
Reader: TypeAlias = Callable[[Any], Array | dict[str, Array]]


def read_episodes(
    source: str | os.PathLike[str],
    *,
    obs: str | None = None,
    action_low: Bound = None,
    action_high: Bound = None,
) -> Iterator[Episode]:
    """Read the episodes of a source, one at a time, in its own order.

    Args:
        source: a run's directory (its `episodes/`), a folder of episodes (`episode-NNNNNN-LLLL.npz`), one `.npz` file
            of any name, or "minari:NAME" for a Minari dataset on this machine, as in "minari:D4RL/door/human-v2".
        obs: takes this entry alone where observations are dictionaries; None takes what there is.
        action_low: for Minari; see `minari_episodes`.
        action_high: likewise.

    Raises:
        FileNotFoundError: where there is no such source. A Minari dataset is not downloaded; the message says how.
        ValueError: where a folder holds no episode, `obs` names no entry, or, when its turn comes, an episode is
            damaged or breaks a rule of `Episode`; the message names it.
        ImportError: where a Minari dataset is asked for and minari is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from planet_lib.data import save_episode
        >>> flags = np.zeros(3, bool)
        >>> episode = Episode(obs={"camera": np.zeros((3, 1, 8, 8), np.uint8), "joints": np.ones((3, 2), np.float32)},
        ...     action=np.zeros((3, 1), np.float32), reward=np.array([0, 1, 2], np.float32),
        ...     is_first=np.arange(3) == 0, terminated=flags, truncated=flags)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_episode(folder, episode, index=0)
        ...     [read.obs.shape for read in read_episodes(folder, obs="joints")]
        [(3, 2)]
    """
    name = check_path("source", source)
    _check_obs_name(obs)
    if name.startswith(_SCHEME):
        return minari_episodes(name.removeprefix(_SCHEME), obs=obs, action_low=action_low, action_high=action_high)
    if action_low is not None or action_high is not None:
        raise ValueError(
            f"action_low and action_high must be None for {name}, got {shown(action_low)} and {shown(action_high)}: "
            "the actions in episode files lie in [-1, 1] already"
        )
    return (_pick(episode, obs, name) for episode in _from_files(Path(name)))


def minari_episodes(
    dataset: Any, *, obs: str | None = None, action_low: Bound = None, action_high: Bound = None
) -> Iterator[Episode]:
    """Read a Minari dataset as episodes, one at a time, in its own order.

    Row t has observation t with the action and reward that led to it: the T actions and rewards of the dataset are rows
    1 to T, and row 0 has zeros. Observations are those that `planet_lib.envs.make_env` gives of the same environment:
    a uint8 image becomes [C, Y, X] at its own size, a dictionary with images among its entries stays one, with images
    and flat vectors [N]; all else is flattened, in Gymnasium's order, to one vector [N].
    Actions of a box go linearly from [action_low, action_high] to [-1, 1]; those of a `Discrete` become one-hot.
    An episode that was cut off in recording ends neither terminated nor truncated.

    Args:
        dataset: the name of one on this machine, or a `minari.MinariDataset`, filtered perhaps.
        obs: takes this entry of dictionaries alone.
        action_low: number, or one per dimension, that becomes -1; None is the low end of the dataset's action space.
        action_high: likewise 1.

    Raises:
        FileNotFoundError: there is no such dataset on this machine; the message says how to get it.
        ValueError: the spaces hold something else than images, vectors and choices, the bounds are not finite or not
            low < high, or, when its turn comes, an episode has actions beyond them, another number of observations
            than actions and one, or breaks a rule of `Episode`.
        ImportError: minari is not installed.
    """
    _check_obs_name(obs)
    if isinstance(dataset, str):
        dataset = _load(dataset)
    spaces = [getattr(getattr(dataset, name, None), "shape", ...) for name in ("observation_space", "action_space")]
    is_one = hasattr(dataset, "spec") and hasattr(dataset, "iterate_episodes") and ... not in spaces
    if isinstance(dataset, type) or not is_one:
        got = shown(dataset)
        raise TypeError(f"dataset must be the name of a Minari dataset or a minari.MinariDataset, got {got}")
    name = f"{_SCHEME}{dataset.spec.dataset_id}"
    observe = _observer(dataset.observation_space, obs, name)
    act = _actor(dataset.action_space, action_low, action_high, name)
    return (_converted(recorded, observe, act, name) for recorded in dataset.iterate_episodes())


def shapes_of(episode: Episode) -> tuple[tuple[int, ...] | dict[str, tuple[int, ...]], int]:
    """Return obs_shape and action_dim of an episode, as `SequenceReplay` and `build_model` take them.

    Example:
        >>> flags = np.zeros(3, bool)
        >>> episode = Episode(obs={"camera": np.zeros((3, 1, 8, 8), np.uint8), "joints": np.ones((3, 2), np.float32)},
        ...     action=np.zeros((3, 1), np.float32), reward=np.zeros(3, np.float32), is_first=np.arange(3) == 0,
        ...     terminated=flags, truncated=flags)
        >>> shapes_of(episode)
        ({'camera': (1, 8, 8), 'joints': (2,)}, 1)
    """
    check_episode(episode)
    obs, action_dim = episode.obs, int(episode.action.shape[1])
    if isinstance(obs, dict):
        return {name: tuple(value.shape[1:]) for name, value in obs.items()}, action_dim
    return tuple(obs.shape[1:]), action_dim


def _check_obs_name(obs: str | None) -> None:
    """Raise unless the entry that is wanted of dictionaries has a name, or there is none."""
    given: object = obs
    if given is not None and not isinstance(given, str):
        raise TypeError(f"obs must be the name of an entry or None, got {shown(given)}")


def _from_files(path: Path) -> Iterator[Episode]:
    """Return the episodes of a run, a folder or a file; what is missing is found at once."""
    if path.is_file():
        return iter([load_episode(path)])
    if not path.is_dir():
        likely = f'; did you mean "{_SCHEME}{path}"?' if re.search(r"-v\d+$", path.name) else ""
        raise FileNotFoundError(
            f'source must be a run directory, a folder or file of episodes, or "minari:NAME", got {path}, which does '
            f"not exist{likely}"
        )
    folder = path / "episodes" if (path / "episodes").is_dir() else path
    episodes = load_episodes(folder)
    first = next(episodes, None)
    if first is None:
        others = sorted(folder.glob("*.npz"))
        got = f"{len(others)} other .npz, such as {others[0].name}: rename them" if others else "none"
        raise ValueError(f"source must hold episodes named {_FILES}, got {got} in {folder}")
    return itertools.chain([first], episodes)


def _pick(episode: Episode, obs: str | None, name: str) -> Episode:
    """Return the episode with one entry of its observations alone, or as it is."""
    if obs is None:
        return episode
    if not isinstance(episode.obs, dict):
        raise ValueError(f"obs must be None, since the observations of {name} are no dictionaries, got {obs!r}")
    if obs not in episode.obs:
        raise ValueError(f"obs must be one of {', '.join(episode.obs)}, the entries of {name}, got {obs!r}")
    return episode._replace(obs=episode.obs[obs])


def _load(name: str) -> Any:
    """Return a Minari dataset of this machine, or raise with the remedy."""
    remedy = "pip install 'planet-worldmodel[minari]' (from a checkout: pip install -e '.[minari]')"
    try:
        return importlib.import_module("minari").load_dataset(name)
    except ImportError as error:
        raise ImportError(f'"{_SCHEME}{name}" needs minari with all its parts ({error}): {remedy}') from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'"{_SCHEME}{name}" must be a dataset on this machine, got none: get it with `minari download {name}`, or '
            "say with MINARI_DATASETS_PATH where yours lie"
        ) from error
    except Exception as error:  # names that Minari, or its file system, takes for none
        raise ValueError(
            f'dataset must be the name of a Minari dataset, as in "D4RL/door/human-v2", got {shown(name)} ({error})'
        ) from error


def _converted(recorded: Any, observe: Reader, act: Callable[[Any], Array], name: str) -> Episode:
    """Return an episode of Minari's as one of ours, or raise with its number."""
    try:
        actions = _array(recorded.actions, "actions")
        if not len(actions):
            raise ValueError("actions must be at least one, got none; leave the episode out with filter_episodes")
        obs, action = observe(recorded.observations), act(actions)
        entries = list(obs.values()) if isinstance(obs, dict) else [obs]
        rows = np.arange(len(action) + 1)
        if any(len(entry) != len(rows) for entry in entries):
            got = sorted({len(entry) for entry in entries})
            raise ValueError(f"observations must be {len(rows)}, one more than actions, got {got}")
        with np.errstate(over="ignore"):  # what overflows becomes inf, which the check names
            reward = np.concatenate([[0.0], _array(recorded.rewards, "rewards", num_axes=1)]).astype(np.float32)
        episode = Episode(
            obs=obs,
            action=np.concatenate([np.zeros_like(action, shape=(1, action.shape[1])), action]),
            reward=reward,
            is_first=rows == 0,
            terminated=_flags(recorded.terminations, "terminations"),
            truncated=_flags(recorded.truncations, "truncations"),
        )
        check_episode(episode)
    except (ValueError, TypeError) as error:  # and not their type: NumPy's own take other arguments
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"episode {recorded.id} of {name}: {error}") from error
    return episode


def _observer(space: Any, obs: str | None, name: str) -> Reader:
    """Return what turns the observations of an episode, as a space has them, into arrays of rows; or raise."""
    where = f"the observations of {name}"
    entries = getattr(space, "spaces", None)
    entries = dict(entries) if isinstance(entries, dict) else None
    if obs is not None:
        if entries is None:
            raise ValueError(f"obs must be None, since {where} are no dictionaries, got {obs!r}")
        if obs not in entries:
            raise ValueError(f"obs must be one of {', '.join(map(str, entries))}, the entries of {name}, got {obs!r}")
        read = _reader(entries[obs], f"{where}[{obs!r}]")
        return lambda values: read(_entry(values, obs, where))
    if entries is None or not any(_is_image(part) for part in entries.values()):
        return _reader(space, where)
    check_names(where, entries)
    readers = {key: _reader(part, f"{where}[{key!r}]") for key, part in entries.items()}
    return lambda values: {key: read(_entry(values, key, where)) for key, read in readers.items()}


def _entry(values: Any, key: Any, where: str) -> Any:
    """Return an entry of recorded dictionaries or tuples, or raise: not all datasets are as their space has it."""
    try:
        return values[key]
    except (KeyError, IndexError) as error:
        got = ", ".join(map(str, values)) or "nothing" if isinstance(values, dict) else type(values).__name__
        raise ValueError(
            f"{where} must have the entry {key!r}, got {got}; record it, or take another with obs"
        ) from error


def _reader(space: Any, where: str) -> Callable[[Any], Array]:
    """Return what makes [L, C, Y, X] of images and [L, N] of all else."""
    if not _is_image(space):
        flatten = _flattener(space, where)
        return lambda values: np.ascontiguousarray(flatten(values))
    axes = len(space.shape) + 1
    if axes == 3:
        return lambda values: _array(values, where, num_axes=axes)[:, None]
    if space.shape[-1] <= space.shape[0]:  # the channels are the shorter end, and here the last
        return lambda values: np.ascontiguousarray(_array(values, where, num_axes=axes).transpose(0, 3, 1, 2))
    return lambda values: _array(values, where, num_axes=axes)


def _flattener(space: Any, where: str) -> Callable[[Any], Array]:
    """Return what makes vectors [L, N] float32, in the order of Gymnasium's own `flatten`; or raise."""
    kind = type(space).__name__
    if kind in ("Dict", "Tuple"):
        parts = space.spaces.items() if kind == "Dict" else enumerate(space.spaces)
        flatteners = {key: _flattener(part, f"{where}[{key!r}]") for key, part in parts}
        return lambda values: np.concatenate(
            [make(_entry(values, key, where)) for key, make in flatteners.items()], axis=1
        )
    if kind == "Discrete":
        return lambda values: _one_hot(values, space, where)
    if kind not in ("Box", "MultiBinary") or len(space.shape) == 3:
        raise ValueError(f"{where} must be uint8 images, vectors or choices, got {space}; convert them beforehand")

    def flatten(values: Any) -> Array:
        given = _array(values, where)
        with np.errstate(over="ignore"):  # what overflows becomes inf, which the check names
            return given.astype(np.float32).reshape(len(given), math.prod(given.shape[1:]))

    return flatten


def _array(values: Any, where: str, *, kinds: str = "biuf", num_axes: int | None = None) -> Array:
    """Return what was recorded as an array of numbers, step by step, or raise."""
    try:
        given = np.asarray(values)
    except Exception as error:  # ragged lists, and whatever an object makes of it
        raise ValueError(f"{where} must be an array, got {shown(values)}") from error
    if given.ndim < 1 or given.dtype.kind not in kinds or (num_axes or given.ndim) != given.ndim:
        rows = {None: "one row a step", 1: "one a step"}.get(num_axes, f"one row a step, {num_axes} axes in all")
        raise ValueError(f"{where} must be an array of numbers, {rows}, got {shown(values)}")
    return given


def _flags(values: Any, where: str) -> Array:
    """Return flags of steps, behind that of the reset, or raise."""
    return np.concatenate([[False], _array(values, where, kinds="biu", num_axes=1)]).astype(np.bool_)


def _is_image(space: Any) -> bool:
    return type(space).__name__ == "Box" and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def _actor(space: Any, low: Bound, high: Bound, name: str) -> Callable[[Any], Array]:
    """Return what makes actions [T, A] in [-1, 1] of an episode's, or raise where there is no such way."""
    where = f"the actions of {name}"
    kind = type(space).__name__
    if kind == "Discrete":
        if low is not None or high is not None:
            raise ValueError(f"action_low and action_high must be None, since {where} are choices, {space}")
        return lambda values: _one_hot(values, space, where)
    if kind != "Box":
        raise ValueError(f"{where} must be a Box or Discrete, got {space}; convert them beforehand")
    own = {"action_low": (space.low, low), "action_high": (space.high, high)}
    ends = [_end(end, *bounds, space.shape) for end, bounds in own.items()]
    if not np.isfinite(ends).all() or not (ends[0] < ends[1]).all():
        raise ValueError(
            f"{where} must have finite bounds, low < high, got {ends[0].tolist()} and {ends[1].tolist()}; give "
            "action_low and action_high"
        )
    middle, half = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2

    def rescale(values: Any) -> Array:
        given = np.asarray(values, np.float64).reshape(len(values), -1)
        if given.shape[1] != len(half):
            raise ValueError(f"actions must be {len(half)} numbers a step (the action space), got {given.shape[1]}")
        scaled = (given - middle) / half
        beyond = ~(np.abs(scaled) <= 1 + _TOLERANCE)
        if beyond.any():
            step, dimension = np.argwhere(beyond)[0]
            raise ValueError(
                f"actions must lie in the box {ends[0].tolist()} to {ends[1].tolist()}, got "
                f"{scaled[step, dimension] * half[dimension] + middle[dimension]:g} in dimension {dimension} of step "
                f"{step}; give action_low and action_high that hold them all"
            )
        return np.clip(scaled, -1.0, 1.0).astype(np.float32)

    return rescale


def _end(name: str, own: Any, given: Bound, shape: tuple[int, ...]) -> Array:
    """Return one end of the actions, one number per dimension, or raise."""
    try:
        values = np.asarray(own if given is None else given)
        if values.dtype.kind not in "iuf":
            raise TypeError(f"got {values.dtype}")
        return np.broadcast_to(values.astype(np.float64), shape).ravel()
    except Exception as error:  # whatever NumPy raises on anything
        raise TypeError(f"{name} must be a number, or one for each of {list(shape)}, got {shown(given)}") from error


def _one_hot(values: Any, space: Any, where: str) -> Array:
    """Return choices [L] as one-hot float32 [L, n], or raise."""
    given = np.asarray(values)
    if given.dtype.kind not in "iu":
        raise ValueError(f"{where} must be whole numbers of {space}, got {given.dtype}; convert them with astype(int)")
    if given.size != len(given):
        raise ValueError(f"{where} must be one choice of {space} a row, got {list(given.shape)}; convert them")
    choices = given.ravel().astype(np.int64) - int(space.start)
    wrong = (choices < 0) | (choices >= space.n)
    if wrong.any():
        raise ValueError(f"{where} must lie in {space}, got {choices[wrong][0] + space.start} at {wrong.argmax()}")
    rows: Array = np.eye(int(space.n), dtype=np.float32)[choices]
    return rows
