"""The benchmark of environments: its rows, goals, clock and pictures by hand, equal states, and a tiny run."""

import json
import subprocess
import sys
from argparse import Namespace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from loading import BENCHMARKS, load_benchmark

from planet_lib.envs import select_backend

environments = load_benchmark("environments")


class FakeSide:
    """Draws the number of its steps, `late` frames behind, and ends every fourth step."""

    action_dim = 2

    def __init__(self, shift=0):
        self.shift, self.calls, self.actions = shift, [], []

    @property
    def physics(self):
        return SimpleNamespace(data=SimpleNamespace(geom_xpos=np.full((1, 3), self.count)))

    def reset(self, seed):
        self.count = 10 * seed
        self.calls.append("reset")

    def step(self, action):
        self.count += 1
        self.calls.append("step")
        self.actions.append(action)
        return np.full((2, 2, 3), self.count + self.shift, np.uint8), self.count % 4 == 0


def test_each_frame_is_timed_alone_and_a_reset_is_not(monkeypatch):
    clock = iter([0.0, 0.001, 5.0, 5.002, 7.0, 7.003, 8.0, 8.004, 20.0, 20.005])
    monkeypatch.setattr(environments.time, "perf_counter", lambda: next(clock))
    side = FakeSide()
    assert environments.measure_frames(side, 0, 5) == pytest.approx([1, 2, 3, 4, 5])
    assert side.calls == ["reset", *["step"] * 4, "reset", "step"]
    assert np.array_equal(side.actions, environments.random_actions(side, 0, 5))


def test_pictures_are_taken_at_the_same_moments_of_each_episode():
    places, pictures = environments.take_pictures(FakeSide(), [0, 2], 2, 3)
    assert places.tolist() == [[3] * 3, [6] * 3, [23] * 3, [26] * 3]
    assert pictures[:, 0, 0, 0].tolist() == [3, 6, 23, 26]


def test_ratios_are_those_of_paired_rounds_and_differences_have_a_sign_nowhere():
    still = np.full((2, 1, 1, 3), 100, np.uint8)
    off = np.array([[[[99, 100, 100]]], [[[103, 103, 100]]]], np.uint8)
    rounds = {"default": [[9.0, 8.0, 7.0], [10.0], [30.0]], "tuned": [[2.0, 0.5, 2.0], [1.0], [5.0]]}
    rows = environments.summarise("reacher-easy", rounds, {"default": still, "tuned": off})
    assert rows[1] == {
        "task": "reacher-easy",
        "side": "tuned",
        "ms": 2.0,
        "least": 1.0,
        "most": 5.0,
        "best": 0.5,
        "times_faster": 6.0,
        "least_faster": 4.0,
        "most_faster": 10.0,
        "best_faster": 14.0,
        "difference": pytest.approx(7 / 6),
        "worst": 2.0,
    }
    assert [rows[0][name] for name in ("times_faster", "difference", "worst")] == [1.0, 0.0, 0.0]


def row(task, side, **values):
    return {"task": task, "side": side, **values}


def test_a_goal_is_held_against_the_task_that_is_furthest_from_it():
    rows = [
        row("cartpole-swingup", "tuned", times_faster=8.0, difference=0.1),
        row("cheetah-run", "tuned", times_faster=3.9, difference=0.6),
        row("cartpole-swingup", "rays", ms=5.0, difference=14.0),
        row("reacher-easy", "rays", ms=12.1, difference=24.0),
    ]
    found = environments.judge(rows)
    assert [tuple(goal.values()) for goal in found] == [
        ("tuned: times_faster of each task >= 4", 3.9, "cheetah-run", False),
        ("tuned: difference of each task <= 0.6", 0.6, "cheetah-run", True),
        ("rays: ms of each task <= 12", 12.1, "reacher-easy", False),
        ("rays: difference of each task <= 25", 24.0, "reacher-easy", True),
        ("tuned: times_faster on average >= 6", pytest.approx(5.95), "mean of 2", False),
    ]
    rows[2]["difference"] = 15.1
    assert environments.judge(rows)[3]["task"] == "cartpole-swingup"
    assert not environments.judge(rows)[3]["met"]


