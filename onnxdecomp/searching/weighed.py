"""What is known of a model's choices before one is made: costs, losses, and the front they span."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxdecomp.abridging import abridged
from onnxdecomp.planning import Choice, Front, Plan, Unit, front
from onnxdecomp.searching.figures import Figures

# A choice must be that much faster than the site as it is: less is noise.
_FASTER = 0.98


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weighed:
    """Units with what their choices cost and lose.

    Attributes:
        units: in graph order.
        costs: in the measure of the goal.
        seconds: as measured; None where nothing was timed.
        losses: predicted squared relative error of the outputs.
        residual: whether a residual Add follows the unit.
        counts: the units' multiply-accumulates ("macs") and parameters ("params").
        totals: those of all Convs, units or not; and "size", the bytes of the file.
    """

    units: tuple[Unit, ...]
    costs: tuple[Figures, ...]
    seconds: tuple[Figures, ...] | None
    losses: tuple[Figures, ...]
    residual: tuple[bool, ...]
    counts: Mapping[str, tuple[Figures, ...]]
    totals: Mapping[str, float]

    def options(self, number: int) -> list[int | None]:
        """What may be taken of a unit: keeping it (None), and the choices that are faster than that."""
        times = self.seconds[number] if self.seconds is not None else None
        lost = self.losses[number].choices
        return [None] + [
            i
            for i in range(len(lost))
            if math.isfinite(lost[i]) and (times is None or times.choices[i] < _FASTER * times.kept)
        ]

    def point(self, number: int, option: int | None) -> tuple[float, float]:
        """Cost and loss of a unit with one of its choices, or kept."""
        costs, losses = self.costs[number], self.losses[number]
        return (costs.kept, 0.0) if option is None else (costs.choices[option], losses.choices[option])

    def options_of(self, plan: Plan) -> list[int | None]:
        """The option of every unit that a plan takes."""
        taken = taken_of(self.units, plan)
        pairs = zip(self.units, taken, strict=True)
        return [None if choice is None else unit.choices.index(choice) for unit, choice in pairs]

    def cost(self, plan: Plan) -> float:
        """What all units cost with a plan."""
        return sum(self.point(number, option)[0] for number, option in enumerate(self.options_of(plan)))

    def error(self, plan: Plan) -> float:
        """The predicted relative error of the outputs with a plan."""
        losses = (self.point(number, option)[1] for number, option in enumerate(self.options_of(plan)))
        return math.sqrt(sum(losses))

    def shares(self, plan: Plan) -> dict[str, float]:
        """What a plan leaves of the multiply-accumulates and parameters of all Convs."""
        shares, options = {}, self.options_of(plan)
        # A weight stays as long as one of its readers is kept.
        staying = {unit.weight.key for unit, i in zip(self.units, options, strict=True) if i is None}
        for kind, priced in self.counts.items():
            saved = 0.0
            for unit, own, i in zip(self.units, priced, options, strict=True):
                if i is not None:
                    stays = kind == "params" and unit.weight.key in staying
                    saved += (0.0 if stays else own.kept) - own.choices[i]
            shares[kind] = 1 - saved / (self.totals[kind] or 1.0)
        return shares

    def solve(self) -> Solution:
        """The least loss for every cost, over all units."""
        options = [self.options(number) for number in range(len(self.units))]
        points = [[self.point(number, i) for i in own] for number, own in enumerate(options)]
        return Solution(weighed=self, options=options, front=front(points))


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """The front of a weighed model.

    Attributes:
        weighed: what it follows from.
        options: per unit, what `front`'s indices stand for.
        front: least loss by cost, and what is taken there.
    """

    weighed: Weighed
    options: list[list[int | None]]
    front: Front

    def taken(self, point: int) -> list[Choice | None]:
        """The choice of every unit at a point of the front."""
        picked = self.front.choices(point)
        found: list[Choice | None] = []
        for unit, own, i in zip(self.weighed.units, self.options, picked, strict=True):
            option = own[i]
            found.append(None if option is None else unit.choices[option])
        return found

    def plan(self, point: int) -> Plan:
        """A point of the front as a plan."""
        return plan_of(self.weighed.units, self.taken(point))

    @property
    def kept_cost(self) -> float:
        """What all units cost as they are."""
        return sum(priced.kept for priced in self.weighed.costs)


def plan_of(units: Sequence[Unit], taken: Sequence[Choice | None]) -> Plan:
    """The plan that takes these choices."""
    return Plan(
        {
            site.name: choice
            for unit, choice in zip(units, taken, strict=True)
            if choice is not None
            for site in unit.sites
        }
    )


def taken_of(units: Sequence[Unit], plan: Plan) -> list[Choice | None]:
    """The choice of every unit in a plan, None where it is kept."""
    return [plan.sites.get(unit.name) for unit in units]
