"""How fast a model is by a program that anyone would write first: it shares no code with the bench."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from onnxdecomp.runtime import Feeds

PROCESSES = 7
PROGRAM = """
import sys, time, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = dict(np.load(sys.argv[2]))
for _ in range(10):
    session.run(None, feeds)
times = []
start = time.perf_counter()
while len(times) < 30 or time.perf_counter() - start < 1.5:
    begin = time.perf_counter()
    session.run(None, feeds)
    times.append(time.perf_counter() - begin)
print(np.median(times))
"""


def plain_seconds(a: Path, b: Path, feeds: Feeds, threads: int = 1) -> tuple[float, float]:
    """The median seconds of a run of both models, whole processes in turns."""
    times: dict[Path, list[float]] = {a: [], b: []}
    with tempfile.TemporaryDirectory() as scratch:
        stored = Path(scratch) / "feeds.npz"
        arrays: dict[str, Any] = dict(feeds)
        np.savez(stored, **arrays)
        for _ in range(PROCESSES):
            for path, own in times.items():
                command = [sys.executable, "-c", PROGRAM, str(path), str(stored), str(threads)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                own.append(float(done.stdout))
    return statistics.median(times[a]), statistics.median(times[b])
