"""The front door of tuning: what is asked for is verified, then trained, then judged in ONNX Runtime."""

from __future__ import annotations

import math
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
from onnxdecomp.tuning.result import TuneResult
from onnxdecomp.tuning.teaching import Teacher, opened
from onnxdecomp.tuning.trained import FACTORS, find_trained

TIME_LIMIT, BATCH = 600.0, 64
# The highest rate, as a part of a tensor's root mean square: with few samples, and with many.
_RATE, _RATE_OF_MANY, _MANY = 5e-3, 1e-2, 1000


@verified
def tune(
    original: Source,
    rewritten: Source,
    samples: SamplesLike,
    *,
    train: str = FACTORS,
    augment: bool = True,
    time_limit: float = TIME_LIMIT,
    steps: int | None = None,
    batch: int = BATCH,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> TuneResult:
    """Bring a rewritten model nearer to its original by gradients, without labels.

    The original, in ONNX Runtime, is the teacher: tensors behind activations and residual Adds, and scores,
    are to be as it has them. Some of the samples are held out; the state that does best on them is kept, if
    the outputs that ONNX Runtime then computes are nearer to the original's than before.

    The same arguments give the same bytes on one machine where PyTorch has one thread and `steps` end it.

    An example is in docs/python.md under "Tuning".

    Args:
        original: a path, a ModelProto that holds all its data, or a result; never changed.
        rewritten: what was made of it, likewise.
        samples: inputs of the original, two or more; what `open_samples` takes.
        train: "factors": what the rewrite made, biases of chains included; "factors+norms": scales and biases
            of normalisations, too; "convs": what every Conv, ConvTranspose, Gemm and MatMul reads.
        augment: whether images are flipped and moved by a few pixels.
        time_limit: seconds after which it ends.
        steps: after which it ends, if that is sooner; the rate falls to nothing by then, or, where None are
            named, by the time limit.
        batch: samples in a step.
        seed: of what is held out, and of the order of the others.
        device: "cpu" or "cuda".
        progress: told of what is being done; where it raises a StoppedError, the best so far is the answer.

    Raises:
        ModelError: a file is no whole ONNX model.
        UsageError: an argument that cannot be obeyed; models that are not original and rewritten of each
            other, or that have nothing to train; too few samples, or samples that do not fit.
        RunError, MissingExtraError: ONNX Runtime does not run the models; PyTorch is absent or too old.
    """
    began, progress = time.monotonic(), logged(progress)
    _require_meaning(time_limit, steps, batch, seed)
    require_torch(device)
    from onnxdecomp.tuning.descent import Course, descend
    from onnxdecomp.tuning.preparing import prepared, watched

    first, second = as_model(original, "original"), as_model(rewritten, "rewritten")
    _require_related(first, second)
    values = find_trained(first, second, train)
    fitted, held_out = part_samples(as_samples(samples, first, "samples"), seed)
    landmarks = find_landmarks(first, second, values.keys())
    with opened(first, landmarks.names) as runner, opened(second, landmarks.names) as student:
        with stage("running both models", progress):
            teacher = Teacher.of(runner, list(held_out.batches(batch)), landmarks.names)
            task = Task(
                original=first,
                rewritten=second,
                landmarks=landmarks,
                teacher=teacher,
                before=teacher.distances(student, landmarks),
                samples=(len(fitted), len(held_out)),
                began=began,
            )
            program, notes = prepared(task, values, student, device)
        if not program.targets:
            return judged(task, None, notes)
        rate = _RATE_OF_MANY if len(fitted) >= _MANY else _RATE
        course = Course(rate=rate, steps=steps, deadline=began + time_limit)
        batches = endless(fitted, batch, seed, augment=augment)
        descent = descend(program, teacher, watched(program, landmarks), batches, course, progress)
        with stage("measuring what came of it", silent if descent.interrupted else progress):
            return judged(task, descent, notes)


def _require_meaning(time_limit: float, steps: int | None, batch: int, seed: int) -> None:
    """Refuse what cannot be meant, before any work is done."""
    if not 0 < time_limit < math.inf:
        raise UsageError(f"`time_limit` {time_limit:g}: give a positive number of seconds")
    if steps is not None and steps < 1:
        raise UsageError(f"`steps` {steps}: give 1 or more")
    if batch < 1:
        raise UsageError(f"`batch` {batch}: a step takes 1 sample or more")
    if seed < 0:
        raise UsageError(f"`seed` {seed}: give a number of 0 or more")


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
