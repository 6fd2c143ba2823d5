"""The survey: every site of a model, wherever it stands, with the tables it was found by."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto

from onnxdecomp.ir.batchnorm import find_batchnorm
from onnxdecomp.ir.finite import NOT_FINITE
from onnxdecomp.ir.graph import Scope, Uses, attribute, find_uses, ints, is_onnx_op, scopes
from onnxdecomp.ir.model import Model, as_model
from onnxdecomp.ir.shapes import InferredShapes, InputShapes, Shape, infer_shapes
from onnxdecomp.ir.sites import FLOAT_TYPES, LINEAR_OPS, Anchor, Site, _flag
from onnxdecomp.ir.tensors import type_name
from onnxdecomp.ir.weights import Constant, find_constant


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """All anchors of a model in graph order, with the tables they were found by.

    `notes` holds one line for each thing that could not be found out, as a failed shape inference.
    """

    anchors: tuple[Anchor, ...]
    scopes: tuple[Scope, ...]
    uses: Uses
    notes: tuple[str, ...]

    def names(self) -> list[str]:
        """The sites' names."""
        return [anchor.site.name for anchor in self.anchors]

    def without_linear(self, names: Container[str]) -> Survey:
        """The survey less the Gemm and MatMul sites among `names`."""
        kept = tuple(a for a in self.anchors if a.site.op == "Conv" or a.site.name not in names)
        return dataclasses.replace(self, anchors=kept)


def survey(model: Model, *, input_shapes: InputShapes, freeze: bool, fold_bn: bool, linear: bool) -> Survey:
    """Find every Conv of `model`: main graph, graphs inside nodes, local functions; no weight is read.

    Args:
        model: the model.
        input_shapes: shapes for inputs with unknown dimensions; an unknown batch counts as 1.
        freeze: treat weights that callers may override as constant.
        fold_bn: look for a BatchNormalization that can be folded into each Conv.
        linear: find every Gemm and MatMul with a constant right-hand side too.
    """
    found = scopes(model.proto)
    uses = find_uses(found, model.proto)
    shapes = infer_shapes(model.proto, input_shapes)
    anchors = [
        _anchor(scope, key, node, model, uses, shapes, freeze, fold_bn)
        for scope in found
        for key, node in zip(scope.keys, scope.body.node, strict=True)
        if is_onnx_op(node, "Conv") and len(node.input) >= 2 and node.output
    ]
    anchors += [
        anchor
        for scope in found
        for key, node in zip(scope.keys, scope.body.node, strict=True)
        if linear and (anchor := _linear_anchor(scope, key, node, model, shapes, freeze)) is not None
    ]
    order = {id(node): i for i, node in enumerate(n for scope in found for n in scope.body.node)}
    anchors.sort(key=lambda anchor: order[id(anchor.node)])
    return Survey(
        anchors=tuple(_without_shared_folds(anchors)),
        scopes=tuple(found),
        uses=uses,
        notes=(shapes.problem,) if shapes.problem else (),
    )


def _anchor(
    scope: Scope,
    key: str,
    node: NodeProto,
    model: Model,
    uses: Uses,
    shapes: InferredShapes,
    freeze: bool,
    fold_bn: bool,
) -> Anchor:
    weight = find_constant(scope, node.input[1], ir_version=model.proto.ir_version, freeze=freeze)
    constant = weight if isinstance(weight, Constant) else None
    input_shape, output_shape = (
        shapes.get(_owner_path(scope, n), n) for n in (node.input[0], node.output[0])
    )
    group = attribute(node, "group")
    groups = None if group is not None and group.ref_attr_name else (group.i if group is not None else 1)
    shape = constant.shape if constant else _owner_shape(scope, node.input[1], shapes)
    channels = (shape[1] * groups, shape[0]) if shape and groups and len(shape) > 2 else None
    kernel = shape[2:] if shape and len(shape) > 2 else (ints(node, "kernel_shape") or ())
    strides = ints(node, "strides") or (1,) * len(kernel)
    site = Site(
        name=scope.path + key,
        op="Conv",
        dtype=FLOAT_TYPES.get(constant.data_type) if constant else None,
        kernel=kernel,
        channels=channels,
        groups=groups,
        strides=strides,
        sizes=_sizes(input_shape, output_shape),
        separable=len(strides) == len(kernel) and not any(a.ref_attr_name for a in node.attribute),
        obstacle=weight if isinstance(weight, str) else _obstacle(weight, groups),
    )
    fold = None
    if fold_bn and constant is not None:
        fold = find_batchnorm(scope, node, constant, uses, model.proto.ir_version, freeze)
    return Anchor(site=site, scope=scope, node=node, weight=constant, batchnorm=fold)


def _owner_path(scope: Scope, name: str) -> str:
    owner = scope.owner(name)
    return owner.path if owner is not None else scope.path


def _owner_shape(scope: Scope, name: str, shapes: InferredShapes) -> tuple[int, ...] | None:
    shape = shapes.get(_owner_path(scope, name), name)
    if shape is None or None in shape:
        return None
    return tuple(dim for dim in shape if dim is not None)


