"""Conv, ConvTranspose and the matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.tuning.operators.windows import each, find_pads, padded

_CONVS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Conv: x (N, C, *sizes), weight (D, C / group, *kernel), bias (D,)."""
    count, kernel = x.ndim - 2, weight.shape[2:]
    stride, dilation = each(strides, count), each(dilations, count)
    around = find_pads(auto_pad, pads, x.shape[2:], kernel, stride, dilation)
    even = all(before == behind >= 0 for before, behind in around)
    inner = [before for before, _ in around] if even else 0
    whole = x if even else padded(x, around)
    return _CONVS[count](whole, weight, bias, stride, inner, dilation, group)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """ConvTranspose: x (N, C, *sizes), weight (C, D / group, *kernel), bias (D,)."""
    count = x.ndim - 2
    stride, dilation = each(strides, count), each(dilations, count)
    whole = _TRANSPOSED[count](x, weight, None, stride, 0, 0, group, dilation)
    more = list(output_padding) if output_padding is not None else [0] * count
    if output_shape is not None:
        around = _surplus(auto_pad, whole.shape[2:], more, list(output_shape)[-count:])
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        sizes = [size * step for size, step in zip(x.shape[2:], stride, strict=True)]
        around = _surplus(auto_pad, whole.shape[2:], more, sizes)
    else:
        around = find_pads(auto_pad, pads, x.shape[2:], weight.shape[2:], stride, dilation)
    sides = [(-before, extra - behind) for (before, behind), extra in zip(around, more, strict=True)]
    product = padded(whole, sides)
    return product if bias is None else product + bias.reshape(-1, *[1] * count)


def _surplus(
    rule: str, whole: Sequence[int], more: Sequence[int], wanted: Sequence[int]
) -> list[tuple[int, int]]:
    """What is cut off before and behind each axis for the product to have the size that is wanted."""
    found = []
    for length, extra, size in zip(whole, more, wanted, strict=True):
        total = length + extra - size
        less = total // 2
        found.append((less, total - less) if rule == "SAME_UPPER" else (total - less, less))
    return found


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Gemm: alpha · A B + beta · C, each matrix transposed where that is said."""
    product = (a.T if transA else a) @ (b.T if transB else b)
    product = product if alpha == 1 else alpha * product
    if c is None:
        return product
    return product + (c if beta == 1 else beta * c)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """MatMul, as numpy.matmul."""
    return torch.matmul(a, b)


def einsum(*inputs: Tensor, equation: str) -> Tensor:
    """Einsum; blanks in the equation mean nothing."""
    return torch.einsum(equation.replace(" ", ""), *inputs)
