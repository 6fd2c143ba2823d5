"""Sizes of sites that shape inference cannot tell, from a run of the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from onnx import helper

from onnxdecomp.errors import MissingExtraError, RunError, UsageError
from onnxdecomp.ir import (
    LINEAR_OPS,
    PROTOBUF_LIMIT,
    Anchor,
    InputShapes,
    Model,
    Survey,
    channels_first,
    graph_inputs,
)
from onnxdecomp.runtime.inputs import Feeds, random_feeds
from onnxdecomp.runtime.segments import segment
from onnxdecomp.runtime.session import Engine, open_session, run_errors

_INSIDE = "they are inside functions or other nodes' graphs, where a run does not look"
_LARGE = "models above 2 GB are not run for them"


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
    if all(anchor.scope.graph is None for anchor in dark):
        return _noted(found, unknown(len(dark), _INSIDE))
    try:
        seen = observe_sizes(found, random_feeds(found.model.proto, input_shapes) if feeds is None else feeds)
    except (UsageError, RunError, MissingExtraError) as error:
        return _noted(found, unknown(len(dark), error))
    left = _dark(seen)
    if len(left) < len(dark):
        what = "random inputs" if feeds is None else "the first sample"
        seen = _noted(seen, f"the sizes of {len(dark) - len(left)} sites are those of a run on {what}")
    if left:
        large = any(not anchor.scope.path for anchor in left)
        seen = _noted(seen, unknown(len(left), _LARGE if large else _INSIDE))
    return seen


def observe_sizes(found: Survey, feeds: Feeds) -> Survey:
    """The survey with the sizes of sites of the main graph that shape inference could not tell.

    Args:
        found: the survey of a model.
        feeds: one set of inputs.

    Raises:
        RunError: ONNX Runtime does not run the model.
        MissingExtraError: it is not installed.
    """
    dark = [anchor for anchor in _dark(found) if not anchor.scope.path]
    if not dark or found.model.nbytes() > PROTOBUF_LIMIT:
        return found
    names = list(dict.fromkeys(name for a in dark for name in (a.node.input[0], a.node.output[0])))
    shapes = dict(feeds_shapes(feeds)) | _run(found.model, [n for n in names if n not in feeds], feeds)
    anchors = tuple(_sized(anchor, shapes) if anchor in dark else anchor for anchor in found.anchors)
    return dataclasses.replace(found, anchors=anchors)


def feeds_shapes(feeds: Feeds) -> Mapping[str, tuple[int, ...]]:
    """The shape of every input."""
    return {name: array.shape for name, array in feeds.items()}


def _dark(found: Survey) -> list[Anchor]:
    """The sites whose cost is not known for want of their sizes."""
    return [a for a in found.anchors if a.site.sizes is None and a.site.params is not None]


def _noted(found: Survey, note: str) -> Survey:
    return dataclasses.replace(found, notes=(*found.notes, note))


def _run(model: Model, names: Sequence[str], feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors of the main graph; what they hold never leaves the runtime."""
    graph = model.proto.graph
    constants = [*graph.initializer, *graph.sparse_initializer]
    asked = {f"onnxdecomp/shape/{i}": name for i, name in enumerate(names)}
    nodes = [*graph.node, *(helper.make_node("Shape", [name], [shape]) for shape, name in asked.items())]
    whole = segment(model.proto, model.folder, nodes, graph_inputs(model.proto), list(asked), constants)
    with run_errors(f"ONNX Runtime does not run {model.path or 'the model'}"):
        session = open_session(whole.SerializeToString(), Engine(threads=None))
        shapes = session.run(list(asked), dict(feeds))
    return {name: tuple(map(int, shape)) for name, shape in zip(names, shapes, strict=True)}


def _sized(anchor: Anchor, shapes: Mapping[str, tuple[int, ...]]) -> Anchor:
    names = (anchor.node.input[0], anchor.node.output[0])
    before, after = (channels_first(anchor.node, shapes[name]) for name in names)
    if anchor.site.op not in LINEAR_OPS:
        sizes = ((before[0], *before[2:]), (after[0], *after[2:]))
    else:
        sizes = ((math.prod(after[:-1]),),) * 2
    return dataclasses.replace(anchor, site=dataclasses.replace(anchor.site, sizes=sizes))
