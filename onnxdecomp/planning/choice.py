"""How one site is decomposed."""

from __future__ import annotations

from dataclasses import dataclass

from onnxdecomp.factors import Ranks


@dataclass(frozen=True, slots=True)
class Choice:
    """How one site is decomposed.

    Attributes:
        method: one of `onnxdecomp.factors.METHODS`; "tucker1" decomposes the one mode that has a rank.
        ranks: per group; equal for the methods with a single rank.
    """

    method: str
    ranks: Ranks


def label(choice: Choice | None) -> str:
    """A choice in a word, for keys and tables: "tucker2 64/96", "kept"."""
    if choice is None:
        return "kept"
    ranks = dict.fromkeys((choice.ranks.input, choice.ranks.output))
    sides = [choice.ranks.input, choice.ranks.output] if choice.method.startswith("tucker") else [*ranks]
    return f"{choice.method} {'/'.join('–' if rank is None else str(rank) for rank in sides)}"
