"""The check sees through padding: links whose channels do not fit are refused whatever the CPU's block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from conftest import save
from onnx import ModelProto

from onnxdecomp import check
from onnxdecomp.comparing import baseline, checking
from onnxdecomp.errors import CheckError, RunError
from onnxdecomp.ir import load
from onnxdecomp.runtime import Runner, open_in_onnxruntime

CONV = "m (float[1,16,9,9] x) => (float[1,32,9,9] y) { [conv] y = Conv <pads=[1,1,1,1]> (x, w) }"
CHAIN = """m (float[1,16,9,9] x) => (float[1,32,9,9] y) {
  a = Conv (x, u)
  b = Conv <pads=[1,1,1,1]> (a, core)
  y = Conv (b, v)
}"""


def chain(rank: int, lacking: int = 1) -> ModelProto:
    """A chain whose core expects `rank` channels, of which its input lacks some."""
    return nets.model(
        CHAIN,
        u=nets.weight(rank - lacking, 16, 1, 1, seed=1),
        core=nets.weight(16, rank, 3, 3, seed=2),
        v=nets.weight(32, 16, 1, 1, seed=3),
    )


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return save(nets.model(CONV, w=nets.weight(32, 16, 3, 3)), tmp_path / "in.onnx")


@pytest.mark.parametrize("rank", [8, 16, 24, 32])
def test_a_channel_that_only_padding_supplies_is_refused(rank: int, original: Path, tmp_path: Path) -> None:
    """With blocks of 8 or of 16 some of these run at the highest level of optimisation."""
    candidate = save(chain(rank), tmp_path / "out.onnx")
    with pytest.raises(RunError):
        open_in_onnxruntime(candidate, extended=True).run({"x": nets.signal(1, 16, 9, 9)})
    with pytest.raises(CheckError, match="fails where the original does not"):
        check(original, candidate)
    assert check(original, save(chain(rank, 0), tmp_path / "right.onnx")).status == "passed"


def padding(path: Path, *, extended: bool = False) -> Runner:
    """ONNX Runtime on a CPU whose blocks pad whatever is missing."""
    if extended:
        return open_in_onnxruntime(path, extended=True)

    def run(feeds: Any) -> dict[str, Any]:
        return {"y": np.ones((1, 32, 9, 9), np.float32)}

    return Runner("ONNX Runtime that pads", run, path)


def test_on_any_cpu(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model runs where channels are padded, and the level below tells."""
    monkeypatch.setattr(checking, "open_in_onnxruntime", padding)
    candidate = save(chain(8), tmp_path / "out.onnx")
    with pytest.raises(CheckError, match="fails where the original does not"):
        check(original, candidate)
    assert check(original, save(chain(8, 0), tmp_path / "right.onnx")).status == "passed"


def test_an_original_that_needs_the_highest_level_is_no_reason(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the original does not do either is not asked of the new model."""

    def broken(path: Path, *, extended: bool = False) -> Runner:
        if extended:
            raise RunError("a kernel is missing")
        return open_in_onnxruntime(path)

    monkeypatch.setattr(checking, "open_in_onnxruntime", broken)
    standard = baseline(load(original), {})
    assert check(standard, save(chain(8, 0), tmp_path / "out.onnx")).status == "passed"
