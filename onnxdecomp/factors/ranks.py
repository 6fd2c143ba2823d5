"""Ranks, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ranks:
    """Channels between the convolutions of a chain, per group; None on a side that has no factor."""

    input: int | None
    output: int | None
