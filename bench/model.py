"""How much smaller and faster does one rank make a whole network?

Rewrites the corpus and the exported networks at one rank, asserts that the rewritten model passes the check
and that no layout conversion was added, and times both models in turns on one thread of this CPU.

    python -m bench.model [--rank 0.25] [--runs 50] [NAME …]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import onnxdecomp
from bench.environment import write_results
from models import NETWORKS, export, fetch, names
from onnxdecomp.check import Baseline, baseline, check
from onnxdecomp.latency import WARMUP_RUNS, placement, race

# Inputs whose dimensions the file leaves open.
SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "nudenet_yolov8n_320": {"images": (1, 3, 320, 320)},
    "ppocrv4_det_mobile": {"x": (1, 3, 640, 640)},
    "ppocrv4_rec_mobile": {"x": (1, 3, 48, 320)},
    "silero_vad_if": {"input": (1, 512), "state": (2, 1, 128)},
    "silero_vad_16k_op15": {"input": (1, 512), "state": (2, 1, 128)},
}


def model_path(name: str, scratch: Path) -> Path:
    """The file of a corpus model, or of a network exported into `scratch`."""
    if name in {network.name for network in NETWORKS}:
        return export(name, scratch / f"{name}.onnx")
    return fetch(name)


def measure(name: str, rank: str, runs: int, scratch: Path) -> dict[str, Any] | None:
    """One row: `name` before and after, or None where the rank selects nothing."""
    path, out = model_path(name, scratch), scratch / "rewritten.onnx"
    shapes = SHAPES.get(name, {})
    try:
        result = onnxdecomp.rewrite(path, rank, input_shapes=shapes)
    except onnxdecomp.NothingSelectedError as error:
        print(f"{name}: {error}")
        return None
    result.save(out)
    standard: Baseline = baseline(path, shapes)
    outcome = check(standard, out)
    if outcome.status != "passed" or standard.feeds is None:
        raise SystemExit(f"{name}: {outcome.status}: {outcome.reason}")
    before, after = placement(path), placement(out)
    timed = race(path, out, standard.feeds, runs)
    low, high = timed.interval()
    params, macs, nbytes = result.totals.params, result.totals.macs, result.totals.nbytes
    return {
        "model": name,
        "rank": rank,
        "convs": len(result.sites),
        "rewritten": len(result.plan.sites),
        "params_before": params[0],
        "params_after": params[1],
        "macs_before": macs[0],
        "macs_after": macs[1],
        "bytes_before": nbytes[0],
        "bytes_after": nbytes[1],
        "median_ms_before": round(1e3 * float(np.median(timed.a)), 4),
        "median_ms_after": round(1e3 * float(np.median(timed.b)), 4),
        "speedup": round(timed.speedup, 3),
        "speedup_low": round(low, 3),
        "speedup_high": round(high, 3),
        "convs_outside_nchwc_before": len(before.plain),
        "convs_outside_nchwc_after": len(after.plain),
        "reorders_before": before.reorders,
        "reorders_after": after.reorders,
        "worst_relative_l2_random_input": max(f.relative_l2 or 0.0 for f in outcome.outputs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--rank", default="0.25")
    parser.add_argument("--runs", type=int, default=50)
    arguments = parser.parse_args()
    chosen = arguments.names or [*names(), *(network.name for network in NETWORKS)]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in chosen:
            row = measure(name, arguments.rank, arguments.runs, Path(scratch))
            if row is not None:
                rows.append(row)
                print(
                    f"{name}: {row['rewritten']} of {row['convs']} Convs, "
                    f"{row['median_ms_before']:.2f} → {row['median_ms_after']:.2f} ms, {row['speedup']:.2f}× "
                    f"[{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
                )
    options = {
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "warmup_runs": WARMUP_RUNS,
        "runs": arguments.runs,
    }
    print(write_results(f"model-rank{arguments.rank}", rows, options))


if __name__ == "__main__":
    main()
