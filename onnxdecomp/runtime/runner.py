"""Running a model on the CPU: ONNX Runtime, or ONNX's own reference evaluator where that lacks a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from onnxdecomp.errors import RunError, first_line
from onnxdecomp.ir import Array
from onnxdecomp.runtime.inputs import Feeds
from onnxdecomp.runtime.session import onnxruntime

Outputs = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Runner:
    """A loaded model. `run` maps input names to arrays, and output names to what came out."""

    engine: str
    run: Callable[[Feeds], Outputs]


def open_in_onnxruntime(path: Path) -> Runner:
    """Load the model at `path` into ONNX Runtime's CPU execution provider, all optimisations on.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        RunError: it does not load the model, or, from `run`, does not run it.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong arrives as an exception
    # Between two runs the cores are another session's, or NumPy's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # onnxruntime's exceptions share no base class of their own, here and below.
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RunError(f"ONNX Runtime does not load {path.name}: {first_line(error)}") from error
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> Outputs:
        try:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise RunError(f"ONNX Runtime does not run {path.name}: {first_line(error)}") from error

    return Runner(f"ONNX Runtime {ort.__version__}", run)


def open_in_reference(path: Path) -> Runner:
    """Load the model at `path` into onnx.reference.ReferenceEvaluator: slow, but it knows every float type.

    Raises:
        RunError: it does not load the model, or, from `run`, does not run it.
    """
    # The evaluator's operators raise whatever NumPy raises.
    try:
        evaluator = ReferenceEvaluator(str(path))
    except Exception as error:
        raise RunError(f"the reference evaluator does not load {path.name}: {first_line(error)}") from error

    def run(feeds: Feeds) -> Outputs:
        try:
            with np.errstate(all="ignore"):
                return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))
        except Exception as error:
            raise RunError(
                f"the reference evaluator does not run {path.name}: {first_line(error)}"
            ) from error

    return Runner(f"ONNX reference evaluator {onnx.__version__}", run)
