"""Edits of the protobuf: put new nodes and weights in, take dead ones out, touch nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxdecomp.emit import Wiring, chain_nodes, constant_node, constant_tensor
from onnxdecomp.factoring import Job
from onnxdecomp.factors import Chain
from onnxdecomp.factors.chain import Floats
from onnxdecomp.graph import Scope, Tensor, find_uses, is_onnx_op, scopes
from onnxdecomp.model import Model, Spool
from onnxdecomp.sites import Anchor, Survey
from onnxdecomp.tensors import is_external
from onnxdecomp.weights import FORWARDERS, Constant

_WEIGHT_STEPS = ("Constant", *FORWARDERS)


class Names:
    """Names that no node or tensor of the model has, whichever scope it stands in."""

    def __init__(self, found: Iterable[Scope]) -> None:
        self._taken: set[str] = set()
        for scope in found:
            self._taken.update(scope.initialisers, scope.inputs, scope.sparse, scope.producers)
            self._taken.update(node.name for node in scope.body.node)
            self._taken.update(value.name for value in scope.body.value_info)

    def fresh(self, wanted: str) -> str:
        """`wanted`, or with the first number behind it that makes it unique; taken from now on."""
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name


class Splicer:
    """Collects the chains of one model, then puts them all in.

    The survey's scopes and nodes are views of the model's protobuf: edits wait until `finish`, so that all
    of them stay valid.
    """

    def __init__(self, model: Model, found: Survey, scratch: Path | None) -> None:
        self._model = model
        self._scratch = scratch
        self._found = found
        self._names = Names(found.scopes)
        self._edits: dict[int, Sequence[NodeProto]] = {}
        self._constants: list[tuple[Constant, list[TensorProto]]] = []
        self._candidates: list[Tensor] = []
        self._vanished: list[tuple[Scope, str]] = []

    def install(self, job: Job, chain: Chain, biases: Sequence[Floats] | None = None) -> None:
        """Note the chain that replaces every Conv of `job`; its weights become tensors at once.

        `biases` are of the chains' last links, one per site of the job; None leaves them as they are.
        """
        lead = job.anchors[0].site.name
        names = [self._names.fresh(f"{lead}/{link.role}.weight") for link in chain.links]
        values = [link.weight.T if job.transposed else link.weight for link in chain.links]
        self._define(job.weight, dict(zip(names, values, strict=True)))
        for i, anchor in enumerate(job.anchors):
            self._replace(anchor, job, chain, tuple(names), biases[i] if biases is not None else None)

    def _replace(
        self, anchor: Anchor, job: Job, chain: Chain, weights: tuple[str, ...], moved: Floats | None
    ) -> None:
        conv, batchnorm = anchor.node, anchor.batchnorm if job.batchnorm is not None else None
        nodes = tuple(self._names.fresh(f"{anchor.site.name}/{link.role}") for link in chain.links)
        bias = conv.input[2] if len(conv.input) > 2 and conv.input[2] else None
        read = [conv.input[1]]
        if batchnorm is not None:
            read += [*batchnorm.node.input[1:], *filter(None, conv.input[2:3])]
            moved = batchnorm.affine(self._model.folder)[1] if moved is None else moved
            self._edits[id(batchnorm.node)] = ()
            self._vanished.append((anchor.scope, conv.output[0]))
        elif moved is not None:
            read += filter(None, conv.input[2:3])
        if moved is not None:
            bias = self._names.fresh(f"{nodes[-1]}.bias")
            self._define(job.weight, {bias: moved})
        zeros = None
        if anchor.site.op == "Gemm" and anchor.scope.opset < 11:  # C became optional in Gemm-11
            zeros = self._names.fresh(f"{nodes[0]}.bias")
            self._define(job.weight, {zeros: np.zeros(len(chain.links[0].weight))})
        wiring = Wiring(
            nodes=nodes,
            weights=weights,
            inner=tuple(self._names.fresh(f"{node}_output") for node in nodes[:-1]),
            output=batchnorm.node.output[0] if batchnorm is not None else conv.output[0],
            bias=bias,
            zeros=zeros,
        )
        self._edits[id(conv)] = chain_nodes(conv, chain.links, wiring)
        owners = ((anchor.scope.owner(name), name) for name in read)
        self._candidates += [owner.tensor(name) for owner, name in owners if owner is not None]

    def _define(self, weight: Constant, values: dict[str, Floats]) -> None:
        """Make tensors of the weight's element type, stored the way the weight is."""
        tensors = [constant_tensor(name, array, weight.data_type) for name, array in values.items()]
        if is_external(weight.stored):
            spool = self._model.spool or Spool.create(self._scratch)
            self._model = dataclasses.replace(self._model, spool=spool)
            for tensor in tensors:
                spool.store(tensor)
        self._constants.append((weight, tensors))

    def finish(self) -> Model:
        """The edited model."""
        proto = self._model.proto
        for weight, tensors in self._constants:
            add_constants(weight.scope, weight.name, tensors, proto.ir_version)
        for scope in self._found.scopes:
            replace_nodes(scope, self._edits)
        for scope, name in self._vanished:
            forget_tensor(scope, name)
        remove_dead(proto, self._candidates)
        return dataclasses.replace(self._model, path=None)


