"""Samples opened: from a file, a folder, feeds or a reader, whatever the caller has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from onnx import ModelProto

from onnxdecomp.arguments import naming, verified
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Array, Source, as_model
from onnxdecomp.runtime import InputSpec, input_specs
from onnxdecomp.sampling.feeds import Dataset, FeedReader, feeds_of, is_dataset, is_one_feed
from onnxdecomp.sampling.preprocessing import Preprocessing
from onnxdecomp.sampling.samples import Samples
from onnxdecomp.sampling.sources import array_blocks, feed_bundles, path_blocks

# What functions take for samples.
SamplesLike: TypeAlias = Annotated[
    Samples | str | os.PathLike[str] | Array | Mapping[str, Any] | Iterable[Any] | FeedReader | Dataset,
    "samples, a path, an array, a dict of arrays by input name, or such dicts one by one",
]


def as_samples(source: SamplesLike, model: Source, parameter: str) -> Samples:
    """Samples as they are, and of anything else all that it has, as `open_samples`.

    Args:
        source: the samples.
        model: whose inputs to feed.
        parameter: by which they were given, for messages.
    """
    if isinstance(source, Samples):
        return source
    specs = _specs(model)
    with naming(parameter):
        return _open(source, specs, None, None, 0)


@verified
def open_samples(
    source: SamplesLike,
    model: Source,
    *,
    preprocessing: Preprocessing | None = None,
    count: int | None = None,
    seed: int = 0,
) -> Samples:
    """Samples for `model` from a file, a folder, feeds or a reader; types and shapes are checked at once.

    An example is in docs/python.md under "Samples".

    Args:
        source: one of

            * an .npz file, arrays named as the inputs (for a single input its sole array, sole 4-D array or
              sole array of floats will do), or an .npy file for a single input, samples along the first axis;
            * a folder of such files, in the order of their names; they may hold one sample without that axis;
            * a folder of ONNX test sets (test_data_set_0/input_0.pb and so on), or one such set;
            * a folder of images (jpg, jpeg, png, bmp, webp), in the order of their names;
            * a feed, a dict of arrays by input name with samples along the first axis, or without that axis
              of one sample; for a single input its array will do. It is read when it is needed;
            * an iterable of feeds, or an object whose get_next() returns feeds and then None (onnxruntime's
              CalibrationDataReader). They are copied: their arrays may be used again;
            * a Dataset of PyTorch, or whatever has samples by number and a length: only those drawn are read.

            Of a pair of a feed and its label, as datasets and loaders have them, the feed is taken.

            Arrays may be NumPy's, tensors of PyTorch, wherever they are, or lists of numbers.
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
        raise UsageError(f"`count` {count}: too few samples; ask for 1 or more")
    if seed < 0:
        raise UsageError(f"`seed` {seed}: give a number of 0 or more")
    specs = _specs(model)
    with naming("source"):
        return _open(source, specs, preprocessing, count, seed)


def _specs(model: Source) -> list[InputSpec]:
    # Of a protobuf whose data lie elsewhere the inputs are known all the same.
    return input_specs(model if isinstance(model, ModelProto) else as_model(model).proto)


def _open(
    source: SamplesLike,
    specs: Sequence[InputSpec],
    preprocessing: Preprocessing | None,
    count: int | None,
    seed: int,
) -> Samples:
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    one_pass = False
    if isinstance(source, str | os.PathLike):
        blocks = path_blocks(Path(source), specs, preprocessing)
    else:
        if is_dataset(source) and count is not None:
            source = [source[number] for number in _draw(len(source), count, seed)]
        feeds = feeds_of(source)
        one_pass = not isinstance(feeds, Sequence)
        copied = not is_one_feed(source)
        bundles = feed_bundles(feeds, specs, count if one_pass else None, copied=copied)
        blocks = array_blocks(bundles, specs, preprocessing, "the feeds")
    where = str(path) if path else "the feeds"
    total = sum(block.rows for block in blocks)
    if not total:
        raise UsageError(f"{where}: there are no samples")
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
