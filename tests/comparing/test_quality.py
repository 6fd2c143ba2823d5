"""Samples fitted to and samples held out, and what is said of the latter."""

from __future__ import annotations

import json
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from conftest import Cli
from onnx import ModelProto

from onnxdecomp import SampleSets, UsageError, open_samples
from onnxdecomp.comparing import measure_quality
from onnxdecomp.sampling.holdout import hold_out

TEXT = """m (float[N,16,6,6] x) => (float[N,5] y) {
  [one] a = Conv <pads=[1,1,1,1]> (x, w, b)
  r = Relu (a)
  g = GlobalAveragePool (r)
  f = Flatten (g)
  y = Gemm <transB=1> (f, v)
}"""
FIT = ("--rank", "0.25", "--min-channels", "1", "--align", "1", "--allow-slower")


def model() -> ModelProto:
    return nets.model(TEXT, w=nets.weight(24, 16, 3, 3), b=nets.signal(24, seed=3), v=nets.weight(5, 24))


def photos(count: int) -> np.ndarray:
    """Correlated channels, as behind a ReLU."""
    sources = nets.signal(count, 4, 6, 6, seed=1)
    mixed = np.tensordot(nets.signal(16, 4, seed=2), sources, (1, 1))
    return np.maximum(np.moveaxis(mixed, 0, 1), 0).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "in.onnx")
    x = photos(60)
    np.savez("data.npz", x=x, classes=nets.run(model(), x=x)["y"].argmax(1))
    return tmp_path


@pytest.mark.parametrize(
    ("total", "count", "sizes"), [(60, 20, (20, 40)), (60, 256, (53, 7)), (3, 2, (2, 1))]
)
def test_no_sample_is_both_fitted_and_held_out(total: int, count: int, sizes: tuple[int, int]) -> None:
    drawn = open_samples([{"x": photos(total)}], model())
    fitted, held_out = hold_out(drawn, count)
    assert (len(fitted), len(held_out)) == sizes
    assert not set(fitted.indices) & set(held_out.indices)
    assert hold_out(drawn, count)[0].indices == fitted.indices
    assert total < 10 or hold_out(drawn, count, seed=1)[0].indices != fitted.indices


@pytest.mark.parametrize(
    ("total", "count", "sizes"),
    [(60, 20, (20, 20, 40)), (60, 256, (37, 7, 53)), (400, 20, (20, 100, 300)), (1500, 256, (256, 300, 1200)),
     (6000, 256, (256, 1000, 5000)), (300, 256, (231, 44, 256)), (3, 2, (2, 1, 2))],
)  # fmt: skip
def test_what_is_not_measured_on_is_left_for_tuning(
    total: int, count: int, sizes: tuple[int, int, int]
) -> None:
    drawn = open_samples([{"x": photos(1)}] * total, model())
    sets = SampleSets.draw(drawn, count, tuned=True)
    assert sets.trained is not None and sets.tuned_on is sets.trained
    assert (len(sets.fitted), len(sets.held_out), len(sets.trained)) == sizes
    assert set(sets.fitted.indices) <= set(sets.trained.indices)
    assert sorted((*sets.trained.indices, *sets.held_out.indices)) == list(range(total))
    alone = SampleSets.draw(drawn, count)
    assert set(sets.fitted.indices) <= set(alone.fitted.indices)
    assert alone.trained is None and alone.tuned_on is alone.fitted


@pytest.mark.parametrize(("total", "count"), [(2, 2), (60, 1), (60, 0)])
def test_too_few_samples(total: int, count: int) -> None:
    with pytest.raises(UsageError):
        hold_out(open_samples([{"x": photos(total)}], model()), count)


def test_quality_is_what_numpy_says(files: Path) -> None:
    first, second = model(), model()
    weight = second.graph.initializer[0]
    smaller = (0.7 * nets.constants(first)["w"]).astype(np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(smaller, "w"))
    onnx.save(second, "b.onnx")
    x = photos(40)
    a, b = (nets.run(each, x=x)["y"] for each in (first, second))
    labels = (a.argmax(1) + (np.arange(40) % 4 == 0)) % 5
    found = measure_quality(
        files / "in.onnx", files / "b.onnx", open_samples([{"x": x}], first), fitted=7, labels=labels
    )
    assert found.accuracy == ((a.argmax(1) == labels).mean(), (b.argmax(1) == labels).mean())
    (output,) = found.outputs
    lost = np.linalg.norm(a.astype(float) - b) / np.linalg.norm(a.astype(float))
    assert output.relative_l2 == pytest.approx(lost, rel=1e-5)
    assert output.snr_db == pytest.approx(-20 * np.log10(lost), rel=1e-5)
    assert output.top1_agreement == (a.argmax(1) == b.argmax(1)).mean()
    assert (found.fitted, found.held_out) == (7, 40)


def test_rewrite_with_samples(cli: Cli, files: Path) -> None:
    command = ("rewrite", "in.onnx", "out.onnx", *FIT, "--data", "data.npz", "--samples", "40")
    done = cli(*command, "--labels", "classes", "--json", "report.json")
    assert done.code == 0, done.err
    report = json.loads(Path("report.json").read_text())
    fit = next(site["fit"] for site in report["sites"] if site["name"] == "one")
    assert fit["held_out"] < 0.8 * fit["plain"] and fit["fitted"] > 0
    quality = report["quality"]
    assert (quality["fitted_samples"], quality["held_out_samples"]) == (40, 20)
    assert quality["accuracy"]["before"] == 1.0 and quality["accuracy"]["after"] > 0.5
    assert "fitted to 40 samples; on 20 others" in done.out and "unverified" not in done.out
    first = Path("out.onnx").read_bytes()
    assert cli(*command).code == 0 and Path("out.onnx").read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--samples", "9"], "--data"),
        (["--labels", "classes"], "--data"),
        (["--data", "data.npz", "--samples", "1"], "at least 2"),
        (["--data", "data.npz", "--labels", "nothing"], "nothing"),
        (["--data", "missing.npz"], "missing.npz"),
        (["--data", "data.npz", "--preset", "imagenet"], ""),
    ],
)
def test_wrong_usage(cli: Cli, files: Path, arguments: list[str], says: str) -> None:
    done = cli("rewrite", "in.onnx", "out.onnx", *FIT, *arguments)
    assert says in done.refusal()
    assert not Path("out.onnx").exists()
