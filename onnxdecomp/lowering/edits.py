"""Edits of the protobuf: put nodes and weights in, take dead ones out, touch nothing else."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxdecomp.ir import (
    Constant,
    Constants,
    Model,
    Scope,
    TensorKey,
    Uses,
    find_uses,
    is_onnx_op,
    scopes,
    subgraphs,
)
from onnxdecomp.lowering.nodes import constant_node


class Names:
    """Names that no node or tensor of the model has, whichever scope it stands in."""

    def __init__(self, found: Iterable[Scope]) -> None:
        self._taken: set[str] = set()
        for scope in found:
            self._taken.update(scope.initialisers, scope.inputs, scope.sparse, scope.producers)
            self._taken.update(node.name for node in scope.body.node)
            self._taken.update(value.name for value in scope.body.value_info)

    def fresh(self, wanted: str) -> str:
        """`wanted`, or with the first number behind it that makes it unique; taken from now on."""
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name


def replace_nodes(scope: Scope, edits: dict[int, Sequence[NodeProto]]) -> None:
    """Put the nodes `edits[id(node)]` in the place of each such node; all others stay where they are."""
    nodes = scope.body.node
    for i in reversed(range(len(nodes))):
        substitutes = edits.get(id(nodes[i]))
        if substitutes is not None:
            del nodes[i]
            for substitute in reversed(substitutes):
                nodes.insert(i, substitute)


def add_constants(scope: Scope, beside: str, tensors: Sequence[TensorProto], ir_version: int) -> None:
    """Define `tensors` where the constant `beside` is defined.

    They become initialisers in front of the one called `beside`; Constant nodes behind it in a function,
    which has no initialisers, and where IR < 4 would demand a new graph input for a mere Constant node.
    """
    graph = scope.graph
    if graph is None or (ir_version < 4 and beside not in scope.initialisers):
        place = next(i for i, node in enumerate(scope.body.node) if beside in node.output) + 1
        for tensor in reversed(tensors):
            scope.body.node.insert(place, constant_node(tensor))
        return
    place = next((i for i, t in enumerate(graph.initializer) if t.name == beside), len(graph.initializer))
    for tensor in reversed(tensors):
        graph.initializer.insert(place, tensor)
    listed = next((i for i, value in enumerate(graph.input) if value.name == beside), None)
    if ir_version < 4 and listed is not None:
        for tensor in reversed(tensors):
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            graph.input.insert(listed, value)


def remove_dead(model: Model, candidates: Iterable[TensorKey], *, freeze: bool) -> None:
    """Remove those constants that nothing uses any more, and what only led to them.

    Nodes that ask a constant for its shape alone do not keep it: they give way to what they answer.

    Args:
        model: edited in place.
        candidates: constants that may have lost their last reader.
        freeze: treat initialisers that callers may override as constant.
    """
    found = scopes(model.proto)
    by_body = {id(scope.body): scope for scope in found}
    homes = {id(node): scope for scope in found for node in scope.body.node}
    uses = find_uses(found, model.proto)
    constants = functools.cache(lambda: Constants.of(model, found, freeze=freeze))
    readers = {key: list(nodes) for key, nodes in uses.readers.items()}
    queue = list(dict.fromkeys(candidates))
    while queue:
        key = queue.pop()
        scope, name = by_body.get(key[0]), key[1]
        if scope is None or key in uses.pinned:
            continue
        asking = readers.get(key, [])
        if asking and not _answered(asking, scope, name, constants, homes):
            continue
        readers.pop(key, None)
        node = scope.producers.get(name)
        if name in scope.initialisers:
            _remove_initialiser(scope, name)
        elif node is not None and _is_dead(node, scope, readers, uses):
            replace_nodes(scope, {id(node): ()})
            for output in filter(None, node.output):
                forget_tensor(scope, output)
            for source in filter(None, node.input):
                owner = scope.owner(source)
                if owner is not None:
                    left = readers.get(owner.tensor(source), [])
                    left[:] = [each for each in left if each is not node]
                    queue.append(owner.tensor(source))


def _is_dead(
    node: NodeProto, scope: Scope, readers: Mapping[TensorKey, Sequence[NodeProto]], uses: Uses
) -> bool:
    """Whether nothing reads what `node` puts out; one with graphs inside stays."""
    outputs = [scope.tensor(name) for name in filter(None, node.output)]
    needed = any(readers.get(key) or key in uses.pinned for key in outputs)
    return not needed and next(subgraphs(node), None) is None


def _answered(
    asking: Sequence[NodeProto],
    scope: Scope,
    name: str,
    constants: Callable[[], Constants],
    homes: Mapping[int, Scope],
) -> bool:
    """Put Constant nodes in the places of a constant's readers, if all of them ask for its shape alone."""
    if not all(is_onnx_op(node, "Shape") or is_onnx_op(node, "Size") for node in asking):
        return False
    constant = constants().find(scope, name)
    if not isinstance(constant, Constant) or any(a.ref_attr_name for node in asking for a in node.attribute):
        return False
    for node in asking:
        replace_nodes(homes[id(node)], {id(node): [_answer(node, constant.shape)]})
    return True


def _answer(node: NodeProto, shape: tuple[int, ...]) -> NodeProto:
    """What a Shape or Size node says of a tensor of this shape, as a Constant node in its place."""
    bounds = {found.name: found.i for found in node.attribute}
    part = shape[bounds.get("start", 0) : bounds.get("end")]
    value = np.array(part if node.op_type == "Shape" else math.prod(shape), np.int64)
    made = constant_node(numpy_helper.from_array(value, node.output[0]))
    made.name, made.doc_string = node.name, node.doc_string
    made.metadata_props.extend(node.metadata_props)
    return made


def _remove_initialiser(scope: Scope, name: str) -> None:
    graph = scope.graph
    if graph is None or not any(tensor.name == name for tensor in graph.initializer):
        return
    for entries in (graph.initializer, graph.input):
        for i in reversed(range(len(entries))):
            if entries[i].name == name:
                del entries[i]
    forget_tensor(scope, name)


def forget_tensor(scope: Scope, name: str) -> None:
    """Drop what a scope says of a tensor that is gone: its value_info and quantization annotation."""
    for i in reversed(range(len(scope.body.value_info))):
        if scope.body.value_info[i].name == name:
            del scope.body.value_info[i]
    graph = scope.graph
    if graph is not None:
        for i in reversed(range(len(graph.quantization_annotation))):
            if graph.quantization_annotation[i].tensor_name == name:
                del graph.quantization_annotation[i]
