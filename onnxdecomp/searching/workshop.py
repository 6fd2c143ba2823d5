"""Contenders made: planned, put together, timed beside the original, fitted and measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnxdecomp.comparing import Metric, Score, measure_quality
from onnxdecomp.ir import save
from onnxdecomp.planning import Plan
from onnxdecomp.progress import TRIED, Progress, ProgressEvent
from onnxdecomp.rewriting import Request, Result, carry_out, improved
from onnxdecomp.runtime import open_in_onnxruntime
from onnxdecomp.sampling import Samples
from onnxdecomp.searching.contender import Contender
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.weighed import Weighed
from onnxdecomp.timing import Budget, Contestant, Speedup, medians, race, setting_engine, speedup

_TIMING = Budget(duration=1.5)
# An interval wider than this share of the speed-up says that something disturbed the timing.
_VAGUE = 0.04


class Workshop:
    """Makes contenders, and keeps all that were tried.

    Attributes:
        tried: what is known of every contender, in order; a model that is tuned is one more.
        original_seconds: the original's median time; None where nothing was timed.
        progress: told of what is being done.
    """

    def __init__(self, task: Task, weighed: Weighed, folder: Path) -> None:
        """
        Args:
            task: what is searched for.
            weighed: what its choices cost and lose.
            folder: for models that are timed or measured.
        """
        self._task, self._weighed, self._folder = task, weighed, folder
        self._engine = setting_engine(task.setting)
        self._contestant = Contestant(path=task.path, feeds=task.feeds)
        self.tried: list[Contender] = []
        self.original_seconds: float | None = None
        self.progress: Progress = task.progress
        self._before: float | None = None

    def time_original(self, budget: Budget) -> float:
        """The original's median time, seconds."""
        return medians(race([self._contestant], self._engine, budget)[0])

    def drafted(self, plan: Plan) -> Contender:
        """A plan, and what is known before there is a model of it."""
        found = Contender(plan=plan, predicted=self._weighed.error(plan), shares=self._weighed.shares(plan))
        self.tried.append(found)
        return found

    def sized(self, contender: Contender) -> Contender:
        """The contender with the size of its file, by plain factors."""
        return self._now(contender, contender.sized(self._rewritten(contender.plan, None)))

    def timed(self, contender: Contender) -> Contender:
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
        self.original_seconds = medians(first)
        return self._now(contender, replace(contender.sized(result), speedup=found))

    def known(self, contender: Contender, speedup: Speedup | None) -> Contender:
        """The contender with the speed-up that somebody measured."""
        return self._now(contender, replace(contender, speedup=speedup)) if speedup else contender

    def fitted(self, contender: Contender) -> Contender:
        """The contender with its factors fitted in sequence, and its loss measured."""
        sets = self._task.samples
        result = self._rewritten(contender.plan, sets.fitted if sets is not None else None)
        return self._now(contender, self._measured(contender, result))

    def tuned(self, contender: Contender) -> Contender:
        """A fitted contender's model tuned and measured anew; as it is where there is nothing to train.

        Raises:
            StoppedError: it was interrupted; the best by then is among those tried.
        """
        task, fitted = self._task, contender.result
        if fitted is None or task.samples is None or task.tuning is None:
            raise ValueError("nothing was fitted, or nothing is to be tuned")
        result = improved(fitted, task.model, task.samples, task.tuning, self.progress)
        if result.interrupted is not None and result.tuned is None:
            raise result.interrupted
        if result.tuned is None:
            return contender
        found = replace(self._measured(contender, result), fitted_error=contender.error)
        self.tried.append(found)
        if result.interrupted is not None:
            raise result.interrupted
        self._tell(found)
        return found

    def _measured(self, contender: Contender, result: Result) -> Contender:
        """The contender with a model, and what that loses."""
        sets = self._task.samples
        found = replace(contender.sized(result), result=result)
        out = self._folder / "fitted.onnx"
        if sets is not None or self._task.metric is not None:
            save(result.rewritten, out)
        if sets is not None:
            quality = measure_quality(
                self._task.baseline, out, sets.held_out, fitted=len(sets.fitted), labels=sets.labels
            )
            found = replace(found, quality=quality)
        if self._task.metric is not None:
            found = replace(found, score=self._score(self._task.metric, out))
        return found

    def _score(self, metric: Metric, out: Path) -> Score:
        if self._before is None:
            self._before = metric.measure(self._task.baseline.in_onnxruntime())
        return metric.score(self._before, open_in_onnxruntime(out))

    def _rewritten(self, plan: Plan, data: Samples | None) -> Result:
        task = self._task
        request = Request(plan=plan, policy=task.policy)
        return carry_out(request, task.found, data=data, scratch=task.scratch, progress=self.progress)

    def _now(self, before: Contender, contender: Contender) -> Contender:
        """More is known of a contender."""
        self.tried[self.tried.index(before)] = contender
        self._tell(contender)
        return contender

    def _tell(self, contender: Contender) -> None:
        self.progress(ProgressEvent(TRIED, 1, 1, contender.line()))
