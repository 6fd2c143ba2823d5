"""The choices a search weighs at every site."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from onnxdecomp.factors import Ranks
from onnxdecomp.ir import Site, Survey
from onnxdecomp.planning import Choice, Policy, Unit, find_units, macs_ratio, weighed_methods

# Ranks of a mode that are weighed, at most; of a decomposition with a single rank there may be more.
_LEVELS = 16
_SINGLE_LEVELS = 16


def find_candidates(found: Survey, policy: Policy) -> list[Unit]:
    """Every site that can be decomposed at all, with the choices that are weighed, in graph order."""
    choices = {anchor.site.name: _choices(anchor.site, policy) for anchor in found.anchors}
    return find_units(found.anchors, choices)


def _choices(site: Site, policy: Policy) -> tuple[Choice, ...]:
    methods = weighed_methods(site, policy)
    if isinstance(methods, str):
        return ()
    c_in, c_out = site.group_channels
    found: list[Choice] = []
    if "svd" in methods:
        found += [Choice("svd", Ranks(r, r)) for r in _levels(min(c_in, c_out), policy.align, _SINGLE_LEVELS)]
    if "tucker2" in methods:
        pairs = product(_levels(c_in, policy.align, _LEVELS), _levels(c_out, policy.align, _LEVELS))
        found += [Choice("tucker2", Ranks(r, s)) for r, s in pairs]
    if "tucker1" in methods:
        for side, channels in enumerate((c_in, c_out)):
            levels = _levels(channels, policy.align, _LEVELS) if channels >= policy.min_channels else ()
            found += [Choice("tucker1", Ranks(None, r) if side else Ranks(r, None)) for r in levels]
    return tuple(choice for choice in found if macs_ratio(site, choice) < 1)


def _levels(channels: int, align: int, count: int) -> Sequence[int]:
    """Multiples of `align` below `channels`, evenly spread, the smallest always among them."""
    most = (channels - 1) // align
    if most <= count:
        return [align * i for i in range(1, most + 1)]
    return sorted({align * max(1, round(most * i / count)) for i in range(1, count + 1)} | {align})
