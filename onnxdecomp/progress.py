"""Progress, as long work tells it: the stage, how much of it is done, and how much there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

# Called with (stage, done, total). What it raises ends the work: a StoppedError where what is known by then
# shall be kept, anything else to give it all up.
Progress = Callable[[str, int, int], None]
# How a search begins the stage of a model that it has tried; what follows is worth more than a moment's look.
TRIED = "tried "


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


def tracked(items: Sequence[T], stage: str, progress: Progress) -> Iterator[T]:
    """`items` one by one, and to `progress` how many of them are done."""
    progress(stage, 0, len(items))
    for done, item in enumerate(items, 1):
        yield item
        progress(stage, done, len(items))
