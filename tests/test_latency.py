"""Placement in ONNX Runtime's blocked layout, and the statistics of a race. No timing decides a test."""

from pathlib import Path

import numpy as np
import pytest

import onnxdecomp
from models import NETWORKS, ModelsError, export, fetch
from onnxdecomp.latency import Race, placement, race


def model(name: str, folder: Path) -> Path:
    """A network exported from PyTorch, or a file of the corpus; skips where it cannot be had."""
    try:
        exported = name in {network.name for network in NETWORKS}
        return export(name, folder / f"{name}.onnx") if exported else fetch(name)
    except ModelsError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["anime_or_not_resnet18", "resnet18"])
def test_every_chain_of_a_resnet18_is_blocked_and_no_reorder_is_added(name: str, tmp_path: Path) -> None:
    resnet18 = model(name, tmp_path)
    result = onnxdecomp.rewrite(resnet18, 0.25)
    result.save(tmp_path / "out.onnx")
    before, after = placement(resnet18), placement(tmp_path / "out.onnx")
    assert len(result.plan.sites) == 20
    added = sum(2 if choice.method == "tucker2" else 1 for choice in result.plan.sites.values())
    assert len(after.blocked) == len(before.blocked) + added
    assert not after.plain
    assert after.reorders <= before.reorders


def test_a_rank_that_is_no_multiple_of_four_falls_out_of_the_blocked_layout(tmp_path: Path) -> None:
    """What alignment is for: the same network at 30 instead of 32 channels."""
    source = model("resnet18", tmp_path)
    for rank, falls_out in ((32, False), (30, True)):
        onnxdecomp.rewrite(source, rank, only="features.4/").save(tmp_path / "out.onnx")
        assert bool(placement(tmp_path / "out.onnx").plain) is falls_out


def test_speedup_is_the_ratio_of_medians_and_its_interval_holds_it() -> None:
    generator = np.random.default_rng(0)
    times = Race(a=2.0 + generator.exponential(0.1, 60), b=1.0 + generator.exponential(0.1, 60))
    low, high = times.interval()
    assert times.speedup == pytest.approx(np.median(times.a) / np.median(times.b))
    assert low < times.speedup < high
    assert 1.8 < low < high < 2.1
    same = Race(a=times.a, b=times.a[::-1])
    assert same.speedup == 1.0
    assert same.interval()[0] <= 1.0 <= same.interval()[1]


def test_a_race_times_every_run_of_both_models(tmp_path: Path) -> None:
    source = model("conv1d", tmp_path)
    feeds = {"input": np.zeros((1, 12, 4096), np.float32)}
    timed = race(source, source, feeds, runs=3)
    assert timed.a.shape == timed.b.shape == (3,)
    assert (timed.a > 0).all()
    assert (timed.b > 0).all()
