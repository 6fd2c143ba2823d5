"""The check of a rewritten model against its original: both must load, run, and stay finite.

Low ranks change outputs, so how far these are apart is reported, never judged. What fails is damage: a
model that the checker or the runtime refuses though it accepted the original, an output of another shape,
NaN or Inf where there was none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.comparing.pairs import compare_outputs, same_inputs
from onnxdecomp.comparing.selecting import Selection
from onnxdecomp.comparing.standard import Baseline, baseline
from onnxdecomp.comparing.tally import Fidelity
from onnxdecomp.comparing.validity import checker_refusal
from onnxdecomp.errors import CheckError, RunError, first_line
from onnxdecomp.ir import ShapesLike, Source, as_input_shapes, as_model, load, on_disk
from onnxdecomp.runtime import Feeds, Runner, Sights, open_in_onnxruntime, open_seeing


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The outcome of a check.

    An example is in docs/python.md under "Comparing".

    Attributes:
        status: "passed" or "not checked"; a failed check is a CheckError.
        reason: why nothing was checked, or not everything, or in another place; None otherwise.
        engine: what ran both models, None if nothing did.
        outputs: fidelity per output, or of what stands in its place, as in a `Comparison`.
        selections: what both models select where sizes depend on data.
    """

    status: str
    reason: str | None = None
    engine: str | None = None
    outputs: tuple[Fidelity, ...] = ()
    selections: tuple[Selection, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The "check" of the JSON report."""
        return {
            "status": self.status,
            "reason": self.reason,
            "engine": self.engine,
            "outputs": [fidelity.to_dict() for fidelity in self.outputs],
            "selections": [selection.to_dict() for selection in self.selections],
        }


@verified
def check(original: Source | Baseline, rewritten: Source, *, input_shapes: ShapesLike | None = None) -> Check:
    """Hold a rewritten model to what its original does.

    An example is in docs/python.md under "Comparing".

    Args:
        original: the model: a path, a ModelProto or a result; or what it was found to do.
        rewritten: the model to judge, likewise.
        input_shapes: for inputs of the original with unknown dimensions.

    Raises:
        ModelError: a file is no whole ONNX model.
        CheckError: the checker or the engine refuses it though it accepted the original, at any of the levels
            of optimisation, or it has other inputs; an output changed its shape, or has NaN or Inf where the
            original has none.
    """
    with on_disk(rewritten, "rewritten") as candidate:
        if isinstance(original, Baseline):
            return _check(original, candidate)
        model = as_model(original, "original")
        with on_disk(model) as path:
            here = dataclasses.replace(model, path=path)
            return _check(baseline(here, as_input_shapes(input_shapes)), candidate)


def _check(original: Baseline, candidate: Path) -> Check:
    refusal = checker_refusal(candidate)
    if refusal is not None and checker_refusal(original.path) is None:
        raise CheckError(f"the rewritten model is not valid ONNX: {first_line(refusal)}") from refusal
    if original.opener is None:
        return Check(status="not checked", reason=original.reason)
    sights = original.where().within(load(candidate).proto)
    try:
        if original.feeds is None or original.outputs is None:
            _open(original.opener, candidate, sights)
            return Check(status="not checked", reason=original.reason, engine=original.engine)
        with same_inputs(original.path, candidate, CheckError):
            runner = _open(original.opener, candidate, sights)
            found = runner.run(original.feeds)
            if not sights.plain and sights.beyond is None:
                found = open_seeing(candidate, sights, original.opener).run(original.feeds)
        if original.opener is open_in_onnxruntime:
            _run_unpadded(original, original.feeds, candidate, sights)
    except RunError as error:
        raise CheckError(f"the rewritten model fails where the original does not: {error}") from error
    outputs, picked = compare_outputs([(original.outputs, found)], sights)
    for fidelity in outputs:
        if fidelity.new_nonfinite:
            raise CheckError(
                f"output '{fidelity.name}' of the rewritten model has {fidelity.new_nonfinite} new NaN or Inf"
            )
    elsewhere = "; ".join(sights.notes) or None
    if all(fidelity.max_abs is None for fidelity in outputs):
        reason = elsewhere or "no output of the original has a finite number to compare"
        return Check(status="not checked", reason=reason, engine=original.engine)
    return Check(
        status="passed", reason=elsewhere, engine=original.engine, outputs=outputs, selections=picked
    )


def _open(opener: Callable[[Path], Runner], path: Path, sights: Sights) -> Runner:
    """A model as it is, or what of it runs here."""
    return opener(path) if sights.beyond is None else open_seeing(path, sights, opener)


def _run_unpadded(original: Baseline, feeds: Feeds, candidate: Path, sights: Sights) -> None:
    """Run the candidate without the blocked layout, whose padding hides links whose channels do not fit.

    A block of 8 or 16 channels, as the CPU has it, is padded with zeros: a chain whose core expects a channel
    more than its input has runs there, and nowhere else.

    Raises:
        RunError: the candidate does not run so, and the original does.
    """
    extended = partial(open_in_onnxruntime, extended=True)
    try:
        _open(extended, candidate, sights).run(feeds)
    except RunError as error:
        try:
            _open(extended, original.path, sights).run(feeds)
        except RunError:
            return
        raise error
