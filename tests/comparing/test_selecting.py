"""Models whose output sizes depend on data: compared before these, and what both select is counted.

The counts are held against loops in Python over what ONNX Runtime puts out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnxruntime
import pytest
from conftest import Cli, save
from nets import ANYTHING
from onnx import ModelProto, helper

import onnxdecomp
from onnxdecomp import CheckError, Goal, SampleSets, compare, measure_quality, open_samples
from onnxdecomp.runtime import random_feeds

GRID = 2 * np.stack(np.meshgrid(range(8), range(8)), axis=-1).reshape(1, 64, 2)
CONSTANTS: dict[str, Any] = {
    "base": np.concatenate([GRID, np.full_like(GRID, 7)], axis=2).astype(np.float32),
    "w": nets.weight(8, 4, 3, 3),
    "wb": nets.weight(4, 8, 1, 1, seed=1),
    "wc": nets.weight(3, 8, 1, 1, seed=2),
    "s1": np.array([1, 4, -1]),
    "s2": np.array([1, 3, -1]),
    "most": np.array([20]),
    "iou": np.float32([0.5]),
    "least": np.float32([0.6]),
    "zero": np.array([0]),
    "one": np.array(1),
    "two": np.array(2),
    "single": np.array([1]),
    "line": np.array([64]),
    "flat": np.array([1, 64]),
    "bar": np.float32(0.2),
    "nine": np.float32(9),
}
BOXES = """bx = Conv (f, wb)
  cl = Conv (f, wc)
  b2 = Reshape (bx, s1)
  shift = Transpose <perm=[0,2,1]> (b2)
  boxes = Add (shift, base)
  c2 = Reshape (cl, s2)
  scores = Sigmoid (c2)
  idx = NonMaxSuppression <center_point_box={}> (boxes, scores, most, iou, least)"""
PLACES = """mean = ReduceMean <axes=[1], keepdims=0> (f)
  y0 = Reshape (mean, flat)
  sure = Greater (y0, bar)"""
COUNTED = """number = Cast <to=7> (sure)
  sum = ReduceSum <keepdims=0> (number)
  k = Reshape (sum, single)"""


def made(outputs: str, *body: str) -> ModelProto:
    """A Conv, "trunk", and what follows from it."""
    lines = "\n  ".join(["[trunk] f = Conv <pads=[1,1,1,1]> (x, w)", *body])
    used = {name: value for name, value in CONSTANTS.items() if re.search(rf"\b{name}\b", lines)}
    return nets.model(f"m (float[1,4,8,8] x) => ({outputs}) {{\n  {lines}\n}}", **used)


GATHERED = """label = Gather <axis=1> (idx, one)
  place = Gather <axis=1> (idx, two)
  corners = Squeeze (boxes, zero)
  found = Gather (corners, place)"""
# What selects: the model, where it is compared instead, and which tensor says what was selected.
KINDS: dict[str, tuple[ModelProto, set[str], str]] = {
    "nms": (made("int64[n,3] idx", BOXES.format(0)), {"boxes", "scores"}, "idx"),
    "centred": (made("int64[n,3] idx", BOXES.format(1)), {"boxes", "scores"}, "idx"),
    "gathered": (
        made("float[1,3,64] scores, float[n,4] found, int64[n] label", BOXES.format(0), GATHERED),
        {"boxes", "corners", "scores"},
        "idx",
    ),
    "nonzero": (made("int64[2,n] y", PLACES, "y = NonZero (sure)"), {"y0"}, "y"),
    "compress": (
        made("float[n] y", PLACES, "kept = Reshape (sure, line)", "y = Compress (y0, kept)"),
        {"y0"},
        "kept",
    ),
    "unique": (
        made("int64[n] y", PLACES, "big = Mul (y0, nine)", "whole = Cast <to=7> (big)", "y = Unique (whole)"),
        {"big"},
        "y",
    ),
    "topk": (made("float[1,k] y, int64[1,k] i", PLACES, COUNTED, "y, i = TopK (y0, k)"), {"y0"}, "i"),
}
# And what has no items to count.
SLICED = made("float[1,n] y", PLACES, COUNTED, "y = Slice (y0, zero, k, single)")


def tensors(model: ModelProto, *names: str, **feeds: Any) -> list[np.ndarray]:
    """Tensors inside, by ONNX Runtime."""
    copy = ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(list(names), feeds))


def iou(a: Iterable[float], b: Iterable[float], centred: bool) -> float:
    sides = []
    for p, q, r, s in (a, b):
        sides.append((p - r / 2, q - s / 2, p + r / 2, q + s / 2) if centred else
                     (min(p, r), min(q, s), max(p, r), max(q, s)))  # fmt: skip
    (a0, a1, a2, a3), (b0, b1, b2, b3) = sides
    shared = max(0.0, min(a2, b2) - max(a0, b0)) * max(0.0, min(a3, b3) - max(a1, b1))
    return shared / ((a2 - a0) * (a3 - a1) + (b2 - b0) * (b3 - b1) - shared)


def counted(kind: str, a: ModelProto, b: ModelProto, feeds: Any) -> tuple[int, int, int]:
    teller = KINDS[kind][2]
    if teller != "idx":
        found = []
        for model in (a, b):
            (value,) = tensors(model, teller, **feeds)
            listed = (
                np.flatnonzero(value)
                if kind == "compress"
                else value.T
                if kind == "nonzero"
                else value.ravel()
            )
            found.append({tuple(np.atleast_1d(item)) for item in listed})
        return len(found[0]), len(found[1]), len(found[0] & found[1])
    own, other = (tensors(model, "idx", "boxes", **feeds) for model in (a, b))
    free, common = list(other[0]), 0
    for batch, label, place in own[0]:
        overlaps = [
            iou(own[1][batch, place], other[1][batch, each[2]], kind == "centred") if each[1] == label else 0
            for each in free
        ]
        if overlaps and max(overlaps) >= 0.5:
            del free[int(np.argmax(overlaps))]
            common += 1
    return len(own[0]), len(other[0]), common


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_rewritten_compared_before_the_selection_and_counted(kind: str) -> None:
    model, places, _ = KINDS[kind]
    result = onnxdecomp.rewrite(model, 0.5, policy=ANYTHING, only="trunk")
    assert result.check is not None and result.check.status == "passed"
    found = compare(model, result)
    feeds = random_feeds(model, {})
    before, after, common = counted(kind, model, result.model, feeds)
    assert before != after or kind == "unique", "the sizes must differ, or nothing is shown"
    for judged in (result.check, found):
        assert {each.name for each in judged.outputs} == places
        (selection,) = judged.selections
        assert (selection.before, selection.after, selection.common) == (before, after, common)
    for each in found:
        a, b = (tensors(proto, each.name, **feeds)[0] for proto in (model, result.model))
        assert each.relative_l2 == pytest.approx(nets.distance(a, b), rel=1e-6)
    (same,) = compare(model, model).selections
    assert same.before == same.after == same.common == before > 0
    assert found.note is not None and "on data: compared at '" in found.note


def test_where_nothing_can_be_counted_the_comparison_still_goes_before() -> None:
    result = onnxdecomp.rewrite(SLICED, 0.5, policy=ANYTHING)
    assert result.check is not None and result.check.status == "passed"
    assert [each.name for each in result.check.outputs] == ["y0"] and result.check.selections == ()


def test_all_goes_on_the_command_line(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(KINDS["nms"][0], tmp_path / "in.onnx")
    done = cli("rewrite", "in.onnx", "out.onnx", "--rank", "0.5", "--allow-slower", "--min-channels", "1")
    line = "the size of output 'idx' depends on data: compared at 'boxes' and 'scores'"
    assert done.code == 0 and line in " ".join(done.out.split()) and "NonMaxSuppression" in done.out
    done = cli("compare", "in.onnx", "out.onnx", "--json", "found.json")
    assert done.code == 0 and line in " ".join(done.out.split()) and "in common" in done.out
    arguments = ("--macs", "0.9", "--cost", "macs", "--min-channels", "1", "--align", "1")
    done = cli("search", "in.onnx", "searched.onnx", *arguments)
    assert done.code == 0 and line in " ".join(done.out.split())


@pytest.mark.parametrize("kind", KINDS)
def test_one_selects_nothing(kind: str) -> None:
    model, empty = KINDS[kind][0], ModelProto()
    empty.CopyFrom(model)
    for tensor in empty.graph.initializer:
        if tensor.name in ("least", "bar"):
            tensor.raw_data = np.float32(1e9).tobytes()
        if kind == "unique" and tensor.name == "nine":
            tensor.raw_data = np.float32(0).tobytes()
    (selection,) = compare(model, empty).selections
    assert selection.before > 0 and selection.after == (kind == "unique")
    assert selection.common == (kind == "unique")
    (selection,) = compare(empty, empty).selections
    assert selection.before == selection.common == (kind == "unique")


# What must still be the same
# ---------------------------


def constant(text: str, **arrays: Any) -> ModelProto:
    return nets.model(text, w=CONSTANTS["w"], **arrays)


SELECTED = """m (float[1,4,8,8] x) => (int64[{}] y) {{
  f = Conv (x, w)
  n = NonZero (f)
  y = {}
}}"""


@pytest.mark.parametrize(
    ("declared", "a", "b", "refused"),
    [
        ("4,n", "Identity (n)", "Identity (n)", None),
        ("4,n", "Identity (n)", "Transpose (n)", "int64[4, 288] to int64[288, 4]"),
        ("n,4", "Transpose (n)", "Identity (n)", "int64[288, 4] to int64[4, 288]"),
        ("k,n", "Identity (n)", "Transpose (n)", None),
        ("k,n", "Identity (n)", "Unsqueeze (n, axis)", "int64[4, 288] to int64[1, 4, 288]"),
    ],
)
def test_declared_dimensions_must_agree(declared: str, a: str, b: str, refused: str | None) -> None:
    weight = np.ones((8, 4, 3, 3), np.float32)
    first, second = (
        nets.model(SELECTED.format(own, body), w=weight, axis=np.array([0]))
        for own, body in ((declared, a), (",".join("?" for _ in range(2 + ("Un" in b))), b))
    )
    if refused is None:
        assert compare(first, second).outputs
        return
    with pytest.raises(CheckError, match=re.escape(f"output 'y' changed from {refused}")):
        compare(first, second)


def test_a_size_that_no_data_decides_must_agree() -> None:
    """Shapes that follow from shapes are those of the input, whatever computes them."""
    text = """m (float[1,4,8,8] x) => (float[?,?] y) {{
      f = Conv (x, w)
      s = Shape (f)
      n = ReduceProd <keepdims=1> (s)
      {} = Concat <axis=0> ({})
      y = Reshape (f, t)
    }}"""
    first = constant(text.format("t", "n, single"), single=np.array([1]))
    second = constant(text.format("t", "single, n"), single=np.array([1]))
    with pytest.raises(CheckError, match="output 'y' changed from"):
        compare(first, second)


def test_another_model_is_compared_where_it_has_the_same_tensors() -> None:
    first = KINDS["nms"][0]
    text = first.SerializeToString().replace(b"scores", b"points").replace(b"boxes", b"crate")
    second = ModelProto.FromString(text)
    found = compare(first, second)
    assert found.outputs == () and found.selections == ()
    assert found.note is not None and found.note.endswith(
        "depends on data, and nothing before can be compared"
    )


# On samples
# ----------


@pytest.fixture(scope="module")
def sets() -> SampleSets:
    model = KINDS["gathered"][0]
    samples = open_samples({"x": nets.structured(12, 4, 8, 8, seed=3)}, model)
    return SampleSets.draw(samples, count=8)


def test_quality_on_samples_sums_over_them(sets: SampleSets) -> None:
    model, places, _ = KINDS["gathered"]
    result = onnxdecomp.rewrite(model, 0.5, policy=ANYTHING, only="trunk", data=sets)
    quality = result.quality
    assert quality is not None and {each.name for each in quality.outputs} == places
    alone = measure_quality(model, result, sets.held_out)
    assert alone.selections == quality.selections
    counts = [counted("gathered", model, result.model, feeds) for feeds in sets.held_out.batches(1)]
    before, after, common = map(sum, zip(*counts, strict=True))
    (found,) = quality.selections
    assert (found.before, found.after, found.common) == (before, after, common)


def test_a_search_judges_before_the_selection(sets: SampleSets, tmp_path: Path) -> None:
    found = onnxdecomp.search(
        KINDS["gathered"][0], Goal("macs", 0.9), samples=sets, policy=ANYTHING, cost="macs",
        trials=onnxdecomp.Trials(number=2),
    )  # fmt: skip
    assert found.met and found.best is not None and found.best.quality is not None
    assert {each.name for each in found.best.quality.outputs} == KINDS["gathered"][1]
    assert 0 < found.best.predicted < np.inf


CROPS = """m (float[N,8,6,6] x) => (float[k,8,6,6] y) {
  [conv] f = Conv <pads=[1,1,1,1]> (x, w)
  crops = Reshape (f, four)
  mean = ReduceMean <axes=[1,2,3], keepdims=0> (crops)
  sure = Greater (mean, bar)
  found = NonZero (sure)
  chosen = Reshape (found, line)
  picked = Gather (crops, chosen)
  [late] y = Conv <pads=[1,1,1,1]> (picked, v)
}"""


def test_what_stands_behind_a_selection_has_plain_factors() -> None:
    """The original and the model rewritten so far see different crops there."""
    arrays = {"w": nets.weight(32, 8, 3, 3), "v": nets.weight(8, 8, 3, 3, seed=1), "bar": np.float32(0)}
    shapes = {"four": np.array([-1, 8, 6, 6]), "line": np.array([-1])}
    model = nets.model(CROPS, **arrays, **shapes)
    samples = SampleSets.draw(open_samples({"x": nets.structured(12, 8, 6, 6, seed=3)}, model), count=8)
    result = onnxdecomp.rewrite(model, 0.5, policy=ANYTHING, data=samples)
    fits = {report.site.name: report.fit for report in result.sites}
    assert fits["conv"] is not None and fits["conv"].plain_because is None
    assert fits["late"] is not None and fits["late"].plain_because is not None
    assert "depends on data" in fits["late"].plain_because
    assert result.quality is not None
    assert {each.name for each in result.quality.outputs} == {"crops", "mean"}
    (selection,) = result.quality.selections
    assert selection.common < selection.before
