"""The patches of a ConvTranspose against ONNX Runtime, its least squares against PyTorch in float64."""

from __future__ import annotations

import nets
import numpy as np
import pytest
import torch
from onnx import helper
from torch.nn import functional

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