def replace_nodes(scope: Scope, edits: dict[int, Sequence[NodeProto]]) -> None:
    """Put the nodes `edits[id(node)]` in the place of each such node; all others stay where they are."""
    nodes = scope.body.node
    for i in reversed(range(len(nodes))):
        substitutes = edits.get(id(nodes[i]))
        if substitutes is not None:
            del nodes[i]
            for substitute in reversed(substitutes):
                nodes.insert(i, substitute)


def add_constants(scope: Scope, beside: str, tensors: Sequence[TensorProto], ir_version: int) -> None:
    """Define `tensors` where the constant `beside` is defined.

    They become initialisers in front of the one called `beside`; Constant nodes behind it in a function,
    which has no initialisers, and where IR < 4 would demand a new graph input for a mere Constant node.
    """
    graph = scope.graph
    if graph is None or (ir_version < 4 and beside not in scope.initialisers):
        place = next(i for i, node in enumerate(scope.body.node) if beside in node.output) + 1
        for tensor in reversed(tensors):
            scope.body.node.insert(place, constant_node(tensor))
        return
    place = next((i for i, t in enumerate(graph.initializer) if t.name == beside), len(graph.initializer))
    for tensor in reversed(tensors):
        graph.initializer.insert(place, tensor)
    listed = next((i for i, value in enumerate(graph.input) if value.name == beside), None)
    if ir_version < 4 and listed is not None:
        for tensor in reversed(tensors):
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            graph.input.insert(listed, value)


def remove_dead(model: ModelProto, candidates: Iterable[Tensor]) -> None:
    """Remove those constants that nothing uses any more, and what only led to them.

    Args:
        model: edited in place.
        candidates: constants that may have lost their last reader.
    """
    found = scopes(model)
    by_body = {id(scope.body): scope for scope in found}
    uses = find_uses(found, model)
    readers = {key: len(nodes) for key, nodes in uses.readers.items()}
    queue = list(dict.fromkeys(candidates))
    while queue:
        key = queue.pop()
        scope, name = by_body.get(key[0]), key[1]
        if scope is None or readers.get(key) or key in uses.pinned:
            continue
        node = scope.producers.get(name)
        if name in scope.initialisers:
            _remove_initialiser(scope, name)
        elif node is not None and any(is_onnx_op(node, op) for op in _WEIGHT_STEPS):
            replace_nodes(scope, {id(node): ()})
            forget_tensor(scope, name)
            for source in filter(None, node.input):
                owner = scope.owner(source)
                if owner is not None:
                    readers[owner.tensor(source)] -= 1
                    queue.append(owner.tensor(source))


def _remove_initialiser(scope: Scope, name: str) -> None:
    graph = scope.graph
    if graph is None or not any(tensor.name == name for tensor in graph.initializer):
        return
    for entries in (graph.initializer, graph.input):
        for i in reversed(range(len(entries))):
            if entries[i].name == name:
                del entries[i]
    forget_tensor(scope, name)


def forget_tensor(scope: Scope, name: str) -> None:
    """Drop what a scope says of a tensor that is gone: its value_info and quantization annotation."""
    for i in reversed(range(len(scope.body.value_info))):
        if scope.body.value_info[i].name == name:
            del scope.body.value_info[i]
    graph = scope.graph
    if graph is not None:
        for i in reversed(range(len(graph.quantization_annotation))):
            if graph.quantization_annotation[i].tensor_name == name:
                del graph.quantization_annotation[i]
