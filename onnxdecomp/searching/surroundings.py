"""A site alone, as it stands in the model: a small model of its own, with random weights.

The Conv has its strides, pads and groups, the residual Add and the activation that ONNX Runtime fuses into
it, and the same for each chain. What the layout conversions around it take is the same for all choices, so
that differences between them are those in the whole model.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, helper

from onnxdecomp.factors import Chain, Link
from onnxdecomp.ir import Anchor, Site, Survey, flag, is_onnx_op
from onnxdecomp.lowering import constant_tensor, lower_chain, lower_weights
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
    if site.channels is None:
        raise ValueError(f"{site.name}: channels are not known")
    generator = np.random.default_rng(0)
    bias = {} if site.op == "MatMul" else {"b": np.zeros(site.channels[1])}
    lead = NodeProto(op_type=anchor.node.op_type, name="site", attribute=anchor.node.attribute)
    lead.input.extend(["x", "w", *bias])
    lead.output.append("product")
    data_type = anchor.constant.data_type
    tensors = [constant_tensor(name, array, data_type) for name, array in bias.items()]
    nodes = [lead]
    if choice is None:
        shape = anchor.constant.shape
        weight = generator.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        tensors.append(constant_tensor("w", weight, data_type))
    else:
        chain = random_chain(site, choice, generator)
        alone = dataclasses.replace(anchor, node=lead, batchnorm=None)
        names = [f"{link.role}.weight" for link in chain.links]
        lowered = lower_chain(alone, chain, names, bias=None, folder=Path(), fresh=str)
        nodes = list(lowered.nodes)
        tensors += [*lower_weights(alone, chain, names), *lowered.tensors]
    nodes += _behind(surroundings)
    inputs = [
        helper.make_tensor_value_info(name, data_type, shape)
        for name, shape in _feed_shapes(anchor, surroundings).items()
    ]
    graph = helper.make_graph(
        nodes,
        "site",
        inputs,
        [helper.make_tensor_value_info("y", data_type, None)],
        tensors,
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
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(shape).astype(anchor.constant.dtype)
        for name, shape in _feed_shapes(anchor, surroundings).items()
    }


def _feed_shapes(anchor: Anchor, surroundings: Surroundings) -> dict[str, tuple[int, ...]]:
    site = anchor.site
    if site.sizes is None or site.channels is None or site.dtype is None:
        raise ValueError(f"{site.name}: shapes are not known")
    shapes = [
        (sizes[0], channels, *sizes[1:]) for sizes, channels in zip(site.sizes, site.channels, strict=True)
    ]
    if site.op == "Gemm" and flag(anchor.node, "transA"):
        shapes[0] = shapes[0][::-1]
    return dict(zip(("x", "z") if surroundings.residual else ("x",), shapes, strict=False))


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
