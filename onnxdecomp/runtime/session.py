"""The one place that opens sessions of ONNX Runtime, and how it is to run a model."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxdecomp.errors import MissingExtraError

# The devices that inputs and outputs are bound to, by execution provider; all others take them from the host.
_DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How ONNX Runtime is to run a model.

    Attributes:
        provider: the execution provider's name in ONNX Runtime.
        options: of that provider.
        threads: intra-op threads of the CPU provider.

    """

    provider: str = "CPUExecutionProvider"
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1

    @property
    def device(self) -> str | None:
        """The device whose memory inputs and outputs live in, None for the host's."""
        return _DEVICES.get(self.provider)


def open_session(
    path: str | bytes, engine: Engine, *, optimised: str | None = None, profile: str | None = None
) -> Any:
    """An onnxruntime.InferenceSession, all optimisations on.

    Args:
        path: the model, or the bytes of its file.
        engine: how to run it.
        optimised: where to write the graph that ONNX Runtime makes of it.
        profile: what the profile's file name is to begin with.
    """
    import onnxruntime as ort  # the parent finds out whether it is there, and what to say if not

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = engine.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong arrives as an exception
    # While another model has its turn, a pool that spins would steal its cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")

    if optimised is not None:
        options.optimized_model_filepath = optimised
        # Outside the protobuf there is no limit of 2 GB, and nobody reads them there.
        weights = f"{Path(optimised).name}.weights"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if engine.device == "cuda" and hasattr(ort, "preload_dlls"):
        # Finds the CUDA and cuDNN that pip installed, PyTorch's too; what it misses, the session says itself.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    providers: list[Any] = [(engine.provider, dict(engine.options))]
    if engine.provider != "CPUExecutionProvider":
        providers.append("CPUExecutionProvider")
    return ort.InferenceSession(path, options, providers=providers)


def onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        MissingExtraError: not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError(
            'onnxruntime is not installed: pip install "onnxdecomp[cpu]" (or "onnxdecomp[gpu]" with CUDA)'
        ) from error
