"""One model in one process: what a race starts for each model that it times.

Run as a program of its own, it imports NumPy and ONNX Runtime and nothing else, so that it starts quickly and
its peak memory is the model's. It speaks over its standard input and output: pickled calls and answers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.runtime import Engine, open_session

_STATUS = Path("/proc/self/status")

Arrays = Mapping[str, NDArray[Any]]


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
