"""A site alone, as it stands in the model: a small model of its own, with random weights.

The Conv has its strides, pads and groups, the residual Add and the activation that ONNX Runtime fuses into
it, and the same for each chain. What the layout conversions around it take is the same for all choices, so
that differences between them are those in the whole model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxdecomp.factors import Chain, Link
from onnxdecomp.ir import Anchor, Site, Survey, attribute, is_onnx_op
from onnxdecomp.lowering import Wiring, chain_nodes, constant_tensor
from onnxdecomp.planning import Choice, links
from onnxdecomp.runtime import Feeds

_ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What ONNX Runtime can fuse into a Conv: a residual Add, then an activation."""

    residual: bool
    activation: NodeProto | None


def find_surroundings(anchor: Anchor, found: Survey) -> Surroundings:
    """What stands behind a site."""
    output = anchor.output
    residual, reader = False, _only_reader(anchor, found, output)
    if reader is not None and is_onnx_op(reader, "Add"):
        others = [name for name in reader.input if name != output]
        residual = len(others) == 1 and others[0] in anchor.scope.producers
        reader = _only_reader(anchor, found, reader.output[0]) if residual else None
    fused = reader is not None and any(is_onnx_op(reader, op) for op in _ACTIVATIONS)
    # A Clip may take its bounds from tensors: those are the model's.
    plain = fused and reader is not None and len(list(filter(None, reader.input))) == 1
    return Surroundings(residual, reader if plain else None)


def _only_reader(anchor: Anchor, found: Survey, name: str) -> NodeProto | None:
    tensor = anchor.scope.tensor(name)
    readers = found.uses.readers.get(tensor, [])
    return readers[0] if len(readers) == 1 and tensor not in found.uses.pinned else None


def site_model(
    anchor: Anchor, surroundings: Surroundings, choice: Choice | None, ir_version: int
) -> ModelProto:
    """A site alone, kept or as a chain, with random weights, from "x" (and a residual "z") to "y"."""
    site = anchor.site
    if anchor.weight is None or site.channels is None:
        raise ValueError(f"{site.name} has no constant weight")
    lead = NodeProto(op_type=anchor.node.op_type, name="site", attribute=anchor.node.attribute)
    generator = np.random.default_rng(0)
    tensors = {"b": np.zeros(site.channels[1])} if site.op != "MatMul" else {}
    bias = next(iter(tensors), None)
    if choice is None:
        shape = anchor.weight.shape
        tensors["w"] = generator.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        lead.input.extend(["x", "w", *([bias] if bias else [])])
        lead.output.append("product")
        nodes = [lead]
    else:
        chain = random_chain(site, choice, generator)
        names = tuple(f"w{i}" for i in range(len(chain.links)))
        values = (link.weight.T if anchor.transposed else link.weight for link in chain.links)
        tensors |= dict(zip(names, values, strict=True))
        old_gemm = site.op == "Gemm" and anchor.scope.opset < 11
        if old_gemm:
            tensors["zeros"] = np.zeros(len(chain.links[0].weight))
        wiring = Wiring(
            nodes=names,
            weights=names,
            inner=tuple(f"h{i}" for i in range(len(names) - 1)),
            output="product",
            bias=bias,
            zeros="zeros" if old_gemm else None,
        )
        lead.input.append("x")
        nodes = chain_nodes(lead, chain.links, wiring)
    nodes += _behind(surroundings)
    data_type = anchor.weight.data_type
    inputs = [
        helper.make_tensor_value_info(name, data_type, array.shape)
        for name, array in site_feeds(anchor, surroundings).items()
    ]
    graph = helper.make_graph(
        nodes,
        "site",
        inputs,
        [helper.make_tensor_value_info("y", data_type, None)],
        [constant_tensor(name, array, data_type) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", anchor.scope.opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=max(ir_version, 4))


def _behind(surroundings: Surroundings) -> list[NodeProto]:
    nodes, last = [], "product"
    if surroundings.residual:
        nodes.append(helper.make_node("Add", [last, "z"], ["sum"]))
        last = "sum"
    if surroundings.activation is not None:
        made = NodeProto()
        made.CopyFrom(surroundings.activation)
        made.input[:], made.output[:] = [last], ["active"]
        nodes.append(made)
        last = "active"
    return [*nodes, helper.make_node("Identity", [last], ["y"])]


def site_feeds(anchor: Anchor, surroundings: Surroundings) -> Feeds:
    """Random inputs of the site's shapes."""
    site = anchor.site
    if site.sizes is None or site.channels is None or site.dtype is None:
        raise ValueError(f"{site.name}: shapes are not known")
    generator = np.random.default_rng(0)
    shapes = [
        (sizes[0], channels, *sizes[1:]) for sizes, channels in zip(site.sizes, site.channels, strict=True)
    ]
    turned = attribute(anchor.node, "transA") if site.op == "Gemm" else None
    if turned is not None and turned.i:
        shapes[0] = shapes[0][::-1]
    dtype = helper.tensor_dtype_to_np_dtype(anchor.weight.data_type if anchor.weight else TensorProto.FLOAT)
    names = ("x", "z") if surroundings.residual else ("x",)
    return {
        name: generator.standard_normal(shape).astype(dtype)
        for name, shape in zip(names, shapes, strict=False)
    }


def random_chain(site: Site, choice: Choice, generator: np.random.Generator) -> Chain:
    """A chain of the shapes that factoring would give, its values such that activations keep their size."""
    shapes = links(site, choice)
    made = []
    for i, link in enumerate(shapes):
        kernel = [size if axis in link.axes else 1 for axis, size in enumerate(site.kernel)]
        shape = (link.channels[1], link.channels[0] // link.groups, *kernel)
        # He's initialisation where a ReLU may follow, as in the networks themselves.
        variance = (2 if i == len(shapes) - 1 else 1) / np.prod(shape[1:])
        weight = generator.standard_normal(shape) * np.sqrt(variance)
        made.append(Link(link.role, weight, link.axes, link.groups))
    return Chain(tuple(made), site.groups or 1)
