"""Files, and the shapes that they declare, are held against a bound before they take any memory."""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from onnxdecomp.errors import RunError

# A protobuf is smaller than that, and so is every text that a person or a program here writes.
MOST_OF_PROTOBUF, MOST_OF_TEXT = 2**31 - 1, 2**28
# NumPy's arrays, from its first version to its second, have at most so many axes.
_MOST_AXES = 32


def require_regular(path: Path) -> int:
    """Refuse what may never begin or never end, as pipes and devices do.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: it is no regular file, or cannot be looked at.
    """
    size = path.stat().st_size
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not path.is_file():
        raise OSError(errno.EINVAL, "it is a device or a pipe; save what it gives to a file first")
    return size


def read_file(path: Path, most: int) -> bytes:
    """The bytes of a regular file.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: it is no regular file, cannot be read, or is larger.
    """
    size = require_regular(path)
    if size > most:
        raise OSError(errno.EFBIG, f"it has more than the {most:,} bytes that such a file can have")
    with path.open("rb") as stream:
        data = stream.read(size)
        if stream.read(1):  # what lies in /proc has more than it says
            raise OSError(errno.EFBIG, "it has more bytes than its size says")
    return data


def require_memory(shape: Sequence[int], itemsize: int, what: str) -> None:
    """Refuse an array that this process could not hold.

    Args:
        shape: of the array.
        itemsize: bytes of an element.
        what: what messages call it.

    Raises:
        RunError: it has more bytes than there is memory, or more axes than NumPy knows.
    """
    if len(shape) > _MOST_AXES or math.prod(shape) * itemsize > _memory():
        times = "×".join(map(str, shape[:8])) + ("×…" if shape[8:] else "")
        raise RunError(f"{what} of shape {times} is larger than the memory here; give a smaller one")


def _memory() -> int:
    """Bytes that this process may have: what the machine has, or the user's limit."""
    most = sys.maxsize
    if hasattr(os, "sysconf"):
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        most = most if limit == resource.RLIM_INFINITY else min(most, limit)
    return most
