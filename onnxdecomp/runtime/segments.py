"""A piece of a model's main graph as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, helper

from onnxdecomp.ir import all_tensors, extent, is_external
from onnxdecomp.runtime.strangers import Operators


def segment(
    whole: ModelProto,
    folder: Path,
    nodes: Iterable[NodeProto],
    inputs: Iterable[ValueInfoProto],
    outputs: Sequence[str],
    constants: Iterable[TensorProto | SparseTensorProto],
) -> ModelProto:
    """A model of some nodes of `whole`, with all its data inside.

    Args:
        whole: whose operator sets and functions the nodes need.
        folder: where its external data lie.
        nodes: in order.
        inputs: that they are fed.
        outputs: names of the tensors that are asked for.
        constants: that they read.
    """
    graph = GraphProto(name="segment", node=nodes, input=inputs)
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
    for constant in constants:
        if isinstance(constant, TensorProto):
            graph.initializer.append(constant)
        else:
            graph.sparse_initializer.append(constant)
    made = ModelProto(
        ir_version=max(whole.ir_version, 4),
        opset_import=whole.opset_import,
        functions=Operators(whole).called(graph.node),
        graph=graph,
    )
    for tensor in filter(is_external, all_tensors(made)):
        inlined = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        inlined.raw_data = extent(tensor, folder).read()
        tensor.CopyFrom(inlined)
    return made
