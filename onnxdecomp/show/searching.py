"""What `onnxdecomp search` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from onnxdecomp.planning import label
from onnxdecomp.searching import Contender, Point, Reason, SearchResult, Trial, further, reasons
from onnxdecomp.show.comparing import quality_view
from onnxdecomp.show.text import UNKNOWN, escape, sentence, si, with_flags
from onnxdecomp.show.timing import verdict

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


def trials_view(trials: Sequence[Trial]) -> Table:
    """Every trial of a study."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("trial", "state", "loss", "cost", "sites"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for each in trials:
        figures = (UNKNOWN if value is None else f"{value:.4g}" for value in (each.loss, each.cost))
        sites = UNKNOWN if each.plan is None else str(len(each.plan.sites))
        table.add_row(str(each.number), each.state, *figures, sites)
    return table


def _measured(measure: str) -> str:
    return "time" if measure == "seconds" else _UNITS[measure]


def _sites_view(found: Sequence[Reason], measure: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    unit = _UNITS[measure]
    table.add_column("site", overflow="fold", ratio=3)
    for name in ("takes", f"{unit} before", "after", "loses", "next cheaper", "next better"):
        table.add_column(name, justify="right")
    for each in found:
        table.add_row(
            escape(each.name),
            label(each.taken.choice),
            _cost(each.kept, measure),
            _cost(each.taken.cost, measure) if each.taken.choice is not None else "",
            f"{each.taken.loss:.2g}" if each.taken.choice is not None else "",
            _neighbour(each.cheaper, measure),
            _neighbour(each.better, measure),
        )
    return table


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
