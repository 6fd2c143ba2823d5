"""Blocks: samples that lie together.

Every source is a row of blocks: an array file or a set of feeds is one block of many samples, an image is
one of a single sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxdecomp.abridging import abridged
from onnxdecomp.runtime import Feeds


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Samples that lie together.

    Attributes:
        name: what messages call it: the file, or the number of the feed.
        file: where it lies; None for feeds made in Python.
        rows: how many samples it has.
        whole: inputs without a batch axis: every sample has all of them.
        read: one sample by its number; every array has a first axis of 1, but for those in `whole`.
    """

    name: str
    file: Path | None
    rows: int
    whole: frozenset[str]
    read: Callable[[int], Feeds]

    def sample_name(self, row: int) -> str:
        """What messages call the sample `row`."""
        return sample_name(self.name, self.rows, row)


def sample_name(name: str, rows: int, row: int) -> str:
    """What messages call the sample `row` of a block of that name, which has so many `rows`."""
    return name if rows == 1 else f"{name}[{row}]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """Arrays by input name, as they were found."""

    name: str
    file: Path | None
    arrays: Feeds
