"""Evaluation: what the nodes of a cone make of its stored tensors, in ONNX's reference evaluator.

It goes node by node, and every node's output is measured by shape inference before it is computed, so that no
file makes it larger than memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import (
    FunctionProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    inliner,
    numpy_helper,
)

from onnxdecomp.errors import first_line
from onnxdecomp.ir.cones import MOST_NODES, RANDOM, Cone, tensor_key
from onnxdecomp.ir.graph import Scope, TensorKey, subgraphs
from onnxdecomp.ir.model import Model
from onnxdecomp.ir.tensors import Array, byte_length, read

_MOST_BYTES = 1 << 30
_TOO_LARGE = f"its values on the way take more than {_MOST_BYTES >> 30} GiB"
# Inputs up to this many elements can be axes, sizes and indices, which shape inference reads.
_SMALL = 4096


class _NotComputableError(Exception):
    """A node cannot be computed; the text says why. It never leaves this file."""


def compute(cone: Cone, model: Model) -> Array | str:
    """The value of the tensor that `cone` leads to, or a sentence saying why it cannot be computed.

    Args:
        cone: in `model`.
        model: whose external data, operator sets and functions it needs.
    """
    names = {key: f"t{i}" for i, key in enumerate(cone.leaves)}
    nodes = [_renamed(scope, node, names) for scope, node in cone.nodes]
    target = names[cone.scope.tensor(cone.name)]
    room = _MOST_BYTES - sum(map(byte_length, cone.leaves.values()))
    try:
        plain = _inlined(nodes, cone.scope, model)
        if room < 0:
            raise _NotComputableError(_TOO_LARGE)
        values = {names[key]: read(tensor, model.folder) for key, tensor in cone.leaves.items()}
        for node in plain.graph.node:
            values |= _outputs(node, values, plain, room)
            room -= sum(values[name].nbytes for name in filter(None, node.output))
    except _NotComputableError as error:
        return str(error)
    return values[target]


def _renamed(scope: Scope, node: NodeProto, names: dict[TensorKey, str]) -> NodeProto:
    """A copy that calls tensors by names unique in the cone, whichever scope they are of; `names` grows."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names[key] if (key := tensor_key(scope, name)) else "" for name in node.input]
    for name in filter(None, node.output):
        names.setdefault(scope.tensor(name), f"t{len(names)}")
    copy.output[:] = [names[scope.tensor(name)] if name else "" for name in node.output]
    return copy


def _inlined(nodes: Sequence[NodeProto], scope: Scope, model: Model) -> ModelProto:
    """The nodes as a model without calls to local functions, whose bodies take the calls' places."""
    functions = {(each.domain, each.name, each.overload): each for each in model.proto.functions}
    called: dict[tuple[str, str, str], FunctionProto] = {}
    todo, count = list(nodes), 0
    while todo:
        node = todo.pop()
        count += 1
        if count > MOST_NODES:
            raise _NotComputableError(f"more than {MOST_NODES} nodes compute it")
        if next(subgraphs(node), None) is not None:
            raise _NotComputableError(f"one of the nodes on the way is a {node.op_type}")
        function = functions.get(_callee(node))
        if function is not None:
            called[_callee(node)] = function
            todo.extend(function.node)
    while scope.outer is not None:
        scope = scope.outer
    imports = (scope.body if isinstance(scope.body, FunctionProto) else model.proto).opset_import
    made = ModelProto(ir_version=max(model.proto.ir_version, 8), opset_import=imports)
    made.graph.name = "cone"
    made.graph.node.extend(nodes)
    if not called:
        return made
    made.functions.extend(called.values())
    for each in (*made.graph.node, *(node for function in made.functions for node in function.node)):
        _fill_defaults(each, called.get(_callee(each)))
    try:
        plain: ModelProto = inliner.inline_local_functions(made)
        return plain
    except Exception as error:  # what C++ throws, of any class
        raise _NotComputableError(
            f"its functions cannot take the places of their calls: {first_line(error)}"
        ) from error


def _callee(node: NodeProto) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def _fill_defaults(node: NodeProto, function: FunctionProto | None) -> None:
    """Give the call `node` the attributes that it leaves to the function: the inliner forgets defaults."""
    given = {found.name for found in node.attribute}
    if function is not None:
        node.attribute.extend(found for found in function.attribute_proto if found.name not in given)


def _outputs(node: NodeProto, values: Mapping[str, Array], model: ModelProto, room: int) -> dict[str, Array]:
    """What `node` makes of `values`, in no more than `room` bytes.

    Raises:
        _NotComputableError: it is random, not known, or larger.
    """
    from onnx.reference import ReferenceEvaluator  # slow to load, and most models have no cone

    if node.op_type in RANDOM:
        raise _NotComputableError(f"one of the nodes on the way is a {node.op_type}")
    feeds = {name: values[name] for name in filter(None, node.input)}
    outputs = [name for name in node.output if name]
    alone = _alone(node, feeds, outputs, model)
    try:
        inferred = onnx.shape_inference.infer_shapes(alone, strict_mode=True, data_prop=True)
        stubs = [_stub(value, node) for value in inferred.graph.output]
        if sum(map(byte_length, stubs)) > room:
            raise _NotComputableError(_TOO_LARGE)
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(alone).run(outputs, feeds)
    except _NotComputableError:
        raise
    except Exception as error:  # the evaluator's, inference's and NumPy's share no base class
        raise _NotComputableError(
            f"ONNX's reference evaluator does not run its {node.op_type}: {first_line(error)}"
        ) from error
    dtypes = [helper.tensor_dtype_to_np_dtype(stub.data_type) for stub in stubs]
    arrays = (np.asarray(array, dtype) for array, dtype in zip(found, dtypes, strict=True))
    return dict(zip(outputs, arrays, strict=True))


def _alone(
    node: NodeProto, feeds: Mapping[str, Array], outputs: Sequence[str], model: ModelProto
) -> ModelProto:
    """A model of one node; what is small of its inputs is inside as well."""
    made = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = made.graph
    graph.name = "node"
    graph.node.append(node)
    for name, array in feeds.items():
        data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(helper.make_tensor_value_info(name, data_type, array.shape))
        if array.size <= _SMALL:
            graph.initializer.append(numpy_helper.from_array(array, name))
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
    return made


def _stub(value: ValueInfoProto, node: NodeProto) -> TensorProto:
    """A tensor without data, of the type and the shape of `value`, which `node` puts out.

    Raises:
        _NotComputableError: they are not known.
    """
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    if not tensor.elem_type or not tensor.HasField("shape") or min(dims, default=0) < 0:
        raise _NotComputableError(f"the size of what its {node.op_type} puts out is not known beforehand")
    return TensorProto(name=value.name, data_type=tensor.elem_type, dims=dims)
