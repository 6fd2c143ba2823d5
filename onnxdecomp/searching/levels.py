"""What a study chooses and is told: levels of modules, and the loss and cost that they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxdecomp.errors import UsageError

Levels = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Space:
    """What is searched: `modules` maps a module's name to how many levels it has, 0 to n - 1."""

    modules: Mapping[str, int]

    def __post_init__(self) -> None:
        for name, number in self.modules.items():
            if number < 1:
                raise UsageError(f"module {name} has no levels to choose from")


@dataclass(frozen=True, slots=True)
class Scored:
    """What levels come to; both finite, or the trial is no answer."""

    loss: float
    cost: float


class PrunedError(Exception):
    """Raised by `evaluate` where `report` said that a trial is not worth finishing."""


Tell = Callable[[int, float], bool]
Evaluate = Callable[[Levels, Tell], Scored]
