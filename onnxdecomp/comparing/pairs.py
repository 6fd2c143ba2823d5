"""How far two models' outputs are apart on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxdecomp.comparing.tally import Fidelity, Tally
from onnxdecomp.errors import CheckError
from onnxdecomp.ir import Array, InputShapes, Source, as_model, on_disk
from onnxdecomp.runtime import Feeds, Outputs, open_in_onnxruntime, random_feeds
from onnxdecomp.sampling import BATCH, Samples


def compare_outputs(pairs: Iterable[tuple[Outputs, Outputs]]) -> list[Fidelity]:
    """The fidelity of each output over pairs of runs (a, b).

    Raises:
        CheckError: b lacks an output of a, or one changed its shape or type.
    """
    tallies: dict[str, Tally] = {}
    for a, b in pairs:
        if missing := sorted(set(a) - set(b)):
            raise CheckError(f"output '{missing[0]}' is missing from the second model")
        for name, value in a.items():
            if isinstance(value, np.ndarray | np.generic):
                found = np.asarray(b[name])
                _require_alike(name, value, found)
                tallies.setdefault(name, Tally()).add(np.asarray(value), found)
    return [tally.fidelity(name) for name, tally in tallies.items()]


def _require_alike(name: str, a: Array | np.generic, b: Array) -> None:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise CheckError(f"output '{name}' changed from {a.dtype}{list(a.shape)} to {b.dtype}{list(b.shape)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far two models are apart; iterates over the outputs.

    Attributes:
        inputs: what both ran on: "random", "feeds" or "samples".
        samples: where the samples lie; None where they are none, or lie in no file.
        outputs: fidelity of each output of the first.
        note: one line on samples left out; None where there are none.
    """

    inputs: str
    outputs: tuple[Fidelity, ...]
    samples: Path | None = None
    note: str | None = None

    def __iter__(self) -> Iterator[Fidelity]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, number: int) -> Fidelity:
        return self.outputs[number]

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        where = self.inputs if self.samples is None else str(self.samples)
        return {"inputs": where, "outputs": [each.to_dict() for each in self.outputs]}


def compare(
    a: Source,
    b: Source,
    feeds: Samples | Iterable[Feeds] | None = None,
    *,
    input_shapes: InputShapes | None = None,
) -> Comparison:
    """Run two models in ONNX Runtime on the same inputs.

    Args:
        a: the reference: a path, or a model that holds all its data.
        b: the model judged against it; it must have the inputs of `a`.
        feeds: samples, or sets of inputs; None makes up one set of random ones.
        input_shapes: for random inputs with unknown dimensions.

    Raises:
        ModelError, RunError, MissingExtraError: a model does not load or run.
        UsageError: random inputs cannot be made up for unknown dimensions.
        CheckError: an output is missing or changed its shape or type.
    """
    # An input that is damaged is told apart from one that a runtime refuses.
    first, second = as_model(a), as_model(b)
    inputs, path, note = "feeds", None, None
    if feeds is None:
        inputs, feeds = "random", [random_feeds(first.proto, input_shapes or {})]
    elif isinstance(feeds, Samples):
        inputs, path, note = "samples", feeds.path, feeds.note
        feeds = feeds.batches(BATCH)
    with on_disk(first) as here, on_disk(second) as there:
        runners = open_in_onnxruntime(here), open_in_onnxruntime(there)
        outputs = compare_outputs((runners[0].run(each), runners[1].run(each)) for each in feeds)
    return Comparison(inputs=inputs, samples=path, outputs=tuple(outputs), note=note)
