"""`--tune` of `rewrite` and `search`: what it prints and writes, and what is refused in one line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, save, untouched

pytest.importorskip("torch")

import torch

import onnxdecomp
from onnxdecomp import ProgressEvent, StoppedError
from onnxdecomp.rewriting import improving

DATA = ("--data", "x.npz", "--samples", 48)
REWRITE = ("rewrite", "in.onnx", "out.onnx", "--rank", "in=3,out=3", "--only", "conv", "--min-channels", 2,
           "--allow-slower")  # fmt: skip
SEARCH = ("search", "in.onnx", "out.onnx", "--macs", 0.5, "--cost", "macs", "--min-channels", 2)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a model and samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path_factory.mktemp("cache")))
    proto = nets.small_classifier()
    save(proto, tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", x=nets.structured(64, 3, 8, 8, seed=5))
    return tmp_path


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that tuning was given; it ends after a few steps."""
    given: list[float] = []

    def brief(*arguments: Any, tuning: onnxdecomp.Tuning, **options: Any) -> onnxdecomp.TuneResult:
        given.append(tuning.time_limit)
        return onnxdecomp.tune(*arguments, tuning=replace(tuning, steps=40, batch=16), **options)

    monkeypatch.setattr(improving, "tune", brief)
    return given


def dealt() -> onnxdecomp.SampleSets:
    """The samples as the commands deal them."""
    return onnxdecomp.SampleSets.draw(onnxdecomp.open_samples("x.npz", "in.onnx"), count=48, tuned=True)


def held_out_error(path: str) -> float | None:
    (output,) = onnxdecomp.compare("in.onnx", path, dealt().held_out)
    return output.relative_l2


def test_a_rewrite_that_tunes_says_and_measures_what_came_of_it(
    cli: Cli, folder: Path, limits: list[float]
) -> None:
    fit = {"policy": nets.ANYTHING, "only": "conv", "data": dealt().fitted}
    onnxdecomp.rewrite("in.onnx", "in=3,out=3", **fit).save("fitted.onnx")  # type: ignore[arg-type]
    fitted = held_out_error("fitted.onnx")
    with untouched(folder, "out.onnx", "r.json"):
        done = cli(*REWRITE, *DATA, "--tune", "--tune-limit", 90, "--json", "r.json")
    assert done.code == 0 and limits == [90.0] and "tuned after that" in done.out, done
    assert "weights trained in 40 steps" in done.out and "wrote out.onnx" in done.out
    report = json.loads(Path("r.json").read_text())
    (measured,) = report["quality"]["outputs"]
    assert measured["relative_l2"] == pytest.approx(held_out_error("out.onnx"))
    assert fitted is not None and measured["relative_l2"] < fitted
    assert report["complete"] and report["tuning"]["steps"] == 40 and report["check"]["status"] == "passed"
    onnx.checker.check_model("out.onnx")


def test_a_search_that_tunes_says_and_measures_what_came_of_it(
    cli: Cli, folder: Path, limits: list[float]
) -> None:
    done = cli(*SEARCH, *DATA, "--tune", "--json", "r.json")
    assert done.code == 0 and limits == [600.0] and "tuned: error" in done.out, done
    best = json.loads(Path("r.json").read_text())["best"]
    assert best["tuning"]["steps"] == 40
    assert best["error"] == best["tuning"]["error"]["after"] == pytest.approx(held_out_error("out.onnx"))
    assert any("tuned 0." in line for line in done.told)


def test_a_dry_run_shows_what_tuning_would_do(cli: Cli, folder: Path, limits: list[float]) -> None:
    with untouched(folder):
        done = cli(*REWRITE, *DATA, "--tune", "--dry-run")
    assert done.code == 0 and "tuned after that" in done.out and "no model was written" in done.out


@pytest.mark.parametrize("words", [REWRITE, SEARCH], ids=lambda words: words[0])
def test_an_interruption_writes_the_best_and_ends_with_its_code(
    words: tuple[object, ...], cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halting(event: ProgressEvent) -> None:
        if event.stage == "tuning" and event.done == 10:
            raise StoppedError()

    def halted(*arguments: Any, tuning: onnxdecomp.Tuning, progress: Any) -> onnxdecomp.TuneResult:
        return onnxdecomp.tune(*arguments, tuning=replace(tuning, steps=40, batch=16), progress=halting)

    monkeypatch.setattr(improving, "tune", halted)
    with untouched(folder, "out.onnx", "r.json"):
        done = cli(*words, *DATA, "--tune", "--json", "r.json")
    said = done.refusal(130)
    assert said.startswith("interrupted; wrote out.onnx") and "r.json" in said
    report = json.loads(Path("r.json").read_text())
    assert report["complete"] is False
    tuned = report["tuning"] if words is REWRITE else report["best"]["tuning"]
    assert 0 < tuned["steps"] < 40 and "check passed" in done.out


@pytest.mark.parametrize("words", [REWRITE, SEARCH], ids=lambda words: words[0])
def test_a_limit_that_is_too_short_is_said_by_its_name(words: tuple[object, ...], cli: Cli) -> None:
    done = cli(*words, *DATA, "--tune", "--tune-limit", 1e-9)
    assert done.code == 0 and "no step was made: give a longer --tune-limit, or fewer" in done.out, done


@pytest.mark.parametrize("words", [REWRITE, SEARCH], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tune",), "--tune trains on samples: name them with --data"),
        ((*DATA, "--tune-limit", 60), "--tune-limit says how long tuning may take: give --tune too"),
        ((*DATA, "--tune", "--tune-limit", 0), "--tune-limit 0: give a positive number of seconds"),
        ((*DATA, "--tune", "--tune-limit", "inf"), "--tune-limit inf: give a positive number of seconds"),
        ((*DATA, "--tune", "--tune-limit", "nan"), "--tune-limit nan: give a positive number of seconds"),
        ((*DATA, "--tune", "--tune-limit", "soon"), "--tune-limit"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_touches_nothing(
    options: tuple[object, ...], says: str, words: tuple[object, ...], cli: Cli, folder: Path
) -> None:
    with untouched(folder):
        assert says in cli(*words, *options).refusal()


@pytest.mark.parametrize("words", [REWRITE, SEARCH], ids=lambda words: words[0])
def test_pytorch_that_is_absent_is_found_before_anything_is_run(
    words: tuple[object, ...], cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with untouched(folder):
        done = cli(*words, *DATA, "--tune")
    assert "tuning needs PyTorch, which is not installed" in done.refusal() and done.told == []
    monkeypatch.setitem(sys.modules, "torch", torch)
