"""Trained models judged side by side: what the example writes and prints, and that mistakes cost one line."""

import csv
import shutil

import numpy as np
import pytest
from loading import load_example
from tiny_runs import LOOP, MODEL, WINDOWS, flags_of

from planet_lib.data import load_episode, save_episode
from planet_lib.training import load_checkpoint
from planet_lib.training.foresight import open_loop_error
from planet_lib.training.presets import Preset, build_model

TINY = flags_of({**LOOP, "obs": "pixels", "image-size": 16, "num-episodes": 0, **WINDOWS, **MODEL})
SEEN = ["--num-episodes", "2", "--context", "3", "--length", "10", "--samples", "2"]


example = load_example("open_loop")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of seed episodes alone: whether the models are any good doesn't matter here."""
    out = tmp_path_factory.mktemp("runs")
    train = load_example("train_planet")
    for cell in ("rssm", "ssm"):
        train.main([*TINY, "--out", str(out), "--name", cell, "--cell", cell])
    return out


@pytest.fixture(scope="module")
def judged(runs):
    example.main([str(runs / "rssm"), str(runs / "ssm"), *SEEN])
    return runs / "open-loop"


def rows_of(folder):
    with open(folder / "open-loop.csv", newline="") as file:
        return list(csv.DictReader(file))


def message_of(*arguments):
    with pytest.raises(SystemExit) as stopped:
        example.main([str(argument) for argument in arguments])
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


def test_errors_curve_strips_and_videos_are_written(judged):
    names = sorted(path.name for path in judged.iterdir())
    assert names == ["open-loop.csv", "open-loop.png", "rssm.mp4", "rssm.png", "ssm.mp4", "ssm.png"]
    rows = rows_of(judged)
    assert [(row["run"], int(row["horizon"])) for row in rows] == [(r, h) for r in ("rssm", "ssm") for h in range(1, 8)]
    # The predictors without dynamics are the same beside every run: all are judged on the same episodes.
    for name in ("last_frame", "mean_frame"):
        assert [row[name] for row in rows[:7]] == [row[name] for row in rows[7:]]


def test_the_errors_are_those_of_the_checkpoint_on_the_episodes_in_a_folder(runs, tmp_path):
    episodes = [load_episode(path) for path in sorted((runs / "ssm" / "episodes").iterdir())]
    for number, episode in enumerate(episodes):
        save_episode(tmp_path / "held-out", episode, number)
    out = tmp_path / "out"
    example.main([str(runs / "rssm"), *SEEN, "--episodes", str(tmp_path / "held-out"), "--out", str(out)])
    saved = load_checkpoint(runs / "rssm" / "checkpoint.pt")
    model = build_model(Preset.from_settings(saved["settings"]), "rssm", (1, 16, 16), 1)
    model.load_state_dict(saved["model"])
    error = open_loop_error(model, episodes, context=3, length=10, num_samples=2)
    rows = rows_of(out)
    for name in ("image", "reconstruction", "last_frame", "mean_frame", "reward", "reward_r2"):
        np.testing.assert_allclose([float(row[name]) for row in rows], getattr(error, name), rtol=1e-5, err_msg=name)


def test_the_table_shows_every_run_and_predictor_at_the_horizons_there_are(runs, tmp_path, capsys):
    example.main([str(runs / "rssm"), *SEEN, "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "collecting 2 episodes of gym:Pendulum-v1 with random actions"
    assert lines[1].split() == ["image,", "squared", "error", "x", "1e4", "+1", "+5"]
    rows = rows_of(tmp_path)
    columns = {
        "rssm": "image",
        "rssm, median": "image_median",
        "rssm, reconstructed": "reconstruction",
        "last frame seen": "last_frame",
        "mean frame": "mean_frame",
    }
    assert [line[:28].strip() for line in lines[2:7]] == list(columns)
    for line, column in zip(lines[2:7], columns.values(), strict=True):
        wanted = [1e4 * float(rows[h][column]) for h in (0, 4)]
        assert [float(text) for text in line[28:].split()] == pytest.approx(wanted, rel=1e-3), column
    assert lines[9].startswith("means over 2 windows")


def test_a_mistake_costs_one_line(runs, tmp_path):
    rssm = runs / "rssm"
    assert "nothing-here does not exist" in message_of(tmp_path / "nothing-here")
    assert "RUN_DIR must be directories of different names" in message_of(rssm, rssm)
    assert "--episodes must be new to the models" in message_of(rssm, "--episodes", rssm / "episodes")
    assert "got none: see --episodes and --num-episodes" in message_of(rssm, "--num-episodes", "0")
    assert "got none: see --episodes and --num-episodes" in message_of(rssm, "--episodes", tmp_path)
    assert "length must be at most the 11 rows of the longest episode, got 50" in message_of(rssm, "--num-episodes", 1)
    assert not (runs / "rssm" / "open-loop").exists()


def test_runs_that_see_other_things_are_not_compared(runs, tmp_path):
    train = load_example("train_planet")
    train.main([*TINY, "--out", str(tmp_path), "--name", "wide", "--image-size", "24"])
    message = message_of(runs / "rssm", tmp_path / "wide", *SEEN)
    shared = "env, obs, camera, image_size, supersample, channels, action_repeat"
    assert f"runs must share {shared}, got ('gym:Pendulum-v1', 'pixels'" in message
    train.main([*TINY, "--out", str(tmp_path), "--name", "vectors", "--obs", "state"])
    assert "RUN_DIR must be runs with pixels, got runs from state" in message_of(tmp_path / "vectors", *SEEN)


def test_a_model_that_sees_pixels_and_state_is_judged_on_its_pixels(tmp_path):
    load_example("train_planet").main([*TINY, "--out", str(tmp_path), "--name", "both", "--obs", "both"])
    example.main([str(tmp_path / "both"), *SEEN])
    assert len(rows_of(tmp_path / "open-loop")) == 7
    assert (tmp_path / "open-loop" / "both.mp4").stat().st_size > 1000


def test_episodes_of_another_size_are_named(runs, tmp_path):
    shutil.copytree(runs / "rssm" / "episodes", tmp_path / "cut")
    for path in sorted((tmp_path / "cut").iterdir()):
        episode = load_episode(path)
        number = int(path.name.split("-")[1])
        save_episode(tmp_path / "cut", episode._replace(obs=episode.obs[..., :8, :8].copy()), number, replace=True)
    assert "size mismatch" in message_of(runs / "rssm", "--episodes", tmp_path / "cut")
