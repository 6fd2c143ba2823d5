"""What every choice loses: from the spectra of a site, and what its errors do to the model's outputs.

The share of a site's output that a rank pair cannot carry is read off one higher-order SVD of its weight,
whitened by the channel covariance of its inputs (De Lathauwer, De Moor, Vandewalle 2000, SIAM J. Matrix Anal.
Appl. 21): with orthonormal factors the energy kept is that of the leading block of the core. How much of that
share arrives at the outputs is measured at a few ranks and interpolated between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.factors import Floats, Whitening
from onnxdecomp.planning import Choice

# Eigenvalues of the covariance below this share of the largest are raised to it.
_FLOOR = 1e-8
_SMALLEST = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """The energy of a core's leading blocks, over all groups.

    Attributes:
        kept: kept[r, s] is that of the first r input and s output directions, as a share of the whole;
            shape (C + 1, D + 1).
        matrix: matrix[r] is what rank r of the whitened weight as a matrix keeps, shape (min(C, D) + 1,);
            None for kernels wider than 1.
    """

    kept: Floats
    matrix: Floats | None

    def lost(self, choice: Choice) -> float:
        """The share of the output's energy that a choice loses at least, nearly: 0 to 1."""
        if choice.method == "svd" and self.matrix is not None:
            return float(1 - self.matrix[min(choice.ranks.output or 0, len(self.matrix) - 1)])
        most = (self.kept.shape[0] - 1, self.kept.shape[1] - 1)
        given = (choice.ranks.input, choice.ranks.output)
        r, s = (top if rank is None else min(rank, top) for rank, top in zip(given, most, strict=True))
        return float(1 - self.kept[r, s])


def find_core(weight: Floats, covariances: Sequence[Floats] | None) -> Core:
    """The core of a weight, whitened by the covariance of its inputs' channels.

    Args:
        weight: shape (D, C / groups, *kernel).
        covariances: one per group, shape (C / groups, C / groups), scaled alike; None for white inputs, where
            what is lost is of the weight.
    """
    groups = len(covariances) if covariances is not None else 1
    parts = np.split(weight.reshape(*weight.shape[:2], -1), groups)
    sums = np.zeros((weight.shape[1], len(weight) // groups))
    singular = np.zeros(min(sums.shape))
    for i, part in enumerate(parts):
        whitened = part
        if covariances is not None:
            root = Whitening.of(covariances[i], floor=_FLOOR, nothing=0.0).root()
            whitened = np.tensordot(part, root, (1, 0)).transpose(0, 2, 1)
        left, right = (_directions(np.moveaxis(whitened, axis, 0)) for axis in (0, 1))
        core = np.tensordot(right.T, np.tensordot(left.T, whitened, 1), (1, 1))  # C, D, taps
        sums += (core**2).sum(axis=2)
        if whitened.shape[2] == 1:
            singular += np.linalg.svd(whitened[:, :, 0], compute_uv=False) ** 2
    total = float(sums.sum()) or 1.0
    kept = np.zeros((sums.shape[0] + 1, sums.shape[1] + 1))
    kept[1:, 1:] = np.clip(sums.cumsum(axis=0).cumsum(axis=1) / total, 0, 1)
    one = weight[0, 0].size == 1
    return Core(kept, np.concatenate([[0.0], np.clip(singular.cumsum() / total, 0, 1)]) if one else None)


def _directions(tensor: Floats) -> Floats:
    """The left singular vectors of the unfolding along the first axis, strongest first."""
    unfolded = tensor.reshape(len(tensor), -1)
    return np.asarray(np.linalg.eigh(unfolded @ unfolded.T)[1][:, ::-1])


def transfer(points: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """How what a site loses becomes what the outputs lose, from a few measured points (lost, output loss).

    Linear in the logarithms between the points, proportional beyond them; never falling.
    """
    known = sorted((max(a, _SMALLEST), max(b, _SMALLEST)) for a, b in points)
    if not known:
        return lambda lost: lost
    x, y = np.log(np.array(known)).T
    y = np.maximum.accumulate(y)

    def outputs(lost: float) -> float:
        if lost <= _SMALLEST:
            return 0.0
        here = float(np.log(lost))
        inside = float(np.interp(here, x, y))
        return float(np.exp(inside + min(here - x[0], 0.0) + max(here - x[-1], 0.0)))

    return outputs
