"""Fitted weights against optima in closed form, and against long descents where there is none."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import partial_tucker

from onnxdecomp.factors import Ranks, factorise
from onnxdecomp.fitting import LowRank, Moments, Problem, arrangement, chain_of, fit_low_rank, start
from onnxdecomp.fitting.leastsquares import _outer_step
from onnxdecomp.planning import Choice


def fitted(
    problem: Problem, taps: int, ranks: tuple[int | None, int | None], rounds: int, guess: np.ndarray
) -> LowRank:
    """A fit that starts from the HOOI of `guess`."""
    return fit_low_rank(problem, taps, start(problem, taps, guess, ranks), ranks[1], rounds)


def random(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def covariance(taps: int, modes: int, seed: int, spread: float = 2.0) -> np.ndarray:
    """Neighbouring taps are alike, channels have decaying variances: what images and activations are like."""
    rotation = np.linalg.qr(random(modes, modes, seed=seed))[0]
    channels = rotation * np.logspace(0, -spread, modes) @ rotation.T
    tap = np.arange(taps)
    near = 0.9 ** np.abs(np.subtract.outer(tap, tap))
    mixed = np.kron(near, channels)
    odd = random(taps * modes, 4, seed=seed + 1) * 0.2
    return mixed + odd @ odd.T


def problem(outputs: int, taps: int, modes: int, seed: int, noise: float = 0.1) -> tuple[Problem, np.ndarray]:
    """A problem and its least-squares weight W*; `noise` is variance that no weight explains."""
    s = covariance(taps, modes, seed)
    w = random(outputs, taps * modes, seed=seed + 2)
    return Problem(s, w @ s, float(np.trace(w @ s @ w.T)) + noise), w


def loss(p: Problem, w: np.ndarray) -> float:
    return float(p.yy - 2 * (w * p.t).sum() + ((w @ p.s) * w).sum())


def regression_optimum(p: Problem, rank: int) -> float:
    """Loss of reduced-rank regression: what Cholesky whitening and a truncated SVD of W* L leave."""
    root = np.linalg.cholesky(p.s)
    whitened = np.linalg.solve(root, p.t.T).T  # W* L
    return p.yy - float((np.linalg.svd(whitened, compute_uv=False)[:rank] ** 2).sum())


def descended(p: Problem, shape: tuple[int, int, int], ranks: tuple[int | None, int | None]) -> float:
    """The least loss that L-BFGS finds from several random starts."""
    outputs, taps, modes = shape
    in_rank, out_rank = ranks
    s, t = torch.tensor(p.s), torch.tensor(p.t)
    sizes = [(out_rank or outputs, taps, in_rank or modes), (outputs, out_rank), (modes, in_rank)]
    best = np.inf
    for seed in range(3):
        factors = [
            None if None in size else torch.tensor(random(*size, seed=seed + 50), requires_grad=True)  # type: ignore[arg-type]
            for size in sizes
        ]
        free = [factor for factor in factors if factor is not None]
        optimiser = torch.optim.LBFGS(
            free, max_iter=250, history_size=30, line_search_fn="strong_wolfe", tolerance_change=1e-9
        )

        def value(factors: list[torch.Tensor | None] = factors) -> torch.Tensor:
            core, outer, inner = factors
            assert core is not None
            w = core if inner is None else torch.einsum("slr,mr->slm", core, inner)
            w = w if outer is None else torch.einsum("ds,slm->dlm", outer, w)
            w = w.reshape(outputs, -1)
            return p.yy - 2 * (w * t).sum() + ((w @ s) * w).sum()

        def closure(value=value, optimiser=optimiser) -> torch.Tensor:  # type: ignore[no-untyped-def]
            optimiser.zero_grad()
            found = value()
            found.backward()
            return found

        optimiser.step(closure)
        best = min(best, float(value().detach()))
    return best


def assert_shapes(found: LowRank, shape: tuple[int, int, int], ranks: tuple[int | None, int | None]) -> None:
    """Of the ranks asked for, with orthonormal factors."""
    outputs, taps, modes = shape
    in_rank, out_rank = ranks
    assert found.core.shape == (out_rank or outputs, taps, in_rank or modes)
    for factor, rows, rank in ((found.outer, outputs, out_rank), (found.inner, modes, in_rank)):
        assert (factor is None) == (rank is None)
        if factor is not None and rank is not None:
            assert factor.shape == (rows, rank)
            assert np.allclose(factor.T @ factor, np.eye(rank), atol=1e-10)
    assert found.weight().shape == (outputs, taps * modes)


# Optima in closed form
# ---------------------


@pytest.mark.parametrize("rank", [1, 3, 7, 8])
@pytest.mark.parametrize("taps", [1, 3])
def test_an_output_factor_alone_is_reduced_rank_regression(taps: int, rank: int) -> None:
    p, w = problem(8, taps, 6, seed=rank)
    found = fitted(p, taps, (None, rank), 10, w)
    assert_shapes(found, (8, taps, 6), (None, rank))
    assert np.linalg.matrix_rank(found.weight()) <= rank
    optimum = regression_optimum(p, rank)
    assert abs(loss(p, found.weight()) - optimum) <= 1e-6 * optimum
    if rank <= min(6 * taps, 8):
        assert loss(p, found.weight()) < 0.999 * regression_optimum(p, rank - 1)


def test_no_factor_is_least_squares() -> None:
    p, w = problem(8, 3, 6, seed=0)
    assert np.allclose(fitted(p, 3, (None, None), 1, 0 * w).weight(), w, atol=1e-8)


@pytest.mark.parametrize("rank", [2, 5])
def test_given_the_input_factor_the_rest_is_the_optimum(rank: int) -> None:
    """Reduced-rank regression on the projected patches z = Vᵀx, tap by tap."""
    p, _ = problem(8, 3, 6, seed=rank)
    inner = np.linalg.qr(random(6, 4, seed=9))[0]
    found, explained = _outer_step(p, 3, inner, rank)
    project = np.kron(np.eye(3), inner)
    reduced = Problem(project.T @ p.s @ project, p.t @ project, p.yy)
    optimum = regression_optimum(reduced, rank)
    assert abs(loss(p, found.weight()) - optimum) <= 1e-6 * optimum
    assert abs(p.yy - explained - optimum) <= 1e-6 * optimum
    assert found.inner is not None and np.array_equal(found.inner, inner)


@pytest.mark.parametrize("ranks", [(6, 8), (6, None), (None, 8)])
def test_full_rank_is_the_least_squares_weight(ranks: tuple[int | None, int | None]) -> None:
    p, w = problem(8, 4, 6, seed=3)
    guess = random(8, 24, seed=1)
    assert np.linalg.norm(fitted(p, 4, ranks, 10, guess).weight() - w) <= 1e-7 * np.linalg.norm(w)


def test_a_weight_of_low_rank_is_found_again() -> None:
    core, outer, inner = random(3, 4, 2, seed=0), random(8, 3, seed=1), random(6, 2, seed=2)
    w = np.einsum("slr,ds,mr->dlm", core, outer, inner).reshape(8, 24)
    s = covariance(4, 6, seed=5)
    p = Problem(s, w @ s, float(np.trace(w @ s @ w.T)))
    assert np.linalg.norm(fitted(p, 4, (2, 3), 10, w).weight() - w) <= 1e-6 * np.linalg.norm(w)


# Against descents
# ----------------

SHAPES = [(8, 3, 6), (8, 9, 6), (8, 4, 8)]


@pytest.mark.parametrize("ranks", [(2, 3), (3, 2), (4, 4), (1, 1), (3, None)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_alternation_ends_where_descents_do(
    shape: tuple[int, int, int], ranks: tuple[int | None, int | None]
) -> None:
    p, w = problem(*shape, seed=sum(shape))
    found = fitted(p, shape[1], ranks, 100, w)
    assert_shapes(found, shape, ranks)
    assert loss(p, found.weight()) <= 1.02 * descended(p, shape, ranks)


@pytest.mark.parametrize("ranks", [(2, 3), (4, 3), (3, None)], ids=str)
def test_rounds_never_make_it_worse(ranks: tuple[int | None, int | None]) -> None:
    for seed in range(5):
        p, w = problem(8, 9, 6, seed=seed)
        losses = [loss(p, fitted(p, 9, ranks, rounds, w).weight()) for rounds in (0, 1, 3, 10)]
        assert all(later <= 1.0002 * earlier for earlier, later in pairwise(losses))
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("ranks", [(2, 3), (3, None), (None, 3)], ids=str)
def test_single_precision_is_near_double(ranks: tuple[int | None, int | None]) -> None:
    p, w = problem(8, 9, 6, seed=4)
    narrow = Problem(p.s.astype(np.float32), p.t.astype(np.float32), p.yy)
    double, single = (loss(p, fitted(each, 9, ranks, 10, w).weight()) for each in (p, narrow))
    assert abs(single - double) <= 1e-3 * double


# Against the plain factors
# -------------------------


def hooi_loss(w: np.ndarray, taps: int, root: np.ndarray, ranks: tuple[int, int]) -> float:
    """What TensorLy's HOOI of the weight, whitened along its input mode, leaves of it."""
    tensor = np.tensordot(w.reshape(len(w), taps, -1), root, axes=1).transpose(0, 2, 1)
    rank = [ranks[1], ranks[0]]
    found, _ = partial_tucker(tensorly.tensor(tensor), rank, modes=[0, 1], n_iter_max=500, tol=1e-12)
    restored = tensorly.tenalg.multi_mode_dot(found[0], found[1], modes=[0, 1])
    return float(((tensor - restored) ** 2).sum())


