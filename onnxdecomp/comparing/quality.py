"""What a rewrite did to the outputs on samples that no factor was fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.comparing.pairs import compare_outputs, same_inputs
from onnxdecomp.comparing.selecting import Selection
from onnxdecomp.comparing.standard import Baseline
from onnxdecomp.comparing.tally import Fidelity, scores_samples
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Array, Source, load, on_disk
from onnxdecomp.runtime import Outputs, Runner, Sights, find_sights, open_seeing
from onnxdecomp.sampling import BATCH, Samples, SamplesLike, as_samples


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Fidelity on held-out samples.

    An example is in docs/python.md under "Comparing".

    Attributes:
        fitted: samples the factors were fitted to.
        held_out: samples measured.
        outputs: fidelity of each output, or of what stands in its place, as in a `Comparison`.
        accuracy: top-1 accuracy before and after; None without labels.
        selections: what both models select where sizes depend on data.
        note: one line on what is compared elsewhere; None where there is nothing.
    """

    fitted: int
    held_out: int
    outputs: tuple[Fidelity, ...]
    accuracy: tuple[float, float] | None
    selections: tuple[Selection, ...] = ()
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The "quality" of the JSON report."""
        before, after = self.accuracy or (None, None)
        return {
            "fitted_samples": self.fitted,
            "held_out_samples": self.held_out,
            "outputs": [fidelity.to_dict() for fidelity in self.outputs],
            "accuracy": {"before": before, "after": after},
            "selections": [each.to_dict() for each in self.selections],
            "note": self.note,
        }


@verified
def measure_quality(
    original: Source | Baseline,
    rewritten: Source,
    held_out: SamplesLike,
    *,
    fitted: int = 0,
    labels: Array | Sequence[int] | None = None,
) -> Quality:
    """Run both models in ONNX Runtime on samples held out.

    An example is in docs/python.md under "Comparing".

    Args:
        original: the model, or what it was found to do, of which the loaded model is used if it was kept.
        rewritten: the model judged against it.
        held_out: samples that no factor was fitted to, or what `open_samples` makes them of.
        fitted: how many it was fitted to, for the report.
        labels: the class of each sample held out, shape (len(held_out),), or None.

    Raises:
        RunError, MissingExtraError: a model does not run.
        CheckError: an output is missing or changed its shape or type.
        UsageError: the models have different inputs; or there are labels, but no output has a class for each
            sample.
    """
    if fitted < 0:
        raise UsageError(f"`fitted` {fitted}: give a number of 0 or more")
    known = None if labels is None else np.asarray(labels)
    if known is not None and (known.ndim != 1 or known.dtype.kind not in "iu"):
        raise UsageError("`labels`: give one whole number for each sample")
    with ExitStack() as stack:
        candidate = stack.enter_context(on_disk(rewritten, "rewritten"))
        if isinstance(original, Baseline):
            path, sights, first = original.path, original.where(), original.seen_in_onnxruntime
        else:
            path = stack.enter_context(on_disk(original, "original"))
            sights = find_sights(load(path).proto)
            first = partial(open_seeing, path, sights)
        sights = sights.within(load(candidate).proto)
        samples = as_samples(held_out, path, "held_out")
        with same_inputs(path, candidate, UsageError):
            return _measure((first(), open_seeing(candidate, sights)), sights, samples, fitted, known)


def _measure(
    runners: tuple[Runner, Runner], sights: Sights, held_out: Samples, fitted: int, labels: Array | None
) -> Quality:
    predicted: tuple[list[Array], list[Array]] = ([], [])

    def pairs() -> Iterator[tuple[Outputs, Outputs]]:
        for feeds in held_out.batches(BATCH):
            pair = runners[0].run(feeds), runners[1].run(feeds)
            for outputs, classes in zip(pair, predicted, strict=True):
                classes.append(_classes(outputs) if labels is not None else np.empty(0))
            yield pair

    outputs, picked = compare_outputs(pairs(), sights)
    accuracy = None
    if labels is not None:
        before, after = (np.concatenate(classes) for classes in predicted)
        known = labels[: len(before)]
        if len(known) != len(before):
            raise UsageError(f"`labels`: {len(labels)} classes for {len(before)} predictions")
        accuracy = float((before == known).mean()), float((after == known).mean())
    return Quality(
        fitted=fitted,
        held_out=len(held_out),
        outputs=outputs,
        accuracy=accuracy,
        selections=picked,
        note="; ".join(sights.notes) or None,
    )


def _classes(outputs: Outputs) -> Array:
    """The predicted classes: argmax of the first output that has one vector of scores for each sample."""
    for value in outputs.values():
        scores = np.asarray(value)
        if scores_samples(scores):
            flat: Array = scores.reshape(len(scores), -1).argmax(axis=1)
            return flat
    raise UsageError("`labels`: no output of the model has one score per class for each sample")
