"""Walking a model over many samples, segment by segment.

A walk holds the values of those tensors alone that some node has still to read, on disk, one array per run.
To reach a tensor it cuts out the nodes that lead to it from there, and runs these in ONNX Runtime over all
samples: every node runs once, however many tensors are asked for, and nodes ahead may be exchanged meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from onnxdecomp.errors import RunError
from onnxdecomp.ir import Array, is_onnx_op, read, subgraphs
from onnxdecomp.runtime.inputs import Feeds
from onnxdecomp.runtime.segments import segment
from onnxdecomp.runtime.session import Engine, open_session, run_errors
from onnxdecomp.runtime.tape import Tape

_REFUSAL = "ONNX Runtime does not run the model on the samples"


class Walk:
    """One model, walked from its inputs to its outputs.

    The model is not changed; nodes ahead are exchanged by `exchange`.
    """

    def __init__(self, model: ModelProto, folder: Path, feeds: Iterable[Feeds], beside: Path | None) -> None:
        """
        Args:
            model: whose main graph is walked.
            folder: where its external data lie.
            feeds: the inputs of each run.
            beside: folder for scratch files; None is the system's.
        """
        self._model = model
        self._folder = folder
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._constants |= {tensor.values.name: tensor for tensor in model.graph.sparse_initializer}
        self._nodes: list[NodeProto] = list(model.graph.node)
        self._tape = Tape(beside)
        self.runs = 0
        try:
            for each in feeds:
                for name, value in each.items():
                    self._tape.append(name, np.asarray(value))
                self.runs += 1
        except BaseException:
            self._tape.__exit__()
            raise
        self._index()
        self._done: set[int] = set()
        self._held: set[str] = set()

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *details: object) -> None:
        self._tape.__exit__(*details)

    def _index(self) -> None:
        self._producers = {name: node for node in self._nodes for name in filter(None, node.output)}
        self._reads = {id(node): tuple(reads_of(node)) for node in self._nodes}
        # What follows from constants alone is computed where it is read, and never kept.
        fixed: set[str] = set(self._constants)
        self._fixed: set[int] = set()
        for node in self._nodes:
            if fixed.issuperset(self._reads[id(node)]):
                self._fixed.add(id(node))
                fixed.update(filter(None, node.output))

    def exchange(
        self, old: Sequence[NodeProto], new: Sequence[NodeProto], weights: Iterable[TensorProto]
    ) -> None:
        """Put the nodes `new` in the place of the first of `old`, none of which has run yet."""
        gone = {id(node) for node in old}
        first = next(i for i, node in enumerate(self._nodes) if id(node) in gone)
        rest = [node for node in self._nodes[first:] if id(node) not in gone]
        self._nodes = [*self._nodes[:first], *new, *rest]
        self._constants |= {tensor.name: tensor for tensor in weights}
        self._index()

    def leads_to(self, name: str) -> set[int]:
        """The ids of the nodes that the tensor `name` follows from."""
        found: set[int] = set()
        queue = [name]
        while queue:
            node = self._producers.get(queue.pop())
            if node is not None and id(node) not in found:
                found.add(id(node))
                queue.extend(self._reads[id(node)])
        return found

    def added_to(self, name: str) -> str | None:
        """What an Add adds to the tensor `name`; None where anything else reads that, or it is an output."""
        readers = [node for node in self._nodes if name in self._reads[id(node)]]
        if len(readers) != 1 or not is_onnx_op(readers[0], "Add"):
            return None
        others = [each for each in readers[0].input if each != name]
        is_output = any(value.name == name for value in self._model.graph.output)
        return others[0] if len(others) == 1 and not is_output else None

    def values(self, name: str) -> Iterator[Array]:
        """The tensor `name`, run by run.

        Raises:
            RunError: ONNX Runtime does not run the nodes that lead to it.
        """
        constant = self._constants.get(name)
        if isinstance(constant, TensorProto) and name not in self._tape:
            yield from repeat(read(constant, self._folder), self.runs)
            return
        if name not in self._tape:
            self._advance(name)
        for run in range(self.runs):
            yield self._tape.read(name, run)

    def value(self, name: str, run: int) -> Array:
        """The tensor `name` in one run; it must have been reached, and still be read or held."""
        return self._tape.read(name, run)

    def reached(self, name: str) -> bool:
        """Whether the tensor `name` can be read without walking on."""
        return name in self._tape

    def hold(self, name: str) -> None:
        """Keep the tensor `name`, once it is reached, until it is forgotten."""
        self._held.add(name)

    def behind(self, name: str, among: Iterable[str]) -> list[str]:
        """Those of some tensors that follow from the tensor `name`."""
        reached = {name}
        for node in self._nodes:
            if not reached.isdisjoint(self._reads[id(node)]):
                reached.update(filter(None, node.output))
        return [each for each in among if each in reached]

    def replay(self, name: str, outputs: Sequence[str]) -> Callable[[int, Array], list[Array]]:
        """What the rest of the model makes of other values of a tensor that has been reached.

        Returns:
            A function of a run and the tensor's value there to the tensors `outputs`. The walk stays where it
            is.

        Raises:
            RunError: ONNX Runtime does not run the rest.
        """
        ready = {output for output in outputs if output in self._tape and output != name}
        nodes = self._leading_to([output for output in outputs if output not in ready], name)
        reads = {read for node in nodes for read in self._reads[id(node)]}
        inputs = sorted(read for read in reads if read in self._tape)
        computed = [output for output in outputs if output not in ready and output != name]
        session = self._session(nodes, inputs, computed) if computed else None

        def run(number: int, value: Array) -> list[Array]:
            found = {name: value} | {each: self._tape.read(each, number) for each in ready}
            if session is not None:
                feeds = {each: value if each == name else self._tape.read(each, number) for each in inputs}
                found |= dict(zip(computed, self._answers(session, computed, feeds), strict=True))
            return [found[output] for output in outputs]

        return run

    def forget(self, name: str) -> None:
        """Say that the tensor `name` will not be asked for again."""
        self._held.discard(name)
        self._drop_unread({name})

    def _advance(self, target: str) -> None:
        nodes = self._leading_to([target])
        self._done |= {id(node) for node in nodes} - self._fixed
        made = {name for node in nodes if id(node) not in self._fixed for name in filter(None, node.output)}
        ahead = {name for node in self._nodes if id(node) not in self._done for name in self._reads[id(node)]}
        outputs = sorted((made & (ahead | self._held)) | {target})
        reads = {name for node in nodes for name in self._reads[id(node)]}
        inputs = sorted(name for name in reads if name in self._tape)
        self._run(nodes, inputs, outputs)
        self._drop_unread(set(inputs) - {target})

    def _leading_to(self, targets: Sequence[str], *given: str) -> list[NodeProto]:
        """The nodes between what is on the tape, or given, and some tensors, in order."""
        chosen: set[int] = set()
        queue, seen = list(targets), set(targets)
        while queue:
            name = queue.pop()
            if name in self._tape or name in self._constants or name in given:
                continue
            node = self._producers.get(name)
            if node is None:
                raise RunError(f"nothing computes the tensor '{name}'")
            chosen.add(id(node))
            fresh = [read for read in self._reads[id(node)] if read not in seen]
            seen.update(fresh)
            queue.extend(fresh)
        return [node for node in self._nodes if id(node) in chosen]

    def _drop_unread(self, names: set[str]) -> None:
        ahead = {name for node in self._nodes if id(node) not in self._done for name in self._reads[id(node)]}
        for name in names - ahead - self._held:
            if name in self._tape:
                self._tape.drop(name)

    def _run(self, nodes: Sequence[NodeProto], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        session = self._session(nodes, inputs, outputs)
        for run in range(self.runs):
            feeds = {name: self._tape.read(name, run) for name in inputs}
            for name, value in zip(outputs, self._answers(session, outputs, feeds), strict=True):
                self._tape.append(name, value)

    def _session(self, nodes: Sequence[NodeProto], inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        reads = {name for node in nodes for name in self._reads[id(node)]}
        values = [self._tape.value_info(name) for name in inputs]
        constants = [self._constants[name] for name in sorted(reads & set(self._constants))]
        made = segment(self._model, self._folder, nodes, values, outputs, constants)
        with run_errors(_REFUSAL):
            # Threads that spin between segments take the cores from the arithmetic there.
            return open_session(made.SerializeToString(), Engine(threads=None, spinning=False))

    def _answers(self, session: Any, outputs: Sequence[str], feeds: Feeds) -> list[Array]:
        with run_errors(_REFUSAL):
            return [np.asarray(value) for value in session.run(outputs, dict(feeds))]


def leading_to(nodes: Sequence[NodeProto], names: Iterable[str]) -> list[NodeProto]:
    """The nodes, in order, that some tensors follow from."""
    needed, found = set(names), []
    for node in reversed(nodes):
        if not needed.isdisjoint(filter(None, node.output)):
            needed.update(reads_of(node))
            found.append(node)
    return found[::-1]


def reads_of(node: NodeProto) -> Iterator[str]:
    """The tensors a node reads, those that the graphs inside it read from around it included."""
    yield from filter(None, node.input)
    for _, graph in subgraphs(node):
        inside = {tensor.name for tensor in graph.initializer}
        inside |= {tensor.values.name for tensor in graph.sparse_initializer}
        inside |= {value.name for value in graph.input}
        for inner in graph.node:
            yield from (name for name in reads_of(inner) if name not in inside)
            inside.update(inner.output)
        yield from (value.name for value in graph.output if value.name not in inside)
