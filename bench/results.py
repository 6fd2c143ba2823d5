"""Where the figures go: `results/<question>-<device>-ort<version>.csv`, with the conditions beside it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxdecomp.runtime import environment

RESULTS = Path(__file__).parent / "results"


def earlier_rows(
    question: str, rows: Sequence[Mapping[str, Any]], key: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of the table as it was that `rows` do not stand for: long ones can be added one by one.

    Args:
        question: as `write_results` takes it.
        rows: measured now.
        key: the columns that say what a row is of.
    """
    measured = {tuple(str(row[name]) for name in key) for row in rows}
    found: list[dict[str, Any]] = []
    for path in RESULTS.glob(f"{question}-*.csv"):
        with path.open(newline="", encoding="utf-8") as stream:
            found += [
                row for row in csv.DictReader(stream) if tuple(row[name] for name in key) not in measured
            ]
    return found


def write_results(
    question: str, rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any], *, gpu: bool = False
) -> Path:
    """Write `rows` as CSV, and the environment and `options` as JSON beside it; returns the CSV's path.

    Args:
        question: what the figures answer, and for which model: the first part of the file's name.
        rows: one dict of the same keys for each.
        options: of the measurement.
        gpu: whether the device in the file's name is the GPU.
    """
    record = environment()
    device = record["gpus"][0]["name"] if gpu and record["gpus"] else record["cpu"]
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{question}-{slug}-ort{record['onnxruntime']}.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    conditions = json.dumps({"environment": record, "options": dict(options)}, indent=2)
    path.with_suffix(".json").write_text(conditions + "\n", encoding="utf-8")
    return path
