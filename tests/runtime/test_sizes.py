"""Sizes that shape inference cannot tell: those of a run, against its tensors; else one line on why."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, save
from onnx import ModelProto

import onnxdecomp
from onnxdecomp.runtime import sizes

ONE = {"extra": np.float32([1])}
CONV = "Conv <pads=[1,1,1,1]>"


def macs_of(model: ModelProto, tensors: Mapping[str, str], **feeds: np.ndarray) -> dict[str, int]:
    """Multiply-accumulates of 3×3 Convs from 16 to 16 channels, by the tensors that they really put out."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in set(tensors.values()) - {output.name for output in copy.graph.output}:
        copy.graph.output.append(onnx.helper.make_tensor_value_info(tensor, 1, [None] * 4))
    outputs = nets.run(copy, **feeds)
    return {site: 9 * 16 * outputs[tensor].size for site, tensor in tensors.items()}


def known(found: onnxdecomp.Inspection) -> dict[str, int | None]:
    return {site.name: site.macs for site in found.sites}


def test_a_run_tells_them_wherever_costs_are_shown(tmp_path: Path, cli: Cli) -> None:
    model = nets.blind(**ONE)
    expected = macs_of(model, {"one": "a", "two": "y"}, x=nets.signal(1, 16, 64))
    found = onnxdecomp.inspect(model)
    assert known(found) == expected | {"known": 16 * 16 * 64}
    assert found.notes == ("the sizes of 2 sites are those of a run on random inputs",)
    assert [site.macs for site in onnxdecomp.find_sites(model)] == [site.macs for site in found.sites]
    result = onnxdecomp.rewrite(model, 0.5, policy=nets.ANYTHING)
    assert result.totals.macs[0] == sum(known(found).values()) and result.totals.macs[1] is not None  # type: ignore[arg-type]
    assert {report.site.name: report.site.macs for report in result.sites} == known(found)
    assert result.notes == found.notes
    save(model, tmp_path / "in.onnx")
    done = cli("inspect", tmp_path / "in.onnx")
    assert "unknown" not in done.out and "--input-shape" not in done.out


def test_a_rule_is_decided_by_what_a_run_tells() -> None:
    """A share of the multiply-accumulates is refused where these are not known."""
    policy = onnxdecomp.Policy(min_channels=1, align=1)
    result = onnxdecomp.rewrite(nets.blind(**ONE), "macs=0.5", policy=policy)
    assert set(result.plan.sites) >= {"one", "two"}


def test_samples_tell_what_random_inputs_cannot() -> None:
    """Only some values of the second input make a model that runs."""
    model = nets.blind()
    (note,) = onnxdecomp.inspect(model).notes
    assert note.startswith("the sizes of 2 sites are not known: ONNX Runtime does not run the model: ")
    assert "\n" not in note and "input_shapes" not in note
    feeds = {"x": nets.signal(4, 16, 64), "extra": np.ones(4, np.float32)}
    expected = macs_of(model, {"one": "a", "two": "y"}, x=feeds["x"][:1], extra=feeds["extra"][:1])
    samples = onnxdecomp.open_samples([feeds], model)
    result = onnxdecomp.rewrite(model, 0.5, policy=nets.ANYTHING, data=samples)
    assert {r.site.name: r.site.macs for r in result.sites if r.site.name != "known"} == expected
    assert result.notes == ("the sizes of 2 sites are those of a run on the first sample",)


DYNAMIC = f"""m (float[B,16,H,W] x) => (float[B,16,H,W] y) {{
  [conv] y = {CONV} (x, w)
}}"""


def test_samples_have_the_shapes_that_the_model_leaves_open() -> None:
    model = nets.model(DYNAMIC, w=nets.weight(16, 16, 3, 3))
    samples = onnxdecomp.open_samples([{"x": nets.signal(6, 16, 5, 7)}], model)
    result = onnxdecomp.rewrite(model, 0.5, policy=nets.ANYTHING, data=samples)
    assert result.totals.macs[0] == 9 * 16 * 16 * 5 * 7 and result.notes == ()
    given = {"x": (2, 16, 4, 4)}
    result = onnxdecomp.rewrite(model, 0.5, policy=nets.ANYTHING, data=samples, input_shapes=given)
    assert result.totals.macs[0] == 9 * 16 * 16 * 2 * 4 * 4


def test_unknown_dimensions_are_asked_for_and_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "open_session", None)
    model = nets.model(DYNAMIC, w=nets.weight(16, 16, 3, 3))
    found = onnxdecomp.inspect(model)
    asked = "input 'x' has unknown dimensions (1,16,?,?): give `input_shapes` x:DIMS"
    assert found.notes == (f"the sizes of 1 sites are not known: {asked}",)
    assert onnxdecomp.inspect(model, input_shapes={"x": (1, 16, 5, 5)}).notes == ()


