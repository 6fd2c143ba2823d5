"""How fast models are in one setting, side by side."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.abridging import abridged
from onnxdecomp.ir import scratch_folder
from onnxdecomp.timing.copies import halved
from onnxdecomp.timing.racing import Budget, Contestant, launches
from onnxdecomp.timing.setting import Setting, setting_engine
from onnxdecomp.timing.stats import Launch, Speedup, medians, speedup
from onnxdecomp.timing.subjects import Lineup


@abridged
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


def measure_cell(lineup: Lineup, setting: Setting, budget: Budget) -> Generator[Cell, None, None]:
    """Time all models in turns in one setting; yields what is known after every launch.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        RunError: a model does not load or run.
        UsageError: the inputs' shapes are unknown, or shapes, batch or samples do not fit.
    """
    subjects, inputs = lineup.subjects, lineup.feeds(setting.batch)
    with scratch_folder() as scratch:
        paths = [
            each.path if setting.precision == "fp32" else halved(each, scratch / f"{i}.onnx")
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
                assumed=setting.batch is None and lineup.assumes_batch(),
                names=lineup.names,
                sizes=sizes,
                launches=tuple(zip(*known, strict=True)),
                done=done,
            )


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


def cell_comparisons(cell: Cell) -> list[dict[str, Any]]:
    """One row per model but the first; ratio = time(a) / time(b)."""
    return [
        {"a": cell.names[0], "b": name, **_place(cell), "speedup": found.to_dict()}
        for name, found in zip(cell.names[1:], cell.speedups(), strict=True)
    ]


def _place(cell: Cell) -> dict[str, Any]:
    return {"provider": cell.setting.provider.short, "threads": cell.setting.threads, "batch": cell.batch}


def _tf32(setting: Setting) -> bool | None:
    if setting.provider.short != "cuda" or setting.precision != "fp32":
        return None
    return setting.options.get("use_tf32") == "1"


def _times(seconds: NDArray[np.float64]) -> dict[str, float]:
    low, median, p90, p99 = (1e3 * float(v) for v in np.percentile(seconds, [0, 50, 90, 99]))
    return {"median_ms": median, "min_ms": low, "p90_ms": p90, "p99_ms": p99}
