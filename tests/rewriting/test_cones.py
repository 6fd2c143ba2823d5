"""Weights that follow from constants: computed, decomposed, and all that only led to them taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, save, save_external
from nets import rewrite
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxdecomp import find_sites

W = nets.weight(8, 4, 3, 3)
X = nets.signal(1, 4, 8, 8)
AXES = np.array([1, 2, 3])
ONE = np.ones((8, 1, 1, 1), np.float32)
HEADER = '<ir_version: 10, opset_import: ["" : 20, "local" : 1]>\n'
MAIN = "g (float[1,4,8,8] x) => (float[1,8,8,8] y) { %s [conv] y = Conv <pads=[1,1,1,1]> (x, w) }\n"
FUNCTIONS = """
<domain: "local", opset_import: ["" : 20, "local" : 1]>
normalised <epsilon: float = 0.5> (v, g, axes) => (w) {
  n = ReduceL2 (v, axes)
  e = Constant <value_float: float = @epsilon> ()
  s = Add (n, e)
  d = Div (v, s)
  w = local.scaled (d, g)
}
<domain: "local", opset_import: ["" : 20]>
scaled (d, g) => (w) { w = Mul (d, g) }
"""

# What computes the weight, and from what; `b` and `z` are one and nothing per channel.
CONES: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "weight normalisation": (
        "n = ReduceL2 (v, axes) d = Div (v, n) w = Mul (d, g)",
        {"v": W, "axes": AXES, "g": ONE * 2},
    ),
    "its norm of a flat view": (
        """r = Reshape (v, flat) n = ReduceL2 (r, last) q = Reshape (n, tall)
        d = Div (v, q) w = Mul (d, g)""",
        {
            "v": W,
            "flat": np.array([8, -1]),
            "last": np.array([1]),
            "tall": np.array([8, 1, 1, 1]),
            "g": ONE,
        },
    ),
    "weight standardisation": (
        """m = ReduceMean (v, axes) c = Sub (v, m) q = Mul (c, c) s = ReduceMean (q, axes)
        e = Add (s, tiny) r = Sqrt (e) w = Div (c, r)""",
        {"v": W, "axes": AXES, "tiny": np.float32(1e-5)},
    ),
    "weight standardisation by a BatchNormalization": (
        """r = Reshape (v, row) n, p, q = BatchNormalization <training_mode=1> (r, b, z, z, b)
        shape = Shape (v) w = Reshape (n, shape)""",
        {"v": W, "row": np.array([1, 8, 36]), "b": np.ones(8, np.float32), "z": np.zeros(8, np.float32)},
    ),
    "halves put together": (
        "a = Unsqueeze (one, front) b = Unsqueeze (two, front) w = Concat <axis=0> (a, b)",
        {"one": W[0], "two": W[1], "front": np.array([0])},
    ),
    "one of a bank": ("w = Gather <axis=0> (bank, k)", {"bank": np.stack([W, 2 * W]), "k": np.array(1)}),
    "a view of a pool": (
        "a, r = Split <axis=0> (pool, parts) shape = Concat <axis=0> (s, s2) w = Reshape (a, shape)",
        {
            "pool": np.concatenate([W.ravel(), np.ones(5, np.float32)]),
            "parts": np.array([W.size, 5]),
            "s": np.array([8, 4]),
            "s2": np.array([3, 3]),
        },
    ),
    "stretched": ("w = Expand (v, shape)", {"v": W[:, :, :1], "shape": np.array([8, 4, 3, 3])}),
    "a call": ("w = local.normalised (v, g, axes)", {"v": W, "axes": AXES, "g": ONE}),
    "turned behind it": (
        "a = Mul (v, g) t = Identity (a) w = Transpose <perm=[1,0,2,3]> (t)",
        {"v": W.transpose(1, 0, 2, 3), "g": np.float32(2)},
    ),
}


def cone(name: str) -> ModelProto:
    """A Conv whose weight is computed in the way of that name."""
    steps, arrays = CONES[name]
    model = nets.model(HEADER + MAIN % steps + FUNCTIONS, **arrays)
    if name == "halves put together":
        concat = next(node for node in model.graph.node if node.op_type == "Concat")
        concat.input.extend(["a", "b"] * 3)
    return model


def full_rank(model: ModelProto, **options: Any) -> ModelProto:
    return rewrite(model, nets.FULL_RANK, policy=nets.ANYTHING, **options).model


@pytest.mark.parametrize("name", CONES)
def test_a_weight_that_follows_from_constants_is_one(name: str) -> None:
    model = cone(name)
    (site,) = find_sites(model)
    assert (site.obstacle, site.channels, site.kernel) == (None, (4, 8), (3, 3))
    assert set(site.computed_by) == {n.op_type for n in model.graph.node} - {"Conv", "Identity", "Transpose"}
    rewritten = full_rank(model)
    assert nets.farthest(nets.run(model, x=X), nets.run(rewritten, x=X)) <= 1e-5
    assert [node.op_type for node in rewritten.graph.node] == ["Conv"] * 3
    assert len(rewritten.graph.initializer) == 3


def test_inspect_says_what_computes_a_weight(tmp_path: Path, cli: Cli) -> None:
    path = save(cone("weight normalisation"), tmp_path / "in.onnx")
    shown = " ".join(cli("inspect", path, "--min-channels", 4).out.split())
    assert "its weight is constant, computed by ReduceL2, Div, Mul" in shown


def test_factors_of_a_cone_that_lies_outside_do_so_too(tmp_path: Path) -> None:
    model = cone("weight normalisation")
    path = save_external(model, tmp_path / "in.onnx")
    rewrite(path, nets.FULL_RANK, policy=nets.ANYTHING).save(tmp_path / "out.onnx")
    kept = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    assert [tensor.data_location for tensor in kept] == [TensorProto.EXTERNAL] * 3
    whole = onnx.load(tmp_path / "out.onnx")
    assert nets.farthest(nets.run(model, x=X), nets.run(whole, x=X)) <= 1e-5


def test_a_cone_in_a_function_and_one_in_a_branch() -> None:
    inside = HEADER + (
        "g (float[1,4,8,8] x) => (float[1,8,8,8] y) { y = local.block (x) }\n"
        '<domain: "local", opset_import: ["" : 20]> block (a) => (y) {'
        " w = Mul (v, v) [conv] y = Conv <pads=[1,1,1,1]> (a, w) }"
    )
    function = nets.model(inside)
    constant = helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(W))
    function.functions[0].node.insert(0, constant)
    rewritten = full_rank(function)
    assert [n.op_type for n in rewritten.functions[0].node] == ["Constant"] * 3 + ["Conv"] * 3
    assert nets.farthest(nets.run(function, x=X), nets.run(rewritten, x=X)) <= 1e-5

    branch = nets.model(
        """g (float[1,4,8,8] x, bool c) => (float[1,8,8,8] y) {
          u = Add (v, v)
          y = If (c) <
            then_branch = t () => (float[1,8,8,8] p) {
              w = Mul (u, v)
              [conv] p = Conv <pads=[1,1,1,1]> (x, w)
            },
            else_branch = e () => (float[1,8,8,8] q) { q = Conv <pads=[1,1,1,1]> (x, v) }
          >
        }""",
        v=W,
    )
    rewritten = full_rank(branch)
    assert "v" not in nets.constants(rewritten) and not {"Mul", "Add"} & {
        n.op_type for n in nets.nodes(rewritten)
    }
    for chosen in (True, False):
        feeds = {"x": X, "c": np.array(chosen)}
        assert nets.farthest(nets.run(branch, **feeds), nets.run(rewritten, **feeds)) <= 1e-5


def test_what_something_else_reads_of_a_cone_stays() -> None:
    steps, arrays = CONES["weight normalisation"]
    model = nets.model(
        HEADER + MAIN.replace("y) {", "y, float[8,1,1,1] k) {", 1) % (steps + " k = Neg (n)"), **arrays
    )
    rewritten = full_rank(model)
    assert [n.op_type for n in rewritten.graph.node] == ["ReduceL2", "Neg", *["Conv"] * 3]
    assert {"v", "axes"} <= nets.constants(rewritten).keys() and "g" not in nets.constants(rewritten)
    assert nets.farthest(nets.run(model, x=X), nets.run(rewritten, x=X)) <= 1e-5


def test_convs_that_share_a_cone_share_its_factors_and_a_bias_may_be_computed() -> None:
    model = nets.model(
        """g (float[1,8,8,8] x) => (float[1,8,8,8] y) {
          w = Mul (v, v) b = Neg (c)
          [one] h = Conv <pads=[1,1,1,1]> (x, w, b)
          n = BatchNormalization (h, s, c, c, s)
          [two] y = Conv <pads=[1,1,1,1]> (n, w, b)
        }""",
        v=nets.weight(8, 8, 3, 3),
        c=np.linspace(1, 2, 8, dtype=np.float32),
        s=np.ones(8, np.float32),
    )
    rewritten = full_rank(model, fold_bn=False)
    one, two = nets.chain(rewritten, "one"), nets.chain(rewritten, "two")
    assert {node.input[1] for node in one.values()} == {node.input[1] for node in two.values()}
    x = nets.signal(1, 8, 8, 8)
    assert nets.farthest(nets.run(model, x=x), nets.run(rewritten, x=x)) <= 1e-5
    samples = [{"x": nets.signal(1, 8, 8, 8, seed=i)} for i in range(8)]
    fitted = full_rank(model, data=samples)
    assert nets.farthest(nets.run(model, x=x), nets.run(fitted, x=x)) <= 1e-3


# What is no constant, or too large
# ---------------------------------


def doubling(depth: int) -> str:
    """Functions that call each other twice: 2 to the power of `depth` nodes."""
    return "".join(
        f'<domain: "local", opset_import: ["" : 20, "local" : 1]> f{i} (v) => (w)'
        f" {{ h = {inner} (v) w = {inner} (h) }}\n"
        for i in range(depth)
        for inner in ([f"local.f{i - 1}"] if i else ["Neg"])
    )


REFUSED = {
    "beyond memory": (MAIN % "b = Expand (v, huge) w = ReduceMean (b, front)", "take more than 1 GiB"),
    "random": (MAIN % "n = RandomNormalLike (v) w = Add (v, n)", "its weight is dynamic: a Add computes it"),
    "random in a function": (
        MAIN % "w = local.f (v)"
        + '<domain: "local", opset_import: ["" : 20]> f (v) => (w)'
        + " { n = RandomNormalLike (v) w = Add (v, n) }",
        "one of the nodes on the way is a RandomNormalLike",
    ),
    "functions without end": (MAIN % "w = local.f11 (v)" + doubling(12), "more than 1000 nodes compute it"),
    "too many nodes": (
        MAIN % ("t0 = Neg (v) " + " ".join(f"t{i + 1} = Neg (t{i})" for i in range(1001)) + " w = Neg (t9)"),
        None,
    ),
    "nodes beyond count": (
        MAIN
        % ("t0 = Neg (v) " + " ".join(f"t{i + 1} = Neg (t{i})" for i in range(1001)) + " w = Neg (t1001)"),
        "more than 1000 nodes compute it",
    ),
    "an operator nobody knows": (
        MAIN % "w = Unheard (v)",
        "the size of what its Unheard puts out is not known",
    ),
    "a size nobody knows": (
        MAIN % "k = NonZero (v) t = Transpose (k) w = GatherND (v, t)",
        "is not known beforehand",
    ),
    "an axis that is not there": (MAIN % "w = Concat <axis=7> (v, v)", "does not run its Concat"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_computed_is_said_and_costs_nothing(case: str) -> None:
    text, reason = REFUSED[case]
    huge = np.array([1 << 20, 8, 4, 3, 3])
    arrays = {"v": W, "huge": huge, "front": np.array([0])}
    model = nets.model(HEADER + text, **{k: a for k, a in arrays.items() if k in text})
    if case == "a size nobody knows":
        model.graph.node[-1].input[1] = "w"
    (site,) = find_sites(model)
    if reason is None:
        assert site.obstacle is None
    else:
        assert site.obstacle is not None and reason in site.obstacle and len(site.obstacle) < 300


def test_a_cone_of_what_callers_may_override_is_constant_once_it_is_frozen() -> None:
    model = nets.model(
        "g (float[1,4,8,8] x, float[8,4,3,3] v) => (float[1,8,8,8] y)"
        " { w = Neg (v) [conv] y = Conv <pads=[1,1,1,1]> (x, w) }",
        v=W,
    )
    (site,) = find_sites(model)
    assert site.obstacle is not None and "callers may override" in site.obstacle
    rewritten = full_rank(model, freeze_weights=True)
    assert [value.name for value in rewritten.graph.input] == ["x"]
    assert nets.farthest(nets.run(model, x=X), nets.run(rewritten, x=X)) <= 1e-5


# Weights of which something reads the shape
# ------------------------------------------

SHAPES = {
    "shape": ("k = Shape (w)", [8, 4, 3, 3]),
    "part of it": ("k = Shape <start=-3, end=2> (w)", [4]),
    "size": ("k = Size (w)", 288),
    "through others": ("i = Identity (w) k = Shape (i)", [8, 4, 3, 3]),
    "its type, too": ("s = Shape <end=1> (w) c = CastLike (s, w) k = Cast <to=7> (c)", [8]),
    "twice": ("l = Size (w) s = Shape <end=1> (w) k = Add (s, l)", [296]),
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("computed", [False, True])
def test_readers_of_a_shape_do_not_keep_a_weight(case: str, computed: bool) -> None:
    steps, expected = SHAPES[case]
    rank = len(np.shape(expected)) and f"[{len(expected)}]"
    text = MAIN.replace("y) {", f"y, int64{rank or ''} k) {{", 1) % (
        ("w = Neg (v) " if computed else "") + steps
    )
    large = nets.weight(8, 4, 3, 3)
    model = nets.model(HEADER + text, **{"v" if computed else "w": large})
    rewritten = rewrite(model, 1, policy=nets.ANYTHING).model
    assert not {"v", "w"} & nets.constants(rewritten).keys()
    assert not {"Shape", "Size", "CastLike", "Neg"} & {node.op_type for node in rewritten.graph.node}
    assert sum(a.nbytes for a in nets.constants(rewritten).values()) < 0.2 * large.astype(float).nbytes
    found = nets.run(rewritten, x=X)["k"]
    assert np.array_equal(found, expected) and np.array_equal(found, nets.run(model, x=X)["k"])


def test_a_shape_read_in_a_branch_is_answered_there() -> None:
    model = nets.model(
        """g (float[1,4,8,8] x, bool c) => (float[1,8,8,8] y, int64[4] s) {
          y = Conv <pads=[1,1,1,1]> (x, w)
          s = If (c) <
            then_branch = t () => (int64[4] p) { p = Shape (w) },
            else_branch = e () => (int64[4] q) { k = Shape (w) q = Neg (k) }
          >
        }""",
        w=W,
    )
    rewritten = full_rank(model)
    assert "w" not in nets.constants(rewritten)
    for chosen in (True, False):
        feeds = {"x": X, "c": np.array(chosen)}
        assert nets.farthest(nets.run(model, **feeds), nets.run(rewritten, **feeds)) <= 1e-5


def test_a_bias_made_of_a_weights_shape() -> None:
    """As torch's exporter writes it without optimisation; the file shrinks."""
    model = nets.model(
        HEADER
        + "g (float[1,64,4,4] x) => (float[1,128,4,4] y)"
        + " { s = Shape <start=0, end=1> (w) b = Expand (o, s) y = Conv <pads=[1,1,1,1]> (x, w, b) }",
        w=nets.weight(128, 64, 3, 3),
        o=np.ones(1, np.float32),
    )
    result = rewrite(model, 0.25)
    assert result.model.ByteSize() < 0.25 * model.ByteSize()
    x = nets.signal(1, 64, 4, 4)
    exact = rewrite(model, nets.FULL_RANK, policy=nets.ANYTHING).model
    assert nets.farthest(nets.run(model, x=x), nets.run(exact, x=x)) <= 1e-5


