"""Whitening: the square root of a covariance and its inverse, which turn correlated inputs into white ones.

‖(W − Ŵ) x‖² over inputs of covariance Σ is, in the mean, ‖(W − Ŵ) Σ^½‖²: a decomposition of W Σ^½ that is
undone by Σ^-½ minimises the error of outputs, not of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxdecomp.factors.chain import Floats

# A largest eigenvalue below it is rounding noise: there is no variance at all.
_TINY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Whitening:
    """The eigenvectors of a covariance Σ and the square roots of its eigenvalues.

    Attributes:
        vectors: orthonormal columns, shape (C, C).
        roots: of the eigenvalues, ascending, shape (C,).
    """

    vectors: Floats
    roots: Floats

    @classmethod
    def of(cls, covariance: Floats, *, floor: float, nothing: float) -> Whitening:
        """Of a symmetric matrix (C, C), its small eigenvalues raised so that Σ^-½ exists.

        Args:
            covariance: Σ; rounding may have made some of its eigenvalues negative.
            floor: the least eigenvalue, as a share of the largest.
            nothing: stands for the largest where there is no variance; with 0 there is no Σ^-½ then.
        """
        values, vectors = np.linalg.eigh(covariance)
        largest = values[-1] if values[-1] > _TINY else nothing
        return cls(vectors=vectors, roots=np.sqrt(np.maximum(values, floor * largest)))

    def root(self) -> Floats:
        """Σ^½."""
        return self.vectors * self.roots @ self.vectors.T

    def inverse(self) -> Floats:
        """Σ^-½."""
        return self.vectors / self.roots @ self.vectors.T

    def undone(self, basis: Floats) -> Floats:
        """Σ^-½ times the columns of a narrow matrix (C, R)."""
        return self.vectors / self.roots @ (self.vectors.T @ basis)
