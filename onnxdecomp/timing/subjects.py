"""Models to measure, and what they are fed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from onnx import ModelProto

from onnxdecomp.errors import UsageError
from onnxdecomp.ir import InputShapes, Model, Shape, batched_shapes, declared_shape, graph_inputs, load
from onnxdecomp.runtime import Feeds, random_feeds
from onnxdecomp.sampling import Samples

Source = Model | str | os.PathLike[str]


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


def open_subjects(sources: Sequence[Source]) -> list[Subject]:
    """Models to measure; those of one file name are told apart by their place.

    Args:
        sources: files, each of which is read once however often it is named, or models read from files.

    Raises:
        ModelError: a file is no ONNX model.
        UsageError: there is none, or a model has no file.
    """
    if not sources:
        raise UsageError("`models` is empty: name one or more")
    places = dict.fromkeys(Path(source) for source in sources if not isinstance(source, Model))
    read = {path: load(path) for path in places}
    models = [source if isinstance(source, Model) else read[Path(source)] for source in sources]
    paths = [model.path for model in models if model.path is not None]
    if len(paths) < len(models):
        raise UsageError("a model is timed by its file, and one of `models` has none: save it first")
    return [
        Subject(name=name, path=path, proto=model.proto, files=frozenset(model.files()))
        for name, path, model in zip(_names(paths), paths, models, strict=True)
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
