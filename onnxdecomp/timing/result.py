"""What a bench found, as a value, as JSON and as a table of rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxdecomp.abridging import abridged
from onnxdecomp.errors import StoppedError
from onnxdecomp.timing.cells import Cell, cell_comparisons, cell_rows
from onnxdecomp.timing.layers import LayerTable


@abridged
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BenchResult:
    """How fast models are in several settings.

    An example is in docs/python.md under "Timing".

    Attributes:
        names: of the models.
        cells: per setting what was measured; those not reached are missing, the last may be unfinished.
        layers: layer by layer; None where that was not asked for or not reached.
        environment: the machine and what runs on it, JSON values.
        stopped: what interrupted the bench, None where it came to its end.
    """

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    layers: LayerTable | None
    environment: Mapping[str, Any] = field(repr=False)
    stopped: StoppedError | None

    @property
    def complete(self) -> bool:
        """Whether all that was asked for was measured."""
        return self.stopped is None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: {"environment", "rows", "comparisons", "complete"}, and "per_layer" where known.

        A row is a model in a setting, times in milliseconds and sizes in bytes; a comparison's ratio is
        time(a) / time(b).
        """
        document = {
            "environment": dict(self.environment),
            "rows": [row for cell in self.cells for row in cell_rows(cell)],
            "comparisons": [row for cell in self.cells for row in cell_comparisons(cell)],
            "complete": self.complete,
        }
        return document if self.layers is None else document | {"per_layer": self.layers.to_dict()}

    def to_csv(self) -> str:
        """One line per model and setting, its speed-up over the first model at the end; "" without any."""
        rows = [row for cell in self.cells for row in _lines(cell)]
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return text.getvalue()


def _lines(cell: Cell) -> list[dict[str, Any]]:
    itself: dict[str, float | None] = {"ratio": 1.0, "low": 1.0, "high": 1.0}
    found = [itself, *(each.to_dict() for each in cell.speedups())]
    return [
        row
        | {"provider_options": json.dumps(row["provider_options"])}
        | {"speedup" if name == "ratio" else f"speedup_{name}": value for name, value in own.items()}
        for row, own in zip(cell_rows(cell), found, strict=True)
    ]
