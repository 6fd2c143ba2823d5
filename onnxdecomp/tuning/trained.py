"""Which initialisers are trained, and how they are written back."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Array, Model, Spool, is_external, is_onnx_op, read

FACTORS, NORMS, CONVS = TRAINED = ("factors", "factors+norms", "convs")

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
# Their scale and bias; statistics are measured, not trained.
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization")
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def find_trained(original: Model, rewritten: Model, train: str) -> dict[str, Array]:
    """The values of the initialisers that are trained, by name, in single precision or double.

    Args:
        original: the model that was rewritten.
        rewritten: what was made of it.
        train: one of TRAINED: "factors" are the initialisers that the original has not, or has otherwise.

    Raises:
        UsageError: there is nothing to train.
    """
    graph = rewritten.proto.graph
    # From IR 4 on callers may override an initialiser that is an input.
    inputs = {value.name for value in graph.input} if rewritten.proto.ir_version >= 4 else set()
    floats = {t.name: t for t in graph.initializer if t.data_type in FLOATS and t.name not in inputs}
    before = {tensor.name: tensor for tensor in original.proto.graph.initializer}
    chosen = {
        name
        for name, tensor in floats.items()
        if name not in before or not _alike(tensor, rewritten, before[name], original)
    }
    if not chosen:
        raise UsageError("`rewritten` has no factors to train: its weights are those of `original`")
    # Factors of a weight that is stored in half precision are read through a Cast.
    cast = {node.output[0] for node in graph.node if is_onnx_op(node, "Cast") and node.input[0] in chosen}
    factors = frozenset(chosen | cast)
    for node in graph.node:
        chosen.update(name for name in _read_to_train(node, train, factors) if name in floats)
    return {name: _wide(read(floats[name], rewritten.folder)) for name in floats if name in chosen}


def with_values(model: Model, values: Mapping[str, Array]) -> Model:
    """A copy of the model in which some initialisers have other values; each keeps its type and its shape.

    Args:
        model: the model; what of it is external stays so, new values in a scratch folder.
        values: by name of the initialiser.
    """
    made = model.copy()
    spool = model.spool
    for tensor in made.proto.graph.initializer:
        if tensor.name not in values:
            continue
        external = is_external(tensor)
        for field in ("float_data", "double_data", "int32_data", "external_data", "data_location"):
            tensor.ClearField(field)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.raw_data = values[tensor.name].astype(dtype).tobytes()
        if external:
            spool = spool or Spool.create(None)
            spool.store(tensor)
    return Model(proto=made.proto, folder=made.folder, spool=spool)


def _read_to_train(node: NodeProto, train: str, factors: Set[str]) -> list[str]:
    """What a node reads that is to be trained besides factors; a chain may have the bias of its Conv."""
    if any(name in factors for name in node.input[1:2]):
        return list(node.input[2:3])
    if train == NORMS and any(is_onnx_op(node, op) for op in _NORMS):
        return list(node.input[1:3])
    if train == CONVS and any(is_onnx_op(node, op) for op in _WEIGHTED):
        return list(node.input)
    return []


def _alike(a: TensorProto, model_a: Model, b: TensorProto, model_b: Model) -> bool:
    if a.data_type != b.data_type or a.dims != b.dims:
        return False
    return read(a, model_a.folder).tobytes() == read(b, model_b.folder).tobytes()


def _wide(values: Array) -> Array:
    return values if values.dtype == np.float64 else values.astype(np.float32)
