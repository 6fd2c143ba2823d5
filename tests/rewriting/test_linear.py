"""Gemm and MatMul with a constant right-hand side: fully connected layers as two factors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, save
from nets import rewrite
from onnx import ModelProto, NodeProto, numpy_helper

from onnxdecomp import Choice, NothingSelectedError, Plan, Policy, Ranks, find_sites

SVD = replace(nets.ANYTHING, method="svd")
FULL = "in=1.0,out=1.0"


def gemm(
    *,
    c: tuple[int, ...] | None = (12,),
    attributes: str = "",
    trans_a: int = 0,
    trans_b: int = 0,
    opset: int = 17,
    dtype: Any = np.float32,
) -> tuple[ModelProto, np.ndarray]:
    """Y (6, 12) = α A (6, 20) B (20, 12) + β C, each transposed as told, and a value for A."""
    element = {
        np.float32: "float",
        np.float16: "float16",
        np.float64: "double",
        ml_dtypes.bfloat16: "bfloat16",
    }[dtype]
    shape = (20, 6) if trans_a else (6, 20)
    given = ",".join(filter(None, [attributes, f"transA={trans_a}", f"transB={trans_b}"]))
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g ({element}[{shape[0]},{shape[1]}] a) => ({element}[6,12] y) {{
            [fc] y = Gemm <{given}> (a, b{"" if c is None else ", c"})
        }}"""
    arrays = {"b": nets.weight(*((12, 20) if trans_b else (20, 12)), dtype=dtype)}
    arrays |= {} if c is None else {"c": nets.signal(*c, seed=2, dtype=dtype)}
    return nets.model(text, **arrays), nets.signal(*shape, dtype=dtype)


def matmul(*left: int, dtype: Any = np.float32) -> tuple[ModelProto, np.ndarray]:
    """Y (…, 12) = A (…, 20) B, and a value for A."""
    dims, out = (",".join(map(str, shape)) for shape in (left, (*left[:-1], 12)))
    element = {np.float32: "float", np.float16: "float16", np.float64: "double"}[dtype]
    text = f"g ({element}[{dims}] a) => ({element}[{out}] y) {{ [fc] y = MatMul (a, b) }}"
    return nets.model(text, b=nets.weight(20, 12, dtype=dtype)), nets.signal(*left, dtype=dtype)


def links(model: ModelProto, site: str = "fc") -> list[NodeProto]:
    """The nodes that replaced `site`, first to last."""
    found = [node for node in nets.nodes(model) if node.name.startswith(f"{site}/svd_")]
    assert [node.name for node in found] == [f"{site}/svd_in", f"{site}/svd_out"]
    return found


def restored(original: ModelProto, rewritten: ModelProto, weight: str = "b", site: str = "fc") -> ModelProto:
    """`original` with the product of the two factors in place of the weight they replace."""
    values, (first, last) = nets.constants(rewritten), links(rewritten, site)
    transposed = any(a.name == "transB" and a.i for a in first.attribute)
    factors = [values[node.input[1]].T if transposed else values[node.input[1]] for node in (first, last)]
    product = np.einsum("kr,rn->kn", *factors)
    model = ModelProto()
    model.CopyFrom(original)
    stored = next(t for t in model.graph.initializer if t.name == weight)
    dtype = numpy_helper.to_array(stored).dtype
    stored.CopyFrom(numpy_helper.from_array((product.T if transposed else product).astype(dtype), weight))
    return model


def assert_faithful(model: ModelProto, tolerance: float = 1e-5, **feeds: np.ndarray) -> ModelProto:
    """Full rank reproduces the model; rank 5 what its factors amount to. Returns the latter."""
    full = rewrite(model, FULL, policy=SVD)
    assert full.plan.sites == {"fc": Choice("svd", Ranks(12, 12))}
    expected = nets.run(model, **feeds)
    assert nets.farthest(expected, nets.run(full.model, **feeds)) <= tolerance
    result = rewrite(model, 5, policy=SVD)
    actual = nets.run(result.model, **feeds)
    assert nets.farthest(nets.run(restored(model, result.model), **feeds), actual) <= tolerance
    assert nets.farthest(expected, actual) > 0.05
    return result.model


