"""Run the tests in fresh environments, with the oldest and the newest versions that pyproject.toml allows.

One row per Python and choice of versions. `oldest` pins everything that pyproject.toml gives a lower bound, test tools
included, to exactly that bound; `newest` lets pip choose. What neither names is the newest that fits. Every Python
found is tried, of each minor version the newest one. The tests run on a copy of the checkout, so that it can be edited
meanwhile.

An environment that cannot be made, such as for want of wheels, is a row too, and so are tests that do not end in time:
nothing is left out in silence. The exit status is 0 if no test failed, and every environment was made for those Pythons
that the classifiers in pyproject.toml name.

    python tests/reliability/matrix.py --write                        # everything, in hours; `make matrix`
    python tests/reliability/matrix.py --write --jobs 2               # two rows at a time, for a core each
    python tests/reliability/matrix.py --versions oldest --tests tests/models -q

PyPI's torch for Linux brings gigabytes of CUDA libraries. With PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
in the environment, pip takes the small build of the same version.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "supported-versions.md"
RESULTS = ROOT / "docs" / "results" / "supported-versions" / "supported-versions.json"
BEGIN, END = "<!-- table: written by tests/reliability/matrix.py -->", "<!-- end of the table -->"
SHOWN = ("torch", "numpy", "gymnasium", "mujoco", "dm-control", "einops", "typing-extensions")
NOT_COPIED = (".git", ".venv", "venv", "runs", "build", "dist", "_build", "__pycache__", ".hypothesis", "*_cache")
RUNNING: set[int] = set()  # the processes of all rows that are made now
ENDING = threading.Event()
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One row to make: with which Python, from which copy of the checkout, in which environment."""

    python: Path
    source: Path
    place: Path
    row: Row
    args: argparse.Namespace

    @property
    def executable(self) -> Path:
        """The environment's Python."""
        return self.place / "bin" / "python"


class NotMadeError(Exception):
    """An environment could not be made; the message is pip's reason."""


def requirements(project: dict[str, Any], extras: Iterable[str]) -> list[Requirement]:
    """What the project and these extras ask for, with extras that name the project itself resolved.

    >>> table = {"name": "p", "dependencies": ["a>=1"], "optional-dependencies": {"x": ["b>=2"], "all": ["p[x]"]}}
    >>> [str(requirement) for requirement in requirements(table, ["all"])]
    ['a>=1', 'b>=2']
    """
    found = [Requirement(text) for text in project["dependencies"]]
    for extra in plain_extras(project, extras):
        found += [Requirement(text) for text in project["optional-dependencies"][extra]]
    return found


def plain_extras(project: dict[str, Any], extras: Iterable[str]) -> list[str]:
    """The extras, with those that only name others of the project replaced by them."""
    plain: list[str] = []
    for extra in extras:
        wanted = [Requirement(text) for text in project["optional-dependencies"][extra]]
        own = [each for each in wanted if canonicalize_name(each.name) == canonicalize_name(project["name"])]
        plain += plain_extras(project, [name for each in own for name in sorted(each.extras)]) if own else [extra]
    return plain


def oldest_pins(wanted: Iterable[Requirement]) -> list[str]:
    """A pin to the lower bound of each requirement that has one; of two bounds, the higher.

    >>> oldest_pins([Requirement("torch>=2.13,<3"), Requirement("pillow>=9"), Requirement("pillow>=10.1")])
    ['pillow==10.1', 'torch==2.13']
    """
    bounds: dict[str, Version] = {}
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        for bound in requirement.specifier:
            if bound.operator in (">=", "~=", "=="):
                bounds[name] = max(Version(bound.version), bounds.get(name, Version("0")))
    return [f"{name}=={bounds[name]}" for name in sorted(bounds)]


