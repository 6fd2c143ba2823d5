"""Samples as batches: held out, in a new order every time, images flipped and moved."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Array
from onnxdecomp.runtime import Feeds, is_floating
from onnxdecomp.sampling import Samples

_SHARE, _LEAST, _MOST = 10, 16, 512
# Images are moved by up to this part of their shorter side.
_SHIFT = 8
_SMALLEST = 8


def part_samples(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """Samples to train on, and a tenth held out: at least 16, at most 512, and never more than half.

    Raises:
        UsageError: there are fewer than two, or than two batches where the model takes several at a time.
    """
    unit = samples.batch or 1
    units = len(samples) // unit
    if units < 2:
        one = "sample" if unit == 1 else f"batch of {unit} samples"
        raise UsageError(f"`samples`: tuning needs a {one} to train on and one more to hold out")
    wanted = min(max(len(samples) // _SHARE, _LEAST), _MOST)
    held = min(-(-wanted // unit), units // 2) * unit
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(samples))]
    return samples.subset(sorted(order[held:])), samples.subset(sorted(order[:held]))


def endless(samples: Samples, batch: int, seed: int, *, augment: bool) -> Iterator[Feeds]:
    """Batches without end, all samples before any comes again.

    Args:
        samples: to train on.
        batch: how many at a time.
        seed: same seed, same batches.
        augment: whether images are flipped and moved.
    """
    rng = np.random.default_rng([seed, 1])
    while True:
        order = [int(i) for i in rng.permutation(len(samples))]
        for feeds in samples.batches(batch, order):
            yield varied(feeds, rng) if augment else feeds


def varied(feeds: Feeds, rng: np.random.Generator) -> Feeds:
    """Feeds whose only input, where that holds images, is flipped and moved, each image by itself."""
    if len(feeds) != 1:
        return feeds
    ((name, images),) = feeds.items()
    axes = _image_axes(images)
    if axes is None:
        return feeds
    first = np.moveaxis(images, axes, (1, 2))
    shift = max(1, min(first.shape[1:3]) // _SHIFT)
    around = [(0, 0), (shift, shift), (shift, shift), *[(0, 0)] * (first.ndim - 3)]
    wide = np.pad(first, around, mode="reflect")
    flips = rng.random(len(first)) < 0.5
    places = rng.integers(0, 2 * shift + 1, (len(first), 2))
    made = np.empty_like(first)
    height, width = first.shape[1:3]
    for i, (top, left) in enumerate(places):
        image = wide[i, top : top + height, left : left + width]
        made[i] = image[:, ::-1] if flips[i] else image
    return {name: np.ascontiguousarray(np.moveaxis(made, (1, 2), axes))}


def _image_axes(images: Array) -> tuple[int, int] | None:
    """Where the rows and the columns of images are; None where an array holds none."""
    if images.ndim != 4 or not is_floating(images.dtype):
        return None
    for channels, axes in ((1, (2, 3)), (3, (1, 2))):
        if images.shape[channels] in (1, 3) and min(images.shape[axis] for axis in axes) >= _SMALLEST:
            return axes
    return None
