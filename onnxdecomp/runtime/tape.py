"""Arrays on disk, one per tensor and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ValueInfoProto, helper

from onnxdecomp.ir import Array, Scratch, explained
from onnxdecomp.stopping import uninterrupted


class Tape:
    """Arrays on disk, one per tensor and run, in a folder that goes when the block is left."""

    def __init__(self, beside: Path | None = None) -> None:
        self._scratch = Scratch.make(beside=beside)
        self._folder = self._scratch.folder
        self._shapes: dict[str, list[tuple[int, ...]]] = {}
        self._types: dict[str, np.dtype[np.generic]] = {}
        self._numbers: dict[str, int] = {}

    def __enter__(self) -> Tape:
        return self

    def __exit__(self, *_: object) -> None:
        with uninterrupted():
            self._scratch.remove()

    def _file(self, key: str, run: int) -> Path:
        number = self._numbers.setdefault(key, len(self._numbers))
        return self._folder / f"{number}-{run}.npy"

    def append(self, key: str, value: Array) -> None:
        """Add the value of one more run.

        Raises:
            OutputError: the folder cannot take it.
        """
        shapes = self._shapes.setdefault(key, [])
        # To a file that can be read, too, NumPy writes through Python, which knows why that fails.
        with explained(self._folder.parent), self._file(key, len(shapes)).open("w+b") as stream:
            np.save(stream, value, allow_pickle=False)
        shapes.append(value.shape)
        self._types[key] = value.dtype

    def __contains__(self, key: str) -> bool:
        return key in self._shapes

    def read(self, key: str, run: int) -> Array:
        """The value of a run."""
        value: Array = np.load(self._file(key, run), allow_pickle=False)
        return value

    def drop(self, key: str) -> None:
        """Forget a tensor."""
        for run in range(len(self._shapes.pop(key))):
            self._file(key, run).unlink()

    def value_info(self, key: str) -> ValueInfoProto:
        """Name, type and shape of a tensor; a dimension that differs between runs is left open."""
        dims = [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*self._shapes[key], strict=True)]
        return helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(self._types[key]), dims)
