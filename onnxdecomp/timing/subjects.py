"""Models to measure, and what they are fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from onnxdecomp.errors import MissingExtraError, UsageError
from onnxdecomp.ir import InputShapes, batched_shapes, declared_shape, graph_inputs, load
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


def open_subjects(paths: Sequence[Path]) -> list[Subject]:
    """Load models for `measure`; those of one file name are told apart by their place.

    Raises:
        ModelError: a file is no ONNX model.
    """
    names = [path.name for path in paths]
    if len(set(map(Path.resolve, paths))) == len(paths) > len(set(names)):
        names = [str(path) for path in paths]
    loaded = [load(path) for path in paths]
    return [
        Subject(
            name=name if name not in names[:i] else f"{name} ({names[:i].count(name) + 1})",
            path=path,
            proto=model.proto,
            files=frozenset(model.files()),
        )
        for i, (name, path, model) in enumerate(zip(names, paths, loaded, strict=True))
    ]


def _require_inputs(subjects: Sequence[Subject], given: InputShapes) -> None:
    names = list(dict.fromkeys(value.name for each in subjects for value in graph_inputs(each.proto)))
    for name in given:
        if name not in names:
            raise UsageError(f"--input-shape {name}: no such input; there are {', '.join(names)}")


def _leaves_batch_open(subject: Subject) -> bool:
    declared = [declared_shape(value) for value in graph_inputs(subject.proto)]
    return any(shape is None or shape[:1] == (None,) for shape in declared)


def subject_feeds(
    subject: Subject, batch: int | None, given: InputShapes, data: Samples | None
) -> tuple[Feeds, int]:
    """One set of inputs for a model, and its batch: drawn from samples, else random."""
    own = {value.name for value in graph_inputs(subject.proto)}
    # A shape given for an input of one model only must not stop the others.
    shapes, size = batched_shapes(subject.proto, {n: s for n, s in given.items() if n in own}, batch)
    if data is None:
        known = {
            name: tuple(dim for dim in shape if dim is not None)
            for name, shape in shapes.items()
            if shape is not None and None not in shape
        }
        return random_feeds(subject.proto, known), size
    if len(data) < size:
        raise UsageError(f"--data has {len(data)} samples, too few for a batch of {size}")
    return next(data.batches(size)), size


def _halved(subject: Subject, path: Path) -> Path:
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise MissingExtraError(f"--precision fp16 needs onnxruntime.transformers: {error}") from error
    model = onnx.load(subject.path)
    onnx.save(convert_float_to_float16(model, keep_io_types=True), path)
    return path
