"""Every public name is fuzzed, or left out for a reason that stands beside it."""

import importlib
import pkgutil
from pathlib import Path

import planet_lib

FOLDER = Path(__file__).parent


def fuzz_modules():
    """The modules of this folder that have entries."""
    for path in sorted(FOLDER.glob("test_fuzz_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def public_names():
    """Names of all public modules' `__all__`, by the object: the same one under several names counts once."""
    found = {}
    modules = [planet_lib] + [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(planet_lib.__path__, "planet_lib.")
        if not any(part.startswith("_") for part in info.name.split("."))
    ]
    for module in modules:
        for name in getattr(module, "__all__", []):
            found.setdefault(name, module.__name__)
    return found


def test_every_public_name_is_fuzzed_or_left_out_for_a_reason():
    entries, left_out = set(), {}
    for module in fuzz_modules():
        entries |= {part for entry in getattr(module, "ENTRIES", []) for part in entry.name.split(".")}
        left_out |= getattr(module, "LEFT_OUT", {})
    reasons = {name.rpartition(".")[2]: reason for name, reason in left_out.items()}
    assert all(len(reason) > 5 for reason in reasons.values())
    missing = {name: home for name, home in public_names().items() if name not in entries and name not in reasons}
    assert not missing, f"public names that nobody fuzzes: {missing}"
