"""What `onnxdecomp search` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from onnxdecomp.planning import label
from onnxdecomp.searching import Contender, Point, Reason, SearchResult, Trial, further, reasons
from onnxdecomp.show.comparing import quality_view
from onnxdecomp.show.sites import SITE
from onnxdecomp.show.tables import Column, Listing
from onnxdecomp.show.text import UNKNOWN, escape, sentence, si, with_flags
from onnxdecomp.show.timing import verdict
from onnxdecomp.show.tuning import tuned_notes

_UNITS = {"seconds": "ms", "macs": "MACs", "params": "parameters", "bytes": "bytes"}


def search_view(outcome: SearchResult) -> RenderableType:
    """The sites with their reasons, what the model has become, and whether that was the goal."""
    best, goal, measure = outcome.best, outcome.goal, outcome.measure
    if best is None:
        return with_flags(f"\n{goal}: nothing was tried")
    parts: list[RenderableType] = [_sites_view(reasons(outcome.solution, best), measure), ""]
    parts += [f"{line}" for line in _totals(best)]
    if best.quality is not None:
        parts.append(quality_view(best.quality))
    if best.score is not None:
        parts.append(f"{escape(best.score.name)}: {best.score.before:.4g} → {best.score.after:.4g}")
    parts += _tuning(outcome, best)
    if (bought := further(outcome.solution, best)) is not None:
        now, then = bought
        parts.append(
            f"\nby prediction a further 1 % of output error would bring the sites' {_measured(measure)} from "
            f"{now:.1%} to {then:.1%} of the original's"
        )
    if outcome.study is not None:
        states = ", ".join(f"{count} {state}" for state, count in outcome.study.states.items())
        parts.append(f"\nstudy {escape(outcome.study.name)}: trials: {states}")
    if outcome.stopped:
        parts.append("\nstopped before the search was over: this is the best so far")
    parts.append(_verdict(outcome, best))
    return Group(*parts, *(f"note: {sentence(note)}" for note in outcome.notes))


def _tuning(outcome: SearchResult, best: Contender) -> list[str]:
    """What tuning did to the model that was chosen."""
    for each in outcome.tried:
        if each.tuned is not None and each.plan == best.plan:
            errors = " → ".join(map(_figure, (each.fitted_error, each.error)))
            line = f"tuned: error {errors}, {each.tuned.steps} steps of {each.tuned.seconds:.0f} s"
            kept = "" if each is best else "; that is no better, so factors stay as they were fitted"
            return [f"{line}{kept}", *(f"note: {sentence(note)}" for note in tuned_notes(each.tuned))]
    return []


def trials_view(trials: Sequence[Trial]) -> Listing:
    """Every trial of a study."""
    columns = [
        Column(title=name, right=name != "state") for name in ("trial", "state", "loss", "cost", "sites")
    ]
    rows = [
        (str(each.number), each.state, _figure(each.loss), _figure(each.cost), _sites(each))
        for each in trials
    ]
    return Listing(columns, rows)


def _figure(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"


def _sites(trial: Trial) -> str:
    return UNKNOWN if trial.plan is None else str(len(trial.plan.sites))


def _measured(measure: str) -> str:
    return "time" if measure == "seconds" else _UNITS[measure]


def _sites_view(found: Sequence[Reason], measure: str) -> Listing:
    columns = (
        SITE,
        Column(title="takes", right=True),
        Column(title=f"{_UNITS[measure]} before", right=True, rank=1),
        Column(title="after", right=True),
        Column(title="loses", right=True),
        Column(title="next cheaper", right=True, rank=3),
        Column(title="next better", right=True, rank=2),
    )
    rows = [
        (
            each.name,
            label(each.taken.choice),
            _cost(each.kept, measure),
            _cost(each.taken.cost, measure) if each.taken.choice is not None else "",
            f"{each.taken.loss:.2g}" if each.taken.choice is not None else "",
            _neighbour(each.cheaper, measure),
            _neighbour(each.better, measure),
        )
        for each in found
    ]
    return Listing(columns, rows)


def _cost(value: float, measure: str) -> str:
    return f"{1e3 * value:.3f}" if measure == "seconds" else si(value)


def _neighbour(point: Point | None, measure: str) -> str:
    if point is None:
        return "–"
    return f"{label(point.choice)}: {_cost(point.cost, measure)}, {point.loss:.2g}"


def _totals(best: Contender) -> list[str]:
    names = {"macs": "Conv MACs", "params": "Conv parameters", "size": "file size"}
    shares = ", ".join(f"{names[kind]} {share:.1%}" for kind, share in best.shares.items())
    lines = [f"left of the original: {shares}"]
    if best.speedup is not None:
        lines.append(f"timed as a whole: {verdict(best.speedup)}")
    return lines


def _verdict(outcome: SearchResult, best: Contender) -> str:
    reached = best.reached(outcome.goal)
    figure = "not measured" if reached is None else f"{reached:.3f}"
    if outcome.met:
        return with_flags(f"\n{outcome.goal}: reached ({figure})")
    return with_flags(f"\n{outcome.goal}: NOT reached; the best found comes to {figure}")
