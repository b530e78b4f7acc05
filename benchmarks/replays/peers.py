"""The replays that take turns, each filled with the same frames and sampled as its own project does it."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import planet_lib as pl
from replays import frames


class Side(NamedTuple):
    """One replay: `sample` makes one batch; `pixels` are those of such a batch, [T, B, C, Y, X]; bytes of one frame."""

    sample: Callable[[], Any]
    pixels: Callable[[Any], Tensor]
    frame_bytes: float

    def seconds(self) -> float:
        """How long one batch takes."""
        begin = time.perf_counter()
        self.sample()
        return time.perf_counter() - begin

    def check(self, num_frames: int) -> None:
        """End the run unless a batch holds windows of consecutive frames."""
        frames.check_runs(frames.numbers(self.pixels(self.sample()).numpy()), num_frames)

    def close(self) -> None:
        """Nothing to end."""


def replay_of(num_frames: int) -> pl.SequenceReplay:
    """Our replay, full."""
    replay = pl.SequenceReplay(num_frames, obs_shape=frames.SHAPE, action_dim=frames.ACTION_DIM)
    for obs in frames.episodes(num_frames):
        rows = np.arange(len(obs))
        zeros = {
            "action": np.zeros((len(obs), frames.ACTION_DIM), np.float32),
            "reward": np.zeros(len(obs), np.float32),
        }
        flags = {"is_first": rows == 0, "terminated": rows < 0, "truncated": rows == rows[-1]}
        replay.add(pl.Episode(obs=obs, **zeros, **flags))
    return replay


def ours(replay: pl.SequenceReplay, batch_size: int, length: int) -> dict[str, Side]:
    """Ours as bytes and as floats, each into buffers that are used again; the floats eager and compiled."""
    out = replay.sample(batch_size, length)
    images = torch.empty(length, batch_size, *frames.SHAPE)
    compiled = torch.compile(pl.dequantise, fullgraph=True, dynamic=False)

    def sampled() -> Tensor:
        obs = replay.sample(batch_size, length, out=out).obs
        return obs if isinstance(obs, Tensor) else next(iter(obs.values()))

    size = replay.nbytes / replay.capacity
    return {
        "ours, bytes": Side(sampled, lambda obs: obs, size),
        "ours, floats": Side(lambda: pl.dequantise(sampled(), out=images), lambda image: image, size),
        "ours, floats, compiled": Side(lambda: compiled(sampled(), out=images), lambda image: image, size),
    }


def memcpy(num_frames: int, batch_size: int, length: int) -> Side:
    """A plain copy of as many bytes, from a place among as many frames that wasn't read lately, to one used again."""
    count = min(batch_size * length, num_frames) * frames.FRAME_BYTES
    source, target = np.ones(num_frames * frames.FRAME_BYTES, np.uint8), np.ones(count, np.uint8)
    generator = np.random.default_rng(0)

    def copy() -> None:
        start = int(generator.integers(0, len(source) - count + 1))
        np.copyto(target, source[start : start + count])

    return Side(copy, lambda _: torch.empty(0), frames.FRAME_BYTES)


def kaixhin(checkout: Path, num_frames: int, batch_size: int, length: int) -> Side:
    """Kaixhin/PlaNet: `ExperienceReplay`, to floats with 5 bits and noise; its frames are those of all episodes."""
    sys.path.insert(0, str(checkout))
    sys.modules.setdefault("cv2", ModuleType("cv2"))  # its env.py imports it, to resize what isn't resized here
    replay = importlib.import_module("memory").ExperienceReplay(
        num_frames, False, None, frames.ACTION_DIM, 5, torch.device("cpu")
    )
    replay.observations[:] = np.concatenate(list(frames.episodes(num_frames)))
    replay.actions[:], replay.rewards[:], replay.nonterminals[:] = 0, 0, 1
    replay.full = True
    arrays = (replay.observations, replay.actions, replay.rewards, replay.nonterminals)
    size = sum(array.nbytes for array in arrays) / num_frames
    return Side(lambda: replay.sample(batch_size, length), lambda batch: batch[0], size)


def torchrl(num_frames: int, batch_size: int, length: int) -> Side:
    """TorchRL: a `TensorDictReplayBuffer` with a `SliceSampler`, which returns windows one after the other."""
    data, tensordict = importlib.import_module("torchrl.data"), importlib.import_module("tensordict")
    sampler = data.replay_buffers.SliceSampler(slice_len=length, traj_key="episode", cache_values=True)
    replay = data.TensorDictReplayBuffer(
        storage=data.LazyTensorStorage(num_frames), sampler=sampler, batch_size=batch_size * length
    )
    for number, obs in enumerate(frames.episodes(num_frames)):
        rows = len(obs)
        fields = {"pixels": torch.from_numpy(obs), "action": torch.zeros(rows, frames.ACTION_DIM)}
        fields |= {"reward": torch.zeros(rows, 1), "done": torch.zeros(rows, 1, dtype=torch.bool)}
        replay.extend(tensordict.TensorDict({**fields, "episode": torch.full((rows,), number)}, [rows]))
    stored = replay.storage._storage
    size = sum(value.numel() * value.element_size() for value in stored.values(True, True)) / num_frames
    return Side(
        replay.sample, lambda batch: batch["pixels"].view(batch_size, length, *frames.SHAPE).transpose(0, 1), size
    )


class MbrlWorker:
    """mbrl-lib in a process of its own, which checks and times itself."""

    def __init__(self, python: str, num_frames: int, batch_size: int, length: int) -> None:
        command = [python, "-m", "replays.mbrl_worker", *(str(size) for size in (num_frames, batch_size, length))]
        folder = Path(__file__).parents[1]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)
        facts = self._read()
        self.version: str = facts["version"]
        self.frame_bytes: float = facts["bytes"]

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("mbrl-lib's process ended; what it says stands above")
        return json.loads(line)

    def seconds(self) -> float:
        """How long one batch takes, by its own clock."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._read())

    def check(self, num_frames: int) -> None:
        """It has checked itself before it answered."""

    def close(self) -> None:
        """End its process."""
        self.process.communicate()
