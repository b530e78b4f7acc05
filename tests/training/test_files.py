import errno
import os
import signal
import sys

import pytest

from planet_lib._files import atomic_path
from planet_lib.training._extras import require


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_old_file_stays_whole_until_the_new_one_is(tmp_path):
    place = tmp_path / "note.txt"
    place.write_text("old")
    with atomic_path(place) as temporary:
        temporary.write_text("ne")
        assert place.read_text() == "old"
        temporary.write_text("new")
    assert place.read_text() == "new"
    assert os.listdir(tmp_path) == ["note.txt"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, failing):
    place = tmp_path / "note.txt"
    place.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full_disk)
        with pytest.raises(OSError, match="No space left"), atomic_path(place) as temporary:
            temporary.write_text("new")
    assert place.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_ctrl_c_while_writing_leaves_the_old_file_and_no_litter(tmp_path):
    place = tmp_path / "note.txt"
    place.write_text("old")

    def write():
        with atomic_path(place) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert place.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_the_temporary_file_keeps_its_extension_and_its_missing_directory_is_made(tmp_path):
    with atomic_path(tmp_path / "videos" / "a.mp4") as temporary:
        assert temporary.suffix == ".mp4"
        assert temporary.parent == tmp_path / "videos"
        temporary.write_bytes(b"x")
    assert (tmp_path / "videos" / "a.mp4").read_bytes() == b"x"


def test_a_missing_package_names_the_extra_in_one_line():
    with pytest.raises(ImportError, match=r"^the video needs nothing_here.*'planet-worldmodel\[train\]' .*$"):
        require("nothing_here.part", purpose="the video")


def test_ctrl_c_while_a_module_is_imported_comes_once_it_is_there(tmp_path, monkeypatch):
    (tmp_path / "pressed_within.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGINT)\nfor _ in range(1000): pass\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            require("pressed_within", purpose="the test")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert sys.modules.pop("pressed_within").whole
