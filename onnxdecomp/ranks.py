"""Ranks: what the user writes, as channels of the two modes of one site.

`0.25` is a quarter of the output channels, for both modes; `in=0.25,out=0.5` a fraction of each mode's own
channels; `32` and `in=16,out=32` are channels. A decimal point makes a fraction, an integer channels.
Fractions round up to a multiple of the alignment, for ONNX Runtime's blocked kernels pad to it anyway;
all are clamped to the channels. In a grouped Conv all of this is per group.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from onnxdecomp.errors import UsageError

_GRAMMAR = "write 0.25, in=0.25,out=0.5, 32 or in=16,out=32"
_NUMBER = re.compile(r"\d+|\d*\.\d+|\d+\.")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Channels between the convolutions of a chain, per group; None on a side that has no factor."""

    input: int | None
    output: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRule:
    """One number for each mode: a Fraction of channels, or an int of channels.

    Attributes:
        input: for the input mode.
        output: for the output mode.
        per_mode: fractions are of the mode's own channels; otherwise of the output channels.
    """

    input: Fraction | int
    output: Fraction | int
    per_mode: bool

    def ranks(self, channels: tuple[int, int], align: int) -> tuple[int, int]:
        """Ranks of the input and output mode for a group with `channels` (in, out), aligned and clamped."""
        c_in, c_out = channels
        return (
            _rank(self.input, of=c_in if self.per_mode else c_out, channels=c_in, align=align),
            _rank(self.output, of=c_out, channels=c_out, align=align),
        )


def _rank(wanted: Fraction | int, *, of: int, channels: int, align: int) -> int:
    if isinstance(wanted, int):
        return min(wanted, channels)
    return min(math.ceil(wanted * of / align) * align, channels)


def parse_rank(value: str | int | float) -> RankRule:
    """The rule a rank option stands for; a float is a fraction, an int channels.

    Raises:
        UsageError: not of the grammar, zero, negative, or a fraction above 1.
    """
    text = str(value).strip()
    parts = dict(part.split("=", 1) for part in text.split(",")) if "=" in text and _paired(text) else None
    if parts is None:
        number = _number(text, text)
        return RankRule(input=number, output=number, per_mode=False)
    if set(parts) != {"in", "out"} or text.count("=") != 2:
        raise UsageError(f"--rank {text}: name both modes, once each; {_GRAMMAR}")
    return RankRule(input=_number(parts["in"], text), output=_number(parts["out"], text), per_mode=True)


def _paired(text: str) -> bool:
    return all("=" in part for part in text.split(","))


def _number(token: str, text: str) -> Fraction | int:
    if not _NUMBER.fullmatch(token):
        raise UsageError(
            f"--rank {text}: '{token}' is neither a fraction nor a number of channels; {_GRAMMAR}"
        )
    number = Fraction(token) if "." in token else int(token)
    if number <= 0:
        raise UsageError(f"--rank {text}: a rank must be above 0; {_GRAMMAR}")
    if isinstance(number, Fraction) and number > 1:
        raise UsageError(
            f"--rank {text}: a fraction must not exceed 1.0 (an integer means channels); {_GRAMMAR}"
        )
    return number
