"""Where samples come from: arrays in files, ONNX test sets, images, feeds made in Python."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Array
from onnxdecomp.runtime import Feeds, InputSpec
from onnxdecomp.sampling.blocks import Block, Bundle, sample_name
from onnxdecomp.sampling.conform import (
    Convert,
    conversion,
    require_image_shape,
    require_values,
    takes_bytes_as_images,
    with_sample_axis,
)
from onnxdecomp.sampling.feeds import feed_arrays
from onnxdecomp.sampling.files import read_arrays, read_test_set, test_sets
from onnxdecomp.sampling.images import SUFFIXES, ImageInput, require_pillow
from onnxdecomp.sampling.pixels import Pixels
from onnxdecomp.sampling.preprocessing import VALUES, Preprocessing


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


def feed_bundles(
    feeds: Iterable[Any], specs: Sequence[InputSpec], limit: int | None, *, copied: bool
) -> list[Bundle]:
    """The feeds as bundles; with a `limit`, no more of them than hold that many samples.

    Args:
        feeds: dicts of arrays by input name; for a single input arrays will do.
        specs: of the inputs.
        limit: of the samples; None for none.
        copied: keep copies, as of a source that may fill one array again and again.

    Raises:
        UsageError: a feed is no dict, or lacks an input.
    """
    bundles: list[Bundle] = []
    rows = 0
    for number, feed in enumerate(feeds):
        name = f"feed {number}"
        arrays = feed_arrays(feed, specs, name, copied=copied)
        bundle = _with_sample_axis(Bundle(name=name, file=None, arrays=arrays), specs)
        bundles.append(bundle)
        rows += _rows(bundle, specs, _whole(bundle, specs))
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
    rows = _rows(bundle, specs, whole)
    for name, array in bundle.arrays.items():
        if rows and not array.size:
            raise UsageError(f"{bundle.name}: input '{name}' has no values in {rows:,} samples")
    inputs = [
        (
            spec,
            bundle.arrays[spec.name],
            conversion(spec, bundle.arrays[spec.name], preprocessing, bundle.name),
        )
        for spec in specs
    ]
    read = partial(_read_row, inputs, whole, bundle.name, rows)
    return Block(name=bundle.name, file=bundle.file, rows=rows, whole=whole, read=read)


def _read_row(
    inputs: Sequence[tuple[InputSpec, Array, Convert]], whole: frozenset[str], name: str, rows: int, row: int
) -> Feeds:
    feeds = {}
    for spec, array, convert in inputs:
        before = array if spec.name in whole else array[row : row + 1]
        feeds[spec.name] = convert(before)
        require_values(spec, before, feeds[spec.name], sample_name(name, rows, row))
    return feeds


def _with_sample_axis(bundle: Bundle, specs: Sequence[InputSpec]) -> Bundle:
    for spec in specs:
        if spec.shape is None and bundle.arrays[spec.name].ndim == 0:
            raise UsageError(
                f"{bundle.name}: input '{spec.name}' needs samples along a first axis, has a scalar"
            )
    return replace(bundle, arrays=with_sample_axis(bundle.arrays, specs))


def _lead(arrays: Feeds, specs: Sequence[InputSpec]) -> InputSpec | None:
    """The input that tells how many samples there are: one whose batch is free before one whose is not."""
    batched = [s for s in specs if s.name in arrays and s.shape != () and arrays[s.name].ndim]
    free = [spec for spec in batched if spec.shape is None or spec.shape[0] is None]
    return next(iter(free or batched), None)


def _rows(bundle: Bundle, specs: Sequence[InputSpec], whole: Container[str]) -> int:
    arrays = {name: array for name, array in bundle.arrays.items() if name not in whole}
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
        raise UsageError(f"{needs}, which images are: leave out `scale`, `mean` and `std`, and presets")
    if images.dtype != np.uint8 and not given.has_values:
        raise UsageError(f"{needs}: say what 0 to 255 become, by {VALUES}")
    images = images.resizing_to_model(spec, where)
    require_image_shape(spec, images, images.size or (), where)
    require_pillow()
    pixels = Pixels(images.decoded)
    return tuple(
        Block(
            name=str(file),
            file=file,
            rows=1,
            whole=frozenset(),
            read=partial(_read_image, spec.name, images, pixels, _Place(file)),
        )
        for file in files
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an image lies; absolutely in another process, which may stand in another folder."""

    file: Path

    def __reduce__(self) -> tuple[type[_Place], tuple[Path]]:
        return _Place, (self.file.absolute(),)


def _read_image(name: str, images: ImageInput, pixels: Pixels, place: _Place, row: int) -> Feeds:
    return {name: images.convert(pixels.read(place.file))}
