"""Ranks, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError


@verified
@dataclass(frozen=True, slots=True)
class Ranks:
    """Channels between the convolutions of a chain, per group; None on a side that has no factor.

    An example is in docs/python.md under "Rewriting".

    Raises:
        UsageError: a rank below 1.
    """

    input: int | None
    output: int | None

    def __post_init__(self) -> None:
        for name, rank in (("input", self.input), ("output", self.output)):
            if rank is not None and rank < 1:
                raise UsageError(f"`{name}` {rank}: a rank is 1 or more, or None on a side without a factor")

    @property
    def text(self) -> str:
        """In a word: "64/96"; "–" on a side without a factor."""
        return "/".join("–" if rank is None else str(rank) for rank in (self.input, self.output))

    @verified
    def shares(self, channels: tuple[int, int]) -> tuple[float, float]:
        """What is left of the channels (in, out) of a group, 1 on a side without a factor."""
        c_in, c_out = channels
        left_in = 1.0 if self.input is None else self.input / c_in
        left_out = 1.0 if self.output is None else self.output / c_out
        return left_in, left_out

    def to_dict(self) -> dict[str, Any]:
        """As in plans and JSON reports."""
        return {"in": self.input, "out": self.output}
