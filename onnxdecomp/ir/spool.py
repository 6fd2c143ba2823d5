"""Scratch folders for tensors that are too large to keep in memory until a model is saved."""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from onnxdecomp.ir.explaining import explained
from onnxdecomp.ir.scratch import Scratch


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Spool:
    """A scratch folder for tensors too large to keep in memory; it goes when nobody holds it."""

    folder: Path

    @classmethod
    def create(cls, beside: Path | None) -> Spool:
        """A new scratch folder in `beside`, or where the system keeps temporary files."""
        scratch = Scratch.make(".onnxdecomp.", beside)
        spool = cls(scratch.folder.resolve())
        weakref.finalize(spool, scratch.remove)
        return spool

    def store(self, tensor: TensorProto) -> None:
        """Move the raw data of `tensor` into a file of the scratch folder; the tensor becomes external."""
        with explained(self.folder):
            descriptor, name = tempfile.mkstemp(dir=self.folder)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(tensor.raw_data)
        point_to(tensor, Path(name), 0, len(tensor.raw_data))


def point_to(tensor: TensorProto, location: Path, offset: int, length: int) -> None:
    """Make a tensor's data a stretch of a file: `length` bytes from `offset` on."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
