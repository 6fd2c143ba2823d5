"""What ONNX's checker says of a file; nodes whose operator it does not know it does not judge."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from onnxdecomp.errors import ModelError
from onnxdecomp.ir import ONNX_DOMAINS, all_tensors, is_external, load, scopes

# Where the checker wants to know every operator.
_JUDGED = {**dict.fromkeys(ONNX_DOMAINS, ""), "ai.onnx.ml": "ai.onnx.ml"}
_ELSEWHERE = "unchecked"


def checker_refusal(path: Path) -> Exception | None:
    """What onnx.checker says against the model at `path`; None if it accepts all that it knows of it."""
    try:
        proto = load(path).proto
    except ModelError as error:
        return error
    try:
        onnx.checker.check_model(_without_strangers(proto) or str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        return error
    return None


def _without_strangers(model: ModelProto) -> bytes | None:
    """A model whose unknown operators are where the checker leaves them alone; None where it has none."""
    if not any(_unknown(node, scope.opset) for scope in scopes(model) for node in scope.body.node):
        return None
    made = ModelProto()
    made.CopyFrom(model)
    for scope in scopes(made):
        for node in scope.body.node:
            if _unknown(node, scope.opset):
                node.domain = _ELSEWHERE
    for importing in (made, *made.functions):
        importing.opset_import.add(domain=_ELSEWHERE, version=1)
    for tensor in filter(is_external, all_tensors(made)):
        # Its bytes were found when the file was read; here there is no folder to find them in.
        tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))
    return bytes(made.SerializeToString())


def _unknown(node: NodeProto, opset: int) -> bool:
    domain = _JUDGED.get(node.domain)
    if domain is None:
        return False
    known = onnx.defs.has(node.op_type, domain) if domain else onnx.defs.has(node.op_type, opset, domain)
    return not known
