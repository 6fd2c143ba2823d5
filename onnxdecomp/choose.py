"""Choosing: whether a site is worth a chain, which one, and what the chain costs.

A Tucker-2 chain of a Conv with C and D channels, kernel k and ranks R and S costs, per position,
C·R at the input's positions and ∏k·R·S + S·D at the output's (Kim et al. 2016, arXiv:1511.06530, eq. 6).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from onnxdecomp.errors import UsageError
from onnxdecomp.factors.chain import Floats
from onnxdecomp.factors.layout import METHODS, ONE_RANK, LinkShape, layout
from onnxdecomp.fit import applicable, rank_limits
from onnxdecomp.plan import Choice
from onnxdecomp.ranks import Modes, RankRule, Ranks
from onnxdecomp.sites import Site
from onnxdecomp.spectrum import spectra

# A chain is kept only if it leaves at most this share of the Conv's multiply-accumulates: three kernels cost
# more than their arithmetic, and below a fifth saved ONNX Runtime has little or nothing to gain.
WORTHWHILE = 0.8
AUTO = "auto"
# Alternating least squares takes minutes for larger weights, and has not been seen to win there.
CP_MOST_PARAMS = 1 << 17
# What is weighed where no method is named.
DEFAULTS = ("tucker2", "tucker1", "svd")


def links(site: Site, choice: Choice) -> tuple[LinkShape, ...]:
    """The convolutions `choice` makes of `site`."""
    if site.channels is None or not site.groups:
        raise ValueError(f"{site.name}: channels or groups are not known")
    return layout(choice.method, choice.ranks, site.channels, site.groups, len(site.kernel))


def chain_params(site: Site, choice: Choice) -> int:
    """Elements of the chain's weights."""
    return sum(link.params(site.kernel) for link in links(site, choice))


def chain_macs(site: Site, choice: Choice) -> int | None:
    """Multiply-accumulates of one run of the chain, None where shapes are not known."""
    if site.sizes is None:
        return None
    return _macs(site, choice, *site.sizes)


def macs_ratio(site: Site, choice: Choice) -> float:
    """The chain's multiply-accumulates over the site's own.

    Where shapes are not known, the input is taken to be as many times the output as the strides say.
    """
    before, after = site.sizes or ((1, *site.strides), (1,) * (1 + len(site.strides)))
    if not math.prod(after):
        before, after = (1, *site.strides), (1,) * (1 + len(site.strides))
    return _macs(site, choice, before, after) / (math.prod(after) * (site.params or 1))


def _macs(site: Site, choice: Choice, before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """Each link costs its parameters at every position of its output.

    `before` and `after` are (batch, *spatial): a link takes over the output's size on the axes it is wide on.
    """
    sizes, total = list(before), 0
    for link in links(site, choice):
        for axis in link.axes:
            sizes[1 + axis] = after[1 + axis]
        total += math.prod(sizes) * link.params(site.kernel)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a rule may choose.

    Attributes:
        method: one of `METHODS` keeps the sites it does not fit; "auto" takes, per site, the one with the
            least weight error at no more MACs than the default's; None is the default: Tucker-2, or
            Tucker-1 where that fits better, for kernels wider than 1, and SVD for 1×1.
        min_channels: a group with fewer input or output channels gets no two-sided chain.
        align: ranks are multiples of it, but for exact channels.
        allow_slower: accept chains that save less than a fifth of the multiply-accumulates.
        linear: decompose Gemm and MatMul too, as "svd" and "auto" do anyway.

    Raises:
        UsageError: a value that cannot be obeyed.
    """

    method: str | None = None
    min_channels: int = 16
    align: int = 8
    allow_slower: bool = False
    linear: bool = False

    @property
    def wants_linear(self) -> bool:
        """Whether Gemm and MatMul are looked at."""
        return self.linear or self.method in ("svd", AUTO)

    def __post_init__(self) -> None:
        if self.method not in (None, AUTO, *METHODS):
            raise UsageError(f"--method {self.method}: unknown; it is one of {', '.join((*METHODS, AUTO))}")
        for option, value in (("--align", self.align), ("--min-channels", self.min_channels)):
            if value < 1:
                raise UsageError(f"{option} {value}: must be at least 1")


def fitting_methods(site: Site, policy: Policy) -> tuple[str, ...] | str:
    """The methods `policy` allows for `site` whatever the ranks, or a sentence saying why there are none."""
    if site.obstacle is not None:
        return site.obstacle
    methods = applicable(site)
    allowed = [m for m in methods if policy.method in (m, AUTO) or (policy.method is None and m in DEFAULTS)]
    if not allowed:
        return f"{policy.method} does not fit a kernel of {'×'.join(map(str, site.kernel)) or 'a matrix'}"
    narrow = [channels < policy.min_channels for channels in site.group_channels]
    if not any(narrow):
        return tuple(allowed)
    if not all(narrow) and "tucker1" in allowed:
        return ("tucker1",)
    c_in, c_out = site.group_channels
    width = f"{c_in}→{c_out} channels" + (" a group" if site.groups != 1 else "")
    what = f"{policy.method} does not fit" if policy.method and not all(narrow) else "too small to pay"
    return f"{what}: {width}, and --min-channels is {policy.min_channels}"


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
    return f"too small to pay: its chain would {saving} of its MACs (--allow-slower accepts that)"


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
        spectra=functools.cache(lambda: spectra(method, weight(), site.groups or 1)),
        cost=cost,
    )
