"""`onnxdecomp tune`: what it prints and writes, and what it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, save, untouched

pytest.importorskip("torch")

from onnxdecomp.errors import StoppedError
from onnxdecomp.tuning import descent

TUNE = ("tune", "in.onnx", "out.onnx", "tuned.onnx", "--data", "x.npz", "--batch", "16")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a model, what was made of it, and samples."""
    monkeypatch.chdir(tmp_path)
    proto = nets.small_classifier()
    save(proto, tmp_path / "in.onnx")
    nets.rewrite(proto, "in=4,out=4", policy=nets.ANYTHING, only="conv").save(tmp_path / "out.onnx")
    np.savez(tmp_path / "x.npz", x=nets.structured(48, 3, 8, 8, seed=5))
    return tmp_path


def test_it_trains_checks_writes_and_says_so(cli: Cli, folder: Path) -> None:
    with untouched(folder, "tuned.onnx", "report.json"):
        outcome = cli(*TUNE, "--steps", "40", "--json", "report.json")
    assert outcome.code == 0 and outcome.besides == ""
    lines = outcome.out.splitlines()
    assert lines[0].startswith("3 weights trained in 40 steps") and lines[-1] == "wrote tuned.onnx"
    assert any(line.split()[:2] == ["y", "output"] for line in lines)
    assert any(line.startswith("check passed") for line in lines)
    report = json.loads((folder / "report.json").read_text())
    assert report["improved"] and report["check"]["status"] == "passed"
    assert report["outputs"][0]["after"] < report["outputs"][0]["before"]
    onnx.checker.check_model(str(folder / "tuned.onnx"))


def test_where_nothing_is_gained_the_model_stays_and_that_is_said(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "one_cycle", lambda way: 1e6)
    outcome = cli(*TUNE, "--steps", "5")
    assert outcome.code == 0 and "the model stays as it was" in outcome.out
    assert (folder / "tuned.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def test_an_interruption_writes_the_best_and_ends_with_its_code(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halting(way: float) -> float:
        if way > 0.5:
            raise StoppedError()
        return 0.5

    monkeypatch.setattr(descent, "one_cycle", halting)
    with untouched(folder, "tuned.onnx"):
        outcome = cli(*TUNE, "--steps", "40")
    assert outcome.refusal(130) == "interrupted; wrote tuned.onnx"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tune", "in.onnx", "out.onnx", "tuned.onnx"), "name them with --data"),
        ((*TUNE, "--time-limit", "0"), "--time-limit 0: give a positive number of seconds"),
        ((*TUNE, "--samples", "1"), "--data: tuning needs a sample to train on and one more"),
        (("tune", "in.onnx", "in.onnx", "tuned.onnx", "--data", "x.npz"), "has no factors to train"),
        (("tune", "in.onnx", "out.onnx", "out.onnx", "--data", "x.npz"), "out.onnx belongs to the"),
        (("tune", "in.onnx", "out.onnx", "x.npz", "--data", "x.npz"), "x.npz belongs to the"),
        ((*TUNE, "--input-shape", "z:1"), "no such input"),
        ((*TUNE, "--train", "all"), "--train"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_touches_nothing(
    cli: Cli, folder: Path, words: tuple[str, ...], says: str
) -> None:
    with untouched(folder):
        assert says in cli(*words).refusal()


def test_the_curve_is_drawn_and_classes_are_counted(cli: Cli, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    np.savez(folder / "x.npz", x=nets.structured(48, 3, 8, 8, seed=5), y=np.arange(48) % 5)
    with untouched(folder, "tuned.onnx", "curve.svg", "kept"):
        outcome = cli(*TUNE, "--steps", "20", "--labels", "y", "--plot", "curve.svg", "--checkpoint", "kept")
    assert outcome.code == 0
    assert "accuracy: " in outcome.out and "class as the original's: " in outcome.out
    assert "steps" in (folder / "curve.svg").read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--plot", "curve.jpg"], "end the name with .png or .svg"),
        (["--checkpoint", "in.onnx"], "belongs to the input"),
        (["--checkpoint", "tuned.onnx"], "tuned.onnx"),
        (["--labels", "z"], "--labels z"),
    ],
)
def test_what_cannot_be_written_or_read_is_one_line(
    more: list[str], says: str, cli: Cli, folder: Path
) -> None:
    with untouched(folder):
        outcome = cli(*TUNE, "--steps", "1", *more)
    assert outcome.code == 2 and says in outcome.besides and outcome.besides.count("\n") == 1
