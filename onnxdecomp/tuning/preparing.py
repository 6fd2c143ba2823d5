"""The program that is trained: what PyTorch computes as ONNX Runtime does, and what is trained in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from onnx import TensorProto

from onnxdecomp.ir import Array
from onnxdecomp.runtime import Runner
from onnxdecomp.tuning.judging import Task
from onnxdecomp.tuning.landmarks import Landmarks
from onnxdecomp.tuning.program import Program

# Beyond, what PyTorch makes of a tensor is not what ONNX Runtime makes of it: in single precision, in half.
_SAME, _SAME_IN_HALF = 1e-2, 5e-2
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def prepared(
    task: Task, values: Mapping[str, Array], student: Runner, device: str
) -> tuple[Program, list[str]]:
    """The program up to the landmarks, and a line on what cannot be trained.

    Args:
        task: what is to be tuned.
        values: of the initialisers that are to be trained.
        student: the rewritten model in ONNX Runtime.
        device: of PyTorch.
    """
    program = Program.of(task.rewritten, task.landmarks.names, values, device)
    feeds = task.teacher.held_out[0]
    program = program.tried(feeds)
    expected = student.run(feeds)
    with torch.no_grad():
        found = {name: value.cpu().numpy() for name, value in program.run(feeds).items()}
    half = any(tensor.data_type in _HALF for tensor in task.rewritten.proto.graph.initializer)
    limit = _SAME_IN_HALF if half else _SAME
    program = program.less(
        {
            name: "PyTorch computes it otherwise than ONNX Runtime"
            for name, value in found.items()
            if not _distance(expected[name], value) <= limit
        }
    )
    notes = []
    if program.missing:
        name, why = next(iter(program.missing.items()))
        count = f"{len(program.missing)} of {len(task.landmarks.names)} tensors"
        notes.append(f"no gradients come from {count}: '{name}', since {why}")
    used = {name for step in program.steps for name in step.inputs}
    trained = {name: tensor for name, tensor in program.parameters.items() if name in used}
    if len(trained) < len(program.parameters):
        lost = [name for name in program.parameters if name not in used]
        notes.append(f"no gradients reach {len(lost)} of {len(values)} weights, '{lost[0]}' among them")
    return dataclasses.replace(program, parameters=trained), notes


def watched(program: Program, landmarks: Landmarks) -> tuple[str, ...]:
    """The targets that say which state is best: what is judged, or what stands last in front of its end."""
    return tuple(name for name in landmarks.judged if name in program.targets) or program.targets[-1:]


def _distance(expected: Array, found: Array) -> float:
    """‖expected − found‖ / ‖expected‖; infinite where they have not the same shape."""
    if expected.shape != found.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(wide - found.astype(np.float64)) / max(float(np.linalg.norm(wide)), 1e-12))
