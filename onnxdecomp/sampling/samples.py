"""Samples of a model's inputs, drawn from a source and read when they are needed."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Annotated, TypeAlias, overload

import numpy as np

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import Feeds
from onnxdecomp.sampling.blocks import Block

# How many samples go into one run where the model takes any number.
BATCH = 32


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Samples of a model's inputs, read when they are needed; they can be pickled.

    `len(samples)` counts them, `samples[3]` is the feed of one, `samples[2:5]` are samples, and a loop over
    them goes feed by feed: arrays by input name, with a first axis of 1 but for inputs without a batch axis.

    An example is in docs/python.md under "Samples".

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

    @overload
    def __getitem__(self, index: int) -> Feeds: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Feeds | Samples:
        """The feed of one sample, or the samples of a stretch."""
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        place = range(len(self))[operator.index(index)]
        return next(replace(self, batch=None).batches(1, [place]))

    def __iter__(self) -> Iterator[Feeds]:
        """The feeds one by one, of a single sample each, even where the model takes several at a time."""
        return replace(self, batch=None).batches(1)

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

    @verified
    def subset(self, indices: Sequence[int]) -> Samples:
        """The samples at `indices`, which count from 0 to len(self) − 1.

        Raises:
            UsageError: one of them is none of these.
        """
        return replace(self, indices=self._at(indices), note=None)

    def _at(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The places in the source of the samples at `indices`."""
        wanted = tuple(indices)
        for index in wanted:
            if not (hasattr(index, "__index__") and 0 <= index < len(self)):
                raise UsageError(
                    f"`indices` {index}: the {len(self)} samples count from 0 to {len(self) - 1}"
                )
        return tuple(self.indices[index] for index in wanted)

    @verified
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
        if size < 1:
            raise UsageError(f"`size` {size}: a feed has 1 sample or more")
        return self._batches(self.batch or size, self.indices if indices is None else self._at(indices))

    def _batches(self, size: int, wanted: Sequence[int]) -> Iterator[Feeds]:
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


# What functions take where no model tells how to open samples.
Opened: TypeAlias = Annotated[Samples, "Samples, which `open_samples` makes for a model"]


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
