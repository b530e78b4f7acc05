"""Files that are whole or not there. For this package alone.

Every file of a run is written beside its place and moved onto it once it is whole, so a full disk, Ctrl-C or a power
cut leaves the old file readable. Knows nothing about what the files hold.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, suffix: str | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it onto `path` when the block ends without an exception.

    The temporary name keeps the extension, by which encoders know the format, or has the suffix that is given. It is
    the same at every call, so what a killed process left behind is overwritten by the next write instead of piling up.
    Missing parent directories are made. On any exception, Ctrl-C included, the temporary file is removed and `path` is
    left as it was.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_path(place) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> place.read_text(), temporary.exists()
        ('whole', False)
    """
    target = Path(path)
    make_directory(target.parent)
    temporary = target.with_name(f".{target.stem}.partial{target.suffix if suffix is None else suffix}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # still there if both were names of one file: moving it did nothing
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(target)  # a write that fails does not say of which file
        raise
    sync_directory(target.parent)


def make_directory(path: Path) -> None:
    """Make a directory and its parents where they are missing, so that a power cut leaves them there."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_directory(each.parent)


def check_file(path: Path) -> None:
    """Raise a `ValueError` where something else than a file or a directory lies: a pipe or device may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} must be a file, got something that is neither file nor directory")


def sync(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the directory's names are on the disk, on systems and file systems that can."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
