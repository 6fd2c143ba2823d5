"""Sizes of sites that shape inference cannot tell, from a run of the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto, SparseTensorProto, TensorProto, helper

from onnxdecomp.errors import MissingExtraError, RunError, UsageError
from onnxdecomp.ir import (
    PROTOBUF_LIMIT,
    Anchor,
    InputShapes,
    Model,
    Scope,
    Survey,
    channels_first,
    graph_inputs,
    is_onnx_op,
    subgraphs,
)
from onnxdecomp.runtime.flow import Flow
from onnxdecomp.runtime.inputs import Feeds, random_feeds
from onnxdecomp.runtime.segments import segment
from onnxdecomp.runtime.session import Engine, open_session, run_errors
from onnxdecomp.runtime.walk import leading_to

_INSIDE = "they are inside functions, loops or scans, where a run does not look"
# Graphs that are run for the sizes in them, the main graph first.
_MOST_PLACES = 32
_LARGE = "models above 2 GB are not run for them"
_ASTRAY = "shape inference goes astray there, in ONNX Runtime too"


def with_sizes(found: Survey, input_shapes: InputShapes, feeds: Feeds | None = None) -> Survey:
    """The survey with the sizes of its sites, as far as they can be found out, and notes on how and how far.

    Where shape inference knows all of them nothing is run, and ONNX Runtime is not needed.

    Args:
        found: the survey of a model.
        input_shapes: for inputs with unknown dimensions, where there are no feeds.
        feeds: one set of inputs; None makes up random ones.
    """
    dark = _dark(found)
    if not dark:
        return found
    unknown = "the sizes of {} sites are not known: {}".format
    if all(_place(anchor.scope) is None for anchor in dark):
        return _noted(found, unknown(len(dark), _INSIDE))
    try:
        feeds_taken = random_feeds(found.model.proto, input_shapes) if feeds is None else feeds
        seen, problem = _observed(found, feeds_taken)
    except (UsageError, MissingExtraError) as error:
        return _noted(found, unknown(len(dark), error))
    left = _dark(seen)
    if len(left) < len(dark):
        what = "random inputs" if feeds is None else "the first sample"
        seen = _noted(seen, f"the sizes of {len(dark) - len(left)} sites are those of a run on {what}")
    if left:
        inside = _INSIDE if all(anchor.scope.path for anchor in left) else _ASTRAY
        why = _LARGE if found.model.nbytes() > PROTOBUF_LIMIT else inside
        seen = _noted(seen, unknown(len(left), problem or why))
    return seen


def observe_sizes(found: Survey, feeds: Feeds) -> Survey:
    """The survey with the sizes of sites that shape inference could not tell, as far as the model runs.

    Those of the main graph and of the branches of its Ifs, whichever of these runs.

    Args:
        found: the survey of a model.
        feeds: one set of inputs.

    Raises:
        RunError: some are in the main graph, and ONNX Runtime does not run it up to any of them, though it
            has all its operators.
        MissingExtraError: it is not installed.
    """
    seen, problem = _observed(found, feeds)
    left = _dark(seen)
    nothing = len(left) == len(_dark(found)) and not all(anchor.scope.path for anchor in left)
    if problem is not None and nothing and not Flow.of(found.model.proto).strangers:
        raise problem
    return seen


def _observed(found: Survey, feeds: Feeds) -> tuple[Survey, RunError | None]:
    """What a run tells, and why it does not tell all."""
    if found.model.nbytes() > PROTOBUF_LIMIT:
        return found, None
    places: dict[str, tuple[_Place, list[Anchor]]] = {}
    for anchor in _dark(found):
        place = _place(anchor.scope)
        if place is not None:
            places.setdefault(anchor.scope.path, (place, []))[1].append(anchor)
    sized: dict[str, Anchor] = {}
    problem: RunError | None = None
    for place, anchors in list(places.values())[:_MOST_PLACES]:
        ends = dict.fromkeys(name for a in anchors for name in (a.node.input[0], a.node.output[0]))
        names = [name for name in ends if name not in feeds]
        shapes, error = _reached(found.model, place, names, feeds)
        problem = problem or error
        shapes |= feeds_shapes(feeds)
        sized |= {
            anchor.site.name: _sized(anchor, shapes)
            for anchor in anchors
            if anchor.node.input[0] in shapes and anchor.node.output[0] in shapes
        }
    if not sized:
        return found, problem
    anchors = [sized.get(anchor.site.name, anchor) for anchor in found.anchors]
    return dataclasses.replace(found, anchors=tuple(anchors)), problem


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a site stands, as if it were all in the main graph: what runs there, and constants."""

    nodes: Sequence[NodeProto]
    constants: Sequence[TensorProto | SparseTensorProto]


