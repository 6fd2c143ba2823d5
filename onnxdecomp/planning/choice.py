"""How one site is decomposed."""

from __future__ import annotations

from dataclasses import dataclass

from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError
from onnxdecomp.factors import METHODS, ONE_RANK, Ranks


@verified
@dataclass(frozen=True, slots=True)
class Choice:
    """How one site is decomposed.

    An example is in docs/python.md under "Rewriting".

    Attributes:
        method: one of `onnxdecomp.factors.METHODS`; "tucker1" decomposes the one mode that has a rank.
        ranks: per group; equal for the methods with a single rank.

    Raises:
        UsageError: there is no such method.
    """

    method: str
    ranks: Ranks

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"`method` {self.method}: unknown; it is one of {', '.join(METHODS)}")


def label(choice: Choice | None) -> str:
    """A choice in a word, for keys and tables: "tucker2 64/96", "kept"."""
    if choice is None:
        return "kept"
    return f"{choice.method} {choice.ranks.output if choice.method in ONE_RANK else choice.ranks.text}"
