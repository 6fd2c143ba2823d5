"""How far long work is: lines in a log, a bar on a terminal, and records of logging."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import nets
import numpy as np
import pytest
from conftest import Cli, command, save, small_model

import onnxdecomp
from onnxdecomp.cli.telling import Lines
from onnxdecomp.progress import TRIED, ProgressEvent

RANK = ("--rank", "0.25")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path / "cache"))


class Log:
    """Lines of a log whose clock is set by hand."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        self.tell = Lines(self.lines.append, verbose=verbose, began=0.0, clock=lambda: self.now)

    def work(self, stage: str, total: int, seconds: float) -> list[str]:
        """The lines of a stage whose items take as long each."""
        before = len(self.lines)
        self.tell(ProgressEvent(stage, 0, total))
        for done in range(1, total + 1):
            self.now += seconds
            self.tell(ProgressEvent(stage, done, total, f"conv{done}"))
        return [line.strip() for line in self.lines[before:]]


def test_a_stage_is_a_line_as_it_begins_and_as_it_ends() -> None:
    log = Log()
    log.now = 3.0
    assert log.work("fitting", 10, 0.1) == ["0:03  fitting: 0 of 10", "0:04  fitting: 10 of 10"]
    assert log.work("checking", 1, 70.0) == ["0:04  checking", "1:14  checking: done"]


def test_a_long_stage_is_told_of_now_and_then_with_the_time_left() -> None:
    log = Log()
    lines = log.work("timing the choices", 60, 60.0)[1:-1]
    assert lines[0] == "1:00  timing the choices: 1 of 60, about 59:00 left" and len(lines) == 59
    lines = log.work("fitting", 100, 2.0)
    assert lines[1] == "1:00:16  fitting: 8 of 100, about 3:04 left"
    assert len(lines) == 2 + 200 // 16


def test_every_item_is_told_of_to_those_who_ask() -> None:
    lines = Log(verbose=True).work("fitting", 3, 2.0)
    assert lines[1:] == [
        "0:02  fitting: 1 of 3, conv1, about 0:04 left",
        "0:04  fitting: 2 of 3, conv2, about 0:02 left",
        "0:06  fitting: 3 of 3, conv3",
    ]


def test_a_model_that_was_tried_is_always_told_of() -> None:
    log = Log()
    for number in range(3):
        log.tell(ProgressEvent(TRIED, 1, 1, f"{number} sites\x1b[2J"))
    assert [line.strip() for line in log.lines] == [f"0:00  tried: {i} sites\\x1b[2J" for i in range(3)]


STAGES = {
    ("rewrite", "in.onnx", "out.onnx", *RANK): [
        "running the original", "factoring", "checking the new model",
    ],
    ("inspect", "in.onnx", "--spectrum"): ["reading spectra"],
    ("compare", "in.onnx", "in.onnx"): ["comparing"],
    ("bench", "in.onnx", "--runs", "1"): ["measuring cpu"],
    ("search", "in.onnx", "out.onnx", "--macs", "0.6", "--cost", "macs"): [
        "running the original", "reading spectra", "factoring", "tried", "checking the new model",
    ],
}  # fmt: skip


@pytest.mark.parametrize("words", STAGES, ids=lambda words: words[0])
def test_every_long_command_tells_its_stages(words: tuple[str, ...], small: Path, cli: Cli) -> None:
    done = cli(*words)
    assert done.code == 0 and done.besides == "" and "\x1b" not in done.out + done.err
    stages = list(dict.fromkeys(line.split(":")[0].split(",")[0] for line in done.told))
    assert stages == STAGES[words]
    quiet = cli(*words, "-q")
    assert quiet.code == 0 and quiet.err == ""
    if words[0] in ("rewrite", "inspect"):
        assert any("conv" in line for line in cli(*words, "-v").told)
        assert not any("conv" in line for line in done.told)
    cli(*words, "-q", "-v").refusal()


def test_lines_that_nobody_can_take_do_not_stop_the_work(small: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command("rewrite", small, "out.onnx", *RANK), stderr=full, capture_output=False)
    assert done.returncode == 0 and Path("out.onnx").exists()


