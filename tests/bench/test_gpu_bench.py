"""The benchmark of GPUs, tried on the CPU. No timing decides a test."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import save
from onnx import ModelProto, numpy_helper

import models
import onnxdecomp
from bench import gpu, results
from onnxdecomp.errors import RunError
from onnxdecomp.runtime import PROVIDERS
from onnxdecomp.timing import Launch

COLUMNS = [
    "model", "precision", "tf32", "batch",
    "median_ms_before", "median_ms_after", "speedup", "speedup_low", "speedup_high",
    "images_per_second_before", "images_per_second_after", "copies_ms_before", "copies_ms_after", "note",
]  # fmt: skip
DYNAMIC = """
dynamic (float[batch,16,8,8] input) => (float[batch,32,8,8] output) {
  h = Conv <pads=[1,1,1,1]> (input, w, b)
  output = Relu (h)
}
"""
QUICK = ("--provider", "cpu", "--batches", "1", "--duration", "0.02")
ON_CPU = gpu.Setting(provider=PROVIDERS["cpu"], precision="fp32", batch=1)


def dynamic() -> ModelProto:
    return nets.model(DYNAMIC, w=nets.weight(32, 16, 3, 3), b=nets.signal(32, seed=3))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a network of one Conv, which the benchmark takes for one of its own."""
    monkeypatch.setitem(gpu.SHAPES, "tiny", (1, 16, 8, 8))
    monkeypatch.setattr(gpu, "export", lambda name, path, **_: save(dynamic(), path))
    return "tiny"


@pytest.fixture
def pair(tmp_path: Path) -> gpu.Pair:
    before, after = save(dynamic(), tmp_path / "tiny.onnx"), tmp_path / "tiny-rewritten.onnx"
    onnxdecomp.rewrite(before, 8).save(after)
    return before, after


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in the place of the recorded results, and one for `OUT`."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return tmp_path


def launch(seconds: float, copies_s: float | None) -> Launch:
    return Launch(seconds=np.full(8, seconds), load_s=0.1, copies_s=copies_s, peak_memory=None)


def test_a_network_is_measured_in_every_setting_and_nothing_of_a_cpu_is_recorded(
    tiny: str, unwritten: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--networks", tiny, "--precisions", "fp32", "--rank", "8", *QUICK, "--batches", "1", "3"]
    rows = gpu.run(gpu.parse(words))
    assert [(row["model"], row["precision"], row["tf32"], row["batch"]) for row in rows] == [
        (tiny, "fp32", None, 1),
        (tiny, "fp32", None, 3),
    ]
    for row in rows:
        assert list(row) == COLUMNS
        assert row["note"] == ""
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert row["images_per_second_after"] == pytest.approx(
            1e3 * row["batch"] / row["median_ms_after"], rel=0.01
        )
        assert row["copies_ms_before"] is row["copies_ms_after"] is None
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == COLUMNS
    assert len(lines) == 2
    assert not (unwritten / "results").exists()
    assert not list((unwritten / "out").iterdir())


@pytest.mark.heavy
def test_an_exported_network_has_an_open_batch_before_and_after(tmp_path: Path) -> None:
    try:
        found = gpu.make_pair("vgg16_cifar10", "0.25", tmp_path)
    except models.ModelsError as error:
        pytest.skip(str(error))
    setting = gpu.Setting(provider=PROVIDERS["cpu"], precision="fp32", batch=2)
    for path in found:
        assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        assert gpu.assert_right(path, path, setting, gpu.feeds_of("vgg16_cifar10", 2)) == 0


def test_what_is_timed_is_right_before_the_first_row(tiny: str, pair: gpu.Pair, tmp_path: Path) -> None:
    """One weight off in the file that runs on the device, as a provider's wrong kernel would have it."""
    broken = onnx.load(pair[1])
    weight = max(broken.graph.initializer, key=lambda each: len(each.raw_data))
    weight.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(weight), weight.name))
    wrong = save(broken, tmp_path / "wrong.onnx")
    feeds = gpu.feeds_of(tiny, 1)
    assert gpu.assert_right(pair[1], pair[1], ON_CPU, feeds) < 1e-6
    with pytest.raises(AssertionError, match=r"wrong in fp32: its outputs are off by 0\.0\d+, more than"):
        gpu.assert_right(pair[1], wrong, ON_CPU, feeds)


def test_not_a_number_is_wrong(tiny: str, pair: gpu.Pair, tmp_path: Path) -> None:
    broken = onnx.load(pair[1])
    bias = next(each for each in broken.graph.initializer if len(each.dims) == 1)
    bias.CopyFrom(numpy_helper.from_array(np.full(bias.dims, np.nan, np.float32), bias.name))
    # ONNX Runtime's Relu makes zero of it on some processors, which is off as well.
    with pytest.raises(AssertionError, match="in fp32: its outputs are off by"):
        gpu.assert_right(pair[1], save(broken, tmp_path / "nan.onnx"), ON_CPU, gpu.feeds_of(tiny, 1))


