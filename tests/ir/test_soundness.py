"""Models that no checker saw: wrong attributes, names that are no text, endless calls, huge shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import SMALL, Cli, save, small_model, untouched
from onnx import AttributeProto, ModelProto

import onnxdecomp
from onnxdecomp import ModelError

RANK = ("--rank", "0.25")
COMMANDS = [
    ("inspect", "in.onnx"),
    ("rewrite", "in.onnx", "out.onnx", *RANK, "--no-check"),
    ("compare", "in.onnx", "in.onnx"),
    ("search", "in.onnx", "out.onnx", "--macs", "0.5", "--cost", "macs"),
    ("bench", "in.onnx", "--duration", "1"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(cli: Cli, folder: Path, model: ModelProto, *says: str) -> None:
    """Every command refuses the model in one line that has `says` in it, and writes nothing."""
    save(model, folder / "in.onnx")
    with untouched(folder):
        for words in COMMANDS:
            message = cli(*words).refusal()
            assert all(each in message for each in says) and len(message) < 289, message


# Attributes
# ----------


def with_attribute(name: str, kind: int, node: int = 0, text: str = SMALL, **values: Any) -> ModelProto:
    model = small_model(text)
    attributes = model.graph.node[node].attribute
    for i in reversed([i for i, each in enumerate(attributes) if each.name == name]):
        del attributes[i]
    attributes.append(AttributeProto(name=name, type=kind, **values))
    return model


NORMED = SMALL.replace("[act] y = Relu (h)", "y = BatchNormalization (h, b, b, b, b)")
FLOAT, INT, STRING, INTS, FLOATS = (
    getattr(AttributeProto, kind) for kind in ("FLOAT", "INT", "STRING", "INTS", "FLOATS")
)
WRONG = {
    "strides of floats": with_attribute("strides", FLOATS, floats=[1, 1]),
    "one pad": with_attribute("pads", INT, i=1),
    "pads of a text": with_attribute("pads", STRING, s=b"1111"),
    "groups in a list": with_attribute("group", INTS, ints=[1]),
    "groups of a float": with_attribute("group", FLOAT, f=1),
    "auto_pad of a number": with_attribute("auto_pad", INT, i=0),
    "epsilon of a whole number": with_attribute("epsilon", INT, node=1, text=NORMED, i=0),
}
EMPTY = {name: with_attribute(name, INTS) for name in ("strides", "dilations", "pads", "kernel_shape")}


@pytest.mark.parametrize("name", WRONG)
def test_an_attribute_of_another_kind_is_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(WRONG[name])
    refused(cli, tmp_path, WRONG[name], "in.onnx is damaged", "of another kind than the operator's")


@pytest.mark.parametrize("name", EMPTY)
def test_a_geometry_without_values_is_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    refused(cli, tmp_path, EMPTY[name], f"the attribute '{name}' of the Conv 'conv' is empty")


def test_attributes_in_functions_and_in_graphs_of_nodes_are_looked_at() -> None:
    function = nets.model(
        '<ir_version: 8, opset_import: ["" : 17, "l" : 1]> '
        "m (float[1,16,8,8] x) => (float[1,32,8,8] y) { y = l.f (x) } "
        '<opset_import: ["" : 17], domain: "l"> f (a) => (c) { c = Relu (a) }'
    )
    function.functions[0].node[0].attribute.add(name="alpha", type=INT)  # Relu has none: not ours to judge
    assert onnxdecomp.find_sites(function) == []
    function.functions[0].node[0].op_type = "LeakyRelu"
    inside = nets.branching()
    body = next(a.g for node in inside.graph.node for a in node.attribute if a.HasField("g"))
    body.node[0].CopyFrom(onnx.helper.make_node("Conv", ["x", "w"], ["q"], strides=[1.0]))
    for model in (function, inside):
        with pytest.raises(ModelError, match="of another kind"):
            onnxdecomp.find_sites(model)


@pytest.mark.parametrize("version", [1, 7, 11, 17, 21])
def test_what_is_right_in_its_operator_set_is_taken(version: int) -> None:
    """Kinds are those of the operator set that the model imports, and unknown ones nobody judges."""
    model = small_model()
    model.opset_import[0].version = version
    model.opset_import.add(domain="nobody", version=1)
    model.graph.node.add(op_type="Mystery", domain="nobody", output=["z"]).attribute.add(
        name="pads", type=INT
    )
    assert len(onnxdecomp.find_sites(model)) == 1


# Names
# -----

PLACES: dict[str, Callable[[bytes], bytes]] = {
    "an operator": lambda raw: raw.replace(b"Relu", b"Re\xfflu"[:4]),
    "a node": lambda raw: raw.replace(b"conv", b"c\xffnv"),
    "an attribute": lambda raw: raw.replace(b"pads", b"pa\xc3s"),
    "an initialiser": lambda raw: raw.replace(b"B\x01w", b"B\x01\xfe"),
    "the graph": lambda raw: raw.replace(b"small", b"sm\xf0ll"),
    "a dimension": lambda raw: raw.replace(b"height", b"h\xe9ight"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_is_no_text_is_refused(cli: Cli, tmp_path: Path, place: str) -> None:
    model = small_model(SMALL.replace("[1,16,8,8]", "[1,16,height,8]"))
    raw = PLACES[place](model.SerializeToString())
    assert raw != model.SerializeToString()
    refused(cli, tmp_path, ModelProto.FromString(raw), "in.onnx is damaged: the name b", "is not UTF-8 text")


def test_prose_may_be_in_any_code_page() -> None:
    """Nothing here reads it, and old exporters wrote what they had."""
    model = small_model()
    model.doc_string, model.metadata_props.add().value = "prose", "prose"
    raw = model.SerializeToString().replace(b"prose", b"pros\xe9")
    assert len(onnxdecomp.find_sites(ModelProto.FromString(raw))) == 1


# Calls and nesting
# -----------------


def calling(bodies: list[str]) -> ModelProto:
    """A Conv and a call of f0; each body stands for a function, the last one first called by nobody."""
    functions = "".join(
        f'<opset_import: ["" : 17, "l" : 1], domain: "l"> f{i} (a) => (c) {{ {body} }}\n'
        for i, body in enumerate(bodies)
    )
    return nets.model(
        '<ir_version: 8, opset_import: ["" : 17, "l" : 1]> m (float[1,16,8,8] x) => (float[1,32,8,8] y) '
        "{ z = Conv <pads=[1,1,1,1]> (x, w) y = l.f0 (z) }\n" + functions,
        w=nets.weight(32, 16, 3, 3),
    )


def times(number: int, callee: str, last: str = "c") -> str:
    names = ["a", *(f"b{i}" for i in range(number - 1)), last]
    return " ".join(f"{b} = {callee} ({a})" for a, b in itertools.pairwise(names))


ENDLESS = {
    "twofold": calling([times(2, f"l.f{i + 1}") for i in range(19)] + ["c = Relu (a)"]),
    "tenfold": calling([times(10, f"l.f{i + 1}") for i in range(6)] + ["c = Relu (a)"]),
    "a long body": calling([times(600, "l.f1"), times(600, "Relu")]),
}
CIRCLES = {
    "itself": calling(["c = l.f0 (a)"]),
    "each other": calling([times(2, "l.f1"), times(2, "l.f0")]),
    "too deep": calling([f"c = l.f{i + 1} (a)" for i in range(101)] + ["c = Relu (a)"]),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_calls_that_come_to_too_much_are_counted_not_made(cli: Cli, tmp_path: Path, name: str) -> None:
    refused(cli, tmp_path, ENDLESS[name], "its calls of functions come to", "262,144 are the most")


@pytest.mark.parametrize("name", CIRCLES)
def test_functions_that_call_each_other_without_end_are_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    refused(cli, tmp_path, CIRCLES[name], "its functions call each other in a circle, or more than 100 deep")


def test_calls_that_a_runtime_can_make_are_taken() -> None:
    for bodies in ([times(2, f"l.f{i + 1}") for i in range(8)], [f"c = l.f{i + 1} (a)" for i in range(80)]):
        assert len(onnxdecomp.find_sites(calling([*bodies, "c = Relu (a)"]))) == 1


def test_graphs_nested_beyond_measure_are_refused(cli: Cli, tmp_path: Path) -> None:
    """In a file protobuf refuses them; a ModelProto may hold them all the same."""
    model = small_model()
    graph = model.graph
    for _ in range(200):
        node = graph.node.add(op_type="If", input=["x"], output=["q"])
        graph = node.attribute.add(name="then_branch", type=AttributeProto.GRAPH).g
    with pytest.raises(ModelError, match="nested more than 33 deep"):
        onnxdecomp.find_sites(model)


# Sizes
# -----


@pytest.mark.parametrize(
    "body",
    [
        "Conv <strides=[1]> (x, w)",
        "Conv <strides=[1,1,1]> (x, w)",
        "Conv <strides=[0]> (q, w)",
        "Conv <kernel_shape=[3]> (x, w)",
        "Conv (p, w)",
    ],
)
def test_a_geometry_of_other_axes_than_the_weight_has_is_no_index(
    cli: Cli, tmp_path: Path, body: str
) -> None:
    for rank in ("3,8", "4,8,8,8"):
        start = (
            f"m (float[1,16,{rank[2:]}] x, float[0,16,0] q, float[1,16,8] p) => (float[1,32,{rank[2:]}] y)"
        )
        model = small_model(f"{start} {{ y = {body} }}")
        save(model, tmp_path / "in.onnx")
        for words in (("rewrite", "in.onnx", "out.onnx", *RANK, "--no-check"), ("inspect", "in.onnx")):
            done = cli(*words)
            assert done.code == 0 or done.refusal(done.code)


def sized(*dims: int | str, text: str = SMALL) -> ModelProto:
    model = small_model(text)
    for value in (*model.graph.input, *model.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, dims, strict=True):
            dim.dim_value = size
    return model


@pytest.mark.parametrize(
    "dims", [(1, 16, 2**20, 2**20), (2**31, 16, 2**31, 2**31), (2**62, 16, 2**62, 2**62)], ids=str
)
def test_inputs_larger_than_the_memory_are_never_made(
    cli: Cli, tmp_path: Path, dims: tuple[int, ...]
) -> None:
    save(sized(*dims), tmp_path / "in.onnx")
    with untouched(tmp_path):
        for words in (
            ("rewrite", "in.onnx", "out.onnx", *RANK),
            ("compare", "in.onnx", "in.onnx"),
            ("search", "in.onnx", "out.onnx", "--macs", "0.5", "--cost", "macs"),
            ("bench", "in.onnx", "--duration", "1"),
        ):
            assert "the input 'x' of shape" in (message := cli(*words).refusal()), message
            assert "is larger than the memory here" in message


def test_an_input_of_more_axes_than_arrays_have_is_never_made(cli: Cli, tmp_path: Path) -> None:
    model = nets.model(f"m (float[{','.join('1' * 70)}] x) => (float[1] y) {{ y = Relu (x) }}")
    save(model, tmp_path / "in.onnx")
    assert "is larger than the memory here" in cli("compare", "in.onnx", "in.onnx").refusal()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_message_is_longer_than_a_line_can_be(cli: Cli, tmp_path: Path, value: float) -> None:
    model = small_model()
    model.graph.node[0].name = "n" * 5000
    model.graph.input[0].name = "i" * 5000
    model.graph.node[0].input[0] = "i" * 5000
    save(model, tmp_path / "in.onnx")
    np.savez("x.npz", other=np.full((4, 16, 8, 8), value, "f"), more=np.ones(3))
    for words in (
        ("rewrite", "in.onnx", "out.onnx", "--only", "(" * 5000, *RANK),
        ("compare", "in.onnx", "in.onnx", "--data", "x.npz"),
        ("compare", "in.onnx", "in.onnx", "--data", "d" * 5000),
        ("compare", "in.onnx", "in.onnx", "--input-shape", f"{'s' * 5000}:1"),
        ("rewrite", "in.onnx", "out.onnx", "--plan", "p" * 5000),
        ("inspect", "m" * 5000),
        ("inspect", "in.onnx", f"--{'o' * 5000}"),
        ("rewrite", "in.onnx", "out.onnx", "--rank", "r" * 5000),
    ):
        assert len(cli(*words).err.splitlines()[-1]) <= 300
        assert cli(*words).refusal()


# NumPy warns when such a NaN is cast, as of nothing else that stands in files.
SIGNALLING = np.full(32, 0x7FA00000, np.uint32).view(np.float32)
CAST = SMALL.replace("[conv] h", "k = Cast <to=11> (w) [conv] h").replace("(x, w, b)", "(x, k, b)")
NAN = {
    "weight": (SMALL, {"w": np.resize(SIGNALLING, (32, 16, 3, 3))}),
    "bias": (SMALL, {"b": SIGNALLING}),
    "a weight behind a Cast": (CAST, {"w": np.resize(SIGNALLING, (32, 16, 3, 3))}),
    "BatchNormalization": (NORMED, {"b": SIGNALLING}),
}


@pytest.mark.parametrize("name", NAN)
def test_numbers_that_are_none_bring_no_warning(cli: Cli, tmp_path: Path, name: str) -> None:
    """It would be a second line on standard error."""
    text, arrays = NAN[name]
    save(small_model(text, **arrays), tmp_path / "in.onnx")
    np.savez("x.npz", x=nets.signal(4, 16, 8, 8))
    for more in (("--no-check",), ("--no-check", "--data", "x.npz")):
        done = cli("rewrite", "in.onnx", "out.onnx", *RANK, *more)
        assert done.code == 0 or done.refusal(done.code)
    np.savez("x.npz", x=np.resize(SIGNALLING, (4, 16, 8, 8)))
    assert "NaN or Inf" in cli("rewrite", "in.onnx", "out.onnx", *RANK, "--data", "x.npz").refusal()
