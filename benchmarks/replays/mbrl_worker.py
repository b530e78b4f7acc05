"""mbrl-lib's replay, run by mbrl-lib's own Python: `python -m replays.mbrl_worker FRAMES BATCH LENGTH`.

Its `ReplayBuffer` keeps the observation before and after each step, and `SequenceTransitionSampler` draws windows of
both, batch first. It answers each line of its input by the seconds of one batch; the first answer holds its version and
the bytes of its arrays.
"""

import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from mbrl.util.replay_buffer import ReplayBuffer, SequenceTransitionSampler

from replays import frames


def main() -> None:
    """Fill, check one batch, and answer line by line; whatever a library prints goes elsewhere."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    num_frames, batch_size, length = (int(word) for word in sys.argv[1:4])
    generator = np.random.default_rng(0)
    replay = ReplayBuffer(
        num_frames, frames.SHAPE, (frames.ACTION_DIM,), obs_type=np.uint8, rng=generator, max_trajectory_length=1
    )
    spans, action = [], np.zeros((frames.EPISODE, frames.ACTION_DIM), np.float32)
    for obs in frames.episodes(num_frames):
        start, rows = replay.cur_idx, len(obs)
        flags = np.zeros(rows, bool)
        replay.add_batch(obs, action[:rows], obs, np.zeros(rows, np.float32), flags, flags)
        spans.append((start, start + rows))
    arrays = (replay.obs, replay.next_obs, replay.action, replay.reward, replay.terminated, replay.truncated)
    sampler = SequenceTransitionSampler(replay.get_all(), spans, batch_size, length, 10**9, rng=generator)
    batches = iter(sampler)
    frames.check_runs(frames.numbers(next(batches).obs).T, num_frames)
    facts = {"version": version("mbrl"), "bytes": sum(array.nbytes for array in arrays) / num_frames}
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        next(batches)
        print(json.dumps(time.perf_counter() - begin), file=answers, flush=True)


if __name__ == "__main__":
    main()
