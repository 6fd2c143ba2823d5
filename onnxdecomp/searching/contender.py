"""A plan, and what is known of the model it makes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.comparing import Quality, Score
from onnxdecomp.planning import Plan
from onnxdecomp.rewriting import Result
from onnxdecomp.searching.goal import Goal
from onnxdecomp.timing import Speedup
from onnxdecomp.tuning import TuneResult


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contender:
    """A plan, and what is known of the model it makes.

    An example is in docs/python.md under "Searching".

    Attributes:
        plan: the choices.
        predicted: relative error of the outputs, by adding up what single sites do.
        speedup: of the whole model, measured; None where nothing is timed.
        shares: of "macs", "params" (of all Convs) and "size" (of the file) that are left.
        quality: on samples held out; None before it is fitted, and without samples.
        score: what a metric of the user's own says of it; None where there is none.
        result: the rewritten model, fitted where there are samples, and tuned where that was done; None
            before that.
        fitted_error: the error of the model as it was fitted; None where it was not tuned since.
    """

    plan: Plan
    predicted: float
    speedup: Speedup | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    quality: Quality | None = None
    score: Score | None = None
    result: Result | None = None
    fitted_error: float | None = None

    @verified
    def sized(self, result: Result) -> Contender:
        """With the share of the file that `result`, a model of this plan, leaves."""
        before, after = result.totals.nbytes
        return replace(self, shares={**self.shares, "size": after / before})

    @property
    def error(self) -> float | None:
        """The measured relative error: root mean square over the outputs."""
        if self.quality is None:
            return None
        errors = [each.relative_l2 for each in self.quality.outputs if each.relative_l2 is not None]
        return math.sqrt(sum(e * e for e in errors) / len(errors)) if errors else None

    @property
    def tuned(self) -> TuneResult | None:
        """What tuning came to; None where the model was not tuned."""
        return self.result.tuned if self.result is not None else None

    @property
    def loss(self) -> float:
        """What is lost, as far as it is known: by the user's own metric, by the outputs, by prediction."""
        if self.score is not None:
            return self.score.drop
        return self.predicted if self.error is None else self.error

    @verified
    def reached(self, goal: Goal) -> float | None:
        """The figure that the goal is about; None where it was not measured."""
        if goal.kind == "speedup":
            return self.speedup.low if self.speedup is not None else None
        if goal.counted:
            return self.shares.get(goal.kind)
        if goal.kind == "max_drop" and self.score is not None:
            return self.score.drop
        if self.quality is None:
            return None
        if goal.kind == "max_error":
            return self.error
        if goal.kind == "max_drop":
            before, after = self.quality.accuracy or (math.nan, math.nan)
            return before - after
        return agreement(self.quality)

    @verified
    def meets(self, goal: Goal) -> bool:
        """Whether the goal is reached by measurement, and the model is not slower than the original."""
        slower = self.speedup is not None and self.speedup.ratio < 1
        return not slower and self.within(goal)

    @verified
    def within(self, goal: Goal) -> bool:
        """Whether the figure that the goal is about is reached."""
        found = self.reached(goal)
        return found is not None and goal.reached_by(found)

    @verified
    def nearness(self, goal: Goal) -> float:
        """Orders contenders by how near they come to a goal that none meets."""
        found = self.reached(goal)
        if found is None:
            return -math.inf
        return found if goal.upwards else -found

    def to_dict(self) -> dict[str, Any]:
        """As in JSON reports."""
        return {
            "sites": len(self.plan.sites),
            "predicted_error": self.predicted,
            "speedup": self.speedup.to_dict() if self.speedup else None,
            "shares": dict(self.shares),
            "error": self.error,
            "quality": self.quality.to_dict() if self.quality else None,
            "metric": self.score.to_dict() if self.score else None,
            "fitted": self.result is not None,
            "tuning": self._tuning(),
        }

    def _tuning(self) -> dict[str, Any] | None:
        """What tuning did, on the samples held out of the search."""
        if self.tuned is None:
            return None
        own = self.tuned.to_dict()
        figures = {name: own[name] for name in ("improved", "complete", "steps", "seconds", "notes")}
        return {"error": {"before": self.fitted_error, "after": self.error}, **figures}

    def line(self) -> str:
        """What is known, in one line."""
        parts = [f"{len(self.plan.sites)} sites", f"predicted error {self.predicted:.3f}"]
        if self.speedup is not None:
            parts.append(f"{self.speedup.ratio:.2f}× as fast")
        if "macs" in self.shares:
            parts.append(f"MACs {self.shares['macs']:.0%}")
        if self.error is not None:
            before = f"{self.fitted_error:.3f}, tuned " if self.fitted_error is not None else ""
            parts.append(f"error {before}{self.error:.3f}")
        if self.score is not None:
            parts.append(f"{self.score.name} {self.score.after:.4g}")
        return ", ".join(parts)


def agreement(quality: Quality) -> float | None:
    """How often the first output that has classes names the original's."""
    return next((o.top1_agreement for o in quality.outputs if o.top1_agreement is not None), None)
