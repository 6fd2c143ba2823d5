"""A chain in the place of a ConvTranspose: at full rank it is the same, at any rank what its factors say."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import nets
import numpy as np
import onnx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from nets import rewrite
from onnx import ModelProto, helper, numpy_helper

from onnxdecomp import Choice, Plan, Ranks, Site, find_sites
from onnxdecomp.planning import applicable, chain_macs, chain_params, macs_ratio, rank_limits

PARITY = settings(derandomize=True, deadline=None, database=None, max_examples=35)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One ConvTranspose; sizes are per spatial dimension, channels (in, out) per group."""

    kernel: tuple[int, ...]
    attributes: dict[str, Any]
    groups: int
    channels: tuple[int, int]
    sizes: tuple[int, ...]
    bias: bool
    batchnorm: bool
    seed: int

    def model(self) -> ModelProto:
        c_in, c_out = (self.groups * c for c in self.channels)
        arrays = {"w": nets.weight(c_in, self.channels[1], *self.kernel, seed=self.seed)}
        if self.bias:
            arrays["b"] = nets.signal(c_out, seed=self.seed)
        nodes = [helper.make_node("ConvTranspose", ["x", *arrays], ["y"], name="up", **self.attributes)]
        if self.batchnorm:
            nodes[0].output[0] = "z"
            values = np.random.default_rng(self.seed).uniform(0.5, 2, (4, c_out)).astype(np.float32)
            parameters = dict(zip(("scale", "shift", "mean", "var"), values, strict=True))
            nodes.append(helper.make_node("BatchNormalization", ["z", *parameters], ["y"]))
            arrays |= parameters
        float32 = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", float32, [2, c_in, *self.sizes])],
            [helper.make_tensor_value_info("y", float32, [None] * (2 + len(self.kernel)))],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def input(self) -> np.ndarray:
        return nets.signal(2, self.groups * self.channels[0], *self.sizes, seed=self.seed + 1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dims = draw(st.sampled_from([2, 1, 3]))

    def per_dim(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(dims)]

    kernel, strides, dilations, sizes = per_dim(1, 4), per_dim(1, 3), per_dim(1, 2), per_dim(2, 5)
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations}
    more = [draw(st.integers(0, step - 1)) for step in strides]  # ONNX Runtime takes no more
    spans = [1 + (k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    whole = [(n - 1) * step + span for n, step, span in zip(sizes, strides, spans, strict=True)]
    form = draw(st.sampled_from(["plain", "pads", "output_shape", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if form == "pads":
        attributes["pads"] = [draw(st.integers(0, (n - 1) // 2)) for n in (*whole, *whole)]
    if form == "output_shape":
        # Below the input's size onnx's shape inference gives up halfway.
        least = [max(size, n - 3) for size, n in zip(sizes, whole, strict=True)]
        attributes["output_shape"] = [draw(st.integers(*ends)) for ends in zip(least, whole, strict=True)]
        attributes["auto_pad"] = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]))
    elif draw(st.booleans()):
        attributes["output_padding"] = more
    if form in ("VALID", "SAME_UPPER", "SAME_LOWER"):
        attributes["auto_pad"] = form
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    return Case(
        kernel=tuple(kernel),
        attributes=attributes | {"group": groups},
        groups=groups,
        # One input channel a group is depthwise, which is left alone.
        channels=(draw(st.integers(1 if groups == 1 else 2, 6)), draw(st.integers(1, 6))),
        sizes=tuple(sizes),
        bias=draw(st.booleans()),
        batchnorm=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


EVERYTHING = Case(
    kernel=(3, 2),
    attributes={
        "strides": [2, 3],
        "pads": [1, 0, 0, 2],
        "output_padding": [1, 2],
        "dilations": [1, 2],
        "group": 2,
    },
    groups=2,
    channels=(3, 5),
    sizes=(4, 3),
    bias=True,
    batchnorm=True,
    seed=0,
)


def full_rank(site: Site, method: str) -> list[Choice]:
    """The choices of `method` that lose nothing."""
    into, out = rank_limits(site, method)
    if method == "tucker1":
        return [Choice(method, Ranks(into, None)), Choice(method, Ranks(None, out))]
    return [Choice(method, Ranks(into, out))]


@settings(PARITY)
@given(case=cases())
@example(case=EVERYTHING)
def test_full_rank_is_the_conv_transpose_whatever_the_method(case: Case) -> None:
    model, x = case.model(), case.input()
    expected = nets.run(model, x=x)["y"]
    assume(np.sqrt(np.mean(expected.astype(np.float64) ** 2)) > 0.1)
    (site,) = find_sites(model)
    assert (site.op, site.obstacle, site.kernel) == ("ConvTranspose", None, case.kernel)
    methods = [method for method in applicable(site) if not method.startswith("cp")]
    assert ("spatial" in methods) <= ("output_shape" not in case.attributes)
    for choice in [choice for method in methods for choice in full_rank(site, method)]:
        rewritten = rewrite(model, plan=Plan({"up": choice})).model
        operators = [node.op_type for node in rewritten.graph.node]
        assert len(operators) == {"tucker2": 3}.get(choice.method, 2)
        assert operators.count("ConvTranspose") == (2 if choice.method == "spatial" else 1)
        assert nets.distance(expected, nets.run(rewritten, x=x)["y"]) <= 2e-4, choice


@settings(PARITY, max_examples=15)
@given(case=cases(), data=st.data())
def test_cp_at_the_rank_that_loses_nothing_is_the_conv_transpose(case: Case, data: st.DataObject) -> None:
    """By alternating least squares: a weight of one component, which rank one can give."""
    shape = (case.groups * case.channels[0], case.channels[1], *case.kernel)
    rng = np.random.default_rng(case.seed)
    parts = [
        math.prod(np.ix_(*(rng.uniform(0.5, 1.5, n) for n in (shape[0] // case.groups, *shape[1:]))))
        for _ in range(case.groups)
    ]
    model, x = case.model(), case.input()
    weight = numpy_helper.from_array(np.concatenate(parts).astype(np.float32), "w")
    model.graph.initializer[0].CopyFrom(weight)
    expected = nets.run(model, x=x)["y"]
    methods = [method for method in applicable(find_sites(model)[0]) if method.startswith("cp")]
    assume(methods)
    choice = Choice(data.draw(st.sampled_from(methods)), Ranks(1, 1))
    rewritten = rewrite(model, plan=Plan({"up": choice})).model
    assert nets.distance(expected, nets.run(rewritten, x=x)["y"]) <= 1e-3


@settings(PARITY, max_examples=25)
@given(case=cases(), data=st.data())
def test_at_any_rank_a_chain_is_the_conv_transpose_its_factors_compose_to(
    case: Case, data: st.DataObject
) -> None:
    case = dataclasses.replace(case, batchnorm=False)
    assume(math.prod(case.kernel) > 1)
    ranks = Ranks(*(data.draw(st.integers(1, channels)) for channels in case.channels))
    model, x = case.model(), case.input()
    rewritten = rewrite(model, plan=Plan({"up": Choice("tucker2", ranks)})).model
    links, values = nets.chain(rewritten, "up"), nets.constants(rewritten)
    # Of ConvTranspose the first mode is the input's, of Conv the output's; each holds the groups in turn.
    core, into, out = (np.split(values[links[r].input[1]], case.groups) for r in ("core", "in", "out"))
    composed = np.concatenate(
        [
            np.einsum("rs...,rc,ds->cd...", g, v.reshape(v.shape[:2]), u.reshape(u.shape[:2]))
            for g, v, u in zip(core, into, out, strict=True)
        ]
    )
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(composed.astype(np.float32), "w"))
    expected = nets.run(model, x=x)["y"]
    assume(np.sqrt(np.mean(expected**2)) > 0.1)
    assert nets.distance(expected, nets.run(rewritten, x=x)["y"]) <= 1e-5


@pytest.mark.parametrize(
    "choice",
    [
        None,
        Choice("tucker2", Ranks(3, 2)),
        Choice("tucker1", Ranks(3, None)),
        Choice("tucker1", Ranks(None, 2)),
        Choice("spatial", Ranks(4, 4)),
        Choice("cp", Ranks(2, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("groups", [1, 2])
def test_costs_are_those_of_the_nodes(choice: Choice | None, groups: int) -> None:
    attributes = f"strides=[2,3], pads=[1,0,0,1], output_padding=[1,0], group={groups}"
    text = f"""g (float[2,8,5,7] x) => (float[2,{6 * groups},11,19] y) {{
      [up] y = ConvTranspose <{attributes}> (x, w)
    }}"""
    model = nets.model(text, w=nets.weight(8, 6, 3, 2))
    feeds = {"x": nets.signal(2, 8, 5, 7)}
    (site,) = find_sites(model)
    if choice is None:
        assert (site.macs, site.params) == (nets.conv_macs(model, feeds)[0], 8 * 6 * 6)
        return
    rewritten = rewrite(model, plan=Plan({"up": choice})).model
    assert chain_macs(site, choice) == nets.conv_macs(rewritten, feeds)[0]
    assert chain_params(site, choice) == sum(math.prod(t.dims) for t in rewritten.graph.initializer)


@pytest.mark.parametrize("sizes", [None, ((1, 0, 6), (1, 3, 12))], ids=["unknown", "empty"])
def test_without_sizes_the_output_is_as_many_times_the_input_as_the_strides_say(sizes: Any) -> None:
    text = """m (float[2,24,6,6] x) => (float[2,16,12,12] y) {
      [up] y = ConvTranspose <strides=[2,2], pads=[1,1,1,1]> (x, w)
    }"""
    (site,) = find_sites(nets.model(text, w=nets.weight(24, 16, 4, 4)))
    choice = Choice("tucker2", Ranks(8, 8))
    expected = (24 * 8 + 16 * 8 * 8 + 4 * 8 * 16) / (16 * 24 * 16)
    assert macs_ratio(site, choice) == macs_ratio(dataclasses.replace(site, sizes=sizes), choice) == expected


@pytest.mark.parametrize(
    ("dtype", "most"), [(np.float64, 1e-6), (np.float16, 3e-3), (ml_dtypes.bfloat16, 2e-2)], ids=str
)
def test_full_rank_is_the_conv_transpose_within_the_rounding_of_its_type(dtype: Any, most: float) -> None:
    name = {"float64": "double"}.get(np.dtype(dtype).name, np.dtype(dtype).name)
    text = f"""m ({name}[1,8,5,5] x) => ({name}[1,6,10,10] y) {{
      [up] y = ConvTranspose <strides=[2,2], pads=[1,1,1,1]> (x, w)
    }}"""
    model = nets.model(text, w=nets.weight(8, 6, 4, 4, dtype=dtype))
    x = nets.signal(1, 8, 5, 5, dtype=dtype)
    rewritten = rewrite(model, nets.FULL_RANK, policy=nets.ANYTHING).model
    expected, found = (nets.run_in_reference(each, x=x) for each in (model, rewritten))
    assert len(rewritten.graph.node) == 3 and nets.farthest(expected, found) <= most


def stored(model: ModelProto) -> int:
    """Numbers in a model's initialisers."""
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer)


def test_a_weight_that_a_conv_and_a_conv_transpose_share_becomes_a_chain_of_each() -> None:
    """Tied, as in an autoencoder: for one its first mode is the output, for the other the input."""
    text = """m (float[1,8,6,6] x) => (float[1,8,6,6] y) {
      [down] a = Conv <pads=[1,1,1,1]> (x, w)
      [up] y = ConvTranspose <pads=[1,1,1,1]> (a, w)
    }"""
    model, x = nets.model(text, w=nets.weight(16, 8, 3, 3)), nets.signal(1, 8, 6, 6)
    result = rewrite(model, nets.FULL_RANK, policy=nets.ANYTHING)
    rewritten = result.model
    nets.assert_nothing_lost(model, rewritten)
    assert len(rewritten.graph.initializer) == len(rewritten.graph.node) == 6
    assert result.totals.params == (stored(model), stored(rewritten))
    # As long as one of the two is kept, so is the weight.
    half = rewrite(model, nets.FULL_RANK, policy=nets.ANYTHING, only="up")
    assert half.totals.params == (stored(model), stored(half.model))
    assert nets.farthest(nets.run(model, x=x), nets.run(rewritten, x=x)) <= 2e-4


def test_a_conv_transpose_in_a_function_hands_its_callers_attributes_to_the_core() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
    g (float[1,4,8,8] x) => (float[1,6,18,18] y) { y = local.block <step = [2,2], more = [1,1]> (x) }
    <domain: "local", opset_import: ["" : 17]>
    block <step, more> (a) => (b) {
      [up] b = ConvTranspose <strides: ints = @step, output_padding: ints = @more> (a, w)
    }"""
    model, x = nets.model(text), nets.signal(1, 4, 8, 8)
    weight = numpy_helper.from_array(nets.weight(4, 6, 3, 3), "w")
    model.functions[0].node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    (site,) = find_sites(model)
    assert applicable(site) == ("tucker2", "tucker1")
    rewritten = rewrite(model, nets.FULL_RANK, policy=nets.ANYTHING).model
    core = nets.chain(rewritten, "local.block/up")["core"]
    assert [each.ref_attr_name for each in core.attribute] == ["step", "more"]
    assert nets.farthest(nets.run(model, x=x), nets.run(rewritten, x=x)) <= 2e-4
