"""Where two models can be compared: their outputs, or the last tensors before them that allow it.

Outputs whose sizes depend on data (what NonMaxSuppression or NonZero selects) need not be alike in size, and
what follows from an operator that nothing here runs cannot be computed at all. In their place stand the last
tensors of floats before them that can be computed, and have the same size for any data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx import ModelProto, NodeProto, helper

from onnxdecomp.ir import Model, Shape, attribute, declared_shape, flag, load, save, scratch_folder
from onnxdecomp.runtime.flow import SELECTING, Flow
from onnxdecomp.runtime.runner import Runner, open_in_onnxruntime
from onnxdecomp.runtime.strangers import Operators
from onnxdecomp.runtime.walk import leading_to, reads_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """A node that selects by values.

    Attributes:
        op: NonMaxSuppression, NonZero, Unique, Compress or TopK.
        name: the first of its outputs.
        reads: the tensors that tell what it selects: of NonMaxSuppression its selected indices and its boxes,
            of Compress its condition, of TopK its indices, else its first output.
        centred: boxes are centres and sizes, not corners.
        axis: along which TopK selects.
    """

    op: str
    name: str
    reads: tuple[str, ...]
    centred: bool = False
    axis: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sights:
    """Where models are compared.

    Attributes:
        outputs: those of the model that have the same size for any data, and can be computed.
        instead: for every other output, what stands in its place.
        declared: the shapes that are declared of outputs whose sizes depend on data; None where none is.
        selectors: what their sizes depend on, as far as it can be looked into.
        beyond: the first node that nothing here runs, in words; None where there is none.
    """

    outputs: tuple[str, ...]
    instead: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    declared: Mapping[str, Shape | None] = field(default_factory=dict)
    selectors: tuple[Selector, ...] = ()
    beyond: str | None = None

    @property
    def plain(self) -> bool:
        """Whether they are the model's outputs, as they are."""
        return not self.instead

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are compared, each once."""
        return tuple(dict.fromkeys((*self.outputs, *(name for own in self.instead.values() for name in own))))

    @property
    def asked(self) -> tuple[str, ...]:
        """All tensors that are looked at."""
        told = (name for each in self.selectors for name in each.reads)
        return tuple(dict.fromkeys((*self.outputs, *self.declared, *self.names, *told)))

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each thing that is compared in another place."""
        told = []
        if self.beyond is not None and any(self.instead[name] for name in self._unrun):
            told.append(f"not checked beyond {self.beyond}, which nothing here runs{self._at(self._unrun)}")
        elif self.beyond is not None:
            told.append(f"nothing here runs {self.beyond}{self._at(self._unrun)}")
        if self.declared:
            one = len(self.declared) == 1
            what, verb = ("size of output", "depends") if one else ("sizes of outputs", "depend")
            told.append(f"the {what} {_listed(self.declared)} {verb} on data{self._at(self.declared)}")
        return tuple(told)

    @property
    def _unrun(self) -> list[str]:
        return [name for name in self.instead if name not in self.declared]

    def _at(self, outputs: Iterable[str]) -> str:
        names = dict.fromkeys(name for output in outputs for name in self.instead[output])
        return f": compared at {_listed(names)}" if names else ", and nothing before can be compared"

    def within(self, model: ModelProto) -> Sights:
        """Less the tensors inside that another model does not have."""
        known = _tensors(model)
        instead = {
            output: tuple(name for name in own if name in known) for output, own in self.instead.items()
        }
        selectors = tuple(each for each in self.selectors if known.issuperset(each.reads))
        return replace(self, instead=instead, selectors=selectors)


def _tensors(model: ModelProto) -> set[str]:
    """The names of all tensors of the main graph."""
    graph = model.graph
    stored = {each.name for each in (*graph.input, *graph.initializer)}
    return stored | {name for node in graph.node for name in node.output}


def _listed(names: Iterable[str]) -> str:
    first, *rest = (f"'{name}'" for name in names)
    return f"{first} and {len(rest)} more" if len(rest) > 1 else " and ".join([first, *rest])


