import errno
import importlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planet_lib.training.metrics import MetricsWriter, read_metrics

COLUMNS = [
    "episode",
    "updates",
    "env_steps",
    "kind",
    "episode_return",
    "eval_mean",
    "eval_std",
    "loss_total",
    "loss_obs",
    "loss_reward",
    "kl",
    "kl_clipped",
    "grad_norm",
    "seconds_collect",
    "seconds_update",
    "seconds_eval",
    "seconds_total",
    "updates_per_second",
    "steps_per_second",
]


def rows(count, start=0):
    return [{"episode": n, "env_steps": 1000 * (n + 1), "kind": "train", "kl": 0.1 * n} for n in range(start, count)]


def written(directory, count, **settings):
    writer = MetricsWriter(directory, COLUMNS, tensorboard=False, **settings)
    for row in rows(count):
        writer.write(row)
    return writer


def test_rows_come_back_with_every_digit_and_empty_cells_as_nan(tmp_path):
    writer = MetricsWriter(tmp_path, COLUMNS, tensorboard=False)
    writer.write({"env_steps": 1000, "kind": "seed", "episode_return": 0.1 + 0.2})
    writer.write(
        {"env_steps": np.int64(2000), "kind": "eval", "eval_mean": np.float32(0.5), "loss_total": float("nan")}
    )
    back = read_metrics(tmp_path / "metrics.csv")
    assert list(back) == COLUMNS
    np.testing.assert_array_equal(back["env_steps"], [1000.0, 2000.0])
    np.testing.assert_array_equal(back["episode_return"], [0.1 + 0.2, np.nan])
    np.testing.assert_array_equal(back["eval_mean"], [np.nan, 0.5])
    assert back["kind"].tolist() == ["seed", "eval"]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[2].split(",")[7] == "nan"
    assert writer.num_rows == 2


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=5),
    words=st.lists(
        st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1), min_size=5, max_size=5
    ),
)
def test_any_float_and_any_one_line_word_comes_back(tmp_path_factory, values, words):
    directory = tmp_path_factory.mktemp("run")
    writer = MetricsWriter(directory, ["value", "word", "letter"], tensorboard=False)
    for value, word in zip(values, words, strict=False):
        writer.write({"value": value, "word": word, "letter": "x"})
    back = read_metrics(directory / "metrics.csv")
    assert back["value"].tolist() == values
    if back["word"].dtype.kind == "U":
        assert back["word"].tolist() == [word.rstrip("\0") for word in words[: len(values)]]


def test_resuming_drops_the_rows_after_the_checkpoint(tmp_path):
    written(tmp_path, 5)
    writer = MetricsWriter(tmp_path, COLUMNS, resume_at=3, tensorboard=False)
    assert writer.num_rows == 3
    for row in rows(5, start=3):
        writer.write(row)
    assert read_metrics(tmp_path / "metrics.csv")["episode"].tolist() == [0, 1, 2, 3, 4]
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_resuming_changes_nothing_in_the_rows_it_keeps(tmp_path):
    written(tmp_path, 3)
    before = (tmp_path / "metrics.csv").read_bytes()
    MetricsWriter(tmp_path, COLUMNS, resume_at=3, tensorboard=False)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_resuming_at_zero_keeps_only_the_header(tmp_path):
    written(tmp_path, 2)
    MetricsWriter(tmp_path, COLUMNS, resume_at=0, tensorboard=False)
    assert (tmp_path / "metrics.csv").read_text() == ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize("torn", [b"3,300,40", b"3", b"\x00\x00\x00", b"\xc3"])
def test_a_torn_last_line_is_dropped_by_reading_and_by_resuming(tmp_path, torn):
    written(tmp_path, 3)
    with open(tmp_path / "metrics.csv", "ab") as file:
        file.write(torn)
    assert read_metrics(tmp_path / "metrics.csv")["episode"].tolist() == [0, 1, 2]
    writer = MetricsWriter(tmp_path, COLUMNS, resume_at=3, tensorboard=False)
    writer.write(rows(4)[3])
    assert read_metrics(tmp_path / "metrics.csv")["episode"].tolist() == [0, 1, 2, 3]


