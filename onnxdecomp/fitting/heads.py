"""How the output of a site follows from the patches of its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import NodeProto

from onnxdecomp.factors import Floats
from onnxdecomp.fitting.moments import Geometry, patches
from onnxdecomp.ir import Anchor, Array, Constant, Constants, attribute, ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """How the output of a site follows from its product: alpha · W·x + beta · bias.

    Attributes:
        anchor: of the site.
        output: the tensor that its chain will write.
        bias: shape (D,).
        alpha: 1 but for a Gemm.
        beta: likewise.
        centred: whether it has a bias that can be changed.
    """

    anchor: Anchor
    output: str
    bias: Floats
    alpha: float
    beta: float
    centred: bool

    @property
    def scale(self) -> float:
        """What a shift of the product is in the bias."""
        return self.alpha / self.beta if self.centred else 0.0


def find_head(anchor: Anchor, folder: Path, constants: Constants) -> Head | str:
    """How the output of a site follows from its product W·x, or why it cannot be fitted.

    Args:
        anchor: of the site.
        folder: where the model's external data lie.
        constants: of the model, among which its bias has to be.
    """
    if anchor.scope.path or anchor.scope.graph is None:
        return "it stands inside another node's graph or a function"
    outputs = (anchor.site.channels or (0, 0))[1]
    name = None if anchor.batchnorm is not None else (*anchor.node.input[2:3], "")[0] or None
    bias: Floats = np.zeros(outputs)
    if anchor.batchnorm is not None:
        bias = anchor.batchnorm.affine(folder)[1]
    elif name is not None:
        constant = constants.find(anchor.scope, name)
        if not isinstance(constant, Constant):
            return "its bias is no constant"
        with np.errstate(invalid="ignore"):  # of a signalling NaN
            values = constant.values(folder).astype(np.float64)
        if values.size != 1 and (values.size != outputs or values.shape[-1] != outputs):
            return "its bias has a row for each sample"
        bias = np.broadcast_to(values.reshape(-1), (outputs,)).copy()
    output = anchor.output
    if not anchor.site.linear:
        return Head(anchor=anchor, output=output, bias=bias, alpha=1.0, beta=1.0, centred=True)
    scales = {a.name: a.f for a in anchor.node.attribute if a.name in ("alpha", "beta")}
    alpha, beta = scales.get("alpha", 1.0), scales.get("beta", 1.0)
    if not alpha:
        return "its alpha is 0"
    centred = name is not None and beta != 0
    return Head(anchor=anchor, output=output, bias=bias, alpha=alpha, beta=beta, centred=centred)


def blocks(
    head: Head, weight: Floats, x: Array, y: Array, groups: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Patches (n, P) and products (n, D) of one run, block by block, the groups of each block in turn."""
    node, site = head.anchor.node, head.anchor.site
    if site.linear:
        turned = attribute(node, "transA")
        x = (x.T if turned is not None and turned.i else x).reshape(-1, weight.shape[1])
        y = y.reshape(-1, weight.shape[0])
    kernel, sizes = weight.shape[2:], x.shape[2:]
    geometry = (
        _adjoint_geometry(node, kernel, sizes, y.shape[2:])
        if site.adjoint
        else _geometry(node, kernel, sizes)
    )
    products = np.moveaxis(y, 1, -1).astype(np.float32) - np.float32(head.beta) * head.bias.astype(np.float32)
    products = products.reshape(-1, weight.shape[0]) / np.float32(head.alpha)
    width, depth = x.shape[1] // groups, weight.shape[0] // groups
    start = 0
    for block in patches(x, geometry):
        rows = products[start : start + len(block)]
        start += len(block)
        for group in range(groups):
            part = block[..., group * width : (group + 1) * width].reshape(len(block), -1)
            yield part, rows[:, group * depth : (group + 1) * depth]


def _geometry(node: NodeProto, kernel: tuple[int, ...], sizes: tuple[int, ...]) -> Geometry:
    """The geometry of a Conv on inputs of these sizes, automatic padding worked out (operator Conv)."""
    axes = len(kernel)
    strides = ints(node, "strides") or (1,) * axes
    dilations = ints(node, "dilations") or (1,) * axes
    explicit = ints(node, "pads") or (0,) * (2 * axes)
    pads = tuple(zip(explicit[:axes], explicit[axes:], strict=True))
    auto = _auto_pad(node)
    if auto == "VALID":
        pads = ((0, 0),) * axes
    elif auto.startswith("SAME"):
        spans = [1 + (k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        lacking = [
            max((-(-size // step) - 1) * step + span - size, 0)
            for size, step, span in zip(sizes, strides, spans, strict=True)
        ]
        halves = [(lack // 2, lack - lack // 2) for lack in lacking]
        pads = tuple((b, a) if auto == "SAME_LOWER" else (a, b) for a, b in halves)
    return Geometry(kernel=kernel, strides=strides, dilations=dilations, pads=pads)


def _auto_pad(node: NodeProto) -> str:
    found = attribute(node, "auto_pad")
    return found.s.decode() if found is not None else "NOTSET"


def _adjoint_geometry(
    node: NodeProto, kernel: tuple[int, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> Geometry:
    """The geometry of a ConvTranspose from inputs to outputs of these sizes (operator ConvTranspose).

    Its pads take away from the output that all inputs spread to; where the output's size is given, or follows
    from SAME, they are what is too much.
    """
    ones = (1,) * len(kernel)
    strides, dilations = ints(node, "strides") or ones, ints(node, "dilations") or ones
    cuts = ints(node, "pads") or (0,) * len(kernel)
    more = ints(node, "output_padding") or (0,) * len(kernel)
    auto, pads = _auto_pad(node), []
    for i, (size, out) in enumerate(zip(inputs, outputs, strict=True)):
        wide, reach = (size - 1) * strides[i] + 1, (kernel[i] - 1) * dilations[i]
        cut = 0 if auto == "VALID" else cuts[i]
        if auto.startswith("SAME") or attribute(node, "output_shape") is not None:
            surplus = max(wide + reach + more[i] - out, 0)
            cut = surplus // 2 if auto == "SAME_UPPER" else surplus - surplus // 2
        pads.append((reach - cut, out + cut - wide))
    return Geometry(kernel=kernel, strides=ones, dilations=dilations, pads=tuple(pads), spread=strides)
