"""Constant weights: from the tensor a Conv reads back to the stored tensor it comes from.

A weight may be an initialiser, the value of a Constant node, or either of them behind Identity, Transpose
and Cast nodes. Whatever else it is, one sentence says why the weight cannot be factored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxdecomp.ir.graph import Scope, attribute, ints, is_onnx_op
from onnxdecomp.ir.tensors import Array, read

FORWARDERS = ("Identity", "Transpose", "Cast")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constant:
    """A tensor whose value is fixed in the file.

    Attributes:
        scope: where the initialiser, or the Constant node, behind the tensor stands.
        name: the tensor it defines there.
        stored: the protobuf that holds its values.
        steps: the Identity, Transpose and Cast nodes between `stored` and the tensor, in order of execution.
        shape: shape after the steps.
        data_type: ONNX element type after the steps.
    """

    scope: Scope
    name: str
    stored: TensorProto
    steps: tuple[NodeProto, ...]
    shape: tuple[int, ...]
    data_type: int

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Its element type in NumPy."""
        return helper.tensor_dtype_to_np_dtype(self.data_type)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two tensors that are sure to have the same values."""
        steps = [(n.op_type, *(a.SerializeToString() for a in n.attribute)) for n in self.steps]
        return self.scope.tensor(self.name), *(step for step in steps if step[0] != "Identity")

    def values(self, folder: Path) -> Array:
        """The tensor's values; external data are looked up in `folder`."""
        array = read(self.stored, folder)
        for node in self.steps:
            if node.op_type == "Transpose":
                array = np.transpose(array, _permutation(node, array.ndim))
            elif node.op_type == "Cast":
                with np.errstate(invalid="ignore", over="ignore"):  # as a runtime casts
                    array = array.astype(helper.tensor_dtype_to_np_dtype(_cast_type(node)))
        return array


def find_constant(scope: Scope, name: str, *, ir_version: int, freeze: bool) -> Constant | str:
    """The constant behind the tensor `name` as `scope` sees it, or a sentence saying why there is none.

    Args:
        scope: where the tensor is read.
        name: the tensor.
        ir_version: of the model. From 4 on an initialiser that is also a graph input can be overridden by
            the caller (onnx/docs/IR.md); before, all of them had to be listed and are constant.
        freeze: treat overridable initialisers as constant.
    """
    steps: list[NodeProto] = []
    owner = scope.owner(name)
    while owner is not None:
        stored = _stored(owner, name)
        if stored is not None:
            if name in owner.inputs and ir_version >= 4 and not freeze:
                return "its weight is a graph input that callers may override (`freeze_weights` fixes it)"
            return _constant(owner, name, stored, tuple(steps))
        node = owner.producers.get(name)
        if node is None or not _forwards(node) or node in steps:
            return _why_not(owner, name)
        steps.insert(0, node)
        name = node.input[0]
        owner = owner.owner(name)
    return f"its weight '{name}' is defined nowhere"


def _constant(scope: Scope, name: str, stored: TensorProto, steps: tuple[NodeProto, ...]) -> Constant | str:
    shape, data_type = tuple(stored.dims), stored.data_type
    for node in steps:
        if node.op_type == "Transpose":
            permutation = _permutation(node, len(shape))
            if sorted(permutation) != list(range(len(shape))):
                return f"its weight passes a Transpose that does not fit its {len(shape)} dimensions"
            shape = tuple(shape[i] for i in permutation)
        elif node.op_type == "Cast":
            data_type = _cast_type(node)
    return Constant(scope=scope, name=name, stored=stored, steps=steps, shape=shape, data_type=data_type)


def _forwards(node: NodeProto) -> bool:
    fixed = not any(found.ref_attr_name for found in node.attribute)
    return fixed and len(node.input) == 1 and any(is_onnx_op(node, op) for op in FORWARDERS)


def _stored(scope: Scope, name: str) -> TensorProto | None:
    if name in scope.initialisers:
        return scope.initialisers[name]
    node = scope.producers.get(name)
    if node is not None and is_onnx_op(node, "Constant"):
        value = attribute(node, "value")
        if value is not None and not value.ref_attr_name:
            return value.t
    return None


def _why_not(scope: Scope, name: str) -> str:
    node = scope.producers.get(name)
    if node is not None and node.op_type in ("DequantizeLinear", "DynamicQuantizeLinear"):
        return "its weight is quantised (it comes from a DequantizeLinear)"
    if node is not None:
        return f"its weight is dynamic: a {node.op_type} computes it"
    if name in scope.sparse:
        return "its weight is stored as a sparse tensor"
    return f"its weight is dynamic: '{name}' is an input" + (
        "" if scope.graph is not None else " of the function"
    )


def _permutation(node: NodeProto, ndim: int) -> tuple[int, ...]:
    return ints(node, "perm") or tuple(reversed(range(ndim)))


def _cast_type(node: NodeProto) -> int:
    to = attribute(node, "to")
    return to.i if to is not None else TensorProto.UNDEFINED
