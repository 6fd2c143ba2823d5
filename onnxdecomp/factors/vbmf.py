"""The rank of a noisy matrix by variational Bayes.

The global analytic solution of empirical variational Bayesian matrix factorisation: Nakajima, Sugiyama,
Babacan, Tomioka 2013, "Global Analytic Solution of Fully-observed Variational Bayesian Matrix
Factorization", JMLR 14 (theorem 2 and corollary 2; the noise variance as in its section 3.4).
"""

from __future__ import annotations

import math

import numpy as np

from onnxdecomp.factors.chain import Floats

# τ̲ ≈ 2.5129 √α solves Φ(τ) + Φ(τ/α) = 0 (the paper's equation 27) for 0 < α ≤ 1.
_TAU = 2.5129
# Squared singular values below this share of the largest are rounding noise, not noise of the matrix.
_FLOOR = 1e-14
_GRID = 512


def vbmf_rank(squares: Floats, rows: int, columns: int) -> int:
    """The rank at which signal ends and noise begins.

    Args:
        squares: squared singular values of the matrix, min(rows, columns) of them, largest first.
        rows: of the matrix.
        columns: of the matrix.

    Returns:
        0 to min(rows, columns).
    """
    small, large = sorted((rows, columns))
    if not squares.size or squares[0] == 0:
        return 0
    squares = np.maximum(squares, _FLOOR * squares[0])
    alpha = small / large
    tau = _TAU * math.sqrt(alpha)
    edge = (1 + tau) * (1 + alpha / tau)
    variance = _noise_variance(squares, small, large, alpha, edge)
    return int((squares > large * variance * edge).sum())


def _noise_variance(squares: Floats, small: int, large: int, alpha: float, edge: float) -> float:
    """σ² that minimises the free energy (equation 33), between the bounds of the paper's theorem 3."""
    most = min(math.ceil(small / (1 + alpha)) - 1, len(squares)) - 1
    upper = squares.sum() / (small * large)
    lower = (
        max(squares[most + 1] / (large * edge), squares[most + 1 :].mean() / large)
        if most + 1 < small
        else 0.0
    )
    if not lower < upper:
        return float(upper)

    def energy(log: float) -> float:
        return _free_energy(math.exp(log), squares, large, alpha, edge)

    from scipy.optimize import minimize_scalar  # slow to load, and most ranks are found without it

    # Over log σ², for the bounds may lie powers of ten apart; on a grid first, for there are local minima.
    grid = np.linspace(math.log(max(lower, upper * 1e-14)), math.log(upper), _GRID)
    best = int(np.argmin([energy(log) for log in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)])
    found = minimize_scalar(energy, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return math.exp(float(found.x if found.fun <= energy(grid[best]) else grid[best]))


def _free_energy(variance: float, squares: Floats, large: int, alpha: float, edge: float) -> float:
    x = squares / (large * variance)
    signal, noise = x[x > edge], x[x <= edge]
    shifted = signal - (1 + alpha)
    tau = 0.5 * (shifted + np.sqrt(np.maximum(shifted**2 - 4 * alpha, 0.0)))
    return float(
        (noise - np.log(noise)).sum()
        + (signal - tau).sum()
        + np.log((tau + 1) / signal).sum()
        + alpha * np.log(tau / alpha + 1).sum()
    )