def find_sights(model: ModelProto) -> Sights:
    """Where a model can be compared with another of the same inputs and outputs."""
    flow = Flow.of(model)
    makers = {name: node for node in model.graph.node for name in filter(None, node.output)}
    outputs: list[str] = []
    instead: dict[str, tuple[str, ...]] = {}
    declared: dict[str, Shape | None] = {}
    behind: set[int] = set()
    for value in model.graph.output:
        shape = declared_shape(value)
        barred = value.name in flow.barred
        if not barred and (value.name not in flow.sized or (shape is not None and None not in shape)):
            outputs.append(value.name)
            continue
        if not barred:
            declared[value.name] = shape
        instead[value.name] = _before(value.name, flow, makers, behind)
    blamed = [f"node '{_name(node)}' ({each.title})" for node, each in flow.strangers]
    more = f" and {len(blamed) - 1} more" if len(blamed) > 1 else ""
    return Sights(
        outputs=tuple(outputs),
        instead=instead,
        declared=declared,
        selectors=tuple(_selectors(node for node in flow.selecting if id(node) in behind)),
        beyond=f"{blamed[0]}{more}" if len(instead) > len(declared) else None,
    )


def _name(node: NodeProto) -> str:
    return node.name or next(filter(None, node.output), "")


def _before(name: str, flow: Flow, makers: Mapping[str, NodeProto], passed: set[int]) -> tuple[str, ...]:
    """The last comparable tensors before one that is not; `passed` takes the nodes between that run."""
    found, queue, seen = [], [name], {name}
    while queue:
        node = makers.get(queue.pop(0))
        if node is None:
            continue
        if flow.barred.isdisjoint(node.output):
            passed.add(id(node))
        for read in reads_of(node):
            if read in seen:
                continue
            seen.add(read)
            if flow.comparable(read):
                found.append(read)
            elif read in flow.moved or read in flow.barred:
                queue.append(read)
    return tuple(found)


def _selectors(nodes: Iterable[NodeProto]) -> Iterator[Selector]:
    for node in nodes:
        read = {
            "NonMaxSuppression": [*node.output[:1], *node.input[:1]],
            "Compress": node.input[1:2],
            "TopK": node.output[1:2],
        }.get(node.op_type, node.output[:1])
        if node.op_type not in (*SELECTING, "TopK") or not read or not all(read):
            continue
        axis = attribute(node, "axis")
        yield Selector(
            op=node.op_type,
            name=node.output[0],
            reads=tuple(read),
            centred=flag(node, "center_point_box"),
            axis=-1 if axis is None else axis.i,
        )


def with_outputs(model: Model, names: Sequence[str], *, alone: bool = False) -> Model:
    """A copy of a model that puts out some tensors inside, too.

    Args:
        model: the model.
        names: of the tensors.
        alone: it puts out nothing else, and holds no node that these do not follow from.
    """
    made = replace(model.copy(), path=None)
    graph = made.proto.graph
    known = {value.name: value for value in graph.output}
    if alone:
        kept = [known[name] for name in names if name in known]
        del graph.output[:]
        graph.output.extend(kept)
        _keep_only(made.proto, names)
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    return made


def _keep_only(model: ModelProto, names: Iterable[str]) -> None:
    """Remove the nodes that none of these tensors follows from, and the functions that are called no more."""
    needed = leading_to(model.graph.node, names)
    kept = {id(node) for node in needed}
    for i in reversed(range(len(model.graph.node))):
        if id(model.graph.node[i]) not in kept:
            del model.graph.node[i]
    called = Operators(model).called(model.graph.node)
    for i in reversed(range(len(model.functions))):
        if model.functions[i] not in called:
            del model.functions[i]


def open_seeing(path: Path, sights: Sights, opener: Callable[[Path], Runner] = open_in_onnxruntime) -> Runner:
    """Load a model such that it puts out what is to be looked at, as far as it has that.

    Args:
        path: of the model.
        sights: where to look; where these are its outputs, the model is loaded as it is.
        opener: loads a file into an engine.

    Raises:
        RunError, MissingExtraError: as the opener does.
    """
    if sights.plain:
        return opener(path)
    model = load(path)
    known = _tensors(model.proto)
    names = [name for name in sights.asked if name in known]
    with scratch_folder() as folder:
        save(with_outputs(model, names, alone=sights.beyond is not None), folder / path.name)
        return replace(opener(folder / path.name), path=path)
