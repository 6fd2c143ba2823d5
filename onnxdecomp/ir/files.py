"""Files written whole or not at all, and never over the input."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from onnxdecomp.arguments import PathLike
from onnxdecomp.errors import OutputError, UsageError, first_line
from onnxdecomp.stopping import uninterrupted

_HINTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
}


def as_folder(path: PathLike | None, parameter: str) -> Path | None:
    """`path` as a folder that is there; None stays None.

    Args:
        path: of the folder.
        parameter: by which it was given, for messages.

    Raises:
        UsageError: there is no such folder.
    """
    if path is None:
        return None
    if not Path(path).is_dir():
        raise UsageError(f"`{parameter}`: there is no folder {path}; create it first")
    return Path(path)


def write_text(path: Path, text: str, keep: set[Path]) -> None:
    """Write a small document, whole or not at all; see `write_file`."""
    if _is_stdout(path):
        sys.stdout.write(text)
        return
    write_file(path, lambda target: target.write_text(text, encoding="utf-8"), keep)


def _is_stdout(path: Path) -> bool:
    """Whether `path` is where standard output goes: opened anew, the file behind it would be cut off."""
    try:
        return path.is_symlink() and os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except OSError:  # a link to nothing, or a standard output that is no file
        return False


def write_file(path: Path, write: Callable[[Path], object], keep: set[Path]) -> None:
    """Let `write` make a file, and put it at `path` when it is whole; devices and pipes are written directly.

    Raises:
        OutputError: the folder is missing, read-only or full.
        UsageError: `path` is one of `keep`.
    """
    require_target(path, keep, device=True)
    with explained(path):
        # What stands behind a link, as /dev/stdout may, must stay the file it is.
        if path.is_symlink() or (path.exists() and not path.is_file()):
            write(path)
            return
        with scratch_folder(f".{path.name}.", path.parent) as scratch:
            write(scratch / path.name)
            (scratch / path.name).replace(path)


def make_scratch(prefix: str = ".onnxdecomp-", beside: Path | None = None) -> Path:
    """A new folder, for the caller to remove.

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
        return Path(tempfile.mkdtemp(prefix=prefix, dir=beside))


@contextlib.contextmanager
def scratch_folder(prefix: str = ".onnxdecomp-", beside: Path | None = None) -> Iterator[Path]:
    """A folder that is gone after the block, whole, whatever ends it: a signal too, and one more after it.

    Args:
        prefix: what its name begins with.
        beside: where to make it; None is where the system keeps temporary files.

    Raises:
        OutputError: it cannot be made there.
    """
    scratch: Path | None = None
    try:
        with uninterrupted():
            scratch = make_scratch(prefix, beside)
        yield scratch
    finally:
        with uninterrupted():
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)


def require_target(target: Path, keep: set[Path], *, device: bool = False) -> None:
    """Refuse to write `target`, before any work is done, where that could not or must not succeed.

    Args:
        target: the file to write.
        keep: files that must not be overwritten.
        device: whether a device or a pipe will do.

    Raises:
        UsageError: it is no file, or one of the files to `keep`.
        OutputError: its folder is missing or cannot be written.
    """
    with explained(target):
        if target.is_dir():
            raise UsageError(f"{target} is a folder; name a file")
        require_apart(target, keep)
        if target.exists() and (not target.is_file() or _is_stdout(target)):
            if device:
                return
            raise UsageError(f"{target} is no regular file; a model cannot go there")
        if not target.parent.is_dir():
            raise OutputError(f"cannot write {target}: there is no folder {target.parent}; create it first")
        if not os.access(target.parent, os.W_OK):
            raise OutputError(
                f"cannot write {target}: the folder {target.parent} is read-only; choose another"
            )


def require_apart(target: Path, keep: Iterable[Path], owner: str = "the input") -> None:
    """Refuse to write over a file that is needed.

    Args:
        target: the file to write; it need not exist.
        keep: files that must not be overwritten, resolved; nor need they.
        owner: what these are, in the message.

    Raises:
        UsageError: it is one of them, by whatever name.
        OutputError: it cannot be looked at.
    """
    with explained(target):
        exists = target.exists()
        if any(target.resolve() == k or (exists and k.exists() and target.samefile(k)) for k in keep):
            raise UsageError(
                f"{target} belongs to {owner}, and is never overwritten; choose another output name"
            )


def require_distinct(*targets: Path | None) -> None:
    """Refuse two outputs of one name; None and devices may stand several times.

    Raises:
        UsageError: a name stands twice.
    """
    places: set[Path] = set()
    for target in targets:
        # A device takes what it is given.
        if target is None or (target.exists() and not target.is_file()):
            continue
        if target.resolve() in places:
            raise UsageError(f"{target} is named for two outputs; choose another name for one of them")
        places.add(target.resolve())


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into one line that names the output or a folder."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "see the system's message")
        what = error.strerror or first_line(error)  # libraries raise some without a number
        raise OutputError(f"cannot write {path}: {what}; nothing was written; {hint}") from error
