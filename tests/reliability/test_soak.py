"""The soak at a size that everybody can wait for, and its bounds."""

import json
from pathlib import Path

import numpy as np
import pytest
import soak

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")


@pytest.mark.slow
def test_collection_with_workers_neither_grows_nor_minds_kills(tmp_path, capsys):
    numbers = ["--steps", "2400", "--kill-steps", "800", "--kill-every", "300", "--num-envs", "2"]
    out = tmp_path / "soak.json"
    code = soak.main([*numbers, "--capacity", "5000", "--slower", "100", "--out", str(out)])
    assert code == 0, capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["soak"]["steps"] == 2400
    assert report["soak"]["memory of the workers"]["MiB at 0, 10, 20, ... 100%"][-1] > 20
    assert report["soak"]["handles"]["after the first tenth"] > 3
    kills = report["kills"]
    assert (kills["kills"], kills["warnings"], kills["episodes"], kills["episodes_that_differ"]) == (2, 2, 4, 0)


def watched(*, memory=100.0, workers=400.0, handles=9, last_ms=1.0, last_work=1.0):
    """A watch that has seen steps of 1 ms and memory as given at the end."""
    watch = soak.Watch(1000, 1)
    watch.steps = watch.calls = 1000
    watch._marks[:] = [100.0, 400.0, 9, 0]
    watch._marks[-1, :3] = memory, workers, handles
    step, work = np.full(1000, 1e-3), np.full(soak.MARKS + 1, 1.0)
    step[-150:], work[-10:] = 1e-3 * last_ms, last_work
    watch._times[:1000], watch._marks[:, 3] = np.cumsum(step), np.cumsum(work)
    return watch.report(0.25)


def test_what_stays_within_the_bounds_breaks_nothing():
    found = watched(memory=101.9, workers=407, handles=8, last_ms=1.24)
    assert found["broken"] == []
    assert found["memory of this process"]["growth after the first tenth"] == pytest.approx(0.019)
    assert found["step, last tenth to first"] == pytest.approx(1.24)
    assert watched(last_ms=5)["broken"] == []  # other programs, since the work stayed the same


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"memory": 102.1}, "the memory of this process grew by 2.1% after the first tenth, allowed 2%"),
        ({"workers": 440}, "the memory of the workers grew by 10.0% after the first tenth, allowed 2%"),
        ({"handles": 10}, "open handles went from 9 to 10"),
        ({"last_ms": 1.5, "last_work": 1.4}, "the median step of the last tenth took 1.5 times that of the first"),
    ],
)
def test_each_bound_that_is_broken_is_named(change, line):
    assert watched(**change)["broken"] == [line]


def test_a_broken_bound_ends_the_program_with_1(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(soak, "soak", lambda args: {"broken": ["memory grew"]})
    assert soak.main(["--steps", "1", "--kill-steps", "0", "--out", str(tmp_path / "soak.json")]) == 1
    assert capsys.readouterr().out.endswith("BROKEN: memory grew\n")
    assert json.loads((tmp_path / "soak.json").read_text())["broken"] == ["memory grew"]


def test_episodes_that_kills_changed_are_counted(monkeypatch):
    class Envs:
        def close(self):
            pass

    monkeypatch.setattr(soak, "make_vector_env", lambda *args, **settings: Envs())
    monkeypatch.setattr(soak, "make_policy", lambda *args: None)
    runs = iter([["a", "b", "c"], ["a", "x", "c"]])
    monkeypatch.setattr(soak, "digests", lambda *args: next(runs))
    found = soak.kills(soak.parsed([]))
    assert found["broken"] == ["1 of 3 episodes differ from those that nothing disturbed"]
    assert found["episodes_that_differ"] == 1
