"""Constant weights: from the tensor a Conv reads back to the stored tensor it comes from.

A weight may be an initialiser, the value of a Constant node, or what a cone of other nodes makes of such, and
any of them behind Identity, Transpose and Cast nodes. Whatever else it is, one sentence says why the weight
cannot be factored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxdecomp.ir.cones import find_cone, fixed_tensors, stored_tensor, tensor_key
from onnxdecomp.ir.evaluation import compute
from onnxdecomp.ir.graph import Scope, TensorKey, attribute, ints, is_onnx_op
from onnxdecomp.ir.model import Model
from onnxdecomp.ir.tensors import Array, is_external, read, type_name

# What to do about a quantised weight.
FLOAT_FIRST = "decompose the float model first, then quantise the result"
# Of the default domain, and of com.microsoft.
_DEQUANTISE = "DequantizeLinear"
FORWARDERS = ("Identity", "Transpose", "Cast")
_FLOAT_WIDTHS: dict[int, int] = {
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.FLOAT: 4,
    TensorProto.DOUBLE: 8,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constant:
    """A tensor whose value is fixed in the file.

    Attributes:
        scope: where the tensor that the steps begin with is defined.
        name: that tensor there: an initialiser, the output of a Constant node, or what a cone computes.
        stored: the protobuf that holds its values; of a cone, what it comes to.
        steps: the Identity, Transpose and Cast nodes between `stored` and the tensor, in order of execution.
        shape: shape after the steps.
        data_type: ONNX element type after the steps.
        computed_by: the operators of its cone, in order of execution; none where it is stored in the file.
        main_type: the ONNX element type that most of it is stored as in the file.
        external: whether a part of it lies outside the protobuf.
    """

    scope: Scope
    name: str
    stored: TensorProto
    steps: tuple[NodeProto, ...] = ()
    shape: tuple[int, ...]
    data_type: int
    computed_by: tuple[str, ...] = ()
    main_type: int
    external: bool

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Its element type in NumPy."""
        return helper.tensor_dtype_to_np_dtype(self.data_type)

    @property
    def factor_type(self) -> int:
        """The ONNX element type to store factors as: that of the file where it is the shorter float."""
        kept = _FLOAT_WIDTHS.get(self.main_type, 8)
        return self.main_type if kept < _FLOAT_WIDTHS.get(self.data_type, 0) else self.data_type

    @property
    def factor_dtype(self) -> np.dtype[np.generic]:
        """The same in NumPy."""
        return helper.tensor_dtype_to_np_dtype(self.factor_type)

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Constants:
    """The constants of a model, each computed once.

    Attributes:
        model: the model.
        freeze: treat initialisers that callers may override as constant.
        fixed: the tensors that follow from stored ones alone.
        computed: what cones have come to so far, or why they have not.
    """

    model: Model
    freeze: bool
    fixed: frozenset[TensorKey]
    computed: dict[TensorKey, Constant | str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, found: Iterable[Scope], *, freeze: bool) -> Constants:
        """The constants of `model`, whose scopes are `found`; nothing is read or computed yet."""
        return cls(model=model, freeze=freeze, fixed=fixed_tensors(found))

    def find(self, scope: Scope, name: str) -> Constant | str:
        """The constant behind the tensor `name` as `scope` sees it, or a sentence saying why not."""
        steps: list[NodeProto] = []
        owner = scope.owner(name)
        while owner is not None:
            stored = stored_tensor(owner, name)
            if stored is not None:
                if self._overridable(owner, name):
                    return "its weight is a graph input that callers may override (`freeze_weights` fixes it)"
                return _behind(_as_stored(owner, name, stored), steps)
            node = owner.producers.get(name)
            if node is None or node in steps:
                return _why_not(owner, name)
            if not _forwards(node):
                found = self._computed(owner, name)
                return found if isinstance(found, str) else _behind(found, steps)
            steps.insert(0, node)
            name = node.input[0]
            owner = owner.owner(name)
        return f"its weight '{name}' is defined nowhere"

    def follows(self, scope: Scope, name: str) -> bool:
        """Whether the tensor follows from stored ones alone, be it that it cannot be computed."""
        return tensor_key(scope, name) in self.fixed

    def _overridable(self, scope: Scope, name: str) -> bool:
        """Whether callers may pass another value.

        From IR 4 on an initialiser that is also a graph input can be overridden (onnx/docs/IR.md); before,
        all of them had to be listed and are constant.
        """
        return name in scope.inputs and self.model.proto.ir_version >= 4 and not self.freeze

    def _computed(self, scope: Scope, name: str) -> Constant | str:
        key = scope.tensor(name)
        if key not in self.fixed:
            return _why_not(scope, name)
        if key not in self.computed:
            self.computed[key] = self._compute(scope, name)
        return self.computed[key]

    def _compute(self, scope: Scope, name: str) -> Constant | str:
        cone = find_cone(scope, name)
        if isinstance(cone, str):
            return f"its weight is computed from constants, but {cone}"
        for node_scope, node in cone.nodes:
            if node.op_type == _DEQUANTISE:
                return _quantised(node_scope, node)
        if any(self._overridable(owner, name) for owner, name in cone.reads()):
            return (
                "its weight follows from a graph input that callers may override (`freeze_weights` fixes it)"
            )
        values = compute(cone, self.model)
        if isinstance(values, str):
            return f"its weight is computed from constants, but {values}"
        stored = numpy_helper.from_array(values, name)
        return Constant(
            scope=scope,
            name=name,
            stored=stored,
            shape=values.shape,
            data_type=stored.data_type,
            computed_by=cone.operators,
            main_type=cone.main_type or stored.data_type,
            external=cone.external,
        )


def _as_stored(scope: Scope, name: str, stored: TensorProto) -> Constant:
    return Constant(
        scope=scope,
        name=name,
        stored=stored,
        shape=tuple(stored.dims),
        data_type=stored.data_type,
        main_type=stored.data_type,
        external=is_external(stored),
    )


def _behind(constant: Constant, steps: Sequence[NodeProto]) -> Constant | str:
    """The constant that Identity, Transpose and Cast nodes make of one."""
    shape, data_type = constant.shape, constant.data_type
    for node in steps:
        if node.op_type == "Transpose":
            permutation = _permutation(node, len(shape))
            if sorted(permutation) != list(range(len(shape))):
                return f"its weight passes a Transpose that does not fit its {len(shape)} dimensions"
            shape = tuple(shape[i] for i in permutation)
        elif node.op_type == "Cast":
            data_type = _cast_type(node)
    return dataclasses.replace(constant, steps=tuple(steps), shape=shape, data_type=data_type)


def _forwards(node: NodeProto) -> bool:
    fixed = not any(found.ref_attr_name for found in node.attribute)
    return fixed and len(node.input) == 1 and any(is_onnx_op(node, op) for op in FORWARDERS)


def _quantised(scope: Scope, node: NodeProto) -> str:
    """What a DequantizeLinear says of a weight."""
    owner = scope.owner(node.input[0])
    stored = stored_tensor(owner, node.input[0]) if owner is not None else None
    what = f"{type_name(stored.data_type)}, " if stored is not None else ""
    return f"its weight is quantised ({what}behind a DequantizeLinear): {FLOAT_FIRST}"


def _why_not(scope: Scope, name: str) -> str:
    node = scope.producers.get(name)
    if node is not None and node.op_type == _DEQUANTISE:
        return _quantised(scope, node)
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
