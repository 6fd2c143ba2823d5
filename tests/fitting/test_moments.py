"""Patches against explicit loops and ONNX Runtime's own convolutions; moments against NumPy's."""

from __future__ import annotations

import itertools
from typing import Any

import nets
import numpy as np
import pytest
import torch
from onnx import helper

from onnxdecomp.fitting import Moments, moments
from onnxdecomp.fitting.heads import _geometry
from onnxdecomp.fitting.moments import Geometry, patches, total


def geometry(kernel: tuple[int, ...], **options: Any) -> Geometry:
    ones, nothing = (1,) * len(kernel), ((0, 0),) * len(kernel)
    return Geometry(**({"kernel": kernel, "strides": ones, "dilations": ones, "pads": nothing} | options))


def loop(x: np.ndarray, g: Geometry) -> np.ndarray:
    """The definition: value (c, tap) of each position, zeros where it is in the padding."""
    sizes = [
        (size + sum(pads) - (1 + (k - 1) * d)) // step + 1
        for size, k, step, d, pads in zip(x.shape[2:], g.kernel, g.strides, g.dilations, g.pads, strict=True)
    ]
    rows = []
    for sample, *position in itertools.product(range(len(x)), *map(range, sizes)):
        row = np.zeros((int(np.prod(g.kernel)), x.shape[1]))
        for tap, offset in enumerate(itertools.product(*map(range, g.kernel))):
            at = [
                p * step + o * d - before
                for p, step, o, d, (before, _) in zip(
                    position, g.strides, offset, g.dilations, g.pads, strict=True
                )
            ]
            if all(0 <= i < size for i, size in zip(at, x.shape[2:], strict=True)):
                row[tap] = x[(sample, slice(None), *at)]
        rows.append(row)
    return np.array(rows)


GEOMETRIES = {
    "1-D": ((9,), geometry((3,))),
    "1-D strided, dilated": ((11,), geometry((3,), strides=(2,), dilations=(2,), pads=((3, 1),))),
    "1x1": ((4, 5), geometry((1, 1))),
    "1x1 strided": ((5, 6), geometry((1, 1), strides=(2, 3))),
    "2-D": ((6, 5), geometry((3, 3), pads=((1, 1), (1, 1)))),
    "2-D, nothing equal": (
        (9, 8),
        geometry((3, 2), strides=(2, 3), dilations=(1, 2), pads=((0, 2), (3, 1))),
    ),
    "3-D": (
        (4, 5, 6),
        geometry((2, 3, 1), strides=(1, 2, 1), dilations=(2, 1, 1), pads=((1, 0), (0, 2), (0, 0))),
    ),
}


