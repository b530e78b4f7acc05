import errno
import os
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planet_lib.training.curves import learning_curve, running_mean
from planet_lib.training.metrics import MetricsWriter

matplotlib_figure = pytest.importorskip("matplotlib.figure")
Image = pytest.importorskip("PIL.Image")

COLUMNS = [
    "env_steps",
    "kind",
    "episode_return",
    "eval_mean",
    "eval_std",
    "loss_obs",
    "loss_reward",
    "kl",
    "kl_clipped",
]


@pytest.fixture
def metrics(tmp_path):
    writer = MetricsWriter(tmp_path, COLUMNS, tensorboard=False)
    for n in range(1, 4):
        writer.write({"env_steps": 1000 * n, "kind": "seed", "episode_return": 200.0 + n})
    for n in range(4, 30):
        losses = {"loss_obs": 1000.0 / n, "loss_reward": 1.0 / n**3, "kl": 2.0 + n / 10, "kl_clipped": 3.0 + n / 20}
        writer.write({"env_steps": 1000 * n, "kind": "train", "episode_return": 200.0 + 10 * n, **losses})
        if n % 10 == 0:
            writer.write({"env_steps": 1000 * n, "kind": "eval", "eval_mean": 300.0 + n, "eval_std": 25.0})
    return writer.path


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, as matplotlib knows them."""
    figures = []
    save = matplotlib_figure.Figure.savefig

    def keep(figure, *args, **settings):
        figures.append(figure)
        save(figure, *args, **settings)

    monkeypatch.setattr(matplotlib_figure.Figure, "savefig", keep)
    return figures


def lines(axes):
    return {line.get_label(): line.get_ydata() for line in axes.get_lines()}


def test_the_curve_shows_seed_training_and_evaluation_returns_and_the_random_policy(tmp_path, metrics, drawn):
    learning_curve(tmp_path / "curve.png", metrics, random_return=245.0, free_nats=3.0, title="dmc:cartpole-balance")
    returns = drawn[0].axes[0]
    shown = lines(returns)
    np.testing.assert_array_equal(shown["seed episodes"], [201, 202, 203])
    np.testing.assert_array_equal(shown["training episodes"], 200 + 10 * np.arange(4, 30))
    assert shown["mean of the last 10"][-1] == 200 + 10 * np.arange(20, 30).mean()
    assert list(shown["random policy (245)"]) == [245, 245]
    bars = returns.containers[0]
    np.testing.assert_array_equal(bars.lines[0].get_ydata(), [310, 320])
    np.testing.assert_array_equal(bars.lines[1][0].get_ydata(), [285, 295])
    assert returns.get_ylim()[0] == 0
    assert returns.get_title(loc="left") == "dmc:cartpole-balance"


def test_the_losses_are_drawn_below_with_their_units_and_the_free_nats(tmp_path, metrics, drawn):
    learning_curve(tmp_path / "curve.png", metrics, free_nats=3.0)
    _, obs, reward, kl = drawn[0].axes
    np.testing.assert_allclose(obs.get_lines()[0].get_ydata(), 1000 / np.arange(4, 30))
    assert (obs.get_yscale(), reward.get_yscale(), kl.get_yscale()) == ("linear", "log", "linear")
    shown = lines(kl)
    np.testing.assert_allclose(shown["raw"], 2 + np.arange(4, 30) / 10)
    np.testing.assert_allclose(shown["minimised"], 3 + np.arange(4, 30) / 20)
    assert list(shown["free nats (3)"]) == [3, 3]
    assert kl.get_ylabel() == "KL (nats per step)"
    assert {axes.get_xlabel() for axes in drawn[0].axes} == {"environment steps"}


def test_the_picture_is_a_png_of_readable_size_and_leaves_the_programs_own_figures_alone(tmp_path, metrics):
    before = set(sys.modules)
    learning_curve(tmp_path / "curve.png", metrics)
    with Image.open(tmp_path / "curve.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1210, 825))
    assert "matplotlib.pyplot" not in set(sys.modules) - before


def test_a_run_without_rows_or_with_nan_losses_can_be_drawn(tmp_path, drawn):
    writer = MetricsWriter(tmp_path, COLUMNS, tensorboard=False)
    learning_curve(tmp_path / "curve.png", writer.path, random_return=1.0)
    assert [axes.texts[0].get_text() for axes in drawn[0].axes] == ["no episodes yet", *["no updates yet"] * 3]
    writer.write({"env_steps": 10, "kind": "train", "episode_return": -5.0, "loss_obs": float("nan"), "kl": 0.0})
    learning_curve(tmp_path / "curve.png", writer.path)
    assert drawn[1].axes[0].get_ylim()[0] < -5
    assert lines(drawn[1].axes[3])["raw"].tolist() == [0.0]


def test_a_missing_column_and_a_wrong_ending_are_named(tmp_path):
    (tmp_path / "m.csv").write_text("env_steps,kind,kl\n")
    with pytest.raises(
        ValueError, match="it lacks episode_return, eval_mean, eval_std, loss_obs, loss_reward, kl_clipped"
    ):
        learning_curve(tmp_path / "a.png", tmp_path / "m.csv")
    with pytest.raises(ValueError, match=r"path must end in \.png, got '.*a\.gif'"):
        learning_curve(tmp_path / "a.gif", tmp_path / "m.csv")


def test_a_full_disk_leaves_the_old_picture(tmp_path, metrics, monkeypatch):
    (tmp_path / "curve.png").write_bytes(b"old")

    def full_disk(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        learning_curve(tmp_path / "curve.png", metrics)
    assert (tmp_path / "curve.png").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["curve.png", "metrics.csv"]


def test_a_missing_matplotlib_names_the_extra(tmp_path, metrics, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"the learning curve needs matplotlib.*planet-worldmodel\[train\]"):
        learning_curve(tmp_path / "curve.png", metrics)


@given(st.lists(st.floats(-1e6, 1e6), max_size=30), st.integers(1, 12))
def test_a_running_mean_is_the_mean_of_the_last_values(values, window):
    expected = [np.mean(values[max(0, n - window) : n]) for n in range(1, len(values) + 1)]
    np.testing.assert_allclose(running_mean(np.array(values), window), expected, atol=1e-6)


def test_several_tasks_have_a_colour_each_with_their_own_evaluations_and_random_returns(tmp_path, drawn):
    writer = MetricsWriter(tmp_path, [*COLUMNS, "task"], tensorboard=False)
    for n in range(1, 5):
        for task, worth in (("swingup", 10.0), ("balance", 100.0)):
            writer.write({"env_steps": n, "kind": "train", "task": task, "episode_return": worth * n})
            writer.write({"env_steps": n, "kind": "eval", "task": task, "eval_mean": worth + n, "eval_std": 1.0})
    learning_curve(tmp_path / "curve.png", writer.path, random_return={"balance": 7.0})
    axes = drawn[0].axes[0]
    marks = {box.get_label().removesuffix(", evaluation (mean ± std)"): box.lines[0] for box in axes.containers}
    assert marks["swingup"].get_ydata().tolist() == [11.0, 12.0, 13.0, 14.0]
    assert marks["balance"].get_ydata().tolist() == [101.0, 102.0, 103.0, 104.0]
    assert marks["swingup"].get_color() != marks["balance"].get_color()
    shown = [list(line.get_ydata()) for line in axes.get_lines()]
    assert [10.0, 15.0, 20.0, 25.0] in shown  # the running mean of swingup's training episodes
    assert [7.0, 7.0] in shown
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"random policy", "training, mean of the last 10"} < set(legend)


def test_one_task_is_drawn_as_a_run_without_names(tmp_path, drawn):
    writer = MetricsWriter(tmp_path, [*COLUMNS, "task"], tensorboard=False)
    writer.write({"env_steps": 1, "kind": "train", "task": "balance", "episode_return": 3.0})
    learning_curve(tmp_path / "curve.png", writer.path, random_return={"balance": 7.0})
    assert lines(drawn[0].axes[0])["random policy (7)"] == [7.0, 7.0]
    assert lines(drawn[0].axes[0])["training episodes"].tolist() == [3.0]
