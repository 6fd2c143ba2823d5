"""What `onnxdecomp inspect --spectrum` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from onnxdecomp.ir import Site
from onnxdecomp.planning import PARTS, RULES, Choice, SiteSpectra, chain_params, macs_ratio
from onnxdecomp.show.tables import Column, Listing


def spectra_view(found: Sequence[SiteSpectra]) -> RenderableType:
    """Per site the energy kept at parts of each mode, then what each rule would choose and leave."""
    # The halves tell least, as most energy is kept there.
    parts = [
        Column(title=f"{side} {part}", right=True, rank=number)
        for side in ("in", "out")
        for number, part in enumerate(PARTS)
    ]
    shares = [
        (each.site.name, *(f"{share:.2f}" for side in each.energies().values() for share in side.values()))
        for each in found
    ]
    rules = [Column(title=rule, rank=number) for number, rule in enumerate(RULES)]
    left = [(each.site.name, *(_left_by(each.site, each.choices[rule]) for rule in RULES)) for each in found]
    energy = Listing([Column(title="energy kept at", holds="names"), *parts], shares)
    names = Column(title="ranks in/out, MACs, parameters left by", holds="names")
    return Group("", energy, "", Listing([names, *rules], left))


def _left_by(site: Site, choice: Choice | str) -> str:
    if isinstance(choice, str):
        return "none"
    left = chain_params(site, choice) / (site.params or 1)
    return f"{choice.ranks.text} {macs_ratio(site, choice):.0%} {left:.0%}"
