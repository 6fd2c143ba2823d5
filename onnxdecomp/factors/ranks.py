"""Ranks, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ranks:
    """Channels between the convolutions of a chain, per group; None on a side that has no factor."""

    input: int | None
    output: int | None

    @property
    def text(self) -> str:
        """In a word: "64/96"; "–" on a side without a factor."""
        return "/".join("–" if rank is None else str(rank) for rank in (self.input, self.output))

    def shares(self, channels: tuple[int, int]) -> tuple[float, float]:
        """What is left of the channels (in, out) of a group, 1 on a side without a factor."""
        left = (
            1.0 if rank is None else rank / width
            for rank, width in zip((self.input, self.output), channels, strict=True)
        )
        return next(left), next(left)

    def to_dict(self) -> dict[str, Any]:
        """As in plans and JSON reports."""
        return {"in": self.input, "out": self.output}
