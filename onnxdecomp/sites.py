"""Sites: every Conv of a model, its geometry and cost, and why it must be left alone where it must."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from onnxdecomp.batchnorm import BatchNorm, find_batchnorm
from onnxdecomp.graph import Scope, Uses, attribute, find_uses, ints, is_onnx_op, scopes
from onnxdecomp.model import Model, as_model
from onnxdecomp.shapes import InferredShapes, InputShapes, Shape, infer_shapes
from onnxdecomp.weights import Constant, find_constant

FLOAT_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
NOT_FINITE = "its weight has NaN or Inf"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvSite:
    """One Conv (ONNX operator Conv, any rank) and what it costs.

    Attributes:
        name: unique key in the model: the path of its subgraph or function, then the node's name if that
            is unique and not empty, else its output tensor.
        dtype: element type of the weight, None where it is not known.
        kernel: spatial sizes of the kernel, empty where the weight's shape is not known.
        channels: input and output channels of the whole Conv, None where not known.
        groups: number of channel groups, None where a function's caller sets it.
        strides: one per spatial dimension.
        positions: input and output positions (batch × spatial sizes), None where shapes are not known.
        obstacle: None where the Conv can be decomposed, else a sentence saying why not.
    """

    name: str
    dtype: str | None
    kernel: tuple[int, ...]
    channels: tuple[int, int] | None
    groups: int | None
    strides: tuple[int, ...]
    positions: tuple[int, int] | None
    obstacle: str | None

    @property
    def group_channels(self) -> tuple[int, int]:
        """Input and output channels of one group."""
        if self.channels is None or not self.groups:
            raise ValueError(f"{self.name}: channels or groups are not known")
        return self.channels[0] // self.groups, self.channels[1] // self.groups

    @property
    def params(self) -> int | None:
        """Elements of the weight, the bias not counted."""
        if self.channels is None or not self.groups:
            return None
        return self.channels[1] * (self.channels[0] // self.groups) * math.prod(self.kernel)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one run, None where shapes are not known."""
        if self.positions is None or self.params is None:
            return None
        return self.positions[1] * self.params

    def to_dict(self, fit: tuple[str, ...] | str) -> dict[str, Any]:
        """The entry of this site in the JSON of `inspect`; `fit` is what `fitting_methods` says."""
        channels = {"in": self.channels[0], "out": self.channels[1]} if self.channels else None
        return {
            "name": self.name,
            "dtype": self.dtype,
            "kernel": list(self.kernel),
            "channels": channels,
            "groups": self.groups,
            "params": self.params,
            "macs": self.macs,
            "methods": [] if isinstance(fit, str) else list(fit),
            "reason": fit if isinstance(fit, str) else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anchor:
    """Where a site stands in the protobuf: what a rewrite needs beside the ConvSite itself."""

    site: ConvSite
    scope: Scope
    node: NodeProto
    weight: Constant | None
    batchnorm: BatchNorm | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """All anchors of a model in graph order, with the tables they were found by.

    `notes` holds one line for each thing that could not be found out, as a failed shape inference.
    """

    anchors: tuple[Anchor, ...]
    scopes: tuple[Scope, ...]
    uses: Uses
    notes: tuple[str, ...]


def survey(model: Model, *, input_shapes: InputShapes, freeze: bool, fold_bn: bool) -> Survey:
    """Find every Conv of `model`: main graph, graphs inside nodes, local functions; no weight is read.

    Args:
        model: the model.
        input_shapes: shapes for inputs with unknown dimensions; an unknown batch counts as 1.
        freeze: treat weights that callers may override as constant.
        fold_bn: look for a BatchNormalization that can be folded into each Conv.
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
    site = ConvSite(
        name=scope.path + key,
        dtype=FLOAT_TYPES.get(constant.data_type) if constant else None,
        kernel=kernel,
        channels=channels,
        groups=groups,
        strides=ints(node, "strides") or (1,) * len(kernel),
        positions=_positions(input_shape, output_shape),
        obstacle=weight if isinstance(weight, str) else _obstacle(weight, groups),
    )
    fold = find_batchnorm(scope, node, uses, model.proto.ir_version, freeze) if fold_bn and constant else None
    return Anchor(site=site, scope=scope, node=node, weight=constant, batchnorm=fold)


def _owner_path(scope: Scope, name: str) -> str:
    owner = scope.owner(name)
    return owner.path if owner is not None else scope.path


def _owner_shape(scope: Scope, name: str, shapes: InferredShapes) -> tuple[int, ...] | None:
    shape = shapes.get(_owner_path(scope, name), name)
    if shape is None or None in shape:
        return None
    return tuple(dim for dim in shape if dim is not None)


def _positions(input_shape: Shape | None, output_shape: Shape | None) -> tuple[int, int] | None:
    if input_shape is None or output_shape is None:
        return None
    counts = []
    for shape in (input_shape, output_shape):
        sizes = [dim for i, dim in enumerate(shape) if i != 1]
        if any(dim is None for dim in sizes):
            return None
        counts.append(math.prod(dim for dim in sizes if dim is not None))
    return counts[0], counts[1]


def _obstacle(weight: Constant, groups: int | None) -> str | None:
    """Why a Conv with a constant weight cannot be decomposed whatever the ranks, or None."""
    if weight.data_type not in FLOAT_TYPES:
        return (
            f"its weight is {TensorProto.DataType.Name(weight.data_type).lower()}, not a floating-point type"
        )
    if groups is None:
        return "its number of groups is set by the function's caller"
    if len(weight.shape) < 3 or groups < 1 or weight.shape[0] % groups or 0 in weight.shape:
        shape = "×".join(map(str, weight.shape))
        return f"its weight of shape {shape} does not fit {groups} groups; the file is damaged"
    if weight.shape[1] == 1 and groups > 1:
        return "depthwise: each group has a single input channel"
    if math.prod(weight.shape[2:]) == 1:
        kernel = "×".join(map(str, weight.shape[2:]))
        return f"its kernel is {kernel}: a plain matrix, which a Tucker chain does not shorten"
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
) -> list[ConvSite]:
    """Every Conv of `model`, in graph order, with its cost and what stands in the way of decomposing it.

    Args:
        model: a path, or a ModelProto that holds all its data.
        input_shapes: shapes for inputs with unknown dimensions; an unknown batch counts as 1.
        freeze_weights: treat weights that callers may override as constant.

    Raises:
        ModelError: the file is no whole ONNX model.
        UsageError: `input_shapes` does not fit the model's inputs.
    """
    found = survey_with_weights(as_model(model), input_shapes=input_shapes or {}, freeze=freeze_weights)
    return [anchor.site for anchor in found.anchors]


def survey_with_weights(model: Model, *, input_shapes: InputShapes, freeze: bool) -> Survey:
    """`survey`, with every weight read that could be factored: NaN and Inf are obstacles too."""
    found = survey(model, input_shapes=input_shapes, freeze=freeze, fold_bn=False)
    anchors = tuple(_with_finite_weight(anchor, model.folder) for anchor in found.anchors)
    return dataclasses.replace(found, anchors=anchors)


def _with_finite_weight(anchor: Anchor, folder: Path) -> Anchor:
    if anchor.site.obstacle is not None or anchor.weight is None:
        return anchor
    if np.isfinite(anchor.weight.values(folder).astype(np.float64)).all():
        return anchor
    return dataclasses.replace(anchor, site=dataclasses.replace(anchor.site, obstacle=NOT_FINITE))
