"""The multiple-choice knapsack behind a search for ranks: one option per site, cheap against close.

Sites are merged one after the other into a list of the sums that no other beats in both cost and loss:
the list algorithm of Nemhauser and Ullmann 1969 ("Discrete dynamic programming and capital allocation",
Management Science 15), for options of which exactly one is taken (Kellerer, Pferschy and Pisinger 2004,
"Knapsack Problems", chapter 11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.errors import UsageError
from onnxdecomp.factors import Floats, all_finite

Indices = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Front:
    """The points that no other beats in both cost and loss.

    Attributes:
        costs: ascending; shape (points,).
        losses: strictly descending; shape (points,).
        parents: per site, the place each point had before the site was merged.
        picks: per site, the option each point takes there.
    """

    costs: Floats
    losses: Floats
    parents: tuple[Indices, ...]
    picks: tuple[Indices, ...]

    def choices(self, i: int) -> tuple[int, ...]:
        """The index of the option taken at each site by point `i`."""
        taken = []
        for parents, picks in zip(reversed(self.parents), reversed(self.picks), strict=True):
            taken.append(int(picks[i]))
            i = int(parents[i])
        return tuple(reversed(taken))

    def within_cost(self, budget: float) -> int | None:
        """The point of least loss at a cost of `budget` or less; None where every point costs more."""
        after = int(np.searchsorted(self.costs, budget, side="right"))
        return after - 1 if after else None

    def within_loss(self, limit: float) -> int | None:
        """The point of least cost at a loss of `limit` or less; None where every point loses more."""
        first = int(np.searchsorted(-self.losses, -limit, side="left"))
        return first if first < len(self.losses) else None


def front(options: Sequence[Sequence[tuple[float, float]]], bins: int = 4096) -> Front:
    """Every sum of costs and losses worth taking.

    Exact while `bins` points are enough. Where more remain after a site, the range of costs so far is cut
    into `bins` equal parts and each keeps its point of least loss. Costs and losses are never rounded, so a
    point that is within a budget stays so; and for every way to choose, some point has no more loss at a
    cost higher by (number of sites) · (range of all costs) / `bins` at most.

    Args:
        options: per site, the (cost, loss) of each option; exactly one is taken. Finite; costs may be
            negative, as where a site grows.
        bins: how many points to keep, about.

    Raises:
        UsageError: a site has no options, or one that is not finite.
    """
    if bins < 1:
        raise UsageError(f"{bins} bins are too few; give 1 or more")
    costs, losses = np.zeros(1), np.zeros(1)
    parents: list[Indices] = []
    picks: list[Indices] = []
    for number, site in enumerate(options):
        if not len(site):
            raise UsageError(f"site {number} has no options to choose from")
        own = np.array(site, dtype=np.float64)
        if not all_finite(own):
            raise UsageError(f"site {number} has an option whose cost or loss is not finite")
        all_costs = np.add.outer(costs, own[:, 0]).ravel()
        all_losses = np.add.outer(losses, own[:, 1]).ravel()
        kept = _undominated(all_costs, all_losses)
        costs, losses = all_costs[kept], all_losses[kept]
        if len(costs) > bins:
            few = _thinned(costs, bins)
            kept, costs, losses = kept[few], costs[few], losses[few]
        parent, pick = np.divmod(kept, len(own))
        parents.append(parent.astype(np.int32))
        picks.append(pick.astype(np.int32))
    return Front(costs=costs, losses=losses, parents=tuple(parents), picks=tuple(picks))


def _undominated(costs: Floats, losses: Floats) -> NDArray[np.intp]:
    """Where the points are that no other beats, by ascending cost; of equal points the first."""
    # Most candidates lose to something in a cheaper part of the range; to sort them too would take longest.
    parts = 4 + len(costs) // 16
    part = _part(costs, parts)
    best = np.full(parts, np.inf)
    np.minimum.at(best, part, losses)
    cheaper = np.concatenate(([np.inf], np.minimum.accumulate(best)[:-1]))
    (maybe,) = np.nonzero(losses < cheaper[part])
    order = maybe[np.lexsort((losses[maybe], costs[maybe]))]
    before = np.concatenate(([np.inf], np.minimum.accumulate(losses[order])[:-1]))
    return order[losses[order] < before]


def _thinned(costs: Floats, bins: int) -> NDArray[np.intp]:
    """Of points on a front, the last, and so the best, of each part of the range; and the cheapest."""
    part = _part(costs, bins)
    kept = np.append(part[1:] != part[:-1], True)
    kept[0] = True
    return np.flatnonzero(kept)


def _part(costs: Floats, parts: int) -> NDArray[np.intp]:
    """Which of so many equal parts of their range the costs are in."""
    low, high = costs.min(), costs.max()
    if not high > low:
        return np.zeros(len(costs), dtype=np.intp)
    found: NDArray[np.intp] = np.minimum((costs - low) / (high - low) * parts, parts - 1).astype(np.intp)
    return found
