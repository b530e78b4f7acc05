"""The documentation: complete, true to the code, its examples run and its links lead somewhere."""

import importlib
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from loading import ROOT, load_example

import planet_lib
from planet_lib.training import RunDirectory

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
PACKAGES = ("models", "objectives", "planning", "data", "envs", "testing", "training")
DIRECTIVE = re.compile(r"^\.\. auto(?:class|function|data|exception):: (\S+)$", re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def public_names():
    """Every public name, as one would import it from where it is documented."""
    names = [f"planet_lib.{name}" for name in planet_lib.__all__]
    for package in PACKAGES:
        module = importlib.import_module(f"planet_lib.{package}")
        names += [f"planet_lib.{package}.{name}" for name in module.__all__ if name not in planet_lib.__all__]
    return names


def api_source():
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.rst")))


def faults(source, names):
    """What is wrong with an API reference: public names it lacks, and names it has twice."""
    documented = DIRECTIVE.findall(source)
    missing = [f"{name} is missing" for name in names if name not in documented]
    return missing + [f"{name} is there twice" for name in sorted(set(documented)) if documented.count(name) > 1]


def resolve(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def run_python(code, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
        check=False,
    )


def links(text):
    """Targets of Markdown links, without those to the web and within the page; code is left out."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [target.partition("#")[0] for target in targets if not target.startswith(("http", "#"))]


def table(text, heading):
    """The first cells of the table under a heading, split into the code they hold."""
    section = text.split(heading, 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [code for row in rows for code in re.findall(r"`([^`]+)`", row)]


@pytest.fixture(scope="module")
def train_planet():
    return load_example("train_planet")


def test_every_public_name_is_in_the_api_reference_exactly_once():
    assert faults(api_source(), public_names()) == []


def test_the_checker_notices_each_name_that_is_taken_out_or_written_twice():
    source, names = api_source(), public_names()
    assert len(names) > 50
    for name in names:
        without = re.sub(rf"^\.\. auto\w+:: {re.escape(name)}$", "", source, flags=re.MULTILINE)
        assert faults(without, names) == [f"{name} is missing"]
    assert faults(source + "\n.. autoclass:: planet_lib.State\n", names) == ["planet_lib.State is there twice"]
    assert faults(source, [*names, "planet_lib.new_name"]) == ["planet_lib.new_name is missing"]


def test_every_documented_name_can_be_imported_and_no_object_is_documented_under_two_names():
    documented = DIRECTIVE.findall(api_source())
    objects = {name: resolve(name) for name in documented}
    assert len({id(thing) for thing in objects.values()}) == len(documented)


def test_every_api_page_is_in_the_table_of_contents():
    index = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    pages = [path.stem for path in sorted((DOCS / "api").glob("*.rst"))]
    assert all(re.search(rf"^{page}$", index, re.MULTILINE) and f"({page}.rst)" in index for page in pages)


def test_the_example_of_the_readme_runs(tmp_path):
    blocks = PYTHON.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) == 1
    check = 'assert plan.action.shape == (2, 6) and bool(plan.valid.all()) and bool(losses.raw["kl"] > 0)'
    result = run_python(blocks[0] + check, tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_examples_of_getting_started_run_from_top_to_bottom(tmp_path):
    pytest.importorskip("gymnasium")
    blocks = PYTHON.findall((DOCS / "getting-started.md").read_text(encoding="utf-8"))
    assert len(blocks) > 5
    check = "assert replay.num_episodes == 5 and plan.valid.tolist() == [True, True]"
    result = run_python("\n".join([*blocks, check]), tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_two_commands_of_the_readme_stand_alone_and_are_targets_of_the_makefile():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```sh\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("train", "test"):
        assert f"make {target}\n" in fences
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_command_in_the_documentation_names_a_target_or_file_that_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in [ROOT / "README.md", *PAGES]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"
        for script in re.findall(r"examples/\w+\.py", text):
            assert (ROOT / script).exists(), f"{page.name}: {script}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_pages_leads_to_a_file(page):
    targets = links(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_links_are_found_in_prose_and_not_in_code():
    assert links("see [a](b.md#c), [d](https://e.f) and [g](#h)\n```\n[i](j.md)\n```\n") == ["b.md"]


def test_every_path_that_the_readme_lists_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    paths = table(readme, "## Where everything is")
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_sub_package_is_listed_in_the_readme():
    paths = table((ROOT / "README.md").read_text(encoding="utf-8"), "## Where everything is")
    packages = sorted(f"planet_lib/{path.parent.name}/" for path in (ROOT / "planet_lib").glob("*/__init__.py"))
    assert sorted(path for path in paths if re.fullmatch(r"planet_lib/\w+/", path)) == packages


def test_every_column_of_the_metrics_is_explained_in_its_order(train_planet):
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    assert tuple(table(text, "## Columns of metrics.csv")) == train_planet.COLUMNS


def test_every_flag_of_the_training_run_is_explained_with_its_default(train_planet, capsys):
    settings = {name.replace("_", "-") for name in train_planet.PRESETS["paper"].settings()}
    with pytest.raises(SystemExit):
        train_planet.parse(["--help"], ExitStack())
    flags = set(re.findall(r"^  --([\w-]+)", capsys.readouterr().out, re.MULTILINE))
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    assert {flag.removeprefix("--") for flag in table(text, "## Flags")} == flags - settings
    defaults = vars(train_planet.parse([], ExitStack()))
    for name in ("preset", "env", "obs", "cell", "device", "out"):
        default = re.search(rf"^\| `--{name}`.*$", text, re.MULTILINE)[0].split("|")[2]
        assert f"`{defaults[name]}`" in default


def test_every_file_of_a_run_is_explained():
    run = RunDirectory(Path("run"), {})
    names = {run.settings_path.name, run.metrics_path.name, run.checkpoint_path.name, run.learning_curve.name}
    names |= {f"{run.videos.name}/", f"{run.episodes.name}/"}
    for page in (ROOT / "README.md", DOCS / "training.md"):
        text = page.read_text(encoding="utf-8")
        assert [name for name in sorted(names) if f"`{name}" not in text] == []


def test_the_changelog_has_unreleased_changes_and_a_heading_for_numerics():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = text.split("## [Unreleased]", 1)[1].split("\n## ", 1)[0]
    assert "### Added" in unreleased
    assert "### Numerics" in unreleased
