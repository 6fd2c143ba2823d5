"""What can be decomposed in a model, what it costs, and what its spectra say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.ir import (
    Model,
    ShapesLike,
    Site,
    Source,
    Survey,
    as_input_shapes,
    as_model,
    survey_with_weights,
)
from onnxdecomp.planning.policy import Policy, weighed_methods
from onnxdecomp.planning.spectra import SiteSpectra, find_spectra
from onnxdecomp.progress import Progress, logged, silent, tracked
from onnxdecomp.runtime import with_sizes


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """What is there, and what can be done with it.

    An example is in docs/python.md under "Looking into a model".

    Attributes:
        sites: every Conv, in graph order, and products with constant matrices where they were asked for.
        policy: what may be chosen.
        notes: one line for each thing that could not be found out, or only by a run.
        spectra: of the sites that can be decomposed; empty where they were not asked for.
    """

    sites: tuple[Site, ...]
    policy: Policy
    notes: tuple[str, ...]
    spectra: tuple[SiteSpectra, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        by_name = {each.site.name: each.to_dict() for each in self.spectra}
        entries = [site.to_dict() | _fit(weighed_methods(site, self.policy)) for site in self.sites]
        for entry in entries if self.spectra else ():
            entry["spectrum"] = by_name.get(entry["name"])
        return {"sites": entries, "notes": list(self.notes)}


def _fit(methods: tuple[str, ...] | str) -> dict[str, Any]:
    if isinstance(methods, str):
        return {"methods": [], "reason": methods}
    return {"methods": list(methods), "reason": None}


@verified
def inspect(
    model: Source,
    *,
    policy: Policy | None = None,
    input_shapes: ShapesLike | None = None,
    freeze_weights: bool = False,
    spectrum: bool = False,
    progress: Progress = silent,
) -> Inspection:
    """Every Conv of a model, its cost, and how it can be decomposed or why not.

    What shape inference cannot tell of sizes, one run on random inputs does; a note says so, or why not.

    An example is in docs/python.md under "Looking into a model".

    Args:
        model: a path, a ModelProto that holds all its data, or a result.
        policy: which decompositions may be chosen, and whether Gemm and MatMul are listed too.
        input_shapes: shapes for inputs with unknown dimensions; an unknown batch counts as 1.
        freeze_weights: treat weights that callers may override as constant.
        spectrum: find the energy kept per mode, and what each rank rule would choose.
        progress: told of every spectrum that is read.

    Raises:
        ModelError: the file is no whole ONNX model.
        UsageError: `input_shapes` does not fit the model's inputs.
    """
    policy = policy or Policy()
    source = as_model(model)
    found = _survey(source, input_shapes, freeze=freeze_weights, linear=policy.wants_linear)
    spectra: tuple[SiteSpectra, ...] = ()
    if spectrum:
        anchors = tracked(found.anchors, "reading spectra", logged(progress), lambda each: each.site.name)
        spectra = tuple(find_spectra(anchors, policy, source.folder))
    return Inspection(
        sites=tuple(anchor.site for anchor in found.anchors),
        policy=policy,
        notes=found.notes,
        spectra=spectra,
    )


@verified
def find_sites(
    model: Source,
    *,
    input_shapes: ShapesLike | None = None,
    freeze_weights: bool = False,
    linear: bool = False,
) -> list[Site]:
    """Every Conv of `model`, in graph order, with its cost and what stands in the way of decomposing it.

    What shape inference cannot tell of sizes, one run on random inputs does; else they are None.

    An example is in docs/python.md under "Looking into a model".

    Args:
        model: a path, a ModelProto that holds all its data, or a result.
        input_shapes: shapes for inputs with unknown dimensions; an unknown batch counts as 1.
        freeze_weights: treat weights that callers may override as constant.
        linear: list every Gemm and MatMul with a constant right-hand side too.

    Raises:
        ModelError: the file is no whole ONNX model.
        UsageError: `input_shapes` does not fit the model's inputs.
    """
    found = _survey(as_model(model), input_shapes, freeze=freeze_weights, linear=linear)
    return [anchor.site for anchor in found.anchors]


def _survey(model: Model, input_shapes: ShapesLike | None, *, freeze: bool, linear: bool) -> Survey:
    shapes = as_input_shapes(input_shapes)
    found = survey_with_weights(model, input_shapes=shapes, freeze=freeze, linear=linear)
    return with_sizes(found, shapes)
