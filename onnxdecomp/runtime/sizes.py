"""Sizes that shape inference cannot tell, from a run of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from onnxdecomp.ir import PROTOBUF_LIMIT, Anchor, Model, Survey, graph_inputs
from onnxdecomp.runtime import Engine, Feeds, open_session, run_errors, segment


def observe_sizes(found: Survey, feeds: Feeds) -> Survey:
    """The survey with the sizes of Convs of the main graph that shape inference could not tell.

    Args:
        found: the survey of a model.
        feeds: one set of inputs.

    Raises:
        RunError: ONNX Runtime does not run the model.
    """
    blind = [a for a in found.anchors if a.site.sizes is None and a.site.op == "Conv" and not a.scope.path]
    model = found.model
    if not blind or model.nbytes() > PROTOBUF_LIMIT:
        return found
    names = list(dict.fromkeys(name for a in blind for name in (a.node.input[0], a.node.output[0])))
    shapes = dict(feeds_shapes(feeds)) | _run(model, [name for name in names if name not in feeds], feeds)
    anchors = tuple(_sized(anchor, shapes) if anchor in blind else anchor for anchor in found.anchors)
    return dataclasses.replace(found, anchors=anchors)


def feeds_shapes(feeds: Feeds) -> Mapping[str, tuple[int, ...]]:
    """The shape of every input."""
    return {name: array.shape for name, array in feeds.items()}


def _run(model: Model, names: Sequence[str], feeds: Feeds) -> dict[str, tuple[int, ...]]:
    graph = model.proto.graph
    constants = [*graph.initializer, *graph.sparse_initializer]
    whole = segment(model.proto, model.folder, graph.node, graph_inputs(model.proto), names, constants)
    with run_errors(f"ONNX Runtime does not run {model.path}"):
        session = open_session(whole.SerializeToString(), Engine(threads=None))
        return {name: value.shape for name, value in zip(names, session.run(names, dict(feeds)), strict=True)}


def _sized(anchor: Anchor, shapes: Mapping[str, tuple[int, ...]]) -> Anchor:
    before, after = (shapes[name] for name in (anchor.node.input[0], anchor.node.output[0]))
    sizes = tuple((shape[0], *shape[2:]) for shape in (before, after))
    return dataclasses.replace(anchor, site=dataclasses.replace(anchor.site, sizes=(sizes[0], sizes[1])))
