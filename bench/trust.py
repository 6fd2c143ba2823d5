"""Can the bench be believed?

Times a rewritten ResNet-18 against itself, ten times over; against a copy with one Conv doubled; against
the original twice; the same by a plain program that shares no code with the bench, one process per model; and
sums the layers of a profile. What must come out: no difference, a difference, one ratio, the same ratio, the
session's time.

    python -m bench.trust [--duration 3] [--trials 10] [--threads 1]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

import onnxdecomp
from bench.plain import plain_seconds
from bench.results import write_results
from models import export
from onnxdecomp.ir import load
from onnxdecomp.runtime import Engine, Feeds, random_feeds
from onnxdecomp.timing import Budget, Contestant, medians, open_subjects, profile, race, speedup

NETWORK = "resnet18"


def doubled(path: Path, out: Path) -> Path:
    """A copy that runs one of the middle Convs twice, the second time to no purpose but an output."""
    model = onnx.load(path)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    wide = max(convs, key=lambda node: "core" in node.name)
    copy = model.graph.node.add()
    copy.CopyFrom(wide)
    copy.name, copy.output[0] = "twin", "twin"
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("twin"))
    onnx.save(model, out)
    return out


def compare(a: Path, b: Path, feeds: Feeds, arguments: argparse.Namespace) -> dict[str, Any]:
    """One comparison by the bench."""
    budget = Budget(duration=arguments.duration)
    contestants = [Contestant(path=path, feeds=feeds) for path in (a, b)]
    first, second = race(contestants, Engine(threads=arguments.threads), budget)
    found = speedup(first, second)
    return {
        "median_ms_a": round(1e3 * medians(first), 4),
        "median_ms_b": round(1e3 * medians(second), 4),
        "ratio": round(found.ratio, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
        "holds": None,
    }


def plain_ratio(a: Path, b: Path, feeds: Feeds, threads: int) -> dict[str, Any]:
    """The ratio by the plain program."""
    first, second = plain_seconds(a, b, feeds, threads)
    row = {"median_ms_a": round(1e3 * first, 4), "median_ms_b": round(1e3 * second, 4)}
    return row | {"ratio": round(first / second, 4), "low": None, "high": None, "holds": None}


def rows(arguments: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """All questions in turn; `holds` says whether the answer is as it must be."""
    original = export(NETWORK, scratch / "original.onnx")
    rewritten = scratch / "rewritten.onnx"
    onnxdecomp.rewrite(original, 0.25).save(rewritten)
    feeds = random_feeds(load(original).proto, {})
    for i in range(arguments.trials):
        row = compare(rewritten, rewritten, feeds, arguments)
        yield {"question": f"itself {i + 1}"} | row | {"holds": row["low"] <= 1 <= row["high"]}
    row = compare(doubled(rewritten, scratch / "doubled.onnx"), rewritten, feeds, arguments)
    yield {"question": "one Conv doubled"} | row | {"holds": row["low"] > 1}
    twice = [compare(original, rewritten, feeds, arguments) for _ in range(2)]
    agree = twice[0]["low"] <= twice[1]["high"] and twice[1]["low"] <= twice[0]["high"]
    for i, row in enumerate(twice):
        yield {"question": f"the original, run {i + 1}"} | row | {"holds": agree}
    plain = plain_ratio(original, rewritten, feeds, arguments.threads)
    near = abs(plain["ratio"] / twice[0]["ratio"] - 1) <= 0.05
    yield {"question": "the original, by a plain program"} | plain | {"holds": near}
    paths, engine = [original, rewritten], Engine(threads=arguments.threads)
    for path, found, ms in zip(
        paths,
        profile(open_subjects(paths), engine, [feeds] * 2),
        (twice[0]["median_ms_a"], twice[0]["median_ms_b"]),
        strict=True,
    ):
        share = 1e3 * found.seconds / ms
        yield {
            "question": f"layers of {path.stem} over its session",
            "median_ms_a": round(1e3 * found.seconds, 4),
            "median_ms_b": ms,
            "ratio": round(share, 4),
            "low": None,
            "high": None,
            "holds": abs(share - 1) <= 0.1,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--duration", type=float, default=3.0, help="seconds per model and comparison")
    parser.add_argument("--trials", type=int, default=10, help="of the model against itself")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows(arguments, Path(scratch)):
            found.append(row)
            interval = "" if row["low"] is None else f"  [{row['low']:.4f}, {row['high']:.4f}]"
            verdict = "as it must be" if row["holds"] else "NOT as it must be"
            print(f"{row['question']:40} {row['ratio']:.4f}{interval}  {verdict}", flush=True)
    print(write_results(f"trust-{NETWORK}-threads{arguments.threads}", found, vars(arguments)))


if __name__ == "__main__":
    main()
