"""Samples of a model's inputs, drawn from a source and read when they are needed."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from onnx import ModelProto

from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Source, as_model
from onnxdecomp.runtime import Feeds, InputSpec, input_specs
from onnxdecomp.sampling.preprocessing import Preprocessing
from onnxdecomp.sampling.sources import Block, array_blocks, feed_bundles, path_blocks

# How many samples go into one run where the model takes any number.
BATCH = 32


class FeedReader(Protocol):
    """What ONNX Runtime's CalibrationDataReader is."""

    def get_next(self) -> Any:
        """A feed, or None after the last one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Samples of a model's inputs, read when they are needed.

    Attributes:
        blocks: all that the source has, drawn or not.
        indices: the samples drawn, by their place in the source, ascending unless a subset orders them
            otherwise.
        batch: how many the model takes at a time; None for any number.
        path: the file or folder they come from; None for feeds made in Python.
        note: one line on samples left out since they fill no batch; None where there are none.
    """

    blocks: tuple[Block, ...]
    indices: tuple[int, ...]
    batch: int | None
    path: Path | None
    note: str | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def total(self) -> int:
        """How many samples the source has, drawn or not."""
        return sum(block.rows for block in self.blocks)

    @property
    def names(self) -> list[str]:
        """What messages call each sample: its file, with its place there where the file has several."""
        return [block.sample_name(row) for block, row in self._places(self.indices)]

    @property
    def files(self) -> list[Path | None]:
        """The file of each sample, or its test set's folder; None for feeds made in Python."""
        return [block.file for block, _ in self._places(self.indices)]

    def sources(self) -> set[Path]:
        """Every file that the source has, drawn or not, resolved: what must not be overwritten."""
        files = [block.file for block in self.blocks if block.file is not None]
        inside = [each for file in files if file.is_dir() for each in file.iterdir()]
        return {file.resolve() for file in (*files, *inside)}

    def subset(self, indices: Sequence[int]) -> Samples:
        """The samples at `indices`, which count from 0 to len(self) − 1."""
        return replace(self, indices=tuple(self.indices[i] for i in indices), note=None)

    def batches(self, size: int, indices: Sequence[int] | None = None) -> Iterator[Feeds]:
        """Feeds of up to `size` samples, stacked along the first axis, in order.

        A fixed batch of the model overrides `size`; samples that do not fill it are left out. Samples of
        other shapes, or of other values of an input without batch axis, never share a feed.

        Args:
            size: samples per feed.
            indices: which samples, counting from 0 to len(self) − 1; None is all.

        Raises:
            UsageError: an image cannot be read, a sample has NaN or Inf, or no batch is full.
        """
        wanted = self.indices if indices is None else [self.indices[i] for i in indices]
        size = self.batch or size
        full = False
        for group in self._groups(wanted, size):
            if self.batch in (None, len(group)):
                full = True
                yield _stacked(group, self._whole)
        if wanted and not full:
            raise UsageError(f"the model takes {size} samples at a time; there are not as many of one shape")

    def _groups(self, indices: Sequence[int], size: int) -> Iterator[list[Feeds]]:
        group: list[Feeds] = []
        for block, row in self._places(indices):
            feeds = block.read(row)
            if len(group) == size or (group and not _stackable(group[0], feeds, self._whole)):
                yield group
                group = []
            group.append(feeds)
        if group:
            yield group

    @property
    def _whole(self) -> frozenset[str]:
        return self.blocks[0].whole

    def _places(self, indices: Sequence[int]) -> Iterator[tuple[Block, int]]:
        ends = list(accumulate(block.rows for block in self.blocks))
        for index in indices:
            number = bisect_right(ends, index)
            yield self.blocks[number], index - (ends[number] - self.blocks[number].rows)


def _stackable(first: Feeds, other: Feeds, whole: frozenset[str]) -> bool:
    return all(
        np.array_equal(first[name], other[name]) if name in whole else first[name].shape == other[name].shape
        for name in first
    )


def _stacked(feeds: Sequence[Feeds], whole: frozenset[str]) -> Feeds:
    return {
        name: array if name in whole else np.concatenate([each[name] for each in feeds])
        for name, array in feeds[0].items()
    }


def open_samples(
    source: str | os.PathLike[str] | Iterable[Feeds] | FeedReader,
    model: Source,
    *,
    preprocessing: Preprocessing | None = None,
    count: int | None = None,
    seed: int = 0,
) -> Samples:
    """Samples for `model` from a file, a folder, feeds or a reader; types and shapes are checked at once.

    Args:
        source: one of

            * an .npz file, arrays named as the inputs (for a single input its sole array, sole 4-D array or
              sole array of floats will do), or an .npy file for a single input, samples along the first axis;
            * a folder of such files, in the order of their names; they may hold one sample without that axis;
            * a folder of ONNX test sets (test_data_set_0/input_0.pb and so on), or one such set;
            * a folder of images (jpg, jpeg, png, bmp, webp), in the order of their names;
            * an iterable of feeds, dicts of arrays by input name with samples along the first axis, or an
              object whose get_next() returns such dicts and then None (onnxruntime's CalibrationDataReader).
        model: whose inputs to feed: a path, or the model itself.
        preprocessing: for images, and for bytes (uint8, N×H×W×C) where the model takes floats.
        count: draw that many where there are more, without replacement, in the order of the source; None
            takes all. What is neither a path nor a sequence is read once and may never end: of that, the
            first `count`.
        seed: of the draw.

    Raises:
        UsageError: there are no samples, they cannot be read, or they do not fit the model.
        MissingExtraError: there are images and Pillow is not installed.
    """
    if count is not None and count < 1:
        raise UsageError(f"{count} samples are too few; ask for 1 or more")
    # Of a protobuf whose data lie elsewhere the inputs are known all the same.
    specs = input_specs(model if isinstance(model, ModelProto) else as_model(model).proto)
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    if isinstance(source, str | os.PathLike):
        blocks = path_blocks(Path(source), specs, preprocessing)
    else:
        feeds = iter(source.get_next, None) if hasattr(source, "get_next") else source
        limit = None if isinstance(feeds, Sequence) else count
        blocks = array_blocks(feed_bundles(feeds, specs, limit), specs, preprocessing, "the feeds")
    where = str(path) if path else "the feeds"
    total = sum(block.rows for block in blocks)
    if not total:
        raise UsageError(f"{where}: there are no samples")
    one_pass = path is None and not isinstance(source, Sequence)
    batch = _fixed_batch(specs, blocks[0].whole)
    indices = _draw(total, count, None if one_pass else seed)
    kept = len(indices) // (batch or 1) * (batch or 1)
    if not kept:
        raise UsageError(f"{where}: the model takes {batch} samples at a time; there are {len(indices)}")
    lost = len(indices) - kept
    note = f"{lost} of {len(indices)} samples left out: the model takes {batch} at a time" if lost else None
    return Samples(blocks=blocks, indices=indices[:kept], batch=batch, path=path, note=note)


def _fixed_batch(specs: Sequence[InputSpec], whole: frozenset[str]) -> int | None:
    sizes = [spec.shape[0] for spec in specs if spec.shape and spec.name not in whole]
    return next((size for size in sizes if size), None)


def _draw(total: int, count: int | None, seed: int | None) -> tuple[int, ...]:
    if count is None or count >= total:
        return tuple(range(total))
    if seed is None:
        return tuple(range(count))
    return tuple(sorted(np.random.default_rng(seed).choice(total, count, replace=False).tolist()))
