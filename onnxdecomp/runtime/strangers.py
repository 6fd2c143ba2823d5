"""Operators that nothing here runs: plugins of other runtimes, unknown domains, functions without bodies."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, OperatorSetIdProto

from onnxdecomp.errors import MissingExtraError
from onnxdecomp.ir import ONNX_DOMAINS, subgraphs
from onnxdecomp.runtime.session import onnxruntime


class Operator(NamedTuple):
    """An operator as a node names it.

    Attributes:
        domain: "" for ONNX's own.
        name: its type.
        version: of the operator set of that domain.
    """

    domain: str
    name: str
    version: int

    @property
    def title(self) -> str:
        """What to call it."""
        return f"{self.domain}.{self.name}" if self.domain else self.name

    @property
    def runs(self) -> bool:
        """Whether ONNX Runtime or the reference evaluator may have it; that is only known when they run."""
        if onnx.defs.has(self.name, self.domain):
            return onnx.defs.has(self.name, self.version, self.domain)
        return (self.domain, self.name) in _kernels()


@functools.cache
def _kernels() -> frozenset[tuple[str, str]]:
    """The operators, beside ONNX's, that ONNX Runtime has for the CPU."""
    try:
        state = onnxruntime().capi.onnxruntime_pybind11_state
    except MissingExtraError:
        return frozenset()
    kernels = state.get_all_opkernel_def()
    return frozenset((each.domain, each.op_name) for each in kernels if each.provider.startswith("CPU"))


class Operators:
    """The operators that the nodes of a model come to."""

    def __init__(self, model: ModelProto) -> None:
        """
        Args:
            model: whose functions are looked into.
        """
        self._imports = _versions(model.opset_import)
        self._functions = {(_plain(each.domain), each.name): each for each in model.functions}
        self._known: dict[tuple[str, str], frozenset[Operator]] = {}

    def of(self, node: NodeProto) -> frozenset[Operator]:
        """Those of a node of the main graph, of the graphs inside it and of the functions it calls."""
        return self._of([node], self._imports)

    def called(self, nodes: Iterable[NodeProto]) -> list[FunctionProto]:
        """The functions that nodes call, and those that these call."""
        found: set[tuple[str, str]] = set()
        queue = list(nodes)
        while queue:
            node = queue.pop()
            key = _plain(node.domain), node.op_type
            if key in self._functions and key not in found:
                found.add(key)
                queue.extend(self._functions[key].node)
            queue.extend(inner for _, graph in subgraphs(node) for inner in graph.node)
        return [function for key, function in self._functions.items() if key in found]

    def _of(self, nodes: Iterable[NodeProto], imports: dict[str, int]) -> frozenset[Operator]:
        found: set[Operator] = set()
        for node in nodes:
            domain = _plain(node.domain)
            own = Operator(domain, node.op_type, imports.get(domain, 1))
            found |= self._called(domain, node.op_type) or {own}
            for _, graph in subgraphs(node):
                found |= self._of(graph.node, imports)
        return frozenset(found)

    def _called(self, domain: str, name: str) -> frozenset[Operator]:
        """Those of a function's body, looked into once; none where it has no body, or calls itself."""
        key = domain, name
        function = self._functions.get(key)
        if function is None:
            return frozenset()
        if key not in self._known:
            self._known[key] = frozenset()
            self._known[key] = self._of(function.node, _versions(function.opset_import))
        return self._known[key]


def _versions(imports: Iterable[OperatorSetIdProto]) -> dict[str, int]:
    return {_plain(each.domain): each.version for each in imports}


def _plain(domain: str) -> str:
    return "" if domain in ONNX_DOMAINS else domain
