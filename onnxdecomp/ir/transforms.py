"""Fixed transforms: weights that nobody trained, as front ends of audio and image models have them.

They are known by what they are. A Conv of one input channel that moves by many samples at a time cuts sound
into frames, as a short-time Fourier transform does. Others stand at the model's inputs, with nothing trained
before them: banks of orthogonal filters of equal norm (a DCT, wavelets), matrices of colours, blurs of each
channel by itself. Low rank would blur what is exact there, and the error reaches everything behind.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import NodeProto

from onnxdecomp.ir.cones import tensor_key
from onnxdecomp.ir.finite import NotFiniteError, read_finite_weight
from onnxdecomp.ir.graph import ONNX_DOMAINS, Scope, subgraphs
from onnxdecomp.ir.sites import LINEAR_OPS, Anchor, Site
from onnxdecomp.ir.weights import Constants

# Samples that trained layers of one channel do not move by, and frames of sound do.
_LARGE_STRIDE = 16
_COLOURS = 3
# Relative to the rows' squared norm: float32 rounds a table of cosines to some 1e-6, float16 to 1e-3.
_TOLERANCE = 2e-3
# Banks of filters are small; nothing larger is read.
_MOST_PARAMS = 1 << 22
_TRAINED = (
    "Conv",
    "ConvTranspose",
    "DeformConv",
    "ConvInteger",
    "QLinearConv",
    "MatMulInteger",
    "QLinearMatMul",
    *LINEAR_OPS,
    "Einsum",
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "PRelu",
    "LSTM",
    "GRU",
    "RNN",
)


def with_transforms(anchors: Sequence[Anchor], main: Scope, constants: Constants) -> list[Anchor]:
    """The anchors, those of fixed transforms marked as such.

    Args:
        anchors: of a model.
        main: the scope of its main graph.
        constants: of the model; the weights of sites at its inputs are read.
    """
    found = {id(a): transform for a in anchors if (transform := _framing(a.site)) is not None}
    by_node = {id(anchor.node): anchor for anchor in anchors}
    raw = {main.tensor(name) for name in main.inputs} - constants.fixed
    for node in main.body.node:
        sources = {tensor_key(main, name) for name in filter(None, node.input)} - constants.fixed
        if not sources or not sources <= raw:
            continue
        anchor = by_node.get(id(node))
        if anchor is not None and id(anchor) not in found:
            transform = _front(anchor, constants.model.folder)
            if transform is not None:
                found[id(anchor)] = transform
        if (anchor is not None and id(anchor) in found) or _passes(node):
            raw.update(main.tensor(name) for name in filter(None, node.output))
    return [
        dataclasses.replace(a, site=dataclasses.replace(a.site, transform=found[id(a)]))
        if id(a) in found
        else a
        for a in anchors
    ]


def _passes(node: NodeProto) -> bool:
    """Whether `node` is of a kind that nobody trains."""
    return (
        node.domain in ONNX_DOMAINS and node.op_type not in _TRAINED and next(subgraphs(node), None) is None
    )


def _framing(site: Site) -> str | None:
    wide = [axis for axis, size in enumerate(site.kernel) if size > 1]
    if site.op != "Conv" or site.obstacle is not None or site.channels is None:
        return None
    if site.channels[0] != 1 or len(wide) != 1:
        return None
    step = site.strides[wide[0]] if len(site.strides) == len(site.kernel) else 1
    return f"frames of one channel, {step} samples apart" if step >= _LARGE_STRIDE else None


def _front(anchor: Anchor, folder: Path) -> str | None:
    """What the weight of a site at the model's inputs is, None where it may have been trained."""
    site = anchor.site
    if site.obstacle is not None or site.channels is None or not 0 < (site.params or 0) <= _MOST_PARAMS:
        return None
    try:
        weight = read_finite_weight(dataclasses.replace(anchor, batchnorm=None), folder)
    except NotFiniteError:  # told where it is to be factored
        return None
    taps, (inputs, outputs) = math.prod(site.kernel), site.channels
    if site.op == "Conv" and taps == 1 and inputs == _COLOURS and outputs in (1, _COLOURS):
        return "a matrix of colours at the model's input"
    if site.op == "Conv" and taps > 1 and 1 < inputs == outputs == len(weight) and site.groups == 1:
        apart = weight[~np.eye(inputs, dtype=bool)]
        if weight.any() and not apart.any():
            return "a filter of each channel by itself at the model's input"
    groups = np.split(weight.reshape(outputs, -1), site.groups or 1)
    return (
        "orthogonal filters of equal norm at the model's input" if all(map(_is_orthogonal, groups)) else None
    )


def _is_orthogonal(rows: np.ndarray) -> bool:
    """Whether the rows of a matrix are orthogonal to each other and of one norm."""
    if not 1 < len(rows) <= rows.shape[1]:
        return False
    products = rows @ rows.T
    square = float(np.trace(products)) / len(rows)
    return bool(np.abs(products - square * np.eye(len(rows))).max() < _TOLERANCE * square)
