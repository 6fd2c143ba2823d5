"""Rounds of choosing, timing and fitting, until a goal is met or out of reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from onnxdecomp.errors import StoppedError, UsageError
from onnxdecomp.runtime import environment
from onnxdecomp.searching.contender import Contender
from onnxdecomp.searching.records import StudyResult
from onnxdecomp.searching.result import SearchResult
from onnxdecomp.searching.start import Start, named_units
from onnxdecomp.searching.storage import StorageError
from onnxdecomp.searching.study import Study
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.trying import better_plan
from onnxdecomp.searching.weighed import Weighed
from onnxdecomp.searching.weighing import machine_of, open_memory
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
_SECONDS, _LOST = "seconds", "lost"


class Hunt:
    """Rounds of choosing, timing and fitting, until the goal is met or out of reach."""

    def __init__(
        self, task: Task, study: Study | None, weighed: Weighed, notes: Sequence[str], folder: Path
    ) -> None:
        self._task = task
        self._study = study
        self._weighed = weighed
        self._notes = list(notes)
        self._folder = folder
        self._memory = open_memory(task)
        self._made = Workshop(task, weighed, folder)
        self.solution = weighed.solve()
        self.stopped = False
        self.interrupted: StoppedError | None = None
        self._found: StudyResult | None = None

    @property
    def tried(self) -> list[Contender]:
        """Every contender so far, in order."""
        return self._made.tried

    def run(self) -> None:
        """Until the goal is met or out of reach; or what a study was begun with."""
        if self._study is not None and self._study.start is not None:
            self._as_begun(self._study.start)
        elif self._task.goal.kind == "speedup":
            self._for_speed()
        elif self._task.goal.bounds_cost:
            self._for_share()
        else:
            self._for_loss()

    def _as_begun(self, start: Start) -> None:
        """The model that a study begins with, fitted here; its times are those of the study."""
        self._made.original_seconds = start.original_seconds
        contender = self._made.drafted(start.plan)
        self._made.fitted(self._made.known(contender, start.speedup))

    def begin(self) -> bool:
        """Make the study with what is known now; False where another process was first.

        A search that ran out of time knows too little for others to go on with.
        """
        if self._study is None or self._study.start is not None or self._late():
            return True
        self.settle()
        best = self.best
        if best is None:
            return True
        own = self._start(best)
        try:
            return self._study.begin(own) is own
        except UsageError as error:  # of its storage, or of a study that others made meanwhile
            self._leave(error)
            return True

    def _leave(self, error: UsageError) -> None:
        """The study is over; what is known already is the answer."""
        self._notes.append(f"the study was left early: {error}")
        self._study = None

    def _start(self, best: Contender) -> Start:
        weighed = self._weighed
        return Start(
            units=named_units(weighed.units),
            seconds=weighed.seconds,
            losses=weighed.losses,
            notes=tuple(self._notes),
            plan=best.plan,
            speedup=best.speedup,
            original_seconds=self._made.original_seconds,
            machine={"machine": machine_of(self._task.setting)} if self._task.timed else None,
        )

    @property
    def best(self) -> Contender | None:
        """The best that meets the goal, else the best that was fitted, else timed; None if there is none."""
        goal = self._task.goal
        done = [each for each in self.tried if each.result is not None]
        met = [each for each in done if each.meets(goal)]
        if met:
            return min(met, key=attrgetter("loss") if goal.bounds_cost else self._cost)
        return max(done or self.tried, key=lambda each: each.nearness(goal), default=None)

    def outcome(self) -> SearchResult:
        """What is known now."""
        task = self._task
        best = self.best
        return SearchResult(
            goal=task.goal,
            timed=task.timed,
            baseline=task.baseline,
            best=best,
            met=best is not None and best.result is not None and best.meets(task.goal),
            tried=tuple(self.tried),
            solution=self.solution,
            original_seconds=self._made.original_seconds,
            stopped=self.stopped,
            interrupted=self.interrupted,
            study=self._found,
            notes=tuple(filter(None, [*self._notes, self._memory.note])),
            environment=environment(),
        )

    def interrupt(self, stop: StoppedError | KeyboardInterrupt) -> None:
        """No more is done; the best so far is the answer."""
        self.stopped = True
        self.interrupted = stop if isinstance(stop, StoppedError) else StoppedError()

    def settle(self) -> None:
        """Time what would be written, where that was not done; and remember what it taught."""
        best = self.best
        while self._task.timed and best is not None and best.speedup is None:
            self._made.timed(best)
            best = self.best
        if best is not None and best.error is not None and best.predicted:
            self._memory.put({_LOST: best.error / best.predicted})

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
        error = wanted / (self._memory.get(_LOST) or 1.0)
        # Points of the front: too lossy up to the one, good from the other on; the last keeps every site.
        bad, good = -1, len(front.costs) - 1
        for _ in range(_MOST_FITS):
            guess = front.within_loss(error**2)
            point = min(max(bad + 1, 0 if guess is None else guess), good - 1)
            if point <= bad or (self.tried and self._late()):
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

    def improve(self) -> None:
        """Trials of the study, which begin with its plan; the best of them is fitted too."""
        task, study = self._task, self._study
        if study is None or study.start is None or task.samples is None or self._late():
            return
        try:
            self._found, plan = better_plan(
                task, study, task.samples, self._weighed, study.start.plan, self._folder
            )
        except StorageError as error:
            self._leave(error)
            return
        if (stop := self._found.stopped) is not None:
            self.interrupt(stop)
        if plan is None:
            return
        contender = self._made.drafted(plan)
        if task.goal.kind == "speedup":
            contender = self._made.timed(contender)
        if task.goal.kind != "speedup" or contender.meets(task.goal):
            self._made.fitted(contender)

    def _late(self) -> bool:
        self.stopped = self._task.late
        return self.stopped

    def _draft(self, point: int) -> Contender:
        """A point of the front."""
        return self._made.drafted(self.solution.plan(point))

    def _cost(self, contender: Contender) -> float:
        return self._weighed.cost(contender.plan)
