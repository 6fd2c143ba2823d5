"""The examples: each runs as a user would run it, on a small model and images made for it."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from conftest import Outcome, save, spawn

import onnxdecomp

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """How a script is run, in a folder with what `shop` has in it.

    Attributes:
        script: its name.
        words: its arguments.
        told: what the last line it prints begins with.
        model: the file it writes.
        original: the file it makes that of.
    """

    script: str
    words: tuple[str, ...]
    told: str
    model: str
    original: str = "in.onnx"


EXAMPLES = (
    Example(
        script="classifier.py",
        words=("in.onnx", "photos", "labels.csv", "small.onnx", "--rank", "0.75", "--most-lost", "1"),
        told="wrote small.onnx",
        model="small.onnx",
    ),
    Example(
        script="detector.py",
        words=("detector.onnx", "scenes.npz", "faster.onnx", "--macs", "0.8"),
        told="wrote faster.onnx",
        model="faster.onnx",
        original="detector.onnx",
    ),
    Example(
        script="shared_study.py",
        words=("in.onnx", "floats.npz", "best.onnx", "sqlite:///study.db", "--trials", "3", "--macs", "0.7"),
        told="wrote best.onnx",
        model="best.onnx",
    ),
)

# Four boxes in fixed places, one for each quarter of the image, scored by what is seen there.
DETECTOR = """
detector (float[N,3,16,16] images) => (float[N,4,4] boxes, float[N,4] scores)
  <int64[2] flat = {0, -1}, int64[1] first = {0}, int64[1] two = {2}> {
  [stem] a = Conv <pads=[1,1,1,1]> (images, v)
  b = Relu (a)
  [body] c = Conv <pads=[1,1,1,1]> (b, w)
  d = Relu (c)
  e = ReduceMean <axes=[1], keepdims=1> (d)
  f = AveragePool <kernel_shape=[8,8], strides=[8,8]> (e)
  scores = Reshape (f, flat)
  zero = Sub (scores, scores)
  grown = Unsqueeze (zero, two)
  boxes = Add (grown, places)
}
"""
PLACES = np.array([[x, y, x + 8, y + 8] for y in (0, 8) for x in (0, 8)], np.float32)


@pytest.fixture
def folder(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with the model, the photos and their labels."""
    for source in shop.iterdir():
        (tmp_path / source.name).symlink_to(source, source.is_dir())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path / "cache"))
    images = nets.structured(48, 3, 16, 16, seed=1)
    np.savez(tmp_path / "floats.npz", images=images)
    weights = {"v": nets.weight(24, 3, 3, 3), "w": nets.weight(24, 24, 3, 3), "places": PLACES[None]}
    detector = nets.model(DETECTOR, **weights)
    save(detector, tmp_path / "detector.onnx")
    best = nets.run(detector, images=images)["scores"].argmax(axis=1)
    np.savez(tmp_path / "scenes.npz", images=images, objects=PLACES[best])
    return tmp_path


def run(script: str, *words: str, folder: Path) -> Outcome:
    return spawn(sys.executable, "-W", "error", ROOT / "examples" / script, *words, cwd=folder)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.script)
def test_an_example_runs_without_a_warning(example: Example, folder: Path) -> None:
    done = run(example.script, *example.words, folder=folder)
    assert (done.code, done.err) == (0, ""), done
    assert done.out.splitlines()[-1].startswith(example.told), done
    onnx.checker.check_model(folder / example.model, full_check=True)
    assert (folder / example.model).stat().st_size < (folder / example.original).stat().st_size


@pytest.mark.parametrize(
    ("photos", "reason"), [("photos", "nothing was written"), ("lost", "lost")], ids=["accuracy", "photos"]
)
def test_the_classifier_says_in_one_line_why_not(photos: str, reason: str, folder: Path) -> None:
    words = ("in.onnx", photos, "labels.csv", "small.onnx", "--rank", "0.25", "--most-lost", "-1")
    done = run("classifier.py", *words, folder=folder)
    assert done.code == 1 and reason in done.err and done.err.count("\n") == 1, done
    assert not (folder / "small.onnx").exists()


def test_every_script_is_run() -> None:
    assert {path.name for path in SCRIPTS} == {example.script for example in EXAMPLES}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_an_example_takes_only_public_names(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    taken = [getattr(node, "module", None) or alias.name for node in imports for alias in node.names]
    assert {name for name in taken if name.startswith("onnxdecomp")} == {"onnxdecomp"}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in names if isinstance(node.value, ast.Name) and node.value.id == "onnxdecomp"}
    assert used and used <= set(onnxdecomp.__all__)


@pytest.mark.parametrize("page", ["README.md", "docs/README.md", "docs/python.md"])
def test_the_pages_lead_to_the_examples(page: str) -> None:
    assert "examples)" in (ROOT / page).read_text(encoding="utf-8")
