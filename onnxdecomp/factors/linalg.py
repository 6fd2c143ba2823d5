"""Leading singular vectors by way of Gram matrices, in float64, on TensorLy's current backend.

The left singular vectors of a matrix are the eigenvectors of its Gram matrix. Unfoldings of convolution
weights are wide, their Gram matrices small: this is several times faster than an SVD, and the squaring
costs no accuracy that a float32 weight has.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import tensorly as tl

from onnxdecomp.factors.chain import Floats

# An array of TensorLy's current backend.
Tensor: TypeAlias = Any

# Guard vectors per wanted one, and steps, of a subspace iteration from the space of the sweep before.
_GUARD = 0.25
_STEPS = 2
# Below this size, or where more than this share of the vectors is iterated, LAPACK is as fast.
SMALL = 128
_MOST = 0.6


def gram(matrix: Tensor) -> Tensor:
    """Matrix · matrixᵀ."""
    return tl.dot(matrix, tl.transpose(matrix))


def leading_space(gram: Tensor, rank: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The leading eigenvectors of a positive semidefinite matrix, from an earlier answer where there is one.

    Args:
        gram: shape (n, n), float64.
        rank: how many vectors are wanted.
        start: what this function returned for a matrix nearby: subspace iteration goes on from there, with
            guard vectors and a Rayleigh–Ritz step (Stewart 1969, Numer. Math. 13; Saad 2011, ch. 5).

    Returns:
        Eigenvalues and orthonormal eigenvectors (n, more than `rank` for the next start), **largest last**.
    """
    size = gram.shape[0]
    width = min(size, rank + int(_GUARD * rank) + 1)
    if start is None or size <= SMALL or width > _MOST * size:
        values, vectors = tl.eigh(gram)
        return values[-width:], vectors[:, -width:]
    basis, _ = tl.qr(tl.dot(gram, start))
    image = tl.dot(gram, basis)
    values, rotation = tl.eigh(tl.dot(tl.transpose(basis), image))
    # The image of the Ritz vectors is a step nearer to the space than they are, and costs no more.
    vectors, _ = tl.qr(tl.flip(tl.dot(image, rotation), 1))
    return values, tl.flip(vectors, 1)


def oriented(vectors: Tensor, rank: int) -> Floats:
    """The last `rank` columns as a NumPy array, the last one first, each with its largest entry positive.

    So the same weight gives the same bytes.
    """
    leading = np.asarray(tl.to_numpy(vectors))[:, ::-1][:, :rank]
    largest = np.take_along_axis(leading, np.abs(leading).argmax(axis=0)[None], axis=0)
    return np.asarray(leading * np.where(largest < 0, -1.0, 1.0))


def leading_vectors(matrix: Tensor, rank: int) -> Floats:
    """The `rank` leading left singular vectors of `matrix`, shape (rows, rank), largest first.

    Where the matrix has lower rank, the vectors go on to an orthonormal basis.
    """
    return oriented(tl.eigh(gram(tl.tensor(matrix)))[1], rank)


def squared_singular_values(matrix: Tensor) -> Floats:
    """The squared singular values of `matrix`, largest first, min(matrix.shape) of them."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values = tl.to_numpy(tl.eigh(gram(tl.tensor(wide)))[0])
    return np.asarray(np.clip(values[::-1], 0.0, None))


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
