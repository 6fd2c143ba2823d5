"""Sites that are seen and left as they are: quantised, optimised offline, moving taps, fixed transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnxruntime
import pytest
from conftest import Cli
from nets import rewrite
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxdecomp import NothingSelectedError, Policy, Site, find_sites, inspect

W = nets.weight(8, 4, 3, 3)
MACS = 8 * 4 * 9 * 36
CONTRIB = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'


def only(model: Any, **options: Any) -> Site:
    (site,) = find_sites(model, **options)
    return site


# Quantised weights
# -----------------

SCALES = {
    "s": np.float32(0.02),
    "z": np.int8(0),
    "u": np.uint8(128),
    "many": np.full(8, 0.02, np.float32),
    "zeros": np.zeros(8, np.int8),
}
QUANTISED = {
    "per tensor": ("w = DequantizeLinear (q, s, z)", np.int8, "int8"),
    "per channel": ("w = DequantizeLinear <axis=0> (q, many, zeros)", np.int8, "int8"),
    "unsigned": ("w = DequantizeLinear (q, s, u)", np.uint8, "uint8"),
    "without a zero point": ("w = DequantizeLinear (q, s)", np.int8, "int8"),
    "by an operator of ONNX Runtime": ("w = com.microsoft.DequantizeLinear (q, s, z)", np.int8, "int8"),
    "turned": ("d = DequantizeLinear (q, s, z) w = Identity (d)", np.int8, "int8"),
    "reshaped": ("d = DequantizeLinear (q, s, z) k = Shape (d) w = Reshape (d, k)", np.int8, "int8"),
}


@pytest.mark.parametrize("case", QUANTISED)
def test_a_quantised_weight_is_seen_with_its_cost(case: str) -> None:
    steps, dtype, kind = QUANTISED[case]
    text = f"g (float[1,4,8,8] x) => (float[1,8,6,6] y) {{ {steps} [conv] y = Conv (x, w) }}"
    scales = {name: value for name, value in SCALES.items() if f" {name}" in steps}
    site = only(nets.model(CONTRIB + text, q=(W * 50).astype(dtype), **scales))
    assert (site.params, site.macs) == (W.size, MACS)
    assert site.obstacle == (
        f"its weight is quantised ({kind}, behind a DequantizeLinear): "
        "decompose the float model first, then quantise the result"
    )


def test_a_weight_of_four_bits_is_seen() -> None:
    text = "g (float[1,4,8,8] x) => (float[1,8,6,6] y) { w = DequantizeLinear (q, s) y = Conv (x, w) }"
    model = nets.model(CONTRIB + text, s=np.float32(0.1))
    model.graph.initializer.append(
        helper.make_tensor("q", TensorProto.INT4, W.shape, (W * 4).astype(int).ravel())
    )
    site = only(model)
    assert site.macs == MACS and site.obstacle is not None and "(int4, " in site.obstacle


def test_a_quantised_matrix_is_seen_where_matrices_are_asked_for() -> None:
    text = "g (float[3,4] x) => (float[3,8] y) { w = DequantizeLinear (q, s, z) y = MatMul (x, w) }"
    model = nets.model(text, q=np.ones((4, 8), np.int8), s=np.float32(0.1), z=np.int8(0))
    assert not find_sites(model)
    site = only(model, linear=True)
    assert (site.macs, site.op) == (96, "MatMul") and "quantised (int8" in str(site.obstacle)


# Other operators that convolve
# -----------------------------

SEEN = {
    "FusedConv": (
        'y = com.microsoft.FusedConv <activation="Relu"> (x, w)',
        {"w": W},
        "export the model again",
    ),
    "ConvInteger": ("c = Cast <to=2> (x) i = ConvInteger (c, q) y = Cast <to=1> (i)", {}, "is quantised"),
    "QLinearConv": (
        """c = QuantizeLinear (x, s, u) p = QLinearConv (c, s, u, q, s, z, s, u)
        y = DequantizeLinear (p, s, u)""",
        {},
        "decompose the float model first",
    ),
    "DeformConv": (
        "y = DeformConv (x, w, o)",
        {"w": W, "o": np.zeros((1, 18, 6, 6), np.float32)},
        "taps move",
    ),
}


@pytest.mark.parametrize("op", SEEN)
def test_what_convolves_otherwise_is_listed_with_its_cost(op: str) -> None:
    steps, arrays, advice = SEEN[op]
    scales = {name: SCALES[name] for name in ("s", "u", "z") if f" {name}" in steps}
    arrays = arrays or {"q": (W * 50).astype(np.int8 if op == "QLinearConv" else np.uint8)}
    text = f"g (float[1,4,8,8] x) => (float[1,8,6,6] y) {{ {steps} }}"
    model = nets.model(CONTRIB + text, **arrays, **scales)
    site = only(model)
    assert (site.op, site.kernel, site.channels, site.params, site.macs) == (op, (3, 3), (4, 8), W.size, MACS)
    assert site.obstacle is not None and site.obstacle.startswith(f"a {op}: ") and advice in site.obstacle
    with pytest.raises(NothingSelectedError, match=f"because: a {op}"):
        rewrite(model, 0.5)


def test_channels_last() -> None:
    text = "g (float[1,8,8,4] x) => (float[1,6,6,8] y) { y = com.microsoft.NhwcConv (x, w) }"
    model = nets.model(CONTRIB + text, w=W)
    assert (only(model).channels, only(model).macs) == ((4, 8), MACS)


@pytest.mark.parametrize("level", ["ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_what_onnx_runtime_optimised_offline_is_listed(level: str, tmp_path: Path, cli: Cli) -> None:
    model = nets.model(
        """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
          a = Conv <pads=[1,1,1,1]> (x, v)
          b = Relu (a)
          y = Conv <pads=[1,1,1,1]> (b, w)
        }""",
        v=nets.weight(16, 16, 3, 3),
        w=nets.weight(16, 16, 3, 3, seed=2),
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "in.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    sites = find_sites(tmp_path / "in.onnx")
    assert [site.macs for site in sites] == [16 * 16 * 9 * 64] * 2
    made = [site for site in sites if site.obstacle is not None]
    assert made and all("offline optimisation: export the model again" in str(site.obstacle) for site in made)
    assert "export the model again" in " ".join(cli("inspect", tmp_path / "in.onnx").out.split())
