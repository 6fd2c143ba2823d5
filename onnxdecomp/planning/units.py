"""Sites that share one weight, and the choices open to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnxdecomp.ir import Anchor, BatchNorm, Constant, Site
from onnxdecomp.planning.choice import Choice


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """Sites that share one weight, its BatchNormalization and their choice: what is factored once.

    Attributes:
        anchors: of these sites, in graph order.
        choices: open to them: a rule or a plan leaves one, "auto" several of which the one with the least
            weight error is taken, a search weighs many.
    """

    anchors: tuple[Anchor, ...]
    choices: tuple[Choice, ...]

    @property
    def lead(self) -> Anchor:
        """The first."""
        return self.anchors[0]

    @property
    def name(self) -> str:
        """That of the first site."""
        return self.lead.site.name

    @property
    def sites(self) -> list[Site]:
        """All of them."""
        return [anchor.site for anchor in self.anchors]

    @property
    def weight(self) -> Constant:
        """What they share."""
        return self.lead.constant

    @property
    def batchnorm(self) -> BatchNorm | None:
        """What is folded into it: that of the first site; the others' do the same to the weight."""
        return self.lead.batchnorm

    @property
    def groups(self) -> int:
        """Channel groups."""
        return self.lead.site.groups or 1


def find_units(anchors: Iterable[Anchor], choices: Mapping[str, tuple[Choice, ...]]) -> list[Unit]:
    """Gather the sites that have choices by what they have in common, in graph order.

    Args:
        anchors: of all sites, in graph order.
        choices: by site name; a site without any is left out.
    """
    found: dict[object, list[Anchor]] = {}
    for anchor in anchors:
        own = choices.get(anchor.site.name)
        if own and anchor.weight is not None:
            found.setdefault((chain_key(anchor), own[0]), []).append(anchor)
    return [Unit(anchors=tuple(own), choices=choices[own[0].site.name]) for own in found.values()]


def chain_key(anchor: Anchor) -> tuple[object, ...]:
    """What sites that are decomposed alike have in common where they share the factors."""
    fold = anchor.batchnorm.key if anchor.batchnorm is not None else None
    return anchor.constant.key, fold, anchor.site.groups, anchor.transposed
