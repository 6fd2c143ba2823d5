"""One model in one process: what `latency` starts for each model that it times.

Run as a program of its own, it imports NumPy and ONNX Runtime and nothing else, so that it starts quickly and
its peak memory is the model's. It speaks over its standard input and output: pickled calls and answers.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_STATUS = Path("/proc/self/status")

Arrays = Mapping[str, NDArray[Any]]

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


class Stopwatch:
    """A loaded model and one set of inputs.

    Attributes:
        load_s: seconds it took to load.
        copies_s: seconds to copy inputs to the device and outputs back, None on the host.
    """

    def __init__(self, path: str | bytes, engine: Engine, feeds: Arrays) -> None:
        start = time.perf_counter()
        self._session = open_session(path, engine)
        self.load_s = time.perf_counter() - start
        self.providers: list[str] = self._session.get_providers()
        self._feeds = dict(feeds)
        self._binding: Any = None
        self.copies_s: float | None = None
        if engine.device is not None:
            self._binding = self._bound(engine.device)
            self.copies_s = self._time_copies(engine.device)

    def _bound(self, device: str) -> Any:
        import onnxruntime as ort

        binding = self._session.io_binding()
        for name, array in self._feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
        for output in self._session.get_outputs():
            binding.bind_output(output.name, device, 0)
        # Outputs of known shape are bound where they lie: a CUDA graph replays fixed addresses.
        self._session.run_with_iobinding(binding)
        for output, value in zip(self._session.get_outputs(), binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(output.name, value)
        return binding

    def _time_copies(self, device: str, runs: int = 5) -> float:
        import onnxruntime as ort

        times = []
        for _ in range(runs):
            start = time.perf_counter()
            for array in self._feeds.values():
                ort.OrtValue.ortvalue_from_numpy(array, device, 0)
            self._binding.copy_outputs_to_cpu()
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    def outputs(self) -> list[NDArray[Any]]:
        """What the model makes of the inputs."""
        if self._binding is None:
            return list(self._session.run(None, self._feeds))
        self._session.run_with_iobinding(self._binding)
        return list(self._binding.copy_outputs_to_cpu())

    def run(self, runs: int) -> NDArray[np.float64]:
        """Seconds of each of `runs` runs, one after the other."""
        times = np.empty(runs)
        clock, session, feeds, binding = time.perf_counter, self._session, self._feeds, self._binding
        for i in range(runs):
            start = clock()
            if binding is None:
                session.run(None, feeds)
            else:
                session.run_with_iobinding(binding)  # returns when the device is done
            times[i] = clock() - start
        return times


def peak_memory() -> int | None:
    """The largest resident set of this process so far, bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    if _STATUS.exists():  # Linux's getrusage would count the parent's memory at the time of the fork
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
        return int(found.group(1)) * 1024 if found else None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def serve(calls: IO[bytes], answers: IO[bytes]) -> None:
    """Answer calls until there are no more: the first opens the model, each other one is a number of runs.

    An answer is a pair: whether it went well, and the result or the error's text.
    """
    watch: Stopwatch | None = None
    while True:
        try:
            call = pickle.load(calls)
        except EOFError:
            return
        # onnxruntime's exceptions share no base class of their own.
        try:
            if watch is None:
                path, engine, feeds = call
                watch = Stopwatch(path, Engine(**engine), feeds)
                result: Any = (watch.load_s, watch.copies_s, watch.providers)
            else:
                result = (watch.run(call), peak_memory())
            answer = (True, result)
        except Exception as error:
            answer = (False, str(error))
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it stops it
    with contextlib.suppress(BrokenPipeError):
        # Whatever a library prints must not come between the answers.
        speaking = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        serve(sys.stdin.buffer, speaking)
