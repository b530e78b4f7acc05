"""An empty directory for tests that write where they are told: a path that is nearly right must not land elsewhere."""

import contextlib
from pathlib import Path

import pytest
from fuzzing import Entry


@pytest.fixture(scope="module", autouse=True)
def empty_place(tmp_path_factory):
    """The working directory of a module's tests, a few levels deep, for paths that go up."""
    place = tmp_path_factory.mktemp("fuzz") / "a" / "b" / "c"
    place.mkdir(parents=True)
    with contextlib.chdir(place):
        yield


def contents(_=None):
    """Every file and directory here, with its content: what an error must leave as it was."""
    return {str(each): each.read_bytes() if each.is_file() else b"" for each in Path.cwd().parents[2].rglob("*")}


def emptied(entry):
    """The entry, whose right arguments begin in an empty directory: else there would be more of them in each case."""

    def valid():
        place = Path.cwd()
        for each in sorted(place.parents[2].rglob("*"), reverse=True):
            if each != place and each not in place.parents:
                each.unlink() if each.is_file() or each.is_symlink() else each.rmdir()
        return entry.valid()

    return Entry(**{**entry.__dict__, "valid": valid})


def put(path, content):
    """Write what a file holds; what is no content at all never gets there."""
    if not isinstance(content, bytes):
        raise TypeError(f"content must be bytes, got {content!r}")
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(content)
