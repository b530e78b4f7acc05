"""The package as a whole: a quiet import, imports that go one way, and public names that show how they are used."""

import ast
import doctest
import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import planet_lib

PACKAGE = Path(planet_lib.__file__).parent

BASE = {"planet_lib.types", "planet_lib._shapes", "planet_lib._errors", "planet_lib._files", "planet_lib._signals"}
# What the modules of each row may import of planet_lib besides their own sub-package; the longest row that fits counts.
TABLE: dict[str, set[str]] = {
    "planet_lib": BASE | {"planet_lib.models", "planet_lib.objectives", "planet_lib.data", "planet_lib.planning"},
    "planet_lib.types": {"planet_lib._shapes"},
    "planet_lib._shapes": set(),
    "planet_lib._errors": set(),
    "planet_lib._files": set(),
    "planet_lib._signals": set(),
    "planet_lib.models": BASE,
    "planet_lib.objectives": BASE | {"planet_lib.models"},
    "planet_lib.data": BASE,
    "planet_lib.planning": BASE,
    "planet_lib.planning.dynamics": BASE | {"planet_lib.models", "planet_lib.data.pixels"},
    "planet_lib.planning.agent": BASE | {"planet_lib.models", "planet_lib.data.pixels"},
    "planet_lib.envs": BASE,
    "planet_lib.training": BASE
    | {"planet_lib.models", "planet_lib.objectives", "planet_lib.data", "planet_lib.planning"},
    "planet_lib.testing": BASE
    | {"planet_lib.models", "planet_lib.objectives", "planet_lib.data", "planet_lib.planning"},
}
PRESETS = "planet_lib.training.presets"  # for examples and users: nothing of planet_lib imports it
KNOW_MODELS = {"planet_lib.planning.dynamics", "planet_lib.planning.agent"}


def source_modules(package: Path) -> dict[str, Path]:
    """Every module below a folder called planet_lib, by its full name."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports(module: str, path: Path, modules: dict[str, Path]) -> Iterator[tuple[int, str, str]]:
    """Line, imported module of planet_lib, and imported name ("" for the module) of every import, nested ones too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*base, origin] if origin else base)
            found = [
                (f"{origin}.{alias.name}", "") if f"{origin}.{alias.name}" in modules else (origin, alias.name)
                for alias in node.names
            ]
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
            name = node.args[0]  # importlib.import_module("...") and __import__("...")
            found = [(name.value, "")] if isinstance(name, ast.Constant) and isinstance(name.value, str) else []
        else:
            continue
        for target, name in found:
            if target.partition(".")[0] == "planet_lib":
                yield node.lineno, target, name


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def sub_package(module: str) -> str:
    return ".".join(module.split(".")[:2])


def complaint(module: str, target: str, name: str) -> str | None:
    """Why `module` may not import `name` of `target`, or None."""
    row = max((row for row in TABLE if within(module, row)), key=len)
    if row == "planet_lib" and module != "planet_lib":
        return "stands in no row of the table: add one to design and test"
    if within(target, PRESETS):
        return "presets are imported by examples and users alone"
    sibling = within(module, "planet_lib.planning") and module not in KNOW_MODELS | {"planet_lib.planning"}
    if sibling and target in KNOW_MODELS | {"planet_lib.planning"}:
        return "cem.py and its siblings keep away from what knows the models"
    home = sub_package(module)
    inside = home != "planet_lib" and within(target, home)
    allowed = TABLE[row]
    if not inside and not any(within(target, package) for package in allowed):
        return f"{row} may import only {', '.join(sorted(allowed)) or 'nothing'}"
    private = [part for part in (*target.split("."), name) if part.startswith("_") and not part.startswith("__")]
    if not inside and private not in ([], ["_shapes"], ["_errors"], ["_files"], ["_signals"]):
        return f"{'.'.join(private)} is private to its sub-package"
    return None


def violations(package: Path) -> list[str]:
    modules = source_modules(package)
    return [
        f"{module}:{line} imports {target}{name and f' ({name})'}: {reason}"
        for module, path in modules.items()
        for line, target, name in imports(module, path, modules)
        if (reason := complaint(module, target, name))
    ]


