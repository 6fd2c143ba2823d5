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


def test_a_weight_quantised_by_an_operator_of_onnx_runtime_is_seen() -> None:
    steps = "w = com.microsoft.DequantizeLinear (q, s, z)"
    text = f"g (float[1,4,8,8] x) => (float[1,8,6,6] y) {{ {steps} y = Conv (x, w) }}"
    scales = {name: SCALES[name] for name in ("s", "z")}
    site = only(nets.model(CONTRIB + text, q=(W * 50).astype(np.int8), **scales))
    assert site.obstacle is not None and site.obstacle.startswith("its weight is quantised (int8, ")


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


# Fixed transforms
# ----------------


def fourier(size: int) -> np.ndarray:
    """Windowed cosines and sines, (size + 2, 1, size)."""
    angles = 2 * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(size)) / size
    rows = np.concatenate([np.cos(angles), np.sin(angles)]) * np.hanning(size)
    return rows[:, None].astype(np.float32)


def cosines(size: int) -> np.ndarray:
    """The two-dimensional DCT-II of size × size blocks, (size², 1, size, size)."""
    steps = np.arange(size)
    one = np.cos(np.pi * np.outer(steps, steps + 0.5) / size) * np.sqrt(2 / size)
    one[0] /= np.sqrt(2)
    return np.einsum("ai,bj->abij", one, one).reshape(size * size, 1, size, size).astype(np.float32)


def haar() -> np.ndarray:
    """One level of Haar wavelets of three channels each by itself, as a dense Conv: (12, 3, 2, 2)."""
    one = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).reshape(4, 1, 2, 2) / 2
    dense = np.zeros((12, 3, 2, 2), np.float32)
    for channel in range(3):
        dense[4 * channel : 4 * channel + 4, channel : channel + 1] = one
    return dense


def blur() -> np.ndarray:
    dense = np.zeros((3, 3, 3, 3), np.float32)
    dense[range(3), range(3)] = np.outer([1, 2, 1], [1, 2, 1]) / 16
    return dense


YUV = np.array([[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.1]], np.float32)
FRONTS: dict[str, tuple[str, str, np.ndarray, str]] = {
    "STFT": ("1,1,512", "Conv <strides=[16]> (x, f)", fourier(64), "frames of one channel, 16 samples apart"),
    "DCT": ("1,1,32,32", "Conv <strides=[8,8]> (x, f)", cosines(8), "orthogonal filters of equal norm"),
    "wavelets": ("1,3,16,16", "Conv <strides=[2,2]> (x, f)", haar(), "orthogonal filters of equal norm"),
    "colours": ("1,3,16,16", "Conv (x, f)", YUV[:, :, None, None], "a matrix of colours"),
    "blur": ("1,3,16,16", "Conv <pads=[1,1,1,1]> (x, f)", blur(), "a filter of each channel by itself"),
}


def front(case: str, before: str = "") -> ModelProto:
    """The Conv of that name at the input, behind what is trained there or not, and a trained one."""
    shape, conv, bank, _ = FRONTS[case]
    kernel = "3,3" if bank.ndim == 4 else "3"
    text = f"""g (float[{shape}] x) => (float[?] y) {{
      {before}
      [front] h = {conv.replace("(x", "(t") if before else conv}
      r = Relu (h)
      [body] y = Conv <kernel_shape=[{kernel}]> (r, w)
    }}"""
    w = nets.weight(8, len(bank), *([3] * (bank.ndim - 2)))
    scale = {"m": np.float32(0.5)} if "m)" in before else {}
    trained = (
        {"u": nets.weight(bank.shape[1], bank.shape[1], *([3] * (bank.ndim - 2)))} if "u)" in before else {}
    )
    return nets.model(text, f=bank, w=w, **scale, **trained)


@pytest.mark.parametrize("case", FRONTS)
def test_a_fixed_transform_is_kept_unless_it_is_asked_for(case: str) -> None:
    model, what = front(case, "t = Sub (x, m)"), FRONTS[case][3]
    loose = Policy(align=1, min_channels=1, allow_slower=True)
    named = {site.name: site for site in find_sites(model)}
    assert named["front"].transform is not None and named["front"].transform.startswith(what)
    assert named["front"].obstacle is None and named["body"].transform is None
    entry = inspect(model, policy=loose).to_dict()["sites"][0]
    assert entry["methods"] == [] and entry["reason"].startswith(f"a fixed transform, {what}")

    kept = rewrite(model, 0.5, policy=loose)
    assert [report.choice is None for report in kept.sites] == [True, False]
    assert kept.sites[0].reason == entry["reason"]
    asked = rewrite(model, 2, policy=loose, only="front")
    assert asked.plan.sites.keys() == {"front"}
    planned = rewrite(model, plan=asked.plan)
    assert planned.plan == asked.plan


@pytest.mark.parametrize("case", ["DCT", "wavelets", "colours", "blur"])
def test_behind_a_trained_layer_nothing_is_a_fixed_transform(case: str) -> None:
    sites = find_sites(front(case, "t = Conv <pads=[1,1,1,1]> (x, u)"))
    assert [site.transform for site in sites] == [None] * 3


@pytest.mark.parametrize("case", FRONTS)
def test_a_bank_that_was_trained_is_no_fixed_transform(case: str) -> None:
    bank = FRONTS[case][2]
    drawn = bank + nets.weight(*bank.shape) * np.abs(bank).max()
    model = front(case)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(drawn.astype(np.float32), "f"))
    expected = FRONTS[case][3] if case in ("STFT", "colours") else None
    found = find_sites(model)[0].transform
    assert (found is None) == (expected is None)


def test_a_fixed_transform_in_front_of_another() -> None:
    text = """g (float[1,3,16,16] x) => (float[1,12,8,8] y) {
      [colours] h = Conv (x, c)
      [wavelets] y = Conv <strides=[2,2]> (h, f)
    }"""
    sites = find_sites(nets.model(text, c=YUV[:, :, None, None], f=haar()))
    assert all(site.transform is not None for site in sites)
