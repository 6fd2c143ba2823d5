"""From choices to factors: each distinct weight is read, folded and factored once, several side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from onnx import helper
from threadpoolctl import threadpool_limits

from onnxdecomp.batchnorm import BatchNorm
from onnxdecomp.choose import AUTO, Policy, alternatives
from onnxdecomp.errors import OnnxdecompError
from onnxdecomp.factors import Chain, factorise
from onnxdecomp.factors.chain import Floats
from onnxdecomp.factors.cp import CpError
from onnxdecomp.plan import Choice
from onnxdecomp.sites import NOT_FINITE, Anchor, Survey
from onnxdecomp.weights import Constant

# Between it and its inverse the squares that make a norm stay in the range of float64.
_PLAIN_NORM = 1e-100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One weight to factor, and all the sites that share it, its ranks and its BatchNormalization.

    `choices` are the candidates: one, or several of which the one with the least weight error is taken.
    """

    weight: Constant
    batchnorm: BatchNorm | None
    choices: tuple[Choice, ...]
    groups: int
    transposed: bool
    anchors: tuple[Anchor, ...]


@dataclass(frozen=True, slots=True)
class Errors:
    """How far stored factors are from the weight W they replace, relative to ‖W‖ (Frobenius).

    Attributes:
        weight: ‖W − Ŵ‖ / ‖W‖ for the factors as stored; W has its BatchNormalization folded in.
        cast: what rounding the factors to a 16-bit element type did: ‖Ŵ − Ŵ in float64‖ / ‖W‖; None for wider
            types, whose rounding is below 1e-6.
    """

    weight: float
    cast: float | None


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of a site's output over samples, channels and positions."""

    mean: float
    std: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What fitting to samples came to; errors are ‖y − ŷ‖ / ‖y‖ of the site's output.

    Attributes:
        plain_because: why the site has its plain factors; None where it was fitted.
        ridge: share of the mean variance of a patch, chosen on folds; None for plain factors.
        fitted: error on the samples the factors were fitted to.
        held_out: error on samples held out, mean over folds.
        plain: error of the plain factors on the same folds.
        original_spread: of the output of the original model.
        plain_spread: with the plain factors.
        spread: with the factors chosen.
        note: what else is to be said of the fit, None for nothing.
    """

    plain_because: str | None = None
    ridge: float | None = None
    fitted: float | None = None
    held_out: float | None = None
    plain: float | None = None
    original_spread: Spread | None = None
    plain_spread: Spread | None = None
    spread: Spread | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The "fit" of a site in the JSON report."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Factored:
    """The factors of one job, the choice they carry out, and their errors.

    `biases` are those of the chains, one per site of the job, where samples moved them; None where they stay.
    """

    choice: Choice
    chain: Chain
    errors: Errors
    fit: Fit | None = None
    biases: tuple[Floats, ...] | None = None


def find_jobs(found: Survey, decisions: Mapping[str, Choice | str], policy: Policy) -> list[Job]:
    """Gather the chosen sites by what they have in common, in graph order; "auto" weighs all methods."""
    jobs: dict[object, list[Anchor]] = {}
    for anchor in found.anchors:
        choice = decisions[anchor.site.name]
        if isinstance(choice, Choice) and anchor.weight is not None:
            fold = anchor.batchnorm.key if anchor.batchnorm is not None else None
            key = (anchor.weight.key, fold, choice, anchor.site.groups, anchor.transposed)
            jobs.setdefault(key, []).append(anchor)
    return [_job(anchors, decisions, policy) for anchors in jobs.values()]


def largest_first(jobs: Sequence[Job]) -> list[Job]:
    """The order in which no core waits for a long job at the end."""
    return sorted(jobs, key=lambda job: -math.prod(job.weight.shape))


def _job(anchors: list[Anchor], decisions: Mapping[str, Choice | str], policy: Policy) -> Job:
    lead = anchors[0]
    choice = decisions[lead.site.name]
    if lead.weight is None or not isinstance(choice, Choice):
        raise ValueError(f"{lead.site.name} was not chosen")
    sites = [anchor.site for anchor in anchors]
    rivals = alternatives(sites, choice, policy) if policy.method == AUTO else []
    return Job(
        weight=lead.weight,
        batchnorm=lead.batchnorm,
        choices=(choice, *rivals),
        groups=lead.site.groups or 1,
        transposed=lead.transposed,
        anchors=tuple(anchors),
    )


def factor_all(jobs: Sequence[Job], folder: Path, n_jobs: int) -> Iterator[Factored | str]:
    """Factor every job, or say why it cannot be; results come in order, a few weights in memory at a time.

    The work is joblib's to spread, over threads here or over whatever backend `joblib.parallel_config` sets.
    One BLAS thread each: matrices this small gain nothing from more, waiting threads fight other programs
    for the cores, and the bytes written would depend on the number of threads.
    """
    with threadpool_limits(1, user_api="blas"):
        parallel = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")
        yield from parallel(delayed(_factor)(*_arrays(job, folder)) for job in jobs)


class NotFiniteError(OnnxdecompError):
    """A weight, or what a BatchNormalization makes of it, has NaN or Inf."""


def read_finite_weight(anchor: Anchor, folder: Path) -> Floats:
    """The weight of a site as (C_out, C_in / groups, *kernel) in float64, a BatchNormalization folded in.

    Raises:
        NotFiniteError: it has NaN or Inf.
    """
    if anchor.weight is None:
        raise ValueError(f"{anchor.site.name} has no constant weight")
    values: Floats = anchor.weight.values(folder).astype(np.float64)
    if not np.isfinite(values).all():
        raise NotFiniteError(NOT_FINITE)
    if anchor.transposed:
        values = np.ascontiguousarray(values.T)
    if anchor.batchnorm is None:
        return values
    scale, bias = anchor.batchnorm.affine(folder)
    values = values * scale.reshape(-1, *[1] * (values.ndim - 1))
    if not (np.isfinite(values).all() and np.isfinite(bias).all()):
        raise NotFiniteError("its BatchNormalization makes NaN or Inf of the weight (see --no-fold-bn)")
    return values


def _arrays(job: Job, folder: Path) -> tuple[Floats | str, tuple[Choice, ...], int, np.dtype[np.generic]]:
    """All that factoring needs, free of protobufs, so that it can travel to another process."""
    try:
        weight: Floats | str = read_finite_weight(job.anchors[0], folder)
    except NotFiniteError as error:
        weight = str(error)
    return weight, job.choices, job.groups, helper.tensor_dtype_to_np_dtype(job.weight.data_type)


def _factor(
    weight: Floats | str, choices: Sequence[Choice], groups: int, dtype: np.dtype[np.generic]
) -> Factored | str:
    if isinstance(weight, str):
        return weight
    found = [factor_one(weight, choice, groups, dtype) for choice in choices]
    good = [each for each in found if isinstance(each, Factored)]
    return min(good, key=lambda each: each.errors.weight) if good else found[0]


def factor_one(weight: Floats, choice: Choice, groups: int, dtype: np.dtype[np.generic]) -> Factored | str:
    """Plain factors of a weight, rounded to `dtype`, or why there are none."""
    try:
        exact = factorise(choice.method, weight, choice.ranks, groups)
    except CpError as error:
        return str(error)
    stored = exact.cast(dtype)
    if not stored.finite():
        return f"its factors exceed the range of {dtype}"
    return Factored(choice, stored, find_errors(weight, exact, stored, dtype))


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
