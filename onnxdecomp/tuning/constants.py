"""What follows from constants alone, computed once, by ONNX Runtime: any operator may stand there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import numpy as np
from onnx import NodeProto, SparseTensorProto, TensorProto

from onnxdecomp.ir import RANDOM, Array, Model, read
from onnxdecomp.runtime import Engine, open_session, reads_of, run_errors, segment


def fold_constants(
    model: Model, varying: Set[str], wanted: Iterable[str]
) -> tuple[list[NodeProto], dict[str, Array]]:
    """The nodes of the main graph that depend on its inputs; the constants that they read or that are wanted.

    Args:
        model: the model.
        varying: names of initialisers that are no constants, since they are trained.
        wanted: names of tensors that are asked for, constant or not.

    Raises:
        RunError, MissingExtraError: ONNX Runtime does not compute the constants.
    """
    graph = model.proto.graph
    stored: dict[str, TensorProto | SparseTensorProto] = {
        tensor.name: tensor for tensor in graph.initializer if tensor.name not in varying
    }
    stored |= {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    fixed, constant, others = set(stored), [], []
    for node in graph.node:
        if fixed.issuperset(reads_of(node)) and node.op_type not in RANDOM:
            constant.append(node)
            fixed.update(filter(None, node.output))
        else:
            others.append(node)
    needed = {*wanted, *(name for node in others for name in reads_of(node))}
    found = _computed(model, constant, needed, stored)
    for name in needed & stored.keys():
        tensor = stored[name]
        if isinstance(tensor, TensorProto):
            found[name] = read(tensor, model.folder)
    return others, found


def _computed(
    model: Model,
    nodes: list[NodeProto],
    wanted: Set[str],
    stored: Mapping[str, TensorProto | SparseTensorProto],
) -> dict[str, Array]:
    """Those of the wanted tensors that the constant nodes put out."""
    names = [name for node in nodes for name in node.output if name in wanted]
    if not names:
        return {}
    read_by = {name for node in nodes for name in reads_of(node)}
    constants = [tensor for name, tensor in stored.items() if name in read_by]
    made = segment(model.proto, model.folder, nodes, [], names, constants)
    with run_errors("ONNX Runtime does not compute the model's constants"):
        session = open_session(made.SerializeToString(), Engine())
        values = session.run(names, {})
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
