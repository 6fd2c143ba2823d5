"""Taking part in the study of a search: it is found, or refused, before any work is done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from onnxdecomp.comparing import Metric
from onnxdecomp.ir import InputShapes, Model
from onnxdecomp.planning import Policy
from onnxdecomp.sampling import SampleSets
from onnxdecomp.searching.goal import Goal
from onnxdecomp.searching.study import Study, open_study
from onnxdecomp.searching.task import Trials
from onnxdecomp.searching.weighing import machine_of, model_digest, samples_digest
from onnxdecomp.timing import Setting
from onnxdecomp.tuning import Tuning

# Of what a study keeps: one of another format is refused.
_FORMAT = 1
# What says how much tuning wins back; where it computes may differ from process to process.
_TUNING = ("train", "augment", "time_limit", "steps", "batch", "seed")


@contextmanager
def joined(
    trials: Trials,
    model: Model,
    goal: Goal,
    *,
    samples: SampleSets | None,
    setting: Setting,
    policy: Policy,
    cost: str,
    metric: Metric | None,
    tuning: Tuning | None,
    shapes: InputShapes,
    freeze: bool,
) -> Iterator[Study | None]:
    """The study of what is asked for, None where no trials are.

    It is known by what the user asks, not by what was measured: neither noise nor another machine makes
    another study.

    Raises:
        MissingExtraError: Optuna is not installed.
        StorageError: its storage cannot be opened, or fails while it is used.
        UsageError: it is of something else, or has times of another machine.
    """
    if not trials.number:
        yield None
        return
    asked: dict[str, Any] = {
        "format": _FORMAT,
        "model": model_digest(model),
        "samples": samples_digest(samples.fitted) if samples is not None else None,
        "goal": str(goal),
        "metric": [metric.name, metric.lower_is_better] if metric is not None else None,
        # Where a cost is bounded, the same plan is sought, tuned or not.
        "tuning": _values(tuning, _TUNING) if tuning is not None and not goal.bounds_cost else None,
        "cost": cost,
        "setting": {
            "provider": setting.provider.short,
            "options": dict(setting.options),
            "threads": setting.threads,
            "batch": setting.batch,
        },
        "policy": _values(policy, policy.__slots__),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "freeze": freeze,
    }
    machine = {"machine": machine_of(setting)} if cost == "measured" else None
    # As it will be read back: a tuple in it would be a list.
    with open_study(trials, json.loads(json.dumps(asked)), machine, front=not goal.bounds_cost) as study:
        yield study


def _values(options: Policy | Tuning, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}
