"""What `onnxdecomp inspect --spectrum` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from onnxdecomp.ir import Site
from onnxdecomp.planning import PARTS, RULES, Choice, SiteSpectra, chain_params, macs_ratio
from onnxdecomp.show.text import escape


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
    left = chain_params(site, choice) / (site.params or 1)
    return f"{choice.ranks.text} {macs_ratio(site, choice):.0%} {left:.0%}"
