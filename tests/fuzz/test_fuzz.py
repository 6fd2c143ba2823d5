"""The command line on thousands of hostile inputs: always an exit code, one line, and nothing half done.

`ONNXDECOMP_FUZZ_SEED=7 ONNXDECOMP_FUZZ_CASES=500 python -m pytest -m heavy tests/fuzz` chooses other cases.
What fails is named by its seed, which goes into FAILED once it is mended.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from cases import flaws

SEED = os.environ.get("ONNXDECOMP_FUZZ_SEED", "0")
CASES = int(os.environ.get("ONNXDECOMP_FUZZ_CASES", "2000"))
# Seconds by the clock after which a case is taken for one that never ends, and for the process to start.
HANGS, STARTS = 60, 300
# As `ulimit -v`: what asks for more is refused, not paged out.
MOST_ADDRESSES = 6_000_000 * 1024
# Cases that once failed, and a few of every kind.
FAILED = ("b/158", "b/257", "d/85", "d/209")
FEW = tuple(f"few/{number}" for number in range(16))


@pytest.mark.parametrize("seed", [*FAILED, *FEW])
def test_a_case_that_once_failed(seed: str, tmp_path: Path) -> None:
    assert flaws(seed, tmp_path) == []


def _work(pipe: Connection) -> None:
    """Judge the cases whose seeds come through the pipe."""
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    pipe.send([])
    while True:
        seed = pipe.recv()
        with tempfile.TemporaryDirectory() as folder:
            pipe.send(flaws(seed, Path(folder)))


@contextlib.contextmanager
def _worker() -> Iterator[Connection]:
    """A process that judges cases, and is killed in the end, whatever it is doing."""
    context = multiprocessing.get_context("spawn")
    own, other = context.Pipe()
    process = context.Process(target=_work, args=(other,), daemon=True)
    process.start()
    other.close()
    try:
        assert own.poll(STARTS), "the process does not start"
        own.recv()
        yield own
    finally:
        process.kill()
        process.join()


def _judged(seeds: list[str]) -> Iterator[tuple[str, list[str]]]:
    left = seeds[::-1]
    while left:
        with _worker() as pipe:
            while left:
                seed = left.pop()
                pipe.send(seed)
                try:
                    found = pipe.recv() if pipe.poll(HANGS) else ["it never ends"]
                except EOFError:
                    found = ["its process died"]
                yield seed, found
                if found in (["it never ends"], ["its process died"]):
                    break


@pytest.mark.heavy
def test_no_input_ends_in_a_traceback() -> None:
    start = time.monotonic()
    failed = {seed: found for seed, found in _judged([f"{SEED}/{n}" for n in range(CASES)]) if found}
    print(f"{CASES} cases of seed {SEED} in {time.monotonic() - start:.0f} s, {len(failed)} failed")  # noqa: T201
    assert not failed, "\n\n".join(f"{seed}\n" + "\n".join(found) for seed, found in failed.items())
