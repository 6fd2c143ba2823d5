"""Fixtures shared by the tests of the command line, hostile input, external data, the API and documents."""

from __future__ import annotations

import gc
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto
from PIL import Image
from threadpoolctl import threadpool_limits

import onnxdecomp
from onnxdecomp.cli.app import main

# Workers that run beside each other have the cores already: threads of BLAS would only wait for theirs.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) > 1:
    for library in ("OPENBLAS", "MKL", "OMP"):  # of what is imported later, and of child processes
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    threadpool_limits(1, user_api="blas")


# Time since the start, right-aligned, and a stage.
_TOLD = re.compile(r" *\d+:[\d:]+  \S")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of the command line came to."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> list[str]:
        """The lines on standard error that say how far the work is, less the time."""
        return [line[9:] for line in self.err.splitlines() if _TOLD.match(line)]

    @property
    def besides(self) -> str:
        """What else is on standard error."""
        return "".join(line for line in self.err.splitlines(keepends=True) if not _TOLD.match(line))

    def refusal(self, code: int = 2) -> str:
        """The message of a refusal with exit code `code`: one line at the end of standard error."""
        assert self.code == code, self
        assert self.besides.startswith("onnxdecomp: ") and self.err.endswith(self.besides), self.err
        assert self.besides.count("\n") == 1 and self.besides.endswith("\n"), self.err
        return self.besides.removeprefix("onnxdecomp: ").rstrip("\n")


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line, in this process: `cli("inspect", path)`."""
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["onnxdecomp", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), shown.out, shown.err)

    return run


def command(*arguments: object) -> list[str]:
    """The command line as a process of its own; Ctrl-C reaches it whatever this process does with it."""
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from onnxdecomp.__main__ import main; main()"
    )
    return [sys.executable, "-c", start, *map(str, arguments)]


def spawn(*words: object, **options: object) -> Outcome:
    """Run a program to its end, in an environment without terminal settings."""
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, encoding="utf-8", timeout=300, env=env, **options
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def digest(path: Path) -> str:
    """The file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree(folder: Path) -> dict[str, str]:
    """Everything under `folder`, hidden or not: files by digest, links by target."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else digest(path)
        if path.is_file()
        else "folder"
        if path.is_dir()
        else "other"
        for path in folder.rglob("*")
    }


@contextmanager
def untouched(folder: Path, *besides: str) -> Iterator[None]:
    """The block changes, adds and leaves behind nothing in `folder` but the files named `besides`."""
    before = tree(folder)
    yield
    if any(name.startswith(".") for name in tree(folder).keys() - before.keys()):
        # A scratch folder lives as long as somebody holds its model: the traceback of a refusal may.
        gc.collect()
    after = tree(folder)
    for name in besides:
        assert after.pop(name, None) is not None, f"{name} was not written"
        before.pop(name, None)
    assert after == before


SMALL = """
small (float[1,16,8,8] x) => (float[1,32,8,8] y) {
  [conv] h = Conv <pads=[1,1,1,1]> (x, w, b)
  [act] y = Relu (h)
}
"""


def small_model(text: str = SMALL, **arrays: np.ndarray) -> ModelProto:
    """A 3×3 Conv from 16 to 32 channels and a Relu; `text` and arrays replace its own."""
    own = {"w": nets.weight(32, 16, 3, 3), "b": nets.signal(32, seed=3)} | arrays
    return nets.model(text, **{name: array for name, array in own.items() if name in text})


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The small model as `in.onnx`, alone in a folder."""
    return save(small_model(), tmp_path / "in.onnx")


def save(model: ModelProto, path: Path) -> Path:
    """Write the protobuf as it is; no library of ONNX has a say."""
    path.write_bytes(model.SerializeToString())
    return path


def save_external(model: ModelProto, path: Path, **options: object) -> Path:
    """Save `model` with all its tensors outside, in `<path>.data` unless told otherwise."""
    proto = ModelProto()
    proto.CopyFrom(model)
    settings = {"location": f"{path.name}.data", "size_threshold": 0, "convert_attribute": True} | options
    onnx.save(proto, path, save_as_external_data=True, **settings)
    return path


def external_entry(tensor: TensorProto) -> dict[str, str]:
    """Where the tensor's data lie: location, offset, length."""
    return {entry.key: entry.value for entry in tensor.external_data}


NETWORK = """
network (float[N,3,16,16] images) => (float[N,10] scores) {
  [stem] a = Conv <pads=[1,1,1,1]> (images, stem)
  b = Relu (a)
  [body] c = Conv <pads=[1,1,1,1], strides=[2,2]> (b, body)
  d = Relu (c)
  [last] e = Conv <pads=[1,1,1,1]> (d, last)
  f = Relu (e)
  g = GlobalAveragePool (f)
  h = Flatten (g)
  [head] scores = MatMul (h, head)
}
"""


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What documents and examples speak of: in.onnx, out.onnx, photos, labels.csv and samples.npz."""
    folder = tmp_path_factory.mktemp("docs")
    weights = {"stem": (32, 3, 3, 3), "body": (64, 32, 3, 3), "last": (64, 64, 3, 3), "head": (64, 10)}
    arrays = {name: nets.weight(*shape, seed=i) for i, (name, shape) in enumerate(weights.items())}
    save(nets.model(NETWORK, **arrays), folder / "in.onnx")
    onnxdecomp.rewrite(folder / "in.onnx", 0.5).save(folder / "out.onnx")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (96, 16, 16, 3), np.uint8)
    classes = rng.integers(0, 10, 96)
    (folder / "photos").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / "photos" / f"{number:03}.png")
    rows = [f"{number:03}.png,{label}" for number, label in enumerate(classes)]
    (folder / "labels.csv").write_text("\n".join(["file,class", *rows]) + "\n")
    np.savez(folder / "samples.npz", x=images, y=classes)
    return folder
