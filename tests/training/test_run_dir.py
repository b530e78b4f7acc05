import errno
import json
import os
import re
import subprocess
import sys

import pytest

from planet_lib.training.run_dir import RunDirectory

SETTINGS = {"env": "dmc:cartpole-balance", "seed": 0, "image_shape": (3, 64, 64), "free_nats": 3.0, "device": None}


def test_an_opened_run_has_the_settings_it_was_created_with(tmp_path):
    created = RunDirectory.create(tmp_path / "runs" / "first", SETTINGS)
    opened = RunDirectory.open(tmp_path / "runs" / "first")
    assert opened == created
    assert opened.settings == {**SETTINGS, "image_shape": [3, 64, 64]}


def test_the_settings_file_says_what_ran_where_and_when(tmp_path):
    run = RunDirectory.create(tmp_path / "run", SETTINGS)
    record = json.loads(run.settings_path.read_text())
    assert record["versions"]["python"] == sys.version.split()[0]
    assert {"planet_lib", "torch", "numpy"} <= record["versions"].keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["started"])
    assert record["machine"]["cpus"] == os.cpu_count()


def test_changed_settings_hold_for_whoever_opens_the_run_and_the_old_ones_are_remembered(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path / "run", {"seed": 0, "batch_size": 50, "old": True})
    started = json.loads(run.settings_path.read_text())["started"]
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume"])
    assert run.change_settings({"seed": 0, "batch_size": (20, 5), "new": 1.5}) == ["batch_size [20, 5] (was 50)"]
    assert run.change_settings({"seed": 1, "batch_size": [20, 5], "new": 1.5}) == ["seed 1 (was 0)"]
    opened = RunDirectory.open(run.path)
    assert opened == run
    assert opened.settings == {"seed": 1, "batch_size": [20, 5], "new": 1.5}
    record = json.loads(run.settings_path.read_text())
    assert record["started"] == started
    assert [change["settings_before"] for change in record["changes"]] == [{"batch_size": 50, "old": True}, {"seed": 0}]
    assert record["changes"] == opened.changes
    assert opened.changes[0]["command"] == ["train.py", "--resume"]
    assert opened.values_of("batch_size") == [[20, 5], 50]
    assert opened.values_of("never") == []


@pytest.mark.parametrize("changes", ["null", "5", '"abc"', "{}", "[1]"])
def test_changes_that_are_damaged_are_named(tmp_path, changes):
    run = RunDirectory.create(tmp_path / "run", {"seed": 0})
    text = run.settings_path.read_text()
    run.settings_path.write_text(text.replace('"settings"', f'"changes": {changes}, "settings"'))
    for call in (lambda: RunDirectory.open(run.path), lambda: run.change_settings({"seed": 1})):
        with pytest.raises(ValueError, match=r"settings.json is damaged \(got .* for its changes\): restore it"):
            call()


def test_a_lock_gives_the_settings_that_the_run_has_then(tmp_path):
    early = RunDirectory.create(tmp_path / "run", {"seed": 0})
    RunDirectory.open(early.path).change_settings({"seed": 1})
    with early.lock() as run:
        assert run.settings == {"seed": 1}


def test_settings_that_are_the_same_are_not_written(tmp_path):
    run = RunDirectory.create(tmp_path / "run", SETTINGS)
    run.settings_path.unlink()
    assert run.change_settings(SETTINGS) == []
    assert not run.settings_path.exists()


@pytest.mark.parametrize(("settings", "error"), [({"seed": {1}}, TypeError), ({"seed": 1}, OSError), (3, TypeError)])
def test_settings_that_cannot_be_written_leave_the_old_ones(tmp_path, monkeypatch, settings, error):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = RunDirectory.create(tmp_path / "run", {"seed": 0})
    before = run.settings_path.read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(error):
        run.change_settings(settings)
    assert run.settings == {"seed": 0}
    assert run.settings_path.read_bytes() == before
    assert sorted(os.listdir(run.path)) == ["episodes", "settings.json", "videos"]


def test_a_locked_run_is_what_the_lock_gives_and_nobody_else_gets_it(tmp_path):
    path = RunDirectory.create(tmp_path / "run", SETTINGS).path
    with RunDirectory.open(path).lock() as run:
        assert run == RunDirectory.open(path)
        with pytest.raises(BlockingIOError, match=r"^run .*run must be written by one process at a time"):
            run.lock().__enter__()
    with run.lock():
        pass


def test_every_file_of_a_run_lies_in_its_directory(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    names = {
        "settings_path": "settings.json",
        "metrics_path": "metrics.csv",
        "checkpoint_path": "checkpoint.pt",
        "learning_curve": "learning_curve.png",
        "videos": "videos",
        "episodes": "episodes",
    }
    assert {name: getattr(run, name) for name in names} == {name: run.path / file for name, file in names.items()}
    assert sorted(os.listdir(run.path)) == ["episodes", "settings.json", "videos"]


def test_an_existing_run_is_refused_and_left_as_it_is(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {"seed": 1})
    before = run.settings_path.read_bytes()
    with pytest.raises(FileExistsError, match=r"it has no checkpoint to go on from, so remove it.*--name or --out$"):
        RunDirectory.create(run.path, {"seed": 2})
    run.checkpoint_path.touch()
    with pytest.raises(FileExistsError, match=r"run already exists.*--resume.*--name or --out$"):
        RunDirectory.create(tmp_path / "run", {"seed": 2})
    assert run.settings_path.read_bytes() == before


def test_an_existing_empty_directory_or_file_is_refused_too(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("empty", "file"):
        with pytest.raises(FileExistsError, match="already exists"):
            RunDirectory.create(tmp_path / name, {})
    assert (tmp_path / "file").read_text() == "mine"


def test_a_setting_that_json_cannot_hold_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(TypeError, match=r"settings\['act'\] must be a plain value .*, got builtin_function"):
        RunDirectory.create(tmp_path / "run", {"act": print})
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_half_made_run(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            RunDirectory.create(tmp_path / "run", {})
    assert os.listdir(tmp_path) == []
    RunDirectory.create(tmp_path / "run", {})


def test_opening_what_is_no_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist: give the path"):
        RunDirectory.open(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"is not a run directory, it has no settings\.json"):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": "planet_li', r"settings\.json is damaged .*: restore it, or start a new run"),
        (b"\xff\xfe\x00", r"settings\.json is damaged"),
        (b"[1, 2]", r"settings\.json was not written by a planet_lib run"),
        (b'{"lr": 1}', r"settings\.json was not written by a planet_lib run"),
        (b'{"format": "planet_lib run"}', r"settings\.json was not written by a planet_lib run"),
    ],
)
def test_unreadable_settings_are_one_clear_line(tmp_path, content, message):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        RunDirectory.open(tmp_path)
    assert "\n" not in str(raised.value)


def test_creating_a_run_imports_no_simulator_and_no_plotting():
    code = """
import sys, tempfile
from planet_lib.training.run_dir import RunDirectory
from planet_lib.training import checkpoint, curves, metrics, pictures, progress
run = RunDirectory.create(tempfile.mkdtemp() + "/run", {})
heavy = {"gymnasium", "dm_control", "mujoco", "matplotlib", "imageio_ffmpeg", "PIL", "tensorboard"}
sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
