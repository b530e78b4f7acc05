"""What a checkpoint after every episode costs: milliseconds and bytes, with a replay of few and of many episodes.

    python benchmarks/checkpoint.py                    # the presets cpu and paper, 10 and 300 episodes in the replay
    python benchmarks/checkpoint.py --presets cpu --episodes 5 50 --out checkpoint.json

An episode is written once, as it ends; a checkpoint holds weights, optimiser, counters and random states, whatever the
replay holds. Both are timed as the training run does them, flushed to the disk: the median of --rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import planet_lib as pl
from planet_lib.data import save_episode
from planet_lib.training import RunState, update
from planet_lib.training.presets import PRESETS, build_model

ACTION_DIM = 2


def main() -> None:
    """Measure each preset with each size of the replay, print a table, write JSON where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=["cpu", "paper"])
    parser.add_argument("--episodes", nargs="+", type=int, default=[10, 300], help="in the replay")
    parser.add_argument("--length", type=int, default=251, help="rows of an episode")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    print("| preset | episodes in the replay | checkpoint | its file | episode | its file |\n|---|---|---|---|---|---|")
    results = []
    for preset in args.presets:
        for episodes in args.episodes:
            found = measure(preset, episodes, args.length, args.rounds)
            results.append({"preset": preset, "episodes": episodes, **found})
            times = (f"{found[name] * 1000:.0f} ms" for name in ("checkpoint_seconds", "episode_seconds"))
            sizes = (f"{found[name] / 1e6:.2f} MB" for name in ("checkpoint_bytes", "episode_bytes"))
            cells = [cell for pair in zip(times, sizes, strict=True) for cell in pair]
            print(f"| {preset} | {episodes} | {' | '.join(cells)} |", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps({"length": args.length, "rounds": args.rounds, "results": results}, indent=2))


def measure(name: str, episodes: int, length: int, rounds: int) -> dict[str, float]:
    """Seconds and bytes of one checkpoint and of one episode's file, with so many episodes in the replay."""
    preset = PRESETS[name]
    shape = (3 if preset.channels == "all" else 1, preset.image_size, preset.image_size)
    model = build_model(preset, "rssm", shape, ACTION_DIM)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate)
    replay = pl.SequenceReplay(episodes * length, obs_shape=shape, action_dim=ACTION_DIM)
    random = np.random.default_rng(0)
    for _ in range(episodes):
        replay.add(episode := smooth_episode(random, shape, length))
    update(model, optimizer, replay.sample(2, 3))  # so that Adam has its moments
    state = RunState(model=model, optimizer=optimizer, replay=replay, random=random)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        checkpoint = [timed(state.save, path, done={"episodes": episodes}) for _ in range(rounds)]
        one = [timed(save_episode, Path(folder) / "episodes", episode, number) for number in range(rounds)]
        file = next((Path(folder) / "episodes").iterdir())
        return {
            "checkpoint_seconds": statistics.median(checkpoint),
            "checkpoint_bytes": path.stat().st_size,
            "episode_seconds": statistics.median(one),
            "episode_bytes": file.stat().st_size,
        }


def timed(call: Any, *args: Any, **kwargs: Any) -> float:
    """The seconds that a call takes."""
    begin = time.perf_counter()
    call(*args, **kwargs)
    return time.perf_counter() - begin


def smooth_episode(random: np.random.Generator, shape: tuple[int, ...], length: int) -> pl.Episode:
    """An episode of frames that are smooth but for little noise, as rendered ones are."""
    channels, height, width = shape
    slope = np.linspace(0, 200, height)[:, None] + np.linspace(0, 40, width)
    moving = slope[None, None] + random.integers(0, 9, (length, channels, 1, 1)) + random.random((length, 1, 1, width))
    flags, is_later = np.zeros(length, np.bool_), np.arange(length) > 0
    return pl.Episode(
        obs=moving.astype(np.uint8),
        action=random.uniform(-1, 1, (length, ACTION_DIM)).astype(np.float32) * is_later[:, None],
        reward=random.random(length, np.float32) * is_later,
        is_first=~is_later,
        terminated=flags,
        truncated=flags,
    )


if __name__ == "__main__":
    main()