def test_imports_go_one_way() -> None:
    assert len(source_modules(PACKAGE)) > 10
    found = violations(PACKAGE)
    assert not found, "imports against the table of the design:\n" + "\n".join(found)


CLEAN = {
    "__init__.py": "from planet_lib.models import Cell\nfrom planet_lib.planning.agent import Agent\n",
    "types.py": "import torch\n",
    "_shapes.py": "import torch\n",
    "models/__init__.py": "from planet_lib.models.cells import Cell\n",
    "models/cells.py": "from planet_lib._shapes import check\nfrom . import _inner\nfrom ..types import State\n",
    "models/_inner.py": "from planet_lib.types import State\n",
    "objectives/__init__.py": "from planet_lib.models import cells\n",
    "data/__init__.py": "",
    "data/pixels.py": "from planet_lib import types\n",
    "planning/__init__.py": "from .agent import Agent\n",
    "planning/cem.py": "from planet_lib.types import Plan\n",
    "planning/agent.py": "from planet_lib.data.pixels import f\nimport planet_lib.models.cells\nfrom .cem import g\n",
    "envs/__init__.py": "import gymnasium\n",
    "training/__init__.py": "from planet_lib.planning import agent\n",
    "training/presets.py": "from planet_lib.models import Cell\n",
}


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "planet_lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / "planet_lib"


def test_the_import_check_passes_a_tree_that_keeps_to_the_table(tmp_path: Path) -> None:
    assert violations(write_tree(tmp_path, CLEAN)) == []


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("types.py", "from planet_lib.models import cells", "planet_lib.types may import only planet_lib._shapes"),
        ("_shapes.py", "from .types import State", "planet_lib._shapes may import only nothing"),
        ("models/cells.py", "from planet_lib.objectives import elbo", "planet_lib.models may import only"),
        ("models/cells.py", "from ..planning.cem import Planner", "planet_lib.models may import only"),
        ("models/cells.py", "import planet_lib", "planet_lib.models may import only"),
        ("models/cells.py", "from planet_lib import Cell", "planet_lib.models may import only"),
        ("objectives/__init__.py", "import planet_lib.data.pixels", "planet_lib.objectives may import only"),
        ("objectives/__init__.py", "from planet_lib.models.cells import _head", "_head is private to its sub-package"),
        ("objectives/__init__.py", "from planet_lib.models import _inner", "_inner is private to its sub-package"),
        ("data/pixels.py", "from planet_lib.models import Cell", "planet_lib.data may import only"),
        ("data/pixels.py", "def f():\n    import planet_lib.models", "planet_lib.data may import only"),
        ("planning/cem.py", "from planet_lib.models import Cell", "planet_lib.planning may import only"),
        ("planning/cem.py", "from planet_lib.planning.agent import Agent", "keep away from what knows the models"),
        ("planning/cem.py", "from planet_lib.planning import Agent", "keep away from what knows the models"),
        ("planning/cem.py", "from planet_lib.data.pixels import f", "planet_lib.planning may import only"),
        ("planning/agent.py", "from planet_lib.data import replay", "planet_lib.planning.agent may import only"),
        ("planning/agent.py", "from planet_lib.objectives import elbo", "planet_lib.planning.agent may import only"),
        ("envs/__init__.py", "from planet_lib.data.pixels import f", "planet_lib.envs may import only"),
        ("training/__init__.py", "from planet_lib.envs import make", "planet_lib.training may import only"),
        (
            "training/__init__.py",
            "from planet_lib.training import presets",
            "presets are imported by examples and users alone",
        ),
        ("training/__init__.py", "from .presets import CPU", "presets are imported by examples and users alone"),
        ("training/__init__.py", 'import_module("planet_lib.envs.gym")', "planet_lib.training may import only"),
        ("__init__.py", "from planet_lib import envs", "planet_lib may import only"),
        ("__init__.py", "import planet_lib.training.update", "planet_lib may import only"),
        ("extras.py", "from planet_lib.types import State", "stands in no row of the table"),
    ],
)
def test_the_import_check_catches_a_violation(tmp_path: Path, file: str, line: str, message: str) -> None:
    package = write_tree(tmp_path, {**CLEAN, file: f"{CLEAN.get(file, '')}{line}\n"})
    (found,) = violations(package)
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".").replace("__init__", "")
    assert found.startswith(f"planet_lib.{module}:".replace(".:", ":"))
    assert message in found


