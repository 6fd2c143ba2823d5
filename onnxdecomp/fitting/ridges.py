"""Which factors of a job do best on samples not fitted: plain or fitted ones, and with which ridge."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError

from onnxdecomp.factors import Floats
from onnxdecomp.fitting.arranging import Arrangement, arrangement, chain_of
from onnxdecomp.fitting.leastsquares import LowRank, Problem, fit, start
from onnxdecomp.fitting.moments import Moments, flattened, total
from onnxdecomp.fitting.outcome import Factored, Fit, Spread
from onnxdecomp.fitting.plain import find_errors

# Shares of the mean variance of a patch that the ridge may be.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_START = 2
# A ridge that does better by less than this on the folds does so by chance, and is often worse in the model.
_GAIN = 0.02
_ROUNDS = 100
_ROUNDS_ON_FOLDS = 1
# Patches larger than this are weighed in single precision, and alternation is cut short; the final fit is in
# double.
_LARGE_PATCH = 1024
_ROUNDS_OF_LARGE = 10
PLAIN_IS_BETTER = "its plain factors do better on samples not fitted"
CP_HAS_NO_FIT = "CP chains are not fitted"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """What the chains of a job are fitted to.

    Attributes:
        moments: by fold (two or more) and group; outputs with the bias taken off.
        weight: the original, shape (D, C / groups, *kernel).
        centred: whether there is a bias to take up the means.
        bias: what the first site adds to its product, shape (D,).
        alpha: by which the first site multiplies their sum.
        judged: how many folds factors are judged on, None for all.
    """

    moments: Sequence[Sequence[Moments]]
    weight: Floats
    centred: bool
    bias: Floats
    alpha: float = 1.0
    judged: int | None = None

    @property
    def judges(self) -> Sequence[Sequence[Moments]]:
        """The folds that factors are judged on."""
        return self.moments[: self.judged]

    @property
    def groups(self) -> int:
        """Channel groups."""
        return len(self.moments[0])

    def rest(self, fold: int, part: Callable[[Moments], Moments] = lambda m: m) -> list[Moments]:
        """The moments, or a part of them, of all folds but one."""
        others = [parts for i, parts in enumerate(self.moments) if i != fold]
        return [total([part(each) for each in parts]) for parts in zip(*others, strict=True)]

    def wholes(self) -> list[Moments]:
        """The moments of all folds."""
        return [total(parts) for parts in zip(*self.moments, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    """Ŵx of one group, for losses over any moments.

    Attributes:
        weight: Ŵ, shape (D, P).
        core: UᵀŴ with orthonormal U, shape (S, P), or Ŵ itself.
    """

    weight: Floats
    core: Floats

    def squares(self, xx: Floats) -> float:
        """Σ ‖Ŵx‖²."""
        return float(((self.core @ xx) * self.core).sum())


def best_factors(
    plain: Factored, target: Target, dtype: np.dtype[np.generic]
) -> tuple[Factored, Floats | None, float]:
    """The factors of one choice that do best on folds of the samples, and the shift of their outputs.

    Args:
        plain: the plain factors of that choice.
        target: what they are fitted to.
        dtype: element type of the model's weight.

    Returns:
        Factors; what to add to the product Ŵx, shape (D,), None for nothing; and their held-out error.
    """
    placed = arrangement(plain.choice, target.weight.shape[2:], target.weight.shape[1])
    products = [_Product(w, w) for w in flattened(plain.chain.reconstruct(), target.groups)]
    losses = _plain_losses(products, target)
    ridge, held_out = _best_ridge(target, placed, min(losses)) if placed is not None else (None, math.inf)
    if held_out >= min(losses):
        ridge, held_out = None, min(losses)
    wholes = target.wholes()
    nothing = [None] * target.groups
    before = _Outputs.of(wholes, nothing, nothing, target.bias)
    shifts = _shifts(wholes, products, target.centred and losses[1] <= losses[0])
    chosen, because = plain, PLAIN_IS_BETTER if placed is not None else CP_HAS_NO_FIT
    plain_outputs = _Outputs.of(wholes, products, nothing, target.bias)
    if ridge is not None and placed is not None:
        # The weight of the ridge against one sample: all samples together bear less of it than the folds did.
        ridge *= _count(target.rest(0, Moments.means)) / _count(wholes)
        problems, starts = _prepared(wholes, target, placed, np.float64)
        rounds = _ROUNDS if len(wholes[0].x) <= _LARGE_PATCH else _ROUNDS_OF_LARGE
        parts = _solve(problems, starts, target, placed, ridge, rounds)
        exact = chain_of(plain.choice, parts, target.weight.shape)
        stored = exact.cast(dtype)
        if stored.finite():
            errors = find_errors(target.weight, exact, stored, dtype)
            chosen = dataclasses.replace(plain, chain=stored, errors=errors)
            products = [_Product(w, w) for w in flattened(stored.reconstruct(), target.groups)]
            shifts = _shifts(wholes, products, target.centred)
        else:
            ridge, held_out, because = None, min(losses), f"its fitted factors exceed the range of {dtype}"
    outputs = _Outputs.of(wholes, products, shifts, target.bias)
    scale = math.sqrt(before.squares) or 1.0
    judged = sum(_Outputs.of(parts, nothing, nothing, target.bias).squares for parts in target.judges)
    held_scale = math.sqrt(judged) or 1.0
    report = Fit(
        plain_because=None if chosen is not plain else because,
        ridge=ridge,
        fitted=math.sqrt(_loss_all(wholes, products, shifts)) / scale,
        held_out=math.sqrt(held_out) / held_scale,
        plain=math.sqrt(losses[0]) / held_scale,
        original_spread=before.spread(target.alpha),
        plain_spread=plain_outputs.spread(target.alpha),
        spread=outputs.spread(target.alpha),
    )
    shift = np.concatenate([s for s in shifts if s is not None]) if shifts[0] is not None else None
    return dataclasses.replace(chosen, fit=report), shift, math.sqrt(held_out) / held_scale


def _plain_losses(products: Sequence[_Product], target: Target) -> tuple[float, ...]:
    """Held-out losses of the plain factors: as they are, and with biases moved to the other folds' means."""
    squares = [_squares(products, parts) for parts in target.judges]
    losses = []
    for corrected in (False, True)[: 1 + target.centred]:
        lost = 0.0
        for fold, parts in enumerate(target.judges):
            shifts = _shifts(target.rest(fold, Moments.means), products, corrected)
            lost += sum(map(_loss, parts, products, shifts, squares[fold]))
        losses.append(lost)
    return tuple(losses)


