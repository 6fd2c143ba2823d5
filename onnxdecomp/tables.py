"""What the command line prints: tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape as _escape_markup
from rich.table import Table

from onnxdecomp.check import Check
from onnxdecomp.choose import Policy, chain_params, fitting_methods, macs_ratio
from onnxdecomp.compare import Fidelity
from onnxdecomp.errors import printable
from onnxdecomp.plan import Choice
from onnxdecomp.quality import Quality
from onnxdecomp.report import Result, SiteReport, Totals
from onnxdecomp.sites import Site
from onnxdecomp.survey_spectra import PARTS, RULES, SiteSpectra

_UNKNOWN = "?"


def escape(text: str) -> str:
    """`text` as it stands: neither markup nor control characters take effect."""
    return _escape_markup(printable(text))


def si(value: float | None, unit: str = "") -> str:
    """`value` in three digits with its SI prefix: 1.61 M, 44.7 MB; "?" where not known."""
    if value is None:
        return _UNKNOWN
    for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return (
                f"{value / scale:.3g} {prefix}{unit}"
                if value < 999.5 * scale
                else f"{value / scale:.0f} {prefix}{unit}"
            )
    return f"{value:g} {unit}".rstrip()


def _ratio(before: int | None, after: int | None) -> str:
    if not before or not after or before == after:
        return ""
    return f"{before / after:.2f}× less" if before > after else f"{after / before:.2f}× more"


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
        table.add_row(name, si(before, unit), si(after, unit), _ratio(before, after))
    return table


def _site_columns(table: Table, *names: str) -> None:
    table.add_column("site", overflow="fold", ratio=3)
    for name in names:
        table.add_column(name, overflow="fold")


def _geometry(site: Site) -> tuple[str, str]:
    kernel = "×".join(map(str, site.kernel)) or (_UNKNOWN if site.op == "Conv" else site.op)
    channels = f"{site.channels[0]}→{site.channels[1]}" if site.channels else _UNKNOWN
    return kernel, channels + (f" /{site.groups}" if site.groups not in (1, None) else "")


def _sites_table(reports: Sequence[SiteReport]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, expand=False)
    _site_columns(table, "kernel", "channels", "method", "ranks", "params", "MACs")
    table.add_column("weight error", justify="right")
    for report in reports:
        if report.choice is None or report.errors is None:
            continue
        ranks = report.choice.ranks
        table.add_row(
            escape(report.site.name),
            *_geometry(report.site),
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
        table.add_row(str(len(names)), escape(reason), escape(", ".join(names[:3]) + more))
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
    return Group(*parts, *(f"note: {escape(note)}" for note in result.notes))


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
            *(_UNKNOWN if v is None else f"{v:.3f}" for v in (fit.plain, fit.fitted, fit.held_out)),
            "–" if fit.ridge is None else f"{fit.ridge:.1g}",
            *(f"{std / original:.2f}×" if original else "–" for std in others),
        )
    because: dict[str, list[str]] = {}
    for report in reports:
        if report.fit is not None and report.fit.plain_because is not None:
            because.setdefault(report.fit.plain_because, []).append(report.site.name)
    lines = [f"\n{len(names)} sites keep plain factors: {escape(why)}" for why, names in because.items()]
    noted = {report.site.name: report.fit.note for report in reports if report.fit and report.fit.note}
    lines += [f"note: {escape(name)}: {escape(note)}" for name, note in noted.items()]
    return Group("", table, *lines)


def quality_view(quality: Quality) -> RenderableType:
    """How far the outputs are apart on held-out samples, and the accuracy where there are labels."""
    parts: list[RenderableType] = [
        f"\nfitted to {quality.fitted} samples; on {quality.held_out} others the outputs differ by\n",
        fidelity_table(quality.outputs),
    ]
    if quality.accuracy is not None:
        before, after = quality.accuracy
        parts.append(f"\ntop-1 accuracy on these: {before:.1%} → {after:.1%}")
    return Group(*parts)


def check_view(outcome: Check, quality: Quality | None = None) -> RenderableType:
    """The check's verdict and how far the outputs are apart."""
    if outcome.status != "passed":
        return f"\nnot checked: {escape(outcome.reason or '')}"
    if quality is not None:
        return Group(f"\ncheck passed: both models run in {outcome.engine}", quality_view(quality))
    return Group(
        f"\ncheck passed: both models run in {outcome.engine}; on random inputs their outputs differ by\n",
        fidelity_table(outcome.outputs),
    )


