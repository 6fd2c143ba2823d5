"""The trials of a study (Optuna, extra "search"): levels tried, scored and remembered.

One objective: multivariate TPE under a budget (Watanabe and Hutter 2023, "c-TPE"; Falkner, Klein and Hutter
2018, "BOHB"). Both objectives at once: NSGA-II (Deb et al. 2002, IEEE Transactions on Evolutionary
Computation 6).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from onnxdecomp.errors import StoppedError, StorageError, UsageError
from onnxdecomp.planning import Plan
from onnxdecomp.progress import Progress, ProgressEvent, silent
from onnxdecomp.searching.levels import Evaluate, Levels, PrunedError, Scored, Space
from onnxdecomp.searching.records import StudyResult, result_of
from onnxdecomp.searching.storage import load_optuna
from onnxdecomp.searching.study import Study
from onnxdecomp.searching.workers import is_dead, this_worker

_MOST_POPULATION = 50
# How long a process that is done waits for the trials that others are still at, seconds.
_PATIENCE_S = 60.0
_STAGE = "trying ranks"


def run_trials(
    study: Study,
    space: Space,
    evaluate: Evaluate,
    *,
    trials: int,
    budget: float | None,
    seeds: Sequence[Levels],
    plan_at: Callable[[Levels], Plan],
    seed: int | None = 0,
    deadline: float | None = None,
    front: bool = False,
    progress: Progress = silent,
) -> StudyResult:
    """Try levels until the study has as many finished trials, or time is up.

    Plans that the study has scored before are not evaluated again. Processes that share a study may
    together finish a trial more than asked for each, never fewer. A trial that others have given up, as after
    a process slept, is left to them: this process goes on with the next.

    Args:
        study: begun.
        space: what to search.
        evaluate: gives loss and cost; may report its loss so far under a rising step, and raise
            `PrunedError` where the answer is True.
        trials: complete and pruned ones, over all processes and earlier runs.
        budget: the highest cost allowed.
        seeds: levels to try first.
        plan_at: the plan that levels stand for, kept with each trial.
        seed: repeats a study in memory; None where processes share one, which must not draw alike.
        deadline: `time.monotonic()` after which no trial begins.
        front: seek the whole trade-off, not the least loss alone; nothing is pruned then.
        progress: told of the trials that are finished, those of others too.

    Raises:
        UsageError: the seeds are of another space.
        StorageError: the storage fails.
    """
    for levels in seeds:
        fits = all(0 <= level < space.modules.get(module, 0) for module, level in levels.items())
        if not fits or levels.keys() != space.modules.keys():
            raise UsageError("the levels to try first are not of the modules that are searched")
    optuna = load_optuna()
    failures: list[BaseException] = []
    with _carried(failures), study.errors():
        opened = study.load()
        opened.sampler = _sampler(optuna, seed, trials, front)
        opened.pruner = optuna.pruners.NopPruner() if front else optuna.pruners.MedianPruner()
        work = _Work(opened, space, evaluate, plan_at, budget, front, failures)
        stopped = None
        try:
            _fail_dead(opened)
            if _finished(opened) < trials:
                _enqueue(opened, seeds)
            while (done := _finished(opened)) < trials and (deadline is None or time.monotonic() < deadline):
                progress(ProgressEvent(_STAGE, done, trials))
                work.one_trial()
            progress(ProgressEvent(_STAGE, min(done, trials), trials))
            _await_others(opened, deadline)
        except (StoppedError, KeyboardInterrupt) as error:
            stopped = error
        return result_of(study.name, opened, budget, stopped)


def _sampler(optuna: Any, seed: int | None, trials: int, front: bool) -> Any:
    if front:
        size = min(max(trials // 5, 4), _MOST_POPULATION)
        return optuna.samplers.NSGAIISampler(population_size=size, seed=seed)
    return optuna.samplers.TPESampler(multivariate=True, seed=seed)


def _states() -> Any:
    return load_optuna().trial.TrialState


def _finished(study: Any) -> int:
    states = (_states().COMPLETE, _states().PRUNED)
    return len(study.get_trials(deepcopy=False, states=states))


def _fail_dead(study: Any) -> None:
    """Give up the trials of processes that are surely no more; others go by their heartbeat."""
    for trial in study.get_trials(deepcopy=False, states=(_states().RUNNING,)):
        if is_dead(trial.user_attrs.get("worker")):
            with suppress(ValueError, load_optuna().exceptions.UpdateFinishedTrialError):
                study.tell(trial.number, state=_states().FAIL)


def _await_others(study: Any, deadline: float | None) -> None:
    """Wait for the trials that others are at: then the answer is the same for all that take part."""
    end = min(time.monotonic() + _PATIENCE_S, math.inf if deadline is None else deadline)
    while study.get_trials(deepcopy=False, states=(_states().RUNNING,)) and time.monotonic() < end:
        _fail_dead(study)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", load_optuna().exceptions.ExperimentalWarning)
            load_optuna().storages.fail_stale_trials(study)
        time.sleep(0.2)


def _enqueue(study: Any, seeds: Sequence[Levels]) -> None:
    """Queue what no trial has tried; one that failed, or whose process is no more, has not."""
    had = [
        trial.system_attrs.get("fixed_params", trial.params)
        for trial in study.get_trials(deepcopy=False)
        if trial.state != _states().FAIL
    ]
    for levels in seeds:
        if dict(levels) not in had:
            had.append(dict(levels))
            study.enqueue_trial(dict(levels), user_attrs={"seed": True})


@contextmanager
def _carried(failures: Sequence[BaseException]) -> Iterator[None]:
    """What judging raised is raised as it is, whatever was made of it on the way."""
    try:
        yield
    except StorageError:
        if failures:
            raise failures[0] from None
        raise


class _GivenUpError(Exception):
    """Others took this process for dead and gave up its trial."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What a process does in a study."""

    study: Any
    space: Space
    evaluate: Evaluate
    plan_at: Callable[[Levels], Plan]
    budget: float | None
    front: bool
    failures: list[BaseException]

    def one_trial(self) -> None:
        optuna = load_optuna()
        trials: list[Any] = []

        def objective(trial: Any) -> float | tuple[float, float]:
            trials.append(trial)
            return self._scored(trial)

        try:
            self.study.optimize(objective, n_trials=1)
        except (_GivenUpError, ValueError, optuna.exceptions.UpdateFinishedTrialError):
            # What Optuna raises where others gave the trial up depends on how far it had come.
            if self.failures or not (trials and self._is_over(trials[0])):
                raise
        except BaseException:
            for trial in trials:
                # Whatever happens here, what stopped the search is what matters.
                with suppress(Exception):
                    self.study.tell(trial, state=_states().FAIL, skip_if_finished=True)
            raise

    def _is_over(self, trial: Any) -> bool:
        known = self.study.get_trials(deepcopy=False)
        return bool(known[trial.number].state.is_finished())

    def _scored(self, trial: Any) -> float | tuple[float, float]:
        """Loss, and cost where the trade-off is sought, of the levels that Optuna suggests."""
        optuna = load_optuna()
        with _giving_up():
            trial.set_user_attr("worker", this_worker())
            modules = self.space.modules.items()
            levels = {name: trial.suggest_int(name, 0, number - 1) for name, number in modules}
            plan = self.plan_at(levels).to_dict()
            trial.set_user_attr("plan", plan)

        def report(step: int, loss: float) -> bool:
            if self.front or trial.user_attrs.get("seed"):
                return False
            with _giving_up():
                trial.report(loss, step)
            return bool(trial.should_prune())

        found = _known(self.study, plan)
        if found is None:
            try:
                found = self.evaluate(levels, report)
            except PrunedError as error:
                raise optuna.TrialPruned from error
            except _GivenUpError:
                raise
            except BaseException as error:
                self.failures.append(error)
                raise
        loss, cost = (math.inf if math.isnan(value) else float(value) for value in (found.loss, found.cost))
        with _giving_up():
            trial.set_user_attr("cost", cost)
            if self.budget is not None:
                trial.set_constraint("cost", cost - self.budget)
        return (loss, cost) if self.front else loss


@contextmanager
def _giving_up() -> Iterator[None]:
    """Turn Optuna's refusal to write to a finished trial into what it means here."""
    try:
        yield
    except load_optuna().exceptions.UpdateFinishedTrialError as error:
        raise _GivenUpError from error


def _known(study: Any, plan: Mapping[str, Any]) -> Scored | None:
    """What a plan came to before; other levels may stand for the same."""
    for trial in study.get_trials(deepcopy=False, states=(_states().COMPLETE,)):
        if trial.user_attrs.get("plan") == plan and "cost" in trial.user_attrs:
            return Scored(trial.values[0], trial.user_attrs["cost"])
    return None
