"""Why every site got what it got, and what else there was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxdecomp.planning import Choice, label
from onnxdecomp.searching.contender import Contender
from onnxdecomp.searching.weighed import Solution, Weighed

_FRONT_POINTS = 200
# Shares of the channels at which uniform ranks are drawn.
_UNIFORM = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One choice of a site: what it costs in the goal's measure, and its predicted share of the loss."""

    choice: Choice | None
    cost: float
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """As in JSON reports."""
        return {"choice": label(self.choice), "cost": self.cost, "loss": self.loss}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a site has its choice: what the next cheaper and the next better one would have cost and lost.

    Attributes:
        name: of the first of the sites that share the weight.
        taken: the choice.
        cheaper: the next one on the site's own front that costs less, None where there is none.
        better: the next one that loses less, likewise.
        kept: what the site costs as it is.
    """

    name: str
    taken: Point
    cheaper: Point | None
    better: Point | None
    kept: float

    def to_dict(self) -> dict[str, Any]:
        """As in JSON reports."""
        return {
            "name": self.name,
            "kept_cost": self.kept,
            "taken": self.taken.to_dict(),
            "cheaper": self.cheaper.to_dict() if self.cheaper else None,
            "better": self.better.to_dict() if self.better else None,
        }


def reasons(solution: Solution, contender: Contender) -> list[Reason]:
    """One for every unit, in graph order."""
    weighed = solution.weighed
    found = []
    for number, unit in enumerate(weighed.units):
        chosen = contender.plan.sites.get(unit.name)
        points = _own_front(weighed, number)
        index = unit.choices.index(chosen) if chosen is not None else None
        taken = _point(weighed, number, index)
        found.append(
            Reason(
                name=unit.name,
                taken=taken,
                cheaper=max((p for p in points if p.cost < taken.cost), key=lambda p: p.cost, default=None),
                better=min((p for p in points if p.loss < taken.loss), key=lambda p: p.cost, default=None),
                kept=weighed.costs[number].kept,
            )
        )
    return found


def _point(weighed: Weighed, number: int, index: int | None) -> Point:
    cost, loss = weighed.point(number, index)
    choice = None if index is None else weighed.units[number].choices[index]
    return Point(choice=choice, cost=cost, loss=loss)


def _own_front(weighed: Weighed, number: int) -> list[Point]:
    points = [_point(weighed, number, index) for index in weighed.options(number)]
    kept: list[Point] = []
    for point in sorted(points, key=lambda each: (each.cost, each.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept


def further(solution: Solution, best: Contender, error: float = 0.01) -> tuple[float, float] | None:
    """What a further `error` of the outputs would buy by prediction: shares of the units' cost, now and then.

    None where nothing costs anything.
    """
    if solution.kept_cost <= 0:
        return None
    now, then = solution.weighed.cost(best.plan), solution.front.within_loss((best.predicted + error) ** 2)
    if then is None:
        return None
    return now / solution.kept_cost, min(now, float(solution.front.costs[then])) / solution.kept_cost


def uniform(weighed: Weighed) -> list[tuple[float, float]]:
    """Costs and predicted errors of the model where every site has the same share of its channels."""
    points = []
    for share in _UNIFORM:
        cost = loss = 0.0
        for number in range(len(weighed.units)):
            point = _point(weighed, number, _nearest(weighed, number, share))
            cost, loss = cost + point.cost, loss + point.loss
        points.append((cost, math.sqrt(loss)))
    return points


def _nearest(weighed: Weighed, number: int, share: float) -> int | None:
    unit = weighed.units[number]
    widths = unit.sites[0].group_channels

    def distance(index: int) -> float:
        return sum(abs(left - share) for left in unit.choices[index].ranks.shares(widths))

    pairs = zip(weighed.costs[number].choices, weighed.losses[number].choices, strict=True)
    own = [index for index, (cost, loss) in enumerate(pairs) if math.isfinite(cost + loss)]
    return min(own, key=distance, default=None)


def front_points(solution: Solution, count: int = _FRONT_POINTS) -> list[tuple[float, float]]:
    """Costs and predicted errors along the front, evenly thinned."""
    front = solution.front
    picks = np.unique(np.linspace(0, len(front.costs) - 1, min(count, len(front.costs))).astype(int))
    return [(float(front.costs[i]), math.sqrt(float(front.losses[i]))) for i in picks]
