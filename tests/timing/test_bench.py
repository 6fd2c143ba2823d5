"""`onnxdecomp bench`, from the command line to the report. No timing decides a test."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, command, save, small_model

import onnxdecomp
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import PROVIDERS
from onnxdecomp.timing import open_subjects, settings, subject_feeds

QUICK = ("--duration", "0.02")
DYNAMIC = """
dynamic (float[N,16,H,8] x) => (float[N,32,H,8] y) {
  h = Conv <pads=[1,1,1,1]> (x, w, b)
  y = Relu (h)
}
"""
TOKENS = "tokens (int64[N,T] ids) => (float[N,T,8] y) { y = Gather (w, ids) }"


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    return save(small_model(DYNAMIC), tmp_path / "dynamic.onnx")


def test_the_report_is_the_documented_one(small: Path, tmp_path: Path, cli: Cli) -> None:
    onnxdecomp.rewrite(small, 8, policy=onnxdecomp.Policy(allow_slower=True)).save(tmp_path / "out.onnx")
    report, table, picture = tmp_path / "r.json", tmp_path / "r.csv", tmp_path / "r.png"
    done = cli(
        "bench", small, tmp_path / "out.onnx", "--threads", "1,2", *QUICK, "--json", report, "--csv", table,
        "--plot", picture, "--per-layer",
    )  # fmt: skip
    assert done.code == 0, done
    document = json.loads(report.read_text())
    assert list(document) == ["environment", "rows", "comparisons", "complete", "per_layer"]
    assert document["complete"]
    assert document["environment"]["onnxruntime"]
    assert document["environment"]["warmup_runs"] >= 10
    assert [(r["model"], r["threads"]) for r in document["rows"]] == [
        ("in.onnx", 1), ("out.onnx", 1), ("in.onnx", 2), ("out.onnx", 2),
    ]  # fmt: skip
    for row in document["rows"]:
        assert row["provider"] == "cpu" and row["batch"] == 1
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["throughput_per_s"] == pytest.approx(1e3 / row["median_ms"])
        assert (
            row["file_bytes"]
            == (small if row["model"] == "in.onnx" else tmp_path / "out.onnx").stat().st_size
        )
    for compared in document["comparisons"]:
        assert (compared["a"], compared["b"]) == ("in.onnx", "out.onnx")
        a, b = (r["median_ms"] for r in document["rows"] if r["threads"] == compared["threads"])
        assert compared["speedup"]["ratio"] == pytest.approx(a / b)
        assert compared["speedup"]["low"] <= a / b <= compared["speedup"]["high"]
    assert document["per_layer"]["layers"][0]["layer"] == "conv"
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["model"] for row in rows] == ["in.onnx", "out.onnx"] * 2
    assert float(rows[0]["speedup"]) == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    for word in ("median ms", "p99", "peak memory", "out.onnx: ", "95 % interval", "per layer"):
        assert word in done.out


def test_a_model_against_itself_has_two_names(small: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("bench", small, small, *QUICK, "--json", tmp_path / "r.json")
    assert done.code == 0
    document = json.loads((tmp_path / "r.json").read_text())
    assert [row["model"] for row in document["rows"]] == ["in.onnx", "in.onnx (2)"]


def test_batches_and_shapes(dynamic: Path, tmp_path: Path, cli: Cli) -> None:
    refused = cli("bench", dynamic, *QUICK).refusal()
    assert "'x' has unknown dimensions (1,16,?,8): give --input-shape x:DIMS" in refused
    done = cli(
        "bench",
        dynamic,
        "--input-shape",
        "x:1,16,8,8",
        "--batch",
        "1,4",
        *QUICK,
        "--json",
        tmp_path / "r.json",
    )
    assert done.code == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["batch"] for row in rows] == [1, 4]
    assert rows[1]["throughput_per_s"] == pytest.approx(4e3 / rows[1]["median_ms"])


def test_an_assumed_batch_is_said(tmp_path: Path, cli: Cli) -> None:
    path = save(small_model(DYNAMIC.replace("H", "8")), tmp_path / "in.onnx")
    assert "batch 1 (assumed: give --batch)" in cli("bench", path, *QUICK).out
    assert "assumed" not in cli("bench", path, "--batch", "1", *QUICK).out


def test_the_batch_asked_for_goes_before_that_of_a_shape(dynamic: Path) -> None:
    (subject,) = open_subjects([dynamic])
    feeds, batch = subject_feeds(subject, 2, {"x": (1, 16, 8, 8)}, None)
    assert (batch, feeds["x"].shape) == (2, (2, 16, 8, 8))


def test_token_ids_are_made_up_and_asked_for(tmp_path: Path, cli: Cli) -> None:
    path = save(nets.model(TOKENS, w=nets.signal(10, 8)), tmp_path / "tokens.onnx")
    assert "give --input-shape ids:DIMS" in cli("bench", path, *QUICK).refusal()
    assert cli("bench", path, "--input-shape", "ids:1,5", *QUICK).code == 0


def test_samples_are_fed(small: Path, tmp_path: Path, cli: Cli) -> None:
    np.save(tmp_path / "x.npy", nets.signal(3, 16, 8, 8))
    done = cli("bench", small, "--data", tmp_path / "x.npy", *QUICK)
    assert done.code == 0
    assert "samples of" in done.out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--provider", "foo"), "is not one of 'cpu', 'cuda'"),
        (("--provider", "cuda"), "cuda needs onnxruntime-gpu"),
        (("--provider-option", "a=b"), "the CPU provider has none"),
        (("--provider-option", "a"), "KEY=VALUE"),
        (("--batch", "8"), "fixed at 1, so 8 cannot run"),
        (("--batch", "0"), "positive whole numbers"),
        (("--threads", "x"), "positive whole numbers"),
        (("--precision", "fp16"), "for GPUs"),
        (("--precision", "fp8"), "is not one of 'fp32', 'fp16'"),
        (("--cuda-graph",), "--provider cuda"),
        (("--runs", "0"), "too few"),
        (("--duration", "0"), "positive number of seconds"),
        (("--input-shape", "x:1,16,9,9"), "the model declares x:1,16,8,8"),
        (("--input-shape", "z:1"), "no such input; there are x"),
        (("--plot", "a.txt"), ".png or .svg"),
        (("--preset", "imagenet"), "--data"),
    ],
)
def test_bad_input_is_one_line(options: tuple[str, ...], complaint: str, small: Path, cli: Cli) -> None:
    import onnxruntime

    if "cuda" in options and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    assert complaint in cli("bench", small, *options, *([] if "--duration" in options else QUICK)).refusal()


def test_a_provider_that_is_missing_does_not_stop_the_others(small: Path, cli: Cli) -> None:
    done = cli("bench", small, "--provider", "coreml", "--provider", "cpu", *QUICK)
    assert done.code == 0
    assert "left out: this ONNX Runtime" in done.out


def test_models_that_do_not_load(small: Path, tmp_path: Path, cli: Cli) -> None:
    broken = onnx.load(small)
    broken.graph.node[0].op_type = "NoSuchOperator"
    assert (
        "does not run broken.onnx" in cli("bench", save(broken, tmp_path / "broken.onnx"), *QUICK).refusal()
    )
    (tmp_path / "text.onnx").write_text("hello")
    assert "not an ONNX model" in cli("bench", tmp_path / "text.onnx", *QUICK).refusal()
    assert "cannot read" in cli("bench", tmp_path / "none.onnx", *QUICK).refusal()
    before = small.read_bytes()
    assert "belongs to the input" in cli("bench", small, "--json", small, *QUICK).refusal()
    assert small.read_bytes() == before


# Before the n-th process that times a model starts, this one says so and waits for what comes.
HALT = """
import sys
times = 0
def audit(event, arguments):
    global times
    if event == "subprocess.Popen" and "onnxdecomp.timing.worker" in arguments[1]:
        times += 1
        if times == {}:
            print("halt", flush=True)
            sys.stdin.read()
