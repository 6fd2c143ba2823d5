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

import onnx

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.comparing.pairs import compare_outputs, same_inputs
from onnxdecomp.comparing.tally import Fidelity
from onnxdecomp.errors import CheckError, MissingExtraError, ModelError, RunError, UsageError, first_line
from onnxdecomp.ir import (
    InputShapes,
    Model,
    ShapesLike,
    Source,
    as_input_shapes,
    as_model,
    fixed_input_shapes,
    on_disk,
)
from onnxdecomp.runtime import Feeds, Outputs, Runner, open_in_onnxruntime, open_in_reference, random_feeds


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The outcome of a check.

    An example is in docs/python.md under "Comparing".

    Attributes:
        status: "passed" or "not checked"; a failed check is a CheckError.
        reason: why nothing, or not everything, was checked; None otherwise.
        engine: what ran both models, None if nothing did.
        outputs: fidelity per output.
    """

    status: str
    reason: str | None = None
    engine: str | None = None
    outputs: tuple[Fidelity, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The "check" of the JSON report."""
        return {
            "status": self.status,
            "reason": self.reason,
            "engine": self.engine,
            "outputs": [fidelity.to_dict() for fidelity in self.outputs],
        }


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baseline:
    """What the original does: the standard a rewritten model is held to.

    Attributes:
        path: the original.
        opener: loads a model into the engine that loaded the original; None if none did.
        runner: the original in that engine, kept for whatever else is to run; None if it was not to be kept.
        engine: that engine's name.
        feeds: the inputs it ran on; None if it did not run.
        outputs: what came out.
        reason: why it did not load or run.
    """

    path: Path
    opener: Callable[[Path], Runner] | None = None
    runner: Runner | None = None
    engine: str | None = None
    feeds: Feeds | None = None
    outputs: Outputs | None = None
    reason: str | None = None

    def __reduce__(self) -> tuple[Callable[[], Baseline], tuple[()]]:
        # A loaded model stays in its process: it is loaded again where it is needed.
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return partial(Baseline, **values | {"runner": None}), ()

    def in_onnxruntime(self) -> Runner:
        """The original in ONNX Runtime: as it was kept, or loaded now."""
        if self.runner is not None and self.opener is open_in_onnxruntime:
            return self.runner
        return open_in_onnxruntime(self.path)


def baseline(model: Model, input_shapes: InputShapes, *, keep: bool = False) -> Baseline:
    """Run a model once on random inputs, in ONNX Runtime or else the reference evaluator.

    Args:
        model: read from a file.
        input_shapes: for inputs with unknown dimensions.
        keep: keep what runs it, and the memory that takes.

    Raises:
        ModelError: neither the ONNX checker nor ONNX Runtime accepts the model.
        UsageError: `input_shapes` does not fit the model's inputs.
    """
    if model.path is None:
        raise ValueError("the model was not read from a file")
    path = model.path
    fixed_input_shapes(model.proto, input_shapes)
    feeds: Feeds | None = None
    reason: str | None = None
    try:
        feeds = random_feeds(model.proto, input_shapes)
    except UsageError as error:
        reason = str(error)
    problems: list[str] = []
    for opener in (open_in_onnxruntime, open_in_reference):
        try:
            runner = opener(path)
            outputs = runner.run(feeds) if feeds is not None else None
        except MissingExtraError as error:
            return Baseline(path=path, reason=str(error))
        except RunError as error:
            problems.append(str(error))
            continue
        return Baseline(
            path=path,
            opener=opener,
            runner=runner if keep else None,
            engine=runner.engine,
            feeds=feeds,
            outputs=outputs,
            reason=reason,
        )
    refusal = _checker_refusal(path)
    if refusal is not None:
        raise ModelError(f"{path} is not a valid ONNX model: {first_line(refusal)}") from refusal
    return Baseline(path=path, reason=problems[0])


def _checker_refusal(path: Path) -> Exception | None:
    """What onnx.checker says against the model at `path`; None if it accepts it."""
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        return error
    return None


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
    refusal = _checker_refusal(candidate)
    if refusal is not None and _checker_refusal(original.path) is None:
        raise CheckError(f"the rewritten model is not valid ONNX: {first_line(refusal)}") from refusal
    if original.opener is None:
        return Check(status="not checked", reason=original.reason)
    try:
        runner = original.opener(candidate)
        if original.feeds is None or original.outputs is None:
            return Check(status="not checked", reason=original.reason, engine=original.engine)
        with same_inputs(original.path, candidate, CheckError):
            pair = (original.outputs, runner.run(original.feeds))
        if original.opener is open_in_onnxruntime:
            _run_unpadded(original, original.feeds, candidate)
    except RunError as error:
        raise CheckError(f"the rewritten model fails where the original does not: {error}") from error
    outputs = compare_outputs([pair])
    for fidelity in outputs:
        if fidelity.new_nonfinite:
            raise CheckError(
                f"output '{fidelity.name}' of the rewritten model has {fidelity.new_nonfinite} new NaN or Inf"
            )
    if all(fidelity.max_abs is None for fidelity in outputs):
        reason = "no output of the original has a finite number to compare"
        return Check(status="not checked", reason=reason, engine=original.engine)
    return Check(status="passed", engine=original.engine, outputs=tuple(outputs))


def _run_unpadded(original: Baseline, feeds: Feeds, candidate: Path) -> None:
    """Run the candidate without the blocked layout, whose padding hides links whose channels do not fit.

    A block of 8 or 16 channels, as the CPU has it, is padded with zeros: a chain whose core expects a channel
    more than its input has runs there, and nowhere else.

    Raises:
        RunError: the candidate does not run so, and the original does.
    """
    try:
        open_in_onnxruntime(candidate, extended=True).run(feeds)
    except RunError as error:
        try:
            open_in_onnxruntime(original.path, extended=True).run(feeds)
        except RunError:
            return
        raise error
