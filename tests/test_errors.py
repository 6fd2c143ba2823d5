"""Errors: what a message repeats of another library's."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli, save, small_model

from onnxdecomp.comparing import baseline
from onnxdecomp.errors import ModelError, first_line
from onnxdecomp.ir import load


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one", "one"),
        ("\n \n  the first \nthe second", "the first"),
        ("bell\x07", r"bell\x07"),
        ("", "ValueError"),
        ("x" * 300, "x" * 300),
        ("x" * 301, "x" * 299 + "…"),
        ("x" * 298 + "  " + "y" * 10, "x" * 298 + "…"),
        ("\x07" * 100, (r"\x07" * 100)[:299] + "…"),
    ],
)
def test_of_an_error_one_line_of_at_most_300_characters_is_repeated(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line
    assert len(line) <= 300


def test_what_was_cut_off_is_in_the_cause(cli: Cli, tmp_path: Path) -> None:
    model = small_model()
    model.graph.node[0].op_type = "Convolve" * 100
    path = save(model, tmp_path / "in.onnx")
    with pytest.raises(ModelError) as refusal:
        baseline(load(path), {})
    before = f"{path} is not a valid ONNX model: "
    message = str(refusal.value)
    assert message.startswith(before) and message.endswith("…") and len(message) <= len(before) + 300
    assert "Convolve" * 100 in str(refusal.value.__cause__)
    assert message in cli("rewrite", path, tmp_path / "out.onnx", "--rank", "0.5").refusal()
