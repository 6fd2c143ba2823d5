"""From choices to factors: each distinct weight is read, folded and factored once, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import helper
from threadpoolctl import threadpool_limits

from onnxdecomp.batchnorm import BatchNorm
from onnxdecomp.factors import Chain, factorise
from onnxdecomp.plan import Choice
from onnxdecomp.sites import NOT_FINITE, Anchor, Survey
from onnxdecomp.weights import Constant

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One weight to factor, and all the Convs that share it, its ranks and its BatchNormalization."""

    weight: Constant
    batchnorm: BatchNorm | None
    choice: Choice
    groups: int
    anchors: tuple[Anchor, ...]


@dataclass(frozen=True, slots=True)
class Errors:
    """How far stored factors are from the weight W they replace, relative to ‖W‖ (Frobenius).

    Attributes:
        weight: ‖W − Ŵ‖ / ‖W‖ for the factors as stored; W has its BatchNormalization folded in.
        cast: what rounding the factors to the model's element type did: ‖Ŵ − Ŵ in float64‖ / ‖W‖.
    """

    weight: float
    cast: float


@dataclass(frozen=True, slots=True)
class Factored:
    """The factors of one job, and their errors."""

    chain: Chain
    errors: Errors


def find_jobs(found: Survey, decisions: Mapping[str, Choice | str]) -> list[Job]:
    """Gather the chosen Convs by what they have in common, in graph order."""
    jobs: dict[object, list[Anchor]] = {}
    for anchor in found.anchors:
        choice = decisions[anchor.site.name]
        if isinstance(choice, Choice) and anchor.weight is not None:
            fold = anchor.batchnorm.key if anchor.batchnorm is not None else None
            jobs.setdefault((anchor.weight.key, fold, choice, anchor.site.groups), []).append(anchor)
    return [_job(anchors, decisions) for anchors in jobs.values()]


def _job(anchors: list[Anchor], decisions: Mapping[str, Choice | str]) -> Job:
    lead = anchors[0]
    choice = decisions[lead.site.name]
    if lead.weight is None or not isinstance(choice, Choice):
        raise ValueError(f"{lead.site.name} was not chosen")
    return Job(
        weight=lead.weight,
        batchnorm=lead.batchnorm,
        choice=choice,
        groups=lead.site.groups or 1,
        anchors=tuple(anchors),
    )


def factor(job: Job, folder: Path) -> Factored | str:
    """Factor the job's weight, or say why it cannot be; external data are looked up in `folder`."""
    weight = job.weight.values(folder).astype(np.float64)
    if not np.isfinite(weight).all():
        return NOT_FINITE
    if job.batchnorm is not None:
        scale, bias = job.batchnorm.affine(folder)
        if not (np.isfinite(scale).all() and np.isfinite(bias).all()):
            return "its BatchNormalization makes NaN or Inf of the weight (--no-fold-bn keeps them apart)"
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    # One BLAS thread: matrices this small gain nothing from more, waiting threads fight other programs for
    # the cores, and the bytes written would depend on the number of threads.
    with threadpool_limits(1, user_api="blas"):
        exact = factorise(weight, job.choice.ranks, job.groups)
    stored = exact.cast(helper.tensor_dtype_to_np_dtype(job.weight.data_type))
    if not all(np.isfinite(link.weight).all() for link in stored.links):
        return f"its factors exceed the range of {job.anchors[0].site.dtype}"
    norm = float(np.linalg.norm(weight)) or 1.0
    restored = stored.reconstruct()
    return Factored(
        stored,
        Errors(
            weight=float(np.linalg.norm(weight - restored)) / norm,
            cast=float(np.linalg.norm(exact.reconstruct() - restored)) / norm,
        ),
    )
