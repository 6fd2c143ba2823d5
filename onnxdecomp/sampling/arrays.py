"""Files of NumPy's, .npz and .npy: read array by array, once what they say of themselves is found true."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from onnxdecomp.errors import OnnxdecompError, UsageError
from onnxdecomp.ir import Array, require_memory, require_regular

# How a zip begins: with its first member, or, where there is none, its end.
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True, slots=True)
class Outline:
    """What the header of an array says of it."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


class ArrayFile:
    """An .npz or .npy file that is open; the array in an .npy file has the name ""."""

    def __init__(self, path: Path, stream: IO[bytes], size: int, what: str) -> None:
        """
        Args:
            path: for messages.
            stream: of the file, at its start.
            size: of the file in bytes.
            what: it is, in messages.
        """
        self._path, self._stream, self._size, self._what = path, stream, size, what
        self._zip = zipfile.ZipFile(stream) if stream.read(4) in _ZIP else None
        # NumPy leaves the suffix out of the names; where one stands twice, the later one counts.
        members = self._zip.namelist() if self._zip is not None else [""]
        self._members = {member.removesuffix(".npy"): member for member in members}

    @property
    def names(self) -> Sequence[str]:
        """Of the arrays."""
        return tuple(self._members)

    def outline(self, name: str) -> Outline:
        """Shape and type of an array.

        Raises:
            UsageError: it is none, or not all of it is there.
        """
        with _readable(self._path, self._what), self._open(name) as (stream, size):
            version = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(stream)
            needed = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or min(shape, default=0) < 0 or needed > size - stream.tell():
                raise ValueError(f"{needed} bytes")
            return Outline(shape, dtype)

    def read(self, name: str) -> Array:
        """The array of that name.

        Raises:
            UsageError: as `outline`.
            RunError: it is larger than the memory.
        """
        found = self.outline(name)
        require_memory(found.shape, found.dtype.itemsize, f"the array '{name}' in {self._path}")
        with _readable(self._path, self._what), self._open(name) as (stream, _):
            array: Array = npy.read_array(stream, allow_pickle=False)
            return array

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        """An array's bytes from its header on, and how many there are."""
        if self._zip is None:
            self._stream.seek(0)
            yield self._stream, self._size
            return
        member = self._members[name]
        with self._zip.open(member) as stream:
            yield stream, self._zip.getinfo(member).file_size


@contextmanager
def open_arrays(path: Path, what: str = "samples") -> Iterator[ArrayFile]:
    """An .npz or .npy file.

    Args:
        path: of the file.
        what: it is, in messages.

    Raises:
        UsageError: it cannot be read; an array in it, when that is asked for.
    """
    with _readable(path, what):
        size = require_regular(path)
        stream = path.open("rb")
    with stream:
        with _readable(path, what):
            found = ArrayFile(path, stream, size, what)
        yield found


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into one line; NumPy and zipfile raise anything."""
    try:
        yield
    except (OnnxdecompError, MemoryError):
        raise
    except Exception as error:
        # Of the system's errors, those of decompressors have no words.
        reason = error.strerror if isinstance(error, OSError) else None
        raise UsageError(
            f"cannot read the {what} {path}: {reason or 'no .npz or .npy file of numbers'}"
        ) from error
