"""Ranks: what the user writes, as channels of the two modes of one site.

`0.25` is a quarter of the output channels, for both modes (for `svd`, of the matrix's smaller side);
`in=0.25,out=0.5` a fraction of each mode's own channels; `32` and `in=16,out=32` are channels; `energy=0.9`
the smallest ranks that keep that share of each mode's squared singular values; `vbmf` variational Bayes on
each unfolding; `params=0.5` and `macs=0.5` the ranks of least error that leave that share of the site's cost.
A decimal point makes a fraction, an integer channels. All but exact channels are multiples of the alignment,
rounded up where no budget forbids it, for ONNX Runtime's blocked kernels pad to it anyway; all are clamped to
the channels. In a grouped Conv all of this is per group.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from onnxdecomp.errors import UsageError
from onnxdecomp.factors import Spectrum

_GRAMMAR = "write 0.25, in=0.25,out=0.5, 32, in=16,out=32, energy=0.9, vbmf, params=0.5 or macs=0.5"
_MOST_DIGITS = 20
_NUMBER = re.compile(r"\d+|\d*\.\d+|\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Modes:
    """What a rule may know of one site and one decomposition.

    Attributes:
        channels: of a group, (in, out).
        limits: the largest ranks there are, (in, out).
        align: what ranks are multiples of.
        single: whether one rank serves both modes.
        spectra: of the two unfoldings, (in, out), computed when asked for.
        cost: "params" or "macs" and two ranks to the chain's cost over the site's own.
    """

    channels: tuple[int, int]
    limits: tuple[int, int]
    align: int
    single: bool
    spectra: Callable[[], tuple[Spectrum, Spectrum]]
    cost: Callable[[str, int, int], float]

    def round_up(self, ranks: tuple[float, float]) -> tuple[int, int]:
        """`ranks` as multiples of the alignment, at least one and at most the limits."""
        rounded = [max(math.ceil(rank / self.align), 1) * self.align for rank in ranks]
        return min(rounded[0], self.limits[0]), min(rounded[1], self.limits[1])

    def grid(self, mode: int) -> list[int]:
        """The aligned ranks of a mode, and its limit."""
        return [*range(self.align, self.limits[mode], self.align), self.limits[mode]]

    def affordable(self, what: str, share: float) -> list[tuple[int, int]]:
        """For each aligned input rank, the largest aligned output rank whose chain costs at most `share`."""
        if self.single:
            pairs = [(rank, rank) for rank in self.grid(0)]
            count = bisect.bisect_right(pairs, share, key=lambda pair: self.cost(what, *pair))
            return pairs[count - 1 : count] if count else []
        found = []
        for rank_in in self.grid(0):
            outputs = [r for r in self.grid(1) if self.cost(what, rank_in, r) <= share]
            found += [(rank_in, max(outputs))] if outputs else []
        return found


class RankRule(Protocol):
    """How ranks follow from what the user wrote."""

    def ranks(self, modes: Modes) -> tuple[int, int] | str:
        """Ranks (in, out), or a sentence saying why there are none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedRule:
    """One number for each mode: a Fraction of channels, or an int of channels.

    Attributes:
        input: for the input mode.
        output: for the output mode.
        per_mode: fractions are of the mode's own channels; otherwise of the output channels.
    """

    input: Fraction | int
    output: Fraction | int
    per_mode: bool

    def ranks(self, modes: Modes) -> tuple[int, int]:
        """Fractions round up to the alignment; exact channels are only clamped."""
        of = modes.channels if self.per_mode else (modes.channels[1],) * 2
        if modes.single:
            # A matrix and its transpose keep the same rank; a quarter of 256 may be all of 64.
            of = (min(of[0], modes.limits[0]), min(of[1], modes.limits[1]))
        wanted = (self.input, self.output)
        rounded = modes.round_up((float(wanted[0] * of[0]), float(wanted[1] * of[1])))
        exact = [
            min(w, limit) if isinstance(w, int) else None
            for w, limit in zip(wanted, modes.limits, strict=True)
        ]
        return exact[0] or rounded[0], exact[1] or rounded[1]


