"""What tuning leaves of a loss: learnt from models that were tuned, expected of those that are not."""

from __future__ import annotations

from onnxdecomp.searching.contender import Contender
from onnxdecomp.searching.goal import Goal

# That little of a loss is hardly ever left; where a few samples tell less, it is chance.
_LEAST = 0.1


class Gains:
    """What tuning is expected to make of the figure that a goal is about.

    Attributes:
        left: how many more models may be tuned on the way; 0 where nothing is expected of it.
        share: what is left of a loss, 1 for all of it: that of the last model that was tuned.
    """

    def __init__(self, goal: Goal, most: int) -> None:
        """
        Args:
            goal: that bounds a loss.
            most: how many models may be tuned on the way.
        """
        self._goal = goal
        self.left = most
        self.share = 1.0

    def learn(self, fitted: Contender, tuned: Contender) -> None:
        """One more model was tuned; a loss that there was none of teaches nothing."""
        self.left -= 1
        before, after = self._loss(fitted), self._loss(tuned)
        if before is not None and after is not None and before > 0:
            self.share = min(max(after / before, _LEAST), 1.0)

    def expected(self, contender: Contender) -> float | None:
        """The figure of a contender: measured where it is tuned, else what tuning it would make of it.

        None where it was not measured.
        """
        figure, loss = contender.reached(self._goal), self._loss(contender)
        if contender.tuned is not None or not self.left or loss is None or loss <= 0 or self.share == 1:
            return figure
        return self._figure(loss * self.share)

    def within(self, contender: Contender) -> bool:
        """Whether the goal is reached, or would be once the contender is tuned."""
        figure = self.expected(contender)
        return figure is not None and self._goal.reached_by(figure)

    def _loss(self, contender: Contender) -> float | None:
        """What the figure is short of, where it is one that should be high."""
        figure = contender.reached(self._goal)
        return None if figure is None else self._figure(figure)

    def _figure(self, loss: float) -> float:
        """A share of samples from what it is short of all, and the other way round; else the same."""
        return 1 - loss if self._goal.upwards else loss
