"""Rounds of choosing, timing and fitting, until a goal is met or out of reach."""

from __future__ import annotations

from onnxdecomp.searching.cache import Cache
from onnxdecomp.searching.contender import Contender
from onnxdecomp.searching.gains import Gains
from onnxdecomp.searching.narrowing import AIM, Narrowing
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.weighed import Weighed
from onnxdecomp.searching.workshop import Workshop
from onnxdecomp.timing import TURNS, Budget

_GLANCE = Budget(runs=TURNS)
_MOST_ROUNDS = 6
# Aimed at is a little more than the goal; a model this much faster than it gives some of that back.
_MARGIN = 1.02
_LOOSE = 1.05
# Where nothing is known yet of how the goal's loss follows from the outputs' error.
_FIRST_ERROR = 0.15
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

    def __init__(self, task: Task, weighed: Weighed, made: Workshop, memory: Cache, gains: Gains) -> None:
        """
        Args:
            task: what is searched for.
            weighed: what choices cost and lose.
            made: makes models, and keeps what was tried.
            memory: what searches for other goals have learnt of the model.
            gains: what tuning leaves of a loss.
        """
        self._task, self._weighed, self._made, self._memory = task, weighed, made, memory
        self._gains = gains
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
        goal = self._task.goal
        wanted = goal.value * AIM if goal.kind == "max_error" else _FIRST_ERROR
        narrowing = Narrowing(goal, self.solution, self._made, self._gains, self._late)
        narrowing.run(wanted / (self._memory.get(LOST) or 1.0))

    def _late(self) -> bool:
        self.stopped = self._task.late
        return self.stopped

    def _draft(self, point: int) -> Contender:
        """A point of the front."""
        return self._made.drafted(self.solution.plan(point))
