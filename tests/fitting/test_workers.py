"""Work spread by joblib: the same bytes from every backend, few weights at a time, one line on failures."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import joblib
import nets
import pytest
from conftest import spawn
from joblib.parallel import ThreadingBackend, register_parallel_backend
from threadpoolctl import threadpool_info, threadpool_limits

import onnxdecomp
from onnxdecomp.fitting import Workers
from onnxdecomp.ir import as_model, survey
from onnxdecomp.planning import Policy
from onnxdecomp.progress import silent
from onnxdecomp.searching.candidates import find_candidates
from onnxdecomp.searching.probe import output_losses, weight_losses

WIDTHS = (8, 24, 16, 24, 16, 8)
LOCAL = ("sequential", "threading", "loky", "multiprocessing")
# From Python 3.12 on a fork warns where there are threads, as there always are below NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def stack() -> Any:
    """A stack of five Convs of several sizes."""
    pairs = list(pairwise(WIDTHS))
    lines = [f"[c{i}] x{i + 1} = Conv <pads=[1,1,1,1]> (x{i}, w{i})" for i in range(len(pairs))]
    text = f"m (float[N,8,6,6] x0) => (float[N,8,6,6] x{len(pairs)}) {{\n" + "\n".join(lines) + "\n}"
    return nets.model(text, **{f"w{i}": nets.weight(b, a, 3, 3, seed=i) for i, (a, b) in enumerate(pairs)})


def everything(folder: Path) -> tuple[bytes, Any, Any]:
    """What is spread: the factors of a rewrite, and the losses of a search with samples and without."""
    model = stack()
    rewritten = onnxdecomp.rewrite(model, 0.5, policy=nets.ANYTHING).model.SerializeToString()
    found = survey(as_model(model), input_shapes={}, freeze=False, fold_bn=True, linear=True)
    units = find_candidates(found, Policy(align=8, min_channels=8))
    samples = onnxdecomp.open_samples([{"x0": nets.structured(12, 8, 6, 6, seed=5)}], model)
    return (
        rewritten,
        output_losses(found, units, samples, folder, silent),
        weight_losses(units, folder, silent),
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Any, Any]:
    with joblib.parallel_config(n_jobs=1):
        return everything(tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize("backend", LOCAL)
def test_every_backend_finds_the_same(backend: str, expected: tuple[bytes, Any, Any], tmp_path: Path) -> None:
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert everything(tmp_path) == expected
    assert everything(tmp_path) == expected


FARAWAY = """
import joblib
import test_workers as own
from pathlib import Path

{start}

if __name__ == "__main__":
    plain = own.everything(Path())
    with started(), joblib.parallel_config(backend="{backend}", n_jobs=2):
        assert own.everything(Path()) == plain
    print("the same")
"""
STARTS = {
    "dask": """
        def started():
            from dask.distributed import Client, LocalCluster
            return Client(LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None))
    """,
    "ray": """
        def started():
            import ray
            from ray.util.joblib import register_ray
            register_ray()
            return ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    """,
}


@pytest.mark.heavy
@pytest.mark.parametrize("backend", STARTS)
def test_a_cluster_finds_the_same(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: Ray changes joblib's other backends for good."""
    module = {"dask": "distributed", "ray": "ray"}[backend]
    pytest.importorskip(module, reason=f"pip install {module} to spread work over it")
    start = textwrap.dedent(STARTS[backend])
    (tmp_path / "faraway.py").write_text(FARAWAY.format(start=start, backend=backend))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    done = spawn(sys.executable, "faraway.py", cwd=tmp_path)
    assert done.code == 0 and done.out.endswith("the same\n"), done


# How many at a time
# ------------------


class Batching(ThreadingBackend):
    """As joblib's multiprocessing and Ray: it hands out nothing before all is done."""

    supports_return_generator = False


class Streaming(ThreadingBackend):
    """joblib's threads under another name."""


@pytest.fixture(autouse=True)
def _registered() -> None:
    for kind in (Batching, Streaming):
        register_parallel_backend(kind.__name__, kind)


@pytest.mark.parametrize("backend", ["Batching", "Streaming"])
def test_calls_are_made_as_they_are_needed(backend: str) -> None:
    made = 0

    def calls() -> Iterator[partial[int]]:
        nonlocal made
        for number in range(40):
            made += 1
            yield partial(int, number)

    with joblib.parallel_config(backend=backend, n_jobs=2), Workers() as workers:
        gate = threading.Event()  # nothing gets done before the first result is asked for
        held = workers.run([partial(gate.wait), *(partial(int, number) for number in range(3))])
        gate.set()
        assert list(held) == [True, 0, 1, 2]
        results = workers.run(calls())
        assert made == 0
        found = []
        for number in results:
            found.append(number)
            assert backend == "Streaming" or made <= number + 4 + 1
    assert found == list(range(40))


