"""Feeds as callers give them: dicts of arrays by input name, one alone or one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import Feeds, InputSpec, as_array


@runtime_checkable
class FeedReader(Protocol):
    """What ONNX Runtime's CalibrationDataReader is."""

    def get_next(self) -> Any:
        """A feed, or None after the last one."""


def is_one_feed(source: object) -> bool:
    """Whether it is a feed, and not feeds: a dict, or an array for the only input."""
    return isinstance(source, Mapping) or hasattr(source, "shape")


def feeds_of(source: Iterable[Any] | FeedReader) -> Iterable[Any]:
    """The feeds of a source one by one: of a feed itself, of a reader, of an iterable of feeds."""
    if is_one_feed(source):
        return [source]
    return iter(source.get_next, None) if isinstance(source, FeedReader) else source


def feed_arrays(feed: Any, specs: Sequence[InputSpec], name: str, *, copied: bool = False) -> Feeds:
    """The arrays of one feed, less those that are of no input.

    Args:
        feed: a dict of arrays by input name; for a single input its array will do.
        specs: of the inputs.
        name: what messages call the feed.
        copied: whether the arrays must have memory of their own.

    Raises:
        UsageError: it is no dict of arrays, or lacks an input.
    """
    if not isinstance(feed, Mapping):
        if len(specs) != 1 or not hasattr(feed, "shape"):
            raise UsageError(f"{name} is a {type(feed).__name__}; give dicts of arrays by input name")
        feed = {specs[0].name: feed}
    if missing := [spec.name for spec in specs if spec.name not in feed]:
        has = ", ".join(map(str, feed)) or "none"
        raise UsageError(f"{name} has no array for the input '{missing[0]}'; it has {has}")
    return {
        spec.name: as_array(feed[spec.name], f"{name}: input '{spec.name}'", copied=copied) for spec in specs
    }
