"""What `onnxdecomp inspect` prints."""

from __future__ import annotations

from rich.console import Group, RenderableType

from onnxdecomp.ir import Site
from onnxdecomp.planning import Inspection, weighed_methods
from onnxdecomp.show.sites import SITE, geometry
from onnxdecomp.show.tables import Column, Listing
from onnxdecomp.show.text import escape, sentence, si

_MOST_OPERATORS = 4
_COLUMNS = (
    SITE,
    Column(title="kernel", rank=3),
    Column(title="channels /groups", rank=2),
    Column(title="params", rank=1),
    Column(title="MACs"),
    Column(title="decomposition, or why none", holds="words"),
)


def inspect_view(found: Inspection) -> RenderableType:
    """Every Conv, what it costs, and how it can be decomposed or why not."""
    sites, notes = found.sites, found.notes
    fits = [weighed_methods(site, found.policy) for site in sites]
    how = [
        sentence(fit) if isinstance(fit, str) else f"[green]{' or '.join(fit)}[/green]{_origin(site)}"
        for site, fit in zip(sites, fits, strict=True)
    ]
    rows = [
        (site.name, *geometry(site), si(site.params), si(site.macs), text)
        for site, text in zip(sites, how, strict=True)
    ]
    able = [site for site, fit in zip(sites, fits, strict=True) if not isinstance(fit, str)]
    macs = [site.macs for site in sites]
    known = [m for m in macs if m is not None]
    total, share = "unknown", ""
    if len(known) == len(macs):
        total = si(sum(known))
        share = (
            f", {sum(s.macs or 0 for s in able) / sum(known):.0%} of them there"
            if able and sum(known)
            else ""
        )
    head = (
        f"{len(able)} of {len(sites)} Convs can be decomposed; "
        f"{si(sum(s.params or 0 for s in sites))} parameters, MACs: {total}{share}\n"
    )
    return Group(head, *(f"note: {sentence(note)}\n" for note in notes), Listing(_COLUMNS, rows))


def _origin(site: Site) -> str:
    """What is to be said of where a weight comes from that can be decomposed."""
    names = site.computed_by
    shown = ", ".join((*names[:_MOST_OPERATORS], *(("…",) if len(names) > _MOST_OPERATORS else ())))
    return escape(f"; its weight is constant, computed by {shown}") if names else ""
