"""Feeds as callers give them: dicts of arrays by input name, one alone or one by one."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np

from onnxdecomp.arguments import a_class
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import Feeds, InputSpec, as_array


@runtime_checkable
class FeedReader(Protocol):
    """What ONNX Runtime's CalibrationDataReader is."""

    def get_next(self) -> Any:
        """A feed, or None after the last one."""


@runtime_checkable
class Dataset(Protocol):
    """What PyTorch's Dataset is: samples by number, from 0 to its length, which need not end a loop."""

    def __getitem__(self, number: int, /) -> Any: ...

    def __len__(self) -> int: ...


def is_one_feed(source: object) -> bool:
    """Whether it is a feed, and not feeds: a dict, or an array for the only input, as nested lists too."""
    return isinstance(source, Mapping) or _is_array(source)


def is_dataset(source: object) -> TypeGuard[Dataset]:
    """Whether its samples are had by their numbers alone."""
    return isinstance(source, Dataset) and not isinstance(source, Iterable)


def feeds_of(source: Iterable[Any] | FeedReader | Dataset) -> Iterable[Any]:
    """The feeds of a source one by one: of a feed itself, of a reader, a dataset, an iterable of feeds."""
    if is_one_feed(source):
        return [source]
    if is_dataset(source):
        return (source[number] for number in range(len(source)))
    return iter(source.get_next, None) if isinstance(source, FeedReader) else source  # type: ignore[return-value]


def feed_arrays(feed: Any, specs: Sequence[InputSpec], name: str, *, copied: bool = False) -> Feeds:
    """The arrays of one feed, less those that are of no input.

    Args:
        feed: a dict of arrays by input name; for a single input its array will do; or a pair of either and
            its label.
        specs: of the inputs.
        name: what messages call the feed.
        copied: whether the arrays must have memory of their own.

    Raises:
        UsageError: it is no dict of arrays, or lacks an input.
    """
    if _is_labelled(feed):
        feed = feed[0]
    if not isinstance(feed, Mapping):
        _require_array(feed, specs, name)
        feed = {specs[0].name: feed}
    if missing := [spec.name for spec in specs if spec.name not in feed]:
        has = ", ".join(map(str, feed)) or "none"
        raise UsageError(f"{name} has no array for the input '{missing[0]}'; it has {has}")
    return {
        spec.name: as_array(feed[spec.name], f"{name}: input '{spec.name}'", copied=copied) for spec in specs
    }


def _require_array(feed: Any, specs: Sequence[InputSpec], name: str) -> None:
    """Refuse what is no array of a model's only input."""
    if len(specs) == 1 and _is_array(feed):
        return
    if isinstance(feed, str | os.PathLike):
        raise UsageError(f"{name} is a path; name one file, or the folder that the files are in")
    hint = "give dicts of arrays by input name"
    if len(specs) == 1 and isinstance(feed, Sequence) and any(map(is_one_feed, feed[:1])):
        hint = f"take its first element, or {hint}"
    raise UsageError(f"{name} is {a_class(type(feed))}; {hint}")


def _is_array(value: Any) -> bool:
    """Whether it is an array or a tensor, or lists of numbers, however deep."""
    if not isinstance(value, list | tuple):
        return hasattr(value, "shape")
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, numbers.Number | np.bool_)


def _is_labelled(feed: Any) -> bool:
    """Whether it is a pair of a feed and the labels of its samples, which have fewer axes than these."""
    if not isinstance(feed, list | tuple) or len(feed) != 2:
        return False
    first, label = feed
    if isinstance(first, Mapping):
        return True
    return hasattr(first, "shape") and len(getattr(label, "shape", ())) < len(first.shape)
