"""Sites: a Conv, a ConvTranspose or a product with a constant matrix: geometry, cost, obstacles, place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, TensorProto

from onnxdecomp.abridging import abridged
from onnxdecomp.ir.batchnorm import BatchNorm
from onnxdecomp.ir.graph import Scope, flag
from onnxdecomp.ir.weights import Constant

FLOAT_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}


CONV_OPS = ("Conv", "ConvTranspose")
LINEAR_OPS = ("Gemm", "MatMul")


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One Conv or ConvTranspose (any rank), Gemm or MatMul with a constant right-hand side, and its cost.

    An example is in docs/python.md under "Looking into a model".

    Attributes:
        name: unique key in the model: the path of its subgraph or function, then the node's name if that
            is unique and not empty, else its output tensor.
        op: "Conv", "ConvTranspose", "Gemm" or "MatMul", or another convolution, as "QLinearConv", that is
        only listed.
        dtype: element type of the weight, None where it is not known.
        kernel: spatial sizes of the kernel, empty for a matrix product or where the shape is not known.
        channels: input and output channels of the whole convolution, or rows and columns of the matrix; None
            where not known.
        groups: number of channel groups, None where a function's caller sets it.
        strides: one per spatial dimension; of a ConvTranspose they are those of its output.
        sizes: batch and spatial sizes of the input and of the output, for a matrix product its number of
            rows; None where shapes are not known.
        separable: whether its geometry is known axis by axis, and so can be shared out among convolutions.
        computed_by: the operators that compute its weight from constants; none where it is stored as it is.
        transform: what its weight is where nobody has trained it, as a bank of filters in front of a model;
            None for all others.
        obstacle: None where it can be decomposed, else a sentence saying why not.
    """

    name: str
    op: str
    dtype: str | None
    kernel: tuple[int, ...]
    channels: tuple[int, int] | None
    groups: int | None
    strides: tuple[int, ...]
    sizes: tuple[tuple[int, ...], tuple[int, ...]] | None
    separable: bool
    computed_by: tuple[str, ...]
    obstacle: str | None
    transform: str | None = None

    @property
    def linear(self) -> bool:
        """Whether it is a matrix product, whose channels come last."""
        return self.op in LINEAR_OPS

    @property
    def adjoint(self) -> bool:
        """Whether it spreads every value of its input over the output: a ConvTranspose, a Conv's adjoint."""
        return self.op == "ConvTranspose"

    @property
    def group_channels(self) -> tuple[int, int]:
        """Input and output channels of one group."""
        if self.channels is None or not self.groups:
            raise ValueError(f"{self.name}: channels or groups are not known")
        return self.channels[0] // self.groups, self.channels[1] // self.groups

    @property
    def params(self) -> int | None:
        """Elements of the weight, the bias not counted."""
        if self.channels is None or not self.groups:
            return None
        return self.channels[1] * (self.channels[0] // self.groups) * math.prod(self.kernel)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one run, None where shapes are not known.

        Every weight is met once at each position: of the output, in a ConvTranspose of the input.
        """
        if self.sizes is None or self.params is None:
            return None
        return math.prod(self.sizes[0 if self.adjoint else 1]) * self.params

    def to_dict(self) -> dict[str, Any]:
        """What the JSON of `inspect` says of the site itself."""
        channels = {"in": self.channels[0], "out": self.channels[1]} if self.channels else None
        return {
            "name": self.name,
            "op": self.op,
            "dtype": self.dtype,
            "kernel": list(self.kernel),
            "channels": channels,
            "groups": self.groups,
            "params": self.params,
            "macs": self.macs,
            "computed_by": list(self.computed_by),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anchor:
    """Where a site stands in the protobuf: what a rewrite needs beside the Site itself."""

    site: Site
    scope: Scope
    node: NodeProto
    weight: Constant | None
    batchnorm: BatchNorm | None

    @property
    def constant(self) -> Constant:
        """The weight, where it is known to be one."""
        if self.weight is None:
            raise ValueError(f"{self.site.name} has no constant weight")
        return self.weight

    @property
    def output(self) -> str:
        """The tensor that a chain in its place writes: behind a BatchNormalization that is folded."""
        last: str = (self.batchnorm.node if self.batchnorm is not None else self.node).output[0]
        return last

    @property
    def transposed(self) -> bool:
        """Whether inputs come first in the stored weight: all but a Conv's, and a Gemm's with transB."""
        return self.site.op != "Conv" and not (self.site.op == "Gemm" and flag(self.node, "transB"))
