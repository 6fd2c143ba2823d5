"""Does a search keep its word?

Asks for the same speed-up of every file of the corpus, and times what was written by a plain program that
shares no code with the search. A goal is either met, or the command exits with 1 and writes nothing.

    python -m bench.goals [--speedup 1.2] [NAME …]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.model import SHAPES, model_path
from bench.plain import PROCESSES, plain_seconds
from bench.results import write_results
from models import names
from onnxdecomp.ir import load
from onnxdecomp.runtime import random_feeds


def ask(name: str, speedup: float, scratch: Path) -> dict[str, Any]:
    """One row: what the search said of `name`, and what the plain program finds."""
    path, out = model_path(name, scratch), scratch / f"{name}-fast.onnx"
    shapes = SHAPES.get(name, {})
    given = [f"--input-shape={key}:{','.join(map(str, dims))}" for key, dims in shapes.items()]
    command = [sys.executable, "-m", "onnxdecomp", "search", str(path), str(out)]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, f"--speedup={speedup}", *given], capture_output=True, text=True, check=False
    )
    row: dict[str, Any] = {
        "model": name,
        "goal": speedup,
        "exit": done.returncode,
        "written": out.exists(),
        "seconds": round(time.perf_counter() - began, 1),
        "plain_speedup": None,
        "keeps_its_word": done.returncode != 0 and not out.exists(),
        "message": done.stderr.strip().removeprefix("onnxdecomp: "),
    }
    if out.exists():
        feeds = random_feeds(load(path).proto, shapes)
        before, after = plain_seconds(path, out, feeds)
        row["plain_speedup"] = round(before / after, 3)
        row["keeps_its_word"] = done.returncode == 0 and before / after >= speedup
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: the corpus")
    parser.add_argument("--speedup", type=float, default=1.2)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.names or names():
            row = ask(name, arguments.speedup, Path(scratch))
            rows.append(row)
            figure = f"{row['plain_speedup']:.2f}×" if row["plain_speedup"] else row["message"]
            kept = "kept" if row["keeps_its_word"] else "BROKEN"
            print(f"{name}: exit {row['exit']}, {row['seconds']:.0f} s, {kept}: {figure}", flush=True)
    print(write_results(f"goals-speedup{arguments.speedup:g}", rows, {"processes": PROCESSES}))


if __name__ == "__main__":
    main()
