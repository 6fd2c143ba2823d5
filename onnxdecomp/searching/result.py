"""What a search came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import PathLike, verified
from onnxdecomp.comparing import Baseline
from onnxdecomp.errors import GoalError, StoppedError
from onnxdecomp.ir import Model
from onnxdecomp.planning import Plan
from onnxdecomp.rewriting import Result
from onnxdecomp.searching.contender import Contender, agreement
from onnxdecomp.searching.explanation import front_points, reasons, uniform
from onnxdecomp.searching.goal import Goal
from onnxdecomp.searching.records import StudyResult
from onnxdecomp.searching.weighed import Solution


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchResult:
    """What a search came to; where it met its goal, taken wherever a model is.

    An example is in docs/python.md under "Searching".

    Attributes:
        goal: what was asked for.
        timed: whether models were timed.
        baseline: what the original does.
        best: the best contender: one that meets the goal if there is any; None if nothing was tried.
        met: whether it does.
        tried: every contender, in order.
        solution: the front that they were taken from.
        original_seconds: the original's median time; None where nothing was timed.
        stopped: whether the search was interrupted or ran out of time.
        interrupted: by what, where a signal or `progress` ended it early; else None.
        study: of the trials; None where there were none.
        notes: what else is to be said.
        environment: where it was measured; see `onnxdecomp.runtime.environment`.
    """

    goal: Goal
    timed: bool
    baseline: Baseline = field(repr=False)
    best: Contender | None
    met: bool
    tried: tuple[Contender, ...]
    solution: Solution = field(repr=False)
    original_seconds: float | None
    stopped: bool
    interrupted: StoppedError | None
    study: StudyResult | None
    notes: tuple[str, ...]
    environment: Mapping[str, Any] = field(repr=False)

    @property
    def plan(self) -> Plan | None:
        """That of the best contender."""
        return self.best.plan if self.best is not None else None

    @property
    def measure(self) -> str:
        """What the costs of sites are in: "seconds", "macs", "params" or "bytes"."""
        counted = {"params": "params", "macs": "macs", "size": "bytes"}
        return counted.get(self.goal.kind, "seconds" if self.timed else "macs")

    @property
    def slower(self) -> bool:
        """Whether the best contender is slower than the original."""
        speedup = self.best.speedup if self.best is not None else None
        return speedup is not None and speedup.ratio < 1

    def as_model(self) -> Model:
        """The best model as other functions take it; raises as `rewritten`."""
        return self.rewritten().rewritten

    @verified
    def rewritten(self, *, best_effort: bool = False) -> Result:
        """The best model, if it meets the goal.

        Args:
            best_effort: the best found will do, if it is not slower than the original.

        Raises:
            GoalError: there is none.
        """
        result = self.best.result if self.best is not None else None
        if result is None or self.slower or not (self.met or best_effort):
            raise GoalError(self._unmet())
        return result

    @verified
    def save(self, path: PathLike, *, best_effort: bool = False) -> None:
        """Write the best model, whole or not at all; see `rewritten` and `Result.save`.

        Raises:
            GoalError: no model meets the goal.
            OutputError, UsageError: it cannot be written there.
        """
        self.rewritten(best_effort=best_effort).save(path)

    def _unmet(self) -> str:
        """One line on a goal that was not reached."""
        best, goal = self.best, self.goal
        if best is None:
            return f"{goal} cannot be met: no choice at any site is faster and loses so little"
        reached = best.reached(goal)
        figures = [f"{goal.kind.replace('_', ' ')} {reached:.3f}"] if reached is not None else []
        if best.speedup is not None and goal.kind != "speedup":
            figures.append(f"{best.speedup.ratio:.2f}× as fast")
        if goal.kind == "max_drop" and best.quality is not None:
            figures.append(f"agreement {agreement(best.quality)}")
        hint = "`best_effort` writes it"
        if self.slower:
            hint = "a model slower than the original is never written"
        return f"{goal} was not met: the best found comes to {', '.join(figures) or 'nothing'} ({hint})"

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        best, solution = self.best, self.solution
        return {
            "environment": dict(self.environment),
            "goal": {"kind": self.goal.kind, "value": self.goal.value},
            "met": self.met,
            "complete": not self.stopped,
            "original_ms": 1e3 * self.original_seconds if self.original_seconds else None,
            "best": best.to_dict() if best else None,
            "plan": best.plan.to_dict() if best else None,
            "tried": [each.to_dict() for each in self.tried],
            "cost_measure": self.measure,
            "kept_cost": solution.kept_cost,
            "front": [{"cost": cost, "predicted_error": e} for cost, e in front_points(solution)],
            "uniform": [{"cost": cost, "predicted_error": e} for cost, e in uniform(solution.weighed)],
            "sites": [each.to_dict() for each in (reasons(solution, best) if best else [])],
            "study": self.study.to_dict() if self.study else None,
            "notes": list(self.notes),
        }
