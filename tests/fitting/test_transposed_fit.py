"""The patches of a ConvTranspose against ONNX Runtime, its least squares against PyTorch in float64."""

from __future__ import annotations

import nets
import numpy as np
import pytest
import torch
from nets import rewrite
from onnx import ModelProto, helper
from torch.nn import functional

from onnxdecomp import Samples, find_sites, open_samples
from onnxdecomp.fitting import Moments, Problem, fit_low_rank
from onnxdecomp.fitting.heads import _adjoint_geometry
from onnxdecomp.fitting.moments import patches

# Sizes, kernel, attributes.
UPWARD = {
    "no attributes": ((4, 5), (3, 2), ""),
    "strides": ((4, 5), (2, 2), "strides=[2,2]"),
    "stride beyond the kernel": ((4, 3), (1, 2), "strides=[3,3]"),
    "pads": ((6, 7), (3, 4), "strides=[2,1], pads=[0,1,2,3]"),
    "pads beyond the kernel": ((6, 7), (2, 1), "strides=[2,1], pads=[3,2,2,1]"),
    "dilations": ((4, 5), (3, 2), "strides=[2,3], dilations=[2,3], pads=[1,0,2,1]"),
    "output padding": ((4, 5), (3, 3), "strides=[2,3], pads=[1,1,1,1], output_padding=[1,2]"),
    "valid": ((4, 5), (3, 2), 'auto_pad="VALID", strides=[2,1]'),
    **{
        f"{auto} {name}": (sizes, kernel, f'auto_pad="{auto}", {rest}')
        for auto in ("SAME_UPPER", "SAME_LOWER", "NOTSET")
        for name, sizes, kernel, rest in (
            ("by strides", (4, 5), (4, 5), "strides=[3,2]"),
            ("by output_shape", (4, 5), (4, 3), "strides=[2,2], output_shape=[7,10]"),
            ("1-D", (6,), (5,), "strides=[2]"),
            ("3-D", (2, 3, 4), (2, 3, 2), "strides=[1,2,1], output_padding=[0,1,0]"),
        )
    },
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("case", UPWARD)
def test_a_conv_transpose_is_linear_in_its_patches(case: str, groups: int) -> None:
    """W · patches + b is what ONNX Runtime puts out, position by position."""
    sizes, kernel, attributes = UPWARD[case]
    inputs, outputs = 4, 6
    names = ",".join(["N", str(inputs), *map(str, sizes)])
    text = ", ".join(filter(None, [attributes, f"group={groups}"]))
    w, b = nets.weight(inputs, outputs // groups, *kernel), nets.signal(outputs, seed=5)
    proto = nets.model(
        f"m (float[{names}] x) => (float y) {{ y = ConvTranspose <{text}> (x, w, b) }}", w=w, b=b
    )
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [None] * (2 + len(sizes))))
    x = nets.signal(3, inputs, *sizes)
    expected = nets.run(proto, x=x)["y"]
    geometry = _adjoint_geometry(proto.graph.node[0], kernel, x.shape[2:], expected.shape[2:])
    found = np.concatenate(list(patches(x, geometry))).astype(np.float64)
    products = [
        np.einsum("ntc,cdt->nd", part, own.reshape(*own.shape[:2], -1))
        for part, own in zip(np.split(found, groups, 2), np.split(w.astype(np.float64), groups), strict=True)
    ]
    rows = (np.concatenate(products, axis=1) + b).reshape(len(x), *expected.shape[2:], outputs)
    assert nets.distance(expected.astype(np.float64), np.moveaxis(rows, -1, 1)) < 1e-6


