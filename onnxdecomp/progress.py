"""Progress, as long work tells it: the stage, how much of it is done, how much there is, and of what."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from onnxdecomp.abridging import abridged

T = TypeVar("T")

# The stage of a model that a search has tried; what is told of it is worth more than a moment's look.
TRIED = "tried"

_LOGGER = logging.getLogger("onnxdecomp")
_LOGGER.addHandler(logging.NullHandler())


@abridged
@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """What long work has just done.

    An example is in docs/python.md under "Progress and interruption".

    Attributes:
        stage: what is being done, in words: "fitting", "timing the choices".
        done: how much of it; 0 as the stage begins.
        total: how much there is.
        item: what was done last, as the name of a site, or one line on a model that a search has tried; None
            as the stage begins.
    """

    stage: str
    done: int
    total: int
    item: str | None = None


# What a listener raises ends the work: a StoppedError where what is known by then shall be kept, anything
# else to give it all up.
Progress = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """Tell nobody."""


def logged(progress: Progress) -> Progress:
    """`progress`, and Python's logging under the name of the package: stages at INFO, items at DEBUG.

    What is logged already stays as it is: a function that calls another passes on what it tells.
    """
    return progress if isinstance(progress, _Logged) else _Logged(progress)


class _Logged:
    """Tells a listener, and the log."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._stage = progress, ""

    def __call__(self, event: ProgressEvent) -> None:
        begins, self._stage = event.stage != self._stage, event.stage
        if event.stage == TRIED:
            _LOGGER.info("%s: %s", TRIED, event.item)
        elif event.item is not None:
            _LOGGER.debug("%s: %d of %d, %s", event.stage, event.done, event.total, event.item)
        if event.stage != TRIED and (begins or event.done in (0, event.total)):
            _LOGGER.info("%s: %d of %d", event.stage, event.done, event.total)
        self._progress(event)


@contextlib.contextmanager
def stage(name: str, progress: Progress) -> Iterator[None]:
    """Tell of work that is done in one piece."""
    progress(ProgressEvent(name, 0, 1))
    yield
    progress(ProgressEvent(name, 1, 1))


def tracked(items: Sequence[T], stage: str, progress: Progress, name: Callable[[T], str]) -> Iterator[T]:
    """`items` one by one, and to `progress` how many of them are done, and the name of the last."""
    progress(ProgressEvent(stage, 0, len(items)))
    for done, item in enumerate(items, 1):
        yield item
        progress(ProgressEvent(stage, done, len(items), name(item)))
