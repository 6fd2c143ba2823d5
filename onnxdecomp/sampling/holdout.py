"""Samples to fit to, and others to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Source
from onnxdecomp.sampling.labels import Labels, LabelsLike, labels_file, read_labels
from onnxdecomp.sampling.opening import SamplesLike, as_samples
from onnxdecomp.sampling.samples import Opened, Samples

DEFAULT_FITTED = 256
# Samples held out at most, and their least share of a source that has no more than were asked for.
MOST_HELD_OUT = 1000
_LEAST_SHARE = 8
# Of what tuning may use a tenth tells how it does, and is not trained on: at least and at most so many.
_SPARED_SHARE, _SPARED_LEAST, _SPARED_MOST = 10, 16, 512
# What tuning could use is not all measured on: a part of the source is, and of a small one a larger part.
_TUNED_SHARE, _TUNED_LEAST, _TUNED_FEW = 5, 100, 3


def hold_out(
    samples: Samples, count: int, seed: int = 0, most: int = MOST_HELD_OUT
) -> tuple[Samples, Samples]:
    """A seeded draw of `count` samples to fit to, and of others to measure on, `most` at most.

    Where the source has hardly more than `count`, an eighth of it is held out.

    Raises:
        UsageError: fewer than three samples, or a count below two.
    """
    total = len(samples)
    if count < 2:
        raise UsageError(f"`count` {count}: fitting needs at least 2, 64 or more do well")
    if total < 3:
        have = "1 sample" if total == 1 else f"{total} samples"
        raise UsageError(f"`samples`: {have}, but fitting needs 2 and one more to measure on")
    fitted = min(count, total - max(1, total // _LEAST_SHARE))
    order = shuffled(total, seed)
    held = order[fitted : fitted + most]
    return samples.subset(sorted(order[:fitted])), samples.subset(sorted(held))


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in an order that the seed alone decides: fits take of its beginning."""
    return [int(i) for i in np.random.default_rng(seed).permutation(count)]


def spared(samples: Samples) -> int:
    """How many of the samples tuning holds out: a tenth, at least 16, at most 512, and never over half."""
    unit = samples.batch or 1
    wanted = min(max(len(samples) // _SPARED_SHARE, _SPARED_LEAST), _SPARED_MOST)
    return min(-(-wanted // unit), len(samples) // unit // 2) * unit


@abridged
@verified
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleSets:
    """Samples dealt for their uses.

    An example is in docs/python.md under "Rewriting".

    Attributes:
        fitted: to fit to.
        held_out: to measure on.
        trained: to tune on, which can use more than fitting; None for those that are fitted to.
        labels: the classes of those held out; None where they are not known.
        labels_path: the file that they were read of; None where there is none.
    """

    fitted: Samples
    held_out: Samples
    trained: Samples | None = None
    labels: Labels | None = None
    labels_path: Path | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and self.labels.shape != (len(self.held_out),):
            raise UsageError(f"`labels`: give one for each of the {len(self.held_out)} samples held out")

    @classmethod
    @verified
    def draw(
        cls,
        samples: Opened,
        count: int = DEFAULT_FITTED,
        labels: LabelsLike | None = None,
        *,
        tuned: bool = False,
    ) -> SampleSets:
        """A seeded draw of samples to fit to, and others to measure on.

        Where there are hardly more than `count`, an eighth is held out; of many, 1,000.

        Args:
            samples: all that there are.
            count: how many to fit to.
            labels: the classes of all samples, as `read_labels` takes them.
            tuned: leave more than those to tune on: a fifth is held out at most, of few a third;
                and fit to fewer where what judges the tuning would not be new to the fit.

        Raises:
            UsageError: there are too few samples, or the labels do not match them.
        """
        enough = max(len(samples) // _TUNED_SHARE, min(len(samples) // _TUNED_FEW, _TUNED_LEAST))
        most = enough if tuned else MOST_HELD_OUT
        fitted, held_out = hold_out(samples, count, most=min(most, MOST_HELD_OUT))
        trained = None
        if tuned:
            measured = set(held_out.indices)
            trained = samples.subset([i for i, each in enumerate(samples.indices) if each not in measured])
            # What judges the tuning must be new to the fit, too.
            fewer = max(2, len(trained) - spared(trained))
            fitted = fitted.subset(sorted(shuffled(len(fitted), 0)[:fewer]))
        known = read_labels(labels, held_out) if labels is not None else None
        path = labels_file(labels) if labels is not None else None
        return cls(fitted=fitted, held_out=held_out, trained=trained, labels=known, labels_path=path)

    @property
    def tuned_on(self) -> Samples:
        """The samples to tune on."""
        return self.trained if self.trained is not None else self.fitted

    def sources(self) -> set[Path]:
        """The files that samples and labels are read of."""
        samples = self.fitted.sources() | self.tuned_on.sources()
        return samples | ({self.labels_path} if self.labels_path is not None else set())


def as_sets(
    samples: SampleSets | SamplesLike, model: Source, parameter: str, *, tuned: bool = False
) -> SampleSets:
    """Samples dealt for their uses as they are, and of all else a draw; see `as_samples` and `draw`."""
    if isinstance(samples, SampleSets):
        return samples
    return SampleSets.draw(as_samples(samples, model, parameter), tuned=tuned)
