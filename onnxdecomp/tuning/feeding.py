"""Samples as steps: what is held out, and which samples each step takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Array
from onnxdecomp.runtime import Feeds
from onnxdecomp.sampling import Labels, Samples, shuffled, spared
from onnxdecomp.tuning.augmenting import varied


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Portion:
    """Samples that are computed in one piece.

    Attributes:
        feeds: of the model.
        rows: how many samples they are.
        labels: their classes, shape (rows,); None where they are not known.
    """

    feeds: Feeds
    rows: int
    labels: Labels | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feeding:
    """Which samples a step takes: a function of its number alone, whoever asks, and in whatever order.

    Attributes:
        samples: to train on; all are taken before any comes again.
        labels: their classes, or None.
        batch: samples in a step, over all processes.
        seed: same seed, same steps.
        augment: whether images are varied.
    """

    samples: Samples
    labels: Labels | None = None
    batch: int
    seed: int
    augment: bool

    def step(self, number: int, parts: int, most: int, mine: slice = slice(None)) -> list[Portion]:
        """The samples of a step, dealt.

        Args:
            number: of the step, from 0.
            parts: into how many parts they are dealt.
            most: samples in a portion; a part that has more is several.
            mine: which of the parts.
        """
        unit = self.samples.batch or 1
        count = max(1, round(self.batch / unit)) * unit
        positions = np.arange(number * count, (number + 1) * count).reshape(-1, unit)
        portions: list[Portion] = []
        for part in np.array_split(positions, parts)[mine]:
            # Even portions: a small one that is left over would cost as much time as a large one.
            pieces = -(-part.size // max(most, unit)) if part.size else 1
            for piece in np.array_split(part, pieces):
                portions += self._portions(piece.reshape(-1))
        return portions

    def _portions(self, positions: Array) -> Iterator[Portion]:
        if not positions.size:
            return
        indices = self._indices(positions)
        rngs = [np.random.default_rng([self.seed, 2, int(position)]) for position in positions]
        yield from portions_of(
            self.samples, len(indices), indices, self.labels, rngs if self.augment else None
        )

    def _indices(self, positions: Array) -> list[int]:
        """Which samples stand at these places of an endless row of them."""
        unit = self.samples.batch or 1
        epochs, places = np.divmod(positions, len(self.samples) // unit * unit)
        orders = {
            epoch: np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.samples))
            for epoch in set(epochs.tolist())
        }
        return [int(orders[epoch][place]) for epoch, place in zip(epochs.tolist(), places, strict=True)]


def portions_of(
    samples: Samples,
    size: int,
    indices: Sequence[int] | None = None,
    labels: Labels | None = None,
    rngs: Sequence[np.random.Generator] | None = None,
) -> Iterator[Portion]:
    """Samples in portions, as `Samples.batches` deals them.

    Args:
        samples: the samples.
        size: of a portion.
        indices: which of them, from 0; None is all.
        labels: classes of all samples, or None.
        rngs: one for each index, to vary its image by; None leaves images as they are.

    Raises:
        UsageError: as `Samples.batches`; or there are labels, and samples that fill no batch of the model.
    """
    chosen = range(len(samples)) if indices is None else indices
    classes = None if labels is None else labels[list(chosen)]
    done = 0
    for feeds in samples.batches(size, chosen):
        rows = _rows(samples, feeds)
        here = slice(done, done + rows)
        done += rows
        yield Portion(
            feeds=feeds if rngs is None else varied(feeds, rngs[here]),
            rows=rows,
            labels=None if classes is None else classes[here],
        )
    if classes is not None and done != len(classes):
        raise UsageError("`labels`: the model takes several samples at a time, and these have various shapes")


def _rows(samples: Samples, feeds: Feeds) -> int:
    """How many samples are stacked; inputs without a batch axis do not tell."""
    whole = samples.blocks[0].whole
    return next((len(array) for name, array in feeds.items() if name not in whole), 1)


def part_samples(samples: Samples, seed: int, seen: Collection[int] = ()) -> tuple[list[int], list[int]]:
    """Indices of samples to train on, and of some held out, see `spared`: new to the fit, as far as it goes.

    Of samples that were dealt with the same seed, fits have seen the others first.

    Args:
        samples: all of them.
        seed: of the draw.
        seen: places in the source of those that are known to be fitted to.

    Raises:
        UsageError: there are fewer than two, or than two batches where the model takes several at a time.
    """
    unit = samples.batch or 1
    if len(samples) // unit < 2:
        one = "sample" if unit == 1 else f"batch of {unit} samples"
        raise UsageError(f"`samples`: tuning needs a {one} to train on and one more to hold out")
    known = set(seen)
    order = sorted(shuffled(len(samples), seed), key=lambda i: samples.indices[i] not in known)
    rest = len(samples) - spared(samples)
    return sorted(order[:rest]), sorted(order[rest:])
