"""What must not be in a file, whoever wrote it: names that are no text, wrong attributes, endless calls.

ONNX's own checker and ONNX Runtime refuse most of it too, but they are asked late, or never.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto

from onnxdecomp.errors import ModelError

# What people write, in whatever code page they have; nothing here reads it.
_PROSE = ("doc_string", "metadata_props")
# Graphs within graphs: what a protobuf of three levels each can nest, and Python can walk.
_DEEPEST = 100
# Functions that call each other, as deep as ONNX allows, and the nodes that calls may come to in all: a
# runtime copies the body of a function to every place that calls it.
_DEEPEST_CALL, _MOST_EXPANDED = 100, 2**18
# Without values they are none, though their kind is right.
_GEOMETRY = ("kernel_shape", "strides", "dilations", "pads")

Key = tuple[str, str, str]


def require_sound(model: ModelProto, what: str) -> None:
    """Refuse a model that could not be worked with.

    Args:
        model: as it was read.
        what: what messages call it.

    Raises:
        ModelError: a name is no UTF-8 text, an attribute of an ONNX operator is of another kind than the
            operator's, graphs or functions are nested too deeply, or calls of functions come to too much.
    """
    _require_text(model, what)
    _require_kinds(model, what)
    _require_few_calls(model, what)


# Names
# -----


def _require_text(model: ModelProto, what: str) -> None:
    """Protobuf hands out what is no UTF-8 as bytes."""
    queue: list[tuple[Message, int]] = [(model, 0)]
    while queue:
        message, depth = queue.pop()
        if depth > _DEEPEST:
            raise ModelError(f"{what} is damaged: its graphs are nested more than {_DEEPEST // 3} deep")
        for field, value in message.ListFields() if not isinstance(message, TensorProto) else _named(message):
            if field.name in _PROSE:
                continue
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                parts = value if field.is_repeated else (value,)
                queue.extend((part, depth + 1) for part in parts)
            elif field.type == FieldDescriptor.TYPE_STRING:
                for text in value if field.is_repeated else (value,):
                    if not isinstance(text, str):
                        raise ModelError(f"{what} is damaged: the name {text!r} in it is not UTF-8 text")


def _named(tensor: TensorProto) -> Iterator[tuple[FieldDescriptor, Any]]:
    """The fields of a tensor that have names in them: its values would be copied."""
    for name in ("name", "external_data"):
        yield tensor.DESCRIPTOR.fields_by_name[name], getattr(tensor, name)


# Attributes
# ----------


def _require_kinds(model: ModelProto, what: str) -> None:
    bodies: list[tuple[Iterable[NodeProto], dict[str, int]]] = [(model.graph.node, _versions(model))]
    bodies += [(function.node, _versions(function)) for function in model.functions]
    for nodes, versions in bodies:
        for node in _within(nodes):
            # The default domain has two names.
            domain = "" if node.domain == "ai.onnx" else node.domain
            version = versions.get(domain)
            for found in node.attribute if version is not None else ():
                kind = _kinds(domain, node.op_type, version or 0).get(found.name)
                if found.type and kind not in (None, found.type):
                    wrong = "of another kind than the operator's"
                elif found.name in _GEOMETRY and found.type == AttributeProto.INTS and _empty(found):
                    wrong = "empty"
                else:
                    continue
                name = node.name or next(iter(node.output), "")
                where = f"the attribute '{found.name}' of the {node.op_type} '{name}'"
                raise ModelError(f"{what} is damaged: {where} is {wrong}")


def _empty(found: AttributeProto) -> bool:
    return not found.ints and not found.ref_attr_name


def _versions(body: ModelProto | FunctionProto) -> dict[str, int]:
    return {"" if each.domain == "ai.onnx" else each.domain: each.version for each in body.opset_import}


@functools.cache
def _kinds(domain: str, op_type: str, version: int) -> dict[str, int]:
    """The kinds of an operator's attributes; none where ONNX does not know it."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except (onnx.defs.SchemaError, TypeError):  # no such operator; no such version
        return {}
    return {name: int(each.type.value) for name, each in schema.attributes.items()}  # type: ignore[attr-defined]


def _within(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, and those of the graphs in their attributes, however deep."""
    queue = [*nodes]
    while queue:
        node = queue.pop()
        yield node
        for found in node.attribute:
            for graph in (*([found.g] if found.HasField("g") else ()), *found.graphs):
                queue.extend(graph.node)


# Calls
# -----


def _require_few_calls(model: ModelProto, what: str) -> None:
    bodies: dict[Key, FunctionProto] = {(f.domain, f.name, f.overload): f for f in model.functions}
    known: dict[Key, tuple[int, int]] = {}

    def expanded(nodes: Iterable[NodeProto], above: int) -> tuple[int, int]:
        """The nodes that calls among `nodes` come to, and how deep they go."""
        if above > _DEEPEST_CALL:
            raise ModelError(
                f"{what} is damaged: its functions call each other in a circle, or more than "
                f"{_DEEPEST_CALL} deep"
            )
        count, deepest = 0, 0
        for node in _within(nodes):
            key = (node.domain, node.op_type, node.overload)
            if key not in bodies:
                continue
            if key not in known:
                size, depth = expanded(bodies[key].node, above + 1)
                known[key] = len(list(_within(bodies[key].node))) + size, depth + 1
            size, depth = known[key]
            count, deepest = count + size, max(deepest, depth)
        if above + deepest > _DEEPEST_CALL:
            return expanded((), _DEEPEST_CALL + 1)
        return count, deepest

    count, _ = expanded(model.graph.node, 0) if bodies else (0, 0)
    if count > _MOST_EXPANDED:
        raise ModelError(
            f"{what}: its calls of functions come to {count:,} nodes, and {_MOST_EXPANDED:,} are the most; "
            "export it without functions that call functions so often"
        )
