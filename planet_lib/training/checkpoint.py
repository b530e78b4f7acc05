"""Checkpoints: one file that is always whole, holds plain data only, and can be loaded from a stranger.

A checkpoint is a dict of plain containers, numbers, strings and tensors (such as state dicts), under a header with a
format name and a version. It is loaded with `weights_only=True`, so a file from elsewhere cannot run code. Knows
neither models nor settings: what is in the dict is the caller's.

Source: ours. google-research/planet leaves checkpoints to TensorFlow's `Saver`; Kaixhin/PlaNet pickles whole objects.
"""

import contextlib
import io
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from planet_lib._files import atomic_path, check_file
from planet_lib._shapes import check_mapping, check_path, names_of, shown

_FORMAT = "planet_lib checkpoint"
_VERSION = 1
_RESERVED = ("torch", "cuda")


def save_checkpoint(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> None:
    """Write `payload` to `path`, so that at every moment a whole checkpoint lies there.

    The file is written beside its place, flushed to the disk, and moved onto `path`. The checkpoint that was there
    stays as `previous_checkpoint(path)`. Whatever fails, the old file is as it was. One process writes to a path at a
    time (`RunDirectory.lock`). A tensor that is a part of a larger one brings all of that into the file: `clone()` it.

    Args:
        path: where, such as `run.checkpoint_path`.
        payload: by name: None, booleans, numbers, strings, bytes, tensors and parameters, and dicts, lists and tuples
            of them. Tensors are loaded on the CPU, whatever device they were on.

    Raises:
        TypeError: the payload holds anything else, such as a NamedTuple or a NumPy array. Raised before writing.
        OSError: the disk is full, or the place not writable.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
        >>> save_checkpoint(path, {"model": nn.Linear(2, 1).state_dict(), "env_steps": 5000})
        >>> load_checkpoint(path)["env_steps"]
        5000
    """
    target = Path(check_path("path", path))
    if not isinstance(payload, Mapping):
        raise TypeError(f"payload must be a dict, got {type(payload).__name__}")
    try:
        _check_plain("payload", dict(payload))
    except RecursionError as error:
        raise ValueError("payload must end somewhere, got one that holds itself, or is nested too deeply") from error
    content = io.BytesIO()  # torch hides the reason of a failed write to a file: a full disk should say so
    torch.save({"format": _FORMAT, "version": _VERSION, "payload": dict(payload)}, content)
    with atomic_path(target) as temporary:
        # Not getbuffer(): kept by a failed write's traceback, it crashes Python 3.12.1 (CPython's issue 111049).
        temporary.write_bytes(content.getvalue())
        if target.exists():
            _keep(target, previous_checkpoint(target))


def load_checkpoint(path: str | os.PathLike[str], *, required: Iterable[str] = ()) -> dict[str, Any]:
    """Return the payload of a checkpoint, with every tensor on the CPU. Runs no code from the file.

    Checksums are verified, so a flipped bit is an error and not a slightly different model.

    Args:
        path: where.
        required: names that the payload must have, so that somebody else's checkpoint is told apart at once;
            "settings.env" is the entry "env" of the dictionary "settings".

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is truncated or damaged, holds more than plain data, was not written by
            `save_checkpoint`, or by a newer version of planet_lib, or lacks a required name. The message names the
            checkpoint before it, if there is one.
    """
    source, required = Path(check_path("path", path)), names_of("required", required)
    previous = previous_checkpoint(source)
    remedy = f"copy {previous.name} over it to go on from the one before" if previous.exists() else "start a new run"
    if not source.exists():
        raise FileNotFoundError(f"checkpoint {source} does not exist: {remedy}")
    check_file(source)
    try:
        with zipfile.ZipFile(source) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > source.stat().st_size:  # torch.save packs nothing: a small file must not fill the memory
                raise ValueError(f"{size} bytes packed into {source.stat().st_size}")
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged} differs")
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"checkpoint {source} holds more than plain data and is not loaded: {remedy}") from error
    except Exception as error:  # zipfile and torch raise about anything on a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"checkpoint {source} is damaged or unreadable (got {reason}): {remedy}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(
            f"checkpoint {source} was not written by planet_lib.training.save_checkpoint (got another file): {remedy}"
        )
    version, payload = content.get("version"), content.get("payload")
    if not isinstance(version, int) or version < 1 or not isinstance(payload, dict):
        raise ValueError(f"checkpoint {source} is damaged (got version {shown(version)}, no payload): {remedy}")
    if version > _VERSION:
        raise ValueError(
            f"checkpoint {source} has format version {version}, this planet_lib reads up to {_VERSION}: "
            "update planet_lib to the version that wrote it"
        )
    missing = [name for name in required if not _has(payload, name)]
    if missing:
        got = ", ".join(map(str, payload)) or "nothing"
        raise ValueError(
            f"checkpoint {source} is of another program, it lacks {', '.join(missing)}: {remedy} (got {got})"
        )
    return payload


def _has(payload: Any, name: str) -> bool:
    """Tell whether a payload has an entry, or one within another."""
    first, dot, rest = name.partition(".")
    return isinstance(payload, Mapping) and first in payload and (not dot or _has(payload[first], rest))


