"""What the teacher, the original in ONNX Runtime, has at the landmarks, and how far a model is from that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnxdecomp.comparing import Tally, scores_samples
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Model, on_disk
from onnxdecomp.runtime import Flow, Outputs, Runner, open_in_onnxruntime, with_outputs
from onnxdecomp.tuning.feeding import Portion
from onnxdecomp.tuning.landmarks import Landmarks


@contextlib.contextmanager
def opened(model: Model, names: Iterable[str], device: str = "cpu") -> Iterator[Runner]:
    """A model in ONNX Runtime that puts out some of its tensors, too.

    Args:
        model: the model.
        names: of the tensors.
        device: "cpu", or "cuda" where ONNX Runtime has it.

    Raises:
        RunError, MissingExtraError: ONNX Runtime does not load it, or, from `run`, does not run it.
    """
    made = with_outputs(model, list(names), alone=bool(Flow.of(model.proto).barred))
    with on_disk(made) as path:
        # Several are run at a time.
        yield open_in_onnxruntime(path, threads=1, device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """How far a model is from the original on samples held out.

    Attributes:
        tallies: by landmark.
        correct: share of the samples whose class it finds; None where that is not known.
    """

    tallies: Mapping[str, Tally]
    correct: float | None


@dataclass(slots=True)
class _Hits:
    """How many samples have the class that their scores say."""

    right: int = 0
    seen: int = 0

    def add(self, portion: Portion, outputs: Outputs, scores: tuple[str, int] | None) -> None:
        if portion.labels is not None and scores is not None:
            found = outputs[scores[0]].reshape(portion.rows, -1).argmax(axis=1)
            self.right += int((found == portion.labels).sum())
            self.seen += portion.rows

    @property
    def share(self) -> float | None:
        return self.right / self.seen if self.seen else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """The original on the samples that are held out.

    Attributes:
        runner: the original in ONNX Runtime, with the landmarks among its outputs.
        held_out: samples that nothing is trained on.
        variances: of each landmark on them, over all its values.
        scores: the first output that has one score per class for each sample, and how many; None for none.
        correct: share of the samples whose class it finds; None where that is not known.
    """

    runner: Runner
    held_out: Sequence[Portion]
    variances: Mapping[str, float]
    scores: tuple[str, int] | None
    correct: float | None

    @classmethod
    def of(cls, runner: Runner, held_out: Sequence[Portion], landmarks: Landmarks) -> Teacher:
        """The original as it is, on samples held out; see the attributes.

        Raises:
            UsageError: the samples have labels, and no output a score for each.
        """
        sums = {name: [0.0, 0.0, 0.0] for name in landmarks.names}
        scores, hits = None, _Hits()
        for portion in held_out:
            outputs = runner.run(portion.feeds)
            scores = scores or _scores(outputs, landmarks.outputs)
            _require_classes(portion, scores)
            hits.add(portion, outputs, scores)
            for name in landmarks.names:
                value = outputs[name].astype("float64")
                moments = (float(value.size), float(value.sum()), float((value**2).sum()))
                sums[name] = [a + b for a, b in zip(sums[name], moments, strict=True)]
        variances = {}
        for name, (count, total, squares) in sums.items():
            variance = squares / count - (total / count) ** 2 if count else 0.0
            # What never varies is judged by its size.
            variances[name] = max(variance, 1e-6 * squares / count if count else 0.0) or 1.0
        return cls(runner=runner, held_out=held_out, variances=variances, scores=scores, correct=hits.share)

    def answers(self, portions: Sequence[Portion], names: Sequence[str]) -> list[tuple[Portion, Outputs]]:
        """Portions with what the original has at some landmarks."""
        answers = []
        for portion in portions:
            outputs = self.runner.run(portion.feeds)
            answers.append((portion, {name: outputs[name] for name in names}))
        return answers

    def distances(self, student: Runner, landmarks: Landmarks) -> Distances:
        """How far a model, in ONNX Runtime too, is from the original on the samples held out.

        Raises:
            UsageError: a tensor inside has another shape there: one model is not made of the other. That of
                an output may follow from the data, as after a selection.
        """
        tallies, hits = {name: Tally() for name in landmarks.names}, _Hits()
        for portion in self.held_out:
            wanted, found = self.runner.run(portion.feeds), student.run(portion.feeds)
            hits.add(portion, found, self.scores)
            for name, tally in tallies.items():
                if wanted[name].shape != found[name].shape and name in landmarks.inner:
                    raise UsageError(
                        f"`rewritten` is not made of `original`: tensor '{name}' has the shape "
                        f"{list(found[name].shape)} in one and {list(wanted[name].shape)} in the other"
                    )
                tally.add(wanted[name], found[name])
        return Distances(tallies=tallies, correct=hits.share)


def _scores(outputs: Outputs, names: Sequence[str]) -> tuple[str, int] | None:
    for name in names:
        value = outputs[name]
        if scores_samples(value):
            return name, value[0].size
    return None


def _require_classes(portion: Portion, scores: tuple[str, int] | None) -> None:
    if portion.labels is None:
        return
    if scores is None:
        raise UsageError("`labels`: no output of the model has one score per class for each sample")
    wrong = [int(each) for each in portion.labels if not 0 <= each < scores[1]]
    if wrong:
        raise UsageError(f"`labels`: class {wrong[0]}, but '{scores[0]}' has scores for 0 to {scores[1] - 1}")
