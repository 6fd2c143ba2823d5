"""Cones: tensors that follow from constants alone, through whatever operators.

Exporters leave such arithmetic in a file: weight normalisation w = g · v / ‖v‖, weight standardisation, views
of a pool of parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from onnxdecomp.ir.graph import Scope, TensorKey, attribute, is_onnx_op, subgraphs
from onnxdecomp.ir.tensors import byte_length, is_external

# What they put out follows from more than what they read.
RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}) | {
    "Bernoulli",
    "Dropout",
    "Multinomial",
}
MOST_NODES = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cone:
    """The nodes that a tensor follows from, down to stored tensors.

    Attributes:
        scope: where the tensor is defined.
        name: its name there.
        nodes: in order of execution, each with the scope it stands in; more than none.
        leaves: the stored tensors that they read.
    """

    scope: Scope
    name: str
    nodes: tuple[tuple[Scope, NodeProto], ...]
    leaves: Mapping[TensorKey, TensorProto]

    def reads(self) -> Iterator[tuple[Scope, str]]:
        """The tensors that its nodes read, each with the scope that defines it."""
        for scope, node in self.nodes:
            for name in filter(None, node.input):
                owner = scope.owner(name)
                if owner is not None:
                    yield owner, name

    @property
    def operators(self) -> tuple[str, ...]:
        """What computes the tensor: each operator once, in order of execution."""
        names = list(dict.fromkeys(node.op_type for _, node in self.nodes))
        return tuple(name for name in names if name != "Constant") or tuple(names)

    @property
    def external(self) -> bool:
        """Whether a part of it lies outside the protobuf."""
        return any(is_external(tensor) for tensor in self.leaves.values())

    @property
    def main_type(self) -> int | None:
        """The ONNX element type of its largest stored tensor, None where nothing is stored."""
        largest = max(self.leaves.values(), key=byte_length, default=None)
        return largest.data_type if largest is not None else None


def fixed_tensors(found: Iterable[Scope]) -> frozenset[TensorKey]:
    """The tensors that follow from stored ones alone, these too, in the scopes `found`, outer before inner.

    What graphs inside a node compute, and what a function's caller sets, is not among them.
    """
    fixed: set[TensorKey] = set()
    for scope in found:
        fixed.update(scope.tensor(name) for name in (*scope.initialisers, *scope.sparse))
        for node in scope.body.node:
            if _is_closed(node) and all(
                tensor_key(scope, name) in fixed for name in filter(None, node.input)
            ):
                fixed.update(scope.tensor(name) for name in filter(None, node.output))
    return frozenset(fixed)


def _is_closed(node: NodeProto) -> bool:
    """Whether what `node` puts out follows from its inputs and its own attributes."""
    fixed = not any(found.ref_attr_name for found in node.attribute)
    return fixed and node.op_type not in RANDOM and next(subgraphs(node), None) is None


def tensor_key(scope: Scope, name: str) -> TensorKey | None:
    """The tensor that `scope` sees as `name`; None where there is none."""
    owner = scope.owner(name)
    return owner.tensor(name) if owner is not None else None


def stored_tensor(scope: Scope, name: str) -> TensorProto | None:
    """What holds the tensor `name` of `scope`: an initialiser or the value of a Constant node."""
    if name in scope.initialisers:
        return scope.initialisers[name]
    node = scope.producers.get(name)
    if node is not None and is_onnx_op(node, "Constant"):
        value = attribute(node, "value")
        if value is not None and not value.ref_attr_name:
            return value.t
    return None


def find_cone(scope: Scope, name: str) -> Cone | str:
    """The cone of one of the `fixed_tensors` that is not stored itself, or why it has none.

    Args:
        scope: that defines the tensor.
        name: of the tensor.
    """
    nodes: list[tuple[Scope, NodeProto]] = []
    leaves: dict[TensorKey, TensorProto] = {}
    done: set[TensorKey] = set()
    todo = [(scope, name)]
    while todo:
        owner, wanted = todo[-1]
        node, stored = owner.producers.get(wanted), stored_tensor(owner, wanted)
        if stored is not None:
            leaves[owner.tensor(wanted)] = stored
        elif node is None:
            return f"it follows from the sparse tensor '{wanted}'"
        elif owner.tensor(wanted) not in done:
            sources = [(source, read) for read in filter(None, node.input) if (source := owner.owner(read))]
            ahead = [(source, read) for source, read in sources if source.tensor(read) not in done]
            if ahead:
                todo += ahead
                continue
            nodes.append((owner, node))
            done.update(owner.tensor(output) for output in node.output)
            if len(nodes) > MOST_NODES:
                return f"more than {MOST_NODES} nodes compute it"
        done.add(owner.tensor(wanted))
        todo.pop()
    return Cone(scope=scope, name=name, nodes=tuple(nodes), leaves=leaves)
