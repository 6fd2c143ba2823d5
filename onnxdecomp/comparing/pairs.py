"""How far two models' outputs are apart on the same inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import naming, verified
from onnxdecomp.comparing.selecting import Selection, count_selected, summed
from onnxdecomp.comparing.tally import Fidelity, Tally
from onnxdecomp.errors import CheckError, RunError, UsageError
from onnxdecomp.ir import Array, Shape, ShapesLike, Source, as_input_shapes, as_model, load, on_disk
from onnxdecomp.runtime import (
    Feeds,
    InputSpec,
    Outputs,
    Sights,
    find_sights,
    input_specs,
    open_seeing,
    random_feeds,
)
from onnxdecomp.sampling import (
    BATCH,
    Dataset,
    FeedReader,
    Samples,
    SamplesLike,
    as_samples,
    conformed,
    feed_arrays,
    feeds_of,
)


def compare_outputs(
    pairs: Iterable[tuple[Outputs, Outputs]], sights: Sights
) -> tuple[tuple[Fidelity, ...], tuple[Selection, ...]]:
    """How far two models are apart over pairs of runs (a, b), and what both select.

    Args:
        pairs: what both models compute.
        sights: where to look, in both.

    Raises:
        CheckError: b lacks an output of a, or one changed its type or shape; of a shape that depends on data,
            what is declared.
    """
    tallies: dict[str, Tally] = {}
    picked: list[Selection] = []
    for a, b in pairs:
        for name in (*sights.outputs, *sights.declared):
            if name not in b:
                raise CheckError(f"output '{name}' is missing from the second model")
        for name, shape in sights.declared.items():
            if isinstance(a[name], np.ndarray | np.generic):
                _require_declared(name, np.asarray(a[name]), np.asarray(b[name]), shape)
        for name in sights.names:
            value = a[name]
            if isinstance(value, np.ndarray | np.generic):
                found = np.asarray(b[name])
                _require_alike(name, value, found)
                tallies.setdefault(name, Tally()).add(np.asarray(value), found)
        picked += [count_selected(selector, a, b) for selector in sights.selectors]
    return tuple(tally.fidelity(name) for name, tally in tallies.items()), summed(picked)


def _require_alike(name: str, a: Array | np.generic, b: Array) -> None:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise CheckError(f"output '{name}' changed from {a.dtype}{list(a.shape)} to {b.dtype}{list(b.shape)}")


def _require_declared(name: str, a: Array, b: Array, shape: Shape | None) -> None:
    """Refuse another type or number of dimensions, or one of these that the model declares."""
    if a.dtype == b.dtype and a.ndim == b.ndim:
        sizes = zip(a.shape, b.shape, shape if shape is not None else (None,) * a.ndim, strict=False)
        if all(size is None or one == other for one, other, size in sizes):
            return
    _require_alike(name, a, b)


@contextmanager
def same_inputs(a: Path, b: Path, refusal: type[CheckError | UsageError]) -> Iterator[None]:
    """Let models that do not run on the same feeds in the block say which inputs they have, if those differ.

    Args:
        a: the file of the model whose feeds they are.
        b: that of the other.
        refusal: what is raised then.
    """
    try:
        yield
    except RunError as error:
        first, second = (input_specs(load(path).proto) for path in (a, b))
        apart = _apart(first, second), _apart(second, first)
        if not any(apart):
            raise
        own, other = (", ".join(each) or "none" for each in apart)
        raise refusal(f"the models have different inputs: {own} / {other}") from error


def _apart(specs: Sequence[InputSpec], others: Sequence[InputSpec]) -> list[str]:
    """The inputs that are not among the others: by name, or by type and shape where the name is."""
    by_name = {spec.name: spec for spec in others}
    return [
        f"{spec.name} {spec.dtype} {list(spec.shape or ())}" if spec.name in by_name else spec.name
        for spec in specs
        if spec.name not in by_name or not _alike(spec, by_name[spec.name])
    ]


def _alike(a: InputSpec, b: InputSpec) -> bool:
    """Whether feeds of one can be feeds of the other, as far as is declared."""
    if a.dtype != b.dtype or a.shape is None or b.shape is None:
        return a.dtype == b.dtype
    pairs = zip(a.shape, b.shape, strict=False)
    return len(a.shape) == len(b.shape) and all(None in pair or pair[0] == pair[1] for pair in pairs)


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far two models are apart; iterates over the outputs.

    An example is in docs/python.md under "Comparing".

    Attributes:
        inputs: what both ran on: "random", "feeds" or "samples".
        outputs: fidelity of each output of the first; in the place of one whose size depends on data, or that
            nothing here computes, of the last tensors before it that can be compared.
        selections: what both select where sizes depend on data.
        samples: where the samples lie; None where they are none, or lie in no file.
        note: one line on samples left out, and on what is compared elsewhere; None where there is nothing.
    """

    inputs: str
    outputs: tuple[Fidelity, ...]
    selections: tuple[Selection, ...] = ()
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
        return {
            "inputs": where,
            "outputs": [each.to_dict() for each in self.outputs],
            "selections": [each.to_dict() for each in self.selections],
            "note": self.note,
        }


