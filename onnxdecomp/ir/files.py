"""Files written whole or not at all, and never over the input."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from onnxdecomp.arguments import PathLike
from onnxdecomp.errors import OutputError, UsageError
from onnxdecomp.ir.explaining import explained
from onnxdecomp.ir.scratch import scratch_folder


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
