"""A program, a teacher and samples brought together for the loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxdecomp.comparing import Tally
from onnxdecomp.progress import Progress, silent
from onnxdecomp.tuning.crew import crew
from onnxdecomp.tuning.descent import Course, Descent, HeldOut, descend
from onnxdecomp.tuning.feeding import Feeding
from onnxdecomp.tuning.judging import Task
from onnxdecomp.tuning.keeping import Checkpoint, identity_of
from onnxdecomp.tuning.landmarks import Landmarks
from onnxdecomp.tuning.objective import Objective
from onnxdecomp.tuning.options import Tuning
from onnxdecomp.tuning.program import Program
from onnxdecomp.tuning.sharing import gathered

# The highest rate, as a part of a tensor's root mean square and of how far what is watched is from the
# teacher's: steps that are not small beside that only add to it. With few samples, and with many.
_RATE, _RATE_OF_MANY, _MANY = 0.025, 0.05, 1000
# Beyond that distance it grows no more.
_FARTHEST = 0.4


def train(program: Program, task: Task, feeding: Feeding, how: Tuning, progress: Progress) -> Descent:
    """Train a program's parameters; see `descend`.

    Args:
        program: that is trained, in place.
        task: what is to be tuned, to what.
        feeding: which samples every step takes.
        how: as the caller wants it.
        progress: told of every look.
    """
    teacher = task.teacher
    scores = teacher.scores[0] if feeding.labels is not None and teacher.scores is not None else None
    objective = Objective(variances=teacher.variances, scores=scores)
    watched = _watched(program, task.landmarks)
    rate = _highest_rate([task.before.tallies[name] for name in watched], len(feeding.samples))
    course = Course(rate=rate, steps=how.steps, began=task.began, seconds=how.time_limit)
    with gathered(program.device) as group, crew(program, teacher.runner, objective) as workers:
        own = teacher.held_out[group.rank :: group.size]
        answers = teacher.answers(own, (*watched, *program.fed))
        return descend(
            workers,
            feeding,
            HeldOut(portions=answers, watched=watched),
            course,
            group=group,
            checkpoint=_checkpoint(program, feeding, teacher.variances, how),
            progress=silent if group.rank else progress,
        )


def _highest_rate(watched: Sequence[Tally], samples: int) -> float:
    distance = math.sqrt(sum(tally.share for tally in watched) / len(watched))
    return (_RATE_OF_MANY if samples >= _MANY else _RATE) * min(distance, _FARTHEST)


def _watched(program: Program, landmarks: Landmarks) -> tuple[str, ...]:
    """The targets that say which state is best: what is judged, or what stands last in front of its end."""
    return tuple(name for name in landmarks.judged if name in program.targets) or program.targets[-1:]


def _checkpoint(program: Program, feeding: Feeding, variances: Any, how: Tuning) -> Checkpoint | None:
    if how.checkpoint is None:
        return None
    options = {name: getattr(how, name) for name in ("train", "augment", "steps", "batch", "seed")}
    parts = options | {
        "samples": list(feeding.samples.indices),
        "labels": None if feeding.labels is None else feeding.labels.tolist(),
        # What the teacher says of the samples held out tells models and samples apart.
        "variances": dict(variances),
        "targets": list(program.targets),
    }
    arrays = {name: each.detach().cpu().numpy() for name, each in program.parameters.items()}
    return Checkpoint(Path(how.checkpoint), identity_of(parts, arrays))
