"""The front door of tuning: what is asked for is verified, then trained, then judged in ONNX Runtime."""

from __future__ import annotations

import time

from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Model, Source, as_model, graph_inputs
from onnxdecomp.progress import Progress, logged, silent, stage
from onnxdecomp.sampling import SamplesLike, as_samples
from onnxdecomp.tuning.engine import require_torch
from onnxdecomp.tuning.feeding import endless, part_samples
from onnxdecomp.tuning.judging import Task, judged
from onnxdecomp.tuning.landmarks import find_landmarks
from onnxdecomp.tuning.options import Tuning
from onnxdecomp.tuning.result import TuneResult
from onnxdecomp.tuning.teaching import Teacher, opened
from onnxdecomp.tuning.trained import find_trained

# The highest rate, as a part of a tensor's root mean square: with few samples, and with many.
_RATE, _RATE_OF_MANY, _MANY = 5e-3, 1e-2, 1000


@verified
def tune(
    original: Source,
    rewritten: Source,
    samples: SamplesLike,
    *,
    tuning: Tuning | None = None,
    progress: Progress = silent,
) -> TuneResult:
    """Bring a rewritten model nearer to its original by gradients, without labels.

    The original, in ONNX Runtime, is the teacher: tensors behind activations and residual Adds, and scores,
    are to be as it has them. Some of the samples are held out; the state that does best on them is kept, if
    the outputs that ONNX Runtime then computes are nearer to the original's than before.

    An example is in docs/python.md under "Tuning".

    Args:
        original: a path, a ModelProto that holds all its data, or a result; never changed.
        rewritten: what was made of it, likewise.
        samples: inputs of the original, two or more; what `open_samples` takes.
        tuning: how; None is ten minutes of training the factors.
        progress: told of what is being done; where it raises a StoppedError, the best so far is the answer.

    Raises:
        ModelError: a file is no whole ONNX model.
        UsageError: models that are not original and rewritten of each other, or that have nothing to train;
            too few samples, or samples that do not fit; a device that is not there.
        RunError, MissingExtraError: ONNX Runtime does not run the models; PyTorch is absent or too old.
    """
    began, progress = time.monotonic(), logged(progress)
    how = tuning or Tuning()
    require_torch(how.device)
    from onnxdecomp.tuning.descent import Course, descend
    from onnxdecomp.tuning.preparing import prepared, watched

    first, second = as_model(original, "original"), as_model(rewritten, "rewritten")
    _require_related(first, second)
    values = find_trained(first, second, how.train)
    fitted, held_out = part_samples(as_samples(samples, first, "samples"), how.seed)
    landmarks = find_landmarks(first, second, values.keys())
    with opened(first, landmarks.names) as runner, opened(second, landmarks.names) as student:
        with stage("running both models", progress):
            teacher = Teacher.of(runner, list(held_out.batches(how.batch)), landmarks.names)
            task = Task(
                original=first,
                rewritten=second,
                landmarks=landmarks,
                teacher=teacher,
                before=teacher.distances(student, landmarks),
                samples=(len(fitted), len(held_out)),
                began=began,
            )
            program, notes = prepared(task, values, student, how.device)
        if not program.targets:
            return judged(task, None, notes)
        rate = _RATE_OF_MANY if len(fitted) >= _MANY else _RATE
        course = Course(rate=rate, steps=how.steps, deadline=began + how.time_limit)
        batches = endless(fitted, how.batch, how.seed, augment=how.augment)
        descent = descend(program, teacher, watched(program, landmarks), batches, course, progress)
        with stage("measuring what came of it", silent if descent.interrupted else progress):
            return judged(task, descent, notes)


def _require_related(original: Model, rewritten: Model) -> None:
    """Refuse two models of which one cannot have been made of the other.

    Raises:
        UsageError: their inputs or outputs have other names or types.
    """

    def described(model: Model) -> list[tuple[str, str, int]]:
        graph = model.proto.graph
        ends = [("input", value) for value in graph_inputs(model.proto)]
        ends += [("output", value) for value in graph.output]
        return [(what, value.name, value.type.tensor_type.elem_type) for what, value in ends]

    apart = set(described(original)) ^ set(described(rewritten))
    for what, name, _ in sorted(apart):
        raise UsageError(f"`rewritten` is not made of `original`: {what} '{name}' is not the same in both")
