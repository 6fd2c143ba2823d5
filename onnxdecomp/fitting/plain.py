"""From choices to factors: each distinct weight is read, folded and factored once, several side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from onnxdecomp.factors import Chain, CpError, Floats, factorise
from onnxdecomp.fitting.outcome import Errors, Factors
from onnxdecomp.fitting.workers import Workers
from onnxdecomp.ir import NotFiniteError, read_finite_weight
from onnxdecomp.planning import Choice, Unit

# Between it and its inverse the squares that make a norm stay in the range of float64.
_PLAIN_NORM = 1e-100


def factor_all(units: Sequence[Unit], folder: Path, jobs: int) -> Iterator[Factors | str]:
    """Factor every unit, or say why it cannot be; results come in order, a few weights in memory at a time.

    Args:
        units: in any order.
        folder: of their external data.
        jobs: how many are factored at a time; see `Workers`.

    Raises:
        RunError: the backend set by `joblib.parallel_config` failed.
    """
    with Workers(jobs) as workers:
        yield from workers.run(partial(_factor, *_arrays(unit, folder)) for unit in units)


def largest_first(units: Sequence[Unit]) -> list[Unit]:
    """The order in which no core waits for a long one at the end."""
    return sorted(units, key=lambda unit: -math.prod(unit.weight.shape))


def _arrays(unit: Unit, folder: Path) -> tuple[Floats | str, tuple[Choice, ...], int, np.dtype[np.generic]]:
    """All that factoring needs, free of protobufs, so that it can travel to another process."""
    try:
        weight: Floats | str = read_finite_weight(unit.lead, folder)
    except NotFiniteError as error:
        weight = str(error)
    return weight, unit.choices, unit.groups, unit.weight.factor_dtype


def _factor(
    weight: Floats | str, choices: Sequence[Choice], groups: int, dtype: np.dtype[np.generic]
) -> Factors | str:
    if isinstance(weight, str):
        return weight
    found = [factor_one(weight, choice, groups, dtype) for choice in choices]
    good = [each for each in found if isinstance(each, Factors)]
    return min(good, key=lambda each: each.errors.weight) if good else found[0]


def factor_one(weight: Floats, choice: Choice, groups: int, dtype: np.dtype[np.generic]) -> Factors | str:
    """Plain factors of a weight, rounded to `dtype`, or why there are none."""
    try:
        exact = factorise(choice.method, weight, choice.ranks, groups)
    except CpError as error:
        return str(error)
    stored = exact.cast(dtype)
    if not stored.finite():
        return f"its factors exceed the range of {dtype}"
    return Factors(choice, stored, find_errors(weight, exact, stored, dtype))


def find_errors(weight: Floats, exact: Chain, stored: Chain, dtype: np.dtype[np.generic]) -> Errors:
    """How far factors are from a weight, as computed and as stored in `dtype`."""
    restored = stored.reconstruct()
    lost = _relative(weight - restored, weight)
    rounded = _relative(exact.reconstruct() - restored, weight) if dtype.itemsize < 4 else None
    return Errors(weight=lost, cast=rounded)


def _relative(difference: Floats, weight: Floats) -> float:
    """‖difference‖ / ‖weight‖, safe where the squares of either leave the range of float64."""
    lost, whole = (float(np.linalg.norm(values)) for values in (difference, weight))
    if not (_PLAIN_NORM < whole < 1 / _PLAIN_NORM):
        peak = float(np.abs(weight).max()) or 1.0
        lost, whole = (float(np.linalg.norm(values / peak)) for values in (difference, weight))
    return lost / (whole or 1.0)
