"""What launches of models say of how fast they are, and how sure that is.

The interval comes from resampling whole launches, not runs (Kalibera and Jones 2013, "Rigorous benchmarking
in reasonable time").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

_RESAMPLES, _PARTS = 2000, 40


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Launch:
    """What one process measured of its model.

    Attributes:
        seconds: of each run, in order; shape (runs,).
        load_s: seconds to load the model.
        copies_s: seconds to copy inputs to the device and outputs back; None where they stay on the host.
        peak_memory: the process's largest resident set, bytes; None where the system does not tell.
    """

    seconds: NDArray[np.float64]
    load_s: float
    copies_s: float | None
    peak_memory: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """How much faster the second of two models is.

    An example is in docs/python.md under "Timing".

    Attributes:
        ratio: median time of the first over median time of the second.
        low: lower end of the 95 % interval.
        high: its upper end.
    """

    ratio: float
    low: float
    high: float

    @property
    def measurable(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.low <= 1 <= self.high

    @property
    def width(self) -> float:
        """Of the interval, as a share of the ratio."""
        return (self.high - self.low) / self.ratio

    def to_dict(self) -> dict[str, float | None]:
        """As in JSON reports, which know no infinity: None where one launch has no interval."""
        values = dataclasses.asdict(self)
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


def medians(launches: Sequence[Launch]) -> float:
    """The median time of all runs, seconds."""
    return float(np.median(np.concatenate([launch.seconds for launch in launches])))


def speedup(a: Sequence[Launch], b: Sequence[Launch], seed: int = 0) -> Speedup:
    """Compare two models by launches that ran side by side, `a[i]` beside `b[i]`.

    The interval is a 95 % percentile bootstrap over pairs of launches (Efron and Tibshirani 1993, chapter
    13), widened for their small number (Hesterberg 2015, "What teachers should know about the bootstrap",
    section 5.2). One launch has no interval: it is everything.
    """
    ratio = medians(a) / medians(b)
    n = len(a)
    if n < 2:
        return Speedup(ratio=ratio, low=0.0, high=math.inf)
    runs = min(len(launch.seconds) for launch in (*a, *b))
    first, second = (np.stack([launch.seconds[:runs] for launch in each]) for each in (a, b))
    picks = np.random.default_rng(seed).integers(0, n, (_RESAMPLES, n))
    ratios = _resampled_medians(first, picks) / _resampled_medians(second, picks)
    tail = widened_tail(n)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    # The median of the whole may lie outside where launches are few.
    return Speedup(ratio=ratio, low=min(float(low), ratio), high=max(float(high), ratio))


def _resampled_medians(seconds: NDArray[np.float64], picks: NDArray[np.int64]) -> NDArray[np.float64]:
    """The median of each draw: `seconds` has shape (launches, runs), `picks` (draws, launches)."""
    # Some draws at a time: all of them together would be gigabytes where runs are many.
    parts = np.array_split(picks, _PARTS)
    return np.concatenate([np.median(seconds[part].reshape(len(part), -1), axis=1) for part in parts])


def widened_tail(n: int) -> float:
    """What a percentile interval of 95 % leaves out at either end, with `n` > 1 values resampled.

    Student's quantile, as a share of the normal distribution: Hesterberg 2015, section 5.2.
    """
    # scipy.stats has both as norm.cdf and t.ppf, and takes a second to import.
    return float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975)))
