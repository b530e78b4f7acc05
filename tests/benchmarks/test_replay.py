"""The replay benchmark: its arithmetic, its check, and a tiny run."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        spec = importlib.util.spec_from_file_location("replay_benchmark", BENCHMARKS / "replay.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def test_frames_tell_their_number_as_bytes_and_as_quantised_floats(benchmark):
    frames = benchmark.frames
    stored = np.concatenate(list(frames.episodes(2345)))
    assert stored.shape == (2345, 3, 64, 64)
    assert frames.numbers(stored).tolist() == list(range(2345))
    floats = np.floor(stored / 8) / 32 - 0.5 + 0.03
    assert frames.numbers(floats).tolist() == list(range(2345))


@pytest.mark.parametrize("numbers", [[[3, 5], [4, 7]], [[8, 5], [9, 6]], [[-1, 5], [0, 6]]])
def test_windows_that_skip_or_leave_what_is_stored_end_the_run(benchmark, numbers):
    benchmark.frames.check_runs(np.array([[3, 5], [4, 6]]), 9)
    with pytest.raises(SystemExit, match="no windows of consecutive frames"):
        benchmark.frames.check_runs(np.array(numbers), 9)


def test_ratios_are_taken_round_by_round_and_judged(benchmark):
    seconds = {
        "memcpy": [1.0, 2.0, 3.0],
        "ours, bytes": [1.0, 4.0, 5.0],
        "ours, floats, compiled": [2.0, 2.0, 2.0],
        "Kaixhin": [20.0, 14.0, 18.0],
        "TorchRL": [10.0, 10.0, 10.0],
    }
    found = {line["what"]: line for line in benchmark.judge(seconds, 12_300.0)}
    assert found["seconds: memcpy / ours, bytes"] == {
        "what": "seconds: memcpy / ours, bytes",
        "found": 0.6,
        "least": 0.5,
        "most": 1.0,
        "goal": ">= 0.7",
        "met": False,
    }
    floats = found["seconds: Kaixhin / ours, floats, compiled"]
    assert (floats["found"], floats["least"], floats["most"], floats["met"]) == (9, 7, 10, True)
    assert found["seconds: TorchRL / ours, bytes"]["goal"] is None
    assert found["bytes of a stored frame / its pixels"]["met"]
    assert benchmark.judged("", 1.31, 1, 2, "growth")["met"] is False
    assert len(found) == 4  # nobody is judged who isn't there


def test_the_rounds_ask_all_in_order_and_leave_out_the_warm_up(benchmark):
    log = []

    class Side:
        def __init__(self, name):
            self.name = name

        def seconds(self):
            log.append(self.name)
            return float(len(log))

    assert benchmark.take_turns({"a": Side("a"), "b": Side("b")}, rounds=2, warmup=1) == {"a": [3, 5], "b": [4, 6]}
    assert log == ["a", "b"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--kaixhin", "nowhere"],
            "--kaixhin must be a checkout of Kaixhin/PlaNet, got nowhere, which has no memory.py",
        ),
        (["--frames", "40"], "--frames and --sizes must be at least --length=50, got 40"),
        (["--rounds", "0"], "--batch, --length and --rounds must be at least 1, got 50, 50, 0"),
        (["--batch", "0"], "--batch, --length and --rounds must be at least 1, got 0, 50, 15"),
        (["--length", "-1"], "--batch, --length and --rounds must be at least 1, got 50, -1, 15"),
        (["--warmup", "-1"], "--warmup must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_measured_is_refused(benchmark, capsys, arguments, message):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err


def test_no_sizes_leave_the_growth_out(benchmark):
    assert benchmark.parse(["--sizes"]).sizes == []
    assert benchmark.parse([]).sizes == [1000, 10_000]


# What the benchmark needs of the port: its names and the order of what it returns.
MEMORY = """
import cv2
import numpy as np
import torch


class ExperienceReplay:
    def __init__(self, size, symbolic, observation_size, action_size, bit_depth, device):
        assert (symbolic, bit_depth) == (False, 5)
        self.observations = np.empty((size, 3, 64, 64), np.uint8)
        self.actions = np.empty((size, action_size), np.float32)
        self.rewards, self.nonterminals = np.empty(size, np.float32), np.empty((size, 1), np.float32)

    def sample(self, n, length):
        rows = np.random.default_rng(0).integers(0, len(self.rewards) - length, n) + np.arange(length)[:, None]
        return [torch.from_numpy(self.observations[rows] // 8 / np.float32(32) - np.float32(0.49))]
"""
WORKER = """#!{python}
import json, sys
assert sys.argv[1:] == ["-m", "replays.mbrl_worker", "200", "3", "10"]
print(json.dumps({{"version": "1.2", "bytes": 24610.0}}), flush=True)
for _ in sys.stdin:
    print(0.5, flush=True)
"""


def test_peers_are_filled_and_asked_as_their_own_projects_do_it(benchmark, tmp_path, monkeypatch):
    (tmp_path / "memory.py").write_text(MEMORY)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    side = benchmark.peers.kaixhin(tmp_path, 200, 3, 10)
    side.check(200)
    assert side.frame_bytes == 12_288 + 4 * (6 + 1 + 1)
    monkeypatch.delitem(sys.modules, "memory")
    worker = tmp_path / "python"
    worker.write_text(WORKER.format(python=sys.executable))
    worker.chmod(0o755)
    side = benchmark.peers.MbrlWorker(str(worker), 200, 3, 10)
    assert (side.version, side.frame_bytes, side.seconds(), side.seconds()) == ("1.2", 24610, 0.5, 0.5)
    side.close()
    assert side.process.returncode == 0
    copy = benchmark.peers.memcpy(20, 3, 10)  # fewer frames than a batch has
    assert copy.seconds() > 0


def test_a_tiny_run_writes_what_it_prints(tmp_path):
    out = tmp_path / "new" / "out.json"
    command = [sys.executable, str(BENCHMARKS / "replay.py"), "--frames", "200", "--sizes", "100", "200"]
    command += ["--batch", "3", "--length", "10", "--rounds", "2", "--warmup", "1", "--no-compile", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    names = [(line["replay"], line["frames"]) for line in result["rows"] if line["replay"] != "TorchRL"]
    assert names == [
        ("memcpy", 200),
        ("ours, bytes", 200),
        ("ours, floats", 200),
        ("ours, bytes", 100),
        ("ours, bytes", 200),
    ]
    for line in result["rows"]:
        assert 0 < line["least"] <= line["milliseconds"] <= line["most"]
        assert f"|{line['replay']}|{line['frames']}|{line['milliseconds']:.4g}|" in done.stdout
    assert [goal["what"] for goal in result["goals"]][-1] == "seconds: 200 / 100 frames"
    assert "left out: Kaixhin; to get it: git clone" in done.stdout
    assert result["facts"]["threads"] == 1
