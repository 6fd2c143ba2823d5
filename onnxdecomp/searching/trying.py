"""From the best plan that arithmetic found to a better one, by trials that judge whole models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from onnxdecomp.planning import Plan
from onnxdecomp.sampling import SampleSets
from onnxdecomp.searching.automl import Judge, find_modules, seed_of, space_of, taken_at
from onnxdecomp.searching.bank import Bank
from onnxdecomp.searching.levels import Levels
from onnxdecomp.searching.records import StudyResult
from onnxdecomp.searching.study import Study
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.trials import run_trials
from onnxdecomp.searching.weighed import Weighed, plan_of, taken_of


def better_plan(
    task: Task, study: Study, samples: SampleSets, weighed: Weighed, best: Plan, folder: Path
) -> tuple[StudyResult, Plan | None]:
    """What the study of a task has found, and the plan to go on with; None where that is the best already.

    Args:
        task: says how many trials, and until when.
        study: begun.
        samples: to fit to and to measure on.
        weighed: the units and their choices, as the study knows them.
        best: tried first; where a cost is bounded, its cost is the budget.
        folder: for large intermediate files.

    Raises:
        StorageError: the study's storage fails.
    """
    modules = find_modules(weighed)
    bank = Bank(task.found, weighed.units, samples.fitted, folder, task.progress)
    seed = seed_of(modules, weighed, taken_of(weighed.units, best))
    bounded = task.goal.bounds_cost

    def plan_at(levels: Levels) -> Plan:
        return plan_of(weighed.units, taken_at(modules, weighed, levels))

    found = run_trials(
        study,
        space_of(modules),
        Judge(bank, weighed, modules, task.baseline, folder, task.metric),
        trials=task.trials.number,
        budget=weighed.cost(best) * (1 + 1e-9) if bounded else None,
        seeds=[seed],
        plan_at=plan_at,
        seed=0 if task.trials.storage is None else None,
        deadline=task.deadline,
        front=not bounded,
        progress=task.progress,
    )
    levels = _picked(found, seed, bounded)
    return found, None if levels is None or levels == seed else plan_at(levels)


def _picked(result: StudyResult, seed: Mapping[str, int], bounded: bool) -> Mapping[str, int] | None:
    """The study's answer: the least loss in its budget, or the cheapest that loses no more than the seed."""
    if bounded:
        return result.best[0] if result.best is not None else None
    known = [scored.loss for levels, scored in result.front if levels == seed]
    limit = min(known, default=math.inf)
    good = [(scored.cost, i) for i, (_, scored) in enumerate(result.front) if scored.loss <= limit]
    return result.front[min(good)[1]][0] if good else None
