"""BatchNormalization after a convolution, as one weight and one bias.

In inference y = (x − mean) · scale / √(var + ε) + B per channel (ONNX operator BatchNormalization), so a
Conv in front of it can take the factor s = scale / √(var + ε) into its output channels and the rest into
its bias: W' = s · W, b' = s · (b − mean) + B.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnxdecomp.ir.graph import Scope, Uses, attribute, is_onnx_op
from onnxdecomp.ir.weights import Constant, Constants

_NUMERIC = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchNorm:
    """A BatchNormalization that alone consumes a Conv, all its parameters constant.

    `parameters` are scale, B, mean, variance, and the Conv's bias where it has one; each of shape (C_out,).
    """

    node: NodeProto
    parameters: tuple[Constant, ...]
    epsilon: float

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two nodes that do the same to a shared weight: bias and shift may differ."""
        scale, _, _, variance = (constant.key for constant in self.parameters[:4])
        return scale, variance, self.epsilon

    def affine(self, folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The factor s and the new bias b', each of shape (C_out,), in float64."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            scale, shift, mean, variance, *bias = (
                p.values(folder).astype(np.float64) for p in self.parameters
            )
            factor = scale / np.sqrt(variance + self.epsilon)
            return factor, factor * ((bias[0] if bias else 0.0) - mean) + shift


def find_batchnorm(
    scope: Scope, conv: NodeProto, outputs: int, uses: Uses, constants: Constants
) -> BatchNorm | None:
    """The BatchNormalization that can be folded into `conv`, which has that many `outputs`, or None.

    It must stand in the same scope, read nothing but the Conv's output and constants, be its only reader,
    and run in inference mode; the Conv's output must not be needed elsewhere.
    """
    readers = uses.readers.get(scope.tensor(conv.output[0]), [])
    if len(readers) != 1 or scope.tensor(conv.output[0]) in uses.pinned:
        return None
    node = readers[0]
    if not _infers(node, scope.opset) or node.input[0] != conv.output[0] or not _stands_in(scope, node):
        return None
    names = [*node.input[1:5], *filter(None, conv.input[2:3])]
    found = [constants.find(scope, name) for name in names]
    parameters = tuple(constant for constant in found if isinstance(constant, Constant))
    if len(parameters) != len(names) or any(p.shape != (outputs,) for p in parameters):
        return None
    if any(p.data_type not in _NUMERIC for p in parameters):
        return None
    epsilon = attribute(node, "epsilon")
    return BatchNorm(node=node, parameters=parameters, epsilon=epsilon.f if epsilon is not None else 1e-5)


def _stands_in(scope: Scope, node: NodeProto) -> bool:
    return scope.producers.get(node.output[0]) is node


def _infers(node: NodeProto, opset: int) -> bool:
    """Whether `node` is a per-channel BatchNormalization in inference mode (operator versions 1 to 15)."""
    if not is_onnx_op(node, "BatchNormalization") or len(node.input) != 5 or any(node.output[1:]):
        return False
    if any(found.ref_attr_name for found in node.attribute):
        return False
    flags = {found.name: found.i for found in node.attribute}
    if flags.get("spatial", 1) != 1 or flags.get("training_mode", 0) != 0:
        return False
    return opset >= 7 or flags.get("is_test", 0) == 1