# The product
# -----------


@pytest.mark.parametrize("c", [None, (12,), (1, 12), (6, 12), (6, 1), (1,), ()])
@pytest.mark.parametrize("attributes", ["", "alpha=0.5", "beta=-2.0", "alpha=-1.5,beta=0.25"])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(trans_a: int, trans_b: int, attributes: str, c: tuple[int, ...] | None) -> None:
    model, a = gemm(c=c, attributes=attributes, trans_a=trans_a, trans_b=trans_b)
    rewritten = assert_faithful(model, a=a)
    first, last = rewritten.graph.node
    assert [node.op_type for node in (first, last)] == ["Gemm", "Gemm"]
    assert list(last.output) == ["y"] and list(last.input[2:]) == list(model.graph.node[0].input[2:])


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (1, 1)])
def test_gemm_of_every_opset(opset: int, trans_a: int, trans_b: int) -> None:
    """Before opset 11 a Gemm must have a C."""
    model, a = gemm(opset=opset, trans_a=trans_a, trans_b=trans_b, attributes="alpha=0.5,beta=2.0")
    assert_faithful(model, a=a)


@pytest.mark.parametrize("left", [(6, 20), (2, 5, 20), (2, 3, 4, 20), (20,)])
def test_matmul(left: tuple[int, ...]) -> None:
    model, a = matmul(*left)
    rewritten = assert_faithful(model, a=a)
    assert [(node.op_type, len(node.input)) for node in rewritten.graph.node] == [("MatMul", 2)] * 2


@pytest.mark.parametrize("make", [gemm, matmul])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_element_types(make: Any, dtype: type) -> None:
    """Factors and what is between them are rounded to 11 bits in float16."""
    model, a = make(dtype=dtype) if make is gemm else make(2, 5, 20, dtype=dtype)
    tolerance = {np.float16: 3e-3, np.float64: 1e-12}[dtype]
    assert_faithful(model, tolerance, a=a)
    rewritten = rewrite(model, 5, policy=SVD).model
    tensors = {t.name: t.data_type for t in rewritten.graph.initializer}
    assert {tensors[node.input[1]] for node in links(rewritten)} == {
        onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    }


def test_bfloat16() -> None:
    model, a = gemm(dtype=ml_dtypes.bfloat16)
    result = rewrite(model, FULL, policy=SVD)
    expected = nets.run_in_reference(model, a=a)
    assert nets.farthest(expected, nets.run_in_reference(result.model, a=a)) <= 3e-2


def test_it_is_the_optimum_and_its_cost_is_told() -> None:
    for model, rows in (
        (gemm(trans_b=1)[0], 6),
        (gemm()[0], 6),
        (matmul(2, 3, 4, 20)[0], 24),
        (matmul(20)[0], 1),
    ):
        (site,) = rewrite(model, 5, policy=SVD).sites
        weight = nets.constants(model)["b"]
        squares = np.linalg.svd(weight, compute_uv=False) ** 2
        assert site.errors.weight == pytest.approx(np.sqrt(squares[5:].sum() / squares.sum()), rel=1e-5)
        assert site.site.channels == (20, 12) and site.site.macs == rows * 240
        assert site.after == (5 * 32, rows * 5 * 32)


def test_an_unknown_batch_leaves_the_macs_unknown_and_the_ratio_known() -> None:
    text = "g (float[M,N,64] a) => (float[M,N,48] y) { [fc] y = MatMul (a, b) }"
    (site,) = rewrite(nets.model(text, b=nets.weight(64, 48)), "macs=0.5", policy=Policy(linear=True)).sites
    assert site.site.macs is None or site.site.macs == 64 * 48
    assert site.choice == Choice("svd", Ranks(8, 8))


# Which are taken
# ---------------


