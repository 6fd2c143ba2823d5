"""What a rewrite did to the outputs on samples that no factor was fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxdecomp.comparing.checking import Baseline
from onnxdecomp.comparing.pairs import compare_outputs
from onnxdecomp.comparing.tally import Fidelity, class_axis
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Array, Source, on_disk
from onnxdecomp.runtime import Outputs, Runner, open_in_onnxruntime
from onnxdecomp.sampling import BATCH, Labels, Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Fidelity on held-out samples.

    Attributes:
        fitted: samples the factors were fitted to.
        held_out: samples measured.
        outputs: fidelity of each output.
        accuracy: top-1 accuracy before and after; None without labels.
    """

    fitted: int
    held_out: int
    outputs: tuple[Fidelity, ...]
    accuracy: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """The "quality" of the JSON report."""
        before, after = self.accuracy or (None, None)
        return {
            "fitted_samples": self.fitted,
            "held_out_samples": self.held_out,
            "outputs": [fidelity.to_dict() for fidelity in self.outputs],
            "accuracy": {"before": before, "after": after},
        }


def measure_quality(
    original: Source | Baseline,
    rewritten: Source,
    held_out: Samples,
    *,
    fitted: int = 0,
    labels: Labels | None = None,
) -> Quality:
    """Run both models in ONNX Runtime on samples held out.

    Args:
        original: the model, or what it was found to do, of which the loaded model is used if it was kept.
        rewritten: the model judged against it.
        held_out: samples that no factor was fitted to.
        fitted: how many it was fitted to, for the report.
        labels: the class of each sample held out, or None.

    Raises:
        RunError, MissingExtraError: a model does not run.
        CheckError: an output is missing or changed its shape or type.
        UsageError: there are labels, but no output has a class for each sample.
    """
    with on_disk(rewritten) as candidate:
        second = open_in_onnxruntime(candidate)
        if isinstance(original, Baseline):
            first = original.in_onnxruntime()
            return _measure(first, second, held_out, fitted, labels)
        with on_disk(original) as path:
            return _measure(open_in_onnxruntime(path), second, held_out, fitted, labels)


def _measure(first: Runner, second: Runner, held_out: Samples, fitted: int, labels: Labels | None) -> Quality:
    predicted: tuple[list[Array], list[Array]] = ([], [])

    def pairs() -> Iterator[tuple[Outputs, Outputs]]:
        for feeds in held_out.batches(BATCH):
            pair = first.run(feeds), second.run(feeds)
            for outputs, classes in zip(pair, predicted, strict=True):
                classes.append(_classes(outputs) if labels is not None else np.empty(0))
            yield pair

    outputs = tuple(compare_outputs(pairs()))
    accuracy = None
    if labels is not None:
        before, after = (np.concatenate(classes) for classes in predicted)
        known = labels[: len(before)]
        if len(known) != len(before):
            raise UsageError(f"`labels`: {len(labels)} classes for {len(before)} predictions")
        accuracy = float((before == known).mean()), float((after == known).mean())
    return Quality(fitted=fitted, held_out=len(held_out), outputs=outputs, accuracy=accuracy)


def _classes(outputs: Outputs) -> Array:
    """The predicted classes: argmax of the first output that has one vector of scores for each sample."""
    for value in outputs.values():
        scores = np.asarray(value)
        if scores.ndim >= 2 and scores[0].size == scores.shape[class_axis(scores)] > 1:
            flat: Array = scores.reshape(len(scores), -1).argmax(axis=1)
            return flat
    raise UsageError("`labels`: no output of the model has one score per class for each sample")
