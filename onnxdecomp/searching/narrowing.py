"""The cheapest model whose loss is within a bound: between one that loses too much and one that does not."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnxdecomp.searching.contender import Contender
from onnxdecomp.searching.gains import Gains
from onnxdecomp.searching.goal import Goal
from onnxdecomp.searching.weighed import Solution
from onnxdecomp.searching.workshop import Workshop

_MOST_FITS = 5
# An error of this share of its bound is aimed at, once tuning has won back less than expected a smaller one;
# an error hardly below is enough.
AIM, _CAREFUL = 0.98, 0.95
_BELOW = 0.03
# Another fit is not worth its time where it can save less than this share of the sites' costs.
_WORTH = 0.01
_WIDEST_STEP = 3.0


class Narrowing:
    """Points of the front that were tried: too lossy up to the one, good from the other on.

    With tuning the first model is tuned, and tells what tuning leaves of a loss. The next ones are only
    fitted and judged by what tuning is expected to make of them; the one that would be taken is then tuned
    and judged by its own figure, and where that misses the goal, a less lossy one comes next.
    """

    def __init__(
        self, goal: Goal, solution: Solution, made: Workshop, gains: Gains, late: Callable[[], bool]
    ) -> None:
        """
        Args:
            goal: that bounds a loss.
            solution: the front.
            made: makes models.
            gains: what tuning leaves of a loss, and how often it may be asked.
            late: whether no new round should begin.
        """
        self._goal, self._solution, self._made, self._gains, self._late = goal, solution, made, gains, late
        self._tunes, self._aim = gains.left > 0, AIM
        self._tried: dict[int, Contender] = {}

    def run(self, error: float) -> None:
        """Until it is hardly worth going on.

        Args:
            error: predicted for the model to begin with.

        Raises:
            StoppedError: it was interrupted; what is known is among the contenders that were tried.
        """
        for _ in range(_MOST_FITS + self._gains.left):
            point = self._next(error)
            if point is None or (self._tried and self._late()):
                break
            self._tried[point] = self._made.fitted(self._made.drafted(self._solution.plan(point)))
            if self._tunes and len(self._tried) == 1:
                self._tune(point)
            while self._enough() and self._confirm():
                pass
            if self._spent or self._enough():
                break
            error = self._next_error(self._tried[point])
        while self._confirm():
            pass

    @property
    def _spent(self) -> bool:
        """Whether something is good, and no more models may be tuned: others would be worse for it."""
        return self._tunes and not self._gains.left and self._good in self._tried

    def _tune(self, point: int) -> None:
        fitted = self._tried[point]
        tuned = self._made.tuned(fitted)
        self._gains.learn(fitted, tuned)
        self._tried[point] = max(tuned, fitted, key=lambda each: each.nearness(self._goal))

    def _confirm(self) -> bool:
        """Tune the cheapest good model, if nothing but tuning makes it good; False where that need not be."""
        good = self._good
        if good not in self._tried or self._tried[good].within(self._goal):
            return False
        self._tune(good)
        if not self._tried[good].within(self._goal):
            self._aim = _CAREFUL
        return True

    def _is_good(self, point: int) -> bool:
        return self._gains.within(self._tried[point])

    @property
    def _bad(self) -> int:
        """The last point that is too lossy; −1 for none."""
        return max((point for point in self._tried if not self._is_good(point)), default=-1)

    @property
    def _good(self) -> int:
        """The first point behind it that is good, as is the last of all, which keeps every site."""
        points = [*filter(self._is_good, self._tried), len(self._solution.front.costs) - 1]
        return min(point for point in points if point > self._bad)

    def _next(self, error: float) -> int | None:
        """The point with that predicted error, as far as it is between the two; None where nothing is."""
        bad, good = self._bad, self._good
        guess = self._solution.front.within_loss(error**2)
        point = min(max(bad + 1, 0 if guess is None else guess), good - 1)
        return point if point > bad else None

    def _enough(self) -> bool:
        """Whether little can be saved any more, or the error is hardly less than its bound."""
        costs, good = self._solution.front.costs, self._good
        if float(costs[good] - costs[max(self._bad, 0)]) < _WORTH * self._solution.kept_cost:
            return True
        found = self._gains.expected(self._tried[good]) if good in self._tried else None
        return self._goal.kind == "max_error" and (found or 0.0) >= (self._aim - _BELOW) * self._goal.value

    def _next_error(self, contender: Contender) -> float:
        """The predicted error to try next: between what was good and what was not, else a step further."""
        losses, bad, good = self._solution.front.losses, self._bad, self._good
        found = self._gains.expected(contender)
        if self._goal.kind == "max_error" and found:
            step = min(max(self._aim * self._goal.value / found, 1 / _WIDEST_STEP), _WIDEST_STEP)
        else:
            step = 2.0 if self._gains.within(contender) else 0.5
        further = contender.predicted * step
        if bad >= 0 and good < len(losses) - 1 and not losses[good] < further**2 < losses[bad]:
            return math.sqrt(math.sqrt(losses[bad] * losses[good]))
        return further
