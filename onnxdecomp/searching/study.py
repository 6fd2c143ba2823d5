"""A search over levels by measured loss: an Optuna study (extra "search") that can be shared and resumed.

One objective: multivariate TPE under a budget (Watanabe and Hutter 2023, "c-TPE"; Falkner, Klein and Hutter
2018, "BOHB"). Both objectives at once: NSGA-II (Deb et al. 2002, IEEE Transactions on Evolutionary
Computation 6).
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from onnxdecomp.errors import StoppedError, UsageError
from onnxdecomp.searching.levels import Evaluate, Levels, PrunedError, Scored, Space
from onnxdecomp.searching.storage import load_optuna, open_storage

_MOST_POPULATION = 50


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudyResult:
    """What all processes of a study have found so far.

    Attributes:
        name: the study's.
        best: least loss within the budget; None where no trial was within it.
        front: the trials that no other beats in both cost and loss, by ascending cost.
        trials: how many there are by state: complete, pruned, fail, running, waiting.
        stopped: what interrupted this process, for the caller to raise again.
    """

    name: str
    best: tuple[dict[str, int], Scored] | None
    front: list[tuple[dict[str, int], Scored]]
    trials: dict[str, int]
    stopped: StoppedError | KeyboardInterrupt | None = None


def run_study(
    space: Space,
    evaluate: Evaluate,
    *,
    trials: int,
    budget: float | None,
    seeds: Sequence[Levels],
    storage: str | None,
    name: str | None,
    seed: int = 0,
    deadline: float | None = None,
    front: bool = False,
    fingerprint: str,
) -> StudyResult:
    """Try levels until the study has as many finished trials, or time is up.

    Levels that the study has scored before are not evaluated again. Processes that share a study may
    together finish a trial more than asked for each, never fewer.

    Args:
        space: what to search.
        evaluate: gives loss and cost; may report its loss so far under a rising step, and raise
            `PrunedError` where the answer is True.
        trials: complete and pruned ones, over all processes and earlier runs.
        budget: the highest cost allowed.
        seeds: levels to try first.
        storage: a database's URL, or journal:PATH; None keeps the study in memory.
        name: the study's; None derives it from the fingerprint.
        seed: repeats a study in memory. Processes that share one must not draw alike, so it is unused there.
        deadline: `time.monotonic()` after which no trial begins.
        front: seek the whole trade-off, not the least loss alone; nothing is pruned then.
        fingerprint: tells models, data and candidates apart.

    Raises:
        MissingExtraError: Optuna is not installed.
        UsageError: a storage that cannot be used, or a study that belongs to something else.
    """
    optuna = load_optuna()
    for levels in seeds:
        fits = all(0 <= level < space.modules.get(module, 0) for module, level in levels.items())
        if not fits or levels.keys() != space.modules.keys():
            raise UsageError("the levels to try first are not of the modules that are searched")
    with open_storage(storage) as opened:
        study = _study(opened, name, fingerprint, budget, front)
        study.sampler = _sampler(optuna, seed if storage is None else None, trials, front)
        study.pruner = optuna.pruners.NopPruner() if front else optuna.pruners.MedianPruner()
        stopped = None
        try:
            _fail_dead(study)
            if _finished(study) < trials:
                _enqueue(study, seeds)
            while _finished(study) < trials and (deadline is None or time.monotonic() < deadline):
                _one_trial(study, space, evaluate, budget, front)
        except (StoppedError, KeyboardInterrupt) as error:
            stopped = error
        return _result(study, budget, stopped)


def _sampler(optuna: Any, seed: int | None, trials: int, front: bool) -> Any:
    if front:
        size = min(max(trials // 5, 4), _MOST_POPULATION)
        return optuna.samplers.NSGAIISampler(population_size=size, seed=seed)
    return optuna.samplers.TPESampler(multivariate=True, seed=seed)


def _study(opened: Any, name: str | None, fingerprint: str, budget: float | None, front: bool) -> Any:
    optuna = load_optuna()
    goal = "front" if front else "loss"
    goal = goal if budget is None else f"{goal} at {budget!r}"
    name = name or f"onnxdecomp-{fingerprint[:16]}-{goal.replace(' ', '-')}"
    study = optuna.create_study(
        storage=opened,
        study_name=name,
        directions=["minimize"] * (1 + front),
        load_if_exists=True,
    )
    known = study.user_attrs
    if not known and not study.get_trials(deepcopy=False) and len(study.directions) == 1 + front:
        study.set_user_attr("goal", goal)
        study.set_user_attr("fingerprint", fingerprint)
        return study
    # A process killed between the two leaves the goal alone.
    if known.get("goal") == goal and "fingerprint" not in known:
        study.set_user_attr("fingerprint", fingerprint)
    elif known.get("fingerprint") != fingerprint:
        raise UsageError(f"study {name} belongs to another model or data; choose another `study`")
    elif known.get("goal") != goal:
        raise UsageError(f"study {name} has another goal or budget; choose another `study`")
    return study


def _states() -> Any:
    return load_optuna().trial.TrialState


def _finished(study: Any) -> int:
    states = (_states().COMPLETE, _states().PRUNED)
    return len(study.get_trials(deepcopy=False, states=states))


def _fail_dead(study: Any) -> None:
    """Give up the trials of processes of this machine that are no more; others go by their heartbeat."""
    for trial in study.get_trials(deepcopy=False, states=(_states().RUNNING,)):
        host, process = trial.user_attrs.get("process", (None, None))
        if host == socket.gethostname() and os.name == "posix" and not _alive(process):
            with suppress(ValueError, load_optuna().exceptions.UpdateFinishedTrialError):
                study.tell(trial.number, state=_states().FAIL)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


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


def _one_trial(study: Any, space: Space, evaluate: Evaluate, budget: float | None, front: bool) -> None:
    optuna = load_optuna()
    current: list[Any] = []
    scored = False

    def objective(trial: Any) -> float | tuple[float, float]:
        nonlocal scored
        current.append(trial)
        trial.set_user_attr("process", [socket.gethostname(), os.getpid()])
        levels = {name: trial.suggest_int(name, 0, number - 1) for name, number in space.modules.items()}

        def report(step: int, loss: float) -> bool:
            if front or trial.user_attrs.get("seed"):
                return False
            trial.report(loss, step)
            return bool(trial.should_prune())

        found = _known(study, levels)
        if found is None:
            try:
                found = evaluate(levels, report)
            except PrunedError as error:
                raise optuna.TrialPruned from error
        scored = True
        loss, cost = (math.inf if math.isnan(value) else float(value) for value in (found.loss, found.cost))
        trial.set_user_attr("cost", cost)
        if budget is not None:
            trial.set_constraint("cost", cost - budget)
        return (loss, cost) if front else loss

    try:
        study.optimize(objective, n_trials=1)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        # Another process took this one for dead, as after a machine slept, and gave the trial up.
        if not scored:
            raise
    except BaseException:
        for trial in current:
            # Whatever happens here, what stopped the search is what matters.
            with suppress(Exception):
                study.tell(trial, state=_states().FAIL, skip_if_finished=True)
        raise


def _known(study: Any, levels: Levels) -> Scored | None:
    for trial in study.get_trials(deepcopy=False, states=(_states().COMPLETE,)):
        if trial.params == levels and "cost" in trial.user_attrs:
            return Scored(trial.values[0], trial.user_attrs["cost"])
    return None


def _result(
    study: Any, budget: float | None, stopped: StoppedError | KeyboardInterrupt | None
) -> StudyResult:
    trials = study.get_trials(deepcopy=False)
    found = [
        (dict(trial.params), Scored(trial.values[0], trial.user_attrs["cost"]))
        for trial in trials
        if trial.state == _states().COMPLETE and "cost" in trial.user_attrs
    ]
    found = [each for each in found if math.isfinite(each[1].loss) and math.isfinite(each[1].cost)]
    front: list[tuple[dict[str, int], Scored]] = []
    for each in sorted(found, key=lambda each: (each[1].cost, each[1].loss)):
        if not front or each[1].loss < front[-1][1].loss:
            front.append(each)
    within = [each for each in front if budget is None or each[1].cost <= budget]
    return StudyResult(
        name=study.study_name,
        best=within[-1] if within else None,
        front=front,
        trials=dict(Counter(trial.state.name.lower() for trial in trials)),
        stopped=stopped,
    )
