"""Which factors of a unit do best on samples not fitted: plain or fitted ones, and with which ridge."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError

from onnxdecomp.factors import Floats
from onnxdecomp.fitting.arranging import Arrangement, arrangement, chain_of
from onnxdecomp.fitting.leastsquares import LowRank, Problem, fit_low_rank, start
from onnxdecomp.fitting.moments import Moments, flattened
from onnxdecomp.fitting.outcome import Factors, Fit
from onnxdecomp.fitting.plain import find_errors
from onnxdecomp.fitting.products import Outputs, Product, loss_over, plain_losses, shifts
from onnxdecomp.fitting.target import Target

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


def best_factors(
    plain: Factors, target: Target, dtype: np.dtype[np.generic]
) -> tuple[Factors, Floats | None, float]:
    """The factors of one choice that do best on folds of the samples, and the shift of their outputs.

    Args:
        plain: the plain factors of that choice.
        target: what they are fitted to.
        dtype: element type of the model's weight.

    Returns:
        Factors; what to add to the product Ŵx, shape (D,), None for nothing; and their held-out error.
    """
    placed = arrangement(plain.choice, target.weight.shape[2:], target.weight.shape[1])
    products = [Product(w, w) for w in flattened(plain.chain.reconstruct(), target.groups)]
    losses = plain_losses(products, target)
    ridge, held_out = _best_ridge(target, placed, min(losses)) if placed is not None else (None, math.inf)
    if held_out >= min(losses):
        ridge, held_out = None, min(losses)
    wholes = target.wholes()
    nothing = [None] * target.groups
    before = Outputs.of(wholes, nothing, nothing, target.bias)
    moved = shifts(wholes, products, target.centred and losses[1] <= losses[0])
    chosen, because = plain, PLAIN_IS_BETTER if placed is not None else CP_HAS_NO_FIT
    plain_outputs = Outputs.of(wholes, products, nothing, target.bias)
    if ridge is not None and placed is not None:
        # The weight of the ridge against one sample: all samples together bear less of it than the folds did.
        ridge *= _positions(target.rest(0, Moments.means)) / _positions(wholes)
        problems, starts = _prepared(wholes, target, placed, np.float64)
        rounds = _ROUNDS if len(wholes[0].x) <= _LARGE_PATCH else _ROUNDS_OF_LARGE
        parts = _solve(problems, starts, target, placed, ridge, rounds)
        exact = chain_of(plain.choice, parts, target.weight.shape)
        stored = exact.cast(dtype)
        if stored.finite():
            errors = find_errors(target.weight, exact, stored, dtype)
            chosen = dataclasses.replace(plain, chain=stored, errors=errors)
            products = [Product(w, w) for w in flattened(stored.reconstruct(), target.groups)]
            moved = shifts(wholes, products, target.centred)
        else:
            ridge, held_out, because = None, min(losses), f"its fitted factors exceed the range of {dtype}"
    outputs = Outputs.of(wholes, products, moved, target.bias)
    scale = math.sqrt(before.squares) or 1.0
    judged = sum(Outputs.of(parts, nothing, nothing, target.bias).squares for parts in target.judges)
    held_scale = math.sqrt(judged) or 1.0
    report = Fit(
        plain_because=None if chosen is not plain else because,
        ridge=ridge,
        fitted=math.sqrt(loss_over(wholes, products, moved)) / scale,
        held_out=math.sqrt(held_out) / held_scale,
        plain=math.sqrt(losses[0]) / held_scale,
        original_spread=before.spread(target.alpha),
        plain_spread=plain_outputs.spread(target.alpha),
        spread=outputs.spread(target.alpha),
    )
    shift = np.concatenate([s for s in moved if s is not None]) if moved[0] is not None else None
    return dataclasses.replace(chosen, fit=report), shift, math.sqrt(held_out) / held_scale


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
            products = [Product(placed.restored(p.weight()), placed.restored(p.projected())) for p in found]
            moved = shifts(target.rest(fold, Moments.means), products, target.centred)
            lost += loss_over(parts, products, moved)
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
        fit_low_rank(problem.ridged(weight, ridge), placed.taps, inner, placed.ranks[1], rounds)
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


def _positions(moments: Sequence[Moments]) -> int:
    return sum(m.count for m in moments)
