"""The program that is trained: what PyTorch computes as ONNX Runtime does, and what is trained in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from onnx import TensorProto
from torch import Tensor

from onnxdecomp.ir import Array, Model
from onnxdecomp.runtime import Feeds, Flow, Outputs
from onnxdecomp.tuning.feeding import Portion
from onnxdecomp.tuning.landmarks import Landmarks
from onnxdecomp.tuning.program import Program
from onnxdecomp.tuning.teaching import opened

# Beyond, what PyTorch makes of a tensor is not what ONNX Runtime makes of it: in single precision, in half.
_SAME, _SAME_IN_HALF = 1e-2, 5e-2
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


# Each time what was fed leads on to further operators that are not computed here.
_MOST_CUTS = 20


def prepared(
    original: Model,
    rewritten: Model,
    landmarks: Landmarks,
    values: Mapping[str, Array],
    portion: Portion,
    device: str,
) -> tuple[Program, list[str]]:
    """The program up to the landmarks, and a line on what cannot be trained.

    Behind an operator that is not computed here the program goes on with what the teacher has there, so that
    what is trained behind it makes up for its own errors.

    Args:
        original: the model that was rewritten.
        rewritten: what was made of it.
        landmarks: where they should agree.
        values: of the initialisers that are to be trained.
        portion: to try it on.
        device: of PyTorch.

    Raises:
        RunError, MissingExtraError: ONNX Runtime does not run the models.
    """
    names, fed = landmarks.names, list[str]()
    whole = program = Program.of(rewritten, names, values, device).tried(portion.feeds, portion.rows)
    inside = {name for node in original.proto.graph.node for name in node.output}
    inside -= Flow.of(original.proto).barred
    for _ in range(_MOST_CUTS):
        cuts = [name for name in program.ends if name in inside and name not in fed]
        if not cuts or not program.missing:
            break
        with opened(original, [*fed, *cuts]) as teacher:
            wanted = teacher.run(portion.feeds)
        fed += [name for name in cuts if isinstance(wanted[name], np.ndarray)]
        program = Program.of(rewritten, names, values, device, fed)
        program = program.tried(program.given(portion.feeds, wanted), portion.rows)
    half = any(tensor.data_type in _HALF for tensor in rewritten.proto.graph.initializer)
    with opened(rewritten, [*names, *fed]) as student:
        expected = student.run(portion.feeds)
    given = program.given(portion.feeds, expected)
    program = program.less(_of_no_use(program, given, expected, _SAME_IN_HALF if half else _SAME))
    used = {name for step in program.steps for name in step.inputs}
    trained = {name: tensor for name, tensor in program.parameters.items() if name in used}
    return dataclasses.replace(program, parameters=trained), _notes(program, whole, trained)


def _of_no_use(program: Program, given: Feeds, expected: Outputs, limit: float) -> dict[str, str]:
    """The targets that must not be trained on, and why."""
    lost = {}
    for name, value in program.run(given).items():
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
    if program.fed and program.targets:
        notes.append(
            f"what stands behind '{program.fed[0]}', which PyTorch does not compute, was tuned by itself"
        )
    lost = [name for name in program.parameters if name not in trained]
    if lost and asked:
        count = f"{len(lost)} of {len(program.parameters)} weights"
        notes.append(f"no gradients reach {count}, '{lost[0]}' among them")
    return notes


def _distance(expected: Array, found: Array) -> float:
    """‖expected − found‖ / ‖expected‖; infinite where they have not the same shape."""
    if expected.shape != found.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(wide - found.astype(np.float64)) / max(float(np.linalg.norm(wide)), 1e-12))