def test_logging_hears_of_stages_and_items(
    small: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    onnxdecomp.rewrite(small, 0.25)
    assert capfd.readouterr() == ("", "")
    with caplog.at_level(logging.DEBUG, logger="onnxdecomp"):
        onnxdecomp.rewrite(small, 0.25)
    found = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert found == [
        ("INFO", "factoring: 0 of 1"), ("DEBUG", "factoring: 1 of 1, conv"), ("INFO", "factoring: 1 of 1"),
    ]  # fmt: skip
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="onnxdecomp"):
        onnxdecomp.search(small, onnxdecomp.Goal("macs", 0.6), cost="macs")
        onnxdecomp.inspect(small, spectrum=True)
        onnxdecomp.bench([small], budget=onnxdecomp.Budget(runs=1))
    text = caplog.text
    for stage in ("running the original: 1 of 1", "tried: ", "reading spectra: 1 of 1", "measuring cpu"):
        assert stage in text
    assert {record.name for record in caplog.records} == {"onnxdecomp"}


def test_only_the_application_configures_logging() -> None:
    (handler,) = logging.getLogger("onnxdecomp").handlers
    assert isinstance(handler, logging.NullHandler)


# Terminals
# ---------


def on_terminal(words: list[str], **environment: str) -> str:
    """What a command writes to a terminal of 80 columns that is its standard output and standard error."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "TERM")}
    env |= {"TERM": "xterm-256color"} | environment
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux says so that the other end is closed
        return b""


@pytest.mark.parametrize(
    "plain", [{"NO_COLOR": "1"}, pytest.param({"TERM": "dumb"}, marks=pytest.mark.heavy)]
)
def test_where_no_codes_are_wanted_none_come(small: Path, plain: dict[str, str]) -> None:
    words = command("rewrite", small, "out.onnx", *RANK)
    bare = on_terminal(words, **plain)
    assert "\x1b" not in bare and "Conv parameters" in bare and "factoring: done" in bare
    assert "\x1b" in on_terminal(words)


@pytest.mark.parametrize("columns", ["0", "-5", "", "wide", "99999999999", "²"])
def test_columns_that_are_none_count_as_unset(
    small: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    unset = cli("inspect", small).out
    monkeypatch.setenv("COLUMNS", columns)
    assert cli("inspect", small).out == unset
    monkeypatch.setenv("COLUMNS", "50")
    assert cli("inspect", small).out != unset


def test_whole_tables_need_no_room(small: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    model.graph.node[0].name = "StatefulPartitionedCall/" * 8 + "Conv2D"
    save(model, small)
    monkeypatch.setenv("COLUMNS", "60")
    assert model.graph.node[0].name not in cli("inspect", small).out
    assert model.graph.node[0].name in cli("inspect", small, "-v").out


NARROW = {
    "rewrite": ("in.onnx", "out.onnx", *RANK),
    "rewrite and measure": ("in.onnx", "out.onnx", *RANK, "--data", "samples.npz", "--samples", "8"),
    "rewrite unchecked": ("in.onnx", "out.onnx", *RANK, "--no-check"),
    "search": ("in.onnx", "out.onnx", "--macs", "0.6", "--cost", "macs"),
    "compare": ("in.onnx", "in.onnx"),
    "bench": ("in.onnx", "--runs", "1"),
}


@pytest.mark.parametrize("name", NARROW)
def test_sentences_wrap_where_tables_do(
    small: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    np.savez("samples.npz", x=nets.signal(24, 16, 8, 8))
    monkeypatch.setenv("COLUMNS", "60")
    done = cli(name.split()[0], *NARROW[name])
    assert done.code == 0 and max(map(len, done.out.splitlines())) <= 60, done.out


def test_a_place_is_never_wrapped(small: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there to be copied."""
    monkeypatch.setenv("COLUMNS", "40")
    output = f"{'long' * 12}.onnx"
    assert f"wrote {output}\n" in cli("rewrite", "in.onnx", output, *RANK, "--no-check").out
