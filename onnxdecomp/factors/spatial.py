"""Spatial decomposition: a k×1 then a 1×k convolution.

Jaderberg, Vedaldi, Zisserman 2014 (arXiv:1405.3866, scheme 2) with the closed-form solution of Tai et al.
2016 (arXiv:1511.06067): with the weight W (D, C, k₀, k₁) rearranged as a matrix of C·k₀ rows and D·k₁
columns, its truncated SVD gives the best pair of R vertical and horizontal filters. In 3-D the first
convolution takes the first axis (time) and the second the other two.
"""

from __future__ import annotations

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
    out, rest = weight.shape[0] // groups, weight.shape[3:]
    firsts, lasts = [], []
    for part in np.split(weight, groups):
        left, right = truncated_svd(rearranged(part), rank)
        firsts.append(right.reshape(rank, *weight.shape[1:3], *[1] * len(rest)))
        lasts.append(np.moveaxis(left.reshape(out, *rest, rank), -1, 1)[:, :, None])
    links = (
        Link("spatial_in", np.concatenate(firsts), (0,), groups),
        Link(
            "spatial_out", np.ascontiguousarray(np.concatenate(lasts)), tuple(range(1, 1 + len(rest))), groups
        ),
    )
    return Chain(links, groups)
