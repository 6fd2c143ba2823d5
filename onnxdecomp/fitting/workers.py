"""Independent work, spread by joblib: over threads here, or whatever `joblib.parallel_config` sets."""

from __future__ import annotations

import contextlib
import os
import platform
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend
from threadpoolctl import threadpool_limits

from onnxdecomp.runtime import run_errors

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Raised:
    """What a call raised: as a value, since a backend would wrap it in an error of its own."""

    error: Exception


class Workers:
    """joblib's workers, to be entered; each has one thread of BLAS.

    Matrices this small gain nothing from more, waiting threads fight other programs for the cores, and the
    results would depend on the number of threads.
    """

    def __init__(self, jobs: int = -1) -> None:
        """
        Args:
            jobs: how many; -1 is what `joblib.parallel_config` says, else one per core.
        """
        backend, _ = get_active_backend(prefer="threads")  # which forgets how many workers were asked for
        _, configured = get_active_backend()
        self._jobs = configured if jobs == -1 and configured is not None else jobs
        self._streams = backend.supports_return_generator
        self._what = (
            f"the workers of joblib's {type(backend).__name__} failed (choose another backend with "
            "`joblib.parallel_config`, or none)"
        )
        self._parallel: Any = None

    def __enter__(self) -> Workers:
        how = "generator" if self._streams else "list"
        with run_errors(self._what):
            self._parallel = Parallel(n_jobs=self._jobs, prefer="threads", return_as=how).__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        with run_errors(self._what):
            self._parallel.__exit__(*details)

    def run(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """The results in order; of the calls, and what they hold, a few are in memory at a time.

        Where it does not come to its end, the workers must not be used again: joblib may mix up results.

        Args:
            calls: what can be pickled, and needs nothing but what it holds; they are made as they are needed,
                some of them in other threads.

        Raises:
            RunError: the backend failed. What a call raises, or making one, is raised as it is.
        """
        outcomes = self._outcomes(calls)
        try:
            with threadpool_limits(1, user_api="blas"):
                for outcome in outcomes:
                    if isinstance(outcome, _Raised):
                        raise outcome.error
                    yield outcome
        finally:
            # joblib warns of work that was for nothing, also where an error or an interruption is the reason.
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                outcomes.close()

    def _outcomes(self, calls: Iterable[Callable[[], T]]) -> Generator[T | _Raised]:
        made = _until_raised(calls)
        with run_errors(self._what):
            if self._streams:
                yield from self._parallel(made)
                return
            # It takes all calls before it hands out the first result, and so is given a few at a time.
            size = 2 * effective_n_jobs(self._jobs)
            while batch := list(islice(made, size)):
                yield from self._parallel(batch)


def _until_raised(calls: Iterable[Callable[[], T]]) -> Iterator[Any]:
    """The calls as joblib takes them; what making one raises becomes the last of them.

    In the thread in which joblib asks for the next call, an error would be lost and the work never end.
    """
    home = _place()
    try:
        for call in calls:
            yield delayed(_attempt)(call, home)
    except Exception as error:
        yield delayed(_Raised)(error)


def _attempt(call: Callable[[], T], home: tuple[str, int]) -> T | _Raised:
    """Carry out a call, here or in the process of a worker; `home` is where the limit of `run` holds."""
    away = home != _place()
    try:
        with threadpool_limits(1, user_api="blas") if away else contextlib.nullcontext():
            return call()
    except Exception as error:
        if away:
            error.add_note(traceback.format_exc())  # the traceback itself stays behind
        return _Raised(error)


def _place() -> tuple[str, int]:
    """The process that runs this, on whatever machine."""
    return platform.node(), os.getpid()
