"""bench(), with launches made up: what it returns, tells and refuses. No timing decides a test."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, save, small_model

from onnxdecomp.errors import RunError, StoppedError, UsageError
from onnxdecomp.ir import load
from onnxdecomp.ir import model as ir_model
from onnxdecomp.progress import Progress, ProgressEvent
from onnxdecomp.runtime import PROVIDERS
from onnxdecomp.sampling import open_samples
from onnxdecomp.timing import Budget, Contestant, Launch, Setting, bench, cells, settings

# Seconds per run of the first model, the second and so on, and of each one's two launches.
SECONDS = ((4e-3, 4.1e-3), (2e-3, 2.2e-3), (1e-3, 1e-3))
Calls = list[tuple[Sequence[Contestant], Any, Budget]]


@pytest.fixture
def raced(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """In place of processes: two launches of four runs each; returns what was asked for."""
    calls: Calls = []

    def launches(
        contestants: Sequence[Contestant], engine: Any, budget: Budget
    ) -> Iterator[tuple[tuple[Launch, ...], float]]:
        calls.append((contestants, engine, budget))
        for turn in range(2):
            found = (
                Launch(seconds=np.full(4, own[turn]), load_s=0.1, copies_s=None, peak_memory=50_000_000)
                for own, _ in zip(SECONDS, contestants, strict=False)
            )
            yield tuple(found), (turn + 1) / 2

    monkeypatch.setattr(cells, "launches", launches)
    return calls


@pytest.fixture
def pair(small: Path) -> list[Path]:
    return [small, save(small_model(), small.parent / "out.onnx")]


def without_load(document: dict[str, Any]) -> dict[str, Any]:
    """All but the one figure of the machine that changes by itself."""
    return document | {"environment": {k: v for k, v in document["environment"].items() if k != "load"}}


def test_the_result_is_the_report_of_the_command_line(
    pair: list[Path], raced: Calls, tmp_path: Path, cli: Cli
) -> None:
    report, table = tmp_path / "r.json", tmp_path / "r.csv"
    assert cli("bench", *pair, "--threads", "1,2", "--json", report, "--csv", table).code == 0
    result = bench(pair, settings=settings(threads=[1, 2]))
    assert without_load(result.to_dict()) == without_load(json.loads(report.read_text()))
    assert result.to_csv() == table.read_text()
    assert list(result.to_dict()) == ["environment", "rows", "comparisons", "complete"]
    assert [compared["speedup"]["ratio"] for compared in result.to_dict()["comparisons"]] == pytest.approx(
        [4.05 / 2.1] * 2
    )
    rows = list(csv.DictReader(result.to_csv().splitlines()))
    assert [(row["model"], row["threads"], row["provider_options"]) for row in rows] == [
        ("in.onnx", "1", "{}"), ("out.onnx", "1", "{}"), ("in.onnx", "2", "{}"), ("out.onnx", "2", "{}"),
    ]  # fmt: skip
    assert result.names == ("in.onnx", "out.onnx")
    assert result.complete and result.stopped is None and result.layers is None


def test_without_settings_it_is_the_cpu_with_one_thread(small: Path, raced: Calls) -> None:
    bench([small])
    ((contestants, engine, budget),) = raced
    assert [each.path for each in contestants] == [small]
    assert (engine.provider, engine.threads, budget) == ("CPUExecutionProvider", 1, Budget())


def test_samples_shapes_and_budget_are_handed_on(tmp_path: Path, raced: Calls) -> None:
    text = "open (float[N,16,H,8] x) => (float[N,32,H,8] y) {\n y = Conv <pads=[1,1,1,1]> (x, w)\n}"
    path = save(small_model(text), tmp_path / "open.onnx")
    x = nets.signal(3, 16, 8, 8)
    samples = open_samples([{"x": x}], load(path).proto)
    bench([path], settings=settings(batches=[2]), budget=Budget(runs=7), samples=samples)
    bench([path], input_shapes={"x": (1, 16, 4, 8)})
    (fed, _, budget), (shaped, _, _) = raced
    assert budget.runs == 7
    np.testing.assert_array_equal(fed[0].feeds["x"], x[:2])
    assert shaped[0].feeds["x"].shape == (1, 16, 4, 8)


def test_progress_is_told_in_hundredths_and_then_in_sessions(small: Path, raced: Calls) -> None:
    told: list[ProgressEvent] = []
    wanted = settings(threads=[1, 2], batches=[1])
    bench([small], settings=wanted, per_layer=True, progress=told.append)
    assert [(each.stage, each.done, each.total) for each in told] == [
        ("measuring cpu, threads 1, batch 1", 0, 200),
        ("measuring cpu, threads 1, batch 1", 50, 200),
        ("measuring cpu, threads 1, batch 1", 100, 200),
        ("measuring cpu, threads 2, batch 1", 100, 200),
        ("measuring cpu, threads 2, batch 1", 150, 200),
        ("measuring cpu, threads 2, batch 1", 200, 200),
        *(("profiling the layers", done, 3) for done in range(4)),
    ]


def stops_at(done: int, error: BaseException) -> Progress:
    def progress(event: ProgressEvent) -> None:
        if event.done == done:
            raise error

    return progress


def test_an_interruption_keeps_what_is_known(pair: list[Path], raced: Calls) -> None:
    stop = StoppedError()
    wanted = settings(threads=[1, 2])
    result = bench(pair, settings=wanted, per_layer=True, progress=stops_at(150, stop))
    assert result.stopped is stop and not result.complete
    assert [cell.done for cell in result.cells] == [1, 0.5]
    assert result.layers is None
    assert result.to_dict()["complete"] is False
    assert len(result.to_dict()["rows"]) == 4
    # Of a single launch there is no interval, and JSON knows no infinity.
    assert result.to_dict()["comparisons"][1]["speedup"] == {"ratio": 2, "low": 0, "high": None}
    nothing = bench(pair, progress=stops_at(0, stop))
    assert (nothing.cells, nothing.to_csv(), nothing.to_dict()["rows"]) == ((), "", [])


def test_a_signal_between_launches_is_an_interruption(
    small: Path, raced: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = cells.launches

    def interrupted(*arguments: Any) -> Iterator[Any]:
        yield next(launches(*arguments))
        raise StoppedError

    monkeypatch.setattr(cells, "launches", interrupted)
    result = bench([small])
    assert [cell.done for cell in result.cells] == [0.5]
    assert not result.complete


@pytest.mark.parametrize("error", [RuntimeError("enough"), KeyboardInterrupt()], ids=repr)
def test_whatever_else_is_raised_ends_it(error: BaseException, small: Path, raced: Calls) -> None:
    with pytest.raises(type(error)):
        bench([small], progress=stops_at(50, error))


def test_a_model_that_does_not_run_ends_it(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Iterator[Any]:
        raise RunError("it does not run")
        yield

    monkeypatch.setattr(cells, "launches", fails)
    with pytest.raises(RunError, match="does not run"):
        bench([small])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that are read as models, in order."""
    found: list[Path] = []
    read_file, onnx_load = ir_model.read_file, onnx.load

    def reading(path: Path, most: int) -> bytes:
        found.append(path)
        return read_file(path, most)

    def loading(path: Any, *arguments: Any, **options: Any) -> onnx.ModelProto:
        found.append(Path(path))
        return onnx_load(path, *arguments, **options)

    monkeypatch.setattr(ir_model, "read_file", reading)
    monkeypatch.setattr(onnx, "load", loading)
    return found


