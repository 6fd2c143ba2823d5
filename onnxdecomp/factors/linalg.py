"""Leading singular vectors by way of Gram matrices, in float64.

The left singular vectors of a matrix are the eigenvectors of its Gram matrix. Unfoldings of convolution
weights are wide, their Gram matrices small: this is several times faster than an SVD, and the squaring
costs no accuracy that a float32 weight has.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh, eigvalsh

from onnxdecomp.factors.chain import Floats


def leading_vectors(matrix: Floats, rank: int) -> Floats:
    """The `rank` leading left singular vectors of `matrix`, shape (rows, rank), largest first.

    The sign is fixed (largest entry positive), so that the same weight gives the same bytes. Where the
    matrix has lower rank, the vectors go on to an orthonormal basis.
    """
    size = len(matrix)
    _, vectors = eigh(matrix @ matrix.T, subset_by_index=(size - rank, size - 1), check_finite=False)
    leading = vectors[:, ::-1]
    largest = np.take_along_axis(leading, np.abs(leading).argmax(axis=0)[None], axis=0)
    return np.asarray(leading * np.where(largest < 0, -1.0, 1.0))


def squared_singular_values(matrix: Floats) -> Floats:
    """The squared singular values of `matrix`, largest first, min(matrix.shape) of them."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return np.asarray(np.clip(eigvalsh(gram, check_finite=False)[::-1], 0.0, None))


def truncated_svd(matrix: Floats, rank: int) -> tuple[Floats, Floats]:
    """Factors (rows, rank) and (rank, columns) of the best approximation of that rank, of equal norms.

    `rank` is at most min(matrix.shape).
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, left = truncated_svd(matrix.T, rank)
        return left.T, right.T
    # Squares of very large or small values would leave the range of float64.
    peak = float(np.abs(matrix).max()) or 1.0
    vectors = leading_vectors(matrix / peak, rank)
    projected = vectors.T @ (matrix / peak)
    scale = np.sqrt(np.linalg.norm(projected, axis=1))
    scale[scale == 0] = 1.0
    return vectors * (scale * np.sqrt(peak)), projected / scale[:, None] * np.sqrt(peak)
