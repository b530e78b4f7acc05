"""The program behind `make matrix`: its pins, its rows and its table; no environment is made here."""

import json
import re
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import matrix
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_one" time="1"/>
<testcase classname="tests.a" name="test_two"><skipped message="no GPU"/></testcase>
<testcase classname="tests.a" name="test_three"><failure message="ValueError: wrong&#10;second line"/></testcase>
<testcase classname="tests.b" name="test_four"><error message="failed on setup"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def row():
    installed = {"torch": "2.13.0+cpu", "numpy": "2.0.0", "dm-control": "1.0.50"}
    row = {"python": "3.11.7", "versions": "oldest", "installed": installed}
    return row | {"outcome": "passed", "passed": 5, "failed": 0, "skipped": 2, "seconds": 620, "failures": []}


def test_oldest_pins_every_requirement_that_has_a_lower_bound_and_each_pin_is_allowed():
    wanted = matrix.requirements(PROJECT, ["all", "dev"])
    pins = {requirement.name: requirement for requirement in map(Requirement, matrix.oldest_pins(wanted))}
    for requirement in wanted:
        pin = pins.get(matrix.canonicalize_name(requirement.name))
        assert (pin is None) == (not requirement.specifier), requirement
        if pin is not None:
            assert requirement.specifier.contains(next(iter(pin.specifier)).version)
    assert {"torch", "numpy", "gymnasium", "dm-control", "mujoco", "einops", "typing-extensions", "pytest"} <= set(pins)


def test_hosted_ci_runs_make_test_on_exactly_the_pythons_that_the_classifiers_name():
    workflow = ROOT / ".github" / "workflows" / "tests.yml"
    if not workflow.exists():
        pytest.skip("a source distribution has no workflow")
    (tested,) = re.findall(r"^ +python: \[(.*)\]$", workflow.read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert [version.strip(' "') for version in tested.split(",")] == named


def test_this_python_is_found_or_a_newer_one_of_its_minor_version_and_none_that_is_too_old():
    found = matrix.pythons(">=3.11,<3.12" if sys.version_info[:2] == (3, 11) else PROJECT["requires-python"])
    versions = [subprocess.check_output([path, "-c", "import sys; print(*sys.version_info[:2])"]) for path in found]
    assert len(set(versions)) == len(versions)
    assert b"%d %d\n" % sys.version_info[:2] in versions
    assert matrix.pythons(">=99") == []


def test_a_report_gives_counts_and_the_first_line_of_each_failure(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(REPORT, encoding="utf-8")
    assert matrix.read_report(report) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": ["tests.a.test_three: ValueError: wrong", "tests.b.test_four: failed on setup"],
        "skips": {"no GPU": 1},
    }


def test_a_row_shows_the_versions_that_were_installed_and_how_the_tests_went(row):
    text = matrix.table([row])
    assert "| 3.11.7 | oldest | 2.13.0+cpu | 2.0.0 |  |  | 1.0.50 |  |  | 5 | 0 | 2 | 10 |" in text
    assert text.endswith("10 |\n")


def test_whatever_could_not_be_made_or_failed_is_written_below_the_table(row):
    unmade = {"python": "3.13.0", "versions": "newest", "installed": {}, "outcome": "could not be made: no torch"}
    text = matrix.table([row | {"outcome": "failed", "failed": 1, "failures": ["tests.a.test: no"]}, unmade])
    assert "| 3.13.0 | newest |  |  |  |  |  |  |  |  |  |  |  |" in text
    assert "- Python 3.11.7, oldest: `tests.a.test: no`" in text
    assert "- Python 3.13.0, newest: could not be made: no torch" in text


def test_a_later_row_replaces_the_one_of_the_same_python_and_versions_and_the_page_keeps_its_text(
    row, tmp_path, capsys
):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{matrix.BEGIN}\nold\n{matrix.END}\nafter\n", encoding="utf-8")
    args = matrix.arguments(["--json", str(tmp_path / "results" / "rows.json")])
    args.page = page
    for change in ({}, {"versions": "newest"}, {"python": "3.11.9", "passed": 6}, {"python": "3.12.1"}):
        matrix.record(row | change, args)
    rows = json.loads(args.json.read_text(encoding="utf-8"))
    assert [(each["python"], each["versions"], each["passed"]) for each in rows] == [
        ("3.11.7", "newest", 5),
        ("3.11.9", "oldest", 6),
        ("3.12.1", "oldest", 5),
    ]
    assert page.read_text(encoding="utf-8") == f"before\n{matrix.BEGIN}\n\n{matrix.table(rows)}\n{matrix.END}\nafter\n"
    assert matrix.table(rows) in capsys.readouterr().out


def test_an_environment_that_pip_refuses_is_a_row_with_pips_reason_and_the_tests_are_not_run(row, monkeypatch):
    said = "Collecting torch\nERROR: No matching distribution found for torch==2.13\n"
    calls = []

    def refuse(command, **_):
        calls.append([str(part) for part in command])
        is_pip = "pip" in calls[-1]
        return subprocess.CompletedProcess(command, int(is_pip), said if is_pip else "")

    monkeypatch.setattr(matrix, "run", refuse)
    monkeypatch.setattr(matrix, "ROOT", Path(__file__).parent)
    monkeypatch.setattr(matrix.shutil, "copytree", lambda _, target, **__: copy_of_pyproject(target))
    made = matrix.one_row(Path(sys.executable), "oldest", matrix.arguments([]), "0123abc")
    assert made["commit"] == "0123abc"
    assert made["outcome"] == "could not be made: No matching distribution found for torch==2.13"
    assert Version(made["python"]).release[:2] == sys.version_info[:2]
    assert not any("pytest" in command for command in calls)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ([{}], 0),
        ([{}, {"python": "3.99.0", "outcome": "could not be made", "passed": None}], 0),
        ([{"outcome": "could not be made", "passed": None}, {}], 1),
        ([{"outcome": "failed"}, {}], 1),
        ([{"python": "3.99.0", "outcome": "failed"}], 1),
    ],
)
def test_the_status_is_that_of_the_tests_and_of_the_pythons_that_the_classifiers_name(
    changes, status, row, monkeypatch
):
    rows = [{name: value for name, value in (row | change).items() if value is not None} for change in changes]
    monkeypatch.setattr(matrix, "arguments", lambda: SimpleNamespace(versions=["oldest"], python=rows, jobs=2))
    monkeypatch.setattr(matrix, "one_row", lambda python, *_: python)
    monkeypatch.setattr(matrix, "record", lambda *_: None)
    assert matrix.main() == status


