"""In which layout the Convs of a model run once ONNX Runtime's CPU provider has optimised it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

import onnx

from onnxdecomp.ir import scratch_folder
from onnxdecomp.runtime.session import Engine, onnxruntime, open_session

BLOCKED_DOMAIN = "com.microsoft.nchwc"
CONVS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose")
REORDERS = ("ReorderInput", "ReorderOutput")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the Convs of a model run after ONNX Runtime has optimised it.

    Attributes:
        blocked: names of the Convs in the blocked NCHWc layout, as ONNX Runtime made them.
        plain: names of all other Convs.
        reorders: nodes that convert between the layouts.
    """

    blocked: frozenset[str]
    plain: frozenset[str]
    reorders: int


def placement(path: str | os.PathLike[str]) -> Placement:
    """Look into the graph that ONNX Runtime's CPU provider makes of the model at `path`.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    onnxruntime()
    with scratch_folder() as scratch:
        optimised = scratch / "optimised.onnx"
        open_session(str(path), Engine(), optimised=str(optimised))
        graph = onnx.load(optimised, load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    convs = [node for node in graph.node if node.op_type in CONVS]
    return Placement(
        blocked=frozenset(node.name for node in convs if node.domain == BLOCKED_DOMAIN),
        plain=frozenset(node.name for node in convs if node.domain != BLOCKED_DOMAIN),
        reorders=sum(kinds[kind] for kind in REORDERS),
    )
