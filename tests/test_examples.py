"""The examples: each runs as a user would run it, on a small model and images made for it."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from conftest import Outcome, spawn

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
    """

    script: str
    words: tuple[str, ...]
    told: str
    model: str


EXAMPLES = (
    Example(
        script="classifier.py",
        words=("in.onnx", "photos", "labels.csv", "small.onnx", "--rank", "0.75", "--most-lost", "1"),
        told="wrote small.onnx",
        model="small.onnx",
    ),
)


@pytest.fixture
def folder(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with the model, the photos and their labels."""
    for source in shop.iterdir():
        (tmp_path / source.name).symlink_to(source, source.is_dir())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(script: str, *words: str, folder: Path) -> Outcome:
    return spawn(sys.executable, "-W", "error", ROOT / "examples" / script, *words, cwd=folder)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.script)
def test_an_example_runs_without_a_warning(example: Example, folder: Path) -> None:
    done = run(example.script, *example.words, folder=folder)
    assert (done.code, done.err) == (0, ""), done
    assert done.out.splitlines()[-1].startswith(example.told), done
    onnx.checker.check_model(folder / example.model, full_check=True)
    assert (folder / example.model).stat().st_size < (folder / "in.onnx").stat().st_size


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
