"""From what choices cost and lose to the ones taken: against all ways to choose, and against the rewrite."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import nets
import numpy as np
import pytest
from nets import rewrite
from onnx import ModelProto

from onnxdecomp import Policy
from onnxdecomp.comparing import Baseline
from onnxdecomp.ir import Survey, as_model, survey
from onnxdecomp.planning import Unit
from onnxdecomp.searching import (
    Contender,
    Goal,
    SearchResult,
    Solution,
    Weighed,
    front_points,
    further,
    plan_of,
    reasons,
    uniform,
)
from onnxdecomp.searching.candidates import find_candidates
from onnxdecomp.searching.costs import counted
from onnxdecomp.searching.figures import Figures
from onnxdecomp.searching.weighing import _totals

# Two sites share a weight; one has groups; one is a matrix; one cannot be decomposed.
NET = """m (float[1,16,10,10] x) => (float[1,20] y) {
  [one] a = Conv <pads=[1,1,1,1]> (x, w1, b1)
  [two] b = Conv <pads=[1,1,1,1], group=2> (a, w2)
  [point] c = Conv (b, w3)
  [again] d = Conv <strides=[2,2]> (c, w3)
  [depth] e = Conv <group=24> (d, w4)
  g = GlobalAveragePool (e)
  h = Flatten (g)
  [dense] y = Gemm (h, w5)
}"""


def net() -> ModelProto:
    return nets.model(
        NET,
        w1=nets.weight(24, 16, 3, 3), b1=nets.signal(24), w2=nets.weight(24, 12, 3, 3),
        w3=nets.weight(24, 24, 1, 1), w4=nets.weight(24, 1, 3, 3), w5=nets.weight(24, 20),
    )  # fmt: skip


POLICY = Policy(align=4, min_channels=8, linear=True)


@pytest.fixture(scope="module")
def surveyed() -> tuple[Survey, list[Unit]]:
    found = survey(as_model(net()), input_shapes={}, freeze=False, fold_bn=True, linear=True)
    return found, find_candidates(found, POLICY)


def weighed(surveyed: tuple[Survey, list[Unit]], seed: int, *, times: bool) -> Weighed:
    """Random tables over few choices of each unit; some choices lose more than can be said."""
    found, all_units = surveyed
    rng = np.random.default_rng(seed)
    units = []
    for unit in all_units:
        picks = rng.choice(len(unit.choices), min(4, len(unit.choices)), replace=False)
        units.append(dataclasses.replace(unit, choices=tuple(unit.choices[i] for i in sorted(picks))))

    def table(low: float, high: float) -> list[Figures]:
        return [
            Figures(kept=float(rng.uniform(0.8, 1)), choices=tuple(rng.uniform(low, high, len(unit.choices))))
            for unit in units
        ]

    losses = [
        Figures(choices=tuple(np.where(rng.random(number) < 0.1, math.inf, rng.uniform(0, 0.2, number))))
        for number in (len(unit.choices) for unit in units)
    ]
    return Weighed(
        units=tuple(units),
        costs=tuple(table(0.1, 0.9)),
        seconds=tuple(table(0.2, 1.3)) if times else None,
        losses=tuple(losses),
        residual=(False,) * len(units),
        counts={what: tuple(counted(units, what)) for what in ("macs", "params")},
        totals=_totals(found) | {"size": 1.0},
    )


def ways(known: Weighed) -> list[tuple[float, float]]:
    """Cost and loss of every way to choose among what is faster than the site as it is."""
    per_unit = []
    for number, (cost, loss) in enumerate(zip(known.costs, known.losses, strict=True)):
        own = [(cost.kept, 0.0)]
        for i, lost in enumerate(loss.choices):
            slow = known.seconds is not None and not (
                known.seconds[number].choices[i] < 0.98 * known.seconds[number].kept
            )
            if math.isfinite(lost) and not slow:
                own.append((cost.choices[i], lost))
        per_unit.append(own)
    return [(sum(c for c, _ in each), sum(v for _, v in each)) for each in itertools.product(*per_unit)]


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_no_way_to_choose_beats_the_front(
    seed: int, times: bool, surveyed: tuple[Survey, list[Unit]]
) -> None:
    known = weighed(surveyed, seed, times=times)
    solution, all_ways = known.solve(), ways(known)
    front = solution.front
    for budget in np.linspace(min(c for c, _ in all_ways), solution.kept_cost, 15):
        best = min(loss for cost, loss in all_ways if cost <= budget + 1e-12)
        point = front.within_cost(budget + 1e-12)
        assert point is not None and front.losses[point] == pytest.approx(best)
    for point in range(0, len(front.costs), max(1, len(front.costs) // 20)):
        taken = solution.taken(point)
        plan = solution.plan(point)
        assert known.cost(plan) == pytest.approx(front.costs[point])
        lost = sum(
            losses.choices[unit.choices.index(choice)]
            for unit, losses, choice in zip(known.units, known.losses, taken, strict=True)
            if choice is not None
        )
        assert known.error(plan) ** 2 == pytest.approx(lost)
        assert plan_of(known.units, taken).sites == plan.sites
        for number, (unit, choice) in enumerate(zip(known.units, taken, strict=True)):
            assert all(plan.sites.get(site.name) == choice for site in unit.sites)
            if known.seconds is not None and choice is not None:
                seconds = known.seconds[number]
                assert seconds.choices[unit.choices.index(choice)] < seconds.kept


def test_shares_are_those_of_the_rewritten_model(surveyed: tuple[Survey, list[Unit]]) -> None:
    assert [[site.name for site in unit.sites] for unit in surveyed[1]] == [
        ["one"], ["two"], ["point", "again"], ["dense"],
    ]  # fmt: skip
    for seed in range(3):
        solution = weighed(surveyed, seed, times=False).solve()
        for point in np.linspace(0, len(solution.front.costs) - 1, 4).astype(int):
            plan = solution.plan(point)
            totals = rewrite(net(), plan=plan, policy=POLICY).totals
            shares = solution.weighed.shares(plan)
            for kind, (before, after) in (("macs", totals.macs), ("params", totals.params)):
                assert before and after is not None
                assert shares[kind] == pytest.approx(after / before), kind


def on_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]


@pytest.mark.parametrize("seed", range(4))
def test_reasons_name_the_neighbours(seed: int, surveyed: tuple[Survey, list[Unit]]) -> None:
    known = weighed(surveyed, seed, times=True)
    solution = known.solve()
    for point in (0, len(solution.front.costs) // 2, len(solution.front.costs) - 1):
        plan = solution.plan(point)
        contender = Contender(plan=plan, predicted=known.error(plan))
        for number, each in enumerate(reasons(solution, contender)):
            unit, costs, losses = known.units[number], known.costs[number], known.losses[number]
            assert each.name == unit.name and each.kept == costs.kept
            own = on_front(
                [
                    (costs.kept, 0.0) if i is None else (costs.choices[i], losses.choices[i])
                    for i in known.options(number)
                ]
            )
            here = (each.taken.cost, each.taken.loss)
            assert here in own
            cheaper = sorted(p for p in own if p[0] < here[0])
            better = sorted(p for p in own if p[1] < here[1])
            for found, expected in ((each.cheaper, cheaper[-1:]), (each.better, better[:1])):
                assert [(p.cost, p.loss) for p in ([found] if found else [])] == expected
                if found is not None:
                    index = None if found.choice is None else unit.choices.index(found.choice)
                    assert index in known.options(number)


def test_uniform_ranks_are_no_better_than_the_front(surveyed: tuple[Survey, list[Unit]]) -> None:
    known = weighed(surveyed, 1, times=False)
    front = known.solve().front
    for cost, error in uniform(known):
        point = front.within_cost(cost)
        assert point is None or math.sqrt(front.losses[point]) <= error + 1e-12


def contender(solution: Solution, point: int) -> Contender:
    plan = solution.plan(point)
    return Contender(plan=plan, predicted=solution.weighed.error(plan))


def test_what_a_little_more_loss_would_buy(surveyed: tuple[Survey, list[Unit]]) -> None:
    solution = weighed(surveyed, 2, times=False).solve()
    for point in (0, len(solution.front.costs) // 2, len(solution.front.costs) - 1):
        bought = further(solution, contender(solution, point))
        assert bought is not None
        now, then = bought
        assert now * solution.kept_cost == pytest.approx(solution.front.costs[point])
        assert then <= now
        limit = (math.sqrt(solution.front.losses[point]) + 0.01) ** 2
        cheapest = min(
            c for c, v in zip(solution.front.costs, solution.front.losses, strict=True) if v <= limit
        )
        assert then * solution.kept_cost == pytest.approx(cheapest)


def test_a_report_of_sites_that_cannot_be_timed_is_json(surveyed: tuple[Survey, list[Unit]]) -> None:
    """Their choices cost infinitely much, which JSON cannot say."""
    from onnxdecomp.cli.targets import to_json

    known = weighed(surveyed, 3, times=True)
    blind = Figures(kept=0.0, choices=(math.inf,) * len(known.units[0].choices))
    assert known.seconds is not None
    seconds = (blind, *known.seconds[1:])
    known = dataclasses.replace(known, costs=seconds, seconds=seconds)
    assert known.options(0) == [None]
    solution = known.solve()
    best = contender(solution, 0)
    document = SearchResult(
        goal=Goal("speedup", 2.0), timed=True, baseline=Baseline(path=Path("in.onnx")), best=best, met=True,
        tried=(best,), solution=solution, original_seconds=None, stopped=False, interrupted=None, study=None,
        notes=(), environment={},
    ).to_dict()  # fmt: skip
    to_json(document)
    assert document["sites"][0]["taken"]["choice"] == "kept"


def test_a_front_is_thinned_for_reports_with_its_ends(
    surveyed: tuple[Survey, list[Unit]], tmp_path: Path
) -> None:
    solution = weighed(surveyed, 0, times=False).solve()
    points = front_points(solution, 7)
    assert len(points) == min(7, len(solution.front.costs))
    assert points[0][0] == solution.front.costs[0] and points[-1][0] == solution.front.costs[-1]
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(points))
