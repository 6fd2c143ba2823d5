"""Pixels of images on disk, so that every image is decoded once, however often samples are read."""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np

from onnxdecomp.ir import Array


class Pixels:
    """The bytes of images, in a temporary file without a name, which goes with the last who reads them.

    Another process has a file of its own: a copy begins without any, and so does what was forked.
    """

    def __init__(self, decode: Callable[[Path], Array]) -> None:
        """`decode` makes bytes (uint8, any shape) of an image file."""
        self._decode = decode
        self._forget()

    def __reduce__(self) -> tuple[type[Pixels], tuple[Callable[[Path], Array]]]:
        return Pixels, (self._decode,)

    def _forget(self) -> None:
        self._process = os.getpid()
        self._file: BinaryIO | None = None
        self._places: dict[Path, tuple[int, tuple[int, ...]]] = {}
        self._end = 0
        self._lock = Lock()

    def read(self, path: Path) -> Array:
        """The bytes of the image at `path`, decoded the first time; raises what `decode` does."""
        if self._process != os.getpid():
            self._forget()  # the place in a file that is open in two processes is that of both
        with self._lock:
            place = self._places.get(path)
            if place is not None and self._file is not None:
                self._file.seek(place[0])
                data = self._file.read(math.prod(place[1]))
                return np.frombuffer(data, np.uint8).reshape(place[1])
        pixels = self._decode(path)
        with self._lock:
            self._keep(path, pixels)
        return pixels

    def _keep(self, path: Path, pixels: Array) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            self._file.seek(self._end)
            written = self._file.write(pixels.tobytes())
        except OSError:
            return  # a full disk costs time, not the samples
        if written == pixels.size:
            self._places[path] = (self._end, pixels.shape)
            self._end += pixels.size