def _place(scope: Scope) -> _Place | None:
    """Nested branches of Ifs count as if they were taken; None for what runs repeatedly, or by a call."""
    graph = scope.graph
    if graph is None:
        return None
    own = list(graph.node), [*graph.initializer, *graph.sparse_initializer]
    if scope.outer is None:
        return _Place(*own)
    around = _place(scope.outer)
    holders = [node for node in scope.outer.body.node for _, inner in subgraphs(node) if inner is graph]
    if around is None or not holders or not is_onnx_op(holders[0], "If"):
        return None
    before = [node for node in around.nodes if node is not holders[0]]
    return _Place([*before, *own[0]], [*around.constants, *own[1]])


def _reached(
    model: Model, place: _Place, names: Sequence[str], feeds: Feeds
) -> tuple[dict[str, tuple[int, ...]], RunError | None]:
    """The shapes of tensors, which come in the order of the graph, as far as it runs; and why no farther."""
    try:
        return _run(model, place, names, feeds), None
    except RunError as error:
        problem = error
    beyond = Flow.of(model.proto).barred
    able = [name for name in names if name not in beyond]
    known: dict[str, tuple[int, ...]] = {}
    low, high = 0, len(able) + 1  # it runs up to the first, and no farther than the second
    while high - low > 1:
        middle = (low + high) // 2
        try:
            known, low = _run(model, place, able[:middle], feeds), middle
        except RunError:
            high = middle
    return known, problem


def feeds_shapes(feeds: Feeds) -> Mapping[str, tuple[int, ...]]:
    """The shape of every input."""
    return {name: array.shape for name, array in feeds.items()}


def _dark(found: Survey) -> list[Anchor]:
    """The sites whose cost is not known for want of their sizes."""
    return [a for a in found.anchors if a.site.sizes is None and a.site.params is not None]


def _noted(found: Survey, note: str) -> Survey:
    return dataclasses.replace(found, notes=(*found.notes, note))


def _run(model: Model, place: _Place, names: Sequence[str], feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors; what they hold never leaves the runtime, and nothing else is computed."""
    asked = {f"onnxdecomp/shape/{i}": name for i, name in enumerate(names)}
    nodes = leading_to(place.nodes, names)
    nodes += [helper.make_node("Shape", [name], [shape]) for shape, name in asked.items()]
    inputs = graph_inputs(model.proto)
    whole = segment(model.proto, model.folder, nodes, inputs, list(asked), place.constants)
    with run_errors(f"ONNX Runtime does not run {model.path or 'the model'}"):
        session = open_session(whole.SerializeToString(), Engine(threads=None))
        shapes = session.run(list(asked), dict(feeds))
    return {name: tuple(map(int, shape)) for name, shape in zip(names, shapes, strict=True)}


def _sized(anchor: Anchor, shapes: Mapping[str, tuple[int, ...]]) -> Anchor:
    names = (anchor.node.input[0], anchor.node.output[0])
    before, after = (channels_first(anchor.node, shapes[name]) for name in names)
    sizes: tuple[tuple[int, ...], tuple[int, ...]]
    if anchor.site.linear:
        sizes = ((math.prod(after[:-1]),),) * 2
    elif len(before) == len(after):
        sizes = ((before[0], *before[2:]), (after[0], *after[2:]))
    else:  # onnx gives up halfway on a ConvTranspose whose output_shape is smaller than its input
        return anchor
    return dataclasses.replace(anchor, site=dataclasses.replace(anchor.site, sizes=sizes))