@pytest.mark.parametrize("ranks", [(2, 3), (4, 4), (3, 1)])
@pytest.mark.parametrize("rounds", [0, 10])
def test_with_independent_taps_it_is_hooi_of_the_whitened_weight(rounds: int, ranks: tuple[int, int]) -> None:
    taps, modes, w = 9, 6, random(8, 54, seed=7)
    channels = covariance(1, modes, seed=3)
    values, vectors = np.linalg.eigh(channels)
    s = np.kron(np.eye(taps), channels)
    p = Problem(s, w @ s, float(np.trace(w @ s @ w.T)))
    expected = hooi_loss(w, taps, vectors * np.sqrt(values) @ vectors.T, ranks)
    found = loss(p, fitted(p, taps, ranks, rounds, w).weight())
    assert found <= (1 + 1e-3) * expected
    assert rounds or found >= (1 - 1e-3) * expected


@pytest.mark.parametrize("ranks", [(2, 3), (4, 4), (3, 1)])
def test_of_white_patches_it_is_plain_hooi(ranks: tuple[int, int]) -> None:
    taps, modes, w = 9, 6, random(8, 54, seed=8)
    p = Problem(np.eye(54), w, float((w**2).sum()))
    assert loss(p, fitted(p, taps, ranks, 10, w).weight()) <= (1 + 1e-4) * hooi_loss(
        w, taps, np.eye(modes), ranks
    )


