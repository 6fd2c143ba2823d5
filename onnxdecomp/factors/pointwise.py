"""Truncated SVD of a 1×1 convolution or a matrix product.

The weight is a matrix W (D, C), and W ≈ U (Σ Vᵀ) with the R largest singular values is its best
approximation of rank R (Eckart and Young 1936): a 1×1 from C to R channels, then one from R to D. Σ is
shared evenly, so that neither factor leaves the range of a narrow element type.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxdecomp.factors.chain import Chain, Floats, Link
from onnxdecomp.factors.linalg import truncated_svd


def factorise(weight: Floats, rank: int, groups: int) -> Chain:
    """Decompose a weight (C_out, C_in / groups, 1, …) or (C_out, C_in) into two, `rank` channels a group."""
    parts = [truncated_svd(part.reshape(part.shape[:2]), rank) for part in np.split(weight, groups)]
    return svd_chain(parts, weight.ndim - 2)


def svd_chain(parts: Sequence[tuple[Floats, Floats]], axes: int) -> Chain:
    """The chain of each group's factors (D, R) and (R, C), for a Conv of that many spatial axes."""
    ones, groups = (1,) * axes, len(parts)
    first = np.concatenate([right for _, right in parts])
    last = np.concatenate([left for left, _ in parts])
    links = (
        Link("svd_in", first.reshape(*first.shape, *ones), tuple(range(axes)), groups),
        Link("svd_out", last.reshape(*last.shape, *ones), (), groups),
    )
    return Chain(links, groups)
