"""Normalisations, as they are computed at inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> Tensor:
    """BatchNormalization with the stored statistics, each (C,); `spatial` and `training_mode` are refused.

    Raises:
        NotImplementedError: it would train, or normalise every place by itself.
    """
    if training_mode or not spatial:
        raise NotImplementedError("BatchNormalization that trains, or is not spatial")
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """InstanceNormalization: every channel of every sample by itself; scale and bias (C,)."""
    axes = tuple(range(2, x.ndim))
    shape = (-1, *[1] * len(axes))
    return _standard(x, axes, epsilon) * scale.reshape(shape) + bias.reshape(shape)


def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNormalization over all axes from one on; also the mean, and one through the deviation."""
    variance, mean = torch.var_mean(x, _from(axis, x), correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    product = (x - mean) * inverse * scale
    return product if bias is None else product + bias, mean, inverse


def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """RMSNormalization over all axes from one on."""
    square = (x * x).mean(_from(axis, x), keepdim=True)
    return x * torch.rsqrt(square + epsilon) * scale


def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """GroupNormalization: groups of channels by themselves; scale and bias (C,)."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    parts = x.reshape(x.shape[0], num_groups, -1)
    standard = _standard(parts, (2,), epsilon).reshape(x.shape)
    return standard * scale.reshape(shape) + bias.reshape(shape)


def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """MeanVarianceNormalization over some axes."""
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred / ((centred**2).mean(tuple(axes), keepdim=True).sqrt() + 1e-9)


def local_response(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """LRN across channels: x / (bias + alpha / size · Σ x²)^beta over `size` neighbours."""
    before = (size - 1) // 2
    squares = functional.pad((x * x).flatten(2).transpose(1, 2), (before, size - 1 - before))
    sums = squares.unfold(2, size, 1).sum(-1).transpose(1, 2).reshape(x.shape)
    return x / (bias + alpha / size * sums) ** beta


def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """LpNormalization along one axis; what has no length stays 0."""
    length = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(length == 0, torch.zeros_like(x), x / torch.where(length == 0, 1, length))


def _from(axis: int, x: Tensor) -> tuple[int, ...]:
    return tuple(range(axis if axis >= 0 else axis + x.ndim, x.ndim))


def _standard(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + epsilon)