def previous_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The place of the checkpoint before the one at `path`.

    Example:
        >>> previous_checkpoint("runs/first/checkpoint.pt").name
        'checkpoint-previous.pt'
    """
    target = Path(check_path("path", path))
    if not target.name:
        raise ValueError(f"path must name a file, got {str(target)!r}")
    return target.with_name(f"{target.stem}-previous{target.suffix}")


def check_compatible(saved: Mapping[str, Any], wanted: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise one `ValueError` that lists every setting in `names` on which a checkpoint and a run disagree.

    Lists and tuples with the same values are the same, since JSON knows only lists.

    Example:
        >>> check_compatible({"cell": "rssm", "seed": 0}, {"cell": "ssm", "seed": 1}, ["cell"])
        Traceback (most recent call last):
            ...
        ValueError: checkpoint was made with cell='rssm', got cell='ssm': ask for the same settings, or start a new run
    """
    check_mapping("saved", saved)
    check_mapping("wanted", wanted)
    differences = [
        f"{_setting(saved, name)}, got {_setting(wanted, name)}"
        for name in names_of("names", names)
        if (name in saved) != (name in wanted) or not _same(_as_lists(saved.get(name)), _as_lists(wanted.get(name)))
    ]
    if differences:
        listed = "; ".join(differences)
        raise ValueError(f"checkpoint was made with {listed}: ask for the same settings, or start a new run")


def rng_state(**generators: torch.Generator | np.random.Generator) -> dict[str, Any]:
    """Return the states of torch's global generators and of the named ones, as plain data for a checkpoint.

    "torch" is the CPU generator and "cuda" a list of one state per CUDA device, empty where there is none. Other names
    are the caller's: torch generators give tensors, NumPy generators (PCG64, the default) a dict of integers.

    Example:
        >>> numpy_generator = np.random.default_rng(0)
        >>> saved = rng_state(replay=numpy_generator)
        >>> first = torch.rand(()), numpy_generator.random()
        >>> set_rng_state(saved, replay=numpy_generator)
        >>> first == (torch.rand(()), numpy_generator.random())
        True
    """
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    for name, generator in generators.items():
        if name in _RESERVED:
            raise ValueError(f"generators must not be named {name!r}, which is torch's own: choose another name")
        if isinstance(generator, torch.Generator):
            state[name] = generator.get_state()
        elif isinstance(generator, np.random.Generator):
            state[name] = _as_numbers(generator.bit_generator.state)
        else:
            raise TypeError(f"{name} must be a torch.Generator or a numpy.random.Generator, got {shown(generator)}")
    return state


def set_rng_state(state: Mapping[str, Any], **generators: torch.Generator | np.random.Generator) -> None:
    """Put torch's global generators and the named ones back to what `rng_state` returned.

    CUDA states are set for the devices that are here: on a machine with fewer, or none, the rest cannot be.

    Raises:
        ValueError: a named generator has no saved state, or one of another kind of generator. All generators are then
            as they were.
    """
    check_mapping("state", state)
    missing = [name for name in ("torch", "cuda", *generators) if name not in state]
    if missing:
        got = ", ".join(map(str, state)) or "nothing"
        raise ValueError(f"state must hold {', '.join(missing)}, got {got}: give what rng_state returned")
    before = rng_state(**generators)
    try:
        _set_all(state, generators)
    except Exception as error:  # torch and NumPy raise about anything on what is no state
        _set_all(before, generators)
        reason = " ".join(str(error).split())
        listed = ", ".join(("torch", *generators))
        raise ValueError(f"state must be what rng_state returned of {listed}, got another: {reason}") from error


def _as_numbers(state: Any) -> Any:
    """The state of a generator of NumPy, of whatever kind, with lists in place of arrays."""
    if isinstance(state, Mapping):
        return {name: _as_numbers(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray | np.generic) else state


def _set_all(state: Mapping[str, Any], generators: Mapping[str, torch.Generator | np.random.Generator]) -> None:
    """Set one generator after the other; raises where a state is none of it."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, device)
    for name, generator in generators.items():
        if isinstance(generator, torch.Generator):
            generator.set_state(state[name])
        else:
            generator.bit_generator.state = state[name]


def _setting(settings: Mapping[str, Any], name: str) -> str:
    """`name=value` as the message shows it."""
    return f"{name}={shown(_as_lists(settings[name]))}" if name in settings else f"no {name}"


def _same(saved: Any, wanted: Any) -> bool:
    """Tell whether two settings are equal; what cannot be compared, such as arrays, is not."""
    try:
        return bool(saved == wanted)
    except (ValueError, TypeError, RuntimeError):
        return False


def _as_lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_lists(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _as_lists(item) for key, item in value.items()}
    return value


def _check_plain(name: str, value: Any) -> None:
    """Raise a `TypeError` that names the place of the first value which safe loading would refuse."""
    kind = type(value)
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"keys of {name} must be strings or integers, got {key!r} ({type(key).__name__})")
            _check_plain(f"{name}[{key!r}]", item)
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(f"{name}[{index}]", item)
    elif kind in (Tensor, nn.Parameter) and (value.layout != torch.strided or value.is_meta or value.is_quantized):
        raise TypeError(f"{name} must be a dense tensor with numbers in it, got {shown(value)}: save it as one")
    elif value is not None and kind not in (bool, int, float, str, bytes, Tensor, nn.Parameter):
        raise TypeError(
            f"{name} must be a tensor, number, string or plain container, got {kind.__name__}: {_remedy(value)}"
        )


def _remedy(value: Any) -> str:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return "save its _asdict()"
    if isinstance(value, np.ndarray):
        return "save torch.from_numpy of it"
    if isinstance(value, np.generic):
        return "save its item()"
    return "save its state as plain values"


def _keep(current: Path, previous: Path) -> None:
    """Make `previous` a second name of the file at `current`, or a copy where the file system has no links."""
    with atomic_path(previous) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(current, temporary)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            shutil.copyfile(current, temporary)
