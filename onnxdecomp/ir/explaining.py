"""What the operating system says against a file or a folder, as one line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from onnxdecomp.errors import OutputError, first_line

_HINTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into one line that names the output or a folder."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "see the system's message")
        what = error.strerror or first_line(error)  # libraries raise some without a number
        raise OutputError(f"cannot write {path}: {what}; nothing was written; {hint}") from error