def test_a_wrong_model_is_never_timed(
    tiny: str, pair: gpu.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_race(*_: Any) -> None:
        pytest.fail("timed before it was right")

    monkeypatch.setattr(gpu, "race", no_race)
    monkeypatch.setattr(gpu, "in_precision", lambda found, *_: (found[0], found[0]))
    rows = gpu.measure(tiny, pair, [ON_CPU], gpu.Budget(duration=0.02), tmp_path)
    with pytest.raises(AssertionError, match="off by"):
        list(rows)


def test_half_precision_keeps_the_types_of_inputs_and_outputs(
    tiny: str, pair: gpu.Pair, tmp_path: Path
) -> None:
    setting = gpu.Setting(provider=PROVIDERS["cpu"], precision="fp16", batch=1)
    for reference, path in zip(pair, gpu.in_precision(pair, "fp16", tmp_path), strict=True):
        before, after = onnx.load(reference), onnx.load(path)
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        assert {each.data_type for each in after.graph.initializer} == {onnx.TensorProto.FLOAT16}
        assert 0 < gpu.assert_right(reference, path, setting, gpu.feeds_of(tiny, 1)) < 5e-3


@pytest.mark.parametrize(("says", "is_noted"), [("Failed to allocate memory", True), ("no kernel", False)])
def test_too_little_memory_is_a_row_and_any_other_failure_an_end(
    tiny: str, pair: gpu.Pair, monkeypatch: pytest.MonkeyPatch, says: str, is_noted: bool
) -> None:
    def fails(*_: Any) -> None:
        raise RunError(says)

    monkeypatch.setattr(gpu, "race", fails)
    if not is_noted:
        with pytest.raises(RunError, match=says):
            gpu.timed(tiny, pair, ON_CPU, gpu.Budget())
        return
    row = gpu.place(tiny, ON_CPU) | gpu.timed(tiny, pair, ON_CPU, gpu.Budget())
    assert list(row) == COLUMNS
    assert row["note"] == f"out of memory: {says}"
    assert row["speedup"] is row["images_per_second_before"] is None
    assert gpu.line(row).endswith(says)


def test_figures_are_milliseconds_and_samples_per_second() -> None:
    row = gpu.figures([launch(0.008, 0.001)] * 3, [launch(0.002, 0.003)] * 3, 64)
    assert row == {
        "median_ms_before": 8.0, "median_ms_after": 2.0,
        "speedup": 4.0, "speedup_low": 4.0, "speedup_high": 4.0,
        "images_per_second_before": 8000.0, "images_per_second_after": 32000.0,
        "copies_ms_before": 1.0, "copies_ms_after": 3.0,
    }  # fmt: skip


def test_tf32_is_set_and_said() -> None:
    found = {}
    for name, precision in gpu.PRECISIONS.items():
        setting = gpu.Setting(provider=PROVIDERS["cuda"], precision=name, batch=8)
        assert setting.engine.options == precision.options(PROVIDERS["cuda"])
        assert setting.engine.options["cudnn_conv_algo_search"] == "HEURISTIC"
        row = gpu.place("resnet18", setting)
        found[name] = (setting.engine.options["use_tf32"], row["precision"], row["tf32"])
    assert found == {"tf32": ("1", "fp32", True), "fp32": ("0", "fp32", False), "fp16": ("0", "fp16", None)}


def test_results_are_copied_to_where_the_environment_says(unwritten: Path) -> None:
    for words, name in (([], "gpu-rank0.25"), (["--networks", "unet"], "gpu-rank0.25-unet")):
        row = gpu.place("unet", ON_CPU) | gpu.figures([launch(2, None)] * 3, [launch(1, None)] * 3, 1)
        path = gpu.record([row], gpu.parse(words))
        assert path.parent == unwritten / "results"
        assert path.name.startswith(f"{name}-")
        copy = unwritten / "out" / path.name
        with copy.open(newline="", encoding="utf-8") as stream:
            (read,) = csv.DictReader(stream)
        assert read["speedup"] == "2.0"
        conditions = json.loads(copy.with_suffix(".json").read_text())
        assert conditions["environment"]["onnxruntime"] == onnxruntime.__version__
        assert conditions["options"]["provider_options"]["tf32"]["use_tf32"] == "1"


def test_without_cuda_there_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert gpu.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "has no CUDAExecutionProvider" in shown.err
    assert "pip install onnxruntime-gpu" in shown.err


def test_a_build_with_cuda_but_no_gpu_has_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(gpu, "refusal", lambda provider: "no CUDA-capable device is detected")
    assert gpu.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "no CUDA-capable device is detected" in shown.err
    assert "onnxruntime-gpu" in shown.err


def test_the_probe_runs_where_a_provider_does() -> None:
    assert gpu.obstacle(PROVIDERS["cpu"]) is None
