"""Tuning that is interrupted, or shared between processes: the same as in one piece, in one process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import save
from onnx import numpy_helper

pytest.importorskip("torch")

import torch

from onnxdecomp import ProgressEvent, StoppedError, TuneResult, Tuning, UsageError, tune
from onnxdecomp.tuning import descent

ORIGINAL = nets.small_classifier()
START = nets.rewrite(ORIGINAL, "in=4,out=4", policy=nets.ANYTHING, only="conv").model
IMAGES = nets.structured(48, 3, 8, 8, seed=5)
STEPS = 40


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(ORIGINAL, tmp_path / "in.onnx")
    save(START, tmp_path / "out.onnx")
    np.savez(tmp_path / "x.npz", x=IMAGES)
    return tmp_path


def tuned(progress: Any = lambda event: None, **options: Any) -> TuneResult:
    how = Tuning(**{"steps": STEPS, "batch": 16, "checkpoint": "kept", **options})
    return tune(ORIGINAL, START, IMAGES, tuning=how, progress=progress)


def at(look: int) -> Any:
    def progress(event: ProgressEvent) -> None:
        if event.stage == "tuning" and event.done == look and event.item is not None:
            raise StoppedError()

    return progress


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


# Interrupted
# -----------


@pytest.mark.parametrize("look", [1, 7, 20])
def test_going_on_equals_never_having_stopped(look: int) -> None:
    unbroken = tuned(checkpoint=None)
    broken = tuned(at(look))
    assert broken.interrupted is not None and broken.steps == look * STEPS // 20
    again = tuned()
    assert again.interrupted is None and again.curve == unbroken.curve and again.steps == STEPS
    assert again.model.SerializeToString() == unbroken.model.SerializeToString()
    # A course that is run to its end is not run again.
    assert tuned().model.SerializeToString() == unbroken.model.SerializeToString()


def test_it_goes_on_after_a_divergence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "one_cycle", lambda way: 1e6 if 0.1 < way < 0.13 else 0.1)
    unbroken = tuned(checkpoint=None)
    assert any("a tenth of the rate" in note for note in unbroken.notes)
    tuned(at(8))
    assert tuned().model.SerializeToString() == unbroken.model.SerializeToString()


def test_what_was_spent_before_counts_as_time() -> None:
    tuned(at(5), steps=None, time_limit=3.0)
    began = time.monotonic()
    assert tuned(steps=None, time_limit=3.0).interrupted is None
    assert time.monotonic() - began < 2.9


def test_work_that_was_killed_goes_on(folder: Path) -> None:
    command = [sys.executable, "-m", "onnxdecomp", "tune", "in.onnx", "out.onnx", "tuned.onnx"]
    command += ["--data", "x.npz", "--batch", "16", "--steps", "4000", "--checkpoint", "kept", "-q"]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with subprocess.Popen(command, cwd=folder) as process:
        deadline = time.monotonic() + 60
        while not (folder / "kept").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    left = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert left == {*(path.name for path in before), "kept"}
    assert all(path.read_bytes() == text for path, text in before.items())
    with np.load(folder / "kept") as kept:
        assert "best conv/tucker_core.weight" in kept.files


@pytest.mark.parametrize(
    "change", [{"batch": 8}, {"seed": 1}, {"augment": False}, {"train": "convs"}, {"steps": STEPS + 1}]
)
def test_a_checkpoint_of_something_else_is_refused(change: dict[str, Any]) -> None:
    tuned(at(1))
    with pytest.raises(UsageError, match=r"`checkpoint` kept: it is of other models, other samples or other"):
        tuned(**change)


def test_a_checkpoint_of_another_model_or_of_other_samples_is_refused() -> None:
    tuned(at(1))
    how = Tuning(steps=STEPS, batch=16, checkpoint="kept")
    other = nets.rewrite(ORIGINAL, "in=5,out=4", policy=nets.ANYTHING, only="conv").model
    for rewritten, samples in ((other, IMAGES), (START, IMAGES[::-1].copy()), (START, IMAGES[:40])):
        with pytest.raises(UsageError, match="`checkpoint` kept"):
            tune(ORIGINAL, rewritten, samples, tuning=how)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04broken", "numbers", "pickle"])
def test_a_file_that_is_no_checkpoint_is_one_line(content: bytes | str, folder: Path) -> None:
    if content == "numbers":
        with (folder / "kept").open("wb") as stream:
            np.savez(stream, head=np.arange(3))
    elif content == "pickle":
        with (folder / "kept").open("wb") as stream:
            np.savez(stream, head=np.array([{}], dtype=object))
    else:
        assert isinstance(content, bytes)
        (folder / "kept").write_bytes(content)
    with pytest.raises(UsageError, match="`checkpoint` kept: this is no checkpoint of tuning") as caught:
        tuned()
    assert "\n" not in str(caught.value)


# Shared
# ------


def test_threads_come_to_the_same() -> None:
    """But for rounding, since sums have another order."""
    threads = torch.get_num_threads()
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(weights(tuned(checkpoint=None).model))
    torch.set_num_threads(threads)
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def test_two_processes_come_to_what_one_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts them: this one is the first; the other, a command, writes nothing."""
    wanted = weights(tuned(checkpoint=None).model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    before = set(folder.iterdir())
    command = [sys.executable, "-m", "onnxdecomp", "tune", "in.onnx", "out.onnx", "tuned.onnx"]
    command += ["--data", "x.npz", "--batch", "16", "--steps", str(STEPS)]
    with subprocess.Popen(
        command, cwd=folder, env=os.environ | group | {"RANK": "1"}, stdout=subprocess.PIPE, text=True
    ) as other:
        for name, value in (group | {"RANK": "0"}).items():
            monkeypatch.setenv(name, value)
        found = weights(tuned(checkpoint=None).model)
        assert other.communicate(timeout=60)[0] == ""
    assert other.returncode == 0 and set(folder.iterdir()) == before
    moved = 0.0
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4, err_msg=name)
        moved = max(moved, float(np.abs(array - weights(START)[name]).max()))
    assert moved > 0.01
