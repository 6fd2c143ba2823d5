"""Operators that nothing here runs pass through untouched; what stands before them is run and checked."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, save
from nets import ANYTHING
from onnx import ModelProto

import onnxdecomp
from onnxdecomp import CheckError, Goal, ModelError, SampleSets, UsageError, check, compare, open_samples
from onnxdecomp.comparing.validity import checker_refusal

TRUNK = """[conv] c = Conv <pads=[1,1,1,1]> (x, w)
  a = Relu (c)"""
PLUGIN = "num, found = EfficientNMS_TRT <score_threshold=0.2> (a, a)"
OUTPUTS = "int32[1,1] num, float[1,9,4] found"
ACME = '<ir_version: 8, opset_import: ["" : 17, "acme.ops" : 1]>\n'
DOTTED = '<ir_version: 8, opset_import: ["" : 17, "pkg" : 1]>\n'


def made(outputs: str, *body: str, header: str = nets.HEADER, functions: str = "") -> ModelProto:
    lines = "\n  ".join([TRUNK, *body])
    text = f"{header}m (float[1,16,6,6] x, bool flag) => ({outputs}) {{\n  {lines}\n}}\n{functions}"
    more = {"v": nets.weight(16, 16, 3, 3, seed=5)} if "(p, v)" in lines else {}
    return nets.model(text, w=nets.weight(16, 16, 3, 3), **more)


BRANCH = """found = If (flag) <
    then_branch = yes () => (float[1,16,6,6] p) { p = GatherTopBoxes (a) },
    else_branch = no () => (float[1,16,6,6] q) { q = Identity (a) }
  >"""
BODY = '<domain: "pkg", opset_import: ["" : 17]> heads (t) => (u) { u = BatchedNMS_TRT (t) }'
BARE = '<domain: "pkg", opset_import: ["" : 17]> heads (t) => (u) { u = Relu (t) }'


def bare() -> ModelProto:
    model = made("float[1,16,6,6] found", "found = pkg.heads (a)", header=DOTTED, functions=BARE)
    del model.functions[0].node[:]
    return model


# What follows from an operator that nothing here runs: the model, and how that is named.
KINDS: dict[str, tuple[ModelProto, str]] = {
    "plugin": (made(OUTPUTS, PLUGIN), "node 'num' (EfficientNMS_TRT)"),
    "domain": (
        made("float[1,16,6,6] found", "found = acme.ops.Fuse (a)", header=ACME),
        "node 'found' (acme.ops.Fuse)",
    ),
    "branch": (made("float[1,16,6,6] found", BRANCH), "node 'found' (GatherTopBoxes)"),
    "function": (
        made("float[1,16,6,6] found", "found = pkg.heads (a)", header=DOTTED, functions=BODY),
        "node 'found' (BatchedNMS_TRT)",
    ),
    "no body": (bare(), "node 'found' (pkg.heads)"),
    "later version": (made("float[1,16,6,6] found", "found = Gelu (a)"), "node 'found' (Gelu)"),
    "several": (
        made("float[?] p, float[1,16,6,6] found", "p = ROIAlign_TRT (a)", "found = Decode_TRT (a)"),
        "node 'p' (ROIAlign_TRT) and 1 more",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_trunk_is_checked_and_the_rest_is_untouched(kind: str) -> None:
    model, named = KINDS[kind]
    result = onnxdecomp.rewrite(model, 0.5, policy=ANYTHING)
    assert result.check is not None and result.check.status == "passed"
    line = f"not checked beyond {named}, which nothing here runs: compared at 'a'"
    assert result.check.reason == line and [each.name for each in result.check.outputs] == ["a"]
    nets.assert_nothing_lost(model, result.model)
    found = compare(model, result)
    assert found.note == line and [each.name for each in found.outputs] == ["a"]
    # By the same trunk as a model of its own.
    trunk = nets.model(
        f"m (float[1,16,6,6] x) => (float[1,16,6,6] a) {{ {TRUNK} }}", w=nets.weight(16, 16, 3, 3)
    )
    (alone,) = compare(trunk, onnxdecomp.rewrite(trunk, plan=result.plan))
    assert found[0] == alone


def test_outputs_that_can_be_computed_are_compared_as_they_are() -> None:
    model = made(f"{OUTPUTS}, float[1,16,6,6] side", PLUGIN, "side = Sigmoid (a)")
    found = compare(model, onnxdecomp.rewrite(model, 0.5, policy=ANYTHING))
    assert [each.name for each in found] == ["side", "a"]


def test_what_stands_behind_is_kept_or_has_plain_factors(tmp_path: Path) -> None:
    model = made(
        "float[1,16,6,6] y", "p = acme.ops.Fuse (a)", "[late] y = Conv <pads=[1,1,1,1]> (p, v)", header=ACME
    )
    feeds = {"x": nets.structured(8, 16, 6, 6, seed=2), "flag": np.zeros(8, bool)}
    sets = SampleSets.draw(
        open_samples([{"x": x[None], "flag": np.array(False)} for x in feeds["x"]], model), count=4
    )
    result = onnxdecomp.rewrite(model, 0.5, policy=ANYTHING, data=sets)
    fits = {report.site.name: report.fit for report in result.sites}
    assert fits["conv"] is not None and fits["conv"].plain_because is None
    assert fits["late"] is not None and fits["late"].plain_because == (
        "it follows from an operator that nothing here runs"
    )
    assert result.quality is not None and [each.name for each in result.quality.outputs] == ["a"]
    found = onnxdecomp.search(model, Goal("macs", 0.8), samples=sets, policy=ANYTHING, cost="macs")
    assert found.met and check(model, found).status == "passed"


def test_all_goes_on_the_command_line(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(KINDS["plugin"][0], Path("in.onnx"))
    line = "not checked beyond node 'num' (EfficientNMS_TRT)"
    for arguments in (
        ("rewrite", "in.onnx", "out.onnx", "--rank", "0.5", "--allow-slower"),
        ("compare", "in.onnx", "out.onnx"),
        ("search", "in.onnx", "found.onnx", "--macs", "0.9", "--cost", "macs", "--align", "1"),
    ):
        done = cli(*arguments)
        assert done.code == 0 and " ".join(done.out.split()).count(line) == 1
    assert cli("inspect", "in.onnx").code == 0


def test_a_model_that_does_not_run_cannot_be_timed() -> None:
    with pytest.raises(
        UsageError, match=r"node 'num' \(EfficientNMS_TRT\) runs nowhere here.*give `cost` macs"
    ):
        onnxdecomp.search(KINDS["plugin"][0], Goal("speedup", 1.1), policy=ANYTHING)


# What is still refused
# ---------------------


def damaged(model: ModelProto) -> ModelProto:
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
    return model


def test_the_checker_judges_all_other_nodes(tmp_path: Path) -> None:
    sound, unsound = made(OUTPUTS, PLUGIN), made(OUTPUTS, PLUGIN)
    unsound.graph.node[1].input[0] = "nowhere"
    assert checker_refusal(save(sound, tmp_path / "sound.onnx")) is None
    refusal = checker_refusal(save(unsound, tmp_path / "unsound.onnx"))
    assert "nowhere" in str(refusal)
    with pytest.raises(ModelError, match="is not a valid ONNX model"):
        onnxdecomp.rewrite(tmp_path / "unsound.onnx", 0.5, policy=ANYTHING)
    with pytest.raises(CheckError, match="not valid ONNX"):
        check(sound, unsound)


def test_external_weights_stay_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(made(OUTPUTS, PLUGIN), path, save_as_external_data=True, size_threshold=0)
    result = onnxdecomp.rewrite(path, 0.5, policy=ANYTHING)
    assert result.check is not None and result.check.status == "passed"
    assert checker_refusal(path) is None


def test_a_trunk_that_does_other_things_is_damaged() -> None:
    model, other = made(OUTPUTS, PLUGIN), made(OUTPUTS, PLUGIN)
    other.graph.node[1].op_type = "Log"
    with pytest.raises(CheckError, match="'a' of the rewritten model has"):
        check(model, other)


def test_where_nothing_stands_before_nothing_is_checked() -> None:
    text = (
        ACME
        + "m (float[1,16,6,6] x) => (float[1,16,6,6] y) { p = acme.ops.Decode (x) [conv] y = Conv (p, w) }"
    )
    model = nets.model(text, w=nets.weight(16, 16, 1, 1))
    result = onnxdecomp.rewrite(model, 0.5, policy=ANYTHING)
    assert result.check is not None and result.check.status == "not checked"
    expected = "nothing here runs node 'p' (acme.ops.Decode), and nothing before can be compared"
    assert result.check.reason == expected
