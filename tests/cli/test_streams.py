"""Documents on standard output, whole and alone; and numbers that are slips of the finger."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path

import nets
import numpy as np
import pytest
from conftest import Cli, command, save, small_model, untouched

import onnxdecomp

RANK = ("--rank", "0.25")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path / "cache"))


REPORTS = {
    "inspect": (("in.onnx",), "sites", "can be decomposed"),
    "rewrite": (("in.onnx", "out.onnx", *RANK), "total", "wrote out.onnx"),
    "search": (("in.onnx", "out.onnx", "--macs", "0.6", "--cost", "macs"), "goal", "wrote out.onnx"),
    "compare": (("in.onnx", "in.onnx"), "outputs", "relative L2"),
    "bench": (("in.onnx", "--runs", "1"), "rows", "median ms"),
    "cache": ((), "folder", "losses"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_on_standard_output_is_alone_there(small: Path, cli: Cli, name: str) -> None:
    words, key, shown = REPORTS[name]
    done = cli(name, *words, "--json", "-")
    assert done.code == 0 and key in json.loads(done.out)
    assert shown in done.err and not Path("-").exists()


def test_rows_and_plans_go_there_too(small: Path, cli: Cli) -> None:
    rows = list(csv.DictReader(io.StringIO(cli("bench", "in.onnx", "--runs", "1", "--csv", "-").out)))
    assert [row["model"] for row in rows] == ["in.onnx"]
    plan = onnxdecomp.Plan.from_json(cli("rewrite", "in.onnx", *RANK, "--dry-run", "--save-plan", "-").out)
    assert set(plan.sites) == {"conv"}


@pytest.mark.parametrize(
    "words",
    [
        ("rewrite", "in.onnx", "out.onnx", *RANK, "--json", "-", "--save-plan", "-"),
        ("bench", "in.onnx", "--json", "-", "--csv", "-"),
        ("rewrite", "in.onnx", "-", *RANK),
        ("search", "in.onnx", "-", "--macs", "0.6"),
    ],
)
def test_standard_output_takes_one_document_and_no_model(
    small: Path, cli: Cli, words: tuple[str, ...]
) -> None:
    with untouched(small.parent):
        assert "-" in cli(*words).refusal()


def test_a_file_of_that_name_has_its_folder_with_it(small: Path, cli: Cli) -> None:
    done = cli("inspect", "in.onnx", "--json", "./-")
    assert done.code == 0 and "can be decomposed" in done.out
    assert "sites" in json.loads(Path("-").read_text())


def test_a_document_is_utf_8_whatever_the_terminal_is(small: Path) -> None:
    model = small_model()
    model.graph.node[0].name = "Faltung_ä→"
    save(model, small)
    done = subprocess.run(
        ["env", "PYTHONIOENCODING=ascii", *command("inspect", small, "--json", "-", "-q")],
        capture_output=True,
    )
    assert json.loads(done.stdout.decode("utf-8"))["sites"][0]["name"] == "Faltung_ä→"


# Numbers and combinations that cannot be meant
# ---------------------------------------------

SLIPS = [
    (("compare", "in.onnx", "in.onnx", "--data", "x.npz", "--samples", "0"), "--samples"),
    (("rewrite", "in.onnx", "o.onnx", *RANK, "--data", "x.npz", "--samples", "0"), "--samples"),
    (("rewrite", "in.onnx", "o.onnx", *RANK, "--jobs", "0"), "--jobs 0"),
    (("rewrite", "in.onnx", "o.onnx", *RANK, "--jobs", "99999999"), "--jobs 99999999"),
    (("bench", "in.onnx", "--threads", "99999999"), "--threads"),
    (("search", "in.onnx", "o.onnx", "--macs", "0.5", "--threads", "99999999"), "--threads"),
    (("bench", "in.onnx", "--batch", "9" * 20), "--batch"),
    (("search", "in.onnx", "o.onnx", "--macs", "0.5", "--batch", "9" * 20), "--batch"),
    (("bench", "in.onnx", "--duration", "1e308"), "--duration"),
    (("bench", "in.onnx", "--runs", "9" * 30), "--runs"),
    (("inspect", "in.onnx", "--input-shape", f"x:1,16,{'9' * 30},8"), "--input-shape"),
    (("compare", "any.onnx", "any.onnx", "--input-shape", "x:999999999,16,8,8"), "larger than the memory"),
    (("compare", "in.onnx", "in.onnx", "--data", "x.npz", "--image-size", "999999999999"), "--image-size"),
    (("rewrite", "in.onnx", "o.onnx", "--plan", "p.json", "--align", "8"), "--align"),
    (("rewrite", "in.onnx", "o.onnx", "--plan", "p.json", "--min-channels", "16"), "--min-channels"),
    (("rewrite", "in.onnx", "o.onnx", "--plan", "p.json", "--method", "svd"), "--method"),
    (("rewrite", "in.onnx", "o.onnx", "--plan", "p.json", "--allow-slower"), "--allow-slower"),
]


@pytest.mark.parametrize(("words", "says"), SLIPS, ids=[" ".join(words)[:60] for words, _ in SLIPS])
def test_a_slip_of_the_finger_is_one_line(small: Path, cli: Cli, words: tuple[str, ...], says: str) -> None:
    open_batch = (
        "any (float[N,16,8,8] x) => (float[N,32,8,8] y) { [conv] y = Conv <pads=[1,1,1,1]> (x, w, b) }"
    )
    save(small_model(open_batch), Path("any.onnx"))
    np.savez("x.npz", x=nets.signal(4, 16, 8, 8))
    Path("p.json").write_text('{"version": 1, "sites": {}}')
    with untouched(small.parent):
        assert says in cli(*words).refusal()


def test_a_plan_goes_with_what_does_not_choose_ranks(small: Path, cli: Cli) -> None:
    cli("rewrite", small, "first.onnx", *RANK, "--save-plan", "p.json")
    done = cli(
        "rewrite", small, "second.onnx", "--plan", "p.json", "--linear", "--only", "conv", "--jobs", "1"
    )
    assert done.code == 0 and Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes()
