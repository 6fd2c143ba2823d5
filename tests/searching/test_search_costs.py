"""What choices cost: sites alone as models, times kept between searches, sizes that only a run can tell."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import save
from onnx import ModelProto

from onnxdecomp import Policy
from onnxdecomp.errors import RunError
from onnxdecomp.ir import Model, Survey, as_model, load, survey
from onnxdecomp.planning import Unit, label
from onnxdecomp.progress import silent
from onnxdecomp.runtime import Engine, cache_folder, observe_sizes
from onnxdecomp.searching import costs
from onnxdecomp.searching.cache import Cache
from onnxdecomp.searching.candidates import find_candidates
from onnxdecomp.searching.costs import measured, time_models
from onnxdecomp.searching.surroundings import find_surroundings, site_feeds, site_model

POLICY = Policy(align=4, min_channels=8, linear=True)

# Every kind of surroundings: nothing, an activation with attributes, a residual and an activation, a tensor
# that others read too, a Clip whose bounds are tensors; groups, strides, automatic padding, one axis, a
# ConvTranspose, Gemms.
NET = """<ir_version: 8, opset_import: ["" : 10]>
m (float[2,16,9,8] x, float[2,16,20] w1, float[3,24] v)
=> (float[2,16,5,4] y, float[2,16,40] q, float[3,32] u) {
  [plain] a = Conv <pads=[1,1,1,1]> (x, wa, ba)
  one = Sigmoid (a)
  two = Tanh (a)
  both = Add (one, two)
  [relu] b = Conv <auto_pad="SAME_UPPER", group=2> (both, wb)
  rb = Relu (b)
  [residual] c = Conv <pads=[1,1,1,1]> (rb, wc, ba)
  s = Add (c, rb)
  k = LeakyRelu <alpha=0.2> (s)
  [clip] d = Conv <strides=[2,2], pads=[1,1,1,1], dilations=[1,1]> (k, wd)
  e = Clip <min=-0.5, max=0.5> (d)
  [point] f = Conv (e, we)
  y = HardSigmoid <alpha=0.3, beta=0.4> (f)
  [line] z = Conv <pads=[2,2]> (w1, wl, bl)
  [up] p = ConvTranspose <strides=[2], pads=[1,1]> (z, wu, ba)
  q = Relu (p)
  [turned] t = Gemm <transB=1, alpha=0.5> (v, wt, bt)
  rt = Relu (t)
  [matrix] u = MatMul (rt, wm)
}"""


def net() -> ModelProto:
    return nets.model(
        NET,
        wa=nets.weight(16, 16, 3, 3), ba=nets.signal(16), wb=nets.weight(16, 8, 3, 3),
        wc=nets.weight(16, 16, 3, 3), wd=nets.weight(16, 16, 3, 3), we=nets.weight(16, 16, 1, 1),
        wl=nets.weight(24, 16, 5), bl=nets.signal(24), wt=nets.weight(40, 24), bt=nets.signal(40),
        wm=nets.weight(40, 32), wu=nets.weight(24, 16, 4),
    )  # fmt: skip


def sited(model: Model) -> tuple[Survey, list[Unit]]:
    found = survey(model, input_shapes={}, freeze=False, fold_bn=True, linear=True)
    return found, find_candidates(found, POLICY)


BEHIND = {
    "plain": [], "relu": ["Relu"], "residual": ["Add", "LeakyRelu"], "clip": ["Clip"],
    "point": ["HardSigmoid"], "line": [], "up": ["Relu"], "turned": ["Relu"], "matrix": [],
}  # fmt: skip


def test_a_site_alone_is_a_model_that_runs_with_its_surroundings() -> None:
    proto = net()
    found, units = sited(as_model(proto))
    assert [unit.name for unit in units] == list(BEHIND)
    for unit in units:
        (anchor,) = unit.anchors
        surroundings = find_surroundings(anchor, found)
        feeds = site_feeds(anchor, surroundings)
        assert ("z" in feeds) == surroundings.residual == (unit.name == "residual")
        shapes = set()
        for choice in (None, unit.choices[0], unit.choices[-1]):
            model = site_model(anchor, surroundings, choice, proto.ir_version)
            # The checker asks for an output's shape, ONNX Runtime does not.
            rank = len(feeds["x"].shape)
            model.graph.output[0].type.tensor_type.shape.dim.extend(
                onnx.TensorShapeProto.Dimension(dim_param=f"d{i}") for i in range(rank)
            )
            (result,) = nets.run(model, **feeds).values()
            assert np.isfinite(result).all() and result.std() > 0
            shapes.add(result.shape)
            ops = [node.op_type for node in model.graph.node]
            sites = (*nets.CONVS, "Gemm", "MatMul", "Identity")
            assert [op for op in ops if op not in sites] == BEHIND[unit.name]
            assert ops.count("ConvTranspose") == (unit.name == "up")
            first = model.graph.node[0]
            if choice is None:
                assert sorted(map(str, first.attribute)) == sorted(map(str, anchor.node.attribute))
            for behind in proto.graph.node:
                if behind.op_type in BEHIND[unit.name][-1:] and behind.op_type not in ("Add", "Relu"):
                    made = next(n for n in model.graph.node if n.op_type == behind.op_type)
                    assert made.attribute and str(made.attribute) == str(behind.attribute)
        (shape,) = shapes
        assert anchor.site.sizes is not None and anchor.site.channels is not None
        before, after = anchor.site.sizes
        assert shape == (after[0], anchor.site.channels[1], *after[1:])
        assert feeds["x"].shape == (before[0], anchor.site.channels[0], *before[1:])


def test_bounds_of_a_clip_that_are_tensors_are_left_out() -> None:
    text = """m (float[1,16,8,8] x) => (float[1,16,8,8] y) {
      [site] h = Conv <pads=[1,1,1,1]> (x, w)
      y = Clip (h, low)
    }"""
    found, (unit,) = sited(
        as_model(nets.model(text, w=nets.weight(16, 16, 3, 3), low=np.float32([0]).reshape(())))
    )
    assert find_surroundings(unit.lead, found).activation is None


def test_an_output_of_the_model_is_not_fused() -> None:
    text = """m (float[1,16,8,8] x) => (float[1,16,8,8] h, float[1,16,8,8] y) {
      [site] h = Conv <pads=[1,1,1,1]> (x, w)
      y = Relu (h)
    }"""
    found, (unit,) = sited(as_model(nets.model(text, w=nets.weight(16, 16, 3, 3))))
    assert find_surroundings(unit.lead, found).activation is None


def test_models_are_timed_in_turns_and_what_does_not_run_is_refused() -> None:
    found, units = sited(as_model(net()))
    anchor = units[0].lead
    surroundings = find_surroundings(anchor, found)
    models = [site_model(anchor, surroundings, choice, 8) for choice in (None, units[0].choices[0])]
    feeds = site_feeds(anchor, surroundings)
    assert all(seconds > 0 for seconds in time_models(models, feeds, Engine()))
    models[1].graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(RunError, match="does not run a chain alone"):
        time_models(models, feeds, Engine())


# What is kept between searches
# -----------------------------


class Clock:
    """Stands for `time_models`: counts the calls, every model takes a millisecond more than the last."""

    def __init__(self) -> None:
        self.calls, self.models = 0, 0

    def __call__(self, models: Sequence[ModelProto], feeds: Any, engine: Engine) -> list[float]:
        self.calls += 1
        self.models += len(models)
        return [1e-3 * (i + 1) for i in range(len(models))]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(costs, "time_models", found)
    return found


def price(proto: ModelProto, cache: Cache) -> tuple[list[Unit], list[costs.Priced]]:
    found, units = sited(as_model(proto))
    return units, measured(found, units, Engine(), cache, silent)


def test_what_was_timed_is_not_timed_again(tmp_path: Path, clock: Clock) -> None:
    def opened() -> Cache:
        return Cache("costs", {"device": "this"}, tmp_path)

    units, first = price(net(), opened())
    assert clock.calls == len(units)
    assert clock.models == sum(1 + len(unit.choices) for unit in units)
    assert price(net(), opened())[1] == first
    assert clock.calls == len(units)
    price(net(), Cache("costs", {"device": "another"}, tmp_path))
    assert clock.calls == 2 * len(units)
    assert len(list(tmp_path.iterdir())) == 2


def test_like_sites_are_timed_once_and_unlike_ones_each(tmp_path: Path, clock: Clock) -> None:
    def once(text: str, dtype: Any = np.float32, out: int = 16) -> int:
        before = clock.calls
        text = text.replace("float[", "float16[") if dtype == np.float16 else text
        weights = {"w": nets.weight(out, 16, 3, 3, dtype=dtype), "b": nets.signal(out, dtype=dtype)}
        proto = nets.model(text, **{name: a for name, a in weights.items() if f" {name}" in text})
        price(proto, Cache("costs", {}, tmp_path))
        return clock.calls - before

    text = (
        "m (float[1,16,8,8] x) => (float[1,16,8,8] y) {{ [{}] h = Conv <pads=[1,1,1,1]> (x, w)  y = {} (h) }}"
    )
    relu = text.format("site", "Relu")
    assert once(relu) == 1
    assert once(text.format("of_another_name", "Relu")) == 0
    assert once(text.format("site", "Tanh")) == 1
    assert once(text.format("site", "Identity")) == 1
    leaky = [text.format("site", f"LeakyRelu <alpha={alpha}>") for alpha in ("0.1", "0.2")]
    assert [once(each) for each in (*leaky, *leaky)] == [1, 1, 0, 0]
    assert once(relu.replace("8,8]", "9,9]")) == 1
    assert once(relu.replace("[1,16,", "[2,16,")) == 1
    assert (
        once(
            relu.replace("pads=[1,1,1,1]", "pads=[1,1,1,1], strides=[2,2]").replace("16,8,8] y", "16,4,4] y")
        )
        == 1
    )
    assert once(relu, dtype=np.float16) == 1
    assert once(relu.replace("16,8,8] y", "24,8,8] y"), out=24) == 1
    residual = relu.replace("y = Relu (h)", "i = Tanh (x)  s = Add (h, i)  y = Relu (s)")
    assert [once(residual), once(residual), once(relu)] == [1, 0, 0]


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"values": {}}', "null", '{"conditions": {}, "values": {}}']
)
def test_a_damaged_cache_starts_anew_and_says_so(damage: str, tmp_path: Path, clock: Clock) -> None:
    cache = Cache("costs", {"device": "this"}, tmp_path)
    units, first = price(net(), cache)
    whole = cache.path.read_text()
    cache.path.write_text(damage)
    again = Cache("costs", {"device": "this"}, tmp_path)
    assert again.note is not None and "starts anew" in again.note and "\n" not in again.note
    assert price(net(), again)[1] == first and clock.calls == 2 * len(units)
    assert json.loads(cache.path.read_text()) == json.loads(whole)
    assert Cache("costs", {"device": "this"}, tmp_path).note is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"x"', "null"])
def test_numbers_that_are_none_are_damage(value: str, tmp_path: Path) -> None:
    cache = Cache("costs", {}, tmp_path)
    cache.put({"a": 1.5})
    assert Cache("costs", {}, tmp_path).get("a") == 1.5
    cache.path.write_text(cache.path.read_text().replace("1.5", value))
    damaged = Cache("costs", {}, tmp_path)
    assert damaged.note is not None and damaged.get("a") is None


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("ONNXDECOMP_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "onnxdecomp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "onnxdecomp"


def test_labels_tell_choices_apart() -> None:
    _, units = sited(as_model(net()))
    for unit in units:
        names = [label(choice) for choice in (None, *unit.choices)]
        assert len(set(names)) == len(names)


# Sizes that shape inference cannot tell
# --------------------------------------


def test_a_run_tells_sizes_that_inference_cannot(tmp_path: Path, clock: Clock) -> None:
    model = load(save(nets.blind(), tmp_path / "m.onnx"))
    found = survey(model, input_shapes={}, freeze=False, fold_bn=True, linear=True)
    sizes = {anchor.site.name: anchor.site.sizes for anchor in found.anchors}
    assert sizes["known"] is not None and sizes["one"] is None and sizes["two"] is None
    units = find_candidates(found, POLICY)
    dark = measured(found, units, Engine(), Cache("costs", {}, tmp_path / "cache"), silent)
    for unit, priced in zip(units, dark, strict=True):
        blank = unit.sites[0].sizes is None
        assert all(math.isinf(cost) == blank for cost in priced.choices) and math.isfinite(priced.kept)

    feeds = {"x": nets.signal(1, 16, 64), "extra": np.float32([1])}
    seen = observe_sizes(found, feeds)
    outputs = {}
    for name, tensor in (("one", "a"), ("two", "y")):
        copy = onnx.load(tmp_path / "m.onnx")
        del copy.graph.output[:]
        copy.graph.output.append(onnx.helper.make_tensor_value_info(tensor, 1, [None] * 4))
        outputs[name] = nets.run(copy, **feeds)[tensor].shape
    after = {anchor.site.name: anchor.site.sizes for anchor in seen.anchors}
    assert after == {
        "known": sizes["known"],
        "one": ((1, 8, 8), (1, *outputs["one"][2:])),
        "two": ((1, 10, 10), (1, *outputs["two"][2:])),
    }
    assert outputs["two"][2:] == (4, 4)
    assert observe_sizes(seen, feeds) is seen
    lit = measured(
        seen, find_candidates(seen, POLICY), Engine(), Cache("costs", {}, tmp_path / "cache"), silent
    )
    assert all(math.isfinite(cost) for priced in lit for cost in priced.choices)
    with pytest.raises(RunError, match="does not run"):
        observe_sizes(found, {"x": nets.signal(1, 16, 60), "extra": np.float32([1])})