OPTIONS = {"stride": (2, 1), "padding": (1, 0), "output_padding": (1, 0), "dilation": (1, 2)}
ATTRIBUTES = {"strides": (2, 1), "pads": (1, 0, 1, 0), "output_padding": (1, 0), "dilations": (1, 2)}


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_least_squares_are_those_of_torch(rank: int | None) -> None:
    """Every column of the design is what torch spreads of one weight of 1; Izenman's rank from its SVD."""
    inputs, outputs, kernel = 3, 5, (3, 2)
    x = torch.from_numpy(nets.structured(8, inputs, 6, 5, seed=1, dtype=np.float64))
    basis = torch.eye(inputs * 6, dtype=torch.float64).reshape(-1, inputs, 1, *kernel)
    columns = torch.stack([functional.conv_transpose2d(x, one, **OPTIONS).reshape(-1) for one in basis], 1)
    count, places = len(columns), columns.shape[0] // len(x)
    wanted = columns @ torch.from_numpy(nets.signal(inputs * 6, outputs, dtype=np.float64))
    noise = torch.from_numpy(nets.signal(count, outputs, seed=3, dtype=np.float64))
    y = wanted + noise + 2

    design, centred = columns - columns.mean(0), y - y.mean(0)
    solution = torch.linalg.lstsq(design, centred).solution
    if rank is not None:
        leading = torch.linalg.svd(design @ solution, full_matrices=False).Vh[:rank]
        solution = solution @ leading.T @ leading
    expected = solution.numpy().reshape(inputs, 6, outputs).transpose(2, 1, 0).reshape(outputs, -1)

    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **ATTRIBUTES)
    sizes = tuple(functional.conv_transpose2d(x, basis[0], **OPTIONS).shape[2:])
    assert places == np.prod(sizes)
    geometry = _adjoint_geometry(node, kernel, tuple(x.shape[2:]), sizes)
    (found,) = patches(x.numpy(), geometry)
    moments = Moments.zero(outputs, inputs * 6).add(found.reshape(count, -1), y.numpy().astype(np.float32))
    fitted = fit_low_rank(Problem.of(moments, centred=True), 6, None, rank, rounds=1).weight()
    assert nets.distance(expected, fitted) < 1e-4


# Nets
# ----

# Up again from half the size, beside what was seen before; and images made of noise, as a DCGAN does.
UNET = """m (float[N,4,12,12] x) => (float[N,8,12,12] y) {
  [seen] a = Conv <pads=[1,1,1,1]> (x, w1, b1)
  ra = Relu (a)
  [deep] b = Conv <strides=[2,2], pads=[1,1,1,1]> (ra, w2, b2)
  rb = Relu (b)
  [up] c = ConvTranspose <strides=[2,2]> (rb, w3, b3)
  d = Concat <axis=1> (ra, c)
  [join] y = Conv <pads=[1,1,1,1]> (d, w4)
}"""
GENERATOR = """m (float[N,16,1,1] x) => (float[N,8,16,16] y) {
  [one] a = ConvTranspose (x, w1)
  na = BatchNormalization (a, s1, b1, m1, v1)
  ra = Relu (na)
  [two] b = ConvTranspose <strides=[2,2], pads=[1,1,1,1]> (ra, w2)
  nb = BatchNormalization (b, s2, b2, m2, v2)
  rb = Relu (nb)
  [three] c = ConvTranspose <strides=[2,2], pads=[1,1,1,1]> (rb, w3, b3)
  y = Tanh (c)
}"""


def unet() -> ModelProto:
    shapes = ((16, 4, 3, 3), (24, 16, 3, 3), (24, 16, 2, 2), (8, 32, 3, 3))
    arrays = {f"w{i}": nets.weight(*shape, seed=i) for i, shape in enumerate(shapes, 1)}
    return nets.model(UNET, **arrays, **{f"b{i}": nets.signal(n) for i, n in ((1, 16), (2, 24), (3, 16))})


def generator() -> ModelProto:
    shapes = ((16, 24, 4, 4), (24, 16, 4, 4), (16, 8, 4, 4))
    # Every output sees a quarter of the taps, or a single one.
    arrays = {f"w{i}": 2 * nets.weight(*shape, seed=i) for i, shape in enumerate(shapes, 1)}
    for i, (_, channels, *_) in enumerate(shapes[:2], 1):
        arrays |= {f"{name}{i}": nets.signal(channels, seed=i + 10) for name in "bm"}
        arrays |= {f"{name}{i}": np.abs(nets.signal(channels, seed=i + 20)) + 0.5 for name in "sv"}
    return nets.model(GENERATOR, **arrays, b3=nets.signal(8))


NETS = {
    "unet": (unet, lambda count, seed: nets.structured(count, 4, 12, 12, seed=seed)),
    "generator": (generator, lambda count, seed: nets.signal(count, 16, 1, 1, seed=seed)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_net_at_full_rank_is_the_same_and_fitted_it_is_nearer_than_plain(name: str) -> None:
    made, inputs = NETS[name]
    proto, fresh = made(), inputs(32, 2)
    expected = nets.run(proto, x=fresh)["y"]

    def distance(rank: str, data: Samples | None) -> float:
        done = rewrite(proto, rank, policy=nets.ANYTHING, data=data)
        assert set(done.plan.sites) == {site.name for site in find_sites(proto)}
        return nets.distance(expected, nets.run(done.model, x=fresh)["y"])

    assert distance(nets.FULL_RANK, None) <= 2e-4
    samples = open_samples([{"x": inputs(64, 1)}], proto)
    assert distance("0.4", samples) < 0.8 * distance("0.4", None)