@dataclass(frozen=True, slots=True)
class EnergyRule:
    """The smallest ranks that keep `share` of each unfolding's squared singular values."""

    share: float

    def ranks(self, modes: Modes) -> tuple[int, int]:
        """Rounded up to the alignment."""
        first, second = modes.spectra()
        return modes.round_up((first.rank_for(self.share), second.rank_for(self.share)))


@dataclass(frozen=True, slots=True)
class VbmfRule:
    """The ranks that variational Bayes finds in each unfolding; never so high that the chain costs more."""

    def ranks(self, modes: Modes) -> tuple[int, int]:
        """Rounded up to the alignment: rank 0 becomes one block; then down, block by block, to break-even."""
        first, second = modes.spectra()
        ranks = modes.round_up((first.vbmf(), second.vbmf()))
        while modes.cost("macs", *ranks) > 1 and max(ranks) > modes.align:
            ranks = modes.round_up((ranks[0] - modes.align, ranks[1] - modes.align))
        return ranks


@dataclass(frozen=True, slots=True)
class BudgetRule:
    """The ranks of least error that leave at most `share` of the site's parameters or MACs.

    The error is judged by the squared singular values cut off, which bound ‖W − Ŵ‖² (De Lathauwer, De Moor,
    Vandewalle 2000, property 10).
    """

    what: str
    share: float

    def ranks(self, modes: Modes) -> tuple[int, int] | str:
        """Of the affordable ranks those that cut off least."""
        pairs = modes.affordable(self.what, self.share)
        if not pairs:
            return f"no chain with ranks in steps of {modes.align} leaves {self.share:.0%} of its {self.what}"
        first, second = modes.spectra()
        return min(pairs, key=lambda pair: 2 - first.energy(pair[0]) - second.energy(pair[1]))


def parse_rank(value: str | int | float) -> RankRule:
    """The rule a rank option stands for; a float is a fraction, an int channels.

    Raises:
        UsageError: not of the grammar, zero, negative, or a share above 1.
    """
    text = str(value).strip()
    if text == "vbmf":
        return VbmfRule()
    if "=" not in text:
        number = _number(text, text)
        return FixedRule(input=number, output=number, per_mode=False)
    parts = [part.partition("=") for part in text.split(",")]
    names = [name for name, _, _ in parts]
    if sorted(names) == ["in", "out"]:
        numbers = {name: _number(token, text) for name, _, token in parts}
        return FixedRule(input=numbers["in"], output=numbers["out"], per_mode=True)
    if names == ["energy"]:
        return EnergyRule(_share(parts[0][2], text))
    if names in (["params"], ["macs"]):
        return BudgetRule(names[0], _share(parts[0][2], text))
    raise UsageError(f"`rank` {text}: {_GRAMMAR}")


def _share(token: str, text: str) -> float:
    number = _number(token, text)
    if not isinstance(number, Fraction):
        raise UsageError(f"`rank` {text}: write a share with a decimal point, from 0.0 to 1.0; {_GRAMMAR}")
    return float(number)


def _number(token: str, text: str) -> Fraction | int:
    if not _NUMBER.fullmatch(token) or len(token) > _MOST_DIGITS:
        raise UsageError(
            f"`rank` {text}: '{token}' is neither a fraction nor a number of channels; {_GRAMMAR}"
        )
    number = Fraction(token) if "." in token else int(token)
    if number <= 0:
        raise UsageError(f"`rank` {text}: a rank must be above 0; {_GRAMMAR}")
    if isinstance(number, Fraction) and number > 1:
        raise UsageError(
            f"`rank` {text}: a fraction must not exceed 1.0 (an integer means channels); {_GRAMMAR}"
        )
    return number
