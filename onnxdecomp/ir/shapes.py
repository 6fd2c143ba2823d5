"""Shapes of a model's tensors, by ONNX shape inference on a copy without the large weights."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from onnxdecomp.errors import UsageError, first_line
from onnxdecomp.ir.graph import ONNX_DOMAINS, scopes

Shape = tuple[int | None, ...]
InputShapes = Mapping[str, tuple[int, ...]]
# What functions take for them.
ShapesLike: TypeAlias = Annotated[
    str | Mapping[str, Iterable[int]] | Sequence[str], 'shapes by input, as in {"x": (1, 3)} or "x:1,3"'
]

# Initialisers up to this many elements are kept for inference: shapes, axes and indices live in them.
_SMALL = 4096
# What the checker and shape inference raise on models they cannot make sense of.
_REFUSALS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferredShapes:
    """Shapes by (scope path, tensor name); None for an unknown dimension.

    `problem` is one line on why inference failed, None where it ran.
    """

    by_name: Mapping[tuple[str, str], Shape]
    problem: str | None = None

    def get(self, path: str, name: str) -> Shape | None:
        """The shape of the tensor `name` in the scope at `path`, None if nothing is known."""
        return self.by_name.get((path, name))


def graph_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs a caller must feed: those without an initialiser to stand in for them."""
    stored = {t.name for t in model.graph.initializer} | {
        t.values.name for t in model.graph.sparse_initializer
    }
    return [i for i in model.graph.input if i.name not in stored]


def declared_shape(value: ValueInfoProto) -> Shape | None:
    """The shape a ValueInfoProto declares: None for a dimension that is symbolic or absent."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    # A negative size is what some exporters write for "unknown".
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim
    )


def as_input_shapes(given: ShapesLike | None) -> InputShapes:
    """Shapes by the names of inputs; as texts `NAME:DIMS`, x:1,3,224,224, a scalar's as `x:`.

    Raises:
        UsageError: a text is not of that form, or a shape is none.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {name: _as_shape(dims, f"{name}: give whole numbers") for name, dims in given.items()}
    found = {}
    for text in [given] if isinstance(given, str) else given:
        name, colon, dims = text.rpartition(":")
        says = f"{text}: write NAME:DIMS, as in x:1,3,224,224"
        found[name] = _as_shape(filter(str.strip, dims.split(",")) if colon and name else "?", says)
    return found


def _as_shape(dims: Iterable[Any], says: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(dim) if isinstance(dim, str) else operator.index(dim) for dim in dims)
    except (TypeError, ValueError) as error:
        raise UsageError(f"`input_shapes` {says}") from error
    if any(not 0 <= dim < 2**31 for dim in shape):
        raise UsageError(f"`input_shapes` {says}")
    return shape


def fixed_input_shapes(model: ModelProto, given: InputShapes) -> dict[str, Shape | None]:
    """The shape of every input to feed: as given, else as declared with 1 for an unknown first dimension.

    Raises:
        UsageError: `given` names no such input, or contradicts what the model declares.
    """
    inputs = {i.name: declared_shape(i) for i in graph_inputs(model)}
    for name, shape in given.items():
        if name not in inputs:
            raise UsageError(
                f"`input_shapes` {name}: no such input; the model's inputs are {', '.join(inputs)}"
            )
        declared = inputs[name]
        if declared is not None and (
            len(declared) != len(shape)
            or any(d not in (None, s) for d, s in zip(declared, shape, strict=True))
        ):
            need = ",".join("?" if d is None else str(d) for d in declared)
            raise UsageError(f"`input_shapes` {name}: the model declares {name}:{need}")
        inputs[name] = shape
    return {name: _with_batch(shape) for name, shape in inputs.items()}


def _with_batch(shape: Shape | None) -> Shape | None:
    return (1, *shape[1:]) if shape and shape[0] is None else shape