# Weights stored in half precision
# --------------------------------

HALVES = {
    "float16": ("w = Cast <to=1> (v)", np.float16, 1e-3),
    "bfloat16": ("w = Cast <to=1> (v)", ml_dtypes.bfloat16, 8e-3),
    "float16, turned": ("t = Transpose <perm=[1,0,2,3]> (v) w = Cast <to=1> (t)", np.float16, 1e-3),
    "float16, scaled": ("c = Cast <to=1> (v) w = Mul (c, c)", np.float16, 1e-3),
    "float32 in float64": ("w = Cast <to=11> (v)", np.float32, 1e-6),
}


@pytest.mark.parametrize("case", HALVES)
def test_factors_are_stored_as_the_weight_was(case: str) -> None:
    steps, dtype, bound = HALVES[case]
    stored = (W.transpose(1, 0, 2, 3) if "turned" in case else W).astype(dtype)
    wide = "float64" in case
    text = MAIN.replace("float[", "double[") if wide else MAIN
    model = nets.model(HEADER + text % steps, v=stored)
    rewritten = full_rank(model)
    kept = helper.np_dtype_to_tensor_dtype(stored.dtype)
    assert {tensor.data_type for tensor in rewritten.graph.initializer} == {kept}
    cast = TensorProto.DOUBLE if wide else TensorProto.FLOAT
    made = [node for node in rewritten.graph.node if node.op_type == "Cast"]
    assert [node.attribute[0].i for node in made] == [cast] * 3
    x = X.astype(np.float64) if wide else X
    run = nets.run_in_reference if wide else nets.run  # ONNX Runtime has no Conv of doubles
    assert nets.farthest(run(model, x=x), run(rewritten, x=x)) <= 3 * bound
    if wide:
        return
    samples = [{"x": nets.signal(1, 4, 8, 8, seed=i).astype(x.dtype)} for i in range(8)]
    fitted = full_rank(model, data=samples)
    assert {tensor.data_type for tensor in fitted.graph.initializer if tensor.dims[1:]} == {kept}