def _sizes(
    input_shape: Shape | None, output_shape: Shape | None
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    if input_shape is None or output_shape is None:
        return None
    before, after = (tuple(d for i, d in enumerate(s) if i != 1) for s in (input_shape, output_shape))
    known_before, known_after = (tuple(d for d in sizes if d is not None) for sizes in (before, after))
    if known_before != before or known_after != after or len(before) != len(after):
        return None
    return known_before, known_after


def _linear_anchor(
    scope: Scope, key: str, node: NodeProto, model: Model, shapes: InferredShapes, freeze: bool
) -> Anchor | None:
    """The anchor of a Gemm or MatMul whose right-hand side is a constant matrix, else None."""
    op = next((op for op in LINEAR_OPS if is_onnx_op(node, op)), None)
    if op is None or len(node.input) < 2 or not node.output or _set_by_caller(node, "transB"):
        return None
    if op == "Gemm" and scope.opset < 7:  # before version 7 its C was broadcast by an attribute
        return None
    weight = find_constant(scope, node.input[1], ir_version=model.proto.ir_version, freeze=freeze)
    if not isinstance(weight, Constant) or len(weight.shape) != 2 or weight.data_type not in FLOAT_TYPES:
        return None
    rows, columns = weight.shape
    if op == "Gemm" and _flag(node, "transB"):
        rows, columns = columns, rows
    output_shape = shapes.get(_owner_path(scope, node.output[0]), node.output[0])
    count = _rows(output_shape)
    site = Site(
        name=scope.path + key,
        op=op,
        dtype=FLOAT_TYPES[weight.data_type],
        kernel=(),
        channels=(rows, columns),
        groups=1,
        strides=(),
        sizes=((count,), (count,)) if count is not None else None,
        separable=False,
        obstacle=None if rows and columns else "its weight is empty",
    )
    return Anchor(site=site, scope=scope, node=node, weight=weight, batchnorm=None)


def _rows(output_shape: Shape | None) -> int | None:
    if output_shape is None:
        return None
    rows = [dim for dim in output_shape[:-1] if dim is not None]
    return math.prod(rows) if len(rows) == len(output_shape) - 1 else None


def _set_by_caller(node: NodeProto, name: str) -> bool:
    found = attribute(node, name)
    return found is not None and bool(found.ref_attr_name)


def _obstacle(weight: Constant, groups: int | None) -> str | None:
    """Why a Conv with a constant weight cannot be decomposed whatever the ranks, or None."""
    if weight.data_type not in FLOAT_TYPES:
        return f"its weight is {type_name(weight.data_type)}, not a floating-point type"
    if groups is None:
        return "its number of groups is set by the function's caller"
    if len(weight.shape) < 3 or min(weight.shape) < 1 or groups < 1 or weight.shape[0] % groups:
        shape = "×".join(map(str, weight.shape))
        return f"its weight of shape {shape} does not fit {groups} groups; the file is damaged"
    if weight.shape[1] == 1 and groups > 1:
        return "depthwise: each group has a single input channel"
    return None


def _without_shared_folds(anchors: list[Anchor]) -> Iterable[Anchor]:
    """Drop the fold of Convs that share a weight but meet different BatchNormalizations.

    Folding would give each of them a weight of its own, and the file would grow.
    """
    folds: dict[tuple[object, ...], set[object]] = {}
    for anchor in anchors:
        if anchor.weight is not None:
            folds.setdefault(anchor.weight.key, set()).add(anchor.batchnorm and anchor.batchnorm.key)
    for anchor in anchors:
        if anchor.weight is not None and len(folds[anchor.weight.key]) > 1:
            anchor = dataclasses.replace(anchor, batchnorm=None)
        yield anchor


def find_sites(
    model: ModelProto | str | os.PathLike[str],
    *,
    input_shapes: InputShapes | None = None,
    freeze_weights: bool = False,
    linear: bool = False,
) -> list[Site]:
    """Every Conv of `model`, in graph order, with its cost and what stands in the way of decomposing it.

    Args:
        model: a path, or a ModelProto that holds all its data.
        input_shapes: shapes for inputs with unknown dimensions; an unknown batch counts as 1.
        freeze_weights: treat weights that callers may override as constant.
        linear: list every Gemm and MatMul with a constant right-hand side too.

    Raises:
        ModelError: the file is no whole ONNX model.
        UsageError: `input_shapes` does not fit the model's inputs.
    """
    shapes = input_shapes or {}
    found = survey_with_weights(as_model(model), input_shapes=shapes, freeze=freeze_weights, linear=linear)
    return [anchor.site for anchor in found.anchors]


def survey_with_weights(model: Model, *, input_shapes: InputShapes, freeze: bool, linear: bool) -> Survey:
    """`survey`, with every weight read that could be factored: NaN and Inf are obstacles too."""
    found = survey(model, input_shapes=input_shapes, freeze=freeze, fold_bn=False, linear=linear)
    anchors = tuple(_with_finite_weight(anchor, model.folder) for anchor in found.anchors)
    return dataclasses.replace(found, anchors=anchors)


def _with_finite_weight(anchor: Anchor, folder: Path) -> Anchor:
    if anchor.site.obstacle is not None or anchor.weight is None:
        return anchor
    if np.isfinite(anchor.weight.values(folder).astype(np.float64)).all():
        return anchor
    return dataclasses.replace(anchor, site=dataclasses.replace(anchor.site, obstacle=NOT_FINITE))
