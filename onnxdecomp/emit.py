"""Chains as protobuf: nodes and tensors built by onnx-graphsurgeon, ready to be spliced into a model.

Only the chain goes through graphsurgeon, never the user's model, whose metadata, annotations and rarer
attributes would not survive the journey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxdecomp.factors import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The names that connect one chain to its graph.

    Attributes:
        nodes: one per link.
        weights: tensor holding each link's weight.
        inner: tensors between the links.
        output: what the last link writes.
        bias: what the last link adds, None for nothing.
    """

    nodes: tuple[str, ...]
    weights: tuple[str, ...]
    inner: tuple[str, ...]
    output: str
    bias: str | None


def chain_nodes(conv: NodeProto, links: Sequence[Link], groups: int, wiring: Wiring) -> list[NodeProto]:
    """The Conv nodes of a chain in place of `conv`.

    The core takes over all of `conv`'s attributes as they stand (strides, pads, auto_pad, dilations, also
    references to a function's attributes); every node carries its domain, doc string and metadata.
    """
    tensors = [gs.Variable(name) for name in (conv.input[0], *wiring.inner, wiring.output)]
    graph = gs.Graph()
    for i, link in enumerate(links):
        last = i == len(links) - 1
        bias = [gs.Variable(wiring.bias)] if last and wiring.bias else []
        attrs = {"kernel_shape": [1] * (link.weight.ndim - 2)} | ({"group": groups} if groups > 1 else {})
        graph.nodes.append(
            gs.Node(
                op="Conv",
                name=wiring.nodes[i],
                attrs={} if link.is_core else attrs,
                inputs=[tensors[i], gs.Variable(wiring.weights[i]), *bias],
                outputs=[tensors[i + 1]],
                domain=conv.domain or None,
            )
        )
    nodes = list(gs.export_onnx(graph, do_type_check=False).graph.node)
    for node, link in zip(nodes, links, strict=True):
        if link.is_core:
            node.attribute.extend(conv.attribute)
        node.doc_string = conv.doc_string
        node.metadata_props.extend(conv.metadata_props)
    return nodes


def constant_tensor(name: str, values: NDArray[np.float64], data_type: int) -> TensorProto:
    """`values` as an initialiser of the ONNX element type `data_type`, its raw data inside."""
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    tensor: TensorProto = OnnxExporter.export_tensor_proto(gs.Constant(name, values.astype(dtype)))
    return tensor


def constant_node(tensor: TensorProto) -> NodeProto:
    """A Constant node that yields `tensor` under its name, for places that have no initialisers."""
    node: NodeProto = OnnxExporter.export_node(gs.Node("Constant", outputs=[gs.Variable(tensor.name)]))
    value = node.attribute.add(name="value", type=AttributeProto.TENSOR)
    value.t.CopyFrom(tensor)
    return node
