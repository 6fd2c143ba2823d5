"""Square roots of covariances."""

from __future__ import annotations

import numpy as np
import pytest

from onnxdecomp.factors import Whitening


def covariance(rank: int, size: int = 12) -> np.ndarray:
    x = np.random.default_rng(rank).standard_normal((size, rank))
    return x @ x.T


def test_the_root_squared_is_the_covariance_and_the_inverse_undoes_it() -> None:
    sigma = covariance(20)
    found = Whitening.of(sigma, floor=1e-12, nothing=1.0)
    assert np.allclose(found.root() @ found.root(), sigma)
    assert np.allclose(found.root() @ found.inverse(), np.eye(12))
    basis = np.random.default_rng(1).standard_normal((12, 3))
    assert np.allclose(found.undone(basis), found.inverse() @ basis)


@pytest.mark.parametrize("floor", [1e-6, 1e-2])
def test_small_eigenvalues_are_raised_to_a_share_of_the_largest(floor: float) -> None:
    sigma = covariance(3)
    raised = Whitening.of(sigma, floor=floor, nothing=1.0).root()
    values = np.linalg.eigvalsh(raised) ** 2
    assert values[-1] == pytest.approx(np.linalg.eigvalsh(sigma)[-1])
    assert np.allclose(values[:9], floor * values[-1])


@pytest.mark.parametrize("value", [0.0, -1e-20, 1e-40])
def test_without_variance_all_directions_count_alike(value: float) -> None:
    found = Whitening.of(value * np.eye(4), floor=1e-6, nothing=1.0)
    assert np.allclose(found.inverse(), 1e3 * np.eye(4))
    assert not Whitening.of(-abs(value) * np.eye(4), floor=1e-6, nothing=0.0).root().any()
