"""Low-rank weights fitted to the moments of real inputs, in closed form or by alternating least squares.

Wanted is Ŵ of low rank that minimises E‖y − Ŵx‖² over patches x and outputs y, which is the weighted error
⟨(W* − Ŵ) S, W* − Ŵ⟩ with S = cov(x), T = cov(y, x) and the least-squares weight W* = T S⁻¹. With a factor on
the output side alone the best Ŵ is the reduced-rank regression of Izenman 1975 (J. Multivariate Anal. 5). A
factor V on the input side that all taps share has no closed form: it starts from the HOOI of W* whitened by the
channel covariance, then V and the rest take turns, each the least-squares optimum given the other.

A ridge centred on the original weight (S + λI, T + λW) keeps Ŵ near W where the samples say little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh

from onnxdecomp.factors.chain import Floats
from onnxdecomp.factors.linalg import leading_vectors
from onnxdecomp.factors.tucker import hooi
from onnxdecomp.moments import Moments

_CG_STEPS = 10
# Alternation ends when a round gains less of the explained variance.
_TOLERANCE = 1e-4
# Eigenvalues of the channel covariance below this share of the largest are raised to it.
_FLOOR = 1e-8


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Minimise E‖y − Ŵx‖² = yy − 2⟨Ŵ, T⟩ + ⟨ŴS, Ŵ⟩.

    Attributes:
        s: cov(x), shape (P, P).
        t: cov(y, x), shape (D, P).
        yy: E‖y‖² about the mean.
    """

    s: Floats
    t: Floats
    yy: float

    @classmethod
    def of(cls, moments: Moments, *, centred: bool) -> Problem:
        """From sums over samples; not `centred` where the operator has no bias to take the means."""
        n = moments.count
        s, t, yy = moments.xx / n, moments.yx / n, float(moments.yy.sum() / n)
        if centred:
            mean_x, mean_y = moments.x / n, moments.y / n
            s -= np.outer(mean_x, mean_x)
            t -= np.outer(mean_y, mean_x)
            yy -= float(mean_y @ mean_y)
        return cls(s, t, yy)

    def ridged(self, weight: Floats, fraction: float) -> Problem:
        """With a ridge centred on `weight` (D, P): `fraction` of the mean variance of x."""
        ridge = fraction * float(np.trace(self.s)) / len(self.s)
        s = self.s.copy()
        s.flat[:: len(s) + 1] += ridge
        return Problem(s, self.t + ridge * weight, self.yy + ridge * float((weight**2).sum()))

    def loss(self, weight: Floats) -> float:
        """E‖y − Ŵx‖² of a weight (D, P)."""
        return max(self.yy + float(((weight @ self.s - 2 * self.t) * weight).sum()), 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """Ŵ[d, l, m] = Σ U[d, s] core[s, l, r] V[m, r]; a factor that is None is the identity."""

    inner: Floats | None
    core: Floats
    outer: Floats | None

    def weight(self) -> Floats:
        """Ŵ as a matrix (D, L·M)."""
        core = self.core if self.inner is None else np.tensordot(self.core, self.inner, (2, 1))
        flat = core.reshape(len(core), -1)
        return flat if self.outer is None else self.outer @ flat


def fit(problem: Problem, taps: int, ranks: tuple[int | None, int | None], rounds: int) -> LowRank:
    """The low-rank weight of least loss.

    Args:
        problem: S positive definite; P = taps · modes, taps first.
        taps: positions that share the input factor.
        ranks: of the input and of the output factor, None for none.
        rounds: of alternation at most.
    """
    in_rank, out_rank = ranks
    best = cho_solve(cho_factor(problem.s, check_finite=False), problem.t.T, check_finite=False).T
    outputs, modes = len(best), len(problem.s) // taps
    if in_rank is None:
        outer = _leading(best @ problem.t.T, out_rank)
        core = best if outer is None else outer.T @ best
        return LowRank(None, core.reshape(-1, taps, modes), outer)
    covariance = _mean_block(problem.s, taps)
    inner = _start(best.reshape(outputs, taps, modes), covariance, in_rank, out_rank)
    explained = 0.0
    for _ in range(rounds):
        found, gain = _outer_step(problem, taps, inner, out_rank)
        if gain - explained <= _TOLERANCE * gain:
            return found
        explained = gain
        inner = _inner_step(problem, found, covariance)
    return _outer_step(problem, taps, inner, out_rank)[0]


def _leading(symmetric: Floats, rank: int | None) -> Floats | None:
    """The leading eigenvectors of a positive semidefinite matrix."""
    if rank is None:
        return None
    size = len(symmetric)
    symmetric = (symmetric + symmetric.T) / 2
    _, vectors = eigh(symmetric, subset_by_index=(size - rank, size - 1), check_finite=False)
    return np.ascontiguousarray(vectors[:, ::-1])


def _mean_block(s: Floats, taps: int) -> Floats:
    """The covariance of the modes, mean over taps."""
    modes = len(s) // taps
    blocks = s.reshape(taps, modes, taps, modes)
    return np.asarray(np.einsum("lmln->mn", blocks) / taps)


def _start(best: Floats, covariance: Floats, in_rank: int, out_rank: int | None) -> Floats:
    """The input factor of the whitened weight: V = Σ^-½ Ṽ with Ṽ that of HOOI on W* Σ^½, orthonormalised."""
    values, vectors = np.linalg.eigh(covariance)
    roots = np.sqrt(np.maximum(values, _FLOOR * max(values[-1], np.finfo(float).tiny)))
    whitened = np.tensordot(best, vectors * roots @ vectors.T, axes=1).transpose(0, 2, 1)  # D, modes, taps
    whitened = whitened / (np.abs(whitened).max() or 1.0)
    if out_rank is None:
        basis = leading_vectors(whitened.transpose(1, 0, 2).reshape(len(covariance), -1), in_rank)
    else:
        _, basis = hooi(np.ascontiguousarray(whitened), out_rank, in_rank)
    return np.linalg.qr(vectors / roots @ (vectors.T @ basis))[0]


def _outer_step(problem: Problem, taps: int, inner: Floats, out_rank: int | None) -> tuple[LowRank, float]:
    """Core and output factor given V: reduced-rank regression on z = Vᵀx; and the variance they explain."""
    modes, rank = inner.shape
    half = (problem.s.reshape(-1, modes) @ inner).reshape(taps, modes, taps * rank)
    zz = np.einsum("lmz,mr->lrz", half, inner, optimize=True).reshape(taps * rank, -1)
    yz = (problem.t.reshape(-1, modes) @ inner).reshape(len(problem.t), -1)
    best = cho_solve(cho_factor(zz, check_finite=False), yz.T, check_finite=False).T
    outer = _leading(best @ yz.T, out_rank)
    core, target = (best, yz) if outer is None else (outer.T @ best, outer.T @ yz)
    return LowRank(inner, core.reshape(-1, taps, rank), outer), float((core * target).sum())


def _inner_step(problem: Problem, found: LowRank, covariance: Floats) -> Floats:
    """V by least squares given the rest: conjugate gradients on its normal equations, orthonormalised.

    ∇ = Σ S V (coreᵀ core) over pairs of taps; the mean blocks of both sides precondition it.
    """
    core = found.core
    rank = core.shape[2]
    rows = core.reshape(-1, rank)
    target = problem.t if found.outer is None else found.outer.T @ problem.t
    modes = len(covariance)

    def pull(weights: Floats) -> Floats:
        return weights.reshape(-1, modes).T @ rows

    def normal(inner: Floats) -> Floats:
        weights = np.tensordot(core, inner, (2, 1)).reshape(len(core), -1)
        return pull(weights @ problem.s)

    gram = rows.T @ rows
    gram.flat[:: rank + 1] += _FLOOR * (np.trace(gram) or 1.0)
    left, right = cho_factor(covariance, check_finite=False), cho_factor(gram, check_finite=False)

    def precondition(residual: Floats) -> Floats:
        return cho_solve(right, cho_solve(left, residual, check_finite=False).T, check_finite=False).T

    inner = found.inner.copy() if found.inner is not None else np.eye(modes)
    residual = pull(target) - normal(inner)
    step = precondition(residual)
    direction, power = step, float((residual * step).sum())
    for _ in range(_CG_STEPS):
        if power <= 0:
            break
        image = normal(direction)
        size = power / float((direction * image).sum())
        inner += size * direction
        residual -= size * image
        step = precondition(residual)
        previous, power = power, float((residual * step).sum())
        direction = step + power / previous * direction
    return np.linalg.qr(inner)[0]
