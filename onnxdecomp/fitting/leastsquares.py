"""Low-rank weights fitted to the moments of real inputs, in closed form or by alternating least squares.

Wanted is Ŵ of low rank that minimises E‖y − Ŵx‖² over patches x and outputs y, which is the weighted error
⟨(W* − Ŵ) S, W* − Ŵ⟩ with S = cov(x), T = cov(y, x) and the least-squares weight W* = T S⁻¹. With a factor on
the output side alone the best Ŵ is the reduced-rank regression of Izenman 1975 (J. Multivariate Anal. 5). A
factor V on the input side that all taps share has no closed form: it starts from the HOOI of W whitened by
the channel covariance, then V and the rest take turns, each the least-squares optimum given the other.

A ridge centred on the original weight (S + λI, T + λW) keeps Ŵ near W where the samples say little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from threadpoolctl import ThreadpoolController

from onnxdecomp.factors import Floats, Whitening, hooi, leading_vectors
from onnxdecomp.fitting.moments import Moments

_CG_STEPS = 10
_CG_TOLERANCE = 1e-4
# For larger patches conjugate gradients, which stop early anyway, multiply in single precision.
_LARGE = 1024
# Alternation ends when a round takes away less of the loss.
_TOLERANCE = 1e-3
# Eigenvalues of the channel covariance below this share of the largest are raised to it; where there is no
# variance at all, of this.
_FLOOR, _NOTHING = 1e-8, 1e-30
# SciPy's wheels bring a BLAS of their own: while its threads and NumPy's share the cores, each waits for the
# other's to stop spinning, 20 ms a call.
_BLAS = ThreadpoolController().select(user_api="blas")


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
    def of(cls, moments: Moments, *, centred: bool, dtype: type[np.floating[Any]] = np.float64) -> Problem:
        """From sums over samples; not `centred` where the operator has no bias to take the means."""
        n = moments.count
        s, t, yy = moments.xx / n, moments.yx / n, float(moments.yy.sum() / n)
        if centred:
            mean_x, mean_y = moments.x / n, moments.y / n
            s -= np.multiply.outer(mean_x, mean_x)
            t -= np.multiply.outer(mean_y, mean_x)
            yy -= float(mean_y @ mean_y)
        if not moments.varies(centred):  # what is left is noise
            s, t = np.zeros_like(s), np.zeros_like(t)
        return cls(s.astype(dtype, copy=False), t.astype(dtype, copy=False), yy)

    def reordered(self, order: NDArray[np.int64] | None) -> Problem:
        """With the patches in that order; None leaves them."""
        if order is None:
            return self
        return Problem(self.s[np.ix_(order, order)], self.t[:, order], self.yy)

    def channel_covariance(self, taps: int) -> Floats:
        """The covariance of the channels (what each tap has), mean over taps: float64, (C, C)."""
        modes = len(self.s) // taps
        blocks = self.s.reshape(taps, modes, taps, modes)
        return np.asarray(np.einsum("lmln->mn", blocks) / taps, np.float64)

    def rounded(self) -> Problem:
        """In single precision."""
        return Problem(self.s.astype(np.float32), self.t.astype(np.float32), self.yy)

    def ridged(self, weight: Floats, fraction: float) -> Problem:
        """With a ridge centred on `weight` (D, P): `fraction` of the mean variance of x.

        Where x does not vary there is nothing else: the low-rank weight is that nearest to `weight`.
        """
        ridge = fraction * float(np.trace(self.s)) / len(self.s) or 1.0
        s = self.s.copy()
        s.flat[:: len(s) + 1] += ridge
        t = self.t + (ridge * weight).astype(self.t.dtype)
        return Problem(s, t, self.yy + ridge * float((weight**2).sum()))


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """Ŵ[d, l, m] = Σ U[d, s] core[s, l, r] V[m, r]; a factor that is None is the identity."""

    inner: Floats | None
    core: Floats
    outer: Floats | None

    def projected(self) -> Floats:
        """UᵀŴ, shape (S, L·M): all of Ŵ that lengths depend on, U being orthonormal."""
        core = self.core if self.inner is None else np.tensordot(self.core, self.inner, (2, 1))
        return core.reshape(len(core), -1)

    def weight(self) -> Floats:
        """Ŵ as a matrix (D, L·M)."""
        flat = self.projected()
        return flat if self.outer is None else self.outer @ flat


def fit_low_rank(
    problem: Problem,
    taps: int,
    inner: Floats | None,
    out_rank: int | None,
    rounds: int,
) -> LowRank:
    """The low-rank weight of least loss.

    Args:
        problem: S positive definite; P = taps · modes, taps first.
        taps: positions that share the input factor.
        inner: the input factor that alternation starts from, see `start`; None for none.
        out_rank: of the output factor, None for none.
        rounds: of alternation at most.
    """
    if inner is None:
        core, outer = _reduced_rank(problem.s, problem.t, out_rank)
        return LowRank(None, core.reshape(len(core), taps, -1), outer)
    covariance = problem.channel_covariance(taps)
    found, explained = _outer_step(problem, taps, inner, out_rank)
    rough = problem.rounded() if len(problem.s) > _LARGE else problem
    for _ in range(rounds):
        found, gain = _outer_step(problem, taps, _inner_step(rough, found, covariance), out_rank)
        if gain - explained <= _TOLERANCE * max(problem.yy - gain, 0.0):
            break
        explained = gain
    return found


def _reduced_rank(s: Floats, t: Floats, rank: int | None) -> tuple[Floats, Floats | None]:
    """Core (rank, P) and orthonormal U (D, rank) of the reduced-rank regression U Uᵀ T S⁻¹, in float64.

    With S = L Lᵀ its U are the leading left singular vectors of T L⁻ᵀ.
    """
    with _BLAS.limit(limits=1):
        lower = cholesky(s.astype(np.float64), lower=True, overwrite_a=True, check_finite=False)
        whitened = solve_triangular(lower, t.T.astype(np.float64), lower=True, check_finite=False).T
    outer = None if rank is None else _leading_left(whitened, rank)
    kept = whitened if outer is None else outer.T @ whitened
    with _BLAS.limit(limits=1):
        return solve_triangular(lower, kept.T, lower=True, trans="T", check_finite=False).T, outer


def _leading_left(matrix: Floats, rank: int) -> Floats:
    """The leading left singular vectors, by the smaller of both Gram matrices."""
    rows, columns = matrix.shape
    if rows <= columns or rank > columns:
        return np.ascontiguousarray(np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :rank])
    right = np.linalg.eigh(matrix.T @ matrix)[1][:, ::-1][:, :rank]
    return np.linalg.qr(matrix @ right)[0]


def start(problem: Problem, taps: int, weight: Floats, ranks: tuple[int | None, int | None]) -> Floats | None:
    """The input factor of a whitened weight: V = Σ^-½ Ṽ with Ṽ that of HOOI on W Σ^½, orthonormalised.

    Args:
        problem: whose channel covariance whitens.
        taps: positions that share the input factor.
        weight: W (D, P), taps first.
        ranks: of the input and of the output factor; there is no input factor where the first is None.
    """
    in_rank, out_rank = ranks
    if in_rank is None:
        return None
    guess = weight.reshape(len(weight), taps, -1)
    covariance = problem.channel_covariance(taps)
    whitening = Whitening.of(covariance, floor=_FLOOR, nothing=_NOTHING)
    whitened = np.tensordot(guess, whitening.root(), axes=1).transpose(0, 2, 1)  # D, modes, taps
    whitened = whitened / (np.abs(whitened).max() or 1.0)
    if out_rank is None:
        basis = leading_vectors(whitened.transpose(1, 0, 2).reshape(len(covariance), -1), in_rank)
    else:
        _, basis = hooi(np.ascontiguousarray(whitened), out_rank, in_rank)
    return np.linalg.qr(whitening.undone(basis))[0]


def _outer_step(problem: Problem, taps: int, inner: Floats, out_rank: int | None) -> tuple[LowRank, float]:
    """Core and output factor given V: reduced-rank regression on z = Vᵀx; and the variance they explain."""
    modes, rank = inner.shape
    narrow = inner.astype(problem.s.dtype)
    half = (problem.s.reshape(-1, modes) @ narrow).reshape(taps, modes, taps * rank)
    zz = np.matmul(narrow.T, half).reshape(taps * rank, -1)
    yz = (problem.t.reshape(-1, modes) @ narrow).reshape(len(problem.t), -1).astype(np.float64)
    core, outer = _reduced_rank(zz, yz, out_rank)
    target = yz if outer is None else outer.T @ yz
    return LowRank(inner, core.reshape(-1, taps, rank), outer), float((core * target).sum())


def _inner_step(problem: Problem, found: LowRank, covariance: Floats) -> Floats:
    """V by least squares given the rest: conjugate gradients on its normal equations, orthonormalised.

    The mean blocks on both sides of V precondition them.
    """
    core = found.core
    rank, modes = core.shape[2], len(covariance)
    rows = core.reshape(-1, rank)
    target = problem.t if found.outer is None else found.outer.T @ problem.t

    def pull(weights: Floats) -> Floats:
        return np.asarray(weights.reshape(-1, modes).T @ rows)

    def normal(inner: Floats) -> Floats:
        return pull(LowRank(inner, core, None).projected().astype(problem.s.dtype) @ problem.s)

    gram = rows.T @ rows
    gram.flat[:: rank + 1] += _FLOOR * (np.trace(gram) or 1.0)
    left, right = np.linalg.inv(covariance), np.linalg.inv(gram)
    inner = found.inner.copy() if found.inner is not None else np.eye(modes)
    residual = pull(target) - normal(inner)
    direction = left @ residual @ right
    power = float((residual * direction).sum())
    enough = _CG_TOLERANCE * power
    for _ in range(_CG_STEPS):
        if power <= enough:
            break
        image = normal(direction)
        size = power / float((direction * image).sum())
        inner += size * direction
        residual -= size * image
        step = left @ residual @ right
        previous, power = power, float((residual * step).sum())
        direction = step + power / previous * direction
    return np.linalg.qr(inner)[0]
