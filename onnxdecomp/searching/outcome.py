"""What a search came to."""

from __future__ import annotations

from dataclasses import dataclass

from onnxdecomp.searching.contender import Contender
from onnxdecomp.searching.study import StudyResult
from onnxdecomp.searching.weighed import Solution


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What a search came to.

    Attributes:
        best: the best contender: one that meets the goal if there is any; None if nothing was tried.
        met: whether it does.
        tried: every contender, in order.
        solution: the front that they were taken from.
        original_seconds: the original's median time; None where nothing was timed.
        stopped: whether the search was interrupted or ran out of time.
        study: of the trials; None where there were none.
        notes: what else is to be said.
    """

    best: Contender | None
    met: bool
    tried: tuple[Contender, ...]
    solution: Solution
    original_seconds: float | None
    stopped: bool
    study: StudyResult | None
    notes: tuple[str, ...]