def fidelity_table(outputs: Sequence[Fidelity]) -> Table:
    """One row for each output."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("output", overflow="fold")
    for name in ("relative L2", "SNR dB", "max abs", "cosine", "top-1 agreement"):
        table.add_column(name, justify="right")
    broken = any(each.new_nonfinite for each in outputs)
    if broken:
        table.add_column("new NaN or Inf", justify="right")
    for each in outputs:
        values = (each.relative_l2, each.snr_db, each.max_abs, each.cosine)
        agreement = "–" if each.top1_agreement is None else f"{each.top1_agreement:.1%}"
        numbers = ("–" if v is None else f"{v:.3g}" for v in values)
        table.add_row(escape(each.name), *numbers, agreement, *([str(each.new_nonfinite)] if broken else []))
    return table


def inspect_view(sites: Sequence[Site], policy: Policy, notes: Sequence[str]) -> RenderableType:
    """Every Conv, what it costs, and how it can be decomposed or why not."""
    fits = [fitting_methods(site, policy) for site in sites]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    _site_columns(table, "kernel", "channels /groups", "params", "MACs")
    table.add_column("decomposition, or why none", ratio=3)
    for site, fit in zip(sites, fits, strict=True):
        how = escape(fit) if isinstance(fit, str) else f"[green]{' or '.join(fit)}[/green]"
        table.add_row(escape(site.name), *_geometry(site), si(site.params), si(site.macs), how)
    able = [site for site, fit in zip(sites, fits, strict=True) if not isinstance(fit, str)]
    macs = [site.macs for site in sites]
    known = [m for m in macs if m is not None]
    total = si(sum(known)) if len(known) == len(macs) else "unknown (fix the shapes with --input-shape)"
    share = (
        f", {sum(s.macs or 0 for s in able) / sum(known):.0%} of them there" if able and sum(known) else ""
    )
    head = (
        f"{len(able)} of {len(sites)} Convs can be decomposed; "
        f"{si(sum(s.params or 0 for s in sites))} parameters, MACs: {total}{share}\n"
    )
    return Group(head, *(f"note: {escape(note)}\n" for note in notes), table)


def spectra_view(found: Sequence[SiteSpectra]) -> RenderableType:
    """Per site the energy kept at parts of each mode, then what each rule would choose and leave."""
    energy = Table(box=box.SIMPLE_HEAD, show_edge=False)
    energy.add_column("energy kept at", overflow="fold", ratio=3)
    for side in ("in", "out"):
        for part in PARTS:
            energy.add_column(f"{side} {part}", justify="right")
    rules = Table(box=box.SIMPLE_HEAD, show_edge=False)
    rules.add_column("ranks in/out, MACs, parameters left by", overflow="fold", ratio=3)
    for rule in RULES:
        rules.add_column(rule)
    for each in found:
        shares = (f"{share:.2f}" for side in each.energies().values() for share in side.values())
        energy.add_row(escape(each.site.name), *shares)
        rules.add_row(escape(each.site.name), *(_left_by(each.site, each.choices[rule]) for rule in RULES))
    return Group("", energy, "", rules)


def _left_by(site: Site, choice: Choice | str) -> str:
    if isinstance(choice, str):
        return "none"
    ranks = "/".join("–" if rank is None else str(rank) for rank in (choice.ranks.input, choice.ranks.output))
    return f"{ranks} {macs_ratio(site, choice):.0%} {chain_params(site, choice) / (site.params or 1):.0%}"
