"""Sizes that shape inference cannot tell, from a run of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx
from onnx import helper

from onnxdecomp.errors import RunError, first_line
from onnxdecomp.ir import PROTOBUF_LIMIT, Anchor, Model, Survey
from onnxdecomp.runtime import Engine, Feeds, onnxruntime, open_session


def observe_sizes(model: Model, found: Survey, feeds: Feeds) -> Survey:
    """The survey with the sizes of Convs of the main graph that shape inference could not tell.

    Args:
        model: loaded from a file.
        found: its survey.
        feeds: one set of inputs.

    Raises:
        RunError: ONNX Runtime does not run the model.
    """
    blind = [a for a in found.anchors if a.site.sizes is None and a.site.op == "Conv" and not a.scope.path]
    if not blind or model.path is None or model.nbytes() > PROTOBUF_LIMIT:
        return found
    names = list(dict.fromkeys(name for a in blind for name in (a.node.input[0], a.node.output[0])))
    shapes = dict(feeds_shapes(feeds)) | _run(model, [name for name in names if name not in feeds], feeds)
    anchors = tuple(_sized(anchor, shapes) if anchor in blind else anchor for anchor in found.anchors)
    return dataclasses.replace(found, anchors=anchors)


def feeds_shapes(feeds: Feeds) -> Mapping[str, tuple[int, ...]]:
    """The shape of every input."""
    return {name: array.shape for name, array in feeds.items()}


def _run(model: Model, names: Sequence[str], feeds: Feeds) -> dict[str, tuple[int, ...]]:
    proto = onnx.load(str(model.path))
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    onnxruntime()
    # onnxruntime's exceptions share no base class of their own.
    try:
        session = open_session(proto.SerializeToString(), Engine())
        return {name: value.shape for name, value in zip(names, session.run(names, dict(feeds)), strict=True)}
    except Exception as error:
        raise RunError(f"ONNX Runtime does not run {model.path}: {first_line(error)}") from error


def _sized(anchor: Anchor, shapes: Mapping[str, tuple[int, ...]]) -> Anchor:
    before, after = (shapes[name] for name in (anchor.node.input[0], anchor.node.output[0]))
    sizes = tuple((shape[0], *shape[2:]) for shape in (before, after))
    return dataclasses.replace(anchor, site=dataclasses.replace(anchor.site, sizes=(sizes[0], sizes[1])))
