"""Texts as users of the command line read them."""

from __future__ import annotations

import re
from pathlib import Path

import nets
import pytest
import typer
from conftest import Cli, save

from onnxdecomp.cli.app import app
from onnxdecomp.show.text import FLAGS, escape, sentence, with_flags

COMMANDS = typer.main.get_command(app).commands.values()
OPTIONS = {
    option
    for command in COMMANDS
    for parameter in command.params
    for option in (*parameter.opts, *parameter.secondary_opts)
}


@pytest.mark.parametrize("name", FLAGS)
def test_every_name_becomes_an_option_that_a_command_has(name: str) -> None:
    assert set(re.findall(r"--[\w-]+", FLAGS[name])) <= OPTIONS and FLAGS[name].startswith("--")
    assert with_flags(f"`{name}` 3: give another") == f"{FLAGS[name]} 3: give another"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`align` 0: must be at least 1", "--align 0: must be at least 1"),
        (
            "callers may override (`freeze_weights` fixes it)",
            "callers may override (--freeze-weights fixes it)",
        ),
        ("NaN or Inf of the weight (see `fold_bn`)", "NaN or Inf of the weight (see --no-fold-bn)"),
        ("by `scale`, `mean`, `std`", "by --scale, --mean, --std"),
        ("`onnxdecomp inspect` lists them", "`onnxdecomp inspect` lists them"),
        ("`progress` raised", "`progress` raised"),
        ("align, 'data' and ``", "align, 'data' and ``"),
        ("plan, site '`align`': unknown", "plan, site '`align`': unknown"),
        ("site x`align`y", "site x`align`y"),
    ],
)
def test_names_in_backticks_become_options_and_all_else_stays(text: str, shown: str) -> None:
    assert with_flags(text) == shown


def test_a_sentence_has_options_and_no_markup() -> None:
    assert sentence("[red]`rank`[/red]\x1b") == r"\[red]--rank\[/red]\x1b"
    assert escape("[red]`rank`[/red]\x1b") == r"\[red]`rank`\[/red]\x1b"


def test_tables_show_the_options_of_reasons_and_the_sites_as_they_are_named(cli: Cli, tmp_path: Path) -> None:
    model = nets.model(
        "g (float[1,4,8,8] x) => (float[1,4,6,6] y) { y = Conv (x, w) }", w=nets.weight(4, 4, 3, 3)
    )
    model.graph.node[0].name = "`rank`"
    path = save(model, tmp_path / "in.onnx")
    out = cli("inspect", path).out
    assert "too small to pay: 4→4 channels, and --min-channels is 16" in out
    assert "`rank`" in out and "--rank" not in out
