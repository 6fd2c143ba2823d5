"""The command line: what it prints, whole; what it writes; its exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nets
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import SMALL, Cli, command, save, small_model, spawn, untouched
from onnx import ModelProto, TensorProto

import onnxdecomp
from onnxdecomp import Plan
from onnxdecomp.lowering import constant_tensor

RANK = ("--rank", "0.25")
# A stem, a Conv like most, a grouped and a depthwise one.
KINDS = """
kinds (float[N,3,H,16] x) => (float[N,32,H,16] y) {
  [stem] a = Conv <pads=[1,1,1,1]> (x, s)
  [body] b = Conv <pads=[1,1,1,1]> (a, w)
  [split] c = Conv <pads=[1,1,1,1], group=2> (b, g)
  [depth] y = Conv <pads=[1,1,1,1], group=32> (c, d)
}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """The model of many kinds as `kinds.onnx`."""
    weights = {
        "s": nets.weight(32, 3, 3, 3),
        "w": nets.weight(32, 32, 3, 3, seed=1),
        "g": nets.weight(32, 16, 3, 3, seed=2),
        "d": nets.weight(32, 1, 3, 3, seed=3),
    }
    return save(nets.model(KINDS, **weights), tmp_path / "kinds.onnx")


def text(shown: str) -> str:
    """What was printed, without the blanks that tables leave at the ends of lines; rules are six dashes."""
    lines = (re.sub("─+", "------", line.rstrip()) for line in shown.splitlines())
    return "\n".join(lines).strip("\n")


def sites(path: Path | str) -> list[str]:
    """The nodes of the written model by name."""
    return [node.name for node in onnx.load(path).graph.node]


# What is printed
# ---------------


WANTED = "input 'x' has unknown dimensions (1,3,?,16): give --input-shape x:DIMS"
INSPECTED = f"""\
3 of 4 Convs can be decomposed; 15 k parameters, MACs: unknown

note: the sizes of 4 sites are not known: {WANTED}

 site    kernel   channels /groups   params   MACs   decomposition, or why none
------
 stem    3×3      3→32               864      ?      tucker1
 body    3×3      32→32              9.22 k   ?      tucker2 or tucker1
 split   3×3      32→32 /2           4.61 k   ?      tucker2 or tucker1
 depth   3×3      32→32 /32          288      ?      depthwise: each group has a single input channel"""


def test_inspect(cli: Cli, kinds: Path) -> None:
    outcome = cli("inspect", kinds)
    assert outcome.besides == "" and outcome.code == 0
    assert text(outcome.out) == INSPECTED


REWRITTEN = """\
                    before     after
------
 Conv parameters      15 k    3.51 k   4.26× less
 Conv MACs          3.83 M     899 k   4.26× less
 file size         60.3 kB   15.4 kB   3.91× less

3 of 4 Convs rewritten

 site    kernel   channels   method    ranks        params            MACs             weight error
------
 stem    3×3      3→32       tucker1   out=8        864 → 472         221 k → 121 k           0.581
 body    3×3      32→32      tucker2   in=8 out=8   9.22 k → 1.09 k   2.36 M → 279 k          0.893
 split   3×3      32→32 /2   tucker2   in=8 out=8   4.61 k → 1.66 k   1.18 M → 426 k          0.734

 kept   because                                            sites
------
    1   depthwise: each group has a single input channel   depth

"""
ENGINE = f"ONNX Runtime {onnxruntime.__version__}"
UNVERIFIED = (
    "accuracy is unverified: --data PATH (a folder of images, an .npz or the like) fits the factors "
    "to samples and measures it"
)
CHECKED = f"""\
check passed: both models run in {ENGINE}; on random inputs their outputs differ by

 output   relative L2   SNR dB   max abs   cosine   top-1 agreement
------
 y              0.954    0.409      4.33    0.303              8.6%

{UNVERIFIED}

"""


