"""What tuning came to."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import PathLike, verified
from onnxdecomp.errors import StoppedError
from onnxdecomp.ir import Model, staged


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far a tensor is from the original's on samples held out, before tuning and after.

    An example is in docs/python.md under "Tuning".

    Attributes:
        name: of the tensor.
        before: ‖a − b‖ / ‖a‖; None where a is zero, or where something is not finite.
        after: likewise; of the model as it was tuned, whether that is kept or not.
    """

    name: str
    before: float | None
    after: float | None

    def to_dict(self) -> dict[str, Any]:
        """The entry of this tensor in the JSON report."""
        return {"name": self.name, "before": self.before, "after": self.after}


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TuneResult:
    """The outcome of tuning; taken wherever a model is.

    An example is in docs/python.md under "Tuning".

    Attributes:
        tuned: the new model with the folder of its external data; the one that was given where tuning did
            not bring its outputs nearer to the original's.
        improved: whether it did.
        outputs: the gap of each output; scores in front of a final Softmax in the place of what comes of it.
        inner: the gap of each tensor behind an activation or a residual Add, in the order of the graph.
        agreement: share of the samples held out whose best class is the original's, before and after; None
            without an output of one score per class.
        accuracy: share of them whose class is found, by the original, before, and after; None without labels.
        trained: names of the initialisers that were trained.
        samples: how many were trained on, and how many held out.
        steps: how many were made.
        seconds: how long it took.
        curve: steps made, and the error on the samples held out that chose the best state, at every look.
        notes: one line each on what could not be trained, or went otherwise than meant.
        sources: files of both models, which `save` never overwrites.
        interrupted: by what, where a signal or `progress` ended it early; else None.
    """

    tuned: Model
    improved: bool
    outputs: tuple[Gap, ...]
    inner: tuple[Gap, ...]
    agreement: tuple[float, float] | None
    accuracy: tuple[float, float, float] | None
    trained: tuple[str, ...]
    samples: tuple[int, int]
    steps: int
    seconds: float
    curve: tuple[tuple[int, float], ...]
    notes: tuple[str, ...]
    sources: frozenset[Path]
    interrupted: StoppedError | None = None

    @property
    def model(self) -> ModelProto:
        """The new model with all its data inside.

        Raises:
            UsageError: it would be larger than a ModelProto can be, 2 GB; write it with `save`.
        """
        return self.tuned.whole()

    def as_model(self) -> Model:
        """The new model as other functions take it, its external data where they are."""
        return self.tuned

    @verified
    def save(self, path: PathLike) -> None:
        """Write the new model, whole or not at all; external data go to `<path>.data`.

        Raises:
            OutputError: the folder is missing, read-only or full.
            UsageError: `path` is a folder, or belongs to one of the models that were given.
        """
        with self.staged(path):
            pass

    @verified
    @contextlib.contextmanager
    def staged(self, path: PathLike, keep: Set[Path] | Sequence[Path] = ()) -> Iterator[Path]:
        """Write the new model beside `path`, and move it there when the block succeeds.

        Args:
            path: where it shall stand in the end.
            keep: other files that must not be overwritten.

        Raises:
            OutputError, UsageError: as `save`.
        """
        with staged(self.tuned, Path(path), {*self.sources, *keep}) as candidate:
            yield candidate

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        fitted, held_out = self.samples
        return {
            "improved": self.improved,
            "complete": self.interrupted is None,
            "fitted_samples": fitted,
            "held_out_samples": held_out,
            "steps": self.steps,
            "seconds": self.seconds,
            "trained": list(self.trained),
            "outputs": [gap.to_dict() for gap in self.outputs],
            "inner": [gap.to_dict() for gap in self.inner],
            "agreement": _named(("before", "after"), self.agreement),
            "accuracy": _named(("original", "before", "after"), self.accuracy),
            "curve": [
                # JSON has no infinity.
                {"steps": steps, "error": error if math.isfinite(error) else None}
                for steps, error in self.curve
            ],
            "notes": list(self.notes),
        }


def _named(names: Sequence[str], values: Sequence[float] | None) -> dict[str, float] | None:
    return None if values is None else dict(zip(names, values, strict=True))
