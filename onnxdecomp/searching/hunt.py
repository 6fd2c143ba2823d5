"""From a goal to a model: choose, time, tighten, fit, measure."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from onnxdecomp.comparing import measure_quality
from onnxdecomp.errors import StoppedError
from onnxdecomp.ir import Model, load, save
from onnxdecomp.planning import Plan, label
from onnxdecomp.rewriting import Result, rewrite
from onnxdecomp.sampling import Samples, sample_digests
from onnxdecomp.searching.automl import Trials, find_modules, seed_of, space_of, taken_at
from onnxdecomp.searching.bank import Bank
from onnxdecomp.searching.cache import digest
from onnxdecomp.searching.contender import Contender
from onnxdecomp.searching.outcome import Outcome
from onnxdecomp.searching.sizes import feeds_shapes
from onnxdecomp.searching.study import StudyResult, run_study
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.weighed import Weighed, plan_of, taken_of
from onnxdecomp.searching.weighing import model_digest, open_memory, task_feeds, weigh
from onnxdecomp.timing import TURNS, Budget, Contestant, medians, race, setting_engine, speedup

_TIMING = Budget(duration=1.5)
_GLANCE = Budget(runs=TURNS)
# An interval wider than this share of the speed-up says that something disturbed the timing.
_VAGUE = 0.04
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


def find(task: Task) -> Outcome:
    """The best model for a goal; an interruption leaves the best so far, if there is any.

    Raises:
        NothingSelectedError: no site can be decomposed.
        RunError, MissingExtraError: ONNX Runtime does not run the model.
    """
    model = load(task.path)
    weighed, notes = weigh(task, model)
    with tempfile.TemporaryDirectory(prefix=".onnxdecomp-", dir=task.scratch) as folder:
        hunt = Hunt(task, model, weighed, Path(folder))
        try:
            hunt.run()
        except StoppedError:
            if not any(each.result is not None for each in hunt.tried):
                raise
            hunt.stopped = True
        hunt.settle()
        return hunt.outcome(notes)


class Hunt:
    """Rounds of choosing, timing and fitting, until the goal is met or out of reach."""

    def __init__(self, task: Task, model: Model, weighed: Weighed, folder: Path) -> None:
        self._task = task
        self._weighed = weighed
        self._model = model
        self._folder = folder
        self._contestant = Contestant(path=task.path, feeds=task_feeds(task, model)[0])
        self._memory = open_memory(task, model)
        self._engine = setting_engine(task.setting)
        self._original: float | None = None
        self.solution = weighed.solve()
        self.tried: list[Contender] = []
        self.stopped = False
        self.study: StudyResult | None = None

    def run(self) -> None:
        """Until the goal is met or out of reach."""
        if self._task.goal.kind == "speedup":
            self._for_speed()
        elif self._task.goal.bounds_cost:
            self._for_share()
        else:
            self._for_loss()
        if self._task.trials:
            self._for_better()

    def outcome(self, notes: list[str]) -> Outcome:
        """What is known now: the best that meets the goal, else the best that was fitted, else timed."""
        task = self._task
        done = [each for each in self.tried if each.result is not None]
        met = [each for each in done if each.meets(task.goal)]
        best = min(met, key=_loss if task.goal.bounds_cost else self._cost, default=None)
        if best is None:
            best = max(done or self.tried, key=lambda each: each.nearness(task.goal), default=None)
        return Outcome(
            best=best,
            met=bool(met),
            tried=tuple(self.tried),
            solution=self.solution,
            original_seconds=self._original,
            stopped=self.stopped,
            study=self.study,
            notes=tuple(filter(None, [*notes, self._memory.note])),
        )

    def settle(self) -> None:
        """Time what would be written, where that was not done; and remember what it taught."""
        best = self.outcome([]).best
        while self._task.timed and best is not None and best.speedup is None:
            self._timed(best)
            best = self.outcome([]).best
        if best is not None and best.error is not None and best.predicted:
            self._memory.put({_LOST: best.error / best.predicted})

    def _for_speed(self) -> None:
        """The least loss among models that many times faster, by timing whole models.

        The sites' own times say which model comes next. How long the original takes as they count it,
        `seconds`, is corrected by what the models before it really saved.
        """
        goal, front = self._task.goal.value, self.solution.front
        start = self._memory.get(_SECONDS) or medians(race([self._contestant], self._engine, _GLANCE)[0])
        seconds = start
        timed: dict[int, tuple[Contender, float]] = {}
        for _ in range(_MOST_ROUNDS):
            point = front.within_cost(self.solution.kept_cost - seconds * (1 - 1 / (goal * _MARGIN)))
            point = 0 if point is None else point
            if point in timed or (timed and self._late()):
                break
            contender = self._timed(self._draft(point))
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
        self._fit(best)

    def _for_share(self) -> None:
        """The least loss among models with that share of the cost, by counting."""
        goal, front = self._task.goal, self.solution.front
        total = self._weighed.totals[goal.kind]
        budget = self.solution.kept_cost - (1 - goal.value) * total
        for _ in range(_MOST_ROUNDS):
            point = front.within_cost(budget)
            contender = self._sized(self._draft(0 if point is None else point))
            if contender.within(goal) or point is None or self._late():
                contender = self._fit(contender)
            if contender.result is not None and (contender.within(goal) or point is None or self.stopped):
                return
            # What counting did not foresee: nodes, names, biases that the fit adds.
            budget -= max((contender.reached(goal) or 0.0) - goal.value, 0.0) * total * _MARGIN
        self._fit(contender)

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
            contender = self._fit(self._draft(point))
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

    def _for_better(self) -> None:
        """Trials of an Optuna study, seeded with the best plan; the best of them is fitted too."""
        task, best = self._task, self.outcome([]).best
        if best is None or task.fitted is None or self._late():
            return
        modules = find_modules(self._weighed)
        taken = taken_of(self._weighed.units, best.plan)
        bank = Bank(
            self._weighed.units,
            self._model,
            task.fitted,
            self._folder,
            freeze=task.freeze,
            track=task.track,
        )
        seed = seed_of(modules, self._weighed, taken)
        judge = Trials(bank, self._weighed, modules, task.path, self._folder)
        result = run_study(
            space_of(modules),
            judge,
            trials=task.trials,
            budget=self._weighed.cost(best.plan) * (1 + 1e-9) if task.goal.bounds_cost else None,
            seeds=[seed],
            storage=task.storage,
            name=task.study,
            deadline=task.deadline,
            front=not task.goal.bounds_cost,
            fingerprint=self._fingerprint(),
        )
        self.study = result
        self.stopped = self.stopped or result.stopped is not None
        levels = _picked(result, seed, task.goal.bounds_cost)
        if levels is None or levels == seed:
            return
        contender = self._drafted(plan_of(self._weighed.units, taken_at(modules, self._weighed, levels)))
        if task.goal.kind == "speedup":
            contender = self._timed(contender)
        if task.goal.kind != "speedup" or contender.meets(task.goal):
            self._fit(contender)

    def _fingerprint(self) -> str:
        """Tells models, samples and what is weighed apart, not the machine that measures."""
        task = self._task
        samples = sample_digests(task.fitted) if task.fitted is not None else []
        units = [f"{unit.name} {label(choice)}" for unit in self._weighed.units for choice in unit.choices]
        return digest(model_digest(self._model), task.goal.kind, task.cost, *sorted(samples), *units)

    def _late(self) -> bool:
        self.stopped = self._task.late()
        return self.stopped

    def _rewritten(self, plan: Plan, data: Samples | None) -> Result:
        task = self._task
        return rewrite(
            task.path,
            plan=plan,
            policy=task.policy,
            freeze_weights=task.freeze,
            input_shapes=feeds_shapes(self._contestant.feeds),
            data=data,
            scratch=task.scratch,
            track=task.track_jobs,
        )

    def _draft(self, point: int) -> Contender:
        """A point of the front."""
        return self._drafted(self.solution.plan(point))

    def _drafted(self, plan: Plan) -> Contender:
        """A plan, and what is known before there is a model of it."""
        found = Contender(plan=plan, predicted=self._weighed.error(plan), shares=self._weighed.shares(plan))
        self.tried.append(found)
        return found

    def _now(self, before: Contender, contender: Contender) -> Contender:
        """More is known of a contender."""
        self.tried[self.tried.index(before)] = contender
        self._task.say(contender.line())
        return contender

    def _sized(self, contender: Contender) -> Contender:
        """The contender with the size of its file, by plain factors."""
        return self._now(contender, contender.sized(self._rewritten(contender.plan, None)))

    def _timed(self, contender: Contender) -> Contender:
        """The contender timed beside the original; by plain factors before it is fitted: that is the same."""
        result = contender.result or self._rewritten(contender.plan, None)
        out = self._folder / "timed.onnx"
        save(result.rewritten, out)
        pair = [self._contestant, replace(self._contestant, path=out)]
        first, second = race(pair, self._engine, _TIMING)
        found = speedup(first, second)
        if found.width > _VAGUE:
            first, second = race(pair, self._engine, _TIMING)
            found = min(found, speedup(first, second), key=lambda each: each.width)
        self._original = medians(first)
        return self._now(contender, replace(contender.sized(result), speedup=found))

    def _fit(self, contender: Contender) -> Contender:
        """The contender with its factors fitted in sequence, and its loss measured."""
        task = self._task
        result = self._rewritten(contender.plan, task.fitted)
        fitted = replace(contender.sized(result), result=result)
        if task.fitted is not None and task.held_out is not None:
            out = self._folder / "fitted.onnx"
            save(result.rewritten, out)
            quality = measure_quality(
                task.path, out, task.held_out, fitted=len(task.fitted), labels=task.labels
            )
            fitted = replace(fitted, quality=quality)
        return self._now(contender, fitted)

    def _cost(self, contender: Contender) -> float:
        return self._weighed.cost(contender.plan)


def _loss(contender: Contender) -> float:
    return contender.predicted if contender.error is None else contender.error


def _picked(result: StudyResult, seed: Mapping[str, int], bounded: bool) -> Mapping[str, int] | None:
    """The study's answer: the least loss in its budget, or the cheapest that loses no more than the seed."""
    if bounded:
        return result.best[0] if result.best is not None else None
    known = [scored.loss for levels, scored in result.front if levels == seed]
    limit = min(known, default=math.inf)
    good = [(scored.cost, i) for i, (_, scored) in enumerate(result.front) if scored.loss <= limit]
    return result.front[min(good)[1]][0] if good else None
