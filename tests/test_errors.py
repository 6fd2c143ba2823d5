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
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 199 + "…"),
        ("x" * 198 + "  " + "y" * 10, "x" * 198 + "…"),
        ("\x07" * 100, (r"\x07" * 100)[:199] + "…"),
    ],
)
def test_of_an_error_one_line_of_at_most_200_characters_is_repeated(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line
    assert len(line) <= 200


def test_what_was_cut_off_is_in_the_cause(cli: Cli, tmp_path: Path) -> None:
    model = small_model()
    model.graph.node[0].input[0] = "missing" * 100
    path = save(model, tmp_path / "in.onnx")
    with pytest.raises(ModelError) as refusal:
        baseline(load(path), {})
    before = f"{path} is not a valid ONNX model: "
    message = str(refusal.value)
    assert message.startswith(before) and message.endswith("…") and len(message) <= len(before) + 200
    assert "missing" * 100 in str(refusal.value.__cause__)
    assert message in cli("rewrite", path, tmp_path / "out.onnx", "--rank", "0.5").refusal()
