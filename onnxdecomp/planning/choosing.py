"""Choosing: whether a site is worth a chain, and which one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial

from onnxdecomp.factors import ONE_RANK, Floats, Ranks, Spectrum
from onnxdecomp.ir import Site
from onnxdecomp.planning.choice import Choice
from onnxdecomp.planning.cost import chain_params, macs_ratio
from onnxdecomp.planning.methods import applicable, rank_limits
from onnxdecomp.planning.policy import Policy, fitting_methods
from onnxdecomp.planning.rules import Modes, RankRule

# A chain is kept only if it leaves at most this share of the Conv's multiply-accumulates: three kernels cost
# more than their arithmetic, and below a fifth saved ONNX Runtime has little or nothing to gain.
WORTHWHILE = 0.8
# Alternating least squares takes minutes for larger weights, and has not been seen to win there.
CP_MOST_PARAMS = 1 << 17


def choose(site: Site, rule: RankRule, policy: Policy, weight: Callable[[], Floats]) -> Choice | str:
    """How to decompose `site` by `rule`, or a sentence saying why to leave it alone.

    Args:
        site: to decompose.
        rule: for its ranks.
        policy: what may be chosen.
        weight: the site's weight, OI and spatial axes, in float64; called only by rules that need it.
    """
    methods = fitting_methods(site, policy)
    if isinstance(methods, str):
        return methods
    choice = choose_ranks(site, methods, rule, policy, weight)
    if isinstance(choice, str):
        return choice
    ratio = macs_ratio(site, choice)
    if ratio <= WORTHWHILE or policy.allow_slower:
        return choice
    saving = f"save only {1 - ratio:.0%}" if ratio < 1 else f"cost {ratio:.2f}×"
    return f"too small to pay: its chain would {saving} of its MACs (`allow_slower` accepts that)"


def choose_ranks(
    site: Site, methods: tuple[str, ...], rule: RankRule, policy: Policy, weight: Callable[[], Floats]
) -> Choice | str:
    """The ranks of the first of `methods`: two-sided if it may be, one-sided where a mode would gain nothing.

    A mode at full rank gains nothing from a factor of its own, unless both are at full rank: then a chain
    that reproduces the Conv is what was asked for.
    """
    method = methods[0]
    ranks = rule.ranks(_modes(site, method, policy, weight))
    if isinstance(ranks, str):
        return ranks
    return _resolve(site, method, ranks, policy)


def _resolve(site: Site, method: str, ranks: tuple[int, int], policy: Policy) -> Choice:
    """The choice two ranks come to."""
    if method in ONE_RANK:
        # A CP component serves both modes, so it takes as many as the larger rank to keep what both keep.
        single = max(ranks) if method in ("cp", "cp3") else min(ranks)
        return Choice(method, Ranks(single, single))
    channels = site.group_channels
    full = [rank == width for rank, width in zip(ranks, channels, strict=True)]
    if method == "tucker2" and (policy.method == "tucker2" or full[0] == full[1]):
        return Choice("tucker2", Ranks(*ranks))
    sides = [
        (Choice("tucker1", Ranks(None, ranks[1])), full[1], channels[1] >= policy.min_channels),
        (Choice("tucker1", Ranks(ranks[0], None)), full[0], channels[0] >= policy.min_channels),
    ]
    fitting = [(choice, is_full) for choice, is_full, wide in sides if wide]
    lower = [choice for choice, is_full in fitting if not is_full]
    return min(lower or [choice for choice, _ in fitting], key=lambda choice: macs_ratio(site, choice))


def alternatives(sites: Sequence[Site], choice: Choice, policy: Policy) -> list[Choice]:
    """The other methods that fit all of `sites`, which share one weight and have `choice`.

    Each with the largest aligned rank that costs none of them more MACs than `choice` does.
    """
    lead = sites[0]
    rivals = [m for m in applicable(lead) if m in ONE_RANK and m != choice.method]
    if (lead.params or 0) > CP_MOST_PARAMS:
        rivals = [m for m in rivals if m not in ("cp", "cp3")]
    families: list[tuple[int, Callable[[int], Choice]]]
    families = [(rank_limits(lead, m)[0], partial(_single, m)) for m in rivals]
    if "tucker1" in applicable(lead):
        families += [(lead.group_channels[1], _outer_side), (lead.group_channels[0], _inner_side)]
    found = []
    for limit, make in families:
        grid = [*range(policy.align, limit, policy.align), limit]
        affordable = [
            made
            for made in map(make, grid)
            if all(macs_ratio(site, made) <= macs_ratio(site, choice) for site in sites)
        ]
        found += affordable[-1:]
    return [each for each in found if each != choice]


def _single(method: str, rank: int) -> Choice:
    return Choice(method, Ranks(rank, rank))


def _outer_side(rank: int) -> Choice:
    return Choice("tucker1", Ranks(None, rank))


def _inner_side(rank: int) -> Choice:
    return Choice("tucker1", Ranks(rank, None))


def _modes(site: Site, method: str, policy: Policy, weight: Callable[[], Floats]) -> Modes:
    def cost(what: str, rank_in: int, rank_out: int) -> float:
        choice = _resolve(site, method, (rank_in, rank_out), policy)
        return macs_ratio(site, choice) if what == "macs" else chain_params(site, choice) / (site.params or 1)

    return Modes(
        channels=site.group_channels,
        limits=rank_limits(site, method),
        align=policy.align,
        single=method in ONE_RANK,
        spectra=functools.cache(lambda: _spectra(method, weight(), site.groups or 1)),
        cost=cost,
    )


def _spectra(method: str, weight: Floats, groups: int) -> tuple[Spectrum, Spectrum]:
    from onnxdecomp.factors import spectra  # with TensorLy, slow to load; most rules read no spectra

    return spectra(method, weight, groups)
