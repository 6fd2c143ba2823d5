"""Rounds of choosing, timing and fitting, until a goal is met or out of reach."""

from __future__ import annotations

import math

from onnxdecomp.searching.cache import Cache
from onnxdecomp.searching.contender import Contender
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.weighed import Weighed
from onnxdecomp.searching.workshop import Workshop
from onnxdecomp.timing import TURNS, Budget

_GLANCE = Budget(runs=TURNS)
_MOST_ROUNDS = 6
_MOST_FITS = 5
# Aimed at is a little more than the goal; a model this much faster than it gives some of that back.
_MARGIN = 1.02
_LOOSE = 1.05
# Likewise for losses: an error of this share of its bound is aimed at, and one above the second is enough.
_AIM = 0.98
_CLOSE = 0.95
# Another fit is not worth its time where it can save less than this share of the sites' costs.
_WORTH = 0.01
# Where nothing is known yet of how the goal's loss follows from the outputs' error.
_FIRST_ERROR = 0.15
_WIDEST_STEP = 3.0
# The sites' own times may understate the original's by that much.
_WIDEST_SCALE = 10.0
# Names in the memory: the original's time as the sites' times count it, and measured over predicted error.
_SECONDS, LOST = "seconds", "lost"


class Rounds:
    """What models come next for a goal, and when it is enough.

    Attributes:
        solution: the front that models are taken from.
        stopped: whether time was up before the goal was met or out of reach.
    """

    def __init__(self, task: Task, weighed: Weighed, made: Workshop, memory: Cache) -> None:
        """
        Args:
            task: what is searched for.
            weighed: what choices cost and lose.
            made: makes models, and keeps what was tried.
            memory: what searches for other goals have learnt of the model.
        """
        self._task, self._weighed, self._made, self._memory = task, weighed, made, memory
        self.solution = weighed.solve()
        self.stopped = False

    def run(self) -> None:
        """Until the goal is met or out of reach."""
        if self._task.goal.kind == "speedup":
            self._for_speed()
        elif self._task.goal.bounds_cost:
            self._for_share()
        else:
            self._for_loss()

    def _for_speed(self) -> None:
        """The least loss among models that many times faster, by timing whole models.

        The sites' own times say which model comes next. How long the original takes as they count it,
        `seconds`, is corrected by what the models before it really saved.
        """
        goal, front = self._task.goal.value, self.solution.front
        start = self._memory.get(_SECONDS) or self._made.time_original(_GLANCE)
        seconds = start
        timed: dict[int, tuple[Contender, float]] = {}
        for _ in range(_MOST_ROUNDS):
            point = front.within_cost(self.solution.kept_cost - seconds * (1 - 1 / (goal * _MARGIN)))
            point = 0 if point is None else point
            if point in timed or (timed and self._late()):
                break
            contender = self._made.timed(self._draft(point))
            timed[point] = contender, seconds
            found = contender.speedup
            if found is None or goal <= found.low <= goal * _LOOSE:
                break
            saved = self.solution.kept_cost - float(front.costs[point])
            if saved > 0:
                seconds = saved / max(1 - 1 / found.low, saved / (_WIDEST_SCALE * start))
        good = [pair for pair in timed.values() if pair[0].meets(self._task.goal)]
        best, assumed = (
            min(good, key=lambda pair: pair[0].predicted)
            if good
            else max(timed.values(), key=lambda pair: pair[0].nearness(self._task.goal))
        )
        self._memory.put({_SECONDS: assumed})
        self._made.fitted(best)

    def _for_share(self) -> None:
        """The least loss among models with that share of the cost, by counting."""
        goal, front = self._task.goal, self.solution.front
        total = self._weighed.totals[goal.kind]
        budget = self.solution.kept_cost - (1 - goal.value) * total
        for _ in range(_MOST_ROUNDS):
            point = front.within_cost(budget)
            contender = self._made.sized(self._draft(0 if point is None else point))
            if contender.within(goal) or point is None or self._late():
                contender = self._made.fitted(contender)
            if contender.result is not None and (contender.within(goal) or point is None or self.stopped):
                return
            # What counting did not foresee: nodes, names, biases that the fit adds.
            budget -= max((contender.reached(goal) or 0.0) - goal.value, 0.0) * total * _MARGIN
        self._made.fitted(contender)

    def _for_loss(self) -> None:
        """The fastest model whose measured loss is within the goal, by fitting and measuring models."""
        goal, front = self._task.goal, self.solution.front
        wanted = goal.value * _AIM if goal.kind == "max_error" else _FIRST_ERROR
        error = wanted / (self._memory.get(LOST) or 1.0)
        # Points of the front: too lossy up to the one, good from the other on; the last keeps every site.
        bad, good = -1, len(front.costs) - 1
        for _ in range(_MOST_FITS):
            guess = front.within_loss(error**2)
            point = min(max(bad + 1, 0 if guess is None else guess), good - 1)
            if point <= bad or (self._made.tried and self._late()):
                break
            contender = self._made.fitted(self._draft(point))
            if contender.within(goal):
                good = point
            else:
                bad = point
            left = float(front.costs[good] - front.costs[max(bad, 0)])
            if left < _WORTH * self.solution.kept_cost or self._close(contender):
                break
            error = self._next_error(contender, bad, good)

    def _close(self, contender: Contender) -> bool:
        """Whether an error is within its bound, and hardly less than that."""
        goal = self._task.goal
        return goal.kind == "max_error" and _CLOSE * goal.value <= (contender.error or 0.0) <= goal.value

    def _next_error(self, contender: Contender, bad: int, good: int) -> float:
        """The predicted error to try next: between what was good and what was not, else a step further."""
        goal, losses = self._task.goal, self.solution.front.losses
        if goal.kind == "max_error" and contender.error:
            step = min(max(_AIM * goal.value / contender.error, 1 / _WIDEST_STEP), _WIDEST_STEP)
        else:
            step = 2.0 if contender.within(goal) else 0.5
        further = contender.predicted * step
        if bad >= 0 and good < len(losses) - 1 and not losses[good] < further**2 < losses[bad]:
            return math.sqrt(math.sqrt(losses[bad] * losses[good]))
        return further

    def _late(self) -> bool:
        self.stopped = self._task.late
        return self.stopped

    def _draft(self, point: int) -> Contender:
        """A point of the front."""
        return self._made.drafted(self.solution.plan(point))