def test_as_many_workers_as_joblib_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = ThreadingBackend.configure

    def configure(self: Any, n_jobs: int = 1, parallel: Any = None, **options: Any) -> Any:
        seen.append(n_jobs)
        return real(self, n_jobs, parallel, **options)

    monkeypatch.setattr(ThreadingBackend, "configure", configure)
    with joblib.parallel_config(n_jobs=3), Workers():
        pass
    with joblib.parallel_config(n_jobs=3), Workers(2):
        pass
    with Workers():
        pass
    assert seen == [3, 2, -1]


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])
def test_each_worker_has_one_thread_of_blas(backend: str) -> None:
    with threadpool_limits(2, user_api="blas"):
        with joblib.parallel_config(backend=backend, n_jobs=2), Workers() as workers:
            assert list(workers.run([blas_threads] * 4)) == [{1}] * 4
        assert blas_threads() == {2}


# What goes wrong
# ---------------


@pytest.mark.parametrize("base", [Batching, Streaming])
def test_a_backend_that_fails_in_the_middle_is_one_line(base: type[ThreadingBackend]) -> None:
    class Failing(base):  # type: ignore[misc,valid-type]
        left = 3

        def submit(self, *arguments: Any, **options: Any) -> Any:
            type(self).left -= 1
            if self.left < 0:
                raise OSError("the cluster\nis gone")
            return super().submit(*arguments, **options)

    register_parallel_backend("failing", Failing)
    with (
        joblib.parallel_config(backend="failing", n_jobs=2),
        pytest.raises(onnxdecomp.RunError, match=r"Failing failed .*`joblib.parallel_config`.* the cluster$"),
    ):
        onnxdecomp.rewrite(stack(), 0.5, policy=nets.ANYTHING)


def test_a_worker_that_is_killed_is_one_line() -> None:
    with (
        joblib.parallel_config(backend="loky", n_jobs=2),
        pytest.raises(onnxdecomp.RunError, match=r"LokyBackend failed .*unexpectedly terminated") as caught,
        Workers() as workers,
    ):
        list(workers.run([partial(os._exit, 1)] * 3))
    assert "\n" not in str(caught.value)


def test_what_cannot_travel_is_one_line() -> None:
    lock = threading.Lock()
    with (
        joblib.parallel_config(backend="loky", n_jobs=2),
        pytest.raises(onnxdecomp.RunError, match="LokyBackend failed") as caught,
        Workers() as workers,
    ):
        list(workers.run([partial(print, lock)] * 3))
    assert "\n" not in str(caught.value)


def fail(message: str) -> None:
    raise onnxdecomp.ModelError(message)


def divide(number: int) -> float:
    return 1 / number


@pytest.mark.parametrize("backend", ["sequential", "threading", "Batching", "loky", "multiprocessing"])
def test_what_a_call_raises_is_raised_as_it_is(backend: str) -> None:
    for call, error in (
        (partial(fail, "broken"), onnxdecomp.ModelError),
        (partial(divide, 0), ZeroDivisionError),
    ):
        with (
            joblib.parallel_config(backend=backend, n_jobs=2),
            pytest.raises(error, match=r"^broken|division by zero") as caught,
            Workers() as workers,
        ):
            list(workers.run([partial(divide, 1), *[call] * 8]))
        away = backend in ("loky", "multiprocessing")
        assert not away or call.func.__name__ in caught.value.__notes__[0]  # the traceback, as text


@pytest.mark.parametrize("backend", ["sequential", "threading", "Batching", "loky"])
def test_what_making_a_call_raises_is_raised_as_it_is(backend: str) -> None:
    """However late, and in whatever thread it is made: an error that is lost would be a wait without end."""

    def calls() -> Iterator[partial[float]]:
        yield from [partial(divide, 1)] * 12
        raise onnxdecomp.ModelError("the file is gone")

    with joblib.parallel_config(backend=backend, n_jobs=2), Workers() as workers:
        results = workers.run(calls())
        assert [next(results) for _ in range(12)] == [1.0] * 12
        with pytest.raises(onnxdecomp.ModelError, match=r"^the file is gone$"):
            next(results)


@pytest.mark.parametrize("backend", ["sequential", "threading", "Batching", "loky"])
@pytest.mark.parametrize("error", [onnxdecomp.StoppedError, KeyboardInterrupt, ValueError])
def test_an_end_from_outside_passes_and_nothing_is_said(backend: str, error: type[BaseException]) -> None:
    def progress(event: onnxdecomp.ProgressEvent) -> None:
        if event.done == 2:
            raise error

    with warnings.catch_warnings(record=True) as told, joblib.parallel_config(backend=backend, n_jobs=2):
        warnings.simplefilter("always")
        with pytest.raises(error):
            onnxdecomp.rewrite(stack(), 0.5, policy=nets.ANYTHING, progress=progress)
    assert [str(each.message) for each in told] == []