CHOICES = {
    "tucker2": Choice("tucker2", Ranks(3, 4)),
    "tucker1 in": Choice("tucker1", Ranks(3, None)),
    "tucker1 out": Choice("tucker1", Ranks(None, 3)),
    "spatial": Choice("spatial", Ranks(5, 5)),
    "svd": Choice("svd", Ranks(3, 3)),
}
KERNELS = {"svd": (1, 1)}


def solved(name: str, p: Problem, w: np.ndarray) -> np.ndarray:
    """The fitted weight (D, C, *kernel), by way of the chain that a model gets."""
    choice = CHOICES[name]
    placed = arrangement(choice, w.shape[2:], w.shape[1])
    assert placed is not None
    flat = np.moveaxis(w, 1, -1).reshape(len(w), -1)
    guess = flat if placed.order is None else flat[:, placed.order]
    found = fitted(p.reordered(placed.order), placed.taps, placed.ranks, 100, guess)
    restored = chain_of(choice, [found], w.shape).reconstruct()
    direct = placed.restored(found.weight())
    assert np.allclose(flattened(restored), direct, atol=1e-10), "the chain is another weight"
    return restored


def flattened(w: np.ndarray) -> np.ndarray:
    return np.moveaxis(w, 1, -1).reshape(len(w), -1)


