"""Choosing: whether a site is worth a chain, which one, and what the chain costs.

A Tucker-2 chain of a Conv with C and D channels, kernel k and ranks R and S costs, per position,
C·R at the input's positions and ∏k·R·S + S·D at the output's (Kim et al. 2016, arXiv:1511.06530, eq. 6).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from onnxdecomp.errors import UsageError
from onnxdecomp.plan import METHODS, Choice
from onnxdecomp.ranks import RankRule, Ranks
from onnxdecomp.sites import ConvSite

# A chain is kept only if it leaves at most this share of the Conv's multiply-accumulates: three kernels cost
# more than their arithmetic, and below a fifth saved ONNX Runtime has little or nothing to gain.
WORTHWHILE = 0.8


def chain_params(site: ConvSite, choice: Choice) -> int:
    """Elements of the chain's weights."""
    c_in, c_out = site.group_channels
    core_in, core_out = choice.ranks.input or c_in, choice.ranks.output or c_out
    first = c_in * core_in if choice.ranks.input is not None else 0
    last = core_out * c_out if choice.ranks.output is not None else 0
    return (site.groups or 1) * (first + core_in * core_out * math.prod(site.kernel) + last)


def chain_macs(site: ConvSite, choice: Choice) -> int | None:
    """Multiply-accumulates of one run of the chain, None where shapes are not known."""
    if site.positions is None:
        return None
    before, after = site.positions
    c_in, _ = site.group_channels
    first = (site.groups or 1) * c_in * choice.ranks.input if choice.ranks.input is not None else 0
    return before * first + after * (chain_params(site, choice) - first)


def macs_ratio(site: ConvSite, choice: Choice) -> float:
    """The chain's multiply-accumulates over the Conv's.

    Where shapes are not known, the input is taken to have as many positions as the strides say.
    """
    if site.positions is None or not all(site.positions):
        nominal = (math.prod(site.strides), 1)
        site = dataclasses.replace(site, positions=nominal)
    macs, original = chain_macs(site, choice), site.macs
    assert macs is not None and original  # positions and weight shape are known here
    return macs / original


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a rule may choose.

    Attributes:
        method: "tucker2" or "tucker1" keeps the sites it does not fit; None takes whichever fits.
        min_channels: a group with fewer input or output channels gets no two-sided chain.
        align: fractions of channels round up to a multiple of it.
        allow_slower: accept chains that save less than a fifth of the multiply-accumulates.

    Raises:
        UsageError: a value that cannot be obeyed.
    """

    method: str | None = None
    min_channels: int = 16
    align: int = 8
    allow_slower: bool = False

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise UsageError(f"--method {self.method}: unknown; it is one of {', '.join(METHODS)}")
        for option, value in (("--align", self.align), ("--min-channels", self.min_channels)):
            if value < 1:
                raise UsageError(f"{option} {value}: must be at least 1")


def fitting_methods(site: ConvSite, policy: Policy) -> tuple[str, ...] | str:
    """The methods that fit `site` whatever the ranks, or a sentence saying why none does."""
    if site.obstacle is not None:
        return site.obstacle
    narrow = [channels < policy.min_channels for channels in site.group_channels]
    methods = () if all(narrow) else ("tucker1",) if any(narrow) else ("tucker2", "tucker1")
    fitting = tuple(m for m in methods if policy.method in (None, m))
    if fitting:
        return fitting
    c_in, c_out = site.group_channels
    width = f"{c_in}→{c_out} channels" + (" a group" if site.groups != 1 else "")
    what = f"{policy.method} does not fit" if methods else "too small to pay"
    return f"{what}: {width}, and --min-channels is {policy.min_channels}"


def choose(site: ConvSite, rule: RankRule, policy: Policy) -> Choice | str:
    """How to decompose `site` by `rule`, or a sentence saying why to leave it alone."""
    methods = fitting_methods(site, policy)
    if isinstance(methods, str):
        return methods
    choice = _fit(site, methods, rule.ranks(site.group_channels, policy.align), policy)
    ratio = macs_ratio(site, choice)
    if ratio <= WORTHWHILE or policy.allow_slower:
        return choice
    saving = f"save only {1 - ratio:.0%}" if ratio < 1 else f"cost {ratio:.2f}×"
    return f"too small to pay: its chain would {saving} of its MACs (--allow-slower accepts that)"


def _fit(site: ConvSite, methods: tuple[str, ...], ranks: tuple[int, int], policy: Policy) -> Choice:
    """The chain that fits: two-sided if it may be, one-sided where a mode would gain nothing.

    A mode at full rank gains nothing from a factor of its own, unless both are at full rank: then a chain
    that reproduces the Conv is what was asked for.
    """
    channels = site.group_channels
    full = [rank == width for rank, width in zip(ranks, channels, strict=True)]
    if "tucker2" in methods and (policy.method == "tucker2" or full[0] == full[1]):
        return Choice("tucker2", Ranks(*ranks))
    sides = (Choice("tucker1", Ranks(None, ranks[1])), Choice("tucker1", Ranks(ranks[0], None)))
    wide = (channels[1] >= policy.min_channels, channels[0] >= policy.min_channels)
    return min(
        (side for side, fits in zip(sides, wide, strict=True) if fits),
        key=lambda side: macs_ratio(site, side),
    )
