"""Everything once: how often a command parses its input, surveys it, and opens sessions of whole models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Cli, save

from onnxdecomp import ir, timing
from onnxdecomp.ir import model as loading
from onnxdecomp.ir import surveying
from onnxdecomp.searching import costs, workshop


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, small: Path) -> Counter[str]:
    """How often the small model is parsed and surveyed, and a whole model loaded into ONNX Runtime."""
    counts: Counter[str] = Counter()

    def counting(what: str, function: Callable[..., Any], own: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            counts[what] += own(*args)
            return function(*args, **options)

        return call

    def is_input(path: object, *_: object) -> bool:
        return isinstance(path, str | Path) and Path(path).resolve() == small.resolve()

    parse = counting("parses", loading.load, is_input)
    monkeypatch.setattr(loading, "load", parse)
    monkeypatch.setattr(ir, "load", parse)
    for name in ("load", "load_model"):
        monkeypatch.setattr(onnx, name, counting("parses", onnx.load, is_input))
    monkeypatch.setattr(
        surveying, "infer_shapes", counting("surveys", surveying.infer_shapes, lambda *_: True)
    )
    sessions = counting("sessions", onnxruntime.InferenceSession, lambda model, *_: isinstance(model, str))
    monkeypatch.setattr(onnxruntime, "InferenceSession", sessions)
    return counts


@pytest.fixture
def samples(small: Path) -> Path:
    np.savez(small.parent / "x.npz", x=nets.signal(24, 16, 8, 8))
    return small.parent / "x.npz"


RANK = ("--rank", "0.5", "--allow-slower")


@pytest.mark.parametrize(
    ("options", "sessions"),
    [((), 3), (("--data", "x.npz"), 4), (("--no-check",), 0), (("--dry-run", "--save-plan", "p.json"), 0)],
)
def test_rewrite(
    options: tuple[str, ...], sessions: int, small: Path, samples: Path, cli: Cli, counted: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(small.parent)
    done = cli("rewrite", small, "out.onnx", *RANK, *options, "--json", "r.json")
    assert done.code == 0, done
    assert (counted["parses"], counted["surveys"]) == (1, 1)
    assert counted["sessions"] == sessions


@pytest.mark.parametrize(("command", "others"), [("inspect", ()), ("rewrite", ("out.onnx", *RANK))])
def test_sizes_that_inference_cannot_tell_take_a_session(
    command: str, others: tuple[str, ...], small: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of their own: the check loads the file as it is, which does not hand out the tensors inside."""
    save(nets.blind(extra=np.float32([1])), small)
    monkeypatch.chdir(small.parent)
    seen: list[object] = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda model, *a, **k: (seen.append(model), real(model, *a, **k))[1]
    )
    assert cli(command, small, *others).code == 0
    assert len([model for model in seen if isinstance(model, bytes)]) == 1


def test_inspect(small: Path, cli: Cli, counted: Counter[str]) -> None:
    assert cli("inspect", small, "--spectrum", "--linear").code == 0
    assert (counted["parses"], counted["surveys"], counted["sessions"]) == (1, 1, 0)


def test_compare(small: Path, cli: Cli, counted: Counter[str]) -> None:
    other = small.parent / "other.onnx"
    other.write_bytes(small.read_bytes())
    assert cli("compare", small, other).code == 0
    assert (counted["parses"], counted["surveys"], counted["sessions"]) == (1, 0, 2)


@pytest.mark.parametrize("goal", [("--macs", "0.6", "--cost", "macs"), ("--max-error", "0.2")])
def test_search(
    goal: tuple[str, ...], small: Path, samples: Path, cli: Cli, counted: Counter[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """However many models it tries."""
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(costs, "time_models", lambda models, *_: [1.0, *[0.5] * (len(models) - 1)])
    launch = timing.Launch(seconds=np.ones(4), load_s=0, copies_s=None, peak_memory=None)
    faster = timing.Launch(seconds=np.full(4, 0.5), load_s=0, copies_s=None, peak_memory=None)
    monkeypatch.setattr(workshop, "race", lambda them, *_: [[launch] * 3, [faster] * 3][: len(them)])
    words = (*goal, "--data", samples, "--min-channels", "8", "--best-effort")
    done = cli("search", small, small.parent / "out.onnx", *words)
    assert done.code == 0, done
    assert (counted["parses"], counted["surveys"]) == (1, 1)
