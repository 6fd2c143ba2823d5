"""What `onnxdecomp inspect` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from onnxdecomp.ir import Site
from onnxdecomp.planning import (
    PARTS,
    RULES,
    Choice,
    Policy,
    SiteSpectra,
    chain_params,
    fitting_methods,
    macs_ratio,
)
from onnxdecomp.show.rewriting import _geometry, _site_columns
from onnxdecomp.show.text import escape, si


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