@pytest.mark.parametrize(
    ("how", "ends", "writes"),
    [
        ([], CHECKED + "wrote out.onnx", ["out.onnx"]),
        (["--no-check"], f"not checked: --no-check\n\n{UNVERIFIED}\n\nwrote out.onnx", ["out.onnx"]),
        (["--dry-run"], "dry run: no model was written", []),
    ],
)
def test_rewrite(cli: Cli, kinds: Path, how: list[str], ends: str, writes: list[str]) -> None:
    with untouched(kinds.parent, *writes):
        outcome = cli("rewrite", kinds, "out.onnx", *RANK, "--input-shape", "x:1,3,16,16", *how)
    assert outcome.besides == "" and outcome.code == 0
    assert text(outcome.out) == (REWRITTEN + ends).strip("\n")


def test_compare(cli: Cli, small: Path) -> None:
    onnxdecomp.rewrite(small, 0.5).save("b.onnx")
    outcome = cli("compare", small, "b.onnx")
    assert outcome.besides == "" and outcome.code == 0
    assert (
        text(outcome.out)
        == """\
on random inputs, the outputs differ by

 output   relative L2   SNR dB   max abs   cosine   top-1 agreement
------
 y              0.313     10.1      1.66     0.95             75.0%"""
    )


def test_a_terminal_of_80_columns_hides_nothing(
    cli: Cli, kinds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in (["inspect", kinds], ["rewrite", kinds, "out.onnx", *RANK, "--no-check"]):
        shown = cli(*arguments).out
        assert "…" not in shown and all(name in shown for name in ("stem", "body", "split", "depth"))


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.heavy)])
def test_a_terminal_without_these_characters_gets_others(kinds: Path, encoding: str) -> None:
    """Windows sends redirected output through a code page that has no arrow."""
    done = subprocess.run(
        command("rewrite", kinds, "out.onnx", *RANK, "--no-check", "-q"),
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"3 of 4 Convs rewritten" in done.stdout and Path("out.onnx").exists()


def test_a_reader_that_stops_reading_does_not_stop_the_work(small: Path) -> None:
    """As `| head -1` does."""
    process = subprocess.Popen(
        command("rewrite", small, "out.onnx", *RANK, "-q"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, shown = process.communicate()
    assert (process.returncode, shown) == (0, b"")
    assert sites("out.onnx")[-1] == "act"


def test_a_closed_standard_output_does_not_stop_the_work(small: Path) -> None:
    """As `>&-` does."""
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *map(str, command("rewrite", small, "out.onnx", *RANK, "-q"))],
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert sites("out.onnx")[-1] == "act"


def test_help_and_version(cli: Cli) -> None:
    assert cli("--version").out == f"{onnxdecomp.__version__}\n"
    general = cli("--help")
    assert general.code == 0 and all(name in general.out for name in ("inspect", "rewrite", "compare"))
    bare = cli()
    assert bare.code == 2
    assert text(general.out) in (text(bare.out), text(bare.err)), "the help, as it is laid out"
    for name in ("inspect", "rewrite", "compare"):
        assert cli(name, "-h").out == cli(name, "--help").out != ""


# What is written
# ---------------

SITE = {"name", "status", "reason", "kernel", "groups", "method", "ranks", "params", "macs", "weight_error"}


def test_the_report(cli: Cli, kinds: Path) -> None:
    cli("rewrite", kinds, "out.onnx", *RANK, "--input-shape", "x:1,3,16,16", "--json", "report.json")
    report = json.loads(Path("report.json").read_text())
    assert list(report) == ["sites", "total", "check"]
    assert all(set(site) == SITE | {"cast_error"} for site in report["sites"])
    stem, body, _, depth = report["sites"]
    assert stem["ranks"] == {"in": None, "out": 8}
    assert {key: value for key, value in body.items() if "error" not in key} == {
        "name": "body",
        "status": "rewritten",
        "reason": None,
        "kernel": [3, 3],
        "groups": 1,
        "method": "tucker2",
        "ranks": {"in": 8, "out": 8},
        "params": {"before": 9216, "after": 1088},
        "macs": {"before": 9216 * 256, "after": 1088 * 256},
    }
    assert 0.89 < body["weight_error"] < 0.9
    assert depth["status"] == "kept" and depth["reason"].startswith("depthwise")
    assert (depth["method"], depth["ranks"], depth["weight_error"]) == (None, None, None)
    assert depth["params"] == {"before": 288, "after": 288}
    total = report["total"]
    assert list(total) == ["params", "macs", "bytes"]
    for key in ("params", "macs"):
        for when in ("before", "after"):
            assert total[key][when] == sum(site[key][when] for site in report["sites"])
    assert total["bytes"] == {"before": kinds.stat().st_size, "after": Path("out.onnx").stat().st_size}
    check = report["check"]
    assert (check["status"], check["reason"]) == ("passed", None)
    assert check["engine"] == ENGINE
    assert [output["name"] for output in check["outputs"]] == ["y"]


def test_what_is_unknown_is_null(cli: Cli, kinds: Path) -> None:
    cli("rewrite", kinds, "out.onnx", *RANK, "--json", "report.json")
    report = json.loads(Path("report.json").read_text())
    assert {json.dumps(site["macs"]) for site in report["sites"]} == {'{"before": null, "after": null}'}
    assert report["total"]["macs"] == {"before": None, "after": None}


def test_the_report_of_inspect(cli: Cli, kinds: Path) -> None:
    cli("inspect", kinds, "--json", "report.json", "--input-shape", "x:2,3,8,16")
    report = json.loads(Path("report.json").read_text())
    assert report["notes"] == []
    split = {
        "name": "split",
        "dtype": "float32",
        "kernel": [3, 3],
        "channels": {"in": 32, "out": 32},
        "groups": 2,
        "params": 4608,
        "macs": 4608 * 256,
        "methods": ["tucker2", "tucker1"],
        "reason": None,
    }
    assert split.items() <= report["sites"][2].items()
    assert report["sites"][3]["methods"] == [] and report["sites"][3]["reason"].startswith("depthwise")


@pytest.mark.parametrize("name", ["inspect", "rewrite", "compare"])
def test_a_report_to_standard_output(small: Path, name: str) -> None:
    """Whole, and whole again what people read."""
    more = {"inspect": [], "rewrite": ["out.onnx", *RANK], "compare": [small]}[name]
    outcome = spawn(*command(name, small, *more, "--json", "/dev/stdout"))
    start = outcome.out.index("{")
    report, _ = json.JSONDecoder().raw_decode(outcome.out[start:])
    assert outcome.code == 0 and set(report) & {"sites", "outputs"}


def test_a_plan_repeats_what_a_rank_did(cli: Cli, kinds: Path) -> None:
    cli("rewrite", kinds, "first.onnx", *RANK, "--save-plan", "plan.json")
    assert json.loads(Path("plan.json").read_text()) == {
        "version": 1,
        "sites": {
            "stem": {"method": "tucker1", "ranks": {"in": None, "out": 8}},
            "body": {"method": "tucker2", "ranks": {"in": 8, "out": 8}},
            "split": {"method": "tucker2", "ranks": {"in": 8, "out": 8}},
        },
    }
    cli("rewrite", kinds, "second.onnx", "--plan", "plan.json", "--save-plan", "again.json")
    assert Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes()
    assert Path("plan.json").read_bytes() == Path("again.json").read_bytes()


def test_an_empty_plan_changes_nothing(cli: Cli, kinds: Path) -> None:
    Path("plan.json").write_text('{"version": 1, "sites": {}}')
    assert cli("rewrite", kinds, "out.onnx", "--plan", "plan.json").code == 0
    assert onnx.load("out.onnx") == onnx.load(kinds)


# What the options do
# -------------------

EFFECTS: dict[str, tuple[list[str], dict[str, tuple[int | None, int | None]]]] = {
    "rank in channels": (["--rank", "16"], {"body": (16, 16)}),
    "rank per mode": (["--rank", "in=0.5,out=0.25"], {"stem": (None, 8), "body": (16, 8), "split": (8, 8)}),
    "align": ([*RANK, "--align", "3"], {"stem": (None, 9), "body": (9, 9), "split": (6, 6)}),
    "only": ([*RANK, "--only", "tem|pli"], {"stem": (None, 8), "split": (8, 8)}),
    "skip": ([*RANK, "--skip", "o|z"], {"stem": (None, 8), "split": (8, 8)}),
    "only and skip": ([*RANK, "--only", "^s", "--skip", "lit$"], {"stem": (None, 8)}),
    "tucker2": ([*RANK, "--method", "tucker2"], {"body": (8, 8), "split": (8, 8)}),
    "tucker1": ([*RANK, "--method", "tucker1"], {"stem": (None, 8), "body": (None, 8), "split": (None, 8)}),
    "many channels": ([*RANK, "--min-channels", "17"], {"stem": (None, 8), "body": (8, 8)}),
    "few channels": ([*RANK, "--min-channels", "3"], {"stem": (None, 8), "body": (8, 8), "split": (8, 8)}),
    "not slower": (["--rank", "0.9"], {}),
    "slower": (["--rank", "0.9", "--allow-slower", "--only", "body"], {"body": (32, 32)}),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_an_option_chooses(cli: Cli, kinds: Path, name: str) -> None:
    options, ranks = EFFECTS[name]
    outcome = cli("rewrite", kinds, "out.onnx", *options, "--no-check", "--save-plan", "plan.json")
    assert outcome.code == (0 if ranks else 3)
    chosen = Plan.load("plan.json").sites if ranks else {}
    assert {site: (c.ranks.input, c.ranks.output) for site, c in chosen.items()} == ranks


def test_the_published_example_has_rank_32(cli: Cli) -> None:
    """A quarter of 128 output channels, for both modes; costs by Kim et al. 2016, eq. 6."""
    source = "example (float[1,64,100,100] x) => (float[1,128,98,98] y) { [conv] y = Conv (x, w) }"
    save(small_model(source, w=nets.weight(128, 64, 3, 3)), Path("in.onnx"))
    cli("rewrite", "in.onnx", "out.onnx", *RANK, "--dry-run", "--json", "report.json")
    (site,) = json.loads(Path("report.json").read_text())["sites"]
    assert site["ranks"] == {"in": 32, "out": 32}
    assert site["params"] == {"before": 73_728, "after": 15_360}
    before, after = 100**2, 98**2
    chain = before * 64 * 32 + after * (9 * 32 * 32 + 32 * 128)
    assert site["macs"] == {"before": after * 73_728, "after": chain}


@pytest.mark.parametrize(("option", "left"), [("--fold-bn", []), ("--no-fold-bn", ["norm"])])
def test_batch_normalisation_is_folded_unless_told_otherwise(cli: Cli, option: str, left: list[str]) -> None:
    source = SMALL.replace("[act] y = Relu (h)", "[norm] y = BatchNormalization (h, b, b, b, v)")
    save(small_model(source, v=np.ones(32, "f")), Path("in.onnx"))
    cli("rewrite", "in.onnx", "out.onnx", *RANK, option)
    assert sites("out.onnx") == ["conv/tucker_in", "conv/tucker_core", "conv/tucker_out", *left]


def test_an_overridable_weight_is_kept_unless_frozen(cli: Cli, small: Path) -> None:
    model = small_model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [32, 16, 3, 3]))
    save(model, small)
    assert "--freeze-weights" in cli("rewrite", small, "out.onnx", *RANK).refusal(3)
    assert "--freeze-weights" in cli("inspect", small).out
    assert cli("rewrite", small, "out.onnx", *RANK, "--freeze-weights").code == 0
    assert "tucker2" in cli("inspect", small, "--freeze-weights").out


# Wrong usage
# -----------

WRONG: dict[str, tuple[list[str], str]] = {
    "no command": (["dissolve", "in.onnx"], "dissolve"),
    "no option": (["rewrite", "in.onnx", "out.onnx", "--rnak", "0.25"], "--rnak"),
    "no model": (["rewrite"], "model"),
    "no output": (["rewrite", "in.onnx", *RANK], "name the output file"),
    "too many files": (["inspect", "in.onnx", "out.onnx"], "out.onnx"),
    "no rank and no plan": (["rewrite", "in.onnx", "out.onnx"], "--rank"),
    "rank and plan": (["rewrite", "in.onnx", "out.onnx", *RANK, "--plan", "plan.json"], "--plan"),
    "no number": (["rewrite", "in.onnx", "out.onnx", *RANK, "--align", "eight"], "--align"),
    "align of zero": (["rewrite", "in.onnx", "out.onnx", *RANK, "--align", "0"], "--align 0"),
    "few channels": (["inspect", "in.onnx", "--min-channels", "0"], "--min-channels 0"),
    "method": (["rewrite", "in.onnx", "out.onnx", *RANK, "--method", "tucker3"], "'tucker2', 'tucker1'"),
    "only": (["rewrite", "in.onnx", "out.onnx", *RANK, "--only", "["], "regular expression"),
    "skip": (["rewrite", "in.onnx", "out.onnx", *RANK, "--skip", "(?P<"], "regular expression"),
    "monstrous skip": (["rewrite", "in.onnx", "out.onnx", *RANK, "--skip", f"a{{{9**99}}}"], "regular expr"),
    "plan": (["rewrite", "in.onnx", "out.onnx", "--plan", "nowhere.json"], "nowhere.json"),
    "other model": (["compare", "in.onnx", "nowhere.onnx"], "cannot read nowhere.onnx"),
    **{
        f"rank {rank[:20]}": (["rewrite", "in.onnx", "out.onnx", f"--rank={rank}"], "--rank")
        for rank in (*"0a", "", "-1", "1.5", "nan", "in=0.5", "in=8,in=8", "in=8,out=8,up=8", "9" * 5000)
    },
    **{
        f"shape {shape}": (["inspect", "in.onnx", "--input-shape", shape], "--input-shape")
        for shape in ("x", "x:a", ":1", "z:1", "x:1,16", "x:2,16,8,8", "x:-1,16,8,8")
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_one_line(cli: Cli, small: Path, name: str) -> None:
    arguments, says = WRONG[name]
    Path("plan.json").write_text('{"version": 1, "sites": {}}')
    with untouched(small.parent):
        assert says in cli(*arguments).refusal()


SITE_PLAN = '{"version": 1, "sites": {"conv": {"method": "tucker2", "ranks": %s}}}'
PLANS = {
    "no JSON": ("ranks: 8", "not JSON"),
    "no text": ("\udcff", "text"),
    "a list": ("[]", '"version": 1'),
    "a later version": ('{"version": 2, "sites": {}}', '"version": 1'),
    "no sites": ('{"version": 1}', '"sites"'),
    "depth without end": ("[" * 100_000, "plan"),
    "an endless rank": (SITE_PLAN % ('{"in": %s, "out": 8}' % ("9" * 5000)), "plan"),
    "a fraction": (SITE_PLAN % '{"in": 0.5, "out": 8}', "'conv'"),
    "one rank for two modes": (SITE_PLAN % '{"in": 8}', "'conv'"),
    "more than there are": (SITE_PLAN % '{"in": 17, "out": 8}', "'conv': rank in=17 exceeds"),
    "an unknown site": ((SITE_PLAN % '{"in": 8, "out": 8}').replace("conv", "covn"), "'covn'"),
    "an unknown method": ((SITE_PLAN % '{"in": 8, "out": 8}').replace("tucker2", "tucker3"), "'conv'"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_cannot_be_carried_out_is_refused(cli: Cli, small: Path, name: str) -> None:
    plan, says = PLANS[name]
    Path("plan.json").write_text(plan, errors="surrogateescape")
    with untouched(small.parent):
        assert says in cli("rewrite", small, "out.onnx", "--plan", "plan.json").refusal()


@pytest.mark.parametrize(
    "wrong", [["--rank", "x"], [*RANK, "--only", "["], [], [*RANK, "--json", "nowhere/report.json"]]
)
def test_wrong_usage_is_found_before_the_work_begins(
    cli: Cli, small: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str]
) -> None:
    """Nobody waits for a large model to run only to read that the command was mistyped."""
    monkeypatch.setattr("onnxdecomp.comparing.baseline", lambda *_, **__: pytest.fail("the original was run"))
    cli("rewrite", small, "out.onnx", *wrong).refusal()
    cli("rewrite", small, "nowhere/out.onnx", *RANK).refusal()
    cli("rewrite", small, small, *RANK).refusal()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--only", "nothing"], "excluded by the user"),
        (["--min-channels", "64"], "too small to pay"),
        (["--rank", "0.95"], "too small to pay"),
    ],
)
def test_nothing_to_decompose_has_a_code_of_its_own(
    cli: Cli, small: Path, options: list[str], says: str
) -> None:
    with untouched(small.parent):
        outcome = cli("rewrite", small, "out.onnx", *RANK, *options, "--save-plan", "plan.json")
        assert says in outcome.refusal(3)
        assert says in cli("rewrite", small, *RANK, *options, "--dry-run").refusal(3)


# The check
# ---------


def spoiled(part: str, spoil: Callable[[np.ndarray], np.ndarray]) -> Callable[..., TensorProto]:
    """What makes tensors of factors, with those that have `part` in their name spoiled."""

    def tensor(name: str, values: np.ndarray, data_type: int) -> TensorProto:
        return constant_tensor(name, spoil(values) if part in name else values, data_type)

    return tensor


SPOILED: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    # In float32 each factor is finite, and their product is not.
    "overflow": ("tucker", lambda weight: weight * 1e18, "new NaN or Inf"),
    "an output too few": ("tucker_out", lambda weight: weight[:-1], "fails where the original does not"),
    "a rank too many": ("tucker_in", lambda weight: weight[:-1], "fails where the original does not"),
    "a larger kernel": (
        "tucker_core",
        lambda weight: np.pad(weight, [(0, 0), (0, 0), (0, 1), (0, 1)]),
        "changed from float32[1, 32, 8, 8] to float32[1, 32, 7, 7]",
    ),
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", SPOILED)
def test_a_failed_check_keeps_the_model_back(
    cli: Cli, small: Path, monkeypatch: pytest.MonkeyPatch, name: str, older: bool
) -> None:
    part, spoil, says = SPOILED[name]
    monkeypatch.setattr("onnxdecomp.lowering.chains.constant_tensor", spoiled(part, spoil))
    if older:
        Path("out.onnx").write_bytes(b"older")
    with untouched(small.parent):
        outcome = cli("rewrite", small, "out.onnx", *RANK, "--json", "r.json", "--save-plan", "p.json")
        assert says in outcome.refusal(1)
    assert cli("rewrite", small, "out.onnx", *RANK, "--no-check").code == 0


def unchecked(cli: Cli, model: ModelProto, *options: str) -> str:
    """Why nothing was checked: a line below the tables says it, the report in the words of Python."""
    save(model, Path("in.onnx"))
    outcome = cli("rewrite", "in.onnx", "out.onnx", *RANK, *options, "--json", "report.json")
    assert outcome.code == 0 and Path("out.onnx").exists()
    check = json.loads(Path("report.json").read_text())["check"]
    assert check["status"] == "not checked" and check["outputs"] == []
    reason = str(check["reason"]).replace("`input_shapes`", "--input-shape")
    assert f" not checked: {reason} " in " ".join(outcome.out.split())  # it may wrap
    return reason


def test_without_onnxruntime_nothing_is_checked(
    cli: Cli, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert 'pip install "onnxdecomp[cpu]"' in unchecked(cli, small_model())
    assert 'pip install "onnxdecomp[cpu]"' in cli("compare", small, small).refusal()
    assert cli("inspect", small).code == 0


def test_an_operator_that_nobody_runs_is_not_checked(cli: Cli) -> None:
    header = '<ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>'
    save(small_model(header + SMALL.replace("Relu", "my.domain.Relu")), Path("in.onnx"))
    done = " ".join(cli("rewrite", "in.onnx", "out.onnx", *RANK).out.split())
    assert "check passed" in done and "(my.domain.Relu), which nothing here runs: compared at" in done
    first = SMALL.replace("(x, w, b)", "(z, w, b)").replace("{", "{ z = my.domain.Read (x)", 1)
    assert "my.domain" in unchecked(cli, small_model(header + first))


def test_unknown_dimensions_are_asked_for(cli: Cli) -> None:
    source = SMALL.replace("1,16,8,8", "N,16,H,8").replace("1,32,8,8", "N,32,H,8")
    assert "--input-shape x:" in unchecked(cli, small_model(source))
    fixed = cli("rewrite", "in.onnx", "out.onnx", *RANK, "--input-shape", "x:2,16,8,8")
    assert "check passed" in fixed.out


def test_an_unknown_batch_is_one(cli: Cli) -> None:
    source = SMALL.replace("1,16,8,8", "N,16,8,8").replace("1,32,8,8", "N,32,8,8")
    save(small_model(source), Path("in.onnx"))
    assert cli("rewrite", "in.onnx", "out.onnx", *RANK, "--json", "report.json").code == 0
    report = json.loads(Path("report.json").read_text())
    assert report["check"]["status"] == "passed" and report["check"]["outputs"][0]["max_abs"] > 0
    assert report["total"]["macs"]["before"] == 4608 * 64


def test_an_input_of_no_elements_proves_nothing(cli: Cli) -> None:
    """Some exporters write 0 for an unknown batch, which ONNX Runtime takes at its word."""
    source = SMALL.replace("1,16,8,8", "0,16,8,8").replace("1,32,8,8", "0,32,8,8")
    assert unchecked(cli, small_model(source))


def test_float64_runs_in_the_reference_evaluator(cli: Cli) -> None:
    source = SMALL.replace("float[", "double[")
    save(small_model(source, w=nets.weight(32, 16, 3, 3, dtype="d"), b=np.ones(32)), Path("in.onnx"))
    outcome = cli("rewrite", "in.onnx", "out.onnx", *RANK)
    assert f"both models run in ONNX reference evaluator {onnx.__version__}" in outcome.out


def test_debug_shows_the_whole_message_and_where_it_came_from(cli: Cli, small: Path) -> None:
    model = small_model()
    model.graph.node[0].input[0] = "missing" * 100
    save(model, small)
    short, whole = (cli("compare", small, small, *extra) for extra in ((), ("--debug",)))
    assert "missing" * 100 not in short.refusal()
    assert whole.code == 2 and whole.besides.startswith("Traceback") and "missing" * 100 in whole.err
    assert whole.err.endswith(short.besides)


def test_completion_is_that_of_the_installed_command_however_it_is_asked_for() -> None:
    without = ["env", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1"]
    words = ("--show-completion", "bash")
    installed = spawn(*without, Path(sys.executable).with_name("onnxdecomp"), *words)
    assert "_ONNXDECOMP_COMPLETE=" in installed.out
    assert spawn(*without, sys.executable, "-m", "onnxdecomp", *words) == installed
