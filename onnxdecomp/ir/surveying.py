"""The survey: every site of a model, wherever it stands, with the tables it was found by."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from onnxdecomp.ir.anchors import Tables, conv_anchor, linear_anchor
from onnxdecomp.ir.finite import NotFiniteError, finite_values
from onnxdecomp.ir.graph import Scope, Uses, find_uses, scopes
from onnxdecomp.ir.model import Model
from onnxdecomp.ir.shapes import InputShapes, infer_shapes
from onnxdecomp.ir.sightings import seen_anchor
from onnxdecomp.ir.sites import Anchor
from onnxdecomp.ir.transforms import with_transforms
from onnxdecomp.ir.weights import Constants


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """All anchors of a model in graph order, with the tables they were found by.

    Attributes:
        model: whose protobuf the anchors and scopes are views of.
        anchors: of all sites, in graph order.
        scopes: of the model, the main graph first.
        uses: who reads each tensor.
        constants: what of the model is constant.
        notes: one line for each thing that could not be found out, or only by a run.
    """

    model: Model
    anchors: tuple[Anchor, ...]
    scopes: tuple[Scope, ...]
    uses: Uses
    constants: Constants
    notes: tuple[str, ...]

    @property
    def freeze(self) -> bool:
        """Whether weights that callers may override were taken as constant."""
        return self.constants.freeze

    def names(self) -> list[str]:
        """The sites' names."""
        return [anchor.site.name for anchor in self.anchors]

    def without_linear(self, names: Container[str]) -> Survey:
        """The survey less the Gemm and MatMul sites among `names`."""
        kept = tuple(a for a in self.anchors if not a.site.linear or a.site.name not in names)
        return dataclasses.replace(self, anchors=kept)


def survey(model: Model, *, input_shapes: InputShapes, freeze: bool, fold_bn: bool, linear: bool) -> Survey:
    """Find every convolution of `model`: main graph, graphs inside nodes, local functions.

    No weight is read but those that nodes compute from constants, and those of sites at the model's inputs.

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
    constants = Constants.of(model, found, freeze=freeze)
    tables = Tables(uses=uses, shapes=shapes, constants=constants, fold_bn=fold_bn)
    kinds = (conv_anchor, seen_anchor, linear_anchor) if linear else (conv_anchor, seen_anchor)
    anchors = [
        anchor
        for scope in found
        for key, node in zip(scope.keys, scope.body.node, strict=True)
        for kind in kinds
        if (anchor := kind(scope, key, node, tables)) is not None
    ]
    return Survey(
        model=model,
        anchors=tuple(with_transforms(list(_without_shared_folds(anchors)), found[0], constants)),
        scopes=tuple(found),
        uses=uses,
        constants=constants,
        notes=(shapes.problem,) if shapes.problem else (),
    )


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


def survey_with_weights(model: Model, *, input_shapes: InputShapes, freeze: bool, linear: bool) -> Survey:
    """`survey`, with every weight read that could be factored: NaN and Inf are obstacles too."""
    found = survey(model, input_shapes=input_shapes, freeze=freeze, fold_bn=False, linear=linear)
    anchors = tuple(_with_finite_weight(anchor, model.folder) for anchor in found.anchors)
    return dataclasses.replace(found, anchors=anchors)


def _with_finite_weight(anchor: Anchor, folder: Path) -> Anchor:
    if anchor.site.obstacle is not None or anchor.weight is None:
        return anchor
    try:
        finite_values(anchor.weight, folder)
    except NotFiniteError as error:
        return dataclasses.replace(anchor, site=dataclasses.replace(anchor.site, obstacle=str(error)))
    return anchor
