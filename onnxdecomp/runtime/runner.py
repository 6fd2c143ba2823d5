"""Running a model on the CPU: ONNX Runtime, or ONNX's own reference evaluator where that lacks a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from onnxdecomp.abridging import abridged
from onnxdecomp.errors import RunError
from onnxdecomp.ir import Array
from onnxdecomp.runtime.inputs import Feeds
from onnxdecomp.runtime.session import Engine, onnxruntime, open_session, run_errors

Outputs = dict[str, Array]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@abridged
@dataclass(frozen=True, slots=True)
class Runner:
    """A loaded model.

    An example is in docs/python.md under "A metric of your own".

    Attributes:
        engine: what runs it.
        run: from arrays by input name to arrays by output name.
        path: the file that it was loaded from.
    """

    engine: str
    run: Callable[[Feeds], Outputs]
    path: Path


def open_in_onnxruntime(
    path: Path, *, extended: bool = False, threads: int | None = None, device: str = "cpu"
) -> Runner:
    """Load the model at `path` into ONNX Runtime, all optimisations on.

    Args:
        path: of the model.
        extended: leave the blocked layout out; see `Engine`.
        threads: how many it may take; None for as many as it likes.
        device: "cpu"; or "cuda", where ONNX Runtime has its execution provider.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        RunError: it does not load the model, or, from `run`, does not run it.
    """
    with run_errors(f"ONNX Runtime does not load {path.name}"):
        provider = _PROVIDERS[device]
        if provider not in onnxruntime().get_available_providers():
            provider = _PROVIDERS["cpu"]
        session = open_session(str(path), Engine(provider=provider, threads=threads, extended=extended))
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> Outputs:
        for name, array in feeds.items():
            if array.dtype.isbuiltin == 2:  # a type of ml_dtypes, which it tells by a number alone
                raise RunError(
                    f"ONNX Runtime does not run {path.name}: it takes no {array.dtype} from Python, "
                    f"which is the type of input '{name}'"
                )
        with run_errors(f"ONNX Runtime does not run {path.name}"):
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return Runner(f"ONNX Runtime {onnxruntime().__version__}", run, path)


def open_in_reference(path: Path) -> Runner:
    """Load the model at `path` into onnx.reference.ReferenceEvaluator: slow, but it knows every float type.

    Raises:
        RunError: it does not load the model, or, from `run`, does not run it.
    """
    # The evaluator's operators raise whatever NumPy raises.
    with run_errors(f"the reference evaluator does not load {path.name}"):
        evaluator = ReferenceEvaluator(str(path))

    def run(feeds: Feeds) -> Outputs:
        with run_errors(f"the reference evaluator does not run {path.name}"), np.errstate(all="ignore"):
            return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))

    return Runner(f"ONNX reference evaluator {onnx.__version__}", run, path)
