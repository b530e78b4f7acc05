"""The wheel and the source distribution: what is in them, and that what they install works outside the checkout."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import planet_lib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
pytestmark = pytest.mark.slow


def run(*command, folder, **environment):
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**CLEAN, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Build a checkout or an unpacked source distribution with the backend of pyproject.toml; skip where it is not."""
    tools = tmp_path_factory.mktemp("tools")
    if not all(importlib.util.find_spec(name) for name in ("build", "hatchling")):
        wanted = ["build", *PROJECT["build-system"]["requires"]]
        done = run(sys.executable, "-m", "pip", "install", "-q", "--target", tools, *wanted, folder=tools)
        if done.returncode != 0:
            pytest.skip(
                f"the build tools {', '.join(wanted)} are neither installed nor to be had: {done.stderr[-300:]}"
            )

    def build(source, *what):
        place = tmp_path_factory.mktemp("dist")
        command = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", place, source]
        done = run(*command, folder=place, PYTHONPATH=str(tools))
        assert done.returncode == 0, done.stdout + done.stderr
        return place

    return build


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy that nobody edits meanwhile, with the leftovers that Python and Sphinx put between the sources."""
    place = tmp_path_factory.mktemp("copy") / "checkout"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".git", ".venv", "runs", ".*_cache", ".hypothesis"))
    return place


@pytest.fixture(scope="module")
def distributions(build, checkout):
    """The source distribution of the checkout, and the wheel that is built from it and not from the checkout."""
    place = build(checkout)
    return next(place.glob("*.tar.gz")), next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(distributions):
    return distributions[1]


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_its_licence_and_nothing_else(checkout, wheel):
    names = set(contents(wheel))
    sources = {path.relative_to(checkout).as_posix() for path in (checkout / "planet_lib").rglob("*.py")}
    information = f"planet_worldmodel-{planet_lib.__version__}.dist-info"
    assert {name for name in names if not name.startswith(information)} == sources | {"planet_lib/py.typed"}
    assert f"{information}/licenses/LICENSE" in names


def test_the_wheel_says_what_pyproject_says(checkout, wheel):
    (metadata,) = [value for name, value in contents(wheel).items() if name.endswith(".dist-info/METADATA")]
    said, project = HeaderParser().parsestr(metadata.decode()), PROJECT["project"]
    assert (said["Name"], said["Version"]) == (project["name"], planet_lib.__version__)
    assert (said["Requires-Python"], said["License-Expression"]) == (project["requires-python"], project["license"])
    assert set(said.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    core = [re.split("[<>=]", line)[0] for line in said.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(core) == ["einops", "numpy", "torch", "typing-extensions"]
    assert said.get_payload() == (checkout / "README.md").read_text(encoding="utf-8")


def test_the_source_distribution_holds_what_it_takes_to_test_it_and_no_leftovers(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "planet_lib/py.typed")
    wanted += ("tests/conftest.py", "docs/index.md", "examples/train_planet.py", "requirements/constraints.txt")
    assert [name for name in wanted if name not in names] == []
    leftovers = ("__pycache__", "_build", ".venv", "runs", ".git", ".hypothesis", ".pyc")
    assert [name for name in names if any(part.endswith(leftovers) for part in Path(name).parts)] == []


def test_the_wheel_of_the_source_distribution_is_that_of_the_checkout(build, checkout, wheel):
    direct = contents(next(build(checkout, "--wheel").glob("*.whl")))
    through = contents(wheel)
    assert sorted(direct) == sorted(through)
    assert [name for name, content in direct.items() if content != through[name]] == []


def test_the_installed_wheel_works_outside_the_checkout(wheel, tmp_path):
    """The dependencies are this environment's, on the path behind the new environment's own packages."""
    home, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(sys.executable, "-m", "venv", "--without-pip", home, folder=tmp_path).returncode == 0
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=elsewhere)
    packages = Path(done.stdout.strip())
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "dependencies.pth").write_text("\n".join(sorted(ours)), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    done = run(*pip, folder=elsewhere)
    assert done.returncode == 0, done.stderr
    shutil.copy(ROOT / "tests" / "reliability" / "smoke.py", elsewhere)
    done = run(python, "-W", "error", "smoke.py", folder=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all works\n")
