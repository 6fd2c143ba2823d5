"""What `onnxdecomp rewrite` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from onnxdecomp.rewriting import Result, SiteReport, Totals
from onnxdecomp.show.sites import geometry, site_columns
from onnxdecomp.show.text import UNKNOWN, escape, ratio, sentence, si


def totals_table(totals: Totals) -> Table:
    """Parameters, multiply-accumulates and size, before and after."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("", "before", "after", ""):
        table.add_column(name, justify="right" if name else "left")
    rows = (
        ("Conv parameters", totals.params, ""),
        ("Conv MACs", totals.macs, ""),
        ("file size", totals.nbytes, "B"),
    )
    for name, (before, after), unit in rows:
        table.add_row(name, si(before, unit), si(after, unit), ratio(before, after))
    return table


def _sites_table(reports: Sequence[SiteReport]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, expand=False)
    site_columns(table, "kernel", "channels", "method", "ranks", "params", "MACs")
    table.add_column("weight error", justify="right")
    for report in reports:
        if report.choice is None or report.errors is None:
            continue
        ranks = report.choice.ranks
        table.add_row(
            escape(report.site.name),
            *geometry(report.site),
            report.choice.method,
            " ".join(
                f"{side}={r}" for side, r in (("in", ranks.input), ("out", ranks.output)) if r is not None
            ),
            f"{si(report.site.params)} → {si(report.after[0])}",
            f"{si(report.site.macs)} → {si(report.after[1])}",
            f"{report.errors.weight:.3f}",
        )
    return table


def _kept_table(reports: Sequence[SiteReport]) -> Table:
    """Why the other Convs were kept: one row for each reason, with the first few names."""
    by_reason: dict[str, list[str]] = {}
    for report in reports:
        if report.reason is not None:
            by_reason.setdefault(report.reason, []).append(report.site.name)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("kept", justify="right")
    table.add_column("because")
    table.add_column("sites", overflow="fold")
    for reason, names in by_reason.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        table.add_row(str(len(names)), sentence(reason), escape(", ".join(names[:3]) + more))
    return table


def result_view(result: Result) -> RenderableType:
    """The whole outcome of a rewrite: totals first, then what was rewritten, then what was kept and why."""
    chosen = sum(report.choice is not None for report in result.sites)
    parts: list[RenderableType] = [
        totals_table(result.totals),
        f"\n{chosen} of {len(result.sites)} Convs rewritten\n",
    ]
    parts += [_sites_table(result.sites)] if chosen else []
    parts += [fit_view(result.sites)] if any(report.fit for report in result.sites) else []
    parts += ["", _kept_table(result.sites)] if chosen < len(result.sites) else []
    return Group(*parts, *(f"note: {sentence(note)}" for note in result.notes))


def fit_view(reports: Sequence[SiteReport]) -> RenderableType:
    """What fitting came to: errors and spreads of each site's output, plain and fitted."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("output error of", overflow="fold", ratio=3)
    for name in ("plain", "fitted", "held out", "ridge", "std plain", "std fitted"):
        table.add_column(name, justify="right")
    for report in reports:
        fit = report.fit
        if fit is None or fit.held_out is None:
            continue
        spreads = (fit.original_spread, fit.plain_spread, fit.spread)
        original, *others = (spread.std if spread else 0.0 for spread in spreads)
        table.add_row(
            escape(report.site.name),
            *(UNKNOWN if v is None else f"{v:.3f}" for v in (fit.plain, fit.fitted, fit.held_out)),
            "–" if fit.ridge is None else f"{fit.ridge:.1g}",
            *(f"{std / original:.2f}×" if original else "–" for std in others),
        )
    because: dict[str, list[str]] = {}
    for report in reports:
        if report.fit is not None and report.fit.plain_because is not None:
            because.setdefault(report.fit.plain_because, []).append(report.site.name)
    lines = [f"\n{len(names)} sites keep plain factors: {sentence(why)}" for why, names in because.items()]
    noted = {report.site.name: report.fit.note for report in reports if report.fit and report.fit.note}
    lines += [f"note: {escape(name)}: {sentence(note)}" for name, note in noted.items()]
    return Group("", table, *lines)
