"""Resize and Upsample, axis by axis: every output is a weighted sum of a few inputs along each axis.

The arithmetic of coordinates is that of ONNX's definition of Resize.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onnxdecomp.tuning.operators.shaping import numbers


def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    axes: Sequence[int] | None = None,
    antialias: int = 0,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Resize to sizes or by scales, of all axes or of some.

    Raises:
        NotImplementedError: it crops, keeps the aspect, or smooths before it shrinks.
    """
    if antialias or keep_aspect_ratio_policy != "stretch":
        raise NotImplementedError("Resize that smooths or keeps the aspect")
    along = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    if scales is not None and scales.numel():
        factors = [float(each) for each in scales.tolist()]
        wanted = [int(x.shape[axis] * factor) for axis, factor in zip(along, factors, strict=True)]
    elif sizes is not None:
        wanted = numbers(sizes)
        factors = [size / x.shape[axis] for axis, size in zip(along, wanted, strict=True)]
    else:
        raise NotImplementedError("Resize without scales and sizes")
    for axis, size, factor in zip(along, wanted, factors, strict=True):
        if size == x.shape[axis] and factor == 1:
            continue
        places = _places(size, x.shape[axis], factor, coordinate_transformation_mode)
        if mode == "nearest":
            x = x.index_select(axis, _nearest(places, nearest_mode, x.shape[axis]).to(x.device))
        else:
            taps, weights = _linear(places) if mode == "linear" else _cubic(places, cubic_coeff_a)
            x = _weighted(x, axis, taps, weights, bool(exclude_outside))
    return x


def old_resize(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """Resize of opset 10, and Upsample: pixels begin at their corner."""
    return resize(
        x,
        None,
        scales,
        mode="nearest" if mode == "nearest" else "linear",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def fixed_upsample(x: Tensor, *, scales: Sequence[float], mode: str = "nearest") -> Tensor:
    """Upsample before opset 9: scales are an attribute."""
    return old_resize(x, torch.tensor(scales), mode=mode)


def _places(size: int, length: int, scale: float, mode: str) -> Tensor:
    """Where each output lies on the input's axis, in float64 (size,)."""
    x = torch.arange(size, dtype=torch.float64)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        # The size that counts is the one before it was rounded down.
        return x * (length - 1) / (scale * length - 1) if size > 1 else torch.zeros_like(x)
    if mode == "pytorch_half_pixel" and size == 1:
        return torch.zeros_like(x)
    if mode == "half_pixel_symmetric":
        # What a size rounded down cuts off is cut off on both sides.
        return length / 2 * (1 - size / (scale * length)) + (x + 0.5) / scale - 0.5
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (x + 0.5) / scale - 0.5
    raise NotImplementedError(f"Resize with coordinates by {mode}")


def _nearest(places: Tensor, rule: str, length: int) -> Tensor:
    rounded = {
        "floor": torch.floor(places),
        "ceil": torch.ceil(places),
        "round_prefer_floor": torch.ceil(places - 0.5),
        "round_prefer_ceil": torch.floor(places + 0.5),
    }[rule]
    return rounded.long().clamp(0, length - 1)


def _linear(places: Tensor) -> tuple[Tensor, Tensor]:
    """The two inputs beside each place, and their weights: (size, 2) each."""
    first = places.floor()
    share = places - first
    return first.long()[:, None] + torch.arange(2), torch.stack([1 - share, share], 1)


def _cubic(places: Tensor, a: float) -> tuple[Tensor, Tensor]:
    """The four inputs around each place, and their weights: (size, 4) each (Keys 1981)."""
    first = places.floor()
    away = ((places - first)[:, None] - torch.arange(-1, 3)).abs()
    near = ((a + 2) * away - (a + 3)) * away**2 + 1
    far = ((away - 5) * away + 8) * away * a - 4 * a
    return first.long()[:, None] + torch.arange(-1, 3), torch.where(away <= 1, near, far)


def _weighted(x: Tensor, axis: int, taps: Tensor, weights: Tensor, exclude: bool) -> Tensor:
    """Σ over taps of weight · x along an axis; beyond its ends stands the edge, or nothing."""
    length = x.shape[axis]
    if exclude:
        weights = weights * ((taps >= 0) & (taps < length))
        weights = weights / weights.sum(1, keepdim=True)
    shape = (-1, *[1] * (x.ndim - 1 - axis))
    places, shares = taps.clamp(0, length - 1).to(x.device), weights.to(x.device, x.dtype)
    parts = [x.index_select(axis, places[:, i]) * shares[:, i].reshape(shape) for i in range(places.shape[1])]
    return torch.stack(parts).sum(0) if len(parts) > 2 else parts[0] + parts[1]