@pytest.mark.parametrize("case", GEOMETRIES)
@pytest.mark.parametrize("block", [1, 1 << 27], ids=["a sample at a time", "at once"])
def test_patches_are_those_of_the_definition(case: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_BLOCK", block)
    sizes, g = GEOMETRIES[case]
    x = nets.signal(3, 2, *sizes)
    found = list(patches(x, g))
    assert len(found) == (3 if block == 1 else 1)
    assert np.array_equal(np.concatenate(found), loop(x, g))


def test_patches_are_those_of_torch_unfold() -> None:
    x = nets.signal(2, 3, 10, 9)
    g = geometry((3, 2), strides=(2, 1), dilations=(1, 3), pads=((2, 2), (1, 1)))
    unfold = torch.nn.Unfold(g.kernel, dilation=g.dilations, padding=(2, 1), stride=g.strides)
    expected = (
        unfold(torch.from_numpy(x)).numpy().reshape(2, 3, 6, -1).transpose(0, 3, 2, 1).reshape(-1, 6, 3)
    )
    assert np.array_equal(np.concatenate(list(patches(x, g))), expected)


def test_an_input_of_no_axes_has_rows_for_patches() -> None:
    x = nets.signal(5, 7)
    (found,) = patches(x, geometry(()))
    assert np.array_equal(found, x[:, None])


def test_patches_of_other_types_are_single_precision() -> None:
    for dtype in (np.float16, np.float64):
        x = nets.signal(2, 3, 4, 4, dtype=dtype)
        (found,) = patches(x, geometry((2, 2)))
        assert found.dtype == np.float32
        assert np.array_equal(found, loop(x, geometry((2, 2))).astype(np.float32))


# What ONNX Runtime makes of the same attributes
# ----------------------------------------------

# Sizes, kernel, attributes.
CONVS = {
    "no attributes": ((6, 7), (3, 3), ""),
    "pads": ((6, 7), (3, 3), "pads=[0,2,1,3]"),
    "strides, dilations": ((11, 12), (3, 2), "strides=[2,3], dilations=[2,1], pads=[1,0,2,1]"),
    "valid": ((8, 9), (3, 2), 'auto_pad="VALID", strides=[2,1]'),
    "notset": ((8, 9), (3, 2), 'auto_pad="NOTSET", pads=[1,0,0,1]'),
    **{
        f"{auto} {name}": (sizes, kernel, f'auto_pad="{auto}"{rest}')
        for auto in ("SAME_UPPER", "SAME_LOWER")
        for name, sizes, kernel, rest in (
            ("even kernel", (6, 7), (2, 4), ""),
            ("strided", (9, 10), (3, 4), ", strides=[2,3]"),
            ("stride beyond the kernel", (7, 8), (1, 2), ", strides=[3,3]"),
            ("1-D", (9,), (4,), ", strides=[2]"),
            ("3-D", (4, 5, 6), (2, 3, 2), ", strides=[1,2,1]"),
        )
    },
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("case", CONVS)
def test_a_convolution_is_linear_in_its_patches(case: str, groups: int) -> None:
    """W · patches + b is what ONNX Runtime puts out, position by position."""
    sizes, kernel, attributes = CONVS[case]
    inputs, outputs = 4, 6
    names = ",".join(["N", str(inputs), *map(str, sizes)])
    text = ", ".join(filter(None, [attributes, f"group={groups}"]))
    w, b = nets.weight(outputs, inputs // groups, *kernel), nets.signal(outputs, seed=5)
    proto = nets.model(f"m (float[{names}] x) => (float y) {{ y = Conv <{text}> (x, w, b) }}", w=w, b=b)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [None] * (2 + len(sizes))))
    x = nets.signal(3, inputs, *sizes)
    expected = nets.run(proto, x=x)["y"]
    found = np.concatenate(list(patches(x, _geometry(proto.graph.node[0], kernel, x.shape[2:]))))
    parts = np.split(found.astype(np.float64), groups, axis=2)
    rows = [part.reshape(len(part), -1) for part in parts]
    matrices = np.split(np.moveaxis(w.astype(np.float64), 1, -1).reshape(outputs, -1), groups)
    products = np.concatenate([x @ m.T for x, m in zip(rows, matrices, strict=True)], axis=1) + b
    actual = np.moveaxis(products.reshape(len(x), *expected.shape[2:], outputs), -1, 1)
    assert nets.distance(expected.astype(np.float64), actual) < 1e-6


# Sums
# ----


def correlated(count: int, width: int, seed: int) -> np.ndarray:
    values = nets.signal(count, width, seed=seed) @ nets.signal(width, width, seed=seed + 1)
    return np.maximum(values, 0).astype(np.float32)


def gathered(x: np.ndarray, y: np.ndarray, cuts: list[int]) -> Moments:
    found = Moments.zero(y.shape[1], x.shape[1])
    for some_x, some_y in zip(np.split(x, cuts), np.split(y, cuts), strict=True):
        found = found.add(some_x, some_y)
    return found


def test_moments_are_those_of_numpy() -> None:
    x, y = correlated(1000, 7, seed=1), correlated(1000, 3, seed=11)
    m = gathered(x, y, [10, 600])
    wide, tall = x.astype(np.float64), y.astype(np.float64)
    assert m.count == 1000
    for found, expected in (
        (m.x, wide.sum(axis=0)),
        (m.y, tall.sum(axis=0)),
        (m.xx, wide.T @ wide),
        (m.yx, tall.T @ wide),
        (m.yy, (tall**2).sum(axis=0)),
    ):
        assert found.dtype == np.float64 and found.shape == expected.shape
        assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)
    whole = np.cov(np.concatenate([wide, tall], axis=1).T, bias=True)
    n = m.count
    assert nets.distance(whole[:7, :7], m.xx / n - np.multiply.outer(m.x, m.x) / n**2) < 1e-5
    assert nets.distance(whole[7:, :7], m.yx / n - np.multiply.outer(m.y, m.x) / n**2) < 1e-5


def test_moments_add_up() -> None:
    x, y = correlated(900, 6, seed=3), correlated(900, 4, seed=7)
    parts = [gathered(a, b, []) for a, b in zip(np.split(x, 3), np.split(y, 3), strict=True)]
    before = [part.xx.copy() for part in parts]
    whole, summed = gathered(x, y, []), total(parts)
    for name in Moments.__slots__:
        assert np.allclose(getattr(whole, name), getattr(summed, name), rtol=1e-5)
    assert all(np.array_equal(a, part.xx) for a, part in zip(before, parts, strict=True)), (
        "parts were changed"
    )
    assert summed.means().count == 900
    assert np.array_equal(summed.means().x, summed.x) and np.array_equal(summed.means().y, summed.y)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "y"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_moments_know_what_is_not_finite(bad: float, where: str) -> None:
    x, y = correlated(20, 4, seed=1), correlated(20, 3, seed=2)
    assert gathered(x, y, []).finite()
    {"x": x, "y": y}[where][3, 1] = bad
    assert not gathered(x, y, []).finite()
