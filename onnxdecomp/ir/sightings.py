"""Convolutions that are seen, and left as they are: what quantisation or offline optimisation made of Convs.

A model that holds some has less to decompose than it has arithmetic, and whoever reads the list of its sites
should see why, and what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from onnx import NodeProto

from onnxdecomp.ir.anchors import Tables, known_groups, known_shape, known_sizes, visible_shape
from onnxdecomp.ir.graph import ONNX_DOMAINS, Scope, flag, ints
from onnxdecomp.ir.sites import FLOAT_TYPES, Anchor, Site
from onnxdecomp.ir.tensors import type_name
from onnxdecomp.ir.weights import FLOAT_FIRST, Constant

_OPTIMISED = "made by ONNX Runtime's offline optimisation: export the model again without that"
_QUANTISED = f"its weight is quantised: {FLOAT_FIRST}"
_MOVING = "its taps move with its input, as no chain's do"


@dataclass(frozen=True, slots=True)
class _Kind:
    """An operator that convolves: which input is its weight (OIHW), why it is left, its images' layout."""

    weight: int
    obstacle: str
    channels_last: bool = False


# By domain and operator; "" stands for the default domain. Schemas: onnx/docs/Operators.md and
# onnxruntime/docs/ContribOperators.md; the inner domains are those of graphs that ONNX Runtime saved.
_KINDS = {
    ("", "ConvInteger"): _Kind(1, _QUANTISED),
    ("", "QLinearConv"): _Kind(3, _QUANTISED),
    ("", "DeformConv"): _Kind(1, _MOVING),
    ("com.microsoft", "QLinearConv"): _Kind(3, _QUANTISED),
    ("com.microsoft", "FusedConv"): _Kind(1, _OPTIMISED),
    ("com.microsoft", "NhwcConv"): _Kind(1, _OPTIMISED, channels_last=True),
    ("com.microsoft", "NhwcFusedConv"): _Kind(1, _OPTIMISED, channels_last=True),
    ("com.microsoft.nchwc", "Conv"): _Kind(1, _OPTIMISED),
    ("com.ms.internal.nhwc", "Conv"): _Kind(1, _OPTIMISED, channels_last=True),
    ("com.ms.internal.nhwc", "FusedConv"): _Kind(1, _OPTIMISED, channels_last=True),
    ("com.ms.internal.nhwc", "QLinearConv"): _Kind(3, _QUANTISED, channels_last=True),
}


def seen_anchor(scope: Scope, key: str, node: NodeProto, tables: Tables) -> Anchor | None:
    """The anchor of a convolution that is always left as it is; None for any other node."""
    kind = _kind(node)
    if kind is None or len(node.input) <= kind.weight or not node.output:
        return None
    weight = tables.constants.find(scope, node.input[kind.weight])
    constant = weight if isinstance(weight, Constant) else None
    shape = constant.shape if constant else known_shape(scope, node.input[kind.weight], tables.shapes)
    groups, kernel = known_groups(node), shape[2:] if shape else (ints(node, "kernel_shape") or ())
    before, after = (
        shape and channels_first(node, shape)
        for shape in (visible_shape(scope, n, tables.shapes) for n in (node.input[0], node.output[0]))
    )
    site = Site(
        name=scope.path + key,
        op=node.op_type,
        dtype=FLOAT_TYPES.get(constant.data_type, type_name(constant.data_type)) if constant else None,
        kernel=kernel,
        channels=(shape[1] * groups, shape[0]) if shape and groups and len(shape) > 2 else None,
        groups=groups,
        strides=ints(node, "strides") or (1,) * len(kernel),
        sizes=known_sizes(before, after),
        separable=False,
        computed_by=constant.computed_by if constant else (),
        obstacle=f"a {node.op_type}: {kind.obstacle}",
    )
    return Anchor(site=site, scope=scope, node=node, weight=None, batchnorm=None)


_Dim = TypeVar("_Dim")


def channels_first(node: NodeProto, shape: tuple[_Dim, ...]) -> tuple[_Dim, ...]:
    """The shape of what a convolution reads or writes, its channels moved to axis 1."""
    kind = _kind(node)
    last = kind is not None and (kind.channels_last or flag(node, "channels_last"))
    return shape[:1] + shape[-1:] + shape[1:-1] if last and len(shape) > 2 else shape


def _kind(node: NodeProto) -> _Kind | None:
    return _KINDS.get(("" if node.domain in ONNX_DOMAINS else node.domain, node.op_type))
