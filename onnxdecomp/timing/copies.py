"""Copies of a model that are measured in its place: in half precision, or with a name on every node."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto

from onnxdecomp.errors import MissingExtraError
from onnxdecomp.ir import explained
from onnxdecomp.timing.subjects import Subject

# Weights beyond this many bytes are written beside the copy: a protobuf ends at 2 GiB.
_LARGE = 1 << 30


def halved(subject: Subject, path: Path) -> Path:
    """Write the model converted to fp16 to `path`; its inputs and outputs stay as they are.

    Raises:
        MissingExtraError: this onnxruntime comes without its tools.
    """
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise MissingExtraError(f"`precision` fp16 needs onnxruntime.transformers: {error}") from error
    with explained(path.parent):
        onnx.save(convert_float_to_float16(_whole(subject), keep_io_types=True), path)
    return path


def named(subject: Subject, path: Path) -> tuple[Path, GraphProto]:
    """A file in which every node of the main graph has a name of its own, and that graph.

    It is the model's own file where the names are so already, else a copy at `path`: a profile tells nodes
    by their names.
    """
    names = [node.name for node in subject.proto.graph.node]
    if all(names) and len(set(names)) == len(names):
        return subject.path, subject.proto.graph
    model = _whole(subject)
    for i, node in enumerate(model.graph.node):
        node.name = next(filter(None, node.output), f"node {i}")
    with explained(path.parent):
        onnx.save(model, path, save_as_external_data=model.ByteSize() > _LARGE)
    return path, model.graph


def _whole(subject: Subject) -> ModelProto:
    """The model with all its data inside, to be changed at will."""
    model = ModelProto()
    model.CopyFrom(subject.proto)
    # External data lie beside the original, wherever the copy is.
    onnx.external_data_helper.load_external_data_for_model(model, str(subject.path.parent))
    return model