PROBE = """
    import os, random, sys, warnings
    import numpy, torch

    def settings():
        return {
            "default dtype": torch.get_default_dtype(),
            "default device": torch.get_default_device(),
            "threads": torch.get_num_threads(),
            "interop threads": torch.get_num_interop_threads(),
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "anomaly": torch.is_anomaly_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "deterministic warnings": torch.is_deterministic_algorithms_warn_only_enabled(),
            "matmul precision": torch.get_float32_matmul_precision(),
            "cudnn": [getattr(torch.backends.cudnn, n) for n in ("enabled", "benchmark", "deterministic")],
            "mkldnn": torch.backends.mkldnn.enabled,
            "flush denormal": (torch.tensor(1e-42, dtype=torch.float32) * 1).item(),
            "print options": vars(torch._tensor_str.PRINT_OPTS).copy(),
            "torch's generator": torch.get_rng_state().tolist(),
            "numpy's generator": numpy.random.get_state()[1].tolist(),
            "python's generator": random.getstate(),
            "numpy's errors": numpy.geterr(),
            "environment": dict(os.environ),
            "warning filters": [f for f in warnings.filters if "planet" in str(f)],
            "excepthook": sys.excepthook,
        }

    before, modules = settings(), set(sys.modules)
    import planet_lib
    after = settings()
    changed = [name for name in before if before[name] != after[name]]
    extras = "gymnasium dm_control dm_env mujoco matplotlib tensorboard tqdm imageio PIL cv2".split()
    loaded = [name for name in extras if name in set(sys.modules) - modules]
    own = [name for name in ("planet_lib.envs", "planet_lib.training") if name in sys.modules]
    if changed or loaded or own:
        sys.exit(f"changed: {changed}; loaded: {loaded + own}")
"""


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run(
        [sys.executable, "-W", "default::DeprecationWarning:planet_lib", "-c", textwrap.dedent(code)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_importing_prints_nothing_changes_no_setting_and_loads_no_extra(tmp_path: Path) -> None:
    result = run_python(PROBE, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == [], "importing wrote files"


def test_the_probe_sees_a_changed_setting_and_a_loaded_extra(tmp_path: Path) -> None:
    spoiled = PROBE.replace("import planet_lib\n", "import matplotlib; torch.set_default_dtype(torch.float64)\n")
    assert run_python(spoiled, tmp_path).stderr.startswith("changed: ['default dtype']; loaded: ['matplotlib'")


def test_the_public_names_are_sorted_and_each_once() -> None:
    assert len(set(planet_lib.__all__)) == len(planet_lib.__all__)
    assert planet_lib.__version__.count(".") >= 2


def examples(name: str) -> list[doctest.DocTest]:
    public = getattr(planet_lib, name)
    names = vars(sys.modules[public.__module__]).copy()
    found = doctest.DocTestFinder(recurse=False).find(public, name, globs=names)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", planet_lib.__all__)
def test_every_public_name_has_a_docstring_with_an_example_that_runs(name: str) -> None:
    public = getattr(planet_lib, name)
    assert f"{public.__module__}.".startswith("planet_lib."), f"{name} is not of this package"
    assert public.__doc__, f"{name} has no docstring"
    assert "Example:" in public.__doc__, f"the docstring of {name} has no section Example"
    tests = examples(name)
    assert tests, f"the docstring of {name} has no example (>>>)"
    for test in tests:
        report = io.StringIO()
        outcome = doctest.DocTestRunner(verbose=False).run(test, out=report.write)
        assert outcome.failed == 0, report.getvalue()
