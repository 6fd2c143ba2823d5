"""How fast models are in ONNX Runtime, side by side, on each provider, batch and number of threads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from onnxdecomp.environment import environment
from onnxdecomp.errors import MissingExtraError, UsageError
from onnxdecomp.inputs import Feeds, random_feeds
from onnxdecomp.latency import (
    TURNS,
    WARMUP_RUNS,
    Budget,
    Contestant,
    Launch,
    Speedup,
    launches,
    medians,
    speedup,
)
from onnxdecomp.model import load
from onnxdecomp.providers import Provider
from onnxdecomp.samples import Samples
from onnxdecomp.shapes import InputShapes, batched_shapes, declared_shape, graph_inputs
from onnxdecomp.worker import Engine

PRECISIONS = ("fp32", "fp16")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where models are measured.

    Attributes:
        provider: the execution provider.
        options: of that provider.
        threads: of the CPU.
        batch: samples per run; None is what the models declare, or 1.
        precision: of the models' floats: "fp32" as they are, "fp16" converted.
    """

    provider: Provider
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    batch: int | None = None
    precision: str = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cell:
    """What is known of all models in one setting; it grows with every launch.

    Attributes:
        setting: where.
        batch: samples per run.
        assumed: whether nobody said so: the model leaves it open.
        names: of the models.
        sizes: of their files, bytes.
        launches: per model; `launches[0][i]` ran beside `launches[1][i]`.
        done: share of the measurement that is in.
    """

    setting: Setting
    batch: int
    assumed: bool
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    launches: tuple[tuple[Launch, ...], ...]
    done: float

    def speedups(self) -> list[Speedup]:
        """How much faster each of the other models is than the first."""
        first, *others = self.launches
        return [speedup(first, other) for other in others]


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


def settings(
    providers: Sequence[Provider],
    *,
    options: Mapping[str, str],
    threads: Sequence[int],
    batches: Sequence[int | None],
    precision: str = "fp32",
    cuda_graph: bool = False,
) -> list[Setting]:
    """Every combination; a GPU takes the first number of threads only.

    cuDNN's search is pinned to HEURISTIC, which is the same on every run, and TF32 is on as by ONNX Runtime's
    default, unless `options` say otherwise.

    Raises:
        UsageError: half precision or a CUDA graph is asked of a provider that has none.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: there are {', '.join(PRECISIONS)}")
    if options and all(each.short == "cpu" for each in providers):
        raise UsageError("--provider-option: the CPU provider has none")
    if precision == "fp16" and not all(each.gpu for each in providers):
        raise UsageError("--precision fp16 is for GPUs: on a CPU ONNX Runtime casts back to fp32")
    if cuda_graph and any(each.short != "cuda" for each in providers):
        raise UsageError("--cuda-graph is for --provider cuda")
    found = []
    for provider, batch in product(providers, batches):
        own = dict(options) if provider.short != "cpu" else {}
        if provider.short == "cuda":
            own = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "1"} | own
            own |= {"enable_cuda_graph": "1"} if cuda_graph else {}
        found += [
            Setting(provider=provider, options=own, threads=count, batch=batch, precision=precision)
            for count in (threads[:1] if provider.gpu else threads)
        ]
    return found


def measure(
    subjects: Sequence[Subject],
    setting: Setting,
    budget: Budget,
    *,
    input_shapes: InputShapes,
    data: Samples | None = None,
) -> Iterator[Cell]:
    """Time all models in turns in one setting; yields what is known after every launch.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        RunError: a model does not load or run.
        UsageError: the inputs' shapes are unknown, or `input_shapes`, the batch or the samples do not fit.
    """
    _require_inputs(subjects, input_shapes)
    inputs = [subject_feeds(each, setting.batch, input_shapes, data) for each in subjects]
    with tempfile.TemporaryDirectory() as scratch:
        paths = [
            each.path if setting.precision == "fp32" else _halved(each, Path(scratch) / f"{i}.onnx")
            for i, each in enumerate(subjects)
        ]
        contestants = [
            Contestant(path=path, feeds=feeds) for path, (feeds, _) in zip(paths, inputs, strict=True)
        ]
        sizes = tuple(
            sum(file.stat().st_size for file in (each.files if path == each.path else (path,)))
            for each, path in zip(subjects, paths, strict=True)
        )
        known: list[tuple[Launch, ...]] = []
        for found, done in launches(contestants, setting_engine(setting), budget):
            known.append(found)
            yield Cell(
                setting=setting,
                batch=inputs[0][1],
                assumed=setting.batch is None and not input_shapes and _leaves_batch_open(subjects[0]),
                names=tuple(each.name for each in subjects),
                sizes=sizes,
                launches=tuple(zip(*known, strict=True)),
                done=done,
            )


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


def setting_engine(setting: Setting) -> Engine:
    """How to run models in a setting: as a program would that knows nothing of their inputs' sizes."""
    return Engine(provider=setting.provider.name, options=dict(setting.options), threads=setting.threads)


def _halved(subject: Subject, path: Path) -> Path:
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise MissingExtraError(f"--precision fp16 needs onnxruntime.transformers: {error}") from error
    model = onnx.load(subject.path)
    onnx.save(convert_float_to_float16(model, keep_io_types=True), path)
    return path


def report(cells: Sequence[Cell]) -> dict[str, Any]:
    """The whole as JSON values: {"environment", "rows", "comparisons"}; ratio = time(a) / time(b)."""
    return {
        "environment": environment() | {"warmup_runs": WARMUP_RUNS, "turns": TURNS, "optimisation": "all"},
        "rows": [row for cell in cells for row in cell_rows(cell)],
        "comparisons": [
            {"a": cell.names[0], "b": name, **_place(cell), "speedup": _finite(found.to_dict())}
            for cell in cells
            for name, found in zip(cell.names[1:], cell.speedups(), strict=True)
        ],
    }


def cell_rows(cell: Cell) -> list[dict[str, Any]]:
    """One row per model: times in milliseconds, sizes in bytes."""
    rows = []
    for name, size, found in zip(cell.names, cell.sizes, cell.launches, strict=True):
        seconds = np.concatenate([launch.seconds for launch in found])
        copies = [launch.copies_s for launch in found if launch.copies_s is not None]
        peaks = [launch.peak_memory for launch in found if launch.peak_memory is not None]
        rows.append(
            {
                "model": name,
                **_place(cell),
                "provider_options": dict(cell.setting.options),
                "precision": cell.setting.precision,
                "tf32": _tf32(cell.setting),
                **_times(seconds),
                "throughput_per_s": cell.batch / medians(found),
                "runs": len(seconds),
                "launches": len(found),
                "load_ms": 1e3 * float(np.median([launch.load_s for launch in found])),
                "copies_ms": 1e3 * float(np.median(copies)) if copies else None,
                "peak_memory_bytes": max(peaks) if peaks else None,
                "file_bytes": size,
            }
        )
    return rows


def _place(cell: Cell) -> dict[str, Any]:
    return {"provider": cell.setting.provider.short, "threads": cell.setting.threads, "batch": cell.batch}


def _tf32(setting: Setting) -> bool | None:
    if setting.provider.short != "cuda" or setting.precision != "fp32":
        return None
    return setting.options.get("use_tf32") == "1"


def _times(seconds: NDArray[np.float64]) -> dict[str, float]:
    low, median, p90, p99 = (1e3 * float(v) for v in np.percentile(seconds, [0, 50, 90, 99]))
    return {"median_ms": median, "min_ms": low, "p90_ms": p90, "p99_ms": p99}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no infinity: of a single launch there is no interval."""
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
