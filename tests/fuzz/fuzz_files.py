"""Files of any bytes against what reads them, led by coverage (atheris, libFuzzer), for as long as one likes.

    pip install atheris
    python tests/fuzz/fuzz_files.py --runs 50000

Every target runs in a process of its own, from seeds that it makes itself, under a limit of time and memory. A reader
may give an answer or raise a ValueError, or an OSError for what the system refuses; anything else is a finding, whose
input is kept in --out. Two targets put the bytes into archives with right checksums, where mutations would seldom get.
"""

import argparse
import importlib
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_FORMATS = ["zipfile", "csv", "json.decoder", "json"]
_SEPARATOR = b"|||"


def main() -> int:
    """Fuzz the targets one after the other, and return how many found something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50_000, help="inputs for each target")
    parser.add_argument("--targets", nargs="*", default=sorted(TARGETS), choices=sorted(TARGETS), help="which of them")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"), help="where inputs that fail are kept")
    parser.add_argument("--only", choices=sorted(TARGETS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.stdout.write("atheris is not installed, so nothing is fuzzed: pip install atheris\n")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.only is not None:
        _fuzz(arguments.only, arguments.runs, arguments.out)
        return 0
    failed = [name for name in arguments.targets if not _passes(name, arguments.runs, arguments.out)]
    sys.stdout.write(
        f"{len(arguments.targets)} targets of {arguments.runs:,} inputs: {', '.join(failed) or 'nothing'} found" + "\n"
    )
    return len(failed)


def _passes(name: str, runs: int, out: Path) -> bool:
    command = [sys.executable, __file__, "--only", name, "--runs", str(runs), "--out", str(out)]
    code = subprocess.run(command, check=False).returncode
    sys.stdout.write(f"{name}: {'passed' if code == 0 else f'failed with code {code}, see {out}'}" + "\n")
    return code == 0


def _fuzz(name: str, runs: int, out: Path) -> None:
    """Hand one target over to libFuzzer, which ends the process."""
    import atheris
    import torch  # first, and as it is: to follow every branch in it takes minutes, and says nothing

    for module in _FORMATS:
        sys.modules.pop(module, None)
    sys.modules.pop("torch._weights_only_unpickler")
    with atheris.instrument_imports(include=["planet_lib", *_FORMATS]):
        for name_of in ("planet_lib.data", "planet_lib.training"):
            importlib.import_module(name_of)
    unpickler = importlib.import_module("torch._weights_only_unpickler")
    unpickler.Unpickler.load = atheris.instrument_func(unpickler.Unpickler.load)
    torch.serialization._weights_only_unpickler = unpickler
    seeds, read = TARGETS[name]
    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    corpus = place / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(place)):
        (corpus / f"seed{number}").write_bytes(seed)
    (place / "work").mkdir()
    os.chdir(place / "work")

    def one(content: bytes) -> None:
        try:
            read(content)
        except ValueError as error:
            if "\n" in str(error):
                raise RuntimeError(f"a message of several lines: {error}") from error
        except OSError:
            pass

    settings = [f"-runs={runs}", "-timeout=20", "-rss_limit_mb=3000", "-max_len=20000", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *settings, f"-artifact_prefix={out.resolve()}/{name}-", str(corpus)], one)
    atheris.Fuzz()


def _episode(place: Path) -> dict[str, bytes]:
    """The members of an episode file."""
    import numpy as np

    from planet_lib.data import save_episode
    from planet_lib.types import Episode

    rows = np.arange(4)
    seen = {"camera": np.zeros((4, 1, 3, 5), np.uint8), "joints": np.ones((4, 2), np.float32)}
    flags = (rows == 0, rows < 0, rows == 3)
    path = save_episode(
        place, Episode(seen, np.zeros((4, 1), np.float32), rows.astype(np.float32), *flags), 0, replace=True
    )
    return _members(path)


def _checkpoint(place: Path) -> Path:
    import torch

    from planet_lib.training import save_checkpoint

    path = place / "checkpoint.pt"
    save_checkpoint(path, {"model": torch.nn.Linear(2, 1).state_dict(), "steps": 3, "more": [1.5, "x", None, (True,)]})
    return path


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _packed(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, part in members.items():
            archive.writestr(name, part)
    return content.getvalue()


def _read_episode(content: bytes) -> None:
    from planet_lib.data import load_episode

    Path("episode.npz").write_bytes(content)
    load_episode("episode.npz")


_EPISODE_NAMES = ["obs/camera", "obs/joints", "action", "reward", "is_first", "terminated", "truncated"]


def _read_arrays(content: bytes) -> None:
    parts = content.split(_SEPARATOR)
    _read_episode(_packed({f"{name}.npy": part for name, part in zip(_EPISODE_NAMES, parts, strict=False)}))


def _read_checkpoint(content: bytes) -> None:
    from planet_lib.training import load_checkpoint

    Path("checkpoint.pt").write_bytes(content)
    load_checkpoint("checkpoint.pt")


def _read_pickle(content: bytes) -> None:
    """The pickle of a checkpoint is any bytes; nothing in it may run, which a trap in the seeds would show."""
    if not _READ_PICKLE:
        _READ_PICKLE.update(_members(_checkpoint(Path.cwd())))
    _read_checkpoint(
        _packed({name: content if name.endswith("/data.pkl") else part for name, part in _READ_PICKLE.items()})
    )
    if Path("sprung").exists():
        raise RuntimeError("code of the file has run")


_READ_PICKLE: dict[str, bytes] = {}


def _pickles(place: Path) -> list[bytes]:
    whole = next(part for name, part in _members(_checkpoint(place)).items() if name.endswith("/data.pkl"))
    return [
        whole,
        b"cbuiltins\nopen\n(X\x06\x00\x00\x00sprungX\x01\x00\x00\x00wtR.",
        b"cposix\nsystem\n(S'touch sprung'\ntR.",
    ]


def _read_metrics(content: bytes) -> None:
    from planet_lib.training import read_metrics

    Path("metrics.csv").write_bytes(content)
    read_metrics("metrics.csv")


def _read_settings(content: bytes) -> None:
    from planet_lib.training import RunDirectory

    Path("run").mkdir(exist_ok=True)
    Path("run/settings.json").write_bytes(content)
    RunDirectory.open("run")


def _settings(place: Path) -> list[bytes]:
    from planet_lib.training import RunDirectory

    return [RunDirectory.create(place / "run", {"env": "dmc:cartpole-balance", "seed": 0}).settings_path.read_bytes()]


def _replay(directory: Path) -> None:
    from planet_lib.data import SequenceReplay

    with SequenceReplay(12, obs_shape=(2,), action_dim=1, directory=directory) as replay:
        if replay.num_steps:
            replay.sample(2, 3)
            list(replay.episodes())


def _read_index(content: bytes) -> None:
    _replay(Path("replay"))
    Path("replay/index.json").write_bytes(content)
    try:
        _replay(Path("replay"))
    finally:
        Path("replay/index.json").write_bytes(_index(Path("other"))[0])


def _index(place: Path) -> list[bytes]:
    import numpy as np

    from planet_lib.data import SequenceReplay
    from planet_lib.types import Episode

    rows = np.arange(4)
    numbers = (np.ones((4, 2), np.float32), np.zeros((4, 1), np.float32), rows.astype(np.float32))
    with SequenceReplay(12, obs_shape=(2,), action_dim=1, directory=place / "made") as replay:
        replay.clear()
        replay.add(Episode(*numbers, rows == 0, rows < 0, rows == 3))
    return [(place / "made/index.json").read_bytes()]


CSV = [b"env_steps,kind\n1000,train\n,eval\n20", b'a,"b\nc"\n1,"2,3"\n', b"a\n\xff\n", b"\n"]
TARGETS = {
    "episode": (
        lambda place: [_packed(_episode(place)), _packed(_episode(place), zipfile.ZIP_DEFLATED)],
        _read_episode,
    ),
    "episode-arrays": (
        lambda place: [_SEPARATOR.join(_episode(place)[f"{name}.npy"] for name in _EPISODE_NAMES)],
        _read_arrays,
    ),
    "checkpoint": (lambda place: [_checkpoint(place).read_bytes()], _read_checkpoint),
    "checkpoint-pickle": (_pickles, _read_pickle),
    "metrics": (lambda place: CSV, _read_metrics),
    "settings": (_settings, _read_settings),
    "replay-index": (_index, _read_index),
}


if __name__ == "__main__":
    sys.exit(main())
