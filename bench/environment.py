"""What a measurement was made on: without it a figure means nothing."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def cpu_name() -> str:
    """The processor's model name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        if found:
            return found.group(1).strip()
    if platform.system() == "Darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True
        )
        return asked.stdout.strip()
    return platform.processor() or platform.machine()


def vector_extensions() -> list[str]:
    """The vector instruction sets ONNX Runtime chooses its kernels by, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return sorted(flags & {"avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile", "asimd", "sve"})


def environment() -> dict[str, Any]:
    """The record that stands beside every result."""
    return {
        "cpu": cpu_name(),
        "isa": vector_extensions(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: version(name) for name in ("onnxruntime", "onnx", "tensorly", "numpy", "onnxdecomp")},
    }


def write_results(question: str, rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Path:
    """Write `rows` to `results/<question>-<cpu>-ort<version>.csv`, and the conditions as JSON beside it."""
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    stem = f"{question}-{cpu}-ort{version('onnxruntime')}"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{stem}.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    record = json.dumps({"environment": environment(), "options": dict(options)}, indent=2)
    path.with_suffix(".json").write_text(record + "\n", encoding="utf-8")
    return path