def _best_ridge(target: Target, placed: Arrangement, plain: float) -> tuple[float | None, float]:
    """A ridge of low held-out loss, if there is one below that of the plain factors, and that loss."""
    large = len(target.moments[0][0].x) > _LARGE_PATCH
    dtype = np.float32 if large else np.float64
    prepared = [_prepared(target.rest(fold), target, placed, dtype) for fold in range(len(target.judges))]

    def held_out(index: int) -> float:
        lost = 0.0
        for fold, parts in enumerate(target.judges):
            try:
                found = _solve(*prepared[fold], target, placed, RIDGES[index], _ROUNDS_ON_FOLDS)
            except LinAlgError:
                return math.inf  # too small a ridge for these samples
            products = [_Product(placed.restored(p.weight()), placed.restored(p.projected())) for p in found]
            shifts = _shifts(target.rest(fold, Moments.means), products, target.centred)
            lost += sum(map(_loss, parts, products, shifts, _squares(products, parts)))
        return lost

    best, lost = _downhill(held_out)
    for stronger in range(best + 1, len(RIDGES)):
        if lost < plain:
            break
        best, lost = min((best, lost), (stronger, held_out(stronger)), key=lambda pair: pair[1])
    return (RIDGES[best], lost) if math.isfinite(lost) else (None, math.inf)


def _downhill(value: Callable[[int], float]) -> tuple[int, float]:
    """The ridge reached from the middling one by steps that each take away a fair share of the loss."""
    here, lowest = _START, value(_START)
    for step in (1, -1):
        while 0 <= here + step < len(RIDGES):
            found = value(here + step)
            if not (found < (1 - _GAIN) * lowest or math.isinf(lowest)):
                break
            here, lowest = here + step, found
        if here != _START:
            break
    return here, lowest


