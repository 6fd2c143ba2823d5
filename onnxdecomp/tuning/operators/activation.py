"""Activations, and functions of single values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.tuning.operators.arithmetic import lined_up


def of_one(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of PyTorch as that of an operator with one input and no attributes."""

    def call(x: Tensor) -> Tensor:
        return function(x)

    return call


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """LeakyRelu: x, below 0 alpha · x."""
    return functional.leaky_relu(x, alpha)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """PRelu: x, below 0 slope · x; the slope is broadcast as in NumPy."""
    return torch.where(x < 0, slope * x, x)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Elu: x, below 0 alpha · (exp x − 1)."""
    return functional.elu(x, alpha)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Celu: max(0, x) + min(0, alpha · (exp(x / alpha) − 1))."""
    return functional.celu(x, alpha)


def selu(
    x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Tensor:
    """Selu: gamma · x, below 0 gamma · alpha · (exp x − 1)."""
    return gamma * functional.elu(x, alpha)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """ThresholdedRelu: x above alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """HardSigmoid: alpha · x + beta between 0 and 1."""
    return (alpha * x + beta).clamp(0, 1)


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Shrink: what lies beyond ±lambd, moved by bias towards 0; else 0."""
    moved = x - bias * torch.sign(x)
    return torch.where(x.abs() > lambd, moved, torch.zeros_like(x))


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Gelu: x Φ(x), or its approximation by tanh."""
    return functional.gelu(x, approximate=approximate)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Swish: x · sigmoid(alpha · x)."""
    return x * torch.sigmoid(alpha * x)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Softmax along one axis."""
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """LogSoftmax along one axis."""
    return torch.log_softmax(x, axis)


def flat_softmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """Softmax before opset 13: over all axes from one on."""
    return torch.softmax(x.flatten(axis if axis >= 0 else axis + x.ndim), -1).reshape(x.shape)


def flat_log_softmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """LogSoftmax before opset 13: over all axes from one on."""
    return torch.log_softmax(x.flatten(axis if axis >= 0 else axis + x.ndim), -1).reshape(x.shape)


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip between two values, each of which may be absent; where they contradict, the upper counts."""
    above = x if low is None else torch.maximum(*lined_up(x, low))
    return above if high is None else torch.minimum(*lined_up(above, high))


def fixed_clip(x: Tensor, *, min: float | None = None, max: float | None = None) -> Tensor:
    """Clip before opset 11: the values are attributes."""
    return x if min is None and max is None else x.clamp(min, max)
