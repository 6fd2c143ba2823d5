"""`onnxdecomp search` refuses what cannot be meant in one line, and touches nothing."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnxruntime
import pytest
from conftest import Cli, save, untouched

from onnxdecomp.cli.parsing import parse_goal
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import require_distinct
from onnxdecomp.searching import Goal
from onnxdecomp.searching.goal import COST_KINDS, LOSS_KINDS
from onnxdecomp.show import with_flags

NET = """m (float[N,16,8,8] x) => (float[N,10] y) {
  [conv] h = Conv <pads=[1,1,1,1]> (x, w, b)
  g = GlobalAveragePool (h)
  f = Flatten (g)
  y = Gemm (f, v)
}"""


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a model, samples, and classes that fit and that do not."""
    proto = nets.model(NET, w=nets.weight(32, 16, 3, 3), b=nets.signal(32), v=nets.weight(32, 10))
    save(proto, tmp_path / "in.onnx")
    np.savez(
        tmp_path / "x.npz", x=nets.signal(12, 16, 8, 8), few=np.zeros(3, np.int64), good=np.arange(12) % 10
    )
    np.savez(tmp_path / "one.npz", x=nets.signal(2, 16, 8, 8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


BAD = [
    ((), "a goal is missing: give one of --speedup, --macs"),
    (("--speedup", "2", "--macs", "0.5"), "several goals"),
    (("--speedup", "0.9"), "give a factor above 1"),
    (("--speedup", "1"), "give a factor above 1"),
    (("--speedup", "1000"), "up to 100"),
    (("--speedup", "nan"), "give a factor above 1"),
    (("--speedup", "inf"), "give a factor above 1"),
    (("--macs", "0"), "a share between 0 and 1"),
    (("--macs", "1"), "a share between 0 and 1"),
    (("--macs", "1.5"), "a share between 0 and 1"),
    (("--params", "nan"), "a share between 0 and 1"),
    (("--size", "-0.5"), "a share between 0 and 1"),
    (("--max-error", "0", "--data", "x.npz"), "a share between 0 and 1"),
    (("--min-agreement", "1.1", "--data", "x.npz"), "a share between 0 and 1"),
    (("--max-error", "0.1"), "name them with --data"),
    (("--min-agreement", "0.9"), "name them with --data"),
    (("--max-drop", "0.1"), "name them with --data"),
    (("--max-drop", "0.1", "--data", "x.npz"), "name them with --labels"),
    (("--max-drop", "0.1", "--data", "x.npz", "--labels", "few"), "12 samples need one class each"),
    (("--max-drop", "0.1", "--data", "x.npz", "--labels", "nothing"), "nothing"),
    (("--macs", "0.5", "--labels", "good"), "name them with --data"),
    (("--macs", "0.5", "--samples", "8"), "name them with --data"),
    (("--macs", "0.5", "--preset", "imagenet"), "name them with --data"),
    (("--macs", "0.5", "--data", "one.npz"), "2 sample"),
    (("--macs", "0.5", "--data", "none.npz"), "none.npz"),
    (("--macs", "0.5", "--data", "x.npz", "--samples", "1"), "at least 2"),
    (("--macs", "0.5", "--provider", "foo"), "is not one of 'cpu'"),
    (("--macs", "0.5", "--provider", "cuda"), "cuda needs onnxruntime-gpu"),
    (("--macs", "0.5", "--provider-option", "a=b"), "the CPU provider has none"),
    (("--macs", "0.5", "--provider-option", "a"), "KEY=VALUE"),
    (("--macs", "0.5", "--cost", "foo"), "is not one of 'measured', 'macs'"),
    (("--speedup", "2", "--cost", "macs"), "leave --cost macs out"),
    (("--macs", "0.5", "--time-limit", "0"), "positive number of seconds"),
    (("--macs", "0.5", "--time-limit", "nan"), "positive number of seconds"),
    (("--macs", "0.5", "--align", "0"), "--align 0"),
    (("--macs", "0.5", "--align", "-8"), "--align -8"),
    (("--macs", "0.5", "--min-channels", "0"), "--min-channels 0"),
    (("--macs", "0.5", "--threads", "0"), "--threads"),
    (("--macs", "0.5", "--batch", "0"), "--batch"),
    (("--macs", "0.5", "--input-shape", "z:1"), "no such input"),
    (("--macs", "0.5", "--input-shape", "x:1,15,8,8"), "x:"),
    (("--macs", "0.5", "--json", "in.onnx"), "belongs to the input"),
    (("--macs", "0.5", "--data", "x.npz", "--json", "x.npz"), "belongs to the samples"),
    (("--macs", "0.5", "--save-plan", "in.onnx"), "belongs to the input"),
    (("--macs", "0.5", "--json", "a.json", "--save-plan", "a.json"), "two outputs"),
    (("--macs", "0.5", "--json", "./out.onnx"), "two outputs"),
    (("--macs", "0.5", "--plot", "a.txt"), ".png or .svg"),
    (("--macs", "0.5", "--json", "missing/r.json"), "missing"),
]


@pytest.mark.parametrize(
    ("options", "complaint"), BAD, ids=[" ".join(options) or "none" for options, _ in BAD]
)
def test_bad_input_is_one_line(
    options: tuple[str, ...], complaint: str, folder: Path, no_cache: Path, cli: Cli
) -> None:
    if "cuda" in options and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with untouched(folder):
        assert complaint in cli("search", "in.onnx", "out.onnx", *options).refusal()
    assert not list(no_cache.iterdir())


def test_outputs_that_would_be_the_input(folder: Path, cli: Cli) -> None:
    with untouched(folder):
        assert "belongs to the input" in cli("search", "in.onnx", "./in.onnx", "--macs", 0.5).refusal()
        refused = cli("search", "in.onnx", "x.npz", "--macs", 0.5, "--data", "x.npz").refusal()
        assert "belongs to the samples" in refused
        assert "missing" in cli("search", "in.onnx", "missing/out.onnx", "--macs", 0.5).refusal()
        assert "cannot read" in cli("search", "no.onnx", "out.onnx", "--macs", 0.5).refusal()


def test_one_goal_is_read_whatever_it_is() -> None:
    for kind in (*COST_KINDS, *LOSS_KINDS):
        value = 2.0 if kind == "speedup" else 0.5
        given = {each: value if each == kind else None for each in (*COST_KINDS, *LOSS_KINDS)}
        goal = parse_goal(given)
        assert goal == Goal(kind, value) and goal.bounds_cost == (kind in COST_KINDS)
        assert with_flags(str(goal)) == f"--{kind.replace('_', '-')} {value:g}"
    assert parse_goal({"min_agreement": 1.0}) == Goal("min_agreement", 1.0)


def test_outputs_need_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = Path("one")
    require_distinct(one, None, None, Path("two"), Path("/dev/null"), Path("/dev/null"))
    (tmp_path / "link").symlink_to("one")
    for other in (one, tmp_path / "one", Path("./x/../one"), Path("link")):
        with pytest.raises(UsageError, match="named for two outputs"):
            require_distinct(one, None, other)