@verified
def compare(
    a: Source,
    b: Source,
    feeds: SamplesLike | None = None,
    *,
    input_shapes: ShapesLike | None = None,
) -> Comparison:
    """Run two models in ONNX Runtime on the same inputs.

    An example is in docs/python.md under "Comparing".

    Args:
        a: the reference: a path, a ModelProto that holds all its data, or a result.
        b: the model judged against it; it must have the inputs of `a`.
        feeds: Samples, or a path to open them at; or feeds as `open_samples` takes them, each of which is a
            run of its own, whatever its batch; None makes up one set of random ones.
        input_shapes: for random inputs with unknown dimensions.

    Raises:
        ModelError, RunError, MissingExtraError: a model does not load or run.
        UsageError: the models have different inputs, the feeds do not fit, or random inputs cannot be made
            up for unknown dimensions.
        CheckError: an output is missing or changed its shape or type; where its size depends on data, what is
            declared of its shape.
    """
    # An input that is damaged is told apart from one that a runtime refuses.
    first, second = as_model(a, "a"), as_model(b, "b")
    shapes = as_input_shapes(input_shapes)
    samples: Samples | None = None
    runs: Iterable[Feeds]
    if feeds is None:
        inputs, runs = "random", [random_feeds(first.proto, shapes)]
    elif isinstance(feeds, Samples | str | os.PathLike):
        samples = as_samples(feeds, first, "feeds")
        inputs, runs = "samples", samples.batches(BATCH)
    else:
        inputs, runs = "feeds", _as_they_are(feeds, input_specs(first.proto))
    with on_disk(first) as here, on_disk(second) as there, same_inputs(here, there, UsageError):
        sights = find_sights(first.proto).within(second.proto)
        runners = open_seeing(here, sights), open_seeing(there, sights)
        outputs, picked = compare_outputs(
            ((runners[0].run(each), runners[1].run(each)) for each in runs), sights
        )
    path, note = (samples.path, samples.note) if samples is not None else (None, None)
    return Comparison(
        inputs=inputs,
        samples=path,
        outputs=outputs,
        selections=picked,
        note="; ".join(filter(None, (note, *sights.notes))) or None,
    )


def _as_they_are(feeds: Iterable[Any] | FeedReader | Dataset, specs: Sequence[InputSpec]) -> Iterator[Feeds]:
    """Feeds one by one, each a run of its own."""
    number = -1
    for number, feed in enumerate(feeds_of(feeds)):
        with naming("feeds"):
            name = f"feed {number}"
            arrays = conformed(feed_arrays(feed, specs, name), specs, name)
        yield arrays
    if number < 0:
        raise UsageError("`feeds`: there are none")
