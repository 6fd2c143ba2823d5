"""Reductions along axes, which are an attribute or, from opset 11, 13 or 18 on, an input; and rankings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onnxdecomp.tuning.operators.shaping import numbers

Axes = tuple[int, ...]


def reducing(function: Callable[[Tensor, Axes, bool], Tensor]) -> Callable[..., Tensor]:
    """An operator that reduces axes by `function`, which takes a tensor, axes, and whether they stay as 1."""

    def call(
        x: Tensor,
        given: Tensor | None = None,
        *,
        axes: Sequence[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        along = tuple(axes if axes is not None else numbers(given) if given is not None else ())
        if not along and noop_with_empty_axes:
            # Nothing is reduced, but what is done to single values is done: axes of one element.
            return function(x.unsqueeze(-1), (x.ndim,), False)
        return function(x, along or tuple(range(x.ndim)), bool(keepdims))

    return call


def total(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The sum; PyTorch widens integers."""
    return x.sum(axes, keepdim=keep).to(x.dtype) if axes else x


def mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The mean."""
    return x.mean(axes, keepdim=keep) if x.is_floating_point() else _exact_mean(x, axes, keep)


def _exact_mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return torch.div(x.sum(axes, keepdim=keep), count, rounding_mode="trunc").to(x.dtype)


def maximum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The largest value."""
    return x.amax(axes, keepdim=keep) if axes else x


def minimum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The smallest value."""
    return x.amin(axes, keepdim=keep) if axes else x


def product(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The product; PyTorch multiplies along one axis at a time."""
    for axis in sorted((axis % max(x.ndim, 1) for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep).to(x.dtype)
    return x


def norm1(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Σ |x|."""
    return total(x.abs(), axes, keep)


def norm2(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """(Σ x²)^½."""
    return total(x * x, axes, keep).sqrt().to(x.dtype)


def sum_of_squares(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Σ x²."""
    return total(x * x, axes, keep)


def log_sum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Ln Σ x."""
    return total(x, axes, keep).log()


def log_sum_exp(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Ln Σ exp x."""
    return torch.logsumexp(x, axes, keepdim=keep)


def ranking(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """ArgMax or ArgMin by `function` of PyTorch: the first of equal places, or the last."""

    def call(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        if not select_last_index:
            return function(x, axis, bool(keepdims))
        return x.shape[axis] - 1 - function(x.flip(axis), axis, bool(keepdims))

    return call


def top_k(
    x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """TopK: the k largest or smallest values along an axis, and where they stand; of equal ones the first."""
    values, places = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = int(k)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def fixed_top_k(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """TopK before opset 10: k is an attribute."""
    return top_k(x, torch.tensor(k), axis=axis)
