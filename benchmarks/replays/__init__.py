"""The parts of `benchmarks/replay.py`: the frames that are stored, and the replays of other projects."""
