"""Scopes and names: where a node stands, and which tensor a name means there.

An ONNX model is a tree of scopes: the main graph, the graphs inside the attributes of If, Loop and Scan
nodes, and local functions. A graph inside an attribute sees the names of the graphs around it; a function
sees only its own (onnx/docs/IR.md, "Names Within a Graph" and "Functions").
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

ONNX_DOMAINS = ("", "ai.onnx")

TensorKey = tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scope:
    """One graph or function body with its name tables.

    Attributes:
        path: prefix of the keys of everything inside, unique in the model: "" for the main graph,
            "If_3/then_branch/" for a nested one, "domain.Name/" for a function.
        body: the protobuf itself.
        outer: the scope whose names are visible too; None for the main graph and for functions.
        opset: version of the default operator set in force here.
        keys: a name for each node, in node order; with the path before it unique in the model.
        producers: the node that writes each tensor.
        initialisers: dense initialisers by name; a function has none.
        sparse: names of sparse initialisers.
        inputs: names of the formal inputs.
    """

    path: str
    body: GraphProto | FunctionProto
    outer: Scope | None
    opset: int
    keys: tuple[str, ...]
    producers: dict[str, NodeProto]
    initialisers: dict[str, TensorProto]
    sparse: frozenset[str]
    inputs: frozenset[str]

    @property
    def graph(self) -> GraphProto | None:
        """The body where it is a graph, None where it is a function."""
        return self.body if isinstance(self.body, GraphProto) else None

    def defines(self, name: str) -> bool:
        """Whether the tensor `name` comes into being in this very scope."""
        return (
            name in self.producers or name in self.initialisers or name in self.inputs or name in self.sparse
        )

    def tensor(self, name: str) -> TensorKey:
        """What identifies the tensor this scope defines as `name`."""
        return id(self.body), name

    def owner(self, name: str) -> Scope | None:
        """The innermost scope, from here outwards, that defines `name`."""
        scope: Scope | None = self
        while scope is not None and not scope.defines(name):
            scope = scope.outer
        return scope


def is_onnx_op(node: NodeProto, op_type: str) -> bool:
    """Whether `node` is the operator `op_type` of the default ONNX domain."""
    return node.op_type == op_type and node.domain in ONNX_DOMAINS


def attribute(node: NodeProto, name: str) -> AttributeProto | None:
    """The attribute `name` of `node`, or None."""
    return next((a for a in node.attribute if a.name == name), None)


def ints(node: NodeProto, name: str) -> tuple[int, ...] | None:
    """The integers of the attribute `name`, or None where it is absent or set by a function's caller."""
    found = attribute(node, name)
    return tuple(found.ints) if found is not None and not found.ref_attr_name else None


def flag(node: NodeProto, name: str) -> bool:
    """Whether the integer attribute `name` is there and not 0."""
    found = attribute(node, name)
    return found is not None and bool(found.i)


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs in `node`'s attributes, each with the name of its attribute."""
    for found in node.attribute:
        if found.type == AttributeProto.GRAPH:
            yield found.name, found.g
        elif found.type == AttributeProto.GRAPHS:
            for i, graph in enumerate(found.graphs):
                yield f"{found.name}[{i}]", graph


def _node_keys(path: str, body: GraphProto | FunctionProto, taken: set[str]) -> tuple[str, ...]:
    """One name per node: its own if that is unique and not empty, else its first output.

    Together with `path` it is unique in the model: a name that another node has, or has as its output, is not
    taken, nor one in `taken`, which holds the names given in the scopes before.
    """
    firsts = [next((o for o in node.output if o), "") for node in body.node]
    names = Counter(node.name for node in body.node)
    outputs = Counter(firsts)
    keys = []
    for node, first in zip(body.node, firsts, strict=True):
        own = node.name and names[node.name] == 1 and outputs[node.name] == (first == node.name)
        keys.append(_fresh(path, node.name if own else first, taken))
    return tuple(keys)


def _fresh(path: str, key: str, taken: set[str]) -> str:
    """`key`, or with the first number behind it that makes it unique after `path`; taken from now on."""
    fresh, number = key, 2
    while path + fresh in taken:
        fresh, number = f"{key}~{number}", number + 1
    taken.add(path + fresh)
    return fresh


def _opset(imports: list[tuple[str, int]]) -> int:
    return max((version for domain, version in imports if domain in ONNX_DOMAINS), default=1)


def _scope(
    path: str, body: GraphProto | FunctionProto, outer: Scope | None, opset: int, taken: set[str]
) -> Iterator[Scope]:
    is_graph = isinstance(body, GraphProto)
    scope = Scope(
        path=path,
        body=body,
        outer=outer,
        opset=opset,
        keys=_node_keys(path, body, taken),
        producers={name: node for node in body.node for name in node.output if name},
        initialisers={t.name: t for t in body.initializer} if is_graph else {},
        sparse=frozenset(t.values.name for t in body.sparse_initializer) if is_graph else frozenset(),
        inputs=frozenset(i.name for i in body.input) if is_graph else frozenset(body.input),
    )
    yield scope
    for key, node in zip(scope.keys, body.node, strict=True):
        for name, graph in subgraphs(node):
            inner = _fresh(path, f"{key}/{name}/", taken)
            yield from _scope(path + inner, graph, scope, opset, taken)


def scopes(model: ModelProto) -> list[Scope]:
    """Every scope of `model`: the main graph, then inwards, then the functions; outer before inner."""
    taken: set[str] = set()
    main_opset = _opset([(o.domain, o.version) for o in model.opset_import])
    found = list(_scope("", model.graph, None, main_opset, taken))
    for function in model.functions:
        name = ".".join(part for part in (function.domain, function.name, function.overload) if part)
        opset = _opset([(o.domain, o.version) for o in function.opset_import])
        found += _scope(_fresh("", f"{name}/", taken), function, None, opset, taken)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Uses:
    """Who reads each tensor, across all scopes; a tensor is known by (id of its scope's body, its name).

    The bodies are views of the protobuf that stay the same objects through edits, as paths would not.

    Attributes:
        readers: the nodes that read it, one entry per reading.
        pinned: tensors something other than a node needs: a graph's or function's output, a quantization
            annotation, or the model's training info.
    """

    readers: dict[TensorKey, list[NodeProto]]
    pinned: frozenset[TensorKey]


def find_uses(found: list[Scope], model: ModelProto) -> Uses:
    """Index the readers of every tensor in the scopes `found` of `model`."""
    readers: dict[TensorKey, list[NodeProto]] = defaultdict(list)
    pinned: set[TensorKey] = set()
    for scope in found:
        for node in scope.body.node:
            for name in filter(None, node.input):
                owner = scope.owner(name)
                if owner is not None:
                    readers[owner.tensor(name)].append(node)
        for name in _outside_names(scope):
            owner = scope.owner(name)
            if owner is not None:
                pinned.add(owner.tensor(name))
    pinned.update(found[0].tensor(name) for name in _training_names(model))
    return Uses(readers=dict(readers), pinned=frozenset(pinned))


def _outside_names(scope: Scope) -> Iterator[str]:
    if isinstance(scope.body, FunctionProto):
        yield from scope.body.output
        return
    yield from (output.name for output in scope.body.output)
    for annotation in scope.body.quantization_annotation:
        yield from (entry.value for entry in annotation.quant_parameter_tensor_names)


def _training_names(model: ModelProto) -> Iterator[str]:
    for info in model.training_info:
        for binding in (*info.initialization_binding, *info.update_binding):
            yield binding.key
        for node in info.algorithm.node:
            yield from node.input