sys.addaudithook(audit)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for child processes on Windows")
@pytest.mark.parametrize(
    ("process", "known"), [(2, "nothing was measured yet"), (4, "what was measured so far is above")]
)
def test_ctrl_c_prints_what_is_known(small: Path, tmp_path: Path, process: int, known: str) -> None:
    """In the first launch of two models, and in the second."""
    report = tmp_path / "r.json"
    python, option, start, *rest = command("bench", small, small, *QUICK, "--threads", "1", "--json", report)
    words, pipe = [python, option, HALT.format(process) + start, *rest], subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stdout is not None and running.stdout.readline() == "halt\n"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
    assert running.returncode == 130
    assert err.endswith(f"\nonnxdecomp: interrupted; {known}\n")
    assert ("(stopped at " in out) == (process == 4)
    assert json.loads(report.read_text())["complete"] is False


def test_cuda_settings_pin_the_search_and_say_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [each.name for each in PROVIDERS.values()]
    )
    (found,) = settings(["cuda"], options={}, threads=[1, 2], batches=[8], cuda_graph=True)
    assert found.options == {
        "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "1", "enable_cuda_graph": "1",
    }  # fmt: skip
    (own,) = settings(["cuda"], options={"use_tf32": "0"}, threads=[1], batches=[None], precision="fp16")
    assert own.options["use_tf32"] == "0"
    with pytest.raises(UsageError):
        settings(["cpu"], options={}, threads=[1], batches=[1], cuda_graph=True)
