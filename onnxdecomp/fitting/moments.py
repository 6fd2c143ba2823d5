"""First and second moments of a convolution's input patches and outputs, summed over samples.

A convolution is linear in the patches x (C·∏k values each) of its input: y = W·x + b at every output
position. So all that samples say of it, for any weights, is in the means of x and y, cov(x) and cov(y, x).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from onnxdecomp.factors import Floats, all_finite

# Bytes of the patches that are in memory at a time.
_BLOCK = 1 << 27
# A mean square below the first is what remains where single precision underflows; a variance below the
# second, as a share of the mean square, is what it rounds to.
_NOTHING, _NOISE = 1e-30, 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How a convolution meets its input, one entry per spatial axis (ONNX operator Conv).

    A ConvTranspose does as a Conv of stride 1 whose inputs are spread among zeros, its taps backwards.

    Attributes:
        kernel: sizes.
        strides: of the output positions.
        dilations: between the taps.
        pads: zeros (before, after) each axis; below 0 so many values are left out.
        spread: of a ConvTranspose, how far apart its inputs come to lie: its strides. None for a Conv.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    spread: tuple[int, ...] | None = None


def patches(x: NDArray[Any], geometry: Geometry) -> Iterator[NDArray[np.float32]]:
    """The input patches of every output position, some samples at a time.

    Args:
        x: shape (N, C, *spatial).
        geometry: of the convolution.

    Yields:
        Shape (positions, ∏k, C), the taps in row-major order; positions of the samples in order, row-major.
    """
    axes = len(geometry.kernel)
    spans = [1 + (k - 1) * d for k, d in zip(geometry.kernel, geometry.dilations, strict=True)]
    padded = _padded(x if geometry.spread is None else _spread(x, geometry.spread), geometry.pads)
    windows = sliding_window_view(padded, spans, axis=tuple(range(2, 2 + axes))) if axes else padded
    steps = [slice(None, None, step) for step in (*geometry.strides, *geometry.dilations)]
    windows = windows[(slice(None), slice(None), *steps)]
    ordered = np.moveaxis(windows, 1, -1)  # N, *positions, *kernel, C
    if geometry.spread is not None:
        ordered = np.flip(ordered, tuple(range(1 + axes, 1 + 2 * axes)))
    taps = math.prod(geometry.kernel)
    step = max(1, _BLOCK // max(4 * math.prod(ordered.shape[1:]), 1))
    for start in range(0, len(ordered), step):
        block = ordered[start : start + step]
        yield np.ascontiguousarray(block, np.float32).reshape(-1, taps, x.shape[1])


def _spread(x: NDArray[Any], steps: tuple[int, ...]) -> NDArray[Any]:
    """The values of x that many steps apart on each axis, zeros between them."""
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], steps, strict=True)]
    wide = np.zeros((*x.shape[:2], *sizes), x.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in steps))] = x
    return wide


def _padded(x: NDArray[Any], pads: Sequence[tuple[int, int]]) -> NDArray[Any]:
    """With zeros around the spatial axes, or less where that many are below 0."""
    if not any(map(any, pads)):
        return x
    kept = [slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(pads, x.shape[2:], strict=True)]
    return np.pad(
        x[(slice(None), slice(None), *kept)], [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in pads)]
    )


def flattened(weight: Floats, groups: int) -> list[Floats]:
    """A weight (D, C / groups, *kernel) as a matrix (D / groups, P) per group, in the patches' order."""
    return np.split(np.moveaxis(weight, 1, -1).reshape(len(weight), -1), groups)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over positions of patches x (P,) and outputs y (D,), of one channel group; float64.

    Attributes:
        count: of positions.
        x: Σ x, shape (P,), taps before channels.
        y: Σ y, shape (D,).
        xx: Σ x xᵀ, shape (P, P).
        yx: Σ y xᵀ, shape (D, P).
        yy: Σ y², shape (D,).
    """

    count: int
    x: Floats
    y: Floats
    xx: Floats
    yx: Floats
    yy: Floats

    @classmethod
    def zero(cls, outputs: int, inputs: int) -> Moments:
        """Of no position."""
        shapes = ((inputs,), (outputs,), (inputs, inputs), (outputs, inputs), (outputs,))
        return cls(0, *(np.zeros(shape) for shape in shapes))

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> Moments:
        """With the positions of one block, x (n, P) and y (n, D), added in place."""
        # Products in single precision, sums in double.
        np.add(self.xx, x.T @ x, out=self.xx)
        np.add(self.yx, y.T @ x, out=self.yx)
        self.x.__iadd__(x.sum(axis=0, dtype=np.float64))
        self.y.__iadd__(y.sum(axis=0, dtype=np.float64))
        self.yy.__iadd__(np.square(y, dtype=np.float64).sum(axis=0))
        return Moments(self.count + len(x), self.x, self.y, self.xx, self.yx, self.yy)

    def __add__(self, other: Moments) -> Moments:
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__slots__)
        return Moments(*(a + b for a, b in pairs))

    def means(self) -> Moments:
        """The first moments alone, the products left out."""
        nothing = np.zeros((0, 0))
        return Moments(self.count, self.x, self.y, nothing, nothing, self.yy)

    def varies(self, centred: bool) -> bool:
        """Whether products in single precision can tell the patches from nothing.

        Args:
            centred: from their mean; the operator has a bias to take that.
        """
        square = float(np.trace(self.xx)) / (self.count * len(self.x))
        mean = float(np.square(self.x / self.count).mean()) if centred else 0.0
        return square - mean > max(_NOTHING, _NOISE * square)

    def finite(self) -> bool:
        """Whether every sum is."""
        return all_finite(self.xx, self.yx, self.yy)


def total(parts: Sequence[Moments]) -> Moments:
    """The sum of one or more."""
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result
