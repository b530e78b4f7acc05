"""No file runs code: proved by reading every name in the sources, not by trying some files.

Only the module of the workers unpickles, and only what a process and its own workers send each other through a pipe
that nobody else can open. In the library, two places import a module whose name they are given.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("planet_lib", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
SAFE = {
    "numpy.load": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}
PICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
UNPICKLERS = {"load", "loads", "open", "decode", "Unpickler"}
PIPES = {"planet_lib/envs/_worker.py", "benchmarks/environments.py"}  # both ends are ours
IMPORT = {"importlib.import_module", "__import__", "runpy.run_path"}
IMPORTERS = {
    *("planet_lib/envs/gym.py", "planet_lib/training/_extras.py"),  # "gym:MODULE:ID", and the packages of an extra
    *("benchmarks/planners/peers.py", "benchmarks/updates/peers.py", "benchmarks/world_model.py"),  # peers' checkouts
}
NEVER = {
    *("eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "pandas.read_pickle"),
    *("torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
}


def meanings(tree):
    """What the names that a module imports stand for: `np` for numpy, after `from torch import load` torch.load."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node, names):
    """The full name of a name or of an attribute of one, such as numpy.load; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    inner = dotted(node.value, names) if isinstance(node, ast.Attribute) else None
    return f"{inner}.{node.attr}" if inner else None


def faults(source, path="planet_lib/some.py"):
    """What in a module could run code that a file or a name brings."""
    tree = ast.parse(source)
    names, found = meanings(tree), []
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        name = dotted(node, names) or ""
        call = calls.get(id(node))
        unpickles = name.split(".")[0] in PICKLERS and name.split(".")[-1] in UNPICKLERS
        is_pipe = isinstance(node, ast.Attribute) and node.attr == "recv"
        if isinstance(node, ast.keyword) and node.arg == "shell":
            found.append("shell")
        elif name in NEVER or (unpickles and path not in PIPES):
            found.append(name)
        elif is_pipe and path not in PIPES:
            found.append("recv")
        elif name in SAFE and not has(call, *SAFE[name]):
            found.append(f"{name} without {SAFE[name][0]}={SAFE[name][1]}")
        elif name in IMPORT and path not in IMPORTERS and not (call and isinstance(call.args[0], ast.Constant)):
            found.append(f"{name} of a name from elsewhere")
    return found


def has(call, keyword, value):
    """Whether it is a call with keyword=value, written out."""
    given = {each.arg: each.value for each in call.keywords} if call else {}
    return isinstance(given.get(keyword), ast.Constant) and given[keyword].value is value


def test_nothing_in_the_sources_can_run_code_that_a_file_brings():
    assert len(SOURCES) > 100
    found = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in SOURCES}
    found = {path: faults(source, path) for path, source in found.items()}
    assert {path: what for path, what in found.items() if what} == {}


def test_each_place_that_unpickles_or_imports_by_name_would_be_found_were_it_not_excepted():
    for path in sorted(PIPES | IMPORTERS):
        assert faults((ROOT / path).read_text(encoding="utf-8")) != [], f"{path} needs no exception any more"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import numpy as np\nnp.load(path)", "numpy.load without allow_pickle=False"),
        ("from numpy import load as get\nget(path, allow_pickle=flag)", "numpy.load without allow_pickle=False"),
        (
            "from numpy.lib import format as f\nf.read_array(x)",
            "numpy.lib.format.read_array without allow_pickle=False",
        ),
        ("import torch\ntorch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("import torch\nreader = torch.load", "torch.load without weights_only=True"),
        ("import pickle\npickle.load(file)", "pickle.load"),
        ("import cloudpickle as cp\nuse = cp.loads", "cloudpickle.loads"),
        ("from pickle import Unpickler\nUnpickler(file)", "pickle.Unpickler"),
        ("import joblib\njoblib.load(path)", "joblib.load"),
        ("eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("import yaml\nyaml.load(text)", "yaml.load"),
        ("import torch.jit\ntorch.jit.load(path)", "torch.jit.load"),
        ("import os\nos.system(text)", "os.system"),
        ("import subprocess\nsubprocess.run(text, shell=True)", "shell"),
        ("connection.recv()", "recv"),
        (
            "import importlib\nimportlib.import_module(name)",
            "importlib.import_module of a name from elsewhere",
        ),
    ],
)
def test_the_reader_finds_each_way_to_run_code(source, fault):
    assert faults(source) == [fault]


def test_the_reader_lets_pass_what_is_safe():
    safe = """
import json, pickle, importlib
import numpy as np, torch
model.eval()
torch.compile(model)
np.load(path, allow_pickle=False)
torch.load(path, map_location="cpu", weights_only=True)
pickle.dumps(value)
json.loads(text)
importlib.import_module("mujoco")
"""
    assert faults(safe) == []
