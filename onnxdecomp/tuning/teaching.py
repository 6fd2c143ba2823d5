"""What the teacher, the original in ONNX Runtime, has at the landmarks, and how far a model is from that."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from onnx import helper

from onnxdecomp.comparing import Tally
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Model, on_disk
from onnxdecomp.runtime import Feeds, Outputs, Runner, open_in_onnxruntime
from onnxdecomp.tuning.landmarks import Landmarks


@contextlib.contextmanager
def opened(model: Model, names: Iterable[str]) -> Iterator[Runner]:
    """A model in ONNX Runtime that puts out some of its tensors, too.

    Args:
        model: the model.
        names: of the tensors.

    Raises:
        RunError, MissingExtraError: ONNX Runtime does not load it, or, from `run`, does not run it.
    """
    made = model.copy()
    graph = made.proto.graph
    known = {value.name for value in graph.output}
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    with on_disk(replace(made, path=None)) as path:
        # PyTorch has a pool of threads, too: two pools would wait for each other's cores.
        yield open_in_onnxruntime(path, threads=1)


def lessons(runner: Runner, batches: Iterator[Feeds]) -> Generator[tuple[Feeds, Outputs]]:
    """Batches without end, with what the teacher makes of them; the next while the last one is learnt."""

    def prepare() -> tuple[Feeds, Outputs]:
        feeds = next(batches)
        return feeds, runner.run(feeds)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(prepare)
        while True:
            ready = ahead.result()
            ahead = pool.submit(prepare)
            yield ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """The original on the samples that are held out.

    Attributes:
        runner: the original in ONNX Runtime, with the landmarks among its outputs.
        held_out: feeds that nothing is trained on.
        variances: of each landmark on them, over all its values.
    """

    runner: Runner
    held_out: Sequence[Feeds]
    variances: Mapping[str, float]

    @classmethod
    def of(cls, runner: Runner, held_out: Sequence[Feeds], names: Sequence[str]) -> Teacher:
        """The original as it is, on samples held out; see the attributes."""
        sums = {name: [0.0, 0.0, 0.0] for name in names}
        for feeds in held_out:
            outputs = runner.run(feeds)
            for name in names:
                value = outputs[name].astype("float64")
                moments = (float(value.size), float(value.sum()), float((value**2).sum()))
                sums[name] = [a + b for a, b in zip(sums[name], moments, strict=True)]
        variances = {}
        for name, (count, total, squares) in sums.items():
            variance = squares / count - (total / count) ** 2 if count else 0.0
            # What never varies is judged by its size.
            variances[name] = max(variance, 1e-6 * squares / count if count else 0.0) or 1.0
        return cls(runner=runner, held_out=held_out, variances=variances)

    def distances(self, student: Runner, landmarks: Landmarks) -> dict[str, Tally]:
        """How far a model, in ONNX Runtime too, is from the original on the samples held out.

        Raises:
            UsageError: a tensor inside has another shape there: one model is not made of the other. That of
                an output may follow from the data, as after a selection.
        """
        tallies = {name: Tally() for name in landmarks.names}
        for feeds in self.held_out:
            wanted, found = self.runner.run(feeds), student.run(feeds)
            for name, tally in tallies.items():
                if wanted[name].shape != found[name].shape and name in landmarks.inner:
                    raise UsageError(
                        f"`rewritten` is not made of `original`: tensor '{name}' has the shape "
                        f"{list(found[name].shape)} in one and {list(wanted[name].shape)} in the other"
                    )
                tally.add(wanted[name], found[name])
        return tallies
