"""The process that a race starts: what it answers, and what it does without."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import nets
from conftest import save, small_model

from onnxdecomp.timing.worker import serve

FEEDS = {"x": nets.signal(1, 16, 8, 8)}
CHILD = """
import sys
from onnxdecomp.timing.worker import serve
serve(sys.stdin.buffer, sys.stdout.buffer)
print(*sorted(sys.modules), file=sys.stderr)
"""


def calls(path: Path, *runs: int) -> bytes:
    return b"".join(pickle.dumps(each) for each in ((str(path), {"threads": 1}, FEEDS), *runs))


def test_the_worker_imports_numpy_and_onnxruntime_and_little_else(tmp_path: Path) -> None:
    path = save(small_model(), tmp_path / "in.onnx")
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=calls(path, 2), capture_output=True, check=True, timeout=120
    )
    answers = io.BytesIO(done.stdout)
    assert pickle.load(answers)[0] is True
    fine, (seconds, _) = pickle.load(answers)
    assert fine and seconds.shape == (2,)
    modules = done.stderr.decode().split()
    assert {name for name in modules if name.split(".")[0] == "onnxdecomp"} == {
        "onnxdecomp",
        "onnxdecomp.errors",
        "onnxdecomp.runtime",
        "onnxdecomp.runtime.session",
        "onnxdecomp.stopping",
        "onnxdecomp.timing",
        "onnxdecomp.timing.worker",
    }
    assert {"numpy", "onnxruntime"} <= set(modules)
    assert not {"onnx", "scipy", "tensorly", "rich", "typer", "joblib", "torch"} & set(modules)


def test_errors_are_answers(tmp_path: Path) -> None:
    answers = io.BytesIO()
    serve(io.BytesIO(calls(tmp_path / "none.onnx")), answers)
    fine, text = pickle.loads(answers.getvalue())
    assert not fine and "none.onnx" in text