def pythons(requires: str) -> list[Path]:
    """The Pythons on PATH and of pyenv that `requires` allows and that can make environments, one a minor version."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    folders += sorted((Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions").glob("*/bin"))
    script = "import ensurepip, sys, venv; print('.'.join(map(str, sys.version_info[:3])), sys._base_executable)"
    newest: dict[tuple[int, ...], tuple[Version, Path]] = {}
    for path in (found for folder in folders for found in sorted(folder.glob("python3.[0-9]*"))):
        if not re.fullmatch(r"python3\.\d+", path.name):
            continue
        done = subprocess.run([path, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            continue  # such as a shim of pyenv for a version that is not selected
        version, executable = done.stdout.strip().split(" ", 1)
        found = Version(version)
        if found in SpecifierSet(requires) and found > newest.get(found.release[:2], (Version("0"),))[0]:
            newest[found.release[:2]] = (found, Path(executable))
    return [newest[minor][1] for minor in sorted(newest)]


def run(command: Sequence[str | Path], *, seconds: float, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command away from this program's own environment, and end all its processes where it takes too long."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        if ENDING.is_set():
            raise NotMadeError("the matrix was interrupted")
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True
        )
        RUNNING.add(process.pid)
        try:
            status = process.wait(seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            RUNNING.discard(process.pid)
        output.seek(0)
        return subprocess.CompletedProcess([str(part) for part in command], status, output.read())


def make_environment(job: Job) -> None:
    """Make the environment with the project and its extras in it, and note what is installed."""
    done = run([job.python, "-m", "venv", job.place], seconds=300, folder=job.source)
    if done.returncode != 0:
        raise NotMadeError(f"venv: {done.stdout.strip()[-200:]}")
    project = tomllib.loads((job.source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = plain_extras(project, job.args.extras.split(","))
    wanted, asked = requirements(project, extras), f".[{','.join(extras)}]"
    pins = job.place / "pins.txt"
    pins.write_text("\n".join(oldest_pins(wanted) if job.row["versions"] == "oldest" else []), encoding="utf-8")
    # From wheels alone: building somebody's source is neither quick nor what users get.
    options = ["-q", "--only-binary", ":all:", "-c", pins, "--editable", asked]
    try:
        done = run([job.executable, "-m", "pip", "install", *options], seconds=job.args.install_time, folder=job.source)
    except subprocess.TimeoutExpired:
        raise NotMadeError(f"pip did not end within {job.args.install_time / 60:.0f} minutes") from None
    if done.returncode != 0:
        errors = [line.removeprefix("ERROR: ") for line in done.stdout.splitlines() if line.startswith("ERROR: ")]
        errors = [line for line in errors if not line.startswith("ResolutionImpossible")]  # which says where to read
        raise NotMadeError(errors[-1] if errors else f"pip ended with status {done.returncode}")
    listing = run([job.executable, "-m", "pip", "list", "--format", "json"], seconds=300, folder=job.source).stdout
    packages = json.loads(listing[listing.index("[") : listing.rindex("]") + 1])
    job.row["installed"] = {canonicalize_name(package["name"]): package["version"] for package in packages}


def run_tests(job: Job) -> None:
    """Run pytest in the copy, and put what its report says into the row."""
    row, args, report, started = job.row, job.args, job.place / "report.xml", time.monotonic()
    command = [job.executable, "-m", "pytest", "-q", "--junitxml", report, *args.tests]
    try:
        done = run(command, seconds=args.test_time, folder=job.source)
    except subprocess.TimeoutExpired:
        row["outcome"] = f"tests did not end within {args.test_time / 60:.0f} minutes"
        return
    row["seconds"] = round(time.monotonic() - started)
    if args.logs:
        args.logs.mkdir(parents=True, exist_ok=True)
        (args.logs / f"{row['python']}-{row['versions']}.log").write_text(done.stdout, encoding="utf-8")
    if not report.exists():
        row["outcome"] = f"pytest ended with status {done.returncode}: {done.stdout.strip()[-300:]}"
        return
    row.update(read_report(report))
    row["outcome"] = "passed" if done.returncode == 0 else "failed"


def read_report(report: Path) -> Row:
    """Counts, failures with their first line, and reasons of skips, of a JUnit report."""
    counts: Counter[str] = Counter()
    failures, skips = [], Counter()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        outcomes = {child.tag: child.get("message") or "" for child in case}
        if "failure" in outcomes or "error" in outcomes:
            counts["failed"] += 1
            message = outcomes.get("failure", outcomes.get("error", ""))
            failures.append(f"{name}: {(message.splitlines() or [''])[0][:200]}")
        elif "skipped" in outcomes:
            counts["skipped"] += 1
            skips[outcomes["skipped"]] += 1
        else:
            counts["passed"] += 1
    return {name: counts[name] for name in ("passed", "failed", "skipped")} | {
        "failures": failures,
        "skips": dict(skips),
    }


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, with what could not be made and what failed below it."""
    heads = [
        "Python",
        "versions",
        *(name.replace("-", "_") for name in SHOWN),
        "passed",
        "failed",
        "skipped",
        "minutes",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    notes = []
    for row in rows:
        name = f"Python {row['python']}, {row['versions']}"
        installed = [row["installed"].get(package, "") for package in SHOWN]
        counts = [str(row.get(count, "")) for count in ("passed", "failed", "skipped")]
        minutes = f"{row['seconds'] / 60:.0f}" if "seconds" in row else ""
        lines.append(f"| {' | '.join([row['python'], row['versions'], *installed, *counts, minutes])} |")
        notes += [f"- {name}: {row['outcome']}"] if row["outcome"] not in ("passed", "failed") else []
        notes += [f"- {name}: `{failure}`" for failure in row.get("failures", [])]
    return "\n".join([*lines, "", *notes]).strip() + "\n"


def record(row: Row, args: argparse.Namespace) -> None:
    """Put the row into the results, in the place of an older one for the same Python and versions."""
    rows = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else []
    minor = row["python"].rpartition(".")[0]
    rows = [old for old in rows if (old["python"].rpartition(".")[0], old["versions"]) != (minor, row["versions"])]
    rows = sorted([*rows, row], key=lambda each: (Version(each["python"]), each["versions"] == "newest"))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    text = table(rows)
    if args.page and args.page.exists():
        before, _, rest = args.page.read_text(encoding="utf-8").partition(BEGIN)
        args.page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.stdout.write(text)
    sys.stdout.flush()


def commit() -> str:
    """The commit of the checkout, marked where files were changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def one_row(python: Path, versions: str, args: argparse.Namespace, checkout: str) -> Row:
    """Make one environment, run the tests of the checkout, of the commit named so, in it, and remove it."""
    script = "import platform; print(platform.python_version(), end='')"
    version = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout
    row: Row = {"python": version, "versions": versions, "tests": " ".join(args.tests) or "all", "commit": checkout}
    row |= {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "installed": {}}
    with tempfile.TemporaryDirectory(prefix="matrix-", dir=args.folder) as folder:
        job = Job(
            python=python, source=Path(folder) / "checkout", place=Path(folder) / "environment", row=row, args=args
        )
        shutil.copytree(ROOT, job.source, ignore=shutil.ignore_patterns(*NOT_COPIED))
        try:
            make_environment(job)
            run_tests(job)
        except NotMadeError as reason:
            row["outcome"] = f"could not be made: {reason}"
    return row


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--versions", nargs="+", choices=("oldest", "newest"), default=["oldest", "newest"])
    parser.add_argument("--python", nargs="+", type=Path, help="Pythons to use (default: all that are found)")
    parser.add_argument("--extras", default="all,dev", help="extras to install (default: all,dev)")
    parser.add_argument("--folder", type=Path, help="where the environments are made and removed (default: TMPDIR)")
    parser.add_argument("--logs", type=Path, help="keep pytest's output here")
    parser.add_argument("--jobs", type=int, default=1, help="rows that are made at once")
    parser.add_argument("--install-time", type=float, default=3600, help="seconds for one call of pip")
    parser.add_argument("--test-time", type=float, default=7200, help="seconds for the tests of one environment")
    parser.add_argument("--json", type=Path, default=Path("matrix.json"), help="results; rows of earlier runs are kept")
    parser.add_argument("--write", action="store_true", help="write the results and the table of the documentation")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, default=[], help="what pytest gets; must come last")
    args = parser.parse_args(given)
    args.page = PAGE if args.write else None
    args.json = RESULTS if args.write else args.json
    return args


def end_all() -> None:
    """Kill what runs for any row, with all that it started, and let nothing more begin."""
    ENDING.set()
    for pid in list(RUNNING):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def main() -> int:
    """Make each row of the table, and say whether all is well."""
    args = arguments()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {text.rpartition(" ")[2] for text in project["classifiers"] if text.startswith("Programming Language")}
    requires = project["requires-python"]
    checkout, status = commit(), 0  # named before the first row changes the table in it
    places = [(python, versions) for versions in args.versions for python in args.python or pythons(requires)]
    with ThreadPoolExecutor(args.jobs) as threads:
        made = [threads.submit(one_row, python, versions, args, checkout) for python, versions in places]
        try:
            for row in (each.result() for each in as_completed(made)):
                record(row, args)
                if "passed" not in row and row["python"].rpartition(".")[0] not in declared:
                    continue  # nobody said that it could be made
                if row["outcome"] != "passed":
                    status = 1
        except BaseException:  # Ctrl-C, which reaches no thread but this one
            end_all()
            threads.shutdown(cancel_futures=True)
            raise
    return status


if __name__ == "__main__":
    sys.exit(main())
