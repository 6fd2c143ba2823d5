"""The pass: a model and a rank in, the same model with chains of small convolutions out."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from onnxdecomp.arguments import PathLike, verified
from onnxdecomp.errors import NothingSelectedError, UsageError
from onnxdecomp.fitting import Factors, factor_all, fit_all, largest_first, require_sight
from onnxdecomp.ir import ShapesLike, Source, Survey, as_folder, as_input_shapes, as_model
from onnxdecomp.lowering import Splicer
from onnxdecomp.planning import Choice, Plan, PlanLike, Policy, Unit, as_plan
from onnxdecomp.progress import Progress, logged, silent, tracked
from onnxdecomp.rewriting.deciding import clamped, decide, decided_units, why_nothing
from onnxdecomp.rewriting.improving import improved, require_tunable
from onnxdecomp.rewriting.proving import proven
from onnxdecomp.rewriting.request import Request
from onnxdecomp.rewriting.result import Result, report_of, totals_of
from onnxdecomp.sampling import Samples, SampleSets, SamplesLike, as_samples
from onnxdecomp.tuning import Tuning

# More threads than any machine has only wait for each other.
_MOST_JOBS = 1024


@verified
def rewrite(
    model: Source,
    rank: str | int | float | None = None,
    *,
    plan: PlanLike | None = None,
    policy: Policy | None = None,
    only: str | None = None,
    skip: str | None = None,
    fold_bn: bool = True,
    freeze_weights: bool = False,
    input_shapes: ShapesLike | None = None,
    data: SampleSets | SamplesLike | None = None,
    tuning: Tuning | None = None,
    scratch: PathLike | None = None,
    jobs: int = -1,
    check: bool = True,
    progress: Progress = silent,
) -> Result:
    """Replace Convs by chains of smaller ones, and check the new model; all else of it stays as it is.

    The check runs both models and compares: see `Result.check` for what came of it.

    An example is in docs/python.md under "Rewriting".

    Args:
        model: a path, a ModelProto that holds all its data, or a result; never changed.
        rank: 0.25, "in=0.25,out=0.5", 32, "energy=0.9", "vbmf", …; see `onnxdecomp.planning.rules`.
        plan: explicit choices instead of `rank`, carried out to the letter; a path is loaded.
        policy: what `rank` may choose; see `Policy`.
        only: regular expression searched in site names: the others are kept.
        skip: regular expression searched in site names: these are kept.
        fold_bn: fold a BatchNormalization that alone consumes a Conv before factoring.
        freeze_weights: treat weights that callers may override as constant.
        input_shapes: shapes for inputs with unknown dimensions, for the costs and the check; None takes for
            the costs those of `data`.
        data: samples to fit the factors to: all of these (what `open_samples` takes will do), or the part of
            SampleSets that is for it, and then `Result.quality` is measured on the other; None for plain
            factors.
        tuning: how to tune what was fitted, as the function `tune` does, on the samples that it was fitted
            to, or on `SampleSets.trained`; where that is interrupted, the best so far is the answer. None
            does not.
        scratch: folder for activations, and for the factors of external weights until they are saved; None is
            the system's.
        jobs: how many weights are factored at a time, by threads or what `joblib.parallel_config` sets; -1 is
            as many as that says, else one per core. With `data` sites are fitted one after another, since
            each is fitted to what the model rewritten so far puts out.
        check: hold the new model to what the original does, as the function `check`; a model that cannot be
            run here is not checked, and `Result.check` says so.
        progress: told of every weight that is done.

    Returns:
        The rewritten model, the plan carried out, and a report per site.

    Raises:
        ModelError: the file is no whole ONNX model.
        UsageError: an argument that cannot be obeyed, as a rank, a plan, a shape or a regular expression.
        CheckError: the new model fails where the original does not, or its outputs changed their shapes.
        NothingSelectedError: no Conv was chosen (an explicitly empty plan is fine).
        RunError: the model does not run on `data`, or joblib's workers failed.
        MissingExtraError: `tuning` needs PyTorch, which is absent or too old.
    """
    if not 0 < abs(jobs) <= _MOST_JOBS:
        raise UsageError(f"`jobs` {jobs}: give a number from 1 to {_MOST_JOBS}, or -1 for one per core")
    request = Request.parse(rank, None if plan is None else as_plan(plan), policy, only, skip)
    folder, shapes, source = as_folder(scratch, "scratch"), as_input_shapes(input_shapes), as_model(model)
    sets, fitted, trained = None, None, None
    if isinstance(data, SampleSets):
        sets, fitted, trained = data, data.fitted, data.tuned_on
    elif data is not None:
        fitted = trained = as_samples(data, source, "data")
    if tuning is not None:
        require_tunable(tuning, trained, "data")
    found = request.survey(source, shapes, fitted, freeze=freeze_weights, fold_bn=fold_bn)
    result = carry_out(request, found, data=fitted, scratch=folder, jobs=jobs, progress=logged(progress))
    if tuning is not None and trained is not None:
        result = improved(result, source, sets or trained, tuning, progress)
    return proven(result, source, checked=check, input_shapes=shapes, sets=sets, scratch=folder)


def carry_out(
    request: Request,
    found: Survey,
    *,
    data: Samples | None,
    scratch: Path | None,
    jobs: int = -1,
    progress: Progress,
) -> Result:
    """`rewrite` of a model whose sites are known: decide, factor or fit, put the chains in, report.

    One survey does for any number of requests.
    """
    decisions = decide(found, request)
    units = decided_units(found, decisions, request.policy)
    splicer = Splicer(found, scratch)
    outcomes: dict[str, Factors] = {}
    for unit, outcome in _factored(units, found, data, scratch, jobs, progress):
        names = [site.name for site in unit.sites]
        if isinstance(outcome, Factors):
            splicer.install(unit.anchors, outcome.chain, outcome.biases)
            outcomes |= dict.fromkeys(names, outcome)
            decisions |= dict.fromkeys(names, outcome.choice)
        elif request.plan is not None:
            raise UsageError(f"`plan`, site '{unit.name}' cannot be decomposed: {outcome}")
        else:
            decisions |= dict.fromkeys(names, outcome)
    if data is not None:
        require_sight("data", [decisions[site.name] for unit in units for site in unit.sites])
    if not outcomes and (request.plan is None or request.plan.sites):
        raise NothingSelectedError(why_nothing(decisions))
    rewritten = splicer.finish()
    sites = [anchor.site for anchor in found.anchors]
    reports = tuple(report_of(site, decisions[site.name], outcomes.get(site.name)) for site in sites)
    return Result(
        rewritten=rewritten,
        plan=Plan({name: choice for name, choice in decisions.items() if isinstance(choice, Choice)}),
        sites=reports,
        totals=totals_of(found, reports, rewritten),
        notes=(*found.notes, *clamped(request.rule, sites)),
        sources=frozenset(found.model.files()),
    )


def _factored(
    units: list[Unit],
    found: Survey,
    data: Samples | None,
    scratch: Path | None,
    jobs: int,
    progress: Progress,
) -> Iterator[tuple[Unit, Factors | str]]:
    """Every unit with its factors, or why it has none."""
    if data is None:
        units = largest_first(units)
        outcomes = factor_all(units, found.model.folder, jobs)
    else:
        outcomes = fit_all(units, found, data, scratch)
    what = "factoring" if data is None else "fitting"
    yield from zip(tracked(units, what, progress, attrgetter("name")), outcomes, strict=True)
