"""What the original does, to which other models are held."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onnxdecomp.abridging import abridged
from onnxdecomp.comparing.validity import checker_refusal
from onnxdecomp.errors import MissingExtraError, ModelError, RunError, UsageError, first_line
from onnxdecomp.ir import InputShapes, Model, fixed_input_shapes, load
from onnxdecomp.runtime import (
    Feeds,
    Outputs,
    Runner,
    Sights,
    find_sights,
    open_in_onnxruntime,
    open_in_reference,
    open_seeing,
    random_feeds,
)


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baseline:
    """What the original does: the standard a rewritten model is held to.

    Attributes:
        path: the original.
        opener: loads a model into the engine that loaded the original; None if none did.
        runner: the original in that engine, kept for whatever else is to run; None if it was not to be kept.
        seen: the same, with what is to be looked at among its outputs.
        sights: where to look; None where that was not found out.
        engine: that engine's name.
        feeds: the inputs it ran on; None if it did not run.
        outputs: what came out, and what was to be looked at.
        reason: why it did not load or run.
    """

    path: Path
    opener: Callable[[Path], Runner] | None = None
    runner: Runner | None = None
    seen: Runner | None = None
    sights: Sights | None = None
    engine: str | None = None
    feeds: Feeds | None = None
    outputs: Outputs | None = None
    reason: str | None = None

    def __reduce__(self) -> tuple[Callable[[], Baseline], tuple[()]]:
        # A loaded model stays in its process: it is loaded again where it is needed.
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return partial(Baseline, **values | {"runner": None, "seen": None}), ()

    def in_onnxruntime(self) -> Runner:
        """The original in ONNX Runtime: as it was kept, or loaded now."""
        if self.runner is not None and self.opener is open_in_onnxruntime:
            return self.runner
        return open_in_onnxruntime(self.path)

    def where(self) -> Sights:
        """Where other models are compared with it."""
        return self.sights if self.sights is not None else find_sights(load(self.path).proto)

    def seen_in_onnxruntime(self) -> Runner:
        """The original in ONNX Runtime, as it was kept or loaded now, with what is to be looked at."""
        if self.seen is not None and self.opener is open_in_onnxruntime:
            return self.seen
        return open_seeing(self.path, self.where())


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
    sights = find_sights(model.proto)
    for opener in (open_in_onnxruntime, open_in_reference) if sights.plain or sights.names else ():
        try:
            whole = opener(path) if sights.beyond is None else None
            seen = whole if whole is not None and sights.plain else open_seeing(path, sights, opener)
            outputs = seen.run(feeds) if feeds is not None else None
        except MissingExtraError as error:
            return Baseline(path=path, sights=sights, reason=str(error))
        except RunError as error:
            problems.append(str(error))
            continue
        return Baseline(
            path=path,
            opener=opener,
            runner=whole if keep else None,
            seen=seen if keep else None,
            sights=sights,
            engine=seen.engine,
            feeds=feeds,
            outputs=outputs,
            reason=reason,
        )
    refusal = checker_refusal(path)
    if refusal is not None:
        raise ModelError(f"{path} is not a valid ONNX model: {first_line(refusal)}") from refusal
    return Baseline(path=path, sights=sights, reason="; ".join((*sights.notes, *problems[:1])))
