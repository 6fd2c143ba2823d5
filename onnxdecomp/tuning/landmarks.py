"""Landmarks: tensors that a model and what was made of it both have, and in which they should agree."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from onnx import GraphProto, NodeProto

from onnxdecomp.ir import Model, is_onnx_op
from onnxdecomp.runtime import Flow, find_sights, reads_of
from onnxdecomp.tuning.trained import FLOATS

_ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Celu", "Selu", "Clip"}) | {
    *("Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Tanh", "Softplus", "Softsign", "Mish", "Gelu")
}
# What gates a tensor by a Mul: x · sigmoid(x).
_GATES = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Erf"})
# What follows from shapes and places does not follow smoothly from values.
_BLUNT = frozenset({"Shape", "Size", "ArgMax", "ArgMin", "NonZero"})
# After them scores differ little where it matters, and gradients vanish.
_FINAL = frozenset({"Softmax", "LogSoftmax"})


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Names of tensors that follow from what is trained.

    Attributes:
        inner: behind activations and residual Adds, in the order of the graph.
        outputs: the model's outputs of floats, or what stands in the place of those whose sizes depend on
            data; in the place of a final Softmax the scores in front of it.
    """

    inner: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def judged(self) -> tuple[str, ...]:
        """Those that say which of two models is better: the outputs, or all where no output is of floats."""
        return self.outputs or self.inner

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((*self.inner, *self.outputs)))


def find_landmarks(original: Model, rewritten: Model, trained: Set[str]) -> Landmarks:
    """The landmarks of a model and of what was made of it.

    Args:
        original: the model that was rewritten.
        rewritten: what was made of it.
        trained: names of its initialisers that are trained.
    """
    graph = rewritten.proto.graph
    before = {name: node for node in original.proto.graph.node for name in node.output if name}
    producers = {name: node for node in graph.node for name in node.output if name}
    sights, flow = find_sights(original.proto).within(rewritten.proto), Flow.of(original.proto)
    moved = _behind(graph, trained)
    fixed = moved - flow.sized - flow.barred
    varying = _behind(graph, {value.name for value in graph.input} - {t.name for t in graph.initializer})
    found = [
        node for node in graph.node if fixed.intersection(node.output) and _counts(node, varying, producers)
    ]
    # Of a sum and its activation, or of a gate and what it gates, the last says enough.
    read_again = {name for node in found if node.op_type != "Add" for name in node.input}
    inner = [
        node.output[0]
        for node in found
        if node.output[0] not in read_again
        and node.output[0] in before
        and before[node.output[0]].op_type == node.op_type
    ]
    outputs = [
        _scores(value.name, producers, before)
        for value in graph.output
        if value.name in moved and value.name in sights.outputs and value.type.tensor_type.elem_type in FLOATS
    ]
    outputs += [name for own in sights.instead.values() for name in own if name in moved]
    inside = tuple(name for name in inner if name not in outputs)
    return Landmarks(inner=inside, outputs=tuple(dict.fromkeys(outputs)))


def _behind(graph: GraphProto, names: Set[str]) -> set[str]:
    """The tensors that follow from the values of some, these included."""
    reached = set(names)
    for node in graph.node:
        if node.op_type not in _BLUNT and not reached.isdisjoint(reads_of(node)):
            reached.update(filter(None, node.output))
    return reached


def _counts(node: NodeProto, varying: Set[str], producers: dict[str, NodeProto]) -> bool:
    """Whether a node is an activation, or adds two branches."""
    if not is_onnx_op(node, node.op_type):
        return False
    if node.op_type in _ACTIVATIONS:
        return True
    if not all(name in varying for name in node.input):
        return False
    gates = {producers[name].op_type for name in node.input if name in producers}
    return node.op_type == "Add" or (node.op_type == "Mul" and not _GATES.isdisjoint(gates))


def _scores(name: str, producers: dict[str, NodeProto], before: dict[str, NodeProto]) -> str:
    """What an output is made of, where both models make it by the same final Softmax; else the output."""
    node, other = producers.get(name), before.get(name)
    if node is None or other is None or node.op_type not in _FINAL or other.op_type != node.op_type:
        return name
    same = node.input[0] == other.input[0] and node.input[0] in producers and node.input[0] in before
    return node.input[0] if same else name
