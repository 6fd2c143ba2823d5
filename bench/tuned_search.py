"""What does tuning win back of what a search gives away?

Searches ranks for a goal of cost, tunes the model that was found, and judges both on test images, which
neither has seen: the same graph, so the same latency. `search --tune` does both in one go. Minutes are those
of the search and of the tuning together.

Rows that an earlier run has measured, of other models, goals or images, stay in the table. The networks and
images lie in a folder `shared` beside the checkout, or in --data-folder; models of the corpus are fetched.
Run it on a quiet machine: searches time what they find, and what is won in a given time depends on it.

    python -m bench.tuned_search [--models NAME …] [--goal macs 0.5] [--images 256 …] [--time-limit 600]
        [--data-folder FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import onnxdecomp
from bench.quality import DATA_FOLDER
from bench.results import earlier_rows, write_results
from bench.rivals import table
from bench.subjects import MODELS, Subject, open_subject
from bench.tune import told
from onnxdecomp import Goal, SampleSets, Tuning
from onnxdecomp.comparing import Quality

Row = dict[str, Any]

QUESTION = "tuned-search"
KEY = ("model", "goal", "images")


def measure(subject: Subject, goal: Goal, limit: float, folder: Path) -> Row:
    """The row of one model, goal and number of images."""
    pool = subject.images.fitted
    began = time.perf_counter()
    sets = SampleSets.draw(pool, tuned=True)
    cost = "macs" if goal.counted else "measured"
    found = onnxdecomp.search(subject.path, goal, samples=sets, cost=cost, input_shapes=subject.shapes)
    found.save(folder / "found.onnx")
    searched = time.perf_counter()
    tuned = onnxdecomp.tune(
        subject.path,
        folder / "found.onnx",
        sets,
        tuning=Tuning(time_limit=limit),
        progress=told(subject.name),
    )
    tuned.save(folder / "tuned.onnx")
    done = time.perf_counter()
    best = found.best
    assert best is not None
    speed = best.speedup
    qualities = {"found": subject.judge(folder / "found.onnx"), "tuned": subject.judge(folder / "tuned.onnx")}
    return {
        "model": subject.name,
        "goal": f"{goal.kind} {goal.value:g}",
        "images": len(pool),
        "tested": len(subject.images.tested),
        "speedup": "" if speed is None else round(speed.ratio, 3),
        **figures(qualities, subject.classes),
        "search_minutes": round((searched - began) / 60, 2),
        "minutes": round((done - began) / 60, 2),
        "steps": tuned.steps,
        "improved": int(tuned.improved),
    }


def figures(qualities: dict[str, Quality], classes: bool) -> Row:
    """How far the models are from the original on the test images, and, with classes, how often right."""
    row: Row = {}
    for name, quality in qualities.items():
        errors = [output.relative_l2 for output in quality.outputs if output.relative_l2 is not None]
        row[f"error_{name}"] = round(float(np.mean(errors)), 4)
        row[f"agreement_{name}"] = round(quality.outputs[0].top1_agreement or 0.0, 4) if classes else ""
        row[f"top1_{name}"] = round(quality.accuracy[1], 4) if quality.accuracy else ""
        row["top1_original"] = round(quality.accuracy[0], 4) if quality.accuracy else ""
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--goal", nargs=2, metavar=("KIND", "VALUE"), help="default: a speed-up, by model")
    parser.add_argument("--images", nargs="+", type=int, default=[None], help="default: by model")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds of tuning")
    parser.add_argument("--data-folder", type=Path, default=DATA_FOLDER, help=f"default: {DATA_FOLDER}")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.models:
        kind, value = arguments.goal or ("speedup", str(MODELS[name].speedups[0]))
        goal = Goal(kind, float(value))
        for count in arguments.images:
            subject = open_subject(name, arguments.data_folder, count, None)
            with tempfile.TemporaryDirectory() as scratch:
                row = measure(subject, goal, arguments.time_limit, Path(scratch))
            rows.append({**row, "time_limit": arguments.time_limit})
            print(table(rows[-1:]), flush=True)
            rest = earlier_rows(QUESTION, rows, KEY)
            everything = sorted([*rows, *rest], key=lambda each: [str(each[name]) for name in KEY])
            print(write_results(QUESTION, everything, {"threads": 1, "batch": 1}), flush=True)


if __name__ == "__main__":
    main()