def test_all_rows_name_the_commit_of_the_start_though_each_changes_the_table(row, monkeypatch):
    names, made_from = iter(["0123abc", "0123abc-dirty"]), []
    pythons = SimpleNamespace(versions=["oldest", "newest"], python=[Path(sys.executable)], jobs=1)
    monkeypatch.setattr(matrix, "arguments", lambda: pythons)
    monkeypatch.setattr(matrix, "commit", lambda: next(names))
    monkeypatch.setattr(matrix, "one_row", lambda *given: made_from.append(given[-1]) or row)
    monkeypatch.setattr(matrix, "record", lambda *_: None)
    assert matrix.main() == 0
    assert made_from == ["0123abc", "0123abc"]


def test_as_many_rows_are_made_at_once_as_asked_for(row, monkeypatch):
    meeting, recorded = threading.Barrier(2), []

    def one_row(python, versions, *_):
        meeting.wait(60)  # for the other one
        return row | {"versions": versions}

    given = SimpleNamespace(versions=["oldest", "newest"], python=[Path(sys.executable)], jobs=2)
    monkeypatch.setattr(matrix, "arguments", lambda: given)
    monkeypatch.setattr(matrix, "one_row", one_row)
    monkeypatch.setattr(matrix, "record", lambda row, _: recorded.append(row["versions"]))
    assert matrix.main() == 0
    assert sorted(recorded) == ["newest", "oldest"]


def test_ctrl_c_ends_all_rows_at_once_and_what_they_started(row, tmp_path, monkeypatch):
    def one_row(python, versions, *_):
        if versions == "oldest":
            while not (tmp_path / "child").exists():
                time.sleep(0.01)
            return row
        matrix.run(
            ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/child; wait"],
            seconds=60,
            folder=tmp_path,
        )
        matrix.run(["touch", tmp_path / "later"], seconds=60, folder=tmp_path)
        return row

    def interrupted(*_):
        raise KeyboardInterrupt

    given = SimpleNamespace(versions=["oldest", "newest"], python=[Path(sys.executable)], jobs=2)
    monkeypatch.setattr(matrix, "arguments", lambda: given)
    monkeypatch.setattr(matrix, "one_row", one_row)
    monkeypatch.setattr(matrix, "record", interrupted)
    monkeypatch.setattr(matrix, "ENDING", threading.Event())
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        matrix.main()
    assert time.monotonic() - began < 30
    wait_for_the_end_of((tmp_path / "child").read_text())
    assert not (tmp_path / "later").exists()


def copy_of_pyproject(target):
    target.mkdir()
    (target.parent / "environment").mkdir()
    (target / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())


def test_a_command_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    started = tmp_path / "child"
    command = f"sleep 60 & echo $! > {started}; wait"
    with pytest.raises(subprocess.TimeoutExpired):
        matrix.run(["sh", "-c", command], seconds=1, folder=tmp_path)
    wait_for_the_end_of(started.read_text())


def wait_for_the_end_of(pid):
    process = Path("/proc") / pid.strip()
    deadline = time.monotonic() + 30.0  # far below the minute that it would live; a busy machine buries late
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(process)


def is_alive(process):
    try:
        return "Z" not in (process / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
