"""The statistics of launches, against SciPy's distributions."""

from __future__ import annotations

import math

import pytest
import scipy.stats

from onnxdecomp.timing import Speedup
from onnxdecomp.timing.stats import widened_tail


@pytest.mark.parametrize("n", [2, 3, 4, 10, 100])
def test_the_tail_is_that_of_students_distribution(n: int) -> None:
    expected = scipy.stats.norm.cdf(-math.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1))
    assert widened_tail(n) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_the_tail_approaches_that_of_a_large_sample_from_below() -> None:
    tails = [widened_tail(n) for n in (2, 3, 10, 1000)]
    assert tails == sorted(tails)
    assert 0.0248 < tails[-1] < 0.025


def test_what_is_infinite_is_none_in_reports() -> None:
    found = Speedup(ratio=2.0, low=0.0, high=math.inf)
    assert found.to_dict() == {"ratio": 2.0, "low": 0.0, "high": None}
