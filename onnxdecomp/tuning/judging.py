"""Whether what was trained is nearer to the original, as ONNX Runtime computes both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxdecomp.ir import Model
from onnxdecomp.tuning.landmarks import Landmarks
from onnxdecomp.tuning.result import Gap, TuneResult
from onnxdecomp.tuning.teaching import Distances, Teacher, opened
from onnxdecomp.tuning.trained import with_values

if TYPE_CHECKING:
    from onnxdecomp.tuning.descent import Descent


# Outputs of fewer samples than this can come nearer by chance: then what is inside must have, too.
_SURE = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What is to be tuned, to what.

    Attributes:
        original: the model that was rewritten.
        rewritten: what was made of it.
        landmarks: where they should agree.
        teacher: the original on the samples held out.
        before: how far they are apart there.
        samples: how many are trained on, and how many held out.
        began: `time.monotonic()` when all began.
    """

    original: Model
    rewritten: Model
    landmarks: Landmarks
    teacher: Teacher
    before: Distances
    samples: tuple[int, int]
    began: float


def judged(task: Task, descent: Descent | None, notes: Sequence[str]) -> TuneResult:
    """What came of a descent, or of none: the tuned model where its outputs are nearer to the original's.

    Raises:
        RunError: ONNX Runtime does not run the tuned model.
    """
    names = task.landmarks.names
    tuned, after = task.rewritten, task.before
    if descent is not None and descent.steps:
        tuned = with_values(task.rewritten, descent.best)
        with opened(tuned, names) as runner:
            after = task.teacher.distances(runner, task.landmarks)
    ends, inner = task.landmarks.judged, task.landmarks.inner
    improved = _error(after, ends) < _error(task.before, ends)
    if task.samples[1] < _SURE:
        improved = improved and _error(after, inner) <= _error(task.before, inner)
    return TuneResult(
        tuned=tuned if improved else task.rewritten,
        improved=improved,
        outputs=tuple(_gap(name, task.before, after) for name in task.landmarks.outputs),
        inner=tuple(_gap(name, task.before, after) for name in task.landmarks.inner),
        agreement=_agreement(task, task.before, after),
        accuracy=_accuracy(task.teacher.correct, task.before.correct, after.correct),
        trained=tuple(descent.best) if descent is not None else (),
        samples=task.samples,
        steps=descent.steps if descent is not None else 0,
        seconds=time.monotonic() - task.began,
        curve=descent.curve if descent is not None else (),
        notes=(*notes, *_said(task, descent)),
        sources=frozenset(task.original.files() | task.rewritten.files()),
        interrupted=descent.interrupted if descent is not None else None,
    )


def _error(found: Distances, names: Sequence[str]) -> float:
    """The squared error of some landmarks, each as a part of its own size."""
    return sum(found.tallies[name].share for name in names)


def _gap(name: str, before: Distances, after: Distances) -> Gap:
    first, last = (found.tallies[name].fidelity(name).relative_l2 for found in (before, after))
    return Gap(name=name, before=first, after=last)


def _agreement(task: Task, before: Distances, after: Distances) -> tuple[float, float] | None:
    """How often the best class is the original's, before and after; None without scores."""
    if task.teacher.scores is None:
        return None
    name = task.teacher.scores[0]
    first, last = (found.tallies[name].fidelity(name).top1_agreement for found in (before, after))
    return None if first is None or last is None else (first, last)


def _accuracy(
    original: float | None, before: float | None, after: float | None
) -> tuple[float, float, float] | None:
    return None if original is None or before is None or after is None else (original, before, after)


def _said(task: Task, descent: Descent | None) -> list[str]:
    """What else is to be said of a descent."""
    if descent is None:
        return []
    few = f"{task.samples[1]} held out say little of others: give some hundred samples"
    if not descent.steps and descent.interrupted is None:
        return ["no step was made: give a longer `time_limit`, or fewer samples"]
    again = "the error grew out of bounds: it went on from the best state at a tenth of the rate"
    return ([again] if descent.restarted else []) + ([few] if task.samples[1] < _SURE else [])
