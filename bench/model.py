"""How much smaller and faster does one rank make a whole network?

Rewrites the corpus and the exported networks at one rank, asserts that the rewritten model passes the check,
counts layout conversions, and times both models in turns on this CPU, at each batch and number of threads.
Multiply-accumulates are those of a batch of 1. A file whose batch is fixed runs at that one only.

    python -m bench.model [--rank 0.25] [--batches 1,8] [--threads 1,2] [--duration 5 | --runs 50] [NAME …]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxdecomp
from bench.results import write_results
from models import NETWORKS, export, fetch, names
from onnxdecomp.comparing import Baseline, baseline, check
from onnxdecomp.ir import InputShapes, batched_shapes, load
from onnxdecomp.runtime import Engine, Feeds, open_in_onnxruntime, placement
from onnxdecomp.timing import WARMUP_RUNS, Budget, Contestant, Launch, medians, race, speedup

Row = dict[str, Any]

# Inputs whose dimensions the file leaves open.
SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "nudenet_yolov8n_320": {"images": (1, 3, 320, 320)},
    "ppocrv4_det_mobile": {"x": (1, 3, 640, 640)},
    "ppocrv4_rec_mobile": {"x": (1, 3, 48, 320)},
    "silero_vad_if": {"input": (1, 512), "state": (2, 1, 128)},
    "silero_vad_16k_op15": {"input": (1, 512), "state": (2, 1, 128)},
}


def model_path(name: str, scratch: Path, dynamic_batch: bool = False) -> Path:
    """The file of a corpus model, or of a network exported into `scratch`."""
    if name in {network.name for network in NETWORKS}:
        return export(name, scratch / f"{name}.onnx", dynamic_batch=dynamic_batch)
    return fetch(name)


def measure(
    name: str, rank: str, batches: Sequence[int], threads: Sequence[int], budget: Budget, scratch: Path
) -> Iterator[Row]:
    """A row for `name` at each batch and number of threads; none where the rank selects nothing."""
    path, out = model_path(name, scratch, batches != [1]), scratch / "rewritten.onnx"
    try:
        result = onnxdecomp.rewrite(path, rank, input_shapes=SHAPES.get(name, {}))
    except onnxdecomp.NothingSelectedError as error:
        print(f"{name}: {error}")
        return
    result.save(out)
    layouts = layout_row(path, out)
    for batch, shapes in batches_of(name, path, batches).items():
        checked = check_at(name, shapes, path, out)
        if checked is None:
            continue
        feeds, worst = checked
        pair = [Contestant(path=each, feeds=feeds) for each in (path, out)]
        for count in threads:
            a, b = race(pair, Engine(threads=count), budget)
            yield {
                "model": name,
                "rank": rank,
                "batch": batch,
                "threads": count,
                **cost_row(result),
                **time_row(a, b),
                **layouts,
                "worst_relative_l2_random_input": worst,
            }


def batches_of(name: str, path: Path, batches: Sequence[int]) -> dict[int, InputShapes]:
    """The inputs' shapes at each batch; a file whose batch is fixed has only that one, and a line says so."""
    proto, given = load(path).proto, SHAPES.get(name, {})
    found: dict[int, InputShapes] = {}
    for batch in batches:
        try:
            shapes, size = batched_shapes(proto, given, batch)
        except onnxdecomp.UsageError as error:
            print(f"{name}: {error}")
            shapes, size = batched_shapes(proto, given, None)
        found[size] = {key: tuple(dim or 0 for dim in shape) for key, shape in shapes.items() if shape}
    return found


def check_at(name: str, shapes: InputShapes, path: Path, out: Path) -> tuple[Feeds, float] | None:
    """Inputs of those shapes on which `out` passes the check, and the worst relative L2 of its outputs.

    None, and a line that says so, where ONNX Runtime does not run the original on them.
    """
    standard: Baseline = baseline(load(path), shapes)
    if standard.outputs is None or standard.opener is not open_in_onnxruntime:
        given = " ".join(f"{key}:{','.join(map(str, shape))}" for key, shape in shapes.items())
        print(f"{name}: ONNX Runtime does not run the original on {given}")
        return None
    outcome = check(standard, out)
    if outcome.status != "passed" or standard.feeds is None:
        raise SystemExit(f"{name}: {outcome.status}: {outcome.reason}")
    return standard.feeds, max(fidelity.relative_l2 or 0.0 for fidelity in outcome.outputs)


def cost_row(result: onnxdecomp.Result) -> Row:
    """What was rewritten, and what it saves."""
    totals = result.totals
    return {
        "convs": len(result.sites),
        "rewritten": len(result.plan.sites),
        "params_before": totals.params[0],
        "params_after": totals.params[1],
        "macs_before": totals.macs[0],
        "macs_after": totals.macs[1],
        "bytes_before": totals.nbytes[0],
        "bytes_after": totals.nbytes[1],
    }


def time_row(before: Sequence[Launch], after: Sequence[Launch]) -> Row:
    """Milliseconds per run, and their ratio."""
    gain = speedup(before, after)
    return {
        "median_ms_before": round(1e3 * medians(before), 4),
        "median_ms_after": round(1e3 * medians(after), 4),
        "speedup": round(gain.ratio, 3),
        "speedup_low": round(gain.low, 3),
        "speedup_high": round(gain.high, 3),
    }


def layout_row(path: Path, out: Path) -> Row:
    """How many Convs run outside the blocked layout, and what converts between the layouts."""
    before, after = placement(path), placement(out)
    return {
        "convs_outside_nchwc_before": len(before.plain),
        "convs_outside_nchwc_after": len(after.plain),
        "reorders_before": before.reorders,
        "reorders_after": after.reorders,
    }


def line(row: Row) -> str:
    """A row in short."""
    return (
        f"{row['model']}, batch {row['batch']}, threads {row['threads']}: "
        f"{row['rewritten']} of {row['convs']} Convs, "
        f"{row['median_ms_before']:.2f} → {row['median_ms_after']:.2f} ms, {row['speedup']:.2f}× "
        f"[{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
    )


def numbers(text: str) -> list[int]:
    """`"1,8"` as [1, 8]: the type of an option."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--rank", default="0.25")
    parser.add_argument("--batches", type=numbers, default=[1], metavar="N,…", help="default: 1")
    parser.add_argument("--threads", type=numbers, default=[1], metavar="N,…", help="default: 1")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of timed runs of each model")
    parser.add_argument("--runs", type=int, help="timed runs of each model at least; then no duration")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    budget = Budget(duration=arguments.duration, runs=arguments.runs)
    chosen = arguments.names or [*names(), *(network.name for network in NETWORKS)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in chosen:
            for row in measure(
                name, arguments.rank, arguments.batches, arguments.threads, budget, Path(scratch)
            ):
                rows.append(row)
                print(line(row), flush=True)
    options = {
        "provider": "CPUExecutionProvider",
        "threads": arguments.threads,
        "batches": arguments.batches,
        "warmup_runs": WARMUP_RUNS,
        "budget": asdict(budget),
    }
    question = f"model-rank{arguments.rank}"
    print(write_results("-".join([question, *chosen]) if len(chosen) == 1 else question, rows, options))


if __name__ == "__main__":
    main()