def test_a_file_is_read_once(tmp_path: Path, raced: Calls, read: list[Path], cli: Cli) -> None:
    """Also where half precision and a profile need copies, and where it is named twice."""
    nameless = small_model()
    for node in nameless.graph.node:
        node.name = ""
    path, other = save(nameless, tmp_path / "in.onnx"), save(small_model(), tmp_path / "other.onnx")
    wanted = [Setting(provider=PROVIDERS["cpu"], precision=each) for each in ("fp32", "fp16")]
    result = bench([path, other, str(path)], settings=wanted, per_layer=True)
    assert result.names == ("in.onnx", "other.onnx", "in.onnx (2)")
    assert result.layers is not None
    assert [each for each in read if each.parent == tmp_path] == [path, other]
    read.clear()
    assert cli("bench", path, other, path, "--per-layer").code == 0
    assert [each for each in read if each.parent == tmp_path] == [path, other]
    models = [load(path), load(other)]
    read.clear()
    assert bench(models).names == ("in.onnx", "other.onnx")
    assert read == []


def test_what_cannot_be_measured_is_refused_before_anything_is(small: Path, raced: Calls) -> None:
    cuda = Setting(provider=PROVIDERS["cuda"])
    for options, complaint in (
        ({"settings": []}, "`settings` is empty"),
        ({"settings": settings(batches=[1, 8])}, "fixed at 1, so 8 cannot run"),
        ({"settings": [cuda], "per_layer": True}, "`per_layer` needs `providers` cpu"),
        ({"input_shapes": {"z": (1,)}}, "`input_shapes` z: no such input; there are x"),
    ):
        with pytest.raises(UsageError, match=complaint):
            bench([small], **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`models` is empty"):
        bench([])
    assert raced == []


def test_too_few_samples_are_said(tmp_path: Path, raced: Calls) -> None:
    path = save(
        small_model("open (float[N,16,8,8] x) => (float[N,32,8,8] y) {y = Conv (x, w)}"), tmp_path / "o"
    )
    samples = open_samples([{"x": nets.signal(1, 16, 8, 8)}], load(path).proto)
    with pytest.raises(UsageError, match="`samples` has 1 samples, too few for a batch of 4"):
        bench([path], settings=settings(batches=[4]), samples=samples)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"precision": "fp8"}, "`precision` fp8: there are fp32, fp16"),
        ({"precision": "fp16"}, "`precision` fp16 is for GPUs"),
        ({"options": {"a": "b"}}, "`options`: the CPU provider has none"),
        ({"cuda_graph": True}, "`cuda_graph` is for `providers` cuda"),
        ({"providers": ["none"]}, "none: there are cpu, cuda"),
    ],
)
def test_settings_that_are_none(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        settings(**options)
