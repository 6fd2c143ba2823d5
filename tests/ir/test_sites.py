"""Sites: every Conv is found wherever it stands, with its cost, and with the reason it is left alone for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import nets
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import rewrite
from onnx import ModelProto, helper, numpy_helper

import models
from onnxdecomp import Site, UsageError, find_sites

W = nets.weight(4, 4, 3, 3)
X = nets.signal(1, 4, 8, 8)
CONV = "Conv <pads=[1,1,1,1]>"


def only_site(model: ModelProto, **options: Any) -> Site:
    (site,) = find_sites(model, **options)
    return site


# Where a Conv can stand
# ----------------------

PLACES = {
    "conv": ("g (float[1,4,8,8] x) => (float[1,4,8,8] y) { [conv] y = %s (x, w) }", {}),
    "pick/then_branch/conv": (
        """g (float[1,4,8,8] x, bool c) => (float[1,4,8,8] y) {
            [pick] y = If (c) <
                then_branch = t () => (float[1,4,8,8] a) { [conv] a = %s (x, w) },
                else_branch = e () => (float[1,4,8,8] b) { b = Neg(x) }
            >
        }""",
        {"c": np.array(True)},
    ),
    "repeat/body/conv": (
        """g (float[1,4,8,8] x, int64 n, bool c) => (float[1,4,8,8] y) {
            [repeat] y = Loop (n, c, x) <
                body = l (int64 i, bool go, float[1,4,8,8] v) => (bool on, float[1,4,8,8] a) {
                    on = Identity(go)
                    [conv] a = %s (v, w)
                }
            >
        }""",
        {"n": np.array(3), "c": np.array(True)},
    ),
    "each/body/conv": (
        """g (float[1,4,8,8] x, float[2,1,4,8,8] xs) => (float[1,4,8,8] y, float[2,1,4,8,8] ys) {
            [each] y, ys = Scan (x, xs) <
                num_scan_inputs = 1,
                body = s (float[1,4,8,8] v, float[1,4,8,8] part) => (float[1,4,8,8] u, float[1,4,8,8] a) {
                    [conv] a = %s (part, w)
                    u = Add(v, a)
                }
            >
        }""",
        {"xs": nets.signal(2, 1, 4, 8, 8)},
    ),
    # The inner graph's nodes carry no names: the outputs stand in.
    "y/else_branch/b/then_branch/a": (
        """g (float[1,4,8,8] x, bool c) => (float[1,4,8,8] y) {
            no = Not(c)
            y = If (no) <
                then_branch = t () => (float[1,4,8,8] z) { z = Neg(x) },
                else_branch = e () => (float[1,4,8,8] b) {
                    b = If (c) <
                        then_branch = tt () => (float[1,4,8,8] a) { a = %s (x, w) },
                        else_branch = ee () => (float[1,4,8,8] d) { d = Neg(x) }
                    >
                }
            >
        }""",
        {"c": np.array(True)},
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_conv_is_found_and_rewritten_wherever_it_stands(name: str) -> None:
    text, feeds = PLACES[name]
    model = nets.model(text.replace("%s", CONV), w=W)
    site = only_site(model)
    assert (site.name, site.dtype, site.obstacle) == (name, "float32", None)
    assert (site.kernel, site.channels, site.groups, site.strides) == ((3, 3), (4, 4), 1, (1, 1))
    assert (site.params, site.macs) == (144, 144 * 64)
    rewritten = rewrite(model, nets.FULL_RANK, policy=nets.ANYTHING).model
    assert nets.chain(rewritten, name).keys() == {"in", "core", "out"}
    assert "w" not in nets.constants(rewritten)
    assert nets.farthest(nets.run(model, x=X, **feeds), nets.run(rewritten, x=X, **feeds)) <= 1e-5


FUNCTION = """
<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
  h = local.block <pad = [1,1,1,1]> (x, w)
  y = local.block <pad = [1,1,1,1]> (h, w)
}
<domain: "local", opset_import: ["" : 17]>
block <pad> (a, w) => (b) { [conv] b = Conv <pads: ints = @pad> (a, w) }
"""


def test_a_weight_that_is_a_functions_input_is_dynamic() -> None:
    site = only_site(nets.model(FUNCTION, w=W))
    assert site.name == "local.block/conv"
    assert site.obstacle == "its weight is dynamic: 'w' is an input of the function"
    assert (site.params, site.macs, site.channels) == (None, None, None)


def test_a_weight_inside_a_function_is_constant() -> None:
    model = nets.model(FUNCTION.replace(", w)", ")"))
    function = model.functions[0]
    function.node[0].input.append("w")
    function.node.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W)))
    site = only_site(model)
    assert (site.name, site.obstacle, site.params, site.macs) == ("local.block/conv", None, 144, None)

    rewritten = rewrite(model, nets.FULL_RANK, policy=nets.ANYTHING).model
    operators = [node.op_type for node in rewritten.functions[0].node]
    assert operators == ["Constant"] * 3 + ["Conv"] * 3
    assert not rewritten.graph.initializer
    core = nets.chain(rewritten, "local.block/conv")["core"]
    assert [each.ref_attr_name for each in core.attribute] == ["pad"]
    assert nets.farthest(nets.run(model, x=X), nets.run(rewritten, x=X)) <= 1e-5


def test_groups_set_by_a_functions_caller_are_an_obstacle() -> None:
    text = FUNCTION.replace("pads: ints = @pad", "pads: ints = @pad, group: int = @groups")
    model = nets.model(text.replace("block <pad>", "block <pad, groups>").replace(", w)", ")"))
    function = model.functions[0]
    function.node[0].input.append("w")
    function.node.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W)))
    assert only_site(model).obstacle == "its number of groups is set by the function's caller"


def test_a_weight_turned_as_a_functions_caller_says_is_dynamic() -> None:
    text = FUNCTION.replace(", w)", ")").replace(
        "{ [conv]", "{ w = Transpose <perm: ints = @order> (v) [conv]"
    )
    model = nets.model(text.replace("block <pad>", "block <pad, order>"))
    function = model.functions[0]
    function.node[1].input.append("w")
    function.node.insert(0, helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(W)))
    assert only_site(model).obstacle == "its weight is dynamic: a Transpose computes it"


def test_what_is_no_conv_of_onnx_is_no_site() -> None:
    model = nets.model(
        """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
            a = my.Conv(x, w)
            b = my.ConvTranspose <pads=[1,1,1,1]> (a, w)
            c = my.Conv(b, w)
            [true] y = ai.onnx.Conv <pads=[1,1,1,1]> (c, w)
        }""",
        w=W,
    )
    assert only_site(model).name == "true"


UPWARD = {
    "its own": ("group=1", (4, 6, 3, 3), None, (4, 6)),
    "grouped": ("group=2", (4, 3, 3, 3), None, (4, 6)),
    "one output a group": ("group=2", (4, 1, 3, 3), None, (4, 2)),
    "depthwise": ("group=4", (4, 3, 3, 3), "depthwise: each group has a single input channel", (4, 12)),
    "damaged": ("group=3", (4, 2, 3, 3), "its weight of shape 4×2×3×3 does not fit 3 groups", (4, 6)),
}


@pytest.mark.parametrize("kind", UPWARD)
def test_a_conv_transpose_is_a_site(kind: str) -> None:
    attributes, shape, obstacle, channels = UPWARD[kind]
    text = f"g (float[1,4,8,8] x) => (float[?,?,?,?] y) {{ y = ConvTranspose <{attributes}> (x, w) }}"
    site = only_site(nets.model(text, w=np.ones(shape, np.float32)))
    assert (site.op, site.channels, site.kernel) == ("ConvTranspose", channels, (3, 3))
    assert kind == "damaged" or site.params == np.prod(shape)
    assert site.obstacle is None if obstacle is None else site.obstacle and site.obstacle.startswith(obstacle)


def test_a_conv_transpose_with_a_dynamic_weight_is_seen() -> None:
    text = "g (float[1,4,8,8] x, float[4,6,3,3] w) => (float[1,6,10,10] y) { y = ConvTranspose (x, w) }"
    site = only_site(nets.model(text))
    assert site.obstacle == "its weight is dynamic: 'w' is an input"
    assert (site.channels, site.params, site.macs) == ((4, 6), 216, 216 * 64)


# Where a weight can come from
# ----------------------------


def model_with(steps: str, **arrays: np.ndarray) -> ModelProto:
    return nets.model(
        f"g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{ {steps} [conv] y = {CONV} (x, w) }}", **arrays
    )


CONSTANT = {
    "initialiser": ("", {"w": W}),
    "identity": ("w = Identity(v)", {"v": W}),
    "transpose": ("w = Transpose <perm=[3,2,0,1]> (v)", {"v": W.transpose(2, 3, 1, 0)}),
    "transpose without perm": ("w = Transpose(v)", {"v": W.transpose()}),
    "cast": ("w = Cast <to=1> (v)", {"v": W.astype(np.float16)}),
    "cast from bytes": ("w = Cast <to=1> (v)", {"v": (W * 50).astype(np.int8)}),
    "all of them": (
        """a = Transpose <perm=[1,2,3,0]> (v) b = Cast <to=1> (a)
        c = Identity(b) w = Transpose <perm=[0,1,3,2]> (c)""",
        # Undone in reverse: the last Transpose first.
        {"v": W.astype(np.float64).transpose(0, 1, 3, 2).transpose(3, 0, 1, 2)},
    ),
}


@pytest.mark.parametrize("form", CONSTANT)
@pytest.mark.parametrize("as_node", [False, True])
def test_a_weight_may_be_constant_in_many_ways(form: str, as_node: bool) -> None:
    steps, arrays = CONSTANT[form]
    model = model_with(steps, **arrays)
    if as_node:
        tensor = model.graph.initializer.pop()
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    site = only_site(model)
    assert (site.obstacle, site.dtype, site.channels, site.kernel) == (None, "float32", (4, 4), (3, 3))

    rewritten = rewrite(model, nets.FULL_RANK, policy=nets.ANYTHING).model
    half = form == "cast"  # whose factors are stored as the weight was
    assert [node.op_type for node in rewritten.graph.node] == ["Cast"] * 3 * half + ["Conv"] * 3
    assert len(rewritten.graph.initializer) == 3
    assert nets.farthest(nets.run(model, x=X), nets.run(rewritten, x=X)) <= (2e-3 if half else 1e-5)


QUANTISED = {"q": (W * 50).astype(np.int8), "s": np.float32([0.02])[0], "z": np.int8([0])[0]}
NOT_CONSTANT = {
    "computed": (
        "m = ReduceMean <axes=[1,2,3]> (x) w = Mul(v, m)",
        {"v": W},
        "its weight is dynamic: a Mul computes it",
    ),
    "random": (
        "n = RandomNormalLike(v) w = Add(v, n)",
        {"v": W},
        "its weight is dynamic: a Add computes it",
    ),
    "quantised": ("w = DequantizeLinear(q, s, z)", QUANTISED, "its weight is quantised"),
    "quantised, turned": (
        "a = DequantizeLinear(q, s, z) w = Transpose <perm=[1,0,2,3]> (a)",
        QUANTISED,
        "its weight is quantised",
    ),
}


@pytest.mark.parametrize("form", NOT_CONSTANT)
def test_a_weight_that_is_not_constant_is_an_obstacle(form: str) -> None:
    steps, arrays, obstacle = NOT_CONSTANT[form]
    site = only_site(model_with(steps, **arrays))
    assert site.obstacle is not None and site.obstacle.startswith(obstacle)
    # What shape inference knows of it is reported all the same.
    assert (site.params, site.macs) == (144, 144 * 64)


def test_a_weight_that_callers_pass_is_an_obstacle() -> None:
    model = nets.model(
        f"g (float[1,4,8,8] x, float[4,4,3,3] w) => (float[1,4,8,8] y) {{ y = {CONV} (x, w) }}"
    )
    for freeze in (False, True):
        site = only_site(model, freeze_weights=freeze)
        assert site.obstacle == "its weight is dynamic: 'w' is an input"


def test_a_sparse_weight_is_an_obstacle() -> None:
    model = model_with("")
    values = numpy_helper.from_array(np.ones(2, np.float32), "w")
    indices = numpy_helper.from_array(np.array([0, 100]), "w_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4, 3, 3]))
    assert only_site(model).obstacle == "its weight is stored as a sparse tensor"


LISTED = """
<ir_version: {ir}, opset_import: ["" : 8]>
g (float[1,4,8,8] x, float[4,4,3,3] v) => (float[1,4,8,8] y) {{
    w = Identity(v)
    [conv] y = Conv <pads=[1,1,1,1]> (x, w)
}}
"""


def test_a_weight_that_had_to_be_listed_as_an_input_is_constant() -> None:
    assert only_site(nets.model(LISTED.format(ir=3), v=W)).obstacle is None


def test_a_weight_that_callers_may_override_is_an_obstacle_until_it_is_frozen() -> None:
    model = nets.model(LISTED.format(ir=4), v=W)
    overridable = "its weight is a graph input that callers may override (`freeze_weights` fixes it)"
    assert only_site(model).obstacle == overridable
    assert only_site(model, freeze_weights=True).obstacle is None

    rewritten = rewrite(model, nets.FULL_RANK, policy=nets.ANYTHING, freeze_weights=True).model
    assert [each.name for each in rewritten.graph.input] == ["x"]
    assert nets.farthest(nets.run(model, x=X), nets.run(rewritten, x=X)) <= 1e-5


# What a weight can be
# --------------------

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
def test_nan_and_inf_in_a_weight_are_an_obstacle(dtype: str, value: float) -> None:
    weight = W.copy()
    weight[3, 1, 2, 0] = value
    element = "float" if dtype == "float32" else dtype.replace("float64", "double")
    text = f"g ({element}[1,4,8,8] x) => ({element}[1,4,8,8] y) {{ y = {CONV} (x, w) }}"
    site = only_site(nets.model(text, w=weight.astype(DTYPES[dtype])))
    assert site.dtype == dtype
    assert site.obstacle == ("its weight has NaN or Inf" if not np.isfinite(value) else None)


@pytest.mark.parametrize(
    ("shape", "groups", "obstacle"),
    [
        ((8, 1, 3, 3), 4, "depthwise: each group has a single input channel"),
        ((4, 1, 3, 3), 4, "depthwise: each group has a single input channel"),
        ((9, 2, 3, 3), 2, "its weight of shape 9×2×3×3 does not fit 2 groups; the file is damaged"),
        ((8, 0, 3, 3), 1, "its weight of shape 8×0×3×3 does not fit 1 groups; the file is damaged"),
        ((8, 4), 1, "its weight of shape 8×4 does not fit 1 groups; the file is damaged"),
        ((8, 4, 3, 3), 0, "its weight of shape 8×4×3×3 does not fit 0 groups; the file is damaged"),
        ((8, 1, 3, 3), 1, None),
        ((8, 2, 3, 3), 2, None),
        ((8, 4, 1, 3), 1, None),
        ((1, 4, 3), 1, None),
    ],
)
def test_weights_that_cannot_be_factored(shape: tuple[int, ...], groups: int, obstacle: str | None) -> None:
    sizes = ",".join(["9"] * (len(shape) - 2))
    text = f"g (float[1,4,{sizes or 9}] x) => (float[N,M] y) {{ y = Conv <group={groups}> (x, w) }}"
    assert only_site(nets.model(text, w=np.ones(shape, np.float32))).obstacle == obstacle


# Names
# -----


@settings(derandomize=True, deadline=None, database=None, max_examples=150)
@given(
    st.lists(
        st.sampled_from(["", "a", "b", "t0", "t2", "if", "if/then_branch/a", "if/then_branch"]), min_size=5
    )
)
def test_keys_are_unique_whatever_nodes_are_called(names: list[str]) -> None:
    """The first half stands in the main graph, the rest in a branch of an If, which takes the last name."""
    outputs = iter(f"t{i}" for i in range(100))
    convs = [helper.make_node("Conv", ["x", "w"], [next(outputs)], name=name) for name in names]
    half = len(convs) // 2
    graphs = [helper.make_graph(part, "g", [], []) for part in (convs[half:-1], [])]
    branches = dict(zip(("then_branch", "else_branch"), graphs, strict=True))
    main = [*convs[:half], helper.make_node("If", ["c"], ["if"], name=names[-1], **branches)]
    tensors = [numpy_helper.from_array(W, "w")]
    sites = find_sites(helper.make_model(helper.make_graph(main, "g", [], [], tensors)))
    assert len(sites) == len(convs) - 1
    assert len({site.name for site in sites}) == len(sites)


def test_a_key_is_the_nodes_name_where_that_tells_it_apart() -> None:
    model = nets.model(
        f"""g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{
            [one] a = {CONV} (x, w)
            [two] b = {CONV} (a, w)
            [two] c = {CONV} (b, w)
            d = {CONV} (c, w)
            [d] y = {CONV} (d, w)
        }}""",
        w=W,
    )
    assert [site.name for site in find_sites(model)] == ["one", "b", "c", "d", "y"]


# Costs
# -----

COSTS = [
    # x, weight, attributes, y; params, MACs
    ("1,16,100", (32, 16, 5), "", "1,32,96", 2560, 2560 * 96),
    ("2,16,100", (32, 16, 5), "strides=[2], pads=[2,2]", "2,32,50", 2560, 2560 * 100),
    ("1,3,32,32", (64, 3, 7, 7), "strides=[2,2], pads=[3,3,3,3]", "1,64,16,16", 9408, 9408 * 256),
    ("1,8,20,30", (8, 8, 3, 1), "dilations=[2,1], pads=[0,0,1,0]", "1,8,17,30", 192, 192 * 17 * 30),
    ("1,8,9,9", (12, 4, 2, 2), 'group=2, auto_pad="SAME_UPPER", strides=[2,2]', "1,12,5,5", 192, 192 * 25),
    ("1,4,5,6,7", (8, 4, 2, 2, 2), "", "1,8,4,5,6", 256, 256 * 120),
]


@pytest.mark.parametrize(("x", "weight", "attributes", "y", "params", "macs"), COSTS)
def test_costs_are_those_computed_by_hand(
    x: str, weight: tuple[int, ...], attributes: str, y: str, params: int, macs: int
) -> None:
    text = f"g (float[{x}] x) => (float[{y}] y) {{ y = Conv <{attributes}> (x, w) }}"
    model = nets.model(text.replace("<>", ""), w=nets.weight(*weight))
    site = only_site(model)
    assert (site.params, site.macs) == (params, macs)
    shape = tuple(int(dim) for dim in y.split(","))
    feed = nets.signal(*(int(dim) for dim in x.split(",")))
    assert nets.run(model, x=feed)["y"].shape == shape


@pytest.mark.parametrize("name", ["resnet18", "conv3d"])
def test_costs_are_those_pytorch_counts(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason='exporting needs PyTorch: pip install "onnxdecomp[torch]"')
    from torch.utils.flop_counter import FlopCounterMode

    shape = {"resnet18": (2, 3, 64, 96), "conv3d": (1, 3, 8, 32, 32)}[name]
    net = models.build(name)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.zeros(shape))
    flops = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    convs = [m for m in net.modules() if type(m).__name__ in ("Conv2d", "Conv3d")]

    sites = find_sites(models.export(name, tmp_path / "net.onnx", shape=shape))
    assert sum(site.macs or 0 for site in sites) * 2 == flops
    assert [site.params for site in sites] == [conv.weight.numel() for conv in convs]


DYNAMIC = f"g (float[B,4,H,W] x) => (float[B,4,H,W] y) {{ [conv] y = {CONV} (x, w) }}"


def test_costs_are_unknown_where_shapes_are() -> None:
    model = nets.model(DYNAMIC, w=W)
    site = only_site(model)
    assert (site.params, site.macs) == (144, None)
    assert only_site(model, input_shapes={"x": (2, 4, 10, 20)}).macs == 144 * 400
    report = rewrite(model, 2, policy=nets.ANYTHING, input_shapes={"x": (2, 4, 10, 20)}).sites[0].to_dict()
    assert report["macs"] == {"before": 144 * 400, "after": (4 * 2 + 9 * 2 * 2 + 2 * 4) * 400}


def test_an_unknown_batch_counts_as_one_and_no_other_dimension_does() -> None:
    model = nets.model(DYNAMIC.replace("B,4,H,W", "B,4,10,20"), w=W)
    assert only_site(model).macs == 144 * 200
    assert only_site(model, input_shapes={"x": (3, 4, 10, 20)}).macs == 144 * 600


def test_a_shape_given_replaces_those_declared_inside() -> None:
    """The value_info of an exporter's example input would contradict it."""
    model = nets.model(
        f"g (float[1,4,H,W] x) => (float[1,4,8,8] y) {{ h = {CONV} (x, w) [conv] y = {CONV} (h, w) }}", w=W
    )
    model.graph.value_info.append(helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [1, 4, 8, 8]))
    assert [s.macs for s in find_sites(model, input_shapes={"x": (1, 4, 5, 6)})] == [144 * 30] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"z": (1, 4, 8, 8)}, "`input_shapes` z: no such input; the model's inputs are x"),
        ({"w": (4, 4, 3, 3)}, "`input_shapes` w: no such input"),
        ({"x": (1, 4, 8)}, r"`input_shapes` x: the model declares x:\?,4,\?,\?"),
        ({"x": (1, 3, 8, 8)}, "`input_shapes` x: the model declares"),
        ({"x": ()}, "`input_shapes` x: the model declares"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(given: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_sites(nets.model(DYNAMIC, w=W), input_shapes=given)