def batched_shapes(
    model: ModelProto, given: InputShapes, batch: int | None
) -> tuple[dict[str, Shape | None], int]:
    """The shape of every input for runs of `batch` samples, and the batch size that comes of it.

    Args:
        model: whose inputs.
        given: shapes of inputs; they may name a batch, which `batch` overrides where the model
            leaves it open.
        batch: the size of every first dimension that the model leaves open; None takes what is given,
            else 1.

    Raises:
        UsageError: as `fixed_input_shapes`, or the model's batch is fixed at another size.
    """
    shapes = fixed_input_shapes(model, given)
    declared = {i.name: declared_shape(i) for i in graph_inputs(model)}
    batched = {name: shape for name, shape in shapes.items() if shape}
    open_ones = [name for name in batched if not (own := declared[name]) or own[0] is None]
    if batch is not None:
        shapes |= {name: (batch, *batched[name][1:]) for name in open_ones}
    sizes = [shape[0] for name in open_ones or batched if (shape := shapes[name])]
    size = next(filter(None, sizes), 1)
    if batch not in (None, size):
        raise UsageError(
            f"the batch of input '{next(iter(batched))}' is fixed at {size}, so {batch} cannot run: "
            "export the model with a dynamic batch axis"
        )
    return shapes, size


def infer_shapes(model: ModelProto, given: InputShapes) -> InferredShapes:
    """Infer shapes with the inputs fixed as `fixed_input_shapes` says.

    Subgraphs are included; the insides of local functions are not, since their shapes depend on the call.
    """
    skeleton = _skeleton(model, fixed_input_shapes(model, given))
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except _REFUSALS as error:
        return InferredShapes(by_name={}, problem=f"shape inference failed: {first_line(error)}")
    by_name: dict[tuple[str, str], Shape] = {}
    for scope in scopes(inferred):
        graph = scope.graph
        for value in (*graph.input, *graph.value_info, *graph.output) if graph is not None else ():
            shape = declared_shape(value)
            if shape is not None:
                by_name[scope.path, value.name] = shape
    return InferredShapes(by_name=by_name)


def _skeleton(model: ModelProto, inputs: Mapping[str, Shape | None]) -> ModelProto:
    skeleton = ModelProto(ir_version=model.ir_version, functions=model.functions)
    # An IR < 3 file may import nothing: operator set 1 is meant.
    skeleton.opset_import.extend(model.opset_import)
    if not any(entry.domain in ONNX_DOMAINS for entry in skeleton.opset_import):
        skeleton.opset_import.add(domain="", version=1)
    graph = skeleton.graph
    graph.name = model.graph.name
    graph.node.extend(_without_weights(node) for node in model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        graph.initializer.append(_stub(tensor))
    for value in graph.input:
        if inputs.get(value.name) is not None:
            _set_shape(value.type.tensor_type, inputs[value.name] or ())
    if all(declared_shape(value) == inputs.get(value.name) for value in graph_inputs(model)):
        graph.value_info.extend(model.graph.value_info)
        return skeleton
    # Shapes declared for other inputs would contradict the fixed ones; only what nothing but the file
    # knows is kept, as after an operator that ONNX does not know.
    known = {node.op_type: onnx.defs.has(node.op_type) for node in model.graph.node}
    foreign = {
        name
        for node in model.graph.node
        if node.domain not in ONNX_DOMAINS or not known[node.op_type]
        for name in node.output
    }
    graph.value_info.extend(value for value in model.graph.value_info if value.name in foreign)
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    return skeleton


def _stub(tensor: TensorProto) -> TensorProto:
    elements = 1
    for dim in tensor.dims:
        elements *= dim
    if elements <= _SMALL:
        return tensor
    stub = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    stub.data_location = TensorProto.EXTERNAL
    stub.external_data.add(key="location", value="left-out")
    return stub


def _without_weights(node: NodeProto) -> NodeProto:
    if node.op_type != "Constant" or not node.attribute or not node.attribute[0].HasField("t"):
        return node
    slim = NodeProto(name=node.name, op_type=node.op_type, domain=node.domain, output=node.output)
    slim.attribute.add(name=node.attribute[0].name, type=node.attribute[0].type).t.CopyFrom(
        _stub(node.attribute[0].t)
    )
    return slim


def _set_shape(tensor: TypeProto.Tensor, shape: Shape) -> None:
    symbols = [dim.dim_param for dim in tensor.shape.dim] or [""] * len(shape)
    tensor.ClearField("shape")
    tensor.shape.SetInParent()
    for dim, symbol in zip(shape, symbols, strict=True):
        added = tensor.shape.dim.add()
        if dim is not None:
            added.dim_value = dim
        elif symbol:
            added.dim_param = symbol
