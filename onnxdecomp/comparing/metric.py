"""A figure of merit of the user's own, where the distance of outputs does not say how good a model is."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import naming, verified
from onnxdecomp.errors import OnnxdecompError, UsageError, first_line
from onnxdecomp.ir import load
from onnxdecomp.runtime import Feeds, InputSpec, Outputs, Runner, input_specs
from onnxdecomp.sampling import conformed, feed_arrays


@abridged
@verified
@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a metric says of two models.

    An example is in docs/python.md under "A metric of your own".

    Attributes:
        name: of the metric.
        before: of the original.
        after: of the model judged against it.
        lower_is_better: whether less of it is better.
    """

    name: str
    before: float
    after: float
    lower_is_better: bool

    @property
    def drop(self) -> float:
        """How much worse the second model is; negative where it is better."""
        return (self.after - self.before) * (1 if self.lower_is_better else -1)

    def to_dict(self) -> dict[str, Any]:
        """As in JSON reports."""
        return {
            "name": self.name,
            "before": self.before,
            "after": self.after,
            "lower_is_better": self.lower_is_better,
        }


@abridged
@verified
@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of merit of the user's own.

    An example is in docs/python.md under "A metric of your own".

    Attributes:
        function: called with a loaded model, whose `run` maps feeds to outputs; answers with one finite
            number. It is called with the original once and with every model that is judged, so it should take
            seconds, and always give the same model the same number.
        lower_is_better: whether less of it is better, as of an error.
        name: in reports; None is the function's own.
    """

    function: Callable[[Runner], float]
    lower_is_better: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            name = getattr(self.function, "__name__", type(self.function).__name__)
            object.__setattr__(self, "name", name)

    @verified
    def measure(self, model: Runner) -> float:
        """The figure of one model.

        Raises:
            UsageError: the function failed, or did not answer with a finite number.
        """
        try:
            value = self.function(_conforming(model))
        except OnnxdecompError:
            raise
        except (Exception, SystemExit) as error:  # its exit code is not that of the work
            what = f"{type(error).__name__}: {first_line(error)}"
            raise UsageError(f"`metric` {self.name} failed: {what}") from error
        value = getattr(value, "item", lambda: value)()  # of an array or a tensor with one value
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise UsageError(f"`metric` {self.name} must answer with one finite number, not {value!r:.40}")
        return float(value)

    @verified
    def score(self, before: float, model: Runner) -> Score:
        """What it says of a model beside the original, for which it came to `before`."""
        after = self.measure(model)
        return Score(name=self.name, before=before, after=after, lower_is_better=self.lower_is_better)


def _conforming(model: Runner) -> Runner:
    """A model that casts floats to what its inputs take, and says which input does not fit and why."""
    inputs: list[InputSpec] = []

    def run(feeds: Feeds) -> Outputs:
        with naming("metric"):
            if not inputs:
                inputs.extend(input_specs(load(model.path).proto))
            arrays = conformed(feed_arrays(feeds, inputs, "the feed"), inputs, "the feed")
        return model.run(arrays)

    return replace(model, run=run)


def as_metric(metric: Metric | Callable[[Runner], float]) -> Metric:
    """A function is a metric of which more is better.

    Raises:
        UsageError: neither.
    """
    return metric if isinstance(metric, Metric) else Metric(metric)
