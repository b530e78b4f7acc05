"""The benchmark of checkpoints: one is as large whatever the replay holds, and what is timed is what is written."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import checkpoint

        yield checkpoint
    sys.modules.pop("checkpoint", None)


def test_a_checkpoint_does_not_grow_with_the_replay(benchmark, tmp_path, monkeypatch, capsys):
    out = tmp_path / "checkpoint.json"
    flags = ["--presets", "cpu", "--episodes", "2", "20", "--length", "12", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", *flags])
    benchmark.main()
    few, many = json.loads(out.read_text())["results"]
    assert few["checkpoint_bytes"] == pytest.approx(
        many["checkpoint_bytes"], abs=200
    )  # digits of the sampler's numbers
    weights = 4 * sum(
        each.numel() for each in benchmark.build_model(benchmark.PRESETS["cpu"], "rssm", (1, 32, 32), 2).parameters()
    )
    assert 3 * weights < few["checkpoint_bytes"] < 3.2 * weights + 60_000
    assert 0 < few["checkpoint_seconds"] < 60
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["2", "20"]
    assert f"{few['checkpoint_bytes'] / 1e6:.2f} MB" in lines[2]
