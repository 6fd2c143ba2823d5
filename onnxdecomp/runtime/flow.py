"""What is known of tensors before a model runs: whose values move, whose sizes, and what is out of reach."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import ModelProto, NodeProto, TensorProto

from onnxdecomp.ir import attribute, graph_inputs, is_onnx_op
from onnxdecomp.runtime.strangers import Operator, Operators
from onnxdecomp.runtime.walk import reads_of

# What a rewrite may exchange, and other work with weights: the values behind them differ between two models.
_WORKING = frozenset({"Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "Einsum", "Attention"}) | {
    *("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "LSTM", "GRU", "RNN"),
    *("FusedConv", "FusedMatMul", "MatMulNBits"),
}
# Their outputs are as large as the values of their inputs say.
SELECTING = frozenset({"NonMaxSuppression", "NonZero", "Unique", "Compress"})
# And those of these, where the values of the inputs at these places are not the same for any data.
_SIZED_BY = {
    **{"Reshape": (1,), "Expand": (1,), "Tile": (1, 2), "Pad": (1, 3), "TopK": (1,), "OneHot": (1,)},
    **{
        "Slice": (1, 2, 3, 4),
        "Range": (0, 1, 2),
        "ConstantOfShape": (0,),
        "Split": (1,),
        "Resize": (1, 2, 3),
    },
    **{"Upsample": (1,), "SplitToSequence": (1,), "MaxUnpool": (2,), "CenterCropPad": (1,), "Col2Im": (1, 2)},
    **{"HannWindow": (0,), "HammingWindow": (0,), "BlackmanWindow": (0,), "AffineGrid": (1,), "DFT": (1,)},
    **{"STFT": (1, 3), "Loop": (0, 1), "If": (0,)},
}
# As large as their first input, whatever the others are.
_SIZED_BY_FIRST = frozenset({"Scatter", "ScatterElements", "ScatterND"})
# What they make of values is no float, or says little of how far these are apart.
_BLUNT = frozenset(
    {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Xor", "Not"}
) | {
    *("IsNaN", "IsInf", "ArgMax", "ArgMin", "Shape", "Size", "NonZero", "NonMaxSuppression"),
}
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(slots=True, eq=False)
class Flow:
    """Names of tensors of a main graph, and which of its nodes to blame.

    Attributes:
        constant: follow from constants alone.
        moved: their values follow from what convolutions and products make of the inputs.
        sized: their sizes depend on such values.
        blunt: whole numbers, truth values and the like.
        barred: follow from an operator that nothing here runs.
        selecting: nodes at which sizes begin to depend on values.
        strangers: the nodes whose operator nothing here runs, with that.
    """

    constant: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)
    sized: set[str] = field(default_factory=set)
    blunt: set[str] = field(default_factory=set)
    barred: set[str] = field(default_factory=set)
    selecting: list[NodeProto] = field(default_factory=list)
    strangers: list[tuple[NodeProto, Operator]] = field(default_factory=list)

    @classmethod
    def of(cls, model: ModelProto) -> Flow:
        """The tensors of a model, whose nodes stand in an order that can be run."""
        graph, operators, flow = model.graph, Operators(model), cls()
        flow.constant.update(tensor.name for tensor in graph.initializer)
        flow.constant.update(tensor.values.name for tensor in graph.sparse_initializer)
        flow.blunt.update(
            value.name for value in graph_inputs(model) if value.type.tensor_type.elem_type not in _FLOATS
        )
        for node in graph.node:
            flow._pass(node, operators.of(node))
        return flow

    def comparable(self, name: str) -> bool:
        """Whether two models have floats of the same size there, which are not the same in any case."""
        return name in self.moved and not (name in self.sized or name in self.blunt or name in self.barred)

    def _pass(self, node: NodeProto, operators: frozenset[Operator]) -> None:
        made = set(filter(None, node.output))
        live = set(reads_of(node)) - self.constant
        strangers = [each for each in operators if not each.runs]
        if strangers:
            self.strangers.append((node, min(strangers)))
        if strangers or not self.barred.isdisjoint(live):
            self.barred |= made
        elif not live:
            self.constant |= made
            return
        if self._moves(node, live, operators):
            self.moved |= made
        if self._selects(node, live, operators):
            self.selecting.append(node)
            self.sized |= made
        elif self._sized(node, live):
            self.sized |= made
        if self._blunts(node, live):
            self.blunt |= made
        elif is_onnx_op(node, "TopK"):
            self.blunt.update(node.output[1:])

    def _moves(self, node: NodeProto, live: set[str], operators: frozenset[Operator]) -> bool:
        if is_onnx_op(node, "Shape") or is_onnx_op(node, "Size"):
            return not self.sized.isdisjoint(live)
        return not self.moved.isdisjoint(live) or not _WORKING.isdisjoint(each.name for each in operators)

    def _selects(self, node: NodeProto, live: set[str], operators: frozenset[Operator]) -> bool:
        if not SELECTING.isdisjoint(each.name for each in operators):
            return not self.moved.isdisjoint(live)
        places = _SIZED_BY.get(node.op_type, ()) if is_onnx_op(node, node.op_type) else ()
        return not self.moved.isdisjoint(node.input[i] for i in places if i < len(node.input))

    def _sized(self, node: NodeProto, live: set[str]) -> bool:
        if is_onnx_op(node, "Shape") or is_onnx_op(node, "Size"):
            return False
        if any(is_onnx_op(node, op) for op in _SIZED_BY_FIRST):
            return not self.sized.isdisjoint(node.input[:1])
        return not self.sized.isdisjoint(live)

    def _blunts(self, node: NodeProto, live: set[str]) -> bool:
        if is_onnx_op(node, "Cast"):
            to = attribute(node, "to")
            return to is None or to.i not in _FLOATS
        return (node.op_type in _BLUNT and is_onnx_op(node, node.op_type)) or (live <= self.blunt)
