"""Arithmetic between tensors, comparisons and logic; all broadcast as in NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of PyTorch as that of an operator with two inputs and no attributes."""

    def call(a: Tensor, b: Tensor) -> Tensor:
        return function(*lined_up(a, b))

    return call


def of_many(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A function of PyTorch, from left to right over as many inputs as there are."""

    def call(*inputs: Tensor) -> Tensor:
        return functools.reduce(lambda a, b: function(*lined_up(a, b)), inputs)

    return call


def lined_up(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both on one device: integers stay on the host, where shapes are computed, until data meet them."""
    if a.device == b.device:
        return a, b
    device = a.device if b.device.type == "cpu" else b.device
    return a.to(device), b.to(device)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Div: of integers the quotient is cut off towards 0."""
    a, b = lined_up(a, b)
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """Pow: the result has the type of the base."""
    base, exponent = lined_up(base, exponent)
    return torch.pow(base, exponent).to(base.dtype)


def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Mod: the sign is that of the divisor, or with `fmod` of the dividend."""
    return (torch.fmod if fmod else torch.remainder)(*lined_up(a, b))


def mean(*inputs: Tensor) -> Tensor:
    """Mean of tensors, element by element."""
    total: Tensor = of_many(torch.add)(*inputs)
    return total / len(inputs)


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Where: a where the condition is true, else b."""
    a, b = lined_up(a, b)
    return torch.where(condition.to(a.device), a, b)


def is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """IsInf, of the signs that are asked for."""
    return (x == float("inf")) & bool(detect_positive) | (x == -float("inf")) & bool(detect_negative)


def cumulative_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """CumSum along an axis, from its end where it is reversed, less the element itself where exclusive."""
    along = int(axis)
    turned = x.flip(along) if reverse else x
    total = turned.cumsum(along).to(x.dtype)
    total = total - turned if exclusive else total
    return total.flip(along) if reverse else total
