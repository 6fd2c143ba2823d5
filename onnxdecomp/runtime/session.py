"""The one place that opens sessions of ONNX Runtime, and how it is to run a model."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxdecomp.errors import MissingExtraError, OnnxdecompError, RunError, first_line
from onnxdecomp.stopping import uninterrupted

# The devices that inputs and outputs are bound to, by execution provider; all others take them from the host.
_DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How ONNX Runtime is to run a model.

    Attributes:
        provider: the execution provider's name in ONNX Runtime.
        options: of that provider.
        threads: intra-op threads of the CPU provider; None for as many as ONNX Runtime likes.
        spinning: whether threads that wait within a run keep their cores; between runs they never do.
        extended: leave the blocked NCHWc layout out (optimisation level EXTENDED, not ALL).
    """

    provider: str = "CPUExecutionProvider"
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = 1
    spinning: bool = True
    extended: bool = False

    @property
    def device(self) -> str | None:
        """The device whose memory inputs and outputs live in, None for the host's."""
        return _DEVICES.get(self.provider)


def onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        MissingExtraError: not installed.
    """
    try:
        # pybind11 makes an ImportError of what is raised while its module starts, of a signal too.
        with uninterrupted():
            return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError(
            'onnxruntime is not installed: pip install "onnxdecomp[cpu]" (or "onnxdecomp[gpu]" with CUDA)'
        ) from error


@contextlib.contextmanager
def run_errors(what: str) -> Iterator[None]:
    """Turn what an engine raises, whose exceptions share no base class of their own, into RunErrors.

    Args:
        what: the message's beginning: what does not do what.
    """
    try:
        yield
    except OnnxdecompError:
        raise
    except Exception as error:
        raise RunError(f"{what}: {first_line(error)}") from error


def open_session(
    model: str | bytes, engine: Engine, *, optimised: str | None = None, profile: str | None = None
) -> Any:
    """An onnxruntime.InferenceSession; what it raises, here and when it runs, see `run_errors`.

    Args:
        model: the path of a model, or the bytes of its file.
        engine: how to run it.
        optimised: where to write the graph that ONNX Runtime makes of it.
        profile: what the profile's file name is to begin with.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    ort = onnxruntime()
    if engine.device == "cuda" and hasattr(ort, "preload_dlls"):
        # Finds the CUDA and cuDNN that pip installed, PyTorch's too; what it misses, the session says itself.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    providers: list[Any] = [(engine.provider, dict(engine.options))]
    if engine.provider != "CPUExecutionProvider":
        providers.append("CPUExecutionProvider")
    return ort.InferenceSession(model, _options(ort, engine, optimised, profile), providers=providers)


def _options(ort: Any, engine: Engine, optimised: str | None, profile: str | None) -> Any:
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_EXTENDED if engine.extended else levels.ORT_ENABLE_ALL
    )
    if engine.threads is not None:
        options.intra_op_num_threads = engine.threads
        options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong arrives as an exception
    # Between two runs the cores are another session's, or NumPy's: a pool that spins would steal them.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not engine.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimised is not None:
        options.optimized_model_filepath = optimised
        # Outside the protobuf there is no limit of 2 GB, and nobody reads them there.
        weights = f"{Path(optimised).name}.weights"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return options
