"""What a run reads and writes, fuzzed: its directory and its metrics, and files of them that are damaged.

Paths are relative, and the tests run in an empty directory: a path that is nearly right must not land elsewhere.
"""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from empty_place import contents, emptied, empty_place, put  # noqa: F401 -- the fixture is used by itself
from fuzzing import Entry, fuzz

from planet_lib.training import (
    MetricsWriter,
    RunDirectory,
    read_metrics,
)

COLUMNS = ["env_steps", "kind", "episode_return"]
FRESH = (f"run{number}" for number in itertools.count())


def writer(directory="run", **settings):
    return MetricsWriter(directory, COLUMNS, tensorboard=False, **settings)


def written():
    """A file of two rows."""
    once = writer()
    once.write({"env_steps": 10, "kind": "train", "episode_return": 1.5})
    once.write({"env_steps": 20, "kind": "eval"})
    return Path("run/metrics.csv").read_bytes()


def begun(given, answer):
    """The file holds the header and the rows that were kept, and the next row can be written."""
    assert answer.num_rows == (given["resume_at"] or 0)
    with open(answer.path, newline="") as file:
        assert next(csv.reader(file)) == list(given["columns"])
    answer.write({answer.columns[0]: 1})
    assert len(read_metrics(answer.path)[answer.columns[0]]) == answer.num_rows


def row_is_there(given, answer):
    with open("run/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    for name, value in given["row"].items():
        is_text = isinstance(value, str)
        assert rows[0][name] == value if is_text else np.array_equal(float(rows[0][name]), float(value), equal_nan=True)


def read_bytes(content):
    put("metrics.csv", content)
    return read_metrics("metrics.csv")


def one_length(given, answer):
    assert len({len(column) for column in answer.values()}) == 1


def resumed(content, resume_at):
    put("run/metrics.csv", content)
    return writer(resume_at=resume_at)


def changed(path, settings):
    run = RunDirectory.open(path)
    run.change_settings(settings)
    return run.settings


def opened(content):
    put("run/settings.json", content)
    return RunDirectory.open("run")


def settings_file():
    content = RunDirectory.create(next(FRESH), {"seed": 1, "sizes": (1, 2)}).settings_path.read_bytes()
    record = json.loads(content)
    odd = [[], 1, None, {**record, "settings": []}, {**record, "versions": [1]}, {**record, "machine": "x"}]
    return content, [json.dumps(each).encode() for each in odd]


def settings_are_plain(given, answer):
    assert isinstance(answer.settings, dict)
    assert isinstance(answer.versions, dict)
    assert isinstance(answer.machine, dict)
    assert isinstance(answer.differences(), list)


ENTRIES = [
    Entry(
        "training.MetricsWriter",
        MetricsWriter,
        lambda: {
            "directory": next(FRESH),
            "columns": COLUMNS,
            "resume_at": None,
            "tensorboard": False,
            "step_column": "env_steps",
            "group_column": "kind",
        },
        begun,
        state=contents,
        keep=("tensorboard",),
        known_as={"directory": ("metrics.csv",), "resume_at": ("metrics.csv",)},
        also={"columns": ["abc", ["a", "a"], ["a\n"], [1, 2], {"a": 1}, COLUMNS[::-1]], "resume_at": [0, 2, True]},
        errors=(OSError,),
    ),
    Entry(
        "training.MetricsWriter.write",
        lambda row: writer().write(row),
        lambda: {"row": {"env_steps": 10, "kind": "train", "episode_return": 1.5}},
        row_is_there,
        also={
            "row": [
                {},
                {"kind": "a\nb"},
                {"kind": "a,\"b'"},
                {"env_steps": torch.ones(())},
                {"kind": "\ud800"},
                {"kind": "\0"},
            ]
        },
    ),
    Entry(
        "training.read_metrics",
        read_metrics,
        lambda: {"path": written() and "run/metrics.csv"},
        one_length,
        state=contents,
        errors=(OSError,),
    ),
    Entry(
        "training.read_metrics of a damaged file",
        read_bytes,
        lambda: {"content": b'env_steps,kind\n10,train\n20,"a,b"\n,eval\n'},
        one_length,
        also={"content": [b"a,a\n1,2\n", b'"\n', b"\n\n", b"\n1\n", b"a\n" + b"x" * 200_000 + b"\n"]},
        known_as={"content": ("metrics.csv",)},
    ),
    Entry(
        "training.MetricsWriter of a damaged file",
        resumed,
        lambda: {"content": written(), "resume_at": 1},
        lambda given, answer: answer.num_rows == given["resume_at"] or pytest.fail("other rows"),
        also={"resume_at": [0, 2, 3]},
        errors=(FileExistsError,),
        known_as={"content": ("metrics.csv",), "resume_at": ("metrics.csv",)},
    ),
    Entry(
        "training.RunDirectory.create",
        RunDirectory.create,
        lambda: {"path": next(FRESH), "settings": {"env": "dmc:walker-walk", "seed": 0, "sizes": (1, 2.5), "more": {}}},
        lambda given, answer: (
            repr(RunDirectory.open(given["path"]).settings) == repr(answer.settings) or pytest.fail("other settings")
        ),
        state=contents,
        also={
            "settings": [{"a": {"b": {1: 2}}}, {"a": torch.ones(1)}, {"a": {1}}, {"a": float("nan")}, {"a": "\ud800"}]
        },
        errors=(OSError,),
    ),
    Entry(
        "training.RunDirectory.open",
        RunDirectory.open,
        lambda: {"path": RunDirectory.create("run", {"seed": 1}).path},
        settings_are_plain,
        state=contents,
        errors=(OSError,),
    ),
    Entry(
        "training.RunDirectory.change_settings",
        changed,
        lambda: {"path": RunDirectory.create("run", {"seed": 1}).path, "settings": {"seed": 0, "sizes": (1, 2.5)}},
        lambda given, answer: repr(RunDirectory.open("run").settings) == repr(answer) or pytest.fail("other settings"),
        state=contents,
        also={"settings": [{"a": {"b": {1: 2}}}, {"a": torch.ones(1)}, {"a": {1}}, {"a": float("nan")}]},
        errors=(OSError,),
    ),
    Entry(
        "training.RunDirectory.open of a damaged file",
        opened,
        lambda: {"content": settings_file()[0]},
        settings_are_plain,
        also={"content": [b"[" * 100_000, b"{}", b"null", b'{"format": "planet_lib run"}']},
        known_as={"content": ("settings.json",)},
    ),
]
LEFT_OUT = {"training.RunDirectory": "made by `create` and `open`, which are fuzzed"}


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_answers_rightly_or_names_what_is_wrong(entry):
    fuzz(emptied(entry))


@pytest.mark.parametrize("number", range(4))
def test_settings_of_another_kind_are_told(number):
    content = settings_file()[1][number]
    with pytest.raises(ValueError, match=r"settings\.json was not written by a planet_lib run"):
        opened(content)


@pytest.mark.parametrize("number", [4, 5])
def test_facts_of_another_kind_count_as_unknown(number):
    settings_are_plain(None, opened(settings_file()[1][number]))


@pytest.mark.parametrize("flag", [None, "no", 2, []])
def test_events_are_chosen_by_true_or_false_alone(flag):
    with pytest.raises(TypeError, match="tensorboard must be True or False, got"):
        MetricsWriter(next(FRESH), COLUMNS, tensorboard=flag)
