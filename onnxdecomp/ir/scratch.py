"""Scratch folders: they go with the block that made them, those of a killed process with the next command.

In each lies a file that its process has locked. The system takes the lock away when the process dies, however
that happens, so a folder whose lock can be had belongs to nobody any more.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxdecomp.ir.explaining import explained
from onnxdecomp.stopping import uninterrupted

_LOCK = ".onnxdecomp-lock"
# Hidden, and ending as `tempfile` ends names: a folder of any other name nobody here has made.
_OURS = re.compile(r"\..+[.-][a-z0-9_]{8}")


@dataclass(frozen=True, slots=True)
class Scratch:
    """A scratch folder, for its owner to remove.

    Attributes:
        folder: where it is.
        lock: the descriptor of its locked file; None where the system locks none.
    """

    folder: Path
    lock: int | None

    @classmethod
    def make(cls, prefix: str = ".onnxdecomp-", beside: Path | None = None) -> Scratch:
        """A new one.

        Args:
            prefix: what its name begins with.
            beside: where to make it; None is where the system keeps temporary files.

        Raises:
            OutputError: it cannot be made there.
        """
        if beside is None:
            with explained(Path("temporary files")):  # where no folder will do
                beside = Path(tempfile.gettempdir())
        with explained(beside):
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))
        return cls(folder, _locked(folder / _LOCK))

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)


@contextlib.contextmanager
def scratch_folder(prefix: str = ".onnxdecomp-", beside: Path | None = None) -> Iterator[Path]:
    """A folder that is gone after the block, whole, whatever ends it: a signal too, and one more after it.

    Args:
        prefix: what its name begins with.
        beside: where to make it; None is where the system keeps temporary files.

    Raises:
        OutputError: it cannot be made there.
    """
    scratch: Scratch | None = None
    try:
        with uninterrupted():
            scratch = Scratch.make(prefix, beside)
        yield scratch.folder
    finally:
        with uninterrupted():
            if scratch is not None:
                scratch.remove()


def _locked(path: Path) -> int | None:
    """The descriptor of a new file, locked; None where that cannot be: its folder is then never swept."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:  # a full disk says so itself, as soon as there is something to write
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, b"\n")  # until then nobody else may take it for one that is left over
    except OSError:  # a file system without locks
        os.close(lock)
        return None
    return lock


def sweep(folder: Path) -> None:
    """Remove the scratch folders in `folder` whose processes were killed; those of others are left alone."""
    if sys.platform == "win32":
        return
    try:
        found = [each for each in os.scandir(folder) if _OURS.fullmatch(each.name)]
        own = [each for each in found if each.is_dir(follow_symlinks=False) and _is_mine(each)]
    except OSError:  # a folder that cannot be looked into has nothing to be swept out
        return
    for each in own:
        _remove_left_over(Path(each.path))


def _is_mine(entry: os.DirEntry[str]) -> bool:
    return sys.platform != "win32" and entry.stat(follow_symlinks=False).st_uid == os.getuid()


def _remove_left_over(folder: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # there is none, or the folder is gone by now
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_size:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its process lives
        return
    finally:
        os.close(lock)
