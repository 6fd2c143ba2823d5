"""Edits of the protobuf: put nodes and weights in, take dead ones out, touch nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import NodeProto, TensorProto, helper

from onnxdecomp.ir import Scope
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


def remove_initialiser(scope: Scope, name: str) -> None:
    """Take an initialiser out of a graph, its listing as an input and what is said of it too."""
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
