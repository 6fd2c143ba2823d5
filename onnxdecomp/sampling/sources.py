"""Where samples come from: arrays in files, ONNX test sets, images, feeds made in Python.

Every source is a row of blocks: an array file or a set of feeds is one block of many samples, an image is
one of a single sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import Feeds, InputSpec
from onnxdecomp.sampling.conform import conversion, require_image_shape, require_values, takes_bytes_as_images
from onnxdecomp.sampling.files import read_arrays, read_test_set, test_sets
from onnxdecomp.sampling.images import SUFFIXES, ImageInput, require_pillow
from onnxdecomp.sampling.pixels import Pixels
from onnxdecomp.sampling.preprocessing import VALUE_OPTIONS, Preprocessing


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
        return self.name if self.rows == 1 else f"{self.name}[{row}]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """Arrays by input name, as they were found."""

    name: str
    file: Path | None
    arrays: Feeds


def path_blocks(
    path: Path, specs: Sequence[InputSpec], preprocessing: Preprocessing | None
) -> tuple[Block, ...]:
    """The samples in an .npz or .npy file, a folder of them, of images, or of ONNX test sets.

    Raises:
        UsageError: there are none, they cannot be read or do not fit the inputs.
        MissingExtraError: there are images and Pillow is not installed.
    """
    if not path.is_dir():
        bundles = [Bundle(name=str(path), file=path, arrays=read_arrays(path, specs))]
        return array_blocks(bundles, specs, preprocessing, str(path))
    if sets := test_sets(path):
        bundles = [Bundle(name=str(each), file=each, arrays=read_test_set(each, specs)) for each in sets]
        return array_blocks(bundles, specs, preprocessing, str(path))
    files = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
    arrays = [each for each in files if each.suffix.lower() in (".npy", ".npz")]
    images = [each for each in files if each.suffix.lower() in SUFFIXES]
    if arrays and images:
        raise UsageError(f"{path} has both images ({images[0].name}) and arrays ({arrays[0].name}): keep one")
    if images:
        return image_blocks(images, specs, preprocessing, str(path))
    if not arrays:
        raise UsageError(
            f"{path} has no samples: no .npy or .npz, no {', '.join(SUFFIXES)}, no test_data_set_0; "
            "its other folders are not searched"
        )
    bundles = [Bundle(name=str(each), file=each, arrays=read_arrays(each, specs)) for each in arrays]
    return array_blocks(bundles, specs, preprocessing, str(path))


def feed_bundles(feeds: Iterable[Feeds], specs: Sequence[InputSpec], limit: int | None) -> list[Bundle]:
    """The feeds as bundles; with a `limit`, no more of them than hold that many samples.

    Raises:
        UsageError: a feed is no dict, or lacks an input.
    """
    bundles: list[Bundle] = []
    rows = 0
    for number, feed in enumerate(feeds):
        name = f"feed {number}"
        if not isinstance(feed, Mapping):
            raise UsageError(f"{name} is a {type(feed).__name__}; give dicts of arrays by input name")
        if missing := [spec.name for spec in specs if spec.name not in feed]:
            has = ", ".join(map(str, feed)) or "none"
            raise UsageError(f"{name} has no array for the input '{missing[0]}'; it has {has}")
        arrays = {spec.name: np.asarray(feed[spec.name]) for spec in specs}
        bundles.append(Bundle(name=name, file=None, arrays=arrays))
        rows += _rows(arrays, specs)
        if limit is not None and rows >= limit:
            break
    return bundles


# Arrays
# ------


def array_blocks(
    bundles: Sequence[Bundle], specs: Sequence[InputSpec], preprocessing: Preprocessing | None, where: str
) -> tuple[Block, ...]:
    """The samples in `bundles`, checked against the inputs but for their values.

    Raises:
        UsageError: a type, a shape or a number of samples does not fit, or preprocessing has nothing to do.
    """
    bundles = [_with_sample_axis(bundle, specs) for bundle in bundles]
    whole = frozenset().union(*(_whole(bundle, specs) for bundle in bundles))
    if preprocessing is not None and not any(
        takes_bytes_as_images(spec, bundle.arrays[spec.name]) for bundle in bundles for spec in specs
    ):
        raise UsageError(
            f"{where}: preprocessing is for images, and for bytes (uint8) where the model takes floats; "
            "these samples are neither, so leave its options out"
        )
    return tuple(_array_block(bundle, specs, preprocessing, whole) for bundle in bundles)


def _array_block(
    bundle: Bundle, specs: Sequence[InputSpec], preprocessing: Preprocessing | None, whole: frozenset[str]
) -> Block:
    arrays = bundle.arrays
    rows = _rows({name: array for name, array in arrays.items() if name not in whole}, specs)
    converts = {spec.name: conversion(spec, arrays[spec.name], preprocessing, bundle.name) for spec in specs}

    def read(row: int) -> Feeds:
        feeds = {}
        for spec in specs:
            array = arrays[spec.name]
            before = array if spec.name in whole else array[row : row + 1]
            feeds[spec.name] = converts[spec.name](before)
            require_values(spec, before, feeds[spec.name], block.sample_name(row))
        return feeds

    block = Block(name=bundle.name, file=bundle.file, rows=rows, whole=whole, read=read)
    return block


def _with_sample_axis(bundle: Bundle, specs: Sequence[InputSpec]) -> Bundle:
    arrays = dict(bundle.arrays)
    for spec in specs:
        array = arrays[spec.name]
        if spec.shape and array.ndim and array.ndim == len(spec.shape) - 1:
            arrays[spec.name] = array[None]
        elif spec.shape is None and array.ndim == 0:
            raise UsageError(
                f"{bundle.name}: input '{spec.name}' needs samples along a first axis, has a scalar"
            )
    return Bundle(name=bundle.name, file=bundle.file, arrays=arrays)


def _lead(arrays: Feeds, specs: Sequence[InputSpec]) -> InputSpec | None:
    """The input that tells how many samples there are: one whose batch is free before one whose is not."""
    batched = [s for s in specs if s.name in arrays and s.shape != () and arrays[s.name].ndim]
    free = [spec for spec in batched if spec.shape is None or spec.shape[0] is None]
    return next(iter(free or batched), None)


def _rows(arrays: Feeds, specs: Sequence[InputSpec]) -> int:
    lead = _lead(arrays, specs)
    return 1 if lead is None else len(arrays[lead.name])


def _whole(bundle: Bundle, specs: Sequence[InputSpec]) -> set[str]:
    """The inputs without a batch axis: scalars, and a first axis fixed at another size than the batch."""
    arrays = bundle.arrays
    lead = _lead(arrays, specs)
    whole, counts = set(), {}
    for spec in specs:
        array = arrays[spec.name]
        if (
            lead is None
            or spec.shape == ()
            or array.ndim == 0
            or (
                len(array) != len(arrays[lead.name])
                and spec.shape
                and len(array) == spec.shape[0]
                and (not lead.shape or lead.shape[0] != spec.shape[0])
            )
        ):
            whole.add(spec.name)
        else:
            counts[spec.name] = len(array)
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise UsageError(f"{bundle.name}: give as many samples of every input; found {found}")
    return whole


# Images
# ------


def image_blocks(
    files: Sequence[Path], specs: Sequence[InputSpec], preprocessing: Preprocessing | None, where: str
) -> tuple[Block, ...]:
    """One sample per image file, decoded when it is read for the first time.

    Raises:
        UsageError: the model does not take one image, or preprocessing lacks what only its user knows.
        MissingExtraError: Pillow is not installed.
    """
    if len(specs) != 1:
        raise UsageError(
            f"{where}: images feed one input, the model has {len(specs)}; give arrays by name (.npz)"
        )
    (spec,) = specs
    given = preprocessing or Preprocessing()
    images = ImageInput.of(spec, given, where)
    needs = f"{where}: input '{spec.name}' needs {spec.dtype}"
    if images.dtype == np.uint8 and given.has_values:
        raise UsageError(f"{needs}, which images are: leave out `scale`, `mean`, `std` and `PRESETS`")
    if images.dtype != np.uint8 and not given.has_values:
        raise UsageError(f"{needs}: say what 0 to 255 become, by {VALUE_OPTIONS}")
    images = images.resizing_to_model(spec, where)
    require_image_shape(spec, images, images.size or (), where)
    require_pillow()
    pixels = Pixels(lambda file: images.sized(images.read(file)))
    return tuple(
        Block(
            name=str(file),
            file=file,
            rows=1,
            whole=frozenset(),
            read=partial(_read_image, spec.name, images, pixels, file),
        )
        for file in files
    )


def _read_image(name: str, images: ImageInput, pixels: Pixels, file: Path, row: int) -> Feeds:
    return {name: images.convert(pixels.read(file))}
