"""The pass: a model and a rank in, the same model with chains of small convolutions out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from onnx import ModelProto
from threadpoolctl import threadpool_limits

from onnxdecomp.errors import NothingSelectedError, UsageError
from onnxdecomp.fitting import Factored, factor_all, fit_all
from onnxdecomp.ir import (
    Anchor,
    InputShapes,
    Model,
    NotFiniteError,
    Site,
    Survey,
    as_model,
    read_finite_weight,
    survey,
)
from onnxdecomp.lowering import Splicer
from onnxdecomp.planning import (
    Choice,
    FixedRule,
    Job,
    Plan,
    Policy,
    chain_macs,
    chain_params,
    choose,
    find_jobs,
    largest_first,
    verify,
)
from onnxdecomp.rewriting.request import Request
from onnxdecomp.rewriting.result import Result, SiteReport, Totals
from onnxdecomp.sampling import Samples

EXCLUDED = "excluded by the user"
NOT_PLANNED = "not in the plan"

Decisions = dict[str, Choice | str]
Track = Callable[[Sequence[Job]], Iterable[Job]]


def rewrite(
    model: ModelProto | str | os.PathLike[str] | Model,
    rank: str | int | float | None = None,
    *,
    plan: Plan | None = None,
    policy: Policy | None = None,
    only: str | None = None,
    skip: str | None = None,
    fold_bn: bool = True,
    freeze_weights: bool = False,
    input_shapes: InputShapes | None = None,
    data: Samples | None = None,
    scratch: Path | None = None,
    jobs: int = -1,
    track: Track = lambda work: work,
) -> Result:
    """Replace Convs by chains of smaller ones; everything else of the model stays as it is.

    Args:
        model: a path, or a ModelProto that holds all its data; never changed.
        rank: 0.25, "in=0.25,out=0.5", 32, "energy=0.9", "vbmf", …; see `onnxdecomp.ranks`.
        plan: explicit choices instead of `rank`, carried out to the letter.
        policy: what `rank` may choose; see `Policy`.
        only: regular expression searched in site names: the others are kept.
        skip: regular expression searched in site names: these are kept.
        fold_bn: fold a BatchNormalization that alone consumes a Conv before factoring.
        freeze_weights: treat weights that callers may override as constant.
        input_shapes: shapes for inputs with unknown dimensions, for the costs reported.
        data: samples to fit the factors to; None for plain factors.
        scratch: folder for activations, and for the factors of external weights until they are saved; None is
            the system's.
        jobs: how many weights are factored at a time; -1 is one per core.
        track: wraps the sequence of jobs, to show progress.

    Returns:
        The rewritten model, the plan carried out, and a report per site.

    Raises:
        ModelError: the file is no whole ONNX model.
        UsageError: a rank, plan, shape or regular expression that cannot be obeyed.
        NothingSelectedError: no Conv was chosen (an explicitly empty plan is fine).
    """
    request = Request.parse(rank, plan, only, skip)
    edited = as_model(model)
    if isinstance(model, ModelProto | Model):
        edited = edited.copy()
    before = edited.nbytes()
    policy = policy or Policy()
    found = survey(
        edited,
        input_shapes=input_shapes or {},
        freeze=freeze_weights,
        fold_bn=fold_bn,
        linear=policy.wants_linear or plan is not None,
    )
    if plan is not None and not policy.wants_linear:
        found = found.without_linear(set(found.names()) - set(plan.sites))
    sites = [anchor.site for anchor in found.anchors]
    if plan is not None:
        verify(plan, sites)
    decisions: Decisions = {
        anchor.site.name: _decide(anchor, request, policy, edited.folder) for anchor in found.anchors
    }

    splicer = Splicer(edited, found, scratch)
    outcomes: dict[str, Factored] = {}
    work = find_jobs(found, decisions, policy)
    if data is None:
        work = largest_first(work)
        factored = factor_all(work, edited.folder, jobs)
    else:
        factored = fit_all(work, edited, data, scratch, freeze=freeze_weights)
    for job, outcome in zip(track(work), factored, strict=True):
        names = [anchor.site.name for anchor in job.anchors]
        if isinstance(outcome, Factored):
            splicer.install(job, outcome.chain, outcome.biases)
            outcomes |= dict.fromkeys(names, outcome)
            decisions |= dict.fromkeys(names, outcome.choice)
        elif plan is not None:
            raise UsageError(f"plan, site '{names[0]}' cannot be decomposed: {outcome}")
        else:
            decisions |= dict.fromkeys(names, outcome)
    if not outcomes and (plan is None or plan.sites):
        raise NothingSelectedError(_why_nothing(decisions))
    rewritten = splicer.finish()
    reports = tuple(_report(site, decisions[site.name], outcomes.get(site.name)) for site in sites)
    return Result(
        rewritten=rewritten,
        plan=Plan({name: choice for name, choice in decisions.items() if isinstance(choice, Choice)}),
        sites=reports,
        totals=_totals(found, reports, (before, rewritten.nbytes())),
        notes=(*found.notes, *_clamped(request, reports)),
        sources=frozenset(edited.files()),
    )


def _decide(anchor: Anchor, request: Request, policy: Policy, folder: Path) -> Choice | str:
    site = anchor.site
    if site.obstacle is not None:
        return site.obstacle
    if not request.wants(site.name):
        return EXCLUDED
    if request.rule is None:
        return request.plan.sites.get(site.name, NOT_PLANNED) if request.plan is not None else NOT_PLANNED
    try:
        with threadpool_limits(1, user_api="blas"):
            return choose(site, request.rule, policy, lambda: read_finite_weight(anchor, folder))
    except NotFiniteError as error:
        return str(error)


def _clamped(request: Request, reports: Sequence[SiteReport]) -> list[str]:
    """Says so where exact channels exceed what a site has."""
    rule = request.rule
    wanted = (
        [r for r in (rule.input, rule.output) if isinstance(r, int)] if isinstance(rule, FixedRule) else []
    )
    short = [
        report.site.name
        for report in reports
        if report.site.obstacle is None and any(rank > max(report.site.group_channels) for rank in wanted)
    ]
    return (
        [f"rank {max(wanted)} is above the channels of {len(short)} sites and was clamped there"]
        if short
        else []
    )


def _why_nothing(decisions: Decisions) -> str:
    if not decisions:
        return "nothing to decompose: the model has no Conv; nothing was written"
    (reason, count), *_ = Counter(str(reason).split(":")[0] for reason in decisions.values()).most_common(1)
    return (
        f"nothing to decompose: all {len(decisions)} Convs are kept, {count} of them because: {reason}; "
        "nothing was written (`onnxdecomp inspect` lists the reasons)"
    )


def _report(site: Site, decision: Choice | str, outcome: Factored | None) -> SiteReport:
    if isinstance(decision, str) or outcome is None:
        return SiteReport(
            site=site, choice=None, reason=str(decision), after=(site.params, site.macs), errors=None
        )
    after = (chain_params(site, decision), chain_macs(site, decision))
    return SiteReport(
        site=site, choice=decision, reason=None, after=after, errors=outcome.errors, fit=outcome.fit
    )


def _totals(found: Survey, reports: Sequence[SiteReport], nbytes: tuple[int, int]) -> Totals:
    """Sums over all sites, a weight that several share counted once; None where one is not known."""
    before: dict[object, int | None] = {}
    after: dict[object, int | None] = {}
    for anchor, report in zip(found.anchors, reports, strict=True):
        key = anchor.weight.key if anchor.weight is not None else anchor.site.name
        before[key] = report.site.params
        after[key, report.choice] = report.after[0]
    return Totals(
        params=(_sum(before.values()), _sum(after.values())),
        macs=(_sum(r.site.macs for r in reports), _sum(r.after[1] for r in reports)),
        nbytes=nbytes,
    )


def _sum(values: Iterable[int | None]) -> int | None:
    listed = list(values)
    return None if None in listed else sum(value for value in listed if value is not None)
