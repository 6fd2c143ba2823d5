"""What starting up loads: nothing that the command at hand does not need."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import SMALL, save, small_model, spawn

HEAVY = {
    "scipy",
    "tensorly",
    "onnx_graphsurgeon",
    "onnxruntime",
    "torch",
    "matplotlib",
    "optuna",
    "typeguard",
}
COMMAND = "import sys; sys.argv[1:] = {words!r}\nfrom onnxdecomp.cli import main\n"


def loaded(program: str, folder: Path) -> set[str]:
    """The top-level modules that a program has loaded when it ends, whatever ends it."""
    watch = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *{name.split('.')[0] for name in sys.modules}))\n"
    )
    done = spawn(sys.executable, "-c", watch + program, cwd=folder)
    assert "Traceback" not in done.err, done
    return set(done.out.rpartition("LOADED")[2].split())


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["rewrite", "--help"],
        ["search", "--help"],
        ["tune", "--help"],
        ["bench", "--help"],
    ],
)
def test_help_loads_neither_the_heavy_packages_nor_onnx(words: list[str], tmp_path: Path) -> None:
    found = loaded(COMMAND.format(words=words) + "main()", tmp_path)
    assert not found & (HEAVY | {"onnx", "numpy", "joblib"})


def test_importing_the_package_loads_nothing(tmp_path: Path) -> None:
    assert not loaded("import onnxdecomp", tmp_path) & (HEAVY | {"onnx", "numpy", "rich", "typer"})


@pytest.mark.parametrize("sizes", ["8,8", "H,W"])
def test_inspect_loads_nothing_heavy(sizes: str, tmp_path: Path) -> None:
    """Nor where sizes are not known and nothing can be run to find them."""
    save(small_model(SMALL.replace("8,8", sizes)), tmp_path / "in.onnx")
    found = loaded(COMMAND.format(words=["inspect", "in.onnx", "--json", "r.json"]) + "main()", tmp_path)
    assert not found & HEAVY
    assert (tmp_path / "r.json").exists()


def test_what_is_asked_for_is_found(tmp_path: Path) -> None:
    """The lazy names are there for those who look, and are what they say."""
    import onnxdecomp

    for name in onnxdecomp.__all__:
        assert getattr(onnxdecomp, name) is not None
    assert set(onnxdecomp.__all__) <= set(dir(onnxdecomp))
    with pytest.raises(AttributeError):
        _ = onnxdecomp.nothing
