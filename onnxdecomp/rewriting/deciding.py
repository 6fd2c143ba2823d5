"""What becomes of every site: its choice, or a sentence saying why it is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from threadpoolctl import threadpool_limits

from onnxdecomp.ir import Anchor, NotFiniteError, Site, Survey, read_finite_weight
from onnxdecomp.planning import (
    AUTO,
    Choice,
    FixedRule,
    Policy,
    RankRule,
    Unit,
    alternatives,
    choose,
    find_units,
    kept_unasked,
    verify,
)
from onnxdecomp.rewriting.request import Request

EXCLUDED = "excluded by the user"
NOT_PLANNED = "not in the plan"

Decisions = Mapping[str, Choice | str]


def decide(found: Survey, request: Request) -> dict[str, Choice | str]:
    """The choice of every site, by its name, or why it is kept.

    Raises:
        UsageError: the plan does not fit the model.
    """
    if request.plan is not None:
        verify(request.plan, [anchor.site for anchor in found.anchors])
    return {anchor.site.name: _decision(anchor, request, found.model.folder) for anchor in found.anchors}


def _decision(anchor: Anchor, request: Request, folder: Path) -> Choice | str:
    site = anchor.site
    if site.obstacle is not None:
        return site.obstacle
    if not request.wants(site.name):
        return EXCLUDED
    if request.plan is not None:
        return request.plan.sites.get(site.name, NOT_PLANNED)
    if request.rule is None:
        return NOT_PLANNED
    if not request.narrowed and (reason := kept_unasked(site)) is not None:
        return reason
    try:
        with threadpool_limits(1, user_api="blas"):
            return choose(site, request.rule, request.policy, lambda: read_finite_weight(anchor, folder))
    except NotFiniteError as error:
        return str(error)


def decided_units(found: Survey, decisions: Decisions, policy: Policy) -> list[Unit]:
    """The chosen sites gathered by what they share, in graph order; "auto" leaves each several choices."""
    chosen = {name: (each,) for name, each in decisions.items() if isinstance(each, Choice)}
    units = find_units(found.anchors, chosen)
    if policy.method != AUTO:
        return units
    return [
        Unit(anchors=unit.anchors, choices=(choice, *alternatives(unit.sites, choice, policy)))
        for unit in units
        for choice in unit.choices
    ]


def clamped(rule: RankRule | None, sites: Iterable[Site]) -> list[str]:
    """A line where exact channels exceed what sites have."""
    wanted = (
        [r for r in (rule.input, rule.output) if isinstance(r, int)] if isinstance(rule, FixedRule) else []
    )
    short = [
        site
        for site in sites
        if site.obstacle is None and any(rank > max(site.group_channels) for rank in wanted)
    ]
    if not short:
        return []
    return [f"rank {max(wanted)} is above the channels of {len(short)} sites and was clamped there"]


def why_nothing(decisions: Decisions) -> str:
    """One line on a model of which every site is kept."""
    if not decisions:
        return "nothing to decompose: the model has no Conv; nothing was written"
    (reason, count), *_ = Counter(str(reason).split(":")[0] for reason in decisions.values()).most_common(1)
    return (
        f"nothing to decompose: all {len(decisions)} Convs are kept, {count} of them because: {reason}; "
        "nothing was written (`onnxdecomp inspect` lists the reasons)"
    )
