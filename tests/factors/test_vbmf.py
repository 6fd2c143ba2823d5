"""The rank that variational Bayes finds, against matrices of known rank and against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxdecomp.factors.linalg import squared_singular_values
from onnxdecomp.factors.vbmf import vbmf_rank

# rows and columns: square, wide and tall, like the unfoldings of Conv weights and the weights of Gemm layers.
SIZES = [(32, 32), (64, 64), (16, 144), (64, 576), (32, 1152), (288, 32), (512, 10), (64, 96), (9, 64)]


def edge(rows: int, columns: int) -> tuple[float, float]:
    """α and the threshold x̲ = (1 + τ̲)(1 + α/τ̲), τ̲ = 2.5129√α, on γ²/(Mσ²) (JMLR 14, theorem 2)."""
    alpha = min(rows, columns) / max(rows, columns)
    tau = 2.5129 * math.sqrt(alpha)
    return alpha, (1 + tau) * (1 + alpha / tau)


def most(rows: int, columns: int) -> int:
    """Half the ranks that noise leaves room for; see `test_true_rank_is_found`."""
    alpha, _ = edge(rows, columns)
    return int(min(rows, columns) / (1 + alpha) / 2)


def noisy(rows: int, columns: int, rank: int, strength: float, noise: float, seed: int) -> np.ndarray:
    """Orthonormal components, and normal noise of standard deviation σ.

    Each component is `strength` times as large as the least that is found at all: ‖component‖² = τ̲ M σ².
    """
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.standard_normal((n, max(rank, 1))))[0] for n in (rows, columns))
    alpha, _ = edge(rows, columns)
    least = noise * math.sqrt(2.5129 * math.sqrt(alpha) * max(rows, columns))
    signal = strength * least * left[:, :rank] @ right[:, :rank].T
    return signal + noise * generator.standard_normal((rows, columns))


def found(matrix: np.ndarray) -> int:
    return vbmf_rank(np.linalg.svd(matrix, compute_uv=False) ** 2, *matrix.shape)


@pytest.mark.parametrize("noise", [1e-3, 1.0])
@pytest.mark.parametrize("strength", [2.0, 5.0, 100.0])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_true_rank_is_found(rows: int, columns: int, strength: float, noise: float) -> None:
    """Wherever the signal is clear and leaves room for the noise to be told from it.

    Clear: components of twice the norm of the least that can be found, τ̲ M σ². At 1.5 times it the rank is
    right in three cases of four, at 1.0 in one of ten, below 0.8 nothing is found. Room: a rank up to half
    of L / (1 + α), with L the smaller side and α = L / M. The solution cannot exceed ⌈L / (1 + α)⌉ − 1 (JMLR
    14, theorem 3): half the rows of a square matrix. Components of equal norm are taken for noise, and the
    rank falls to 0, from 0.6 of that bound on at twice the least norm, from 0.8 at five times, from 0.95 at
    a thousand times.
    """
    for rank in sorted({0, 1, 2, most(rows, columns) // 2, most(rows, columns)}):
        assert found(noisy(rows, columns, rank, strength, noise, seed=rank)) == rank


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_a_signal_below_the_threshold_is_noise(rows: int, columns: int) -> None:
    rank = most(rows, columns) // 2
    assert found(noisy(rows, columns, rank, strength=0.5, noise=0.1, seed=1)) == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_noise_has_no_rank(rows: int, columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    assert found(generator.standard_normal((rows, columns))) == 0
    assert found(generator.uniform(-1, 1, (rows, columns))) == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_without_noise_the_rank_is_the_rank(rows: int, columns: int, seed: int) -> None:
    """Up to the bound of the solution, ⌈L / (1 + α)⌉ − 1; a Gram matrix rounds, which is no signal."""
    generator = np.random.default_rng(seed)
    alpha, _ = edge(rows, columns)
    bound = math.ceil(min(rows, columns) / (1 + alpha)) - 1
    for rank in sorted({1, 2, bound // 2, bound}):
        matrix = generator.standard_normal((rows, rank)) @ generator.standard_normal((rank, columns))
        assert found(matrix) == rank
        assert vbmf_rank(squared_singular_values(matrix), rows, columns) == rank


def test_nothing_has_rank_zero() -> None:
    assert vbmf_rank(np.zeros(8), 8, 20) == 0
    assert vbmf_rank(np.zeros(0), 0, 20) == 0


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e-3, 1e3, 1e20, 1e150])
def test_scale_does_not_matter(scale: float) -> None:
    for rows, columns in SIZES:
        matrix = noisy(rows, columns, rank=3, strength=4, noise=1, seed=0) + noisy(
            rows, columns, 2, 1.2, 0.1, 1
        )
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        assert vbmf_rank(squares * scale**2, rows, columns) == vbmf_rank(squares, rows, columns)


def test_neither_does_the_transpose() -> None:
    for rows, columns in SIZES:
        matrix = noisy(rows, columns, rank=3, strength=1.5, noise=1, seed=0)
        assert found(matrix) == found(matrix.T)


# Against the published free energy, minimised by brute force
# -----------------------------------------------------------


def free_energies(squares: np.ndarray, rows: int, columns: int, variances: np.ndarray) -> np.ndarray:
    """The free energy at each noise variance, up to a constant (JMLR 14, equation 33)."""
    alpha, threshold = edge(rows, columns)
    x = squares / (max(rows, columns) * variances[:, None])
    shifted = x - (1 + alpha)
    tau = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * alpha, 0))) / 2
    signal = np.where(x > threshold, tau, 1.0)
    terms = np.log((signal + 1) / x) + x - signal + alpha * np.log(signal / alpha + 1)
    return np.where(x > threshold, terms, x - np.log(x)).sum(axis=1)


def ranks(squares: np.ndarray, rows: int, columns: int, variances: np.ndarray) -> np.ndarray:
    """The components above the threshold at each noise variance."""
    _, threshold = edge(rows, columns)
    return (squares > max(rows, columns) * variances[:, None] * threshold).sum(axis=1)


def spectra(size: int) -> dict[str, np.ndarray]:
    """Squared singular values such as real weights have: no gap between signal and noise."""
    order = np.arange(1.0, size + 1)
    decaying = {f"k^-{p}": order**-p for p in (0.3, 0.5, 1.0, 1.5, 2.0, 3.0)}
    geometric = {f"{q}^k": q**order for q in (0.99, 0.95, 0.9)}
    noisy_ones = {f"k^-{p} and noise": order**-p + 0.03 * (1 - order / (2 * size)) for p in (0.5, 1.0, 2.0)}
    return {name: values**2 for name, values in (decaying | geometric | noisy_ones).items()}


@pytest.mark.parametrize(("rows", "columns"), [size for size in SIZES if min(size) <= 64])
def test_rank_is_that_of_the_least_free_energy(rows: int, columns: int) -> None:
    """The free energy has many minima, about one per singular value; the solution is the lowest of them.

    Where two ranks are within 1e-4 of it, either will do.
    """
    for name, squares in spectra(min(rows, columns)).items():
        variances = np.geomspace(
            squares[-1] / max(rows, columns) / 100, squares.sum() / (rows * columns), 4000
        )
        energies = free_energies(squares, rows, columns, variances)
        ours = energies[ranks(squares, rows, columns, variances) == vbmf_rank(squares, rows, columns)]
        assert ours.size and ours.min() <= energies.min() + 1e-4, name
