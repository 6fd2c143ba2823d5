"""Arrays made to fit an input: shapes checked, types cast, bytes preprocessed, values finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Array
from onnxdecomp.runtime import Feeds, InputSpec, is_floating
from onnxdecomp.sampling.images import ImageInput
from onnxdecomp.sampling.preprocessing import VALUES, Preprocessing

Convert = Callable[[Array], Array]


def takes_bytes_as_images(spec: InputSpec, array: Array) -> bool:
    """Whether `array` is bytes and the input takes floats: only preprocessing can tell what they mean."""
    return spec.dtype is not None and is_floating(spec.dtype) and array.dtype == np.uint8


def conversion(spec: InputSpec, array: Array, preprocessing: Preprocessing | None, where: str) -> Convert:
    """What turns samples of `array` into what the input takes; `array` has the axes of the input.

    Floats are cast to floats and integers to integers. Bytes for floats are images, N×H×W×C.

    Raises:
        UsageError: the type or the shape does not fit; the message says what is needed.
    """
    needs = f"{where}: input '{spec.name}' needs"
    if spec.dtype is None:
        raise UsageError(f"{needs} a non-numeric type, which cannot be read; it has {array.dtype}")
    if takes_bytes_as_images(spec, array):
        return _image_conversion(spec, array, preprocessing, where)
    both = (spec.dtype, array.dtype)
    castable = all(map(is_floating, both)) or all(dtype.kind in "iu" for dtype in both)
    if not castable and array.dtype != spec.dtype:
        raise UsageError(f"{needs} {spec.dtype}, the samples have {array.dtype}")
    require_shape(spec, array.shape, where)
    return partial(_cast, spec.dtype)


def with_sample_axis(arrays: Feeds, specs: Sequence[InputSpec]) -> Feeds:
    """The arrays of one feed, an array that lacks the first axis of its input as one sample of it."""
    ranks = {spec.name: len(spec.shape or ()) for spec in specs}
    return {
        name: array[None] if array.ndim and array.ndim == ranks[name] - 1 else array
        for name, array in arrays.items()
    }


def conformed(arrays: Feeds, specs: Sequence[InputSpec], where: str) -> Feeds:
    """The arrays of one feed as the inputs take them; for inputs that take no numbers, as they are.

    An array without the batch axis is one sample.

    Raises:
        UsageError: as `conversion`.
    """
    arrays = with_sample_axis(arrays, specs)
    converts = {
        spec.name: conversion(spec, arrays[spec.name], None, where)
        for spec in specs
        if spec.dtype is not None
    }
    return {name: converts[name](array) if name in converts else array for name, array in arrays.items()}


def _image_conversion(
    spec: InputSpec, array: Array, preprocessing: Preprocessing | None, where: str
) -> Convert:
    needs = f"{where}: input '{spec.name}' needs"
    if preprocessing is None or not preprocessing.has_values:
        raise UsageError(
            f"{needs} {spec.dtype}, the samples have uint8: say what 0 to 255 become, by {VALUES}"
        )
    images = ImageInput.of(spec, preprocessing, where)
    if array.ndim != 4 or array.shape[3] != images.channels:
        raise UsageError(f"{needs} bytes as N×H×W×{images.channels}, the samples have {_times(array.shape)}")
    require_image_shape(spec, images, array.shape[1:3], where)
    return images.convert


def require_image_shape(spec: InputSpec, images: ImageInput, size: tuple[int, ...], where: str) -> None:
    """Refuse images of `size` (height, width) that do not come to the shape of the input.

    Raises:
        UsageError: the message says which size to ask for.
    """
    height, width = size
    shape = images.shape(height, width)
    rows, columns = images.declared_size(spec)
    hint = f"; give `Preprocessing.size` {rows},{columns}" if rows and columns else ""
    require_shape(spec, shape, where, hint if (rows, columns) != (images.size or size) else "")


def require_shape(spec: InputSpec, shape: tuple[int, ...], where: str, hint: str = "") -> None:
    """Refuse a shape that does not fit the input; the first dimension counts samples, whatever it declares.

    Raises:
        UsageError: the message says what is needed, then `hint`.
    """
    if spec.shape is None:
        return
    sizes = zip(spec.shape[1:], shape[1:], strict=False)
    if len(spec.shape) != len(shape) or any(wanted not in (None, found) for wanted, found in sizes):
        raise UsageError(
            f"{where}: input '{spec.name}' needs shape {_times(spec.shape)}, "
            f"the samples have {_times(shape)}{hint}"
        )


def _times(shape: tuple[int | None, ...]) -> str:
    return "×".join("?" if dim is None else str(dim) for dim in shape) or "a scalar"


def _cast(dtype: np.dtype[np.generic], array: Array) -> Array:
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and refused as such
        return array.astype(dtype)


def require_values(spec: InputSpec, before: Array, after: Array, sample: str) -> None:
    """Refuse a sample with NaN or Inf, or with integers that the input's type cannot hold.

    Raises:
        UsageError: the message names the sample and the input.
    """
    if is_floating(after.dtype):
        if not np.isfinite(after).all():
            raise UsageError(f"{sample}: input '{spec.name}' has NaN or Inf; leave this sample out")
    elif after.dtype != before.dtype and (after != before).any():
        raise UsageError(f"{sample}: input '{spec.name}' has values that {after.dtype} cannot hold")
