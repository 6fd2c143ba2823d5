"""From the best plan that arithmetic found to a better one, by trials that fit and measure whole models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from onnxdecomp.planning import Plan, label
from onnxdecomp.sampling import SampleSets, sample_digests
from onnxdecomp.searching.automl import Judge, find_modules, seed_of, space_of, taken_at
from onnxdecomp.searching.bank import Bank
from onnxdecomp.searching.cache import digest
from onnxdecomp.searching.study import StudyResult, run_study
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.weighed import Weighed, plan_of, taken_of
from onnxdecomp.searching.weighing import model_digest


def better_plan(
    task: Task, samples: SampleSets, weighed: Weighed, best: Plan, folder: Path
) -> tuple[StudyResult, Plan | None]:
    """What the study of a task has found, and the plan to go on with; None where that is the best already.

    Args:
        task: says how many trials, where they are kept and until when.
        samples: to fit to and to measure on.
        weighed: the units and their choices.
        best: tried first; where a cost is bounded, its cost is the budget.
        folder: for large intermediate files.

    Raises:
        MissingExtraError: Optuna is not installed.
        UsageError: a storage that cannot be used, or a study that belongs to something else.
    """
    modules = find_modules(weighed)
    bank = Bank(task.found, weighed.units, samples.fitted, folder, task.progress)
    seed = seed_of(modules, weighed, taken_of(weighed.units, best))
    bounded = task.goal.bounds_cost
    study = run_study(
        space_of(modules),
        Judge(bank, weighed, modules, task.baseline.in_onnxruntime(), folder),
        trials=task.trials.number,
        budget=weighed.cost(best) * (1 + 1e-9) if bounded else None,
        seeds=[seed],
        storage=task.trials.storage,
        name=task.trials.study,
        deadline=task.deadline,
        front=not bounded,
        fingerprint=_fingerprint(task, samples, weighed),
    )
    levels = _picked(study, seed, bounded)
    if levels is None or levels == seed:
        return study, None
    return study, plan_of(weighed.units, taken_at(modules, weighed, levels))


def _fingerprint(task: Task, samples: SampleSets, weighed: Weighed) -> str:
    """Tells models, samples and what is weighed apart, not the machine that measures."""
    units = [f"{unit.name} {label(choice)}" for unit in weighed.units for choice in unit.choices]
    known = sorted(sample_digests(samples.fitted))
    return digest(model_digest(task.model), task.goal.kind, task.cost, *known, *units)


def _picked(result: StudyResult, seed: Mapping[str, int], bounded: bool) -> Mapping[str, int] | None:
    """The study's answer: the least loss in its budget, or the cheapest that loses no more than the seed."""
    if bounded:
        return result.best[0] if result.best is not None else None
    known = [scored.loss for levels, scored in result.front if levels == seed]
    limit = min(known, default=math.inf)
    good = [(scored.cost, i) for i, (_, scored) in enumerate(result.front) if scored.loss <= limit]
    return result.front[min(good)[1]][0] if good else None
