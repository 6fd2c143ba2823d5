"""Sweeping: what nothing reads any more once sites are rewritten is taken out of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from onnxdecomp.ir import (
    Constant,
    Constants,
    Model,
    TensorKey,
    find_uses,
    is_onnx_op,
    scopes,
    subgraphs,
)
from onnxdecomp.lowering.edits import forget_tensor, remove_initialiser, replace_nodes
from onnxdecomp.lowering.nodes import constant_node


def remove_dead(model: Model, candidates: Iterable[TensorKey], *, freeze: bool) -> None:
    """Remove those constants that nothing uses any more, and what only led to them.

    Nodes that ask for the shape or the type of a constant alone do not keep it: others take their places that
    need no constant.

    Args:
        model: edited in place.
        candidates: constants that may have lost their last reader.
        freeze: treat initialisers that callers may override as constant.
    """
    sweep = _Sweep(model, freeze)
    queue = list(dict.fromkeys(candidates))
    while queue:
        key = queue.pop()
        if sweep.is_needed(key):
            queue += sweep.answer(key)
        else:
            queue += sweep.remove(key)


class _Sweep:
    """The readers of every tensor of a model while nodes are taken out of it."""

    def __init__(self, model: Model, freeze: bool) -> None:
        found = scopes(model.proto)
        self._uses = find_uses(found, model.proto)
        self._readers = {key: list(nodes) for key, nodes in self._uses.readers.items()}
        self._scopes = {id(scope.body): scope for scope in found}
        self._homes = {id(node): scope for scope in found for node in scope.body.node}
        self._constants = Constants.of(model, found, freeze=freeze)

    def is_needed(self, key: TensorKey) -> bool:
        """Whether anything reads a tensor."""
        return key[0] not in self._scopes or key in self._uses.pinned or bool(self._readers.get(key))

    def remove(self, key: TensorKey) -> list[TensorKey]:
        """Take out what defines a tensor, unless it defines one that is needed; the tensors that it read.

        Nodes with graphs inside read more than they list, and stay.
        """
        scope, name = self._scopes[key[0]], key[1]
        if name in scope.initialisers:
            remove_initialiser(scope, name)
            return []
        node = scope.producers.get(name)
        if node is None or next(subgraphs(node), None) is not None:
            return []
        outputs = list(filter(None, node.output))
        if any(self.is_needed(scope.tensor(output)) for output in outputs):
            return []
        replace_nodes(scope, {id(node): ()})
        for output in outputs:
            forget_tensor(scope, output)
        owners = [(scope.owner(source), source) for source in filter(None, node.input)]
        keys = [owner.tensor(source) for owner, source in owners if owner is not None]
        for read in keys:
            self._forget_reading(node, read)
        return keys

    def answer(self, key: TensorKey) -> list[TensorKey]:
        """Replace the nodes that ask for the shape or the type of a constant alone, if nothing else keeps it.

        Other nodes may stand between, if what they put out is constant, too, and read for no more.

        Returns:
            The tensors that those nodes read; none where something else keeps the constant.
        """
        asking: list[tuple[NodeProto, TensorKey, Constant]] = []
        todo, seen = [key], {key}
        while todo:
            current = todo.pop()
            if current in self._uses.pinned or current not in self._constants.fixed:
                return []
            for node in self._readers.get(current, []):
                if not _asks_little(node, current[1]):
                    outputs = {self._homes[id(node)].tensor(name) for name in filter(None, node.output)}
                    todo += outputs - seen
                    seen |= outputs
                    continue
                found = self._constants.find(self._scopes[current[0]], current[1])
                if isinstance(found, str):
                    return []
                asking.append((node, current, found))
        for node, asked, constant in asking:
            replace_nodes(self._homes[id(node)], {id(node): [_answer(node, constant)]})
            self._forget_reading(node, asked)
        return [asked for _, asked, _ in asking]

    def _forget_reading(self, node: NodeProto, key: TensorKey) -> None:
        self._readers[key] = [each for each in self._readers.get(key, []) if each is not node]


def _asks_little(node: NodeProto, name: str) -> bool:
    """Whether `node` reads of the tensor `name` the shape or the type alone."""
    if any(found.ref_attr_name for found in node.attribute):
        return False
    if is_onnx_op(node, "CastLike"):
        return bool(node.input[0] != name)
    return is_onnx_op(node, "Shape") or is_onnx_op(node, "Size")


def _answer(node: NodeProto, constant: Constant) -> NodeProto:
    """What does the same as `node` without the constant that it asks: a Constant, for a CastLike a Cast."""
    if node.op_type == "CastLike":
        made = helper.make_node("Cast", node.input[:1], node.output, to=constant.data_type)
        made.attribute.extend(node.attribute)
    else:
        bounds = {found.name: found.i for found in node.attribute}
        part = constant.shape[bounds.get("start", 0) : bounds.get("end")]
        value = np.array(part if node.op_type == "Shape" else math.prod(constant.shape), np.int64)
        made = constant_node(numpy_helper.from_array(value, node.output[0]))
    made.name, made.doc_string = node.name, node.doc_string
    made.metadata_props.extend(node.metadata_props)
    return made
