"""Pools: over windows, and over everything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.tuning.operators.windows import each, excess, find_pads, padded

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_CONVS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """MaxPool without indices, of which `storage_order` speaks."""
    count = len(kernel_shape)
    stride, dilation = each(strides, count), each(dilations, count)
    around = find_pads(auto_pad, pads, x.shape[2:], kernel_shape, stride, dilation)
    if ceil_mode:
        around = _longer(x, around, kernel_shape, stride, dilation)
    lowest = -float("inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    return _MAX[count](padded(x, around, lowest), list(kernel_shape), stride, 0, dilation)


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """AveragePool; what is padded counts where that is said, what sizes are rounded up by never does."""
    count = len(kernel_shape)
    stride, dilation = each(strides, count), each(dilations, count)
    around = find_pads(auto_pad, pads, x.shape[2:], kernel_shape, stride, dilation)
    longer = _longer(x, around, kernel_shape, stride, dilation) if ceil_mode else around
    mean = _means(padded(x, longer), kernel_shape, stride, dilation)
    if not any(map(any, longer)) or (count_include_pad and longer == around):
        return mean
    ones = torch.ones_like(x[:1, :1])
    if count_include_pad:
        ones = padded(ones, around, 1.0)
        longer = [(0, last - behind) for (_, last), (_, behind) in zip(longer, around, strict=True)]
    return mean / _means(padded(ones, longer), kernel_shape, stride, dilation)


def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """LpPool: the p-norm over each window."""
    count = len(kernel_shape)
    stride, dilation = each(strides, count), each(dilations, count)
    around = find_pads(auto_pad, pads, x.shape[2:], kernel_shape, stride, dilation)
    if ceil_mode:
        around = _longer(x, around, kernel_shape, stride, dilation)
    size = torch.Size(kernel_shape).numel()
    powers = _means(padded(x.abs() ** p, around), kernel_shape, stride, dilation) * size
    return powers ** (1 / p)


def global_average_pool(x: Tensor) -> Tensor:
    """GlobalAveragePool: (N, C, *sizes) becomes (N, C, 1, …)."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """GlobalMaxPool: (N, C, *sizes) becomes (N, C, 1, …)."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def _longer(
    x: Tensor,
    around: Sequence[tuple[int, int]],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    """Pads that make the last window whole."""
    missing = excess(x.shape[2:], around, kernel, stride, dilation)
    return [(before, behind + more) for (before, behind), more in zip(around, missing, strict=True)]


def _means(x: Tensor, kernel: Sequence[int], stride: list[int], dilation: list[int]) -> Tensor:
    """The mean over each window of what is padded already."""
    count = len(kernel)
    if max(dilation) == 1:
        return _MEAN[count](x, list(kernel), stride)
    # PyTorch's own averages know no dilation.
    ones = torch.full(
        (x.shape[1], 1, *kernel), 1 / torch.Size(kernel).numel(), dtype=x.dtype, device=x.device
    )
    return _CONVS[count](x, ones, None, stride, 0, dilation, x.shape[1])
