"""Ctrl-C and its kin, at the moments that matter: one line, the signal's exit code, and no half of a file."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, Outcome, command, save, save_external, small_model, spawn, untouched

import onnxdecomp
from onnxdecomp import StoppedError
from onnxdecomp.ir import scratch_folder
from onnxdecomp.runtime import onnxruntime
from onnxdecomp.stopping import SIGNALS, stop, stopped_by

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
RANK = ("--rank", "0.25")
NET = """m (float[N,16,8,8] x) => (float[N,10] y) {
  [one] h = Conv <pads=[1,1,1,1]> (x, w, b)
  [two] i = Conv <pads=[1,1,1,1]> (h, u)
  g = GlobalAveragePool (i)
  f = Flatten (g)
  y = Gemm (f, v)
}"""
# Before a model is measured for the n-th time, the process says so and waits for what comes.
HALT = """
import sys
from onnxdecomp.searching import workshop
measure, times = workshop.measure_quality, 0
def halting(*args, **options):
    global times
    times += 1
    if times == {number}:
        print("halt", flush=True)
        sys.stdin.read()
    return measure(*args, **options)
workshop.measure_quality = halting
"""
# As the process does a thing for the first time, a signal comes.
STRIKE = """
import os, signal, sys
waiting = True
def audit(event, arguments):
    global waiting
    if waiting and event == "{event}" and "{part}" in str(arguments[0]):
        waiting = False
        os.kill(os.getpid(), {number})
sys.addaudithook(audit)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def handled() -> Iterator[None]:
    """The handlers of the command line, in this process."""
    previous = {number: signal.signal(number, stop) for number in SIGNALS}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def starting(words: list[str], before: str) -> list[str]:
    """The command line, and something else before it."""
    python, option, start, *rest = words
    return [python, option, f"{before}\n{start}", *rest]


def halted(words: list[str], number: int) -> Outcome:
    """The search of these words, sent the signal as it measures its second model."""
    pipe = subprocess.PIPE
    words = starting(words, HALT.format(number=2))
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halt\n"
        process.send_signal(number)
        out, err = process.communicate()
    return Outcome(process.returncode, out, err)


@pytest.fixture
def net() -> Path:
    arrays = {"w": nets.weight(32, 16, 3, 3), "b": nets.signal(32), "u": nets.weight(32, 32, 3, 3, seed=1)}
    np.savez("x.npz", x=nets.signal(24, 16, 8, 8))
    return save(nets.model(NET, **arrays, v=nets.weight(32, 10)), Path("in.onnx"))


SEARCH = ("search", "in.onnx", "out.onnx", "--data", "x.npz", "--samples", "8", "--cost", "macs")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_search_that_is_interrupted_writes_its_best_and_says_so(net: Path, number: int) -> None:
    words = ("--max-error", 0.05, "--json", "r.json", "--save-plan", "p.json")
    done = halted(command(*SEARCH, *words), number)
    assert done.refusal(128 + number) == "interrupted; wrote out.onnx, r.json and p.json"
    report = json.loads(Path("r.json").read_text())
    assert not report["complete"] and report["met"]
    assert report["plan"] == json.loads(Path("p.json").read_text())
    onnx.checker.check_model("out.onnx")
    assert "check passed" in done.out and not list(Path().glob(".*"))


def stopping_once_tried(event: onnxdecomp.ProgressEvent) -> None:
    if event.stage == "tried":
        raise StoppedError(signal.SIGTERM)


def test_a_search_that_is_interrupted_before_its_goal_writes_no_model(
    net: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = onnxdecomp.search

    def stopped(*args: Any, **options: Any) -> onnxdecomp.SearchResult:
        return search(*args, **options | {"progress": stopping_once_tried})

    monkeypatch.setattr(onnxdecomp, "search", stopped)
    done = cli(*SEARCH, "--max-error", 0.001, "--json", "r.json")
    message = done.refusal(128 + signal.SIGTERM)
    assert message.startswith("interrupted; no model was written, only r.json: --max-error 0.001 was not met")
    assert not Path("out.onnx").exists() and json.loads(Path("r.json").read_text())["met"] is False


def test_python_is_told_what_interrupted_a_search(net: Path) -> None:
    samples = onnxdecomp.SampleSets.draw(onnxdecomp.open_samples("x.npz", net), count=8)
    goal = onnxdecomp.Goal("max_error", 0.5)
    found = onnxdecomp.search(net, goal, samples=samples, cost="macs", progress=stopping_once_tried)
    assert found.interrupted is not None and found.interrupted.number == signal.SIGTERM and found.stopped
    whole = onnxdecomp.search(net, goal, samples=samples, cost="macs")
    assert whole.interrupted is None and not whole.stopped


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_files_move_waits_until_they_are_there(number: int) -> None:
    save_external(small_model(), Path("in.onnx"))
    Path("out").mkdir()
    words = command("rewrite", "in.onnx", "out/out.onnx", *RANK)
    done = spawn(*starting(words, STRIKE.format(event="os.rename", part=".out.onnx.", number=int(number))))
    assert done.refusal(128 + number) == "interrupted; wrote out/out.onnx"
    assert sorted(path.name for path in Path("out").iterdir()) == ["out.onnx", "out.onnx.data"]
    onnx.checker.check_model("out/out.onnx")


def test_a_folder_of_scratch_goes_whatever_comes_while_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handled: None
) -> None:
    remove = shutil.rmtree

    def struck(*args: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        remove(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "rmtree", struck)
    with pytest.raises(StoppedError) as stopped, scratch_folder(beside=tmp_path) as folder:
        (folder / "file").touch()
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.number == signal.SIGINT and not folder.exists()


def test_onnxruntime_is_imported_whole(monkeypatch: pytest.MonkeyPatch, handled: None) -> None:
    """In its middle a signal would look like a package that is broken."""
    done: list[str] = []

    def struck(name: str) -> None:
        signal.raise_signal(signal.SIGINT)
        done.append(name)

    monkeypatch.setattr(importlib, "import_module", struck)
    with pytest.raises(StoppedError):
        onnxruntime()
    assert done == ["onnxruntime"]


def test_an_error_that_an_interruption_was_made_into_is_one(
    small: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        try:
            raise StoppedError(signal.SIGTERM)
        except StoppedError as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(onnxdecomp, "inspect", broken)
    assert cli("inspect", small).refusal(128 + signal.SIGTERM) == "interrupted; nothing was written"
    assert stopped_by(ImportError("no such package")) is None


@pytest.mark.parametrize("module", ["typer", "onnxdecomp.cli.search", "numpy", "onnx.helper"])
def test_ctrl_c_during_the_imports_is_one_line(small: Path, module: str) -> None:
    words = command("inspect", small)
    with untouched(small.parent):
        done = spawn(*starting(words, STRIKE.format(event="import", part=module, number=int(signal.SIGINT))))
    assert done.refusal(130) == "interrupted; nothing was written"


# Standard output
# ---------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", [("rewrite", "in.onnx", "out.onnx", *RANK), ("inspect", "in.onnx", "--json", "-"), ("--help",)]
)
def test_a_full_standard_output_is_one_line(
    small: Path, words: tuple[str, ...], unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full, untouched(small.parent):
        done = subprocess.run(command(*words), stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    message = Outcome(done.returncode, "", done.stderr).refusal()
    assert message.startswith("cannot write to standard output: No space left")