INSIDE = "are not known: they are inside functions, loops or scans, where a run does not look"
INNER = """m (float[1,16,64] x, bool flag) => (float[1,16,?,?] y) {{
  rows = ReduceSum <keepdims=1> (extra)
  grown = Cast <to=7> (rows)
  side = Add (grown, seven)
  target = Concat <axis=0> (front, side, side)
  image = Reshape (x, target)
  {body}
}}"""
LOOP = """y = Loop (once, yes, image) <
  body = step (int64 i, bool go, float[1,16,?,?] before) => (bool on, float[1,16,?,?] p) {
    on = Identity (go)
    [inner] p = Conv <pads=[1,1,1,1]> (before, w)
  }
>"""
BRANCH = """y = If (flag) <
  then_branch = yes () => (float[1,16,?,?] p) { [inner] p = Conv <pads=[1,1,1,1]> (image, w) },
  else_branch = no () => (float[1,16,?,?] q) { q = Relu (image) }
>"""
FUNCTION = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
m (float[1,2,6] x) => (float[1,2,6] y) { y = local.block (x) }
<domain: "local", opset_import: ["" : 17]> block (a) => (b) {
  w = Constant <value = float[2,2,1] {1, 2, 3, 4}> ()
  [inner] b = Conv (a, w)
}"""
NUMBERS = {"front": np.array([1, 16]), "seven": np.array([7])} | ONE


@pytest.mark.parametrize(
    ("model", "macs", "note"),
    [
        (
            nets.model(INNER.format(body="y = MatMul (image, m)"), m=nets.weight(8, 5), **NUMBERS),
            16 * 8 * 8 * 5,
            "are those of a run on random inputs",
        ),
        (
            nets.model(INNER.format(body=BRANCH), w=nets.weight(16, 16, 3, 3), **NUMBERS),
            9 * 16 * 16 * 8 * 8,
            "are those of a run on random inputs",
        ),
        (
            nets.model(
                INNER.format(body=LOOP),
                w=nets.weight(16, 16, 3, 3),
                **NUMBERS,
                once=np.array(1),
                yes=np.array(True),
            ),
            None,
            INSIDE,
        ),
        (nets.model(FUNCTION), None, INSIDE),
    ],
    ids=["product", "branch", "loop", "function"],
)
def test_where_a_run_looks(model: ModelProto, macs: int | None, note: str) -> None:
    found = onnxdecomp.inspect(model, policy=onnxdecomp.Policy(linear=True))
    (site,) = found.sites
    assert site.params is not None and site.macs == macs
    assert found.notes == (f"the sizes of 1 sites {note}",)


def test_nothing_is_said_of_sizes_that_would_not_tell_the_cost() -> None:
    """Of a weight whose shape is not known the cost is not known either."""
    text = f"m (float[1,16,H,W] x, float[16,C,3,3] w) => (float[1,16,H,W] y) {{ [conv] y = {CONV} (x, w) }}"
    found = onnxdecomp.inspect(nets.model(text))
    assert found.sites[0].params is None and found.notes == ()


def test_a_large_model_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "PROTOBUF_LIMIT", 100)
    monkeypatch.setattr(sizes, "open_session", None)
    (note,) = onnxdecomp.inspect(nets.blind(**ONE)).notes
    assert note == "the sizes of 2 sites are not known: models above 2 GB are not run for them"


def test_without_onnxruntime_they_stay_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (note,) = onnxdecomp.inspect(nets.blind(**ONE)).notes
    assert "2 sites are not known: onnxruntime is not installed: pip install" in note
    (note,) = onnxdecomp.rewrite(nets.blind(**ONE), 0.5, policy=nets.ANYTHING).notes
    assert "onnxruntime is not installed" in note


def test_inputs_that_cannot_be_made_up() -> None:
    model = nets.blind(**ONE)
    model.graph.input.append(onnx.helper.make_tensor_value_info("words", onnx.TensorProto.STRING, [1]))
    (note,) = onnxdecomp.inspect(model).notes
    assert note == (
        "the sizes of 2 sites are not known: input 'words' is no numeric tensor, so inputs cannot be made up"
    )


# Where not all of it runs, the part that does
# --------------------------------------------

NESTED = """y = If (flag) <
  then_branch = yes () => (float[1,16,?,?] p) { p = Relu (image) },
  else_branch = no () => (float[1,16,?,?] q) {
    [half] h = Conv <pads=[1,1,1,1], strides=[2,2]> (image, w)
    q = If (flag) <
      then_branch = deep () => (float[1,16,?,?] s) { [deep] s = Conv <pads=[1,1,1,1]> (h, w) },
      else_branch = flat () => (float[1,16,?,?] t) { t = Neg (h) }
    >
  }
