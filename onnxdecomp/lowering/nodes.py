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
from onnxdecomp.ir import attribute, ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The names that connect one chain to its graph.

    Attributes:
        nodes: one per link.
        weights: tensor holding each link's weight.
        inner: tensors between the links.
        output: what the last link writes.
        bias: what the last link adds, None for nothing.
        zeros: what the other links add, where the operator's version demands something; None for nothing.
    """

    nodes: tuple[str, ...]
    weights: tuple[str, ...]
    inner: tuple[str, ...]
    output: str
    bias: str | None
    zeros: str | None = None


def link_op(op: str, link: Link) -> str:
    """The operator of a link in place of an `op`: a ConvTranspose's links without a kernel are Convs."""
    return "Conv" if op == "ConvTranspose" and not link.axes else op


def chain_nodes(node: NodeProto, links: Sequence[Link], wiring: Wiring) -> list[NodeProto]:
    """The nodes of a chain in place of a Conv, ConvTranspose, Gemm or MatMul.

    Every node carries the original's domain, doc string and metadata.
    """
    attributes = _linear_attributes if links[0].weight.ndim == 2 else _conv_attributes
    tensors = [gs.Variable(name) for name in (node.input[0], *wiring.inner, wiring.output)]
    graph = gs.Graph()
    for i, link in enumerate(links):
        added = wiring.bias if i == len(links) - 1 else wiring.zeros
        bias = [gs.Variable(added)] if added else []
        graph.nodes.append(
            gs.Node(
                op=link_op(node.op_type, link),
                name=wiring.nodes[i],
                inputs=[tensors[i], gs.Variable(wiring.weights[i]), *bias],
                outputs=[tensors[i + 1]],
                domain=node.domain or None,
            )
        )
    nodes = list(gs.export_onnx(graph, do_type_check=False).graph.node)
    for i, (made, link) in enumerate(zip(nodes, links, strict=True)):
        made.attribute.extend(attributes(node, link, first=i == 0, last=i == len(links) - 1))
        made.doc_string = node.doc_string
        made.metadata_props.extend(node.metadata_props)
    return nodes


def _conv_attributes(conv: NodeProto, link: Link, *, first: bool, last: bool) -> list[AttributeProto]:
    """What one convolution of a chain takes over.

    A link that is wide on all axes takes everything as it stands, references to a function's attributes
    too; one that is wide on some takes its share; the others are 1×1.
    """
    spatial = link.weight.ndim - 2
    group = [helper.make_attribute("group", link.groups)] if link.groups > 1 else []
    if not link.axes:
        return [helper.make_attribute("kernel_shape", [1] * spatial), *group]
    if len(link.axes) == spatial:
        own = attribute(conv, "group")
        if (own.i if own is not None and not own.ref_attr_name else 1) == link.groups:
            return list(conv.attribute)
        return [*(found for found in conv.attribute if found.name != "group"), *group]
    shared = [helper.make_attribute("kernel_shape", link.weight.shape[2:])]
    for name, neutral in (("strides", 1), ("dilations", 1), ("pads", 0), ("output_padding", 0)):
        values = ints(conv, name)
        if values is not None:
            kept = [v if i % spatial in link.axes else neutral for i, v in enumerate(values)]
            shared.append(helper.make_attribute(name, kept))
    shared += [found for found in conv.attribute if found.name == "auto_pad"]
    return [*shared, *group]


def _linear_attributes(node: NodeProto, link: Link, *, first: bool, last: bool) -> list[AttributeProto]:
    """What one matrix product takes over: transA the first, alpha and beta the last, transB both."""
    wanted = {"transB"} | ({"transA"} if first else set()) | ({"alpha", "beta"} if last else set())
    return [found for found in node.attribute if found.name in wanted]


def constant_tensor(name: str, values: NDArray[np.float64], data_type: int) -> TensorProto:
    """`values` as an initialiser of the ONNX element type `data_type`, its raw data inside."""
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    tensor: TensorProto = OnnxExporter.export_tensor_proto(gs.Constant(name, values.astype(dtype)))
    return tensor


def cast_node(source: str, target: str, data_type: int) -> NodeProto:
    """A Cast of the tensor `source` to the ONNX element type `data_type`; it writes `target`."""
    return helper.make_node("Cast", [source], [target], name=target, to=data_type)


def constant_node(tensor: TensorProto) -> NodeProto:
    """A Constant node that yields `tensor` under its name, for places that have no initialisers."""
    node: NodeProto = OnnxExporter.export_node(gs.Node("Constant", outputs=[gs.Variable(tensor.name)]))
    value = node.attribute.add(name="value", type=AttributeProto.TENSOR)
    value.t.CopyFrom(tensor)
    return node
