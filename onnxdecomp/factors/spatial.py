"""Spatial decomposition: a k×1 then a 1×k convolution.

Jaderberg, Vedaldi, Zisserman 2014 (arXiv:1405.3866, scheme 2) with the closed-form solution of Tai et al.
2016 (arXiv:1511.06067): with the weight W (D, C, k₀, k₁) rearranged as a matrix of C·k₀ rows and D·k₁
columns, its truncated SVD gives the best pair of R vertical and horizontal filters. In 3-D the first
convolution takes the first axis (time) and the second the other two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxdecomp.factors.chain import Chain, Floats, Link
from onnxdecomp.factors.linalg import truncated_svd


def rearranged(weight: Floats) -> Floats:
    """A weight (D, C, k₀, *rest) as the matrix (D·∏rest, C·k₀) whose SVD separates the first spatial axis."""
    ndim = weight.ndim
    moved = np.moveaxis(weight, (0, 1, 2), (0, ndim - 2, ndim - 1))  # D, *rest, C, k₀
    return moved.reshape(weight.shape[0] * int(np.prod(weight.shape[3:])), -1)


def factorise(weight: Floats, rank: int, groups: int) -> Chain:
    """Decompose a weight (C_out, C_in / groups, k₀, *rest), two spatial axes or more."""
    return spatial_chain(
        [truncated_svd(rearranged(part), rank) for part in np.split(weight, groups)], weight.shape[1:]
    )


def spatial_chain(parts: Sequence[tuple[Floats, Floats]], inner: tuple[int, ...]) -> Chain:
    """The chain of each group's factors (D·∏rest, R) and (R, C·k₀), for a weight (…, *inner)."""
    into, kernel, rest = inner[0], inner[1], inner[2:]
    rank, groups = parts[0][0].shape[1], len(parts)
    first = np.concatenate([right.reshape(rank, into, kernel, *[1] * len(rest)) for _, right in parts])
    lefts = [left.reshape(-1, *rest, rank) for left, _ in parts]
    last = np.concatenate([np.moveaxis(left, -1, 1)[:, :, None] for left in lefts])
    links = (
        Link("spatial_in", first, (0,), groups),
        Link("spatial_out", np.ascontiguousarray(last), tuple(range(1, 1 + len(rest))), groups),
    )
    return Chain(links, groups)
