"""What a study has kept of its trials."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.errors import StoppedError, UsageError
from onnxdecomp.planning import Plan
from onnxdecomp.searching.levels import Scored
from onnxdecomp.searching.storage import load_optuna, open_storage, require_existing


@abridged
@verified
@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial of a study.

    An example is in docs/python.md under "Studies".

    Attributes:
        number: from 0, in the order in which they began.
        state: "complete", "pruned", "fail", "running" or "waiting".
        loss: what the study is to make least; None where the trial has none, or none that is finite.
        cost: in the measure of the goal, likewise.
        plan: what was tried, for `rewrite(model, plan=…)`; None before that is known.
    """

    number: int
    state: str
    loss: float | None
    cost: float | None
    plan: Plan | None

    def to_dict(self) -> dict[str, Any]:
        """As in JSON reports."""
        values = {"number": self.number, "state": self.state, "loss": self.loss, "cost": self.cost}
        return values | {"plan": self.plan.to_dict() if self.plan is not None else None}


def records_of(trials: Sequence[Any]) -> tuple[Trial, ...]:
    """Optuna's trials as values."""
    return tuple(
        Trial(
            number=trial.number,
            state=trial.state.name.lower(),
            loss=_finite(trial.values[0] if trial.values else None),
            cost=_finite(trial.user_attrs.get("cost")),
            plan=Plan.from_dict(trial.user_attrs["plan"]) if "plan" in trial.user_attrs else None,
        )
        for trial in trials
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudyResult:
    """What all processes of a study have found so far.

    Attributes:
        name: the study's.
        best: least loss within the budget; None where no trial was within it.
        front: the trials that no other beats in both cost and loss, by ascending cost.
        trials: every trial, in order.
        stopped: what interrupted this process, for the caller to raise again.
    """

    name: str
    best: tuple[dict[str, int], Scored] | None
    front: list[tuple[dict[str, int], Scored]]
    trials: tuple[Trial, ...]
    stopped: StoppedError | KeyboardInterrupt | None = None

    @property
    def states(self) -> dict[str, int]:
        """How many trials there are by state: complete, pruned, fail, running, waiting."""
        return dict(Counter(trial.state for trial in self.trials))

    def to_dict(self) -> dict[str, Any]:
        """As in JSON reports."""
        trials = [trial.to_dict() for trial in self.trials]
        return {"name": self.name, "states": self.states, "trials": trials}


def result_of(
    name: str, study: Any, budget: float | None, stopped: StoppedError | KeyboardInterrupt | None
) -> StudyResult:
    """What a study as Optuna knows it has found so far; see `StudyResult`."""
    trials = study.get_trials(deepcopy=False)
    found = [
        (dict(trial.params), Scored(trial.values[0], trial.user_attrs["cost"]))
        for trial in trials
        if trial.state == load_optuna().trial.TrialState.COMPLETE and "cost" in trial.user_attrs
    ]
    found = [each for each in found if math.isfinite(each[1].loss) and math.isfinite(each[1].cost)]
    front: list[tuple[dict[str, int], Scored]] = []
    for each in sorted(found, key=lambda each: (each[1].cost, each[1].loss)):
        if not front or each[1].loss < front[-1][1].loss:
            front.append(each)
    within = [each for each in front if budget is None or each[1].cost <= budget]
    return StudyResult(
        name=name,
        best=within[-1] if within else None,
        front=front,
        trials=records_of(trials),
        stopped=stopped,
    )


@verified
def read_trials(storage: str, study: str | None = None) -> tuple[Trial, ...]:
    """The trials that a study has kept, those of other processes included.

    An example is in docs/python.md under "Studies".

    Args:
        storage: where the study lies, a database's URL or journal:PATH.
        study: its name; None where the storage has one study only.

    Raises:
        MissingExtraError: Optuna is not installed.
        UsageError: the storage cannot be read, or there is no such study.
    """
    require_existing(storage)
    with open_storage(storage) as opened, opened.errors():
        optuna = load_optuna()
        names = optuna.get_all_study_names(opened.optuna)
        if not names:
            raise UsageError("the storage has no study yet")
        if (study is None and len(names) != 1) or (study is not None and study not in names):
            what = "name one with `study`" if study is None else f"`study` {study} is not among them"
            raise UsageError(f"the storage has the studies {', '.join(names)}: {what}")
        found = optuna.load_study(study_name=study or names[0], storage=opened.optuna)
        return records_of(found.get_trials(deepcopy=False))
