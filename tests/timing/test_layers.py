"""Time per layer: every kernel finds the layer of the file that it computes. No timing decides a test."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from conftest import save, small_model

import onnxdecomp
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import Engine
from onnxdecomp.timing import Kernel, LayerTable, open_subjects, profile
from onnxdecomp.timing.layers import CONVERSIONS, Layer, align

# Every fusion that matters: activation, residual Add, BatchNormalization; a pool between blocked Convs.
BLOCK = """
block (float[1,32,16,16] x) => (float[1,32,8,8] y) {
  [one] a = Conv <pads=[1,1,1,1]> (x, w1, b)
  [norm] n = BatchNormalization (a, g, b, m, v)
  [act] r = Relu (n)
  [two] c = Conv <pads=[1,1,1,1]> (r, w2, b)
  [sum] s = Add (c, r)
  [act2] t = Relu (s)
  [pool] p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (t)
  [three] y = Conv <pads=[1,1,1,1]> (p, w3)
}
"""
FEEDS = {"x": nets.signal(1, 32, 16, 16)}


def block(folder: Path, text: str = BLOCK) -> Path:
    arrays = {name: nets.weight(32, 32, 3, 3, seed=i) for i, name in enumerate(("w1", "w2", "w3"))}
    ones = {name: np.ones(32, np.float32) for name in ("g", "v")}
    return save(
        nets.model(text, b=nets.signal(32), m=nets.signal(32, seed=5), **arrays, **ones), folder / "in.onnx"
    )


def layers_of(*paths: Path, runs: int = 2) -> list[Layer]:
    return align(profile(open_subjects(paths), Engine(), [FEEDS] * len(paths), runs))


def kernels(layer: Layer, model: int) -> list[str]:
    return [f"{kernel.op}{'*' if kernel.blocked else ''}" for kernel in layer.kernels[model]]


def test_chains_stand_beside_their_convs_with_what_is_fused_into_them(tmp_path: Path) -> None:
    source, out = block(tmp_path), tmp_path / "out.onnx"
    onnxdecomp.rewrite(source, 16, skip="three").save(out)
    layers = {layer.name: layer for layer in layers_of(source, out)}
    assert list(layers) == ["one", "two", "pool", "three", CONVERSIONS]
    assert kernels(layers["one"], 0) == ["Conv+Relu*"]
    assert kernels(layers["one"], 1) == ["Conv*", "Conv*", "Conv+Relu*"]
    assert kernels(layers["two"], 1) == ["Conv*", "Conv*", "Conv+Add+Relu*"]
    assert kernels(layers["three"], 0) == kernels(layers["three"], 1) == ["Conv*"]
    assert kernels(layers["pool"], 1) == ["MaxPool*"]


UP = """
up (float[1,32,16,16] x) => (float[1,32,32,32] y) {
  [one] a = Conv <pads=[1,1,1,1]> (x, w1, b)
  [act] r = Relu (a)
  [up] u = ConvTranspose <strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]> (r, w2, b)
  [act2] y = Relu (u)
}
"""


def test_a_chain_stands_beside_its_conv_transpose_with_the_relu_it_takes_in(tmp_path: Path) -> None:
    source, out = block(tmp_path, UP), tmp_path / "out.onnx"
    onnxdecomp.rewrite(source, 16, only="up").save(out)
    layers = {layer.name: layer for layer in layers_of(source, out)}
    assert list(layers) == ["one", "up", "act2", CONVERSIONS]
    assert kernels(layers["up"], 0) == ["ConvTranspose"] and kernels(layers["act2"], 0) == ["Relu"]
    assert kernels(layers["up"], 1) == ["Conv*", "ConvTranspose", "Conv+Relu*"]
    assert not layers["act2"].kernels[1]


def test_an_unaligned_rank_shows_as_a_conv_outside_the_layout_and_conversions(tmp_path: Path) -> None:
    source, out = block(tmp_path), tmp_path / "out.onnx"
    onnxdecomp.rewrite(source, 30, only="two", policy=onnxdecomp.Policy(allow_slower=True)).save(out)
    layers = {layer.name: layer for layer in layers_of(source, out)}
    assert any(not kernel.blocked for kernel in layers["two"].kernels[1])
    assert len(layers[CONVERSIONS].kernels[1]) > len(layers[CONVERSIONS].kernels[0])


def test_nodes_without_names_are_told_apart(tmp_path: Path) -> None:
    text = BLOCK
    for name in ("one", "norm", "act", "two", "sum", "act2", "pool", "three"):
        text = text.replace(f"[{name}] ", "")
    source = block(tmp_path, text)
    before = source.read_bytes()
    assert [layer.name for layer in layers_of(source)] == ["a", "c", "p", "y", CONVERSIONS]
    assert source.read_bytes() == before


def test_a_file_that_shares_nothing_has_layers_of_its_own(tmp_path: Path) -> None:
    source = block(tmp_path)
    other = onnx.load(source)
    for node in other.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"other {name}" if name in "anrcstpy" else name for name in names]
    other.graph.output[0].name = "other y"
    found = layers_of(source, save(other, tmp_path / "other.onnx"))
    own = [layer for layer in found if not layer.kernels[0]]
    assert len(own) == 4
    assert all(layer.speedup(1) is None for layer in own)


IF = """
branches (float[1,32,16,16] x, bool[1] c) => (float[1,32,16,16] y) {
  [pick] y = If (c) <
    then_branch = then () => (float[1,32,16,16] a) { a = Conv <pads=[1,1,1,1]> (x, w1) },
    else_branch = other () => (float[1,32,16,16] d) { d = Relu (x) }
  >
}
"""


def test_the_time_of_a_branch_is_counted_once(tmp_path: Path) -> None:
    source = save(nets.model(IF, w1=nets.weight(32, 32, 3, 3)), tmp_path / "in.onnx")
    feeds = FEEDS | {"c": np.ones(1, bool)}
    (found,) = profile(open_subjects([source]), Engine(), [feeds], 2)
    assert [kernel.op for kernel in found.kernels] == ["If"]
    assert found.seconds <= found.session


def test_layers_sum_to_the_session(tmp_path: Path) -> None:
    """Never more than the session, which holds them; how much less is the machine's affair."""
    (found,) = profile(open_subjects([block(tmp_path)]), Engine(), [FEEDS], 5)
    assert 0 < sum(layer.seconds(0) for layer in align([found])) <= 1.5 * found.session
    report = LayerTable.of(["in"], [found]).to_dict()
    assert report["models"][0]["layers_ms"] == pytest.approx(
        sum(layer["models"][0]["ms"] for layer in report["layers"])
    )


@pytest.mark.parametrize(
    ("before", "after", "slower"), [(1e-3, 1.2e-3, True), (1e-3, 1.04e-3, False), (2e-6, 9e-6, False)]
)
def test_a_layer_is_slower_beyond_noise_and_the_clock(before: float, after: float, slower: bool) -> None:
    def kernel(seconds: float) -> Kernel:
        return Kernel(op="Conv", blocked=True, seconds=seconds, owner=0, name="k")

    layer = Layer(name="k", kernels=((kernel(before),), (kernel(after),)))
    assert layer.slower(1) is slower
    assert layer.speedup(1) == pytest.approx(before / after)


def test_a_gpu_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not how long they ran"):
        profile(open_subjects([block(tmp_path)]), Engine(provider="CUDAExecutionProvider"), [FEEDS])


def test_external_data_are_found_from_the_copy_with_names(tmp_path: Path) -> None:
    from conftest import save_external

    model = small_model()
    for node in model.graph.node:
        node.name = ""
    path = save_external(model, tmp_path / "in.onnx")
    (found,) = profile(open_subjects([path]), Engine(), [{"x": nets.signal(1, 16, 8, 8)}], 2)
    assert "Conv+Relu" in [kernel.op for kernel in found.kernels]