>"""


def test_branches_of_ifs_are_looked_into_whichever_is_taken() -> None:
    model = nets.model(INNER.format(body=NESTED), w=nets.weight(16, 16, 3, 3), **NUMBERS)
    assert [site.macs for site in onnxdecomp.find_sites(model)] == [9 * 16 * 16 * 4 * 4] * 2
    result = onnxdecomp.rewrite(model, 0.5, policy=nets.ANYTHING)
    assert result.totals.macs[0] == 2 * 9 * 16 * 16 * 4 * 4


BEHIND_IF = """m (float[1,16,8,8] x, bool flag) => (float[1,16,?,?] y) {
  h = If (flag) <
    then_branch = yes () => (float[1,16,?,?] p) { p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) },
    else_branch = no () => (float[1,16,?,?] q) { q = Identity (x) }
  >
  [conv] y = Conv <pads=[1,1,1,1]> (h, w)
}"""


def test_a_run_tells_what_stands_behind_an_if() -> None:
    model = nets.model(BEHIND_IF, w=nets.weight(16, 16, 3, 3))
    assert known(onnxdecomp.inspect(model)) == {"conv": 9 * 16 * 16 * 64}  # what is made up is False


ENDS = {
    # It stops while it runs: this many values do not fit that shape.
    "shape": "bad = Reshape (a, wrong) [late] y = Conv <pads=[1,1,1,1]> (bad, w)",
    # It does not load: nothing has the operator.
    "plugin": "bad = Align_TRT (a) [late] y = Conv <pads=[1,1,1,1]> (bad, w)",
    "domain": "bad = acme.ops.Align (a) [late] y = Conv <pads=[1,1,1,1]> (bad, w)",
    # Or has it for other types.
    "type": "wide = Cast <to=16> (a) bad = Conv (wide, b) [late] y = Conv <pads=[1,1,1,1]> (bad, b)",
}
HEADER = '<ir_version: 8, opset_import: ["" : 17, "acme.ops" : 1]>\n'


@pytest.mark.parametrize("end", ENDS)
def test_where_the_model_ends_early_they_are_known_up_to_there(end: str) -> None:
    body = f"[one] a = Conv <pads=[1,1,1,1]> (image, w) {ENDS[end]} z = Conv (image, w)"
    text = INNER.format(body=body).replace("=> (", "=> (float[1,16,?,?] z, ")
    constants = {"w": nets.weight(16, 16, 3, 3), "wrong": np.array([1, 16, 3, -1]), **NUMBERS}
    model = nets.model(HEADER + text, **constants)
    if end == "type":
        ones = [1.0] * (16 * 16 * 9)
        model.graph.initializer.append(onnx.helper.make_tensor("b", 16, [16, 16, 3, 3], ones))
    found = onnxdecomp.inspect(model)
    expected = {"one": 9 * 16 * 16 * 64, "late": None}
    if end in (
        "plugin",
        "domain",
    ):  # what does not follow from them is reached
        expected["z"] = 9 * 16 * 16 * 36
    assert known(found) | expected == known(found)
    first, second = found.notes
    assert "are those of a run on random inputs" in first
    assert "sites are not known: ONNX Runtime does not run the model: " in second
    assert onnxdecomp.rewrite(model, 0.5, policy=nets.ANYTHING, check=False).notes == found.notes


def test_few_sessions_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of many Convs is halved, not tried Conv by Conv."""
    opened: list[int] = []
    original = sizes.open_session
    monkeypatch.setattr(sizes, "open_session", lambda *given: opened.append(1) or original(*given))
    lines = ["[c0] a0 = Conv <pads=[1,1,1,1]> (image, w)"]
    lines += [f"[c{i}] a{i} = Conv <pads=[1,1,1,1]> (a{i - 1}, w)" for i in range(1, 30)]
    lines += ["bad = Reshape (a17, wrong)", "[late] y = Conv (bad, w)"]
    constants = {"w": nets.weight(16, 16, 3, 3), "wrong": np.array([1, 16, 3, -1]), **NUMBERS}
    found = onnxdecomp.inspect(nets.model(INNER.format(body=" ".join(lines)), **constants))
    assert [name for name, macs in known(found).items() if macs is None] == ["late"]
    assert 1 < len(opened) < 10
