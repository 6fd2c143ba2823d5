"""The one table: from an operator of ONNX and the version of its definition to a function of PyTorch.

A function takes the inputs of a node in order, an absent one in the middle as None, and its attributes by
name. A node with an attribute, or an output, that its function does not know is not covered. What a function
refuses besides is a NotImplementedError.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import AttributeProto, NodeProto
from torch.nn import functional

from onnxdecomp.ir import is_onnx_op
from onnxdecomp.tuning.operators import (
    activation,
    arithmetic,
    convolution,
    gathering,
    normalisation,
    pooling,
    reduction,
    resizing,
    shaping,
)
from onnxdecomp.tuning.operators.activation import of_one
from onnxdecomp.tuning.operators.arithmetic import of_many, of_two
from onnxdecomp.tuning.operators.reduction import ranking, reducing

Function = Callable[..., Any]

# Definitions up to this version of the default operator set are known here; a later one may mean anything.
NEWEST = 28
# For an entry whose outputs are as many as a node asks for; its function is told how many.
ANY = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """An operator over a range of definitions.

    Attributes:
        function: what computes it.
        since: the first version of the definition that it computes.
        until: the last one.
        outputs: how many outputs it has at most; ANY where the function is told.
    """

    function: Function
    since: int = 1
    until: int = NEWEST
    outputs: int = 1


def find_function(node: NodeProto, opset: int) -> Function | str:
    """What computes a node, its attributes bound: a function of its inputs; or why there is none.

    Args:
        node: of the default domain; of others none is computed.
        opset: version of the default operator set in force.
    """
    if not is_onnx_op(node, node.op_type):
        return f"{node.op_type} of {node.domain} is not computed here"
    if not onnx.defs.has(node.op_type, opset, ""):
        return f"{node.op_type} is none of ONNX's operators"
    version = onnx.defs.get_schema(node.op_type, opset).since_version
    entry = next((e for e in TABLE.get(node.op_type, ()) if e.since <= version <= e.until), None)
    if entry is None:
        return f"{node.op_type} is not computed here"
    wanted = max((i for i, name in enumerate(node.output, 1) if name), default=0)
    if entry.outputs != ANY and wanted > entry.outputs:
        return f"{node.op_type} with {wanted} outputs is not computed here"
    named = _attributes(node)
    if isinstance(named, str):
        return named
    if entry.outputs == ANY:
        named["outputs"] = len(node.output)
    try:
        inspect.signature(entry.function).bind(*node.input, **named)
    except TypeError as error:
        return f"{node.op_type}: {error}"
    return lambda *inputs: entry.function(*inputs, **named)


def _attributes(node: NodeProto) -> dict[str, Any] | str:
    """The attributes by name, as Python's values and PyTorch's tensors; or why they are none."""
    named: dict[str, Any] = {}
    for each in node.attribute:
        if each.type in (
            AttributeProto.INT,
            AttributeProto.FLOAT,
            AttributeProto.INTS,
            AttributeProto.FLOATS,
        ):
            named[each.name] = onnx.helper.get_attribute_value(each)
        elif each.type == AttributeProto.STRING:
            named[each.name] = each.s.decode()
        elif each.type == AttributeProto.TENSOR:
            named[each.name] = torch.tensor(onnx.numpy_helper.to_array(each.t))
        else:
            return f"{node.op_type} with an attribute '{each.name}' of another kind is not computed here"
    return named


def _axes_first(function: Function) -> tuple[Entry, ...]:
    return (Entry(reducing(function)),)


TABLE: Mapping[str, tuple[Entry, ...]] = {
    # Convolutions and matrix products
    "Conv": (Entry(convolution.conv),),
    "ConvTranspose": (Entry(convolution.conv_transpose),),
    "Gemm": (Entry(convolution.gemm, since=7),),
    "MatMul": (Entry(convolution.matmul),),
    "Einsum": (Entry(convolution.einsum),),
    # Pools
    "MaxPool": (Entry(pooling.max_pool),),
    "AveragePool": (Entry(pooling.average_pool),),
    "LpPool": (Entry(pooling.lp_pool, since=2),),
    "GlobalAveragePool": (Entry(pooling.global_average_pool),),
    "GlobalMaxPool": (Entry(pooling.global_max_pool),),
    # Arithmetic; before version 7 an attribute said how to broadcast
    "Add": (Entry(of_two(torch.add), since=7),),
    "Sub": (Entry(of_two(torch.sub), since=7),),
    "Mul": (Entry(of_two(torch.mul), since=7),),
    "Div": (Entry(arithmetic.divide, since=7),),
    "Pow": (Entry(arithmetic.power, since=7),),
    "Mod": (Entry(arithmetic.modulo),),
    "Max": (Entry(of_many(torch.maximum), since=8),),
    "Min": (Entry(of_many(torch.minimum), since=8),),
    "Sum": (Entry(of_many(torch.add), since=8),),
    "Mean": (Entry(arithmetic.mean, since=8),),
    "CumSum": (Entry(arithmetic.cumulative_sum),),
    "Abs": (Entry(of_one(torch.abs), since=6),),
    "Neg": (Entry(of_one(torch.neg), since=6),),
    "Sqrt": (Entry(of_one(torch.sqrt), since=6),),
    "Reciprocal": (Entry(of_one(torch.reciprocal), since=6),),
    "Exp": (Entry(of_one(torch.exp), since=6),),
    "Log": (Entry(of_one(torch.log), since=6),),
    "Floor": (Entry(of_one(torch.floor), since=6),),
    "Ceil": (Entry(of_one(torch.ceil), since=6),),
    "Round": (Entry(of_one(torch.round)),),
    "Sign": (Entry(of_one(torch.sign)),),
    "Sin": (Entry(of_one(torch.sin)),),
    "Cos": (Entry(of_one(torch.cos)),),
    "Tan": (Entry(of_one(torch.tan)),),
    "Sinh": (Entry(of_one(torch.sinh)),),
    "Cosh": (Entry(of_one(torch.cosh)),),
    "Asin": (Entry(of_one(torch.asin)),),
    "Acos": (Entry(of_one(torch.acos)),),
    "Atan": (Entry(of_one(torch.atan)),),
    "Asinh": (Entry(of_one(torch.asinh)),),
    "Acosh": (Entry(of_one(torch.acosh)),),
    "Atanh": (Entry(of_one(torch.atanh)),),
    "Erf": (Entry(of_one(torch.erf)),),
    # Comparisons and logic
    "Equal": (Entry(of_two(torch.eq), since=7),),
    "Greater": (Entry(of_two(torch.gt), since=7),),
    "GreaterOrEqual": (Entry(of_two(torch.ge)),),
    "Less": (Entry(of_two(torch.lt), since=7),),
    "LessOrEqual": (Entry(of_two(torch.le)),),
    "And": (Entry(of_two(torch.logical_and), since=7),),
    "Or": (Entry(of_two(torch.logical_or), since=7),),
    "Xor": (Entry(of_two(torch.logical_xor), since=7),),
    "Not": (Entry(of_one(torch.logical_not)),),
    "IsNaN": (Entry(of_one(torch.isnan)),),
    "IsInf": (Entry(arithmetic.is_infinite),),
    "Where": (Entry(arithmetic.where),),
    # Activations
    "Relu": (Entry(of_one(torch.relu), since=6),),
    "LeakyRelu": (Entry(activation.leaky_relu, since=6),),
    "PRelu": (Entry(activation.prelu, since=7),),
    "ThresholdedRelu": (Entry(activation.thresholded_relu),),
    "Elu": (Entry(activation.elu, since=6),),
    "Celu": (Entry(activation.celu),),
    "Selu": (Entry(activation.selu, since=6),),
    "Sigmoid": (Entry(of_one(torch.sigmoid), since=6),),
    "HardSigmoid": (Entry(activation.hard_sigmoid, since=6),),
    "HardSwish": (Entry(of_one(functional.hardswish)),),
    "Swish": (Entry(activation.swish),),
    "Tanh": (Entry(of_one(torch.tanh), since=6),),
    "Softplus": (Entry(of_one(functional.softplus)),),
    "Softsign": (Entry(of_one(functional.softsign)),),
    "Mish": (Entry(of_one(functional.mish)),),
    "Gelu": (Entry(activation.gelu),),
    "Shrink": (Entry(activation.shrink),),
    "Clip": (Entry(activation.fixed_clip, since=6, until=6), Entry(activation.clip, since=11)),
    "Softmax": (Entry(activation.flat_softmax, until=11), Entry(activation.softmax, since=13)),
    "LogSoftmax": (Entry(activation.flat_log_softmax, until=11), Entry(activation.log_softmax, since=13)),
    # Normalisations
    "BatchNormalization": (Entry(normalisation.batch_normalization, since=7),),
    "InstanceNormalization": (Entry(normalisation.instance_normalization, since=6),),
    "LayerNormalization": (Entry(normalisation.layer_normalization, outputs=3),),
    "RMSNormalization": (Entry(normalisation.rms_normalization),),
    "GroupNormalization": (Entry(normalisation.group_normalization, since=21),),
    "MeanVarianceNormalization": (Entry(normalisation.mean_variance_normalization),),
    "LRN": (Entry(normalisation.local_response),),
    "LpNormalization": (Entry(normalisation.lp_normalization),),
    # Reductions
    "ReduceSum": _axes_first(reduction.total),
    "ReduceMean": _axes_first(reduction.mean),
    "ReduceMax": _axes_first(reduction.maximum),
    "ReduceMin": _axes_first(reduction.minimum),
    "ReduceProd": _axes_first(reduction.product),
    "ReduceL1": _axes_first(reduction.norm1),
    "ReduceL2": _axes_first(reduction.norm2),
    "ReduceSumSquare": _axes_first(reduction.sum_of_squares),
    "ReduceLogSum": _axes_first(reduction.log_sum),
    "ReduceLogSumExp": _axes_first(reduction.log_sum_exp),
    "ArgMax": (Entry(ranking(torch.argmax)),),
    "ArgMin": (Entry(ranking(torch.argmin)),),
    "TopK": (Entry(reduction.fixed_top_k, until=1, outputs=2), Entry(reduction.top_k, since=10, outputs=2)),
    # Shapes
    "Reshape": (Entry(shaping.reshape, since=5),),
    "Transpose": (Entry(shaping.transpose),),
    "Flatten": (Entry(shaping.flatten),),
    "Squeeze": (Entry(shaping.squeeze),),
    "Unsqueeze": (Entry(shaping.unsqueeze),),
    "Shape": (Entry(shaping.shape),),
    "Size": (Entry(shaping.size),),
    "Expand": (Entry(shaping.expand),),
    "Tile": (Entry(shaping.tile, since=6),),
    "Concat": (Entry(shaping.concat, since=4),),
    "Split": (Entry(shaping.split, since=2, outputs=ANY),),
    "Slice": (Entry(shaping.fixed_slice, until=1), Entry(shaping.slice_, since=10)),
    "Pad": (Entry(shaping.fixed_pad, since=2, until=2), Entry(shaping.pad, since=11)),
    "Cast": (Entry(shaping.cast, since=6),),
    "CastLike": (Entry(shaping.cast_like),),
    "ConstantOfShape": (Entry(shaping.constant_of_shape),),
    "Range": (Entry(shaping.range_),),
    "Identity": (Entry(shaping.identity),),
    "Dropout": (Entry(shaping.dropout, since=7, outputs=2),),
    # Picking and moving
    "Gather": (Entry(gathering.gather),),
    "GatherElements": (Entry(gathering.gather_elements),),
    "GatherND": (Entry(gathering.gather_nd),),
    "DepthToSpace": (Entry(gathering.depth_to_space),),
    "SpaceToDepth": (Entry(gathering.space_to_depth),),
    "Trilu": (Entry(gathering.triangle),),
    "Resize": (Entry(resizing.old_resize, since=10, until=10), Entry(resizing.resize, since=11)),
    "Upsample": (Entry(resizing.fixed_upsample, since=7, until=7), Entry(resizing.old_resize, since=9)),
}