def test_only_a_constant_matrix_on_the_right_is_a_site() -> None:
    text = """g (float[4,64] x, float[64,32] d, float[2,4,64] t, int32[4,64] n) =>
            (float[4,32] y, float[4,32] dynamic, float[16,32] left, float[2,4,16] stack, float[4] line,
             int32[4,16] whole, float[16,32] fixed) {
        [fc] a = Gemm <transB=1> (x, w, bias)
        [mm] y = MatMul (a, v)
        [dynamic_mm] dynamic = MatMul (x, d)
        [dynamic_gemm] d2 = Gemm (x, d)
        [left_mm] left = MatMul (u, d)
        [left_gemm] l2 = Gemm (u, d)
        [stack_mm] stack = MatMul (t, s)
        [line_mm] line = MatMul (x, e)
        [whole_mm] whole = MatMul (n, m)
        [both_mm] fixed = MatMul (u, f)
    }"""
    arrays = {
        "w": nets.weight(48, 64),
        "bias": nets.signal(48),
        "v": nets.weight(48, 32),
        "u": nets.weight(16, 64),
        "s": nets.weight(2, 64, 16),
        "e": nets.signal(64),
        "m": np.ones((64, 16), np.int32),
        "f": nets.weight(64, 32, seed=1),
    }
    model = nets.model(text, **arrays)
    taken = ["fc", "mm", "both_mm"]
    assert [site.name for site in find_sites(model, linear=True)] == taken
    assert find_sites(model) == []
    result = rewrite(model, 4, policy=SVD)
    assert list(result.plan.sites) == taken and [site.site.name for site in result.sites] == taken
    kept = [node for node in model.graph.node if node.name not in taken]
    assert [node for node in result.model.graph.node if "/" not in node.name] == kept
    onnx.checker.check_model(result.model, full_check=True)


def test_a_weight_that_callers_may_override_is_left_alone() -> None:
    model, a = matmul(6, 20)
    model.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [20, 12]))
    (site,) = find_sites(model, linear=True)
    assert site.obstacle is not None and "callers may override" in site.obstacle
    with pytest.raises(NothingSelectedError):
        rewrite(model, 4, policy=SVD)
    assert nets.run(rewrite(model, 4, policy=SVD, freeze_weights=True).model, a=a)["y"].shape == (6, 12)


NET = """g (float[4,32,8,8] x) => (float[4,32] y) {
    [conv] a = Conv <pads=[1,1,1,1]> (x, w)
    [point] b = Conv (a, p)
    c = GlobalAveragePool (b)
    d = Flatten (c)
    [fc] e = Gemm (d, f, g1)
    [mm] y = MatMul (e, m)
}"""


