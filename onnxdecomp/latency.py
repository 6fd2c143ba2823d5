"""How long models take in ONNX Runtime, side by side, and in which layout their Convs run."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxdecomp.inputs import Feeds
from onnxdecomp.runtime import onnxruntime

WARMUP_RUNS = 10
_NCHWC = "com.microsoft.nchwc"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Race:
    """Times of two models that ran in turns, A B A B, in seconds per run.

    Attributes:
        a: times of the first model, shape (runs,).
        b: times of the second, shape (runs,).
    """

    a: NDArray[np.float64]
    b: NDArray[np.float64]

    @property
    def speedup(self) -> float:
        """Median time of a over median time of b: above 1 where b is faster."""
        return float(np.median(self.a) / np.median(self.b))

    def interval(self, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % percentile bootstrap interval of the speed-up (Efron and Tibshirani 1993, chapter 13)."""
        generator = np.random.default_rng(seed)
        picks = generator.integers(0, len(self.a), (2, resamples, len(self.a)))
        ratios = np.median(self.a[picks[0]], axis=1) / np.median(self.b[picks[1]], axis=1)
        low, high = np.percentile(ratios, [2.5, 97.5])
        return float(low), float(high)


def race(a: str | os.PathLike[str], b: str | os.PathLike[str], feeds: Feeds, runs: int = 50) -> Race:
    """Time two models on the same inputs with one CPU thread each, in turns, after a warm-up.

    Turns make both see the same disturbances. One thread, because the pools of two live sessions would
    spin against each other.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    sessions = [_session(a), _session(b)]
    times = np.empty((2, runs))
    for run in range(-WARMUP_RUNS, runs):
        for i, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(None, dict(feeds))
            if run >= 0:
                times[i, run] = time.perf_counter() - start
    return Race(a=times[0], b=times[1])


def _session(path: str | os.PathLike[str], optimised: Path | None = None) -> Any:
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
        options.log_severity_level = 4  # it warns that the optimised file is for this machine alone
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the Convs of a model run after ONNX Runtime has optimised it.

    Attributes:
        blocked: names of the Convs in the blocked NCHWc layout, as ONNX Runtime made them.
        plain: names of all other Convs.
        reorders: nodes that convert between the layouts.
    """

    blocked: frozenset[str]
    plain: frozenset[str]
    reorders: int


def placement(path: str | os.PathLike[str]) -> Placement:
    """Look into the graph that ONNX Runtime's CPU provider makes of the model at `path`.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        _session(path, optimised)
        graph = onnx.load(optimised, load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    convs = [node for node in graph.node if node.op_type in ("Conv", "FusedConv", "NhwcFusedConv")]
    return Placement(
        blocked=frozenset(node.name for node in convs if node.domain == _NCHWC),
        plain=frozenset(node.name for node in convs if node.domain != _NCHWC),
        reorders=kinds["ReorderInput"] + kinds["ReorderOutput"],
    )
