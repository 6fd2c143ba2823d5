"""What `onnxdecomp rewrite` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from onnxdecomp.rewriting import Result, SiteReport, Totals
from onnxdecomp.show.sites import SITE, geometry
from onnxdecomp.show.tables import Column, Listing
from onnxdecomp.show.text import UNKNOWN, escape, ratio, sentence, si
from onnxdecomp.show.tuning import tuned_view

_SITES = (
    SITE,
    Column(title="kernel", rank=5),
    Column(title="channels", rank=4),
    Column(title="method", rank=2),
    Column(title="ranks"),
    Column(title="params", rank=3),
    Column(title="MACs", rank=1),
    Column(title="weight error", right=True),
)
_KEPT = (
    Column(title="kept", right=True),
    Column(title="because", holds="words"),
    Column(title="sites", holds="names"),
)
_FITS = (
    Column(title="output error of", holds="names"),
    Column(title="plain", right=True),
    Column(title="fitted", right=True, rank=1),
    Column(title="held out", right=True),
    Column(title="ridge", right=True, rank=4),
    Column(title="std plain", right=True, rank=3),
    Column(title="std fitted", right=True, rank=2),
)


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


def _sites_table(reports: Sequence[SiteReport]) -> Listing:
    rows = []
    for report in reports:
        if report.choice is None or report.errors is None:
            continue
        ranks = report.choice.ranks
        sides = (("in", ranks.input), ("out", ranks.output))
        row = (
            report.site.name,
            *geometry(report.site),
            report.choice.method,
            " ".join(f"{side}={rank}" for side, rank in sides if rank is not None),
            f"{si(report.site.params)} → {si(report.after[0])}",
            f"{si(report.site.macs)} → {si(report.after[1])}",
            f"{report.errors.weight:.3f}",
        )
        rows.append(row)
    return Listing(_SITES, rows)


def _kept_table(reports: Sequence[SiteReport]) -> Listing:
    """Why the other Convs were kept: one row for each reason, with the first few names."""
    by_reason: dict[str, list[str]] = {}
    for report in reports:
        if report.reason is not None:
            by_reason.setdefault(report.reason, []).append(report.site.name)
    rows = [(str(len(names)), sentence(reason), tuple(names)) for reason, names in by_reason.items()]
    return Listing(_KEPT, rows)


def result_view(result: Result) -> RenderableType:
    """The whole outcome of a rewrite: totals, what was rewritten, what was kept and why, tuning."""
    chosen = sum(report.choice is not None for report in result.sites)
    parts: list[RenderableType] = [
        totals_table(result.totals),
        f"\n{chosen} of {len(result.sites)} Convs rewritten\n",
    ]
    parts += [_sites_table(result.sites)] if chosen else []
    parts += [fit_view(result.sites)] if any(report.fit for report in result.sites) else []
    parts += ["", _kept_table(result.sites)] if chosen < len(result.sites) else []
    parts += [f"note: {sentence(note)}" for note in result.notes]
    return Group(*parts, *([tuned_view(result.tuned)] if result.tuned is not None else []))


def fit_view(reports: Sequence[SiteReport]) -> RenderableType:
    """What fitting came to: errors and spreads of each site's output, plain and fitted."""
    rows = []
    for report in reports:
        fit = report.fit
        if fit is None or fit.held_out is None:
            continue
        spreads = (fit.original_spread, fit.plain_spread, fit.spread)
        original, *others = (spread.std if spread else 0.0 for spread in spreads)
        row = (
            report.site.name,
            *(UNKNOWN if v is None else f"{v:.3f}" for v in (fit.plain, fit.fitted, fit.held_out)),
            "–" if fit.ridge is None else f"{fit.ridge:.1g}",
            *(f"{std / original:.2f}×" if original else "–" for std in others),
        )
        rows.append(row)
    because: dict[str, list[str]] = {}
    for report in reports:
        if report.fit is not None and report.fit.plain_because is not None:
            because.setdefault(report.fit.plain_because, []).append(report.site.name)
    lines = [f"\n{len(names)} sites keep plain factors: {sentence(why)}" for why, names in because.items()]
    noted = {report.site.name: report.fit.note for report in reports if report.fit and report.fit.note}
    lines += [f"note: {escape(name)}: {sentence(note)}" for name, note in noted.items()]
    return Group("", Listing(_FITS, rows), *lines)