def net() -> ModelProto:
    shapes = {"w": (32, 32, 3, 3), "p": (64, 32, 1, 1), "f": (64, 48), "g1": (48,), "m": (48, 32)}
    return nets.model(
        NET, **{name: nets.signal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    )


@pytest.mark.parametrize(
    ("policy", "listed", "rewritten"),
    [
        (Policy(), {"conv", "point"}, {"conv", "point"}),
        (Policy(linear=True), {"conv", "point", "fc", "mm"}, {"conv", "point", "fc", "mm"}),
        (Policy(method="svd"), {"conv", "point", "fc", "mm"}, {"point", "fc", "mm"}),
        (Policy(method="auto"), {"conv", "point", "fc", "mm"}, {"conv", "point", "fc", "mm"}),
        (Policy(method="tucker2"), {"conv", "point"}, {"conv"}),
        (Policy(method="tucker2", linear=True), {"conv", "point", "fc", "mm"}, {"conv"}),
    ],
)
def test_they_join_when_asked_for(policy: Policy, listed: set[str], rewritten: set[str]) -> None:
    model = net()
    result = rewrite(model, 8, policy=policy)
    assert {report.site.name for report in result.sites} == listed
    assert set(result.plan.sites) == rewritten
    if "fc" not in rewritten:
        assert list(result.model.graph.node[-2:]) == list(model.graph.node[-2:])
        stored = {tensor.name: tensor for tensor in result.model.graph.initializer}
        assert all(stored[t.name] == t for t in model.graph.initializer if t.name in ("f", "g1", "m"))
    if policy.method is None:
        assert result.totals.params[0] == sum(r.site.params for r in result.sites)


def test_they_join_by_a_plan() -> None:
    result = rewrite(net(), plan=Plan({"mm": Choice("svd", Ranks(4, 4))}))
    assert set(result.plan.sites) == {"mm"}
    assert {r.site.name: r.reason for r in result.sites}["conv"] == "not in the plan"
    assert [n.name for n in result.model.graph.node] == [
        "conv",
        "point",
        "",
        "",
        "fc",
        "mm/svd_in",
        "mm/svd_out",
    ]


def test_the_command_line_lists_and_takes_them(cli: Cli, tmp_path: Path) -> None:
    path, out = save(net(), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    plain, linear = cli("inspect", path), cli("inspect", path, "--linear")
    assert "2 of 2 Convs" in plain.out and "MatMul" not in plain.out
    shown = [" ".join(line.split()) for line in linear.out.splitlines()]
    assert "fc Gemm 64→48 3.07 k 12.3 k svd" in shown and "mm MatMul 48→32 1.54 k 6.14 k svd" in shown
    for option, linear_nodes in (
        ("--linear", 4),
        ("--method=svd", 4),
        ("--method=auto", 4),
        ("--skip=^$", 2),
    ):
        assert cli("rewrite", path, out, "--rank", "8", option).code == 0
        products = [node for node in onnx.load(out).graph.node if node.op_type in ("Gemm", "MatMul")]
        assert len(products) == linear_nodes


# Names, sharing, scopes
# ----------------------


def test_names_and_what_stays_beside_them() -> None:
    """The last product keeps the output's name; everything else is named after the site."""
    model, _ = gemm(attributes="alpha=0.5,beta=2.0", trans_a=1, trans_b=1)
    model.graph.node[0].doc_string = "the head"
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "origin", "head.fc"
    rewritten = rewrite(model, 5, policy=SVD).model
    first, last = rewritten.graph.node
    assert (first.name, list(first.input), list(first.output)) == (
        "fc/svd_in",
        ["a", "fc/svd_in.weight"],
        ["fc/svd_in_output"],
    )
    assert (last.name, list(last.input), list(last.output)) == (
        "fc/svd_out",
        ["fc/svd_in_output", "fc/svd_out.weight", "c"],
        ["y"],
    )
    assert [tensor.name for tensor in rewritten.graph.initializer] == [
        "fc/svd_in.weight",
        "fc/svd_out.weight",
        "c",
    ]
    settings = [
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in (first, last)
    ]
    assert settings == [{"transA": 1, "transB": 1}, {"transB": 1, "alpha": 0.5, "beta": 2.0}]
    for node in (first, last):
        assert node.doc_string == "the head" and node.metadata_props[0].value == "head.fc"


def test_a_shared_weight_is_factored_once() -> None:
    text = """g (float[4,20] x, float[2,4,20] s) => (float[4,12] y, float[2,4,12] z, float[4,20] t) {
        [a] y = Gemm (x, w, c)
        [b] z = MatMul (s, w)
        [back] t = Gemm <transB=1> (y, w)
    }"""
    model = nets.model(text, w=nets.weight(20, 12), c=nets.signal(12))
    feeds = {"x": nets.signal(4, 20), "s": nets.signal(2, 4, 20, seed=2)}
    full = rewrite(model, FULL, policy=SVD)
    assert nets.farthest(nets.run(model, **feeds), nets.run(full.model, **feeds)) <= 1e-5
    result = rewrite(model, 5, policy=SVD)
    weights = {name: [node.input[1] for node in links(result.model, name)] for name in ("a", "b", "back")}
    assert weights["a"] == weights["b"] == ["a/svd_in.weight", "a/svd_out.weight"]
    assert set(weights["back"]).isdisjoint(weights["a"])
    assert "w" not in nets.constants(result.model)
    once = rewrite(model, 5, policy=SVD, skip="back")
    assert "w" in nets.constants(once.model)
    assert once.totals.params[1] == 5 * 32 + 240


def test_a_weight_behind_a_transpose() -> None:
    text = """g (float[6,20] a) => (float[6,12] y) {
        b = Transpose <perm=[1,0]> (stored)
        [fc] y = MatMul (a, b)
    }"""
    model, a = nets.model(text, stored=nets.weight(12, 20)), nets.signal(6, 20)
    rewritten = rewrite(model, FULL, policy=SVD).model
    assert nets.farthest(nets.run(model, a=a), nets.run(rewritten, a=a)) <= 1e-5
    assert [node.op_type for node in rewritten.graph.node] == ["MatMul", "MatMul"]
    assert "stored" not in nets.constants(rewritten)


def function(gemm_text: str, call: str, attributes: str = "") -> ModelProto:
    """A model whose Gemm stands in a local function, its weight in a Constant."""
    values = ",".join(f"{v:.6f}" for v in nets.weight(20, 12).ravel())
    return nets.model(f"""<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        g (float[6,20] a) => (float[6,12] y) {{ y = local.dense{call} (a) }}
        <domain: "local", opset_import: ["" : 17]>
        dense {attributes} (a) => (y) {{
            b = Constant <value = float[20,12] {{{values}}}> ()
            [fc] y = {gemm_text}
        }}""")


def test_in_a_local_function() -> None:
    a = nets.signal(6, 20)
    for text, call, attributes in (
        ("Gemm (a, b)", "", ""),
        ("MatMul (a, b)", "", ""),
        ("Gemm <alpha: float = @scale> (a, b)", "<scale=0.5>", "<scale>"),
    ):
        model = function(text, call, attributes)
        assert [site.name for site in find_sites(model, linear=True)] == ["local.dense/fc"]
        rewritten = rewrite(model, FULL, policy=SVD).model
        assert nets.farthest(nets.run(model, a=a), nets.run(rewritten, a=a)) <= 1e-5
        assert [n.op_type for n in rewritten.functions[0].node].count("Constant") == 2
        assert {n.name for n in rewritten.functions[0].node} == {
            "",
            *(n.name for n in links(rewritten, "local.dense/fc")),
        }


def test_a_transposition_set_by_the_functions_caller_is_left_alone() -> None:
    """Whether the stored matrix or its transpose is multiplied is not known in the function."""
    model = function("Gemm <transB: int = @flip> (a, b)", "<flip=0>", "<flip>")
    assert all(site.obstacle for site in find_sites(model, linear=True))
    with pytest.raises(NothingSelectedError):
        rewrite(model, 5, policy=SVD)


def test_in_a_branch() -> None:
    text = """g (bool flag, float[6,20] a) => (float[6,12] y) {
        y = If (flag) <
            then_branch = yes () => (float[6,12] p) { [fc] p = MatMul (a, b) },
            else_branch = no () => (float[6,12] q) { [fc] q = Gemm (a, b, c) }
        >
    }"""
    model = nets.model(text, b=nets.weight(20, 12), c=nets.signal(12))
    rewritten = rewrite(model, FULL, policy=SVD).model
    assert len(find_sites(model, linear=True)) == 2 and "b" not in nets.constants(rewritten)
    for flag in (True, False):
        feeds = {"flag": np.array(flag), "a": nets.signal(6, 20)}
        assert nets.farthest(nets.run(model, **feeds), nets.run(rewritten, **feeds)) <= 1e-5


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_weight_that_is_not_finite_is_kept(value: float) -> None:
    model = net()
    stored = next(t for t in model.graph.initializer if t.name == "f")
    weight = numpy_helper.to_array(stored).copy()
    weight[3, 5] = value
    stored.CopyFrom(numpy_helper.from_array(weight, "f"))
    result = rewrite(model, 8, policy=Policy(linear=True))
    assert {r.site.name: r.reason for r in result.sites}["fc"] == "its weight has NaN or Inf"
    assert set(result.plan.sites) == {"conv", "point", "mm"}
