from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.errors import UsageError
from onnxdecomp.planning import Front, front

Options = list[list[tuple[float, float]]]

values = st.one_of(st.integers(-4, 8), st.floats(-2, 8, allow_subnormal=False))
instances = st.lists(st.lists(st.tuples(values, values.map(abs)), min_size=1, max_size=5), max_size=5)


def total(options: Options, choice: tuple[int, ...]) -> tuple[float, float]:
    cost = loss = 0.0
    for site, taken in zip(options, choice, strict=True):
        cost, loss = cost + site[taken][0], loss + site[taken][1]
    return cost, loss


def assert_sound(found: Front, options: Options) -> None:
    assert (np.diff(found.costs) > 0).all()
    assert (np.diff(found.losses) < 0).all()
    for i in range(len(found.costs)):
        assert total(options, found.choices(i)) == (found.costs[i], found.losses[i])


@given(instances)
@settings(deadline=None)
def test_small_instances_are_solved_exactly(options: Options) -> None:
    found = front(options)
    assert_sound(found, options)
    every = [total(options, choice) for choice in itertools.product(*(range(len(site)) for site in options))]
    for limit in {value for pair in every for value in pair} | {-1e9, 1e9}:
        i = found.within_cost(limit)
        losses = [loss for cost, loss in every if cost <= limit]
        assert (i is None) == (not losses)
        assert i is None or found.losses[i] == min(losses)
        i = found.within_loss(limit)
        costs = [cost for cost, loss in every if loss <= limit]
        assert (i is None) == (not costs)
        assert i is None or found.costs[i] == min(costs)


@given(instances, st.integers(1, 6))
@settings(deadline=None)
def test_few_bins_keep_within_the_bound(options: Options, bins: int) -> None:
    exact, found = front(options), front(options, bins)
    assert_sound(found, options)
    assert len(found.costs) <= bins + 1
    span = sum(max(cost for cost, _ in site) - min(cost for cost, _ in site) for site in options)
    for cost, loss in zip(exact.costs, exact.losses, strict=True):
        i = found.within_loss(loss * (1 + 1e-12) + 1e-12)
        assert i is not None
        assert found.costs[i] <= cost + len(options) * span / bins + 1e-9


def test_large_instances_are_near_the_lagrangian_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    share = np.linspace(0.02, 1, 50)
    options: Options = []
    for _ in range(60):
        costs = rng.lognormal(0, 1.5) * share
        losses = rng.lognormal(0, 1.5) * (1.02 - share) ** rng.uniform(1.5, 4)
        options.append(list(zip(costs.tolist(), losses.tolist(), strict=True)))
    ordered: list[int] = []
    lexsort = np.lexsort
    monkeypatch.setattr(np, "lexsort", lambda keys: (ordered.append(len(keys[0])), lexsort(keys))[1])
    found = front(options)
    monkeypatch.undo()
    # It is fast: few points go on to the next site, and of what that makes of them few must be ordered.
    kept = [1, *(len(parents) for parents in found.parents)]
    assert max(kept) <= 4096 + 1
    assert 0 < sum(ordered) < sum(kept[:-1]) * 50 / 10
    both = np.array(options)
    for part in (0.1, 0.3, 0.5, 0.7):
        budget = found.costs[0] + part * (found.costs[-1] - found.costs[0])

        def dual(log: float, budget: float = budget) -> float:
            price = np.exp(log)
            return float(price * budget - (both[..., 1] + price * both[..., 0]).min(axis=1).sum())

        bound = -scipy.optimize.minimize_scalar(dual, bounds=(-15, 15), method="bounded").fun
        i = found.within_cost(budget)
        assert i is not None
        cost, loss = total(options, found.choices(i))
        assert cost <= budget
        assert bound * (1 - 1e-9) <= loss <= bound * 1.02


def test_no_sites_cost_nothing() -> None:
    found = front([])
    assert (found.costs.tolist(), found.losses.tolist(), found.choices(0)) == ([0], [0], ())
    assert found.within_cost(0) == 0
    assert found.within_cost(-1) is None
    assert found.within_loss(0) == 0


def test_of_equal_options_the_first_is_taken() -> None:
    found = front([[(1, 2), (1, 2), (1, 3), (2, 2)], [(0, 0), (0, 0)]])
    assert len(found.costs) == 1
    assert found.choices(0) == (0, 0)


@pytest.mark.parametrize("options", [[[]], [[(1, 2)], []], [[(float("nan"), 1)]], [[(1, float("inf"))]]])
def test_what_cannot_be_chosen_from_is_refused(options: Options) -> None:
    with pytest.raises(UsageError, match="site"):
        front(options)
