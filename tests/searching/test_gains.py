"""What tuning is expected to win back, and how a search spends it: models are made up, nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxdecomp import Contender, Fidelity, Goal, Plan, Quality, Score, StoppedError
from onnxdecomp.searching.gains import Gains
from onnxdecomp.searching.narrowing import Narrowing

TUNED: Any = SimpleNamespace(tuned=object())
FITTED: Any = SimpleNamespace(tuned=None)


def contender(
    error: float = 0.0,
    agreement: float | None = None,
    accuracy: tuple[float, float] | None = None,
    **known: Any,
) -> Contender:
    output = Fidelity(
        name="y", relative_l2=error, max_abs=None, cosine=None, top1_agreement=agreement, new_nonfinite=0
    )
    quality = Quality(fitted=8, held_out=8, outputs=(output,), accuracy=accuracy)
    return Contender(**{"plan": Plan({}), "predicted": error, "quality": quality, "result": FITTED} | known)


# Gains
# -----


def test_an_error_is_expected_to_shrink_as_the_last_one_did() -> None:
    gains = Gains(Goal("max_error", 0.1), 2)
    assert gains.expected(contender(0.2)) == 0.2
    gains.learn(contender(0.2), contender(0.15, result=TUNED))
    assert gains.expected(contender(0.12)) == pytest.approx(0.09) and gains.within(contender(0.12))
    assert not gains.within(contender(0.14))
    # What was measured needs no guess.
    assert gains.expected(contender(0.12, result=TUNED)) == 0.12
    gains.learn(contender(0.12), contender(0.06, result=TUNED))
    # No more models are tuned, so nothing is to be won.
    assert gains.left == 0 and gains.expected(contender(0.12)) == 0.12


@pytest.mark.parametrize(
    ("goal", "before", "after", "another", "expected"),
    [
        (Goal("min_agreement", 0.9), {"agreement": 0.8}, {"agreement": 0.9}, {"agreement": 0.86}, 0.93),
        (
            Goal("max_drop", 0.05),
            {"accuracy": (0.9, 0.7)},
            {"accuracy": (0.9, 0.8)},
            {"accuracy": (0.9, 0.83)},
            0.035,
        ),
        (
            Goal("max_drop", 3.0),
            {"score": Score(name="m", before=50.0, after=42.0, lower_is_better=False)},
            {"score": Score(name="m", before=50.0, after=46.0, lower_is_better=False)},
            {"score": Score(name="m", before=50.0, after=45.0, lower_is_better=False)},
            2.5,
        ),
    ],
)  # fmt: skip
def test_of_shares_and_scores_what_they_are_short_of_shrinks(
    goal: Goal, before: Any, after: Any, another: Any, expected: float
) -> None:
    gains = Gains(goal, 4)
    gains.learn(contender(**before), contender(**after, result=TUNED))
    assert gains.share == pytest.approx(0.5)
    assert gains.expected(contender(**another)) == pytest.approx(expected)
    assert gains.within(contender(**another)) and not contender(**another).within(goal)


def test_a_loss_that_there_is_none_of_teaches_nothing_and_stays() -> None:
    gains = Gains(Goal("max_drop", 0.05), 9)
    better = contender(accuracy=(0.8, 0.82))
    gains.learn(better, contender(accuracy=(0.8, 0.7), result=TUNED))
    assert gains.share == 1 and gains.expected(better) == pytest.approx(-0.02)
    gains.learn(contender(accuracy=(0.8, 0.7)), contender(accuracy=(0.8, 0.75), result=TUNED))
    assert gains.share == pytest.approx(0.5) and gains.expected(better) == pytest.approx(-0.02)


def test_a_share_is_neither_nothing_nor_more_than_all() -> None:
    gains = Gains(Goal("min_agreement", 0.9), 9)
    gains.learn(contender(agreement=0.99), contender(agreement=1.0, result=TUNED))
    assert gains.share == 0.1
    gains.learn(contender(agreement=0.99), contender(agreement=0.97, result=TUNED))
    assert gains.share == 1


def test_what_was_not_measured_is_not_guessed() -> None:
    gains = Gains(Goal("max_error", 0.1), 1)
    assert gains.expected(contender(quality=None)) is None and not gains.within(contender(quality=None))
    gains.learn(contender(quality=None), contender(0.1, result=TUNED))
    assert gains.share == 1


def test_a_figure_is_not_rounded_on_the_way() -> None:
    for agreement in (number / 97 for number in range(1, 98)):
        gains = Gains(Goal("min_agreement", agreement), 3)
        assert gains.within(contender(agreement=agreement))


# Narrowing
# ---------

POINTS = 400
Law = Callable[[float], float]


@dataclass
class Maker:
    """Makes models of points of a front: what they lose follows from what is predicted.

    Attributes:
        fit: the error of a fitted model by its prediction.
        left: what tuning leaves of it, by its prediction.
        kind: "error", or "agreement", of which an error takes as much away.
    """

    fit: Law
    left: Law
    kind: str = "error"
    tried: list[Contender] = field(default_factory=list)
    predictions: Any = field(default_factory=lambda: np.linspace(1, 0, POINTS))

    @property
    def solution(self) -> Any:
        front = SimpleNamespace(costs=np.linspace(0, 1, POINTS), losses=self.predictions**2)

        def within_loss(limit: float) -> int | None:
            good = np.flatnonzero(front.losses <= limit)
            return int(good[0]) if len(good) else None

        front.within_loss = within_loss
        return SimpleNamespace(front=front, kept_cost=1.0, plan=lambda point: point)

    def drafted(self, plan: Any) -> Contender:
        return Contender(plan=plan, predicted=float(self.predictions[plan]))

    def fitted(self, draft: Contender) -> Contender:
        return self._made(draft, self.fit(draft.predicted), FITTED)

    def tuned(self, fitted: Contender) -> Contender:
        predicted = fitted.predicted
        return self._made(fitted, self.fit(predicted) * self.left(predicted), TUNED)

    def _made(self, draft: Contender, loss: float, result: Any) -> Contender:
        figures = {"error": loss} if self.kind == "error" else {"agreement": 1 - loss}
        made = contender(**figures)
        self.tried.append(replace(draft, quality=made.quality, result=result))
        return self.tried[-1]

    @property
    def tunings(self) -> int:
        return sum(each.tuned is not None for each in self.tried)


@dataclass
class Found:
    """What a run came to: the cheapest model that meets the goal, and how many there were of them."""

    best: Contender | None
    cost: float
    fits: int
    tunings: int


def narrowed(
    maker: Maker, goal: Goal, tunings: int, first: float = 0.1, late: Callable[[], bool] = lambda: False
) -> Found:
    Narrowing(goal, maker.solution, maker, Gains(goal, tunings), late).run(first)  # type: ignore[arg-type]
    met = [each for each in maker.tried if each.within(goal)]
    best = min(met, key=lambda each: (each.plan, each.loss), default=None)  # type: ignore[arg-type, return-value]
    cost = maker.solution.front.costs[best.plan] if best is not None else 1.0
    return Found(best, float(cost), len(maker.tried) - maker.tunings, maker.tunings)


def least_cost(maker: Maker, bound: float) -> float:
    """Of any point whose tuned model loses no more."""
    losses = np.array([maker.fit(p) * maker.left(p) for p in maker.predictions])
    return float(maker.solution.front.costs[losses <= bound].min())


LAWS = {
    "half": lambda p: 0.5,
    "little": lambda p: 0.95,
    "nothing": lambda p: 1.0,
    "less where more is lost": lambda p: 0.4 + 0.6 * p,
    "more where more is lost": lambda p: 0.8 - 0.5 * p,
    "uneven": lambda p: 0.6 + 0.02 * math.sin(900 * p),
}
FITS = {
    "as predicted": lambda p: p,
    "worse": lambda p: 1.7 * p,
    "better": lambda p: 0.4 * p,
    "curved": lambda p: 2 * p**1.5,
}


@pytest.mark.parametrize("left", LAWS)
@pytest.mark.parametrize("fit", FITS)
def test_what_tuning_wins_is_spent_on_a_lower_cost(fit: str, left: str) -> None:
    goal = Goal("max_error", 0.1)
    maker = Maker(FITS[fit], LAWS[left])
    found = narrowed(maker, goal, 4)
    plain = narrowed(Maker(FITS[fit], LAWS["nothing"]), goal, 0)
    assert found.best is not None and found.best.within(goal)
    assert 1 <= found.tunings <= 4 and plain.tunings == 0 and plain.fits <= 5 and found.fits <= 9
    assert found.cost <= plain.cost
    if left in ("half", "little", "nothing"):
        # Nearly all is spent: no model would be cheaper that loses a tenth less than it may.
        assert found.cost <= least_cost(maker, 0.9 * goal.value)
    if left != "nothing":
        # What is answered was tuned and measured, not guessed.
        assert found.cost < plain.cost and found.best.tuned is not None


def test_a_shortfall_is_halved_as_an_error_is() -> None:
    goal = Goal("min_agreement", 0.9)
    maker = Maker(FITS["as predicted"], LAWS["half"], kind="agreement")
    found = narrowed(maker, goal, 4, first=0.06)
    assert found.best is not None and found.best.within(goal) and found.best.tuned is not None
    assert found.tunings <= 4
    assert least_cost(maker, 0.1) <= found.cost <= least_cost(maker, 0.09)


def test_a_hope_that_fails_is_followed_by_a_model_that_loses_less() -> None:
    """The first model says that tuning leaves a half, and of one that loses more it leaves four fifths."""
    goal = Goal("max_error", 0.1)
    maker = Maker(lambda p: p, lambda p: 0.5 if p < 0.11 else 0.8)
    found = narrowed(maker, goal, 4)
    tuned = [each for each in maker.tried if each.tuned is not None]
    assert [each.within(goal) for each in tuned] == [True, False, True]
    assert tuned[0].predicted < tuned[2].predicted < tuned[1].predicted
    assert found.best is not None and found.best is tuned[2]
    # And a little less than it may, so that it does not fail again.
    assert tuned[2].error == pytest.approx(0.094, abs=0.002)


def test_where_hopes_fail_again_and_again_the_best_that_was_measured_is_the_answer() -> None:
    goal = Goal("max_error", 0.1)
    shares = iter([0.5, 0.9, 0.95, 0.99])
    maker = Maker(lambda p: p, lambda p: next(shares))
    found = narrowed(maker, goal, 4)
    assert 2 < found.tunings <= 4 and found.best is maker.tried[1] is not None


def test_no_model_is_fitted_when_none_can_be_tuned_any_more() -> None:
    """Each shows that a costlier one was tuned than need be."""
    shares = iter([0.5, 0.4, 0.3, 0.2])
    maker = Maker(lambda p: p, lambda p: next(shares))
    found = narrowed(maker, Goal("max_error", 0.1), 4)
    assert found.tunings == 4 and found.best is maker.tried[-1] and found.best.tuned is not None


def test_where_nothing_was_good_fitted_models_may_still_be() -> None:
    maker = Maker(FITS["worse"], lambda p: 0.99)
    found = narrowed(maker, Goal("max_error", 0.1), 1, first=0.2)
    assert found.best is not None and found.best.tuned is None and found.tunings == 1


@pytest.mark.parametrize("fit", FITS)
def test_a_model_that_tuning_makes_worse_stays_good_as_it_was(fit: str) -> None:
    goal = Goal("max_error", 0.1)
    found = narrowed(Maker(FITS[fit], lambda p: 3.0), goal, 4)
    plain = narrowed(Maker(FITS[fit], LAWS["nothing"]), goal, 0)
    assert (found.cost, found.fits) == (plain.cost, plain.fits)
    assert found.best is not None and found.best.tuned is None


def test_out_of_time_what_was_chosen_is_tuned_all_the_same() -> None:
    goal = Goal("max_error", 0.1)
    maker = Maker(FITS["better"], LAWS["half"])
    found = narrowed(maker, goal, 4, late=lambda: True)
    assert (found.fits, found.tunings) == (1, 1)
    # Two fits more, and of the last it is only hoped that it is good.
    maker = Maker(FITS["better"], LAWS["half"])
    found = narrowed(maker, goal, 4, late=lambda: len(maker.tried) > 2)
    assert found.fits == 2 and found.tunings == 2 and found.best is maker.tried[-1]


def test_where_there_is_nothing_to_train_the_fitted_models_count() -> None:
    class Untuned(Maker):
        def tuned(self, fitted: Contender) -> Contender:
            return fitted

    goal = Goal("max_error", 0.1)
    found = narrowed(Untuned(FITS["worse"], LAWS["nothing"]), goal, 4)
    plain = narrowed(Maker(FITS["worse"], LAWS["nothing"]), goal, 0)
    assert found.cost == plain.cost and found.tunings == 0


def test_an_interruption_ends_it_at_once() -> None:
    class Stopped(Maker):
        def tuned(self, fitted: Contender) -> Contender:
            super().tuned(fitted)
            raise StoppedError()

    maker = Stopped(FITS["as predicted"], LAWS["half"])
    with pytest.raises(StoppedError):
        narrowed(maker, Goal("max_error", 0.1), 4)
    assert [each.tuned is not None for each in maker.tried] == [False, True]