def _solve(
    problems: Sequence[Problem],
    starts: Sequence[Floats | None],
    target: Target,
    placed: Arrangement,
    ridge: float,
    rounds: int,
) -> list[LowRank]:
    """The low-rank weight of each group, for arranged problems."""
    weights = _placed_weights(target, placed)
    return [
        fit(problem.ridged(weight, ridge), placed.taps, inner, placed.ranks[1], rounds)
        for problem, inner, weight in zip(problems, starts, weights, strict=True)
    ]


def _placed_weights(target: Target, placed: Arrangement) -> list[Floats]:
    """The original weight (D, P) of each group, its patches arranged."""
    return [placed.arranged(weight) for weight in flattened(target.weight, target.groups)]


def _prepared(
    moments: Sequence[Moments], target: Target, placed: Arrangement, dtype: type[np.floating[Any]]
) -> tuple[list[Problem], list[Floats | None]]:
    """The problem of each group with its patches arranged, and where alternation starts."""
    problems = [Problem.of(m, centred=target.centred, dtype=dtype).reordered(placed.order) for m in moments]
    weights = _placed_weights(target, placed)
    starts = [start(p, placed.taps, w, placed.ranks) for p, w in zip(problems, weights, strict=True)]
    return problems, starts


def _shifts(moments: Sequence[Moments], products: Sequence[_Product], wanted: bool) -> list[Floats | None]:
    return shifts_of(moments, [product.weight for product in products], wanted)


def shifts_of(moments: Sequence[Moments], weights: Sequence[Floats], wanted: bool) -> list[Floats | None]:
    """What the biases must add so that the mean outputs are right, per group; None where not `wanted`.

    Args:
        moments: of each group.
        weights: Ŵ of each, shape (D, P).
        wanted: whether there is a bias to take it up.
    """
    if not wanted:
        return [None] * len(moments)
    return [(m.y - weight @ m.x) / m.count for m, weight in zip(moments, weights, strict=True)]


def _loss(moments: Moments, product: _Product, shift: Floats | None, squares: float) -> float:
    """Σ ‖y − Ŵx − shift‖², given Σ ‖Ŵx‖²."""
    found = float(moments.yy.sum()) + squares - 2 * float((product.weight * moments.yx).sum())
    if shift is not None:
        found += float(shift @ (moments.count * shift - 2 * (moments.y - product.weight @ moments.x)))
    return max(found, 0.0)


def _count(moments: Sequence[Moments]) -> int:
    return sum(m.count for m in moments)


def _loss_all(
    moments: Sequence[Moments], products: Sequence[_Product], shifts: Sequence[Floats | None]
) -> float:
    return sum(map(_loss, moments, products, shifts, _squares(products, moments)))


def _squares(products: Sequence[_Product], moments: Sequence[Moments]) -> list[float]:
    return [product.squares(m.xx) for product, m in zip(products, moments, strict=True)]


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Sums over all outputs of a site: how many, Σ and Σ²."""

    count: float
    total: float
    squares: float

    @classmethod
    def of(
        cls,
        moments: Sequence[Moments],
        products: Sequence[_Product | None],
        shifts: Sequence[Floats | None],
        bias: Floats,
    ) -> _Outputs:
        """Of a product and its shift in each group; None is the original's."""
        count = first = second = 0.0
        for m, product, shift, added in zip(
            moments, products, shifts, np.split(bias, len(moments)), strict=True
        ):
            sums = m.y if product is None else product.weight @ m.x
            squares = m.yy if product is None else ((product.weight @ m.xx) * product.weight).sum(axis=1)
            offset = added if shift is None else added + shift
            first += float((sums + m.count * offset).sum())
            second += float((squares + offset * (2 * sums + m.count * offset)).sum())
            count += m.count * len(added)
        return cls(count, first, max(second, 0.0))

    def spread(self, alpha: float) -> Spread:
        """Mean and standard deviation of `alpha` times the outputs."""
        mean = self.total / self.count
        deviation = math.sqrt(max(self.squares / self.count - mean**2, 0.0))
        return Spread(alpha * mean, abs(alpha) * deviation)
