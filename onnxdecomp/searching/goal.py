"""What the user wants of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxdecomp.errors import UsageError

# What a goal is about: costs to get below, or losses not to exceed.
COSTS = ("speedup", "macs", "params", "size")
LOSSES = ("max_error", "max_drop", "min_agreement")
_HIGHEST_SPEEDUP = 100.0


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal.

    Attributes:
        kind: of `COSTS`: "speedup" by that factor, or "macs", "params" and "size" of all Convs (of the file)
            down to that share; of `LOSSES`: the fastest model whose outputs' relative error is at most that,
            whose accuracy drops by at most that, or whose top-1 classes agree with the original's at least
            that often, all on samples held out.
        value: see there.
    """

    kind: str
    value: float

    def __str__(self) -> str:
        return f"--{self.kind.replace('_', '-')} {self.value:g}"

    @property
    def bounds_cost(self) -> bool:
        """Whether the cost is given and the loss is to be least; else the other way round."""
        return self.kind in COSTS


def parse_goal(given: Mapping[str, float | None]) -> Goal:
    """The one goal among the options of the command line.

    Raises:
        UsageError: none or several, or a value that no model can have.
    """
    named = [Goal(kind, value) for kind, value in given.items() if value is not None]
    options = ", ".join(f"--{kind.replace('_', '-')}" for kind in (*COSTS, *LOSSES))
    if len(named) != 1:
        what = "a goal is missing" if not named else "there are several goals"
        raise UsageError(f"{what}: give one of {options}")
    goal = named[0]
    if goal.kind == "speedup" and not 1 < goal.value <= _HIGHEST_SPEEDUP:
        raise UsageError(
            f"{goal}: out of reach; give a factor above 1 and up to {_HIGHEST_SPEEDUP:g}: 2 is twice as fast"
        )
    if goal.kind in ("macs", "params", "size", "max_error", "max_drop") and not 0 < goal.value < 1:
        raise UsageError(f"{goal}: give a share between 0 and 1")
    if goal.kind == "min_agreement" and not 0 < goal.value <= 1:
        raise UsageError(f"{goal}: give a share between 0 and 1")
    return goal