def test_nothing_is_said_of_a_side_that_was_not_measured():
    assert environments.judge([row("cheetah-run", "suite", times_faster=1.0, difference=0.0)]) == []


class FakeWorker:
    """A side in this process; the slow one cannot be made, and shift says whose states are off."""

    asked: ClassVar[list] = []
    moved = 0

    def __init__(self, name, task):
        if name == "rays":
            raise RuntimeError("TypeError: no such renderer")
        self.name, self.side = name, FakeSide(shift=name == "tuned")

    def ask(self, function, *arguments):
        self.asked.append((self.name, function.__name__))
        if self.name == "tuned" and self.moved:
            self.side.reset = lambda seed: setattr(self.side, "count", seed + self.moved)
        return function(self.side, *arguments)

    def close(self):
        self.asked.append((self.name, "close"))


ARGS = Namespace(sides=["tuned", "rays"], episodes=1, poses=2, every=2, rounds=2, frames=3)


def test_the_sides_take_turns_and_one_that_cannot_be_made_is_told(monkeypatch):
    monkeypatch.setattr(environments, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "asked", [])
    rows, skipped, pictures = environments.compare("cheetah-run", ARGS)
    turns = ["take_pictures", "measure_frames", "measure_frames", "close"]
    assert FakeWorker.asked == [(name, turn) for turn in turns for name in ("default", "tuned")]
    assert skipped == {"rays": "TypeError: no such renderer"}
    assert [line["side"] for line in rows] == ["default", "tuned"]
    assert (rows[1]["difference"], rows[1]["worst"]) == (1.0, 1.0)
    assert list(pictures) == ["default", "tuned"]


def test_sides_at_different_states_are_not_compared(monkeypatch):
    monkeypatch.setattr(environments, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "moved", 1)
    with pytest.raises(SystemExit, match="cheetah-run: the sides are not at the same states, tuned differs from"):
        environments.compare("cheetah-run", ARGS)


def test_the_picture_has_a_row_for_each_task_and_a_column_for_each_side(tmp_path):
    image = pytest.importorskip("PIL.Image")
    frames = {name: np.full((1, 2, 2, 3), value, np.uint8) for name, value in (("default", 1), ("tuned", 2))}
    environments.draw(tmp_path / "new" / "p.png", {"a": frames, "b": {**frames, "tuned": frames["default"]}})
    drawn = np.asarray(image.open(tmp_path / "new" / "p.png"))[..., 0]
    assert drawn.shape == (8, 8)
    assert (drawn[0, 0], drawn[0, 4], drawn[4, 4]) == (1, 2, 1)


@pytest.mark.parametrize("task", ["reacher-easy", "walker-walk"])
def test_the_default_and_ours_are_at_the_same_states(task, monkeypatch):
    pytest.importorskip("dm_control")
    if select_backend(required=False) == "disabled":
        pytest.skip("no OpenGL on this machine")
    sides = [environments.Default(task), environments.Ours(task, {"quality": "suite"})]
    (places, pictures), (ours, our_pictures) = (environments.take_pictures(side, [1], 2, 2) for side in sides)
    assert np.array_equal(places, ours)
    assert not np.array_equal(places[0], places[1])
    assert np.abs(pictures.astype(int) - our_pictures).mean() < 0.05
    for side in sides:
        side.physics.free()


@pytest.mark.slow
def test_a_tiny_run_writes_facts_rows_and_goals(tmp_path):
    pytest.importorskip("dm_control")
    if select_backend(required=False) == "disabled":
        pytest.skip("no OpenGL on this machine")
    numbers = {"rounds": "1", "frames": "3", "episodes": "1", "poses": "1", "every": "2"}
    flags = [text for name, number in numbers.items() for text in (f"--{name}", number)]
    flags += ["--tasks", "cheetah-run", "--sides", "tuned", "--out", tmp_path / "result.json"]
    command = [sys.executable, BENCHMARKS / "environments.py", *flags]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert [line["side"] for line in result["rows"]] == ["default", "tuned"]
    assert 0 < result["rows"][1]["difference"] < 2
    assert result["rows"][1]["ms"] < result["rows"][0]["ms"]
    assert len(result["goals"]) == 3
    assert result["facts"]["dm_control"] in printed
    assert "| cheetah-run | tuned |" in printed
