"""Images for a model's input: decoding by Pillow (extra "images"), and preprocessing of their bytes."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np

from onnxdecomp.errors import MissingExtraError, UsageError, first_line
from onnxdecomp.ir import Array, Shape
from onnxdecomp.runtime import InputSpec, is_floating
from onnxdecomp.sampling.preprocessing import Preprocessing

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """How one input takes images.

    Attributes:
        dtype: its element type.
        layout: "nchw" or "nhwc".
        channels: 3, or 1 for grey.
        size: height and width to resize to; None leaves images as they are.
        preprocessing: what happens to the bytes; for an input of bytes only its size and channel order.
    """

    dtype: np.dtype[np.generic]
    layout: str
    channels: int
    size: tuple[int, int] | None
    preprocessing: Preprocessing

    @classmethod
    def of(cls, spec: InputSpec, preprocessing: Preprocessing, where: str) -> ImageInput:
        """How the input `spec` takes images, as far as its shape and `preprocessing` say.

        Raises:
            UsageError: the input takes no images, the means or deviations do not fit its channels, or values
                become larger than its type can hold.
        """
        needs = f"{where}: input '{spec.name}'"
        bytes_or_floats = spec.dtype is not None and (spec.dtype == np.uint8 or is_floating(spec.dtype))
        if spec.dtype is None or not bytes_or_floats or len(_four(spec.shape)) != 4:
            raise UsageError(
                f"{needs} takes no images (4-D, of floats or bytes); give arrays of its own kind"
            )
        shape = _four(spec.shape)
        layout = preprocessing.layout or ("nhwc" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "nchw")
        channels = (shape[3] if layout == "nhwc" else shape[1]) or 3
        if channels not in (1, 3):
            raise UsageError(
                f"{needs} has {channels} channels as {layout}; images have 1 or 3: give `layout`, or arrays"
            )
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            if values is not None and np.size(values) not in (1, channels):
                raise UsageError(f"{needs} has {channels} channels, `{name}` has {np.size(values)} values")
        if spec.dtype != np.uint8:
            _require_finite(preprocessing, spec.dtype, needs)
        return cls(
            dtype=spec.dtype,
            layout=layout,
            channels=channels,
            size=cast(tuple[int, int] | None, preprocessing.size),
            preprocessing=preprocessing,
        )

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape one image of that size comes to, batch axis included."""
        height, width = self.size or (height, width)
        return (
            (1, height, width, self.channels) if self.layout == "nhwc" else (1, self.channels, height, width)
        )

    def resizing_to_model(self, spec: InputSpec, where: str) -> ImageInput:
        """With the size of the input's declared shape where none was asked for.

        Raises:
            UsageError: that is not known either.
        """
        height, width = self.declared_size(spec)
        if self.size is not None:
            return self
        if not height or not width:
            raise UsageError(
                f"{where}: input '{spec.name}' takes images of any size: give `Preprocessing.size` H,W"
            )
        return replace(self, size=(height, width))

    def declared_size(self, spec: InputSpec) -> Shape:
        """Height and width of the input's declared shape, None where unknown."""
        shape = _four(spec.shape)
        return shape[1:3] if self.layout == "nhwc" else shape[2:]

    def convert(self, pixels: Array) -> Array:
        """Bytes of shape N×H×W×C, RGB or grey, as this input takes them: resized, scaled, laid out.

        Raises:
            MissingExtraError: they must be resized and Pillow is not installed.
        """
        pixels = self.sized(pixels)
        if self.preprocessing.channels == "bgr":
            pixels = pixels[..., ::-1]
        if self.dtype != np.uint8:
            *_, (_, pixels) = _steps(self.preprocessing, pixels)
        if self.layout == "nchw":
            pixels = pixels.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(pixels, self.dtype)

    def sized(self, pixels: Array) -> Array:
        """Bytes of shape N×H×W×C in the size this input takes; raises as `convert` does."""
        if self.size in (None, pixels.shape[1:3]):
            return pixels
        return np.stack([self._resized(each) for each in pixels])

    def decoded(self, path: Path) -> Array:
        """The image at `path` in the size this input takes: bytes 1×H×W×C; raises as `read` does."""
        return self.sized(self.read(path))

    def _resized(self, pixels: Array) -> Array:
        pillow, (height, width) = _pillow(), self.size or (0, 0)
        image = pillow.fromarray(pixels[..., 0] if self.channels == 1 else pixels)
        resized = np.asarray(image.resize((width, height), pillow.Resampling.BILINEAR))
        return resized.reshape(height, width, self.channels)

    def read(self, path: Path) -> Array:
        """The image at `path`, turned upright as its EXIF says, without alpha: bytes 1×H×W×C.

        Raises:
            MissingExtraError: Pillow is not installed.
            UsageError: it cannot be read; the message names it.
        """
        pillow = _pillow()
        upright = importlib.import_module("PIL.ImageOps").exif_transpose
        # What Pillow's decoders raise on damaged files is anything; of too many pixels it warns.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pillow.DecompressionBombWarning)
                opened = pillow.open(path)
            with opened:
                image = upright(opened)
                if image.mode[0] in "IF":
                    raise ValueError("more than 8 bits per channel; save it with 8")
                # By way of RGBA, since transparency of a palette is no channel yet.
                whole = image.convert("RGBA") if "transparency" in image.info else image
                pixels = np.asarray(whole.convert("L" if self.channels == 1 else "RGB"))
        except Exception as error:
            raise UsageError(f"cannot read the image {path}: {first_line(error)}") from error
        return pixels.reshape(1, *pixels.shape[:2], self.channels)


def _steps(given: Preprocessing, pixels: Array) -> Iterator[tuple[str, Array]]:
    """What bytes become, channels last, after each attribute in turn, in float64."""
    scaled = pixels.astype(np.float64) * (1.0 if given.scale is None else given.scale)
    yield "scale", scaled
    centred = scaled - np.array(given.mean or 0.0)
    yield "mean", centred
    yield "std", centred / np.array(given.std or 1.0)


def _require_finite(given: Preprocessing, dtype: np.dtype[np.generic], needs: str) -> None:
    """Refuse values that bring a byte beyond the type; what lies between its ends then stays within it."""
    ends = np.array([[0], [255]], np.uint8)
    with np.errstate(all="ignore"):
        beyond = [name for name, values in _steps(given, ends) if not np.isfinite(values.astype(dtype)).all()]
        *_, (_, last) = _steps(given, ends)
        if not np.isfinite(last.astype(dtype)).all():
            raise UsageError(f"{needs}: `{beyond[0]}` makes values that {dtype} cannot hold; give another")


def _four(shape: Shape | None) -> Shape:
    return (None,) * 4 if shape is None else shape


def _pillow() -> ModuleType:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise MissingExtraError('Pillow is not installed: pip install "onnxdecomp[images]"') from error


def require_pillow() -> None:
    """Refuse images that could not be read, before any work is done.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    _pillow()