def test_a_full_disk_while_resuming_leaves_every_row(tmp_path, monkeypatch):
    written(tmp_path, 3)

    def full_disk(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            MetricsWriter(tmp_path, COLUMNS, resume_at=1, tensorboard=False)
    assert read_metrics(tmp_path / "metrics.csv")["episode"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_a_row_that_could_not_be_flushed_is_taken_back_whole(tmp_path, monkeypatch):
    writer = written(tmp_path, 2)

    def full_disk(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            writer.write(rows(3)[2])
    assert writer.num_rows == 2
    writer.write(rows(3)[2])
    assert read_metrics(tmp_path / "metrics.csv")["episode"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({"loss": 1.0}, ValueError, "row must have only the columns episode, .*, got loss"),
        ({"kl": None}, TypeError, r"row\['kl'\] must be a number or string, got NoneType"),
        ({"kl": [1.0]}, TypeError, r"row\['kl'\] must be a number or string, got list: give its item\(\)"),
        ({"kind": "a\nb"}, ValueError, r"row\['kind'\] must be one line"),
    ],
)
def test_a_bad_row_is_refused_and_nothing_of_it_written(tmp_path, row, error, message):
    writer = written(tmp_path, 1)
    before = writer.path.read_bytes()
    with pytest.raises(error, match=message):
        writer.write(row)
    assert (writer.path.read_bytes(), writer.num_rows) == (before, 1)


def test_what_cannot_be_begun_or_resumed_is_refused_and_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv does not exist, so it cannot be resumed"):
        MetricsWriter(tmp_path, COLUMNS, resume_at=0)
    written(tmp_path, 2)
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(FileExistsError, match=r"metrics\.csv already exists: resume it"):
        MetricsWriter(tmp_path, COLUMNS)
    with pytest.raises(ValueError, match="must hold the 3 rows written before the checkpoint, got 2: restore it"):
        MetricsWriter(tmp_path, COLUMNS, resume_at=3)
    with pytest.raises(ValueError, match="must have the columns env_steps, got episode, "):
        MetricsWriter(tmp_path, ["env_steps"], resume_at=1)
    with pytest.raises(ValueError, match="resume_at must be at least 0, got -1"):
        MetricsWriter(tmp_path, COLUMNS, resume_at=-1)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_columns_must_be_different_and_hold_the_step(tmp_path):
    with pytest.raises(ValueError, match=r"each different, got \['a', 'a'\]"):
        MetricsWriter(tmp_path, ["a", "a"])
    with pytest.raises(ValueError, match="step_column must be one of columns, got 'env_steps'"):
        MetricsWriter(tmp_path, ["a"])
    assert os.listdir(tmp_path) == []


def test_a_damaged_line_in_the_middle_names_its_line(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n3\n4,5\n")
    with pytest.raises(ValueError, match="line 3 must have 2 cells like the header, got 1"):
        read_metrics(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("")
    with pytest.raises(ValueError, match="must begin with a header line"):
        read_metrics(tmp_path / "metrics.csv")


def events(directory):
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    loaded = accumulator.EventAccumulator(str(directory / "tensorboard"))
    loaded.Reload()
    return {tag: [(e.step, e.value) for e in loaded.Scalars(tag)] for tag in loaded.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own reader
def test_events_hold_the_same_numbers_over_environment_steps_each_once(tmp_path):
    pytest.importorskip("tensorboard")
    writer = MetricsWriter(tmp_path, COLUMNS)
    assert writer.notice == ""
    for row in rows(3):
        writer.write({**row, "loss_obs": 2.0})
    writer.close()
    writer = MetricsWriter(tmp_path, COLUMNS, resume_at=2)
    writer.write({"env_steps": 3000, "kind": "train", "loss_obs": 4.0})
    writer.close()
    found = events(tmp_path)
    assert found["loss/obs"] == [(1000, 2.0), (2000, 2.0), (3000, 4.0)]
    assert [step for step, _ in found["kl"]] == [1000, 2000]


def test_without_tensorboard_the_csv_is_written_and_one_line_says_so(tmp_path, monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("no tensorboard")

    monkeypatch.setattr("planet_lib.training.metrics.require", missing)
    writer = MetricsWriter(tmp_path, COLUMNS)
    writer.write(rows(1)[0])
    writer.close()
    assert "only metrics.csv is written" in writer.notice
    assert "\n" not in writer.notice
    assert read_metrics(tmp_path / "metrics.csv")["episode"].tolist() == [0]
    assert os.listdir(tmp_path) == ["metrics.csv"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own reader
def test_events_of_several_tasks_have_curves_of_their_own(tmp_path):
    pytest.importorskip("tensorboard")
    writer = MetricsWriter(tmp_path, COLUMNS, group_column="kind")
    writer.write({"env_steps": 1, "kind": "first", "loss_obs": 2.0})
    writer.write({"env_steps": 2, "kind": "second", "loss_obs": 4.0})
    writer.write({"env_steps": 3, "loss_obs": 8.0})
    writer.close()
    found = events(tmp_path)
    assert found["loss/obs/first"] == [(1, 2.0)]
    assert found["loss/obs/second"] == [(2, 4.0)]
    assert found["loss/obs"] == [(3, 8.0)]


def test_a_group_column_that_is_no_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="group_column must be one of columns, got 'task'"):
        MetricsWriter(tmp_path, COLUMNS, group_column="task")
    assert os.listdir(tmp_path) == []
