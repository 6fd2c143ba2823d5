"""A chain in the place of one site: the one place where the links of a chain become nodes and tensors.

A rewrite, a fit that walks on behind a site it has fitted, and the timing of a site alone all come here; they
differ in where names come from and in what becomes of the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto

from onnxdecomp.factors import Chain, Floats
from onnxdecomp.ir import Anchor, turned
from onnxdecomp.lowering.nodes import Wiring, cast_node, chain_nodes, constant_tensor, link_op


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lowered:
    """A chain in the place of one site.

    Attributes:
        nodes: casts of the chain's weights, then the chain in order; its last one writes what the site wrote.
        tensors: that these nodes read beside the links' weights: a new bias, zeros.
        replaced: the nodes they stand for: the site's, and a BatchNormalization that is folded.
        unread: names of tensors that those read and these do not.
    """

    nodes: tuple[NodeProto, ...]
    tensors: tuple[TensorProto, ...]
    replaced: tuple[NodeProto, ...]
    unread: tuple[str, ...]


def lower_weights(anchor: Anchor, chain: Chain, names: Sequence[str]) -> list[TensorProto]:
    """The links' weights as tensors of the type that its own weight is stored in, as operators store them."""
    values = (
        turned(link.weight, link.groups)
        if anchor.transposed and link_op(anchor.site.op, link) == anchor.site.op
        else link.weight
        for link in chain.links
    )
    data_type = anchor.constant.factor_type
    return [constant_tensor(name, array, data_type) for name, array in zip(names, values, strict=True)]


def lower_chain(
    anchor: Anchor,
    chain: Chain,
    weights: Sequence[str],
    *,
    bias: Floats | None,
    folder: Path,
    fresh: Callable[[str], str],
) -> Lowered:
    """The nodes of a chain in the place of a site.

    Args:
        anchor: of the site.
        chain: with one link or more.
        weights: names of the tensors that hold the links' weights.
        bias: of the last link, shape (D,); None is what the site, with its BatchNormalization, adds.
        folder: where the model's external data lie.
        fresh: makes a name of a wanted one.
    """
    node, batchnorm = anchor.node, anchor.batchnorm
    names = tuple(fresh(f"{anchor.site.name}/{link.role}") for link in chain.links)
    own_bias = next(filter(None, node.input[2:3]), None)
    unread = [node.input[1]]
    if batchnorm is not None:
        unread += batchnorm.node.input[1:]
        bias = batchnorm.affine(folder)[1] if bias is None else bias
    added = {}
    if bias is not None:
        unread += [own_bias] if own_bias else []
        own_bias = fresh(f"{names[-1]}.bias")
        added[own_bias] = bias
    zeros = None
    if anchor.site.op == "Gemm" and anchor.scope.opset < 11:  # C became optional in Gemm-11
        zeros = fresh(f"{names[0]}.bias")
        added[zeros] = np.zeros(len(chain.links[0].weight))
    data_type, casts = anchor.constant.data_type, []
    if anchor.constant.factor_type != data_type:
        casts = [cast_node(weight, fresh(f"{weight}_cast"), data_type) for weight in weights]
    wiring = Wiring(
        nodes=names,
        weights=tuple(cast.output[0] for cast in casts) or tuple(weights),
        inner=tuple(fresh(f"{name}_output") for name in names[:-1]),
        output=anchor.output,
        bias=own_bias,
        zeros=zeros,
    )
    return Lowered(
        nodes=(*casts, *chain_nodes(node, chain.links, wiring)),
        tensors=tuple(constant_tensor(name, array, data_type) for name, array in added.items()),
        replaced=(node, batchnorm.node) if batchnorm is not None else (node,),
        unread=tuple(unread),
    )
