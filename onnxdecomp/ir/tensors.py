"""Every tensor a model stores, and the bytes of those it keeps in other files.

ONNX keeps large tensors outside the protobuf: a TensorProto with `data_location` EXTERNAL names a file
(relative to the model's folder), an offset and a length (onnx/docs/ExternalData.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxdecomp.errors import ModelError, first_line

Array = NDArray[np.generic]

# Bits per element of the types that are packed.
_SUB_BYTE: dict[int, int] = {
    value: int(re.sub(r"\D", "", name)[0])
    for name, value in TensorProto.DataType.items()
    if name in ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")
}
_WIDTHS: dict[int, int] = {
    value: 8 * helper.tensor_dtype_to_np_dtype(value).itemsize
    for name, value in TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING")
} | _SUB_BYTE


def type_name(data_type: int) -> str:
    """The ONNX name of an element type, also of one that this onnx does not know."""
    names: dict[int, str] = {value: name.lower() for name, value in TensorProto.DataType.items()}
    return names.get(data_type, f"type {data_type}")


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes in a file: where an external tensor's data lie."""

    file: Path
    offset: int
    length: int

    def read(self) -> bytes:
        """The bytes themselves; raises as `chunks` does."""
        return b"".join(self.chunks(self.length))

    def chunks(self, size: int) -> Iterator[bytes]:
        """The bytes, so many at a time.

        Raises:
            ModelError: the file is gone, cannot be read, or became shorter.
        """
        left = self.length
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.offset)
                while left and (chunk := stream.read(min(left, size))):
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise ModelError(
                f"cannot read the external data {self.file}: {error.strerror}; put the file back"
            ) from error
        if left:
            raise ModelError(f"the external data {self.file} became shorter; put the file back as it was")


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's data lie outside the protobuf."""
    return tensor.data_location == TensorProto.EXTERNAL


def extent(tensor: TensorProto, folder: Path) -> Extent:
    """Where the data of the external `tensor` of a model in `folder` lie.

    A missing length means "as many bytes as the shape and type need".
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not entries.get("location"):
        raise ModelError(f"tensor '{tensor.name}': its external data have no location; the file is damaged")
    needed = byte_length(tensor)
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries["length"]) if "length" in entries else needed
    except ValueError as error:
        raise ModelError(f"tensor '{tensor.name}': its external data entry is damaged ({error})") from error
    if length < needed:
        raise ModelError(
            f"tensor '{tensor.name}': {length} bytes in external data '{entries['location']}', "
            f"but its shape needs {needed}"
        )
    return Extent(folder / entries["location"], offset, length)


def byte_length(tensor: TensorProto) -> int:
    """Bytes that the shape and element type of `tensor` need; 0 for strings and types not known here."""
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"tensor '{tensor.name}': negative size in {list(tensor.dims)}; the file is damaged")
    if is_external(tensor) and tensor.data_type not in _WIDTHS:
        raise ModelError(f"tensor '{tensor.name}': element type {tensor.data_type} is not known")
    elements: int = math.prod(tensor.dims)
    return -(-elements * _WIDTHS.get(tensor.data_type, 0) // 8)


def inline_nbytes(model: ModelProto) -> int:
    """Bytes of the tensors kept inside the protobuf, computed from shapes: nothing is serialised."""
    return sum(byte_length(tensor) for tensor in all_tensors(model) if not is_external(tensor))


def read(tensor: TensorProto, folder: Path) -> Array:
    """The values of `tensor`, in its own shape and dtype (bfloat16 as ml_dtypes.bfloat16).

    Leaves `tensor` as it is: external data are read for the call alone.
    """
    if is_external(tensor):
        data = extent(tensor, folder).read()
        tensor = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, raw_data=data)
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise ModelError(f"tensor '{tensor.name}': its data do not fit its shape ({error})") from error


def verify_external(model: ModelProto, folders: Iterable[Path], folder: Path) -> None:
    """Refuse external data that are absent, too short, or outside the model's folder.

    A path that leaves the folder could make a model read any file of its user (CVE-2024-5187 and its like).
    Symbolic links are followed, and may end only in one of `folders`: the model's, and the folder its own
    link leads to, as in download caches that link files into a blob store.
    """
    allowed = [root.resolve() for root in folders]
    for tensor in all_tensors(model):
        if is_external(tensor):
            part = extent(tensor, folder)
            location = next(e.value for e in tensor.external_data if e.key == "location")
            where = f"external data '{location}' of tensor '{tensor.name}'"
            try:
                _verify(part, location, allowed, where)
            except (OSError, ValueError, RuntimeError) as error:  # a path no file can have, links in a circle
                reason = getattr(error, "strerror", None) or first_line(error)
                raise ModelError(f"{where} cannot be looked up: {reason}") from error


def _verify(part: Extent, location: str, allowed: list[Path], where: str) -> None:
    if PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location.replace("\\", "/")).parts:
        raise ModelError(f"{where} point outside the model's folder; refused")
    if not any(part.file.resolve().is_relative_to(root) for root in allowed):
        raise ModelError(f"{where} lead outside the model's folder through a link; refused")
    if not part.file.is_file():
        raise ModelError(f"{where} are missing; put the file beside the model")
    if part.offset < 0 or part.length < 0 or part.offset + part.length > part.file.stat().st_size:
        raise ModelError(f"{where} end before byte {part.offset + part.length}; the file is truncated")


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every TensorProto of `model`, wherever it stands, in a fixed order."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
    for info in model.training_info:
        yield from _graph_tensors(info.initialization)
        yield from _graph_tensors(info.algorithm)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for found in node.attribute:
            yield from _attribute_tensors(found)


def _attribute_tensors(found: AttributeProto) -> Iterator[TensorProto]:
    if found.HasField("t"):
        yield found.t
    yield from found.tensors
    sparse = [found.sparse_tensor] if found.HasField("sparse_tensor") else []
    for each in (*sparse, *found.sparse_tensors):
        yield from (each.values, each.indices)
    if found.HasField("g"):
        yield from _graph_tensors(found.g)
    for graph in found.graphs:
        yield from _graph_tensors(graph)
