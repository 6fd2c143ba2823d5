"""The functions behind the commands: the same answers, told as they come, stopped when asked to."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import user_script
from conftest import Cli, untouched

import onnxdecomp
from onnxdecomp import StoppedError
from onnxdecomp.ir import load
from onnxdecomp.rewriting import apply

SMALL = ("--align", "4", "--min-channels", "8")
POLICY = onnxdecomp.Policy(align=4, min_channels=8)
CLOCKED = ("environment", "original_ms")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def samples(small: Path) -> Path:
    x = nets.signal(40, 16, 8, 8)
    np.savez(small.parent / "x.npz", x=x)
    return small.parent / "x.npz"


@pytest.fixture
def sets(small: Path, samples: Path) -> onnxdecomp.SampleSets:
    return onnxdecomp.SampleSets.draw(onnxdecomp.open_samples(samples, load(small).proto), count=32)


def report(cli: Cli, *words: object) -> Any:
    """The JSON that a command writes, less what a clock says."""
    done = cli(*words, "--json", "r.json")
    assert done.code == 0, done
    return timeless(json.loads(Path("r.json").read_text()))


def timeless(document: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in document.items() if name not in CLOCKED}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_inspect_gives_the_report_of_the_command(small: Path, cli: Cli) -> None:
    for spectrum in (False, True):
        words = ("--spectrum",) if spectrum else ()
        found = onnxdecomp.inspect(small, spectrum=spectrum)
        assert json.loads(json.dumps(found.to_dict())) == report(cli, "inspect", small, *words)


def test_rewrite_gives_the_report_of_the_command(
    small: Path, samples: Path, sets: onnxdecomp.SampleSets, cli: Cli
) -> None:
    told = report(cli, "rewrite", small, "out.onnx", "--rank", "0.25", "--data", samples, "--samples", 32)
    result = onnxdecomp.rewrite(small, 0.25, data=sets)
    assert {"check", "quality"} <= told.keys()
    assert json.loads(json.dumps(result.to_dict())) == told
    result.save("again.onnx")
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()


def test_a_rewrite_says_whether_it_was_checked_and_measured(small: Path, sets: onnxdecomp.SampleSets) -> None:
    fitted = onnxdecomp.rewrite(small, 0.25, data=sets.fitted)
    assert fitted.check == onnxdecomp.check(small, fitted) and fitted.quality is None
    unchecked = onnxdecomp.rewrite(small, 0.25, data=sets, check=False)
    held_out, count = sets.held_out, len(sets.fitted)
    assert unchecked.check is None and unchecked.plan == fitted.plan
    assert unchecked.quality == onnxdecomp.measure_quality(small, fitted, held_out, fitted=count)
    plain = onnxdecomp.rewrite(small, 0.25, check=False)
    assert plain.check is None and plain.quality is None and "check" not in plain.to_dict()


def test_a_rewrite_that_fails_its_check_is_an_error(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*arguments: Any, **options: Any) -> onnxdecomp.Result:
        result = carry_out(*arguments, **options)
        for tensor in result.rewritten.proto.graph.initializer:
            tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()
        return result

    carry_out = apply.carry_out
    monkeypatch.setattr(apply, "carry_out", damaged)
    with pytest.raises(onnxdecomp.CheckError, match="new NaN or Inf"):
        onnxdecomp.rewrite(small, 0.25)
    onnxdecomp.rewrite(small, 0.25, check=False)


def test_compare_gives_the_report_of_the_command(small: Path, samples: Path, cli: Cli) -> None:
    onnxdecomp.rewrite(small, 0.25).save("out.onnx")
    drawn = onnxdecomp.open_samples(samples, load(small).proto)
    for words, feeds in (((), None), (("--data", samples), drawn)):
        found = onnxdecomp.compare(small, "out.onnx", feeds)
        assert json.loads(json.dumps(found.to_dict())) == report(cli, "compare", small, "out.onnx", *words)
        assert [each.name for each in found] == ["y"] and found[0].relative_l2 and len(found) == 1


def test_search_gives_the_report_of_the_command(
    small: Path, samples: Path, sets: onnxdecomp.SampleSets, cli: Cli
) -> None:
    words = ("--macs", 0.6, "--cost", "macs", "--data", samples, "--samples", 32, *SMALL)
    told = report(cli, "search", small, "out.onnx", *words)
    goal = onnxdecomp.Goal("macs", 0.6)
    found = onnxdecomp.search(small, goal, samples=sets, cost="macs", policy=POLICY)
    assert timeless(json.loads(json.dumps(found.to_dict()))) == told
    found.save("again.onnx")
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()


def test_models_in_memory_are_as_good_as_files(small: Path) -> None:
    proto = load(small).proto
    result = onnxdecomp.rewrite(proto, 0.25)
    assert onnxdecomp.check(proto, result.model).status == "passed"
    assert (
        onnxdecomp.compare(proto, result.model).to_dict() == onnxdecomp.compare(small, result.model).to_dict()
    )
    searched = onnxdecomp.search(proto, onnxdecomp.Goal("macs", 0.6), cost="macs", policy=POLICY)
    assert searched.met and searched.rewritten().plan == searched.plan


def test_a_goal_that_is_not_met_saves_nothing(small: Path) -> None:
    found = onnxdecomp.search(small, onnxdecomp.Goal("macs", 0.001), cost="macs", policy=POLICY)
    assert not found.met
    with untouched(small.parent), pytest.raises(onnxdecomp.GoalError, match=r"`macs` 0\.001 was not met"):
        found.save("out.onnx")
    found.save("out.onnx", best_effort=True)
    assert onnxdecomp.check(small, "out.onnx").status == "passed"


@pytest.mark.parametrize(
    ("kind", "value"),
    [("speed", 2.0), ("speedup", 1.0), ("macs", 0.0), ("macs", 1.0), ("min_agreement", 1.1), ("size", -1.0)],
)
def test_a_goal_that_no_model_can_have_is_refused(kind: str, value: float) -> None:
    with pytest.raises(onnxdecomp.UsageError, match=kind):
        onnxdecomp.Goal(kind, value)


def test_what_a_search_needs_is_named_as_python_names_it(small: Path) -> None:
    goal = onnxdecomp.Goal("max_error", 0.1)
    for options, name in (
        ({}, "`samples`"),
        ({"cost": "guessed"}, "`cost`"),
        ({"trials": onnxdecomp.Trials(number=1)}, "`samples`"),
    ):
        with pytest.raises(onnxdecomp.UsageError, match=name):
            onnxdecomp.search(small, goal, **options)


class CancelledError(Exception):
    """A caller has had enough."""


@pytest.mark.parametrize("error", [CancelledError, StoppedError])
def test_progress_may_end_a_rewrite(error: type[BaseException], small: Path) -> None:
    def enough(event: onnxdecomp.ProgressEvent) -> None:
        if event.done:
            raise error

    with untouched(small.parent), pytest.raises(error):
        onnxdecomp.rewrite(small, 0.25, progress=enough)


def test_progress_that_stops_a_search_leaves_the_best_so_far(
    small: Path, sets: onnxdecomp.SampleSets
) -> None:
    stages: list[str] = []

    def enough(event: onnxdecomp.ProgressEvent) -> None:
        stages.append(event.stage)
        if stages.count("tried") == 1:
            raise StoppedError

    goal = onnxdecomp.Goal("max_error", 0.01)
    options: dict[str, Any] = {"samples": sets, "cost": "macs", "policy": POLICY}
    found = onnxdecomp.search(small, goal, progress=enough, **options)
    assert found.stopped and found.best is not None and found.best.result is not None
    stages.clear()

    def fail(event: onnxdecomp.ProgressEvent) -> None:
        if event.stage == "fitting":
            raise CancelledError

    with pytest.raises(CancelledError):
        onnxdecomp.search(small, goal, progress=fail, **options)


def test_a_user_can_do_everything(tmp_path: Path, small: Path) -> None:
    """The script whose types `make lint` checks."""
    told = user_script.main(tmp_path)
    stages = ("reading spectra", "fitting", "running the original", "probing sites", "tried")
    assert all(any(line.startswith(stage) for line in told) for stage in stages), told
    text = Path(user_script.__file__).read_text()
    public = {name: getattr(onnxdecomp, name) for name in onnxdecomp.__all__}
    functions = [name for name, each in public.items() if inspect.isfunction(each)]
    assert [name for name in functions if f"onnxdecomp.{name}(" not in text] == []


def test_a_model_is_whole_before_it_stands_in_its_place(tmp_path: Path, small: Path) -> None:
    result = onnxdecomp.rewrite(small, 0.25)
    with result.staged(tmp_path / "out.onnx") as candidate:
        assert not (tmp_path / "out.onnx").exists()
        assert onnxdecomp.check(small, candidate).status == "passed"
    assert (tmp_path / "out.onnx").exists()
