"""A model as it is on disk: its protobuf, and the folder and files of its external data.

Nothing here changes a model. Loading leaves external data where they are.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Protocol, TypeAlias, runtime_checkable

from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import naming
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.ir.reading import MOST_OF_PROTOBUF, read_file
from onnxdecomp.ir.soundness import require_sound
from onnxdecomp.ir.spool import Spool
from onnxdecomp.ir.tensors import Extent, all_tensors, extent, inline_nbytes, is_external, verify_external

# A serialised protobuf cannot exceed 2 GiB; the margin holds the external data entries still to be written.
PROTOBUF_LIMIT = 2**31 - 2**24


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A ModelProto and the folder its external data are relative to.

    Attributes:
        proto: the model; external tensors stay external.
        folder: where relative external data locations start.
        path: the file it was read from, None for a model made in memory.
        spool: the scratch folder of its new external tensors, alive as long as the model.
    """

    proto: ModelProto
    folder: Path
    path: Path | None = None
    spool: Spool | None = None

    def __reduce__(self) -> tuple[Callable[[], Model], tuple[()]]:
        # The scratch folder goes with this one: a copy holds what is in it.
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.spool is not None:
            values |= {"proto": self.whole(), "spool": None}
        return partial(Model, **values), ()

    def copy(self) -> Model:
        """The same model with a protobuf of its own (external data stay shared)."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        return dataclasses.replace(self, proto=proto)

    def extents(self) -> dict[Extent, None]:
        """The distinct runs of external bytes, in the order their tensors stand in."""
        return {extent(t, self.folder): None for t in all_tensors(self.proto) if is_external(t)}

    def nbytes(self) -> int:
        """Size of the model as a file: the protobuf and its external data."""
        external = sum(part.length for part in self.extents())
        if self.path is not None:
            return self.path.stat().st_size + external
        inline = inline_nbytes(self.proto)
        return external + (inline if inline > PROTOBUF_LIMIT else self.proto.ByteSize())

    def files(self) -> set[Path]:
        """The model's own file and its data files, links resolved."""
        own = {self.path.resolve()} if self.path is not None else set()
        return own | {part.file.resolve() for part in self.extents()}

    def whole(self) -> ModelProto:
        """The protobuf with all data inside: its own where nothing is external, else a copy.

        Raises:
            ModelError: external data are gone.
            UsageError: it would be larger than a protobuf can be.
        """
        if not self.extents():
            return self.proto
        if self.nbytes() > PROTOBUF_LIMIT:
            raise UsageError("the model is too large for one ModelProto (2 GB): write it with `save`")
        proto = self.copy().proto
        for tensor in filter(is_external, all_tensors(proto)):
            tensor.raw_data = extent(tensor, self.folder).read()
            tensor.ClearField("data_location")
            del tensor.external_data[:]
        return proto


@runtime_checkable
class HoldsModel(Protocol):
    """What has come to a model, as the result of a rewrite or of a search has."""

    def as_model(self) -> Model:
        """That model."""
        ...


# What functions take for a model.
Source: TypeAlias = Annotated[
    Model | ModelProto | HoldsModel | str | os.PathLike[str], "a path, a ModelProto or a result"
]


def load(path: str | os.PathLike[str]) -> Model:
    """Read the ONNX model at `path`; external data are verified to be there, not read.

    Raises:
        ModelError: no such file, not an ONNX model, or external data missing, cut off or outside its folder.
    """
    file = Path(path)
    try:
        data = read_file(file, MOST_OF_PROTOBUF)
    except (OSError, ValueError) as error:  # a name that no file can have
        raise ModelError(f"cannot read {file}: {getattr(error, 'strerror', error)}") from error
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{file} is not an ONNX model, or it is cut off: its protobuf does not parse"
        ) from error
    _require_model(proto, str(file))
    verify_external(proto, [file.parent, file.resolve().parent], file.parent)
    return Model(proto=proto, folder=file.parent, path=file)


def as_model(source: Source, parameter: str = "model") -> Model:
    """`source` as a Model: a path is loaded, a ModelProto wrapped (it must hold all its data).

    Args:
        source: a model, or what has come to one.
        parameter: by which it was given, for messages.

    Raises:
        ModelError: the file is no whole ONNX model.
        UsageError: a ModelProto's data lie in other files.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, HoldsModel):
        return source.as_model()
    with naming(parameter):
        if not isinstance(source, ModelProto):
            return load(source)
        _require_model(source, "the ModelProto")
        if any(is_external(tensor) for tensor in all_tensors(source)):
            raise UsageError("the model keeps data in other files; pass its path instead of the ModelProto")
        return Model(proto=source, folder=Path())


def _require_model(proto: ModelProto, what: str) -> None:
    # Almost any bytes parse as a protobuf of unknown fields; an ONNX model has at least these.
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{what} is not an ONNX model: it has no graph or no IR version")
    if not proto.opset_import and proto.ir_version >= 3:
        raise ModelError(
            f"{what} is not a whole ONNX model: it imports no operator set; the file may be cut off"
        )
    require_sound(proto, what)
