"""Sites that share one weight, and the choices open to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxdecomp.ir import Anchor, BatchNorm, Constant, Survey
from onnxdecomp.planning.choice import Choice
from onnxdecomp.planning.choosing import alternatives
from onnxdecomp.planning.policy import AUTO, Policy


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
