"""What a search has found: by its rounds, from a study that others began, by its trials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxdecomp.errors import StoppedError, StorageError, UsageError
from onnxdecomp.progress import silent
from onnxdecomp.rewriting import NOTHING_TUNED
from onnxdecomp.runtime import environment
from onnxdecomp.searching.contender import Contender
from onnxdecomp.searching.gains import Gains
from onnxdecomp.searching.records import StudyResult
from onnxdecomp.searching.result import SearchResult
from onnxdecomp.searching.rounds import LOST, Rounds
from onnxdecomp.searching.start import Start, named_units
from onnxdecomp.searching.study import Study
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.trying import better_plan
from onnxdecomp.searching.weighed import Weighed
from onnxdecomp.searching.weighing import machine_of, open_memory
from onnxdecomp.searching.workshop import Workshop

# So many models are tuned on the way to a goal that bounds a loss, at most.
_MOST_TUNINGS = 4


class Hunt:
    """What a search has found so far, and the ways to more."""

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
        tunes = task.tuning is not None and not task.goal.bounds_cost
        self._gains = Gains(task.goal, _MOST_TUNINGS if tunes else 0)
        self._rounds = Rounds(task, weighed, self._made, self._memory, self._gains)
        self._late = False
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
        else:
            self._rounds.run()

    def _as_begun(self, start: Start) -> None:
        """The model that a study begins with, fitted here; its times are those of the study."""
        self._made.original_seconds = start.original_seconds
        contender = self._made.drafted(start.plan)
        contender = self._made.fitted(self._made.known(contender, start.speedup))
        if self._gains.left:
            self._gains.learn(contender, self._made.tuned(contender))

    def begin(self) -> bool:
        """Begin the study with what is known now; False where another process was first.

        A search that ran out of time knows too little for others to go on with.
        """
        if self._study is None or self._study.start is not None or self._task.late:
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
            return min(met, key=self._order)
        return max(done or self.tried, key=lambda each: (each.nearness(goal), -each.loss), default=None)

    def _order(self, contender: Contender) -> tuple[float, ...]:
        """Of those that meet the goal the better one comes first; of two alike, that which was tuned."""
        cost = () if self._task.goal.bounds_cost else (self._weighed.cost(contender.plan),)
        return (*cost, contender.loss, contender.tuned is None)

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
            solution=self._rounds.solution,
            original_seconds=self._made.original_seconds,
            stopped=self._late or self._rounds.stopped or self.interrupted is not None,
            interrupted=self.interrupted,
            study=self._found,
            notes=tuple(filter(None, [*self._notes, self._memory.note])),
            environment=environment(),
        )

    def interrupt(self, stop: StoppedError | KeyboardInterrupt) -> None:
        """No more is done; the best so far is the answer."""
        self._made.progress = silent  # who ended the work may end what is still to be done, too
        self.interrupted = stop if isinstance(stop, StoppedError) else StoppedError()

    def settle(self) -> None:
        """Time what would be written, where that was not done; and remember what it taught."""
        best = self.best
        while self._task.timed and best is not None and best.speedup is None:
            self._made.timed(best)
            best = self.best
        if best is None or not best.predicted:
            return
        error = best.error if best.fitted_error is None else best.fitted_error
        if error is not None:
            self._memory.put({LOST: error / best.predicted})

    def improve(self) -> None:
        """Trials of the study, which begin with its plan; the best of them is fitted too."""
        task, study = self._task, self._study
        if study is None or task.samples is None:
            return
        if task.late:
            self._late = True
            self._notes.append("time was up before any trial of the study")
            return
        if study.start is None:
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
            contender = self._made.fitted(contender)
        if self.interrupted is None and self._gains.left and self._gains.within(contender):
            self._gains.learn(contender, self._made.tuned(contender))

    def tune(self) -> None:
        """Tune the model that is chosen, where it is asked for and not done yet."""
        if self._task.tuning is None or self.interrupted is not None:
            return
        self.settle()
        best = self.best
        if best is None or best.result is None or (best.speedup is not None and best.speedup.ratio < 1):
            return
        if any(each.tuned is not None and each.plan == best.plan for each in self.tried):
            return
        if self._made.tuned(best).tuned is None:
            self._notes.append(NOTHING_TUNED)
