"""The front door of tuning: what is asked for is verified, then trained, then judged in ONNX Runtime."""

from __future__ import annotations

import time

from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Model, Source, as_model, graph_inputs
from onnxdecomp.progress import Progress, logged, silent, stage
from onnxdecomp.sampling import BATCH, LabelsLike, SampleSets, SamplesLike, as_samples, read_labels
from onnxdecomp.tuning.engine import require_torch
from onnxdecomp.tuning.judging import Task, judged
from onnxdecomp.tuning.landmarks import find_landmarks
from onnxdecomp.tuning.options import Tuning
from onnxdecomp.tuning.result import TuneResult
from onnxdecomp.tuning.teaching import Teacher, opened
from onnxdecomp.tuning.trained import find_trained


@verified
def tune(
    original: Source,
    rewritten: Source,
    samples: SampleSets | SamplesLike,
    *,
    labels: LabelsLike | None = None,
    tuning: Tuning | None = None,
    progress: Progress = silent,
) -> TuneResult:
    """Bring a rewritten model nearer to its original by gradients, without labels.

    The original, in ONNX Runtime, is the teacher: tensors behind activations and residual Adds, and scores,
    are to be as it has them. Some of the samples are held out; the state that does best on them is kept, if
    the outputs that ONNX Runtime then computes are nearer to the original's than before.

    Under `torchrun` the processes share every step, and all have the same answer; let the first write it.

    An example is in docs/python.md under "Tuning".

    Args:
        original: a path, a ModelProto that holds all its data, or a result; never changed.
        rewritten: what was made of it, likewise.
        samples: inputs of the original, two or more; what `open_samples` takes. Of SampleSets those that are
            for it, and of these some that nothing was fitted to tell which state is best.
        labels: the classes of the samples, where they are known, as `read_labels` takes them: what is trained
            is then to find these, too.
        tuning: how; None is ten minutes of training the factors.
        progress: told of what is being done; where it raises a StoppedError, the best so far is the answer.

    Raises:
        ModelError: a file is no whole ONNX model.
        UsageError: models that are not original and rewritten of each other, or that have nothing to train;
            too few samples, or samples or labels that do not fit; a device that is not there; a checkpoint
            of something else.
        OutputError: the checkpoint cannot be written.
        RunError, MissingExtraError: ONNX Runtime does not run the models; PyTorch is absent or too old.
    """
    began, progress, how = time.monotonic(), logged(progress), tuning or Tuning()
    require_torch(how.device)
    from onnxdecomp.tuning.feeding import Feeding, part_samples, portions_of
    from onnxdecomp.tuning.preparing import prepared
    from onnxdecomp.tuning.training import train

    first, second = as_model(original, "original"), as_model(rewritten, "rewritten")
    _require_related(first, second)
    values = find_trained(first, second, how.train)
    if isinstance(samples, SampleSets):
        given, seen = samples.tuned_on, samples.fitted.indices
    else:
        given, seen = as_samples(samples, first, "samples"), ()
    classes = None if labels is None else read_labels(labels, given)
    chosen, spared = part_samples(given, how.seed, seen)
    fitted, held_out = given.subset(chosen), given.subset(spared)
    landmarks = find_landmarks(first, second, values.keys())
    with stage("preparing", progress):
        known = None if classes is None else classes[spared]
        portions = list(portions_of(held_out, BATCH, labels=known))
        program, notes = prepared(first, second, landmarks, values, portions[0], how.device)
    with opened(first, (*landmarks.names, *program.fed), how.device) as runner:
        with opened(second, landmarks.names) as student, stage("running both models", progress):
            teacher = Teacher.of(runner, portions, landmarks)
            before = teacher.distances(student, landmarks)
        task = Task(
            original=first,
            rewritten=second,
            landmarks=landmarks,
            teacher=teacher,
            before=before,
            samples=(len(fitted), len(held_out)),
            began=began,
        )
        if not program.targets:
            return judged(task, None, notes)
        feeding = Feeding(
            samples=fitted,
            labels=None if classes is None else classes[chosen],
            batch=how.batch,
            seed=how.seed,
            augment=how.augment,
        )
        descent = train(program, task, feeding, how, progress)
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
