"""What a rewrite came to, by running the new model against its original."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from onnxdecomp.comparing import Baseline, baseline, check, measure_quality
from onnxdecomp.ir import InputShapes, Model, on_disk
from onnxdecomp.rewriting.result import Result
from onnxdecomp.sampling import SampleSets


def proven(
    result: Result,
    original: Model,
    *,
    checked: bool,
    input_shapes: InputShapes,
    sets: SampleSets | None,
    scratch: Path | None,
) -> Result:
    """`result` with its check and its quality, as far as either is wanted.

    Args:
        result: of the rewrite.
        original: the model that was rewritten.
        checked: whether to check it.
        input_shapes: for the check, of inputs with unknown dimensions.
        sets: the quality is measured on those held out; None measures none.
        scratch: folder for the models where they lie in no file; None is the system's.

    Raises:
        ModelError, CheckError, RunError: as `check` and `measure_quality` do.
    """
    if not checked and sets is None:
        return result
    with on_disk(original, beside=scratch) as path, on_disk(result.rewritten, beside=scratch) as candidate:
        standard, verdict, quality = Baseline(path=path), None, None
        if checked:
            here = dataclasses.replace(original, path=path)
            standard = baseline(here, input_shapes, keep=sets is not None)
            verdict = check(standard, candidate)
        if sets is not None:
            held_out, labels = sets.held_out, sets.labels
            quality = measure_quality(standard, candidate, held_out, fitted=len(sets.fitted), labels=labels)
    return dataclasses.replace(result, check=verdict, quality=quality)
