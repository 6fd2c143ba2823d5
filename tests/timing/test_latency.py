"""Timing models side by side, and the statistics of it. No timing decides a test."""

from __future__ import annotations

import math
from pathlib import Path

import nets
import numpy as np
import pytest
from conftest import save, small_model

from onnxdecomp.errors import RunError, UsageError
from onnxdecomp.runtime import Engine, open_session
from onnxdecomp.timing import TURNS, Budget, Contestant, Launch, Stopwatch, medians, race, speedup

FEEDS = {"x": nets.signal(1, 16, 8, 8)}


def launch(seconds: np.ndarray) -> Launch:
    return Launch(seconds=seconds, load_s=0.1, copies_s=None, peak_memory=None)


def launches(generator: np.random.Generator, median: float, bias: float, count: int = 10) -> list[Launch]:
    """Launches each of which is off by its own factor, as processes are."""
    factors = np.exp(bias * generator.standard_normal(count))
    return [launch(median * factor * np.exp(0.02 * generator.standard_normal(40))) for factor in factors]


def test_speedup_is_the_ratio_of_medians_and_its_interval_holds_it() -> None:
    generator = np.random.default_rng(0)
    a, b = launches(generator, 2.0, 0.01), launches(generator, 1.0, 0.01)
    found = speedup(a, b)
    assert found.ratio == pytest.approx(medians(a) / medians(b))
    assert found.low <= found.ratio <= found.high
    assert 1.9 < found.low < found.high < 2.1
    assert found.measurable


@pytest.mark.parametrize(
    "bias", [0.01, *(pytest.param(bias, marks=pytest.mark.heavy) for bias in (0.0, 0.05))]
)
def test_the_interval_covers_the_truth_nineteen_times_in_twenty(bias: float) -> None:
    """With whole launches off by a factor, which resampling single runs would take for a difference."""
    generator = np.random.default_rng(1)
    trials = 200
    covered = 0
    for _ in range(trials):
        found = speedup(launches(generator, 1.0, bias), launches(generator, 1.0, bias))
        covered += not found.measurable
    # 95 % less three standard errors.
    assert covered / trials > 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_an_interval_is_no_wider_than_it_must_be() -> None:
    generator = np.random.default_rng(2)
    found = speedup(launches(generator, 1.05, 0.01), launches(generator, 1.0, 0.01))
    assert found.measurable
    assert found.high - found.low < 0.06


def test_one_launch_has_no_interval() -> None:
    found = speedup([launch(np.full(3, 2.0))], [launch(np.full(3, 1.0))])
    assert (found.ratio, found.low, found.high) == (2.0, 0.0, math.inf)
    assert not found.measurable


def test_models_run_side_by_side_in_processes_of_their_own(tmp_path: Path) -> None:
    path = save(small_model(), tmp_path / "in.onnx")
    contestant = Contestant(path=path, feeds=FEEDS)
    a, b, c = race([contestant] * 3, Engine(), Budget(runs=80))
    assert len(a) == len(b) == len(c) >= 3
    for each in (*a, *b, *c):
        assert len(each.seconds) % TURNS == 0
        assert (each.seconds > 0).all()
        assert each.load_s > 0
        assert each.copies_s is None
        # ONNX Runtime alone takes more than 20 MB; the parent, with PyTorch and all, more than 150.
        assert each.peak_memory is None or 20e6 < each.peak_memory < 150e6
    assert sum(len(each.seconds) for each in a) >= 80


def test_fewer_runs_than_turns_are_one_launch(tmp_path: Path) -> None:
    path = save(small_model(), tmp_path / "in.onnx")
    (found,) = race([Contestant(path=path, feeds=FEEDS)], Engine(), Budget(runs=1))
    assert [len(each.seconds) for each in found] == [TURNS]


def test_what_fails_in_the_other_process_is_one_error_here(tmp_path: Path) -> None:
    path = save(small_model(), tmp_path / "in.onnx")
    for feeds, engine, complaint in (
        ({"x": nets.signal(1, 16, 9, 8)}, Engine(), "does not run in.onnx"),
        (FEEDS, Engine(provider="NoSuchProvider"), "NoSuchProvider"),
    ):
        with pytest.raises(RunError, match=complaint) as caught:
            race([Contestant(path=path, feeds=feeds)], engine, Budget(runs=1))
        assert "\n" not in str(caught.value)


def test_the_stopwatch_times_what_onnxruntime_computes(tmp_path: Path) -> None:
    path = save(small_model(), tmp_path / "in.onnx")
    watch = Stopwatch(str(path), Engine(threads=2), FEEDS)
    assert watch.run(5).shape == (5,)
    (expected,) = open_session(str(path), Engine()).run(None, FEEDS)
    np.testing.assert_allclose(watch.outputs()[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("duration", "runs"), [(0.0, None), (-1.0, None), (math.inf, None), (math.nan, None), (1.0, 0)]
)
def test_budgets_that_are_none(duration: float, runs: int | None) -> None:
    with pytest.raises(UsageError):
        Budget(duration=duration, runs=runs)
