"""A fitted model brought nearer to its original by gradients."""

from __future__ import annotations

from dataclasses import replace

from onnxdecomp.errors import StoppedError, UsageError
from onnxdecomp.ir import Model
from onnxdecomp.progress import Progress
from onnxdecomp.rewriting.result import Result
from onnxdecomp.sampling import Samples, SampleSets
from onnxdecomp.tuning import Tuning, find_trained, processes, require_torch, tune

# What is said where tuning was asked for, and there is nothing to train.
NOTHING_TUNED = "nothing was tuned: no factor of the new model can be trained"


def require_tunable(tuning: Tuning, samples: Samples | None, parameter: str) -> None:
    """Refuse, before any work is done, what could not be tuned in the end.

    Args:
        tuning: how.
        samples: to train on; None where none were given.
        parameter: by which they are given, for messages.

    Raises:
        UsageError: there are no samples, or too few; PyTorch has no such device; this is one of several
            processes, which `tune` alone can share.
        MissingExtraError: PyTorch is not installed, or too old.
    """
    if samples is None:
        raise UsageError(f"`tuning` trains on samples: name them with `{parameter}`")
    require_torch(tuning.device)
    if processes() > 1:
        raise UsageError("`tuning`: only `tune` by itself is shared between processes; run this in one")
    unit = samples.batch or 1
    if len(samples) < 2 * unit:
        one = "sample" if unit == 1 else f"batch of {unit} samples"
        raise UsageError(f"`{parameter}`: `tuning` needs a {one} to train on and one more to hold out")


def improved(
    result: Result, original: Model, samples: SampleSets | Samples, tuning: Tuning, progress: Progress
) -> Result:
    """`result` with its model tuned; an interruption leaves the best by then, and is told in it.

    Args:
        result: of the rewrite.
        original: the model that was rewritten.
        samples: to train on; a part of them is held out, see `tune`.
        tuning: how.
        progress: told of what is being done.

    Raises:
        RunError: ONNX Runtime does not run the models.
    """
    try:
        find_trained(original, result.rewritten, tuning.train)
    except UsageError:
        # A plan without sites is carried out, and so is one of sites that gradients do not reach.
        return replace(result, notes=(*result.notes, NOTHING_TUNED))
    try:
        found = tune(original, result.rewritten, samples, tuning=tuning, progress=progress)
    except StoppedError as stop:
        return replace(result, interrupted=stop)
    before, _ = result.totals.nbytes
    return replace(
        result,
        rewritten=found.tuned,
        totals=replace(result.totals, nbytes=(before, found.tuned.nbytes())),
        tuned=found,
        interrupted=found.interrupted,
    )