# What PyTorch exports
# --------------------


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("options", [{"dynamo": False}, {"dynamo": True, "optimize": False}])
@pytest.mark.parametrize("kind", ["normalised", "standardised"])
def test_weights_that_pytorch_computes(kind: str, options: dict[str, bool], tmp_path: Path) -> None:
    """Weight normalisation of 1-D Convs and weight standardisation of 2-D ones, against float64."""
    torch = pytest.importorskip("torch", reason='exporting needs PyTorch: pip install "onnxdecomp[torch]"')
    if options["dynamo"]:
        pytest.importorskip("onnxscript", reason="torch's newer exporter needs onnxscript")

    class Standardised(torch.nn.Conv2d):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            w = self.weight
            mean, spread = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True, unbiased=False)
            w = (w - mean) / torch.sqrt(spread + 1e-5)
            return torch.nn.functional.conv2d(x, w, self.bias, padding=1)

    torch.manual_seed(0)
    if kind == "normalised":
        normalised = torch.nn.utils.parametrizations.weight_norm
        convs = [normalised(torch.nn.Conv1d(64, 64, 5, padding=2)) for _ in range(2)]
        shape: tuple[int, ...] = (1, 64, 50)
    else:
        convs = [Standardised(64, 64, 3, bias=False) for _ in range(2)]
        shape = (1, 64, 12, 12)
    net = torch.nn.Sequential(convs[0], torch.nn.ReLU(), convs[1]).eval()
    x = nets.signal(*shape)
    path = tmp_path / "in.onnx"
    torch.onnx.export(
        net, (torch.from_numpy(x),), str(path), opset_version=18, external_data=False, **options
    )
    with torch.no_grad():
        expected = net.double()(torch.from_numpy(x).double()).numpy()
    sites = find_sites(path)
    assert [site.obstacle for site in sites] == [None, None]
    result = rewrite(path, nets.FULL_RANK, policy=nets.ANYTHING)
    made_for_bias = {"Constant", "Expand", "CastLike"}  # of zeros, of the input's type
    name = result.model.graph.input[0].name
    (found,) = nets.run(result.model, **{name: x}).values()
    assert nets.distance(expected.astype(np.float32), found) <= 2e-4
    assert {node.op_type for node in result.model.graph.node} <= {"Conv", "Relu", *made_for_bias}
    assert rewrite(path, 0.25).model.ByteSize() < 0.5 * path.stat().st_size
