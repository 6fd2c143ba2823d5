"""From a node to its anchor: what is known of a convolution, Gemm or MatMul where it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import NodeProto

from onnxdecomp.ir.batchnorm import find_batchnorm
from onnxdecomp.ir.graph import Scope, Uses, attribute, flag, ints, is_onnx_op
from onnxdecomp.ir.shapes import InferredShapes, Shape
from onnxdecomp.ir.sites import CONV_OPS, FLOAT_TYPES, LINEAR_OPS, Anchor, Site
from onnxdecomp.ir.tensors import type_name
from onnxdecomp.ir.weights import Constant, Constants


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tables:
    """What is known of a model as a whole while its nodes are looked at one by one.

    Attributes:
        uses: who reads each tensor.
        shapes: of the tensors.
        constants: what of it is constant.
        fold_bn: look for a BatchNormalization that can be folded into each Conv.
    """

    uses: Uses
    shapes: InferredShapes
    constants: Constants
    fold_bn: bool

    def constant(self, scope: Scope, name: str) -> Constant | str:
        """The constant behind a tensor, or why there is none."""
        return self.constants.find(scope, name)


def conv_anchor(scope: Scope, key: str, node: NodeProto, tables: Tables) -> Anchor | None:
    """The anchor of a Conv or ConvTranspose, whether it can be decomposed or not; None for any other node."""
    op = next((op for op in CONV_OPS if is_onnx_op(node, op)), None)
    if op is None or len(node.input) < 2 or not node.output:
        return None
    shapes = tables.shapes
    weight = tables.constant(scope, node.input[1])
    constant = weight if isinstance(weight, Constant) else None
    input_shape, output_shape = (visible_shape(scope, n, shapes) for n in (node.input[0], node.output[0]))
    groups = known_groups(node)
    shape = constant.shape if constant else known_shape(scope, node.input[1], shapes)
    channels = _channels(op, shape, groups) if shape and groups and len(shape) > 2 else None
    kernel = shape[2:] if shape and len(shape) > 2 else (ints(node, "kernel_shape") or ())
    strides = ints(node, "strides") or (1,) * len(kernel)
    site = Site(
        name=scope.path + key,
        op=op,
        dtype=FLOAT_TYPES.get(constant.data_type) if constant else None,
        kernel=kernel,
        channels=channels,
        groups=groups,
        strides=strides,
        sizes=known_sizes(input_shape, output_shape),
        separable=len(strides) == len(kernel)
        and not any(a.ref_attr_name or a.name == "output_shape" for a in node.attribute),
        computed_by=constant.computed_by if constant else (),
        obstacle=weight if isinstance(weight, str) else _obstacle(weight, groups, channels),
    )
    fold = None
    if tables.fold_bn and constant is not None and channels is not None:
        fold = find_batchnorm(scope, node, channels[1], tables.uses, tables.constants)
    return Anchor(site=site, scope=scope, node=node, weight=constant, batchnorm=fold)


def _channels(op: str, shape: tuple[int, ...], groups: int) -> tuple[int, int]:
    """Input and output channels, by the shape of the stored weight: its second mode is that of one group."""
    if op == "ConvTranspose":
        return shape[0], shape[1] * groups
    return shape[1] * groups, shape[0]


def known_groups(node: NodeProto) -> int | None:
    """The channel groups of a convolution, None where a function's caller sets them."""
    group = attribute(node, "group")
    if group is None:
        return 1
    return None if group.ref_attr_name else group.i


def visible_shape(scope: Scope, name: str, shapes: InferredShapes) -> Shape | None:
    """What is known of the shape of the tensor that `scope` sees as `name`."""
    owner = scope.owner(name)
    return shapes.get(owner.path if owner is not None else scope.path, name)


def known_shape(scope: Scope, name: str, shapes: InferredShapes) -> tuple[int, ...] | None:
    """The same, None unless all of it is known."""
    shape = visible_shape(scope, name, shapes)
    if shape is None or None in shape:
        return None
    return tuple(dim for dim in shape if dim is not None)


def known_sizes(
    input_shape: Shape | None, output_shape: Shape | None
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Batch and spatial sizes before and after a convolution, of shapes with the channels on axis 1."""
    if input_shape is None or output_shape is None:
        return None
    before, after = (tuple(d for i, d in enumerate(s) if i != 1) for s in (input_shape, output_shape))
    known_before, known_after = (tuple(d for d in sizes if d is not None) for sizes in (before, after))
    if known_before != before or known_after != after or len(before) != len(after):
        return None
    return known_before, known_after


def linear_anchor(scope: Scope, key: str, node: NodeProto, tables: Tables) -> Anchor | None:
    """The anchor of a Gemm or MatMul whose right-hand side follows from constants, else None."""
    op = next((op for op in LINEAR_OPS if is_onnx_op(node, op)), None)
    if op is None or len(node.input) < 2 or not node.output or _set_by_caller(node, "transB"):
        return None
    if op == "Gemm" and scope.opset < 7:  # before version 7 its C was broadcast by an attribute
        return None
    weight = tables.constant(scope, node.input[1])
    constant = weight if isinstance(weight, Constant) else None
    if constant is None and not tables.constants.follows(scope, node.input[1]):
        return None
    shape = constant.shape if constant else known_shape(scope, node.input[1], tables.shapes)
    if shape is None or len(shape) != 2 or (constant and constant.data_type not in FLOAT_TYPES):
        return None
    rows, columns = shape
    if op == "Gemm" and flag(node, "transB"):
        rows, columns = columns, rows
    count = _rows(visible_shape(scope, node.output[0], tables.shapes))
    site = Site(
        name=scope.path + key,
        op=op,
        dtype=FLOAT_TYPES[constant.data_type] if constant else None,
        kernel=(),
        channels=(rows, columns),
        groups=1,
        strides=(),
        sizes=((count,), (count,)) if count is not None else None,
        separable=False,
        computed_by=constant.computed_by if constant else (),
        obstacle=weight if isinstance(weight, str) else None if rows and columns else "its weight is empty",
    )
    return Anchor(site=site, scope=scope, node=node, weight=constant, batchnorm=None)


def _rows(output_shape: Shape | None) -> int | None:
    if output_shape is None:
        return None
    rows = [dim for dim in output_shape[:-1] if dim is not None]
    return math.prod(rows) if len(rows) == len(output_shape) - 1 else None


def _set_by_caller(node: NodeProto, name: str) -> bool:
    found = attribute(node, name)
    return found is not None and bool(found.ref_attr_name)


def _obstacle(weight: Constant, groups: int | None, channels: tuple[int, int] | None) -> str | None:
    """Why a convolution with a constant weight cannot be decomposed whatever the ranks, or None."""
    if weight.data_type not in FLOAT_TYPES:
        return f"its weight is {type_name(weight.data_type)}, not a floating-point type"
    if groups is None:
        return "its number of groups is set by the function's caller"
    if len(weight.shape) < 3 or min(weight.shape) < 1 or groups < 1 or weight.shape[0] % groups:
        shape = "×".join(map(str, weight.shape))
        return f"its weight of shape {shape} does not fit {groups} groups; the file is damaged"
    if groups > 1 and channels is not None and channels[0] == groups:
        return "depthwise: each group has a single input channel"
    return None
