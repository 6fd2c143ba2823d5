"""The program that is trained: what PyTorch computes as ONNX Runtime does, and what is trained in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from onnx import TensorProto
from torch import Tensor

from onnxdecomp.ir import Array
from onnxdecomp.runtime import Feeds, Runner
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
    whole = Program.of(task.rewritten, task.landmarks.names, values, device)
    feeds = task.teacher.held_out[0]
    half = any(tensor.data_type in _HALF for tensor in task.rewritten.proto.graph.initializer)
    program = whole.tried(feeds)
    program = program.less(_of_no_use(program, feeds, student, _SAME_IN_HALF if half else _SAME))
    used = {name for step in program.steps for name in step.inputs}
    trained = {name: tensor for name, tensor in program.parameters.items() if name in used}
    return dataclasses.replace(program, parameters=trained), _notes(program, whole, trained)


def _of_no_use(program: Program, feeds: Feeds, student: Runner, limit: float) -> dict[str, str]:
    """The targets that must not be trained on, and why."""
    expected, lost = student.run(feeds), {}
    for name, value in program.run(feeds).items():
        if not value.requires_grad:
            lost[name] = "no gradient passes through what computes it"
        elif not _distance(expected[name], value.detach().cpu().numpy()) <= limit:
            lost[name] = "PyTorch computes it otherwise than ONNX Runtime"
    return lost


def _notes(program: Program, whole: Program, trained: Mapping[str, Tensor]) -> list[str]:
    """What cannot be trained, of all that was asked for."""
    notes = []
    asked = len(whole.targets) + len(whole.missing)
    if not asked:
        notes.append("no tensor of floats that both models have follows from what is trained")
    if program.missing:
        name, why = next(iter(program.missing.items()))
        notes.append(
            f"no gradients come from {len(program.missing)} of {asked} tensors: '{name}', since {why}"
        )
    lost = [name for name in program.parameters if name not in trained]
    if lost and asked:
        count = f"{len(lost)} of {len(program.parameters)} weights"
        notes.append(f"no gradients reach {count}, '{lost[0]}' among them")
    return notes


def watched(program: Program, landmarks: Landmarks) -> tuple[str, ...]:
    """The targets that say which state is best: what is judged, or what stands last in front of its end."""
    return tuple(name for name in landmarks.judged if name in program.targets) or program.targets[-1:]


def _distance(expected: Array, found: Array) -> float:
    """‖expected − found‖ / ‖expected‖; infinite where they have not the same shape."""
    if expected.shape != found.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(wide - found.astype(np.float64)) / max(float(np.linalg.norm(wide)), 1e-12))