@pytest.mark.parametrize("name", CHOICES)
def test_the_chain_has_less_loss_than_the_plain_one(name: str) -> None:
    kernel = KERNELS.get(name, (3, 2))
    taps = int(np.prod(kernel))
    for seed in range(3):
        p, flat = problem(8, taps, 6, seed=seed)
        w = np.moveaxis(flat.reshape(8, *kernel, 6), -1, 1)
        plain = factorise(CHOICES[name].method, w, CHOICES[name].ranks, 1).reconstruct()
        found = solved(name, p, w)
        assert found.shape == w.shape
        assert loss(p, flattened(found)) < 0.9 * loss(p, flattened(plain))


def test_the_spatial_chain_is_where_descents_end() -> None:
    """Its first convolution mixes k₀ · C values, its second D · k₁: without `arrangement`."""
    p, flat = problem(8, 6, 6, seed=2)
    w = np.moveaxis(flat.reshape(8, 3, 2, 6), -1, 1)
    found = loss(p, flattened(solved("spatial", p, w)))
    order = np.array([k0 * 12 + k1 * 6 + c for k1 in range(2) for c in range(6) for k0 in range(3)])
    turned = Problem(p.s[order][:, order], p.t[:, order], p.yy)
    assert found <= 1.02 * descended(turned, (8, 2, 18), (5, None))


@pytest.mark.parametrize("name", CHOICES)
def test_a_large_ridge_is_the_plain_solution(name: str) -> None:
    """(S + λI, T + λW) with λ → ∞ is the metric λI, in which the plain factors are the best."""
    kernel = KERNELS.get(name, (3, 2))
    p, flat = problem(8, int(np.prod(kernel)), 6, seed=6)
    w = np.moveaxis(random(*flat.shape, seed=77).reshape(8, *kernel, 6), -1, 1)  # far from W*
    ridged = p.ridged(flattened(w), 1e7)
    choice = CHOICES[name]
    plain = factorise(choice.method, w, choice.ranks, 1).reconstruct()
    lost = [float(((w - each) ** 2).sum()) for each in (solved(name, ridged, w), plain)]
    assert abs(lost[0] - lost[1]) <= 2e-3 * lost[1]


def test_a_ridge_is_the_error_of_the_weight_too() -> None:
    p, w = problem(8, 3, 6, seed=1)
    other, ridge = random(8, 18, seed=5), 0.3
    ridged = p.ridged(w, ridge)
    extra = ridge * np.trace(p.s) / 18 * ((w - other) ** 2).sum()
    assert np.isclose(loss(ridged, other), loss(p, other) + extra, rtol=1e-12)
    assert not np.shares_memory(ridged.s, p.s)


@pytest.mark.parametrize("centred", [True, False])
def test_the_problem_is_that_of_the_samples(centred: bool) -> None:
    x = (random(500, 6, seed=0) + 3).astype(np.float32)
    y = (random(500, 4, seed=1) - 1).astype(np.float32)
    p = Problem.of(Moments.zero(4, 6).add(x, y), centred=centred)
    w = random(4, 6, seed=2)
    apart = y - x @ w.T.astype(np.float64)
    if centred:
        apart = apart - apart.mean(axis=0)
    assert np.isclose(loss(p, w), float((apart**2).sum() / 500), rtol=1e-5)
