"""The value every decomposition produces: the weights of a chain of convolutions (or matrix products)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def all_finite(*arrays: Floats) -> bool:
    """Whether no value is NaN or Inf."""
    return all(bool(np.isfinite(array).all()) for array in arrays)


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One convolution of a chain.

    Attributes:
        role: what it is called in the graph: "tucker_in", "svd_out", …
        weight: OIHW (or OI, OIL, OIDHW), float64, grouped by `groups`.
        axes: the spatial axes along which it takes the original's kernel, stride, pads and dilation; along
            the others it is 1 wide.
        groups: its channel groups.
    """

    role: str
    weight: Floats
    axes: tuple[int, ...]
    groups: int


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """The convolutions that replace one, in order of execution; the last one carries the bias.

    Attributes:
        links: the convolutions; no two of them share a spatial axis on which they are wider than 1.
        groups: channel groups of the original.
    """

    links: tuple[Link, ...]
    groups: int

    def reconstruct(self) -> Floats:
        """The weight of the single convolution that computes what the chain computes, OIHW, grouped."""
        return np.concatenate([_compose(self, group) for group in range(self.groups)])

    def finite(self) -> bool:
        """Whether no weight has NaN or Inf."""
        return all_finite(*(link.weight for link in self.links))

    def cast(self, dtype: np.dtype[np.generic]) -> Chain:
        """The chain as it will be stored: rounded to `dtype`, held in float64 again."""
        with np.errstate(over="ignore"):
            links = tuple(
                Link(old.role, old.weight.astype(dtype).astype(np.float64), old.axes, old.groups)
                for old in self.links
            )
        return Chain(links, self.groups)


def _compose(chain: Chain, group: int) -> Floats:
    first, *rest = (_dense(link, chain.groups, group) for link in chain.links)
    for weight in rest:
        first = _after(weight, first)
    return first


def _dense(link: Link, groups: int, group: int) -> Floats:
    """The link's weight within one of the original's groups, without groups of its own."""
    weight = np.split(link.weight, groups)[group]
    inner = link.groups // groups
    if inner == 1:
        return weight
    width = weight.shape[1]
    dense = np.zeros((weight.shape[0], width * inner, *weight.shape[2:]))
    for i, part in enumerate(np.split(weight, inner)):
        rows = len(part)
        dense[i * rows : (i + 1) * rows, i * width : (i + 1) * width] = part
    return dense


def _after(second: Floats, first: Floats) -> Floats:
    """The weight of `second` applied after `first`; on every axis one of them is 1 wide."""
    if math.prod(second.shape[2:]) == 1:
        return np.asarray(np.tensordot(second.reshape(second.shape[:2]), first, axes=1))
    if math.prod(first.shape[2:]) == 1:
        matrix = first.reshape(first.shape[:2])
        return np.asarray(np.einsum("or...,ri->oi...", second, matrix, optimize=True))
    return np.asarray(np.einsum("or...,ri...->oi...", second, first))
