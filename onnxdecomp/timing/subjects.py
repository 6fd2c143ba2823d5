"""Models to measure, and what they are fed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from onnx import ModelProto

from onnxdecomp.errors import UsageError
from onnxdecomp.ir import (
    InputShapes,
    Model,
    Shape,
    Source,
    as_model,
    batched_shapes,
    declared_shape,
    graph_inputs,
    load,
    save,
    scratch_folder,
)
from onnxdecomp.runtime import Feeds, random_feeds
from onnxdecomp.sampling import Samples


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """A model to measure.

    Attributes:
        name: in reports.
        path: its file.
        proto: what is in it, without its external data.
        files: all that it consists of.
    """

    name: str
    path: Path
    proto: ModelProto
    files: frozenset[Path]


@contextmanager
def in_files(sources: Sequence[Source]) -> Iterator[list[Model]]:
    """Models as they lie in files; those that lie in none are written to one that is gone after the block.

    Args:
        sources: files, each of which is read once however often it is named, and other models.

    Raises:
        ModelError: a file is no ONNX model.
    """
    files = dict.fromkeys(Path(source) for source in sources if isinstance(source, str | os.PathLike))
    read = {path: as_model(path, "models") for path in files}
    with scratch_folder(".onnxdecomp.") as folder:
        models = []
        for number, source in enumerate(sources, 1):
            if isinstance(source, str | os.PathLike):
                model = read[Path(source)]
            else:
                model = as_model(source, "models")
            if model.path is None:
                save(model, folder / f"model {number}")
                model = load(folder / f"model {number}")
            models.append(model)
        yield models


def open_subjects(models: Sequence[Model | Path]) -> list[Subject]:
    """Models to measure; those of one file name are told apart by their place.

    Args:
        models: in files, or the files.

    Raises:
        ModelError: a file is no ONNX model.
        UsageError: there is none.
    """
    if not models:
        raise UsageError("`models` is empty: name one or more")
    found = [each if isinstance(each, Model) else load(each) for each in models]
    pairs = [(model.path, model) for model in found if model.path is not None]
    paths = [path for path, _ in pairs]
    return [
        Subject(name=name, path=path, proto=model.proto, files=frozenset(model.files()))
        for name, (path, model) in zip(_names(paths), pairs, strict=True)
    ]


def _names(paths: Sequence[Path]) -> list[str]:
    names = [path.name for path in paths]
    if len(set(map(Path.resolve, paths))) == len(paths) > len(set(names)):
        names = [str(path) for path in paths]
    return [
        name if name not in names[:i] else f"{name} ({names[:i].count(name) + 1})"
        for i, name in enumerate(names)
    ]


def subject_shapes(
    subject: Subject, batch: int | None, given: InputShapes
) -> tuple[dict[str, Shape | None], int]:
    """The shape of every input for runs of `batch` samples, and the batch that comes of it.

    Raises:
        UsageError: the model contradicts `given` or `batch`.
    """
    own = {value.name for value in graph_inputs(subject.proto)}
    # A shape given for an input of one model only must not stop the others.
    return batched_shapes(subject.proto, {n: s for n, s in given.items() if n in own}, batch)


def subject_feeds(
    subject: Subject, batch: int | None, given: InputShapes, data: Samples | None
) -> tuple[Feeds, int]:
    """One set of inputs for a model, and its batch: drawn from samples, else random.

    Raises:
        UsageError: as `subject_shapes`, or a shape remains unknown, or there are too few samples.
    """
    shapes, size = subject_shapes(subject, batch, given)
    if data is None:
        known = {
            name: tuple(dim for dim in shape if dim is not None)
            for name, shape in shapes.items()
            if shape is not None and None not in shape
        }
        return random_feeds(subject.proto, known), size
    if len(data) < size:
        raise UsageError(f"`samples` has {len(data)} samples, too few for a batch of {size}")
    return next(data.batches(size)), size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lineup:
    """Models that are timed side by side, and what they are fed.

    Attributes:
        subjects: the models.
        input_shapes: for inputs with unknown dimensions.
        samples: what the models are fed; None is random inputs.
    """

    subjects: tuple[Subject, ...]
    input_shapes: InputShapes
    samples: Samples | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models."""
        return tuple(each.name for each in self.subjects)

    def feeds(self, batch: int | None) -> list[tuple[Feeds, int]]:
        """Per model one set of inputs, and its batch.

        Raises:
            UsageError: as `subject_feeds`.
        """
        return [subject_feeds(each, batch, self.input_shapes, self.samples) for each in self.subjects]

    def assumes_batch(self) -> bool:
        """Whether nobody says what the batch is: no shape is given, and the first model leaves it open."""
        declared = [declared_shape(value) for value in graph_inputs(self.subjects[0].proto)]
        return not self.input_shapes and any(shape is None or shape[:1] == (None,) for shape in declared)

    def require_shapes(self, batches: Sequence[int | None]) -> None:
        """Refuse, before any work is done, shapes and batches that do not fit the models.

        Raises:
            UsageError: a shape is that of no model's input, or a model contradicts a shape or a batch.
        """
        names = dict.fromkeys(v.name for each in self.subjects for v in graph_inputs(each.proto))
        for name in self.input_shapes:
            if name not in names:
                raise UsageError(f"`input_shapes` {name}: no such input; there are {', '.join(names)}")
        for batch, subject in product(dict.fromkeys(batches), self.subjects):
            subject_shapes(subject, batch, self.input_shapes)
