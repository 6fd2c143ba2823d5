"""The gradients of a step: portions computed side by side, each by a thread, and added up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from onnxdecomp.runtime import Outputs, Runner
from onnxdecomp.tuning.feeding import Portion
from onnxdecomp.tuning.objective import Objective
from onnxdecomp.tuning.program import Program

# Activations that threads keep for their gradients, together.
_MOST_BYTES = 2**31


class Crew:
    """Threads that each take portions through teacher and program.

    Threads that share the work of one operator wait for each other after each of them, and those of ONNX
    Runtime and of PyTorch for each other's cores; these wait once a step.

    Attributes:
        program: what is trained.
        parts: how many portions are computed at a time.
        most: samples in a portion at most.
    """

    def __init__(
        self, program: Program, teacher: Runner, objective: Objective, pool: ThreadPoolExecutor, parts: int
    ) -> None:
        """
        Args:
            program: what is trained.
            teacher: the original in ONNX Runtime.
            objective: what is to become small.
            pool: of threads in which PyTorch takes one core.
            parts: how many threads it has.
        """
        self.program, self.parts = program, parts
        self.most = max(1, _MOST_BYTES // parts // max(program.nbytes, 1))
        self._teacher, self._objective, self._pool = teacher, objective, pool
        self._parameters = list(program.parameters.values())

    def gradients(self, portions: Sequence[Portion]) -> Tensor:
        """Of the loss, summed over the samples of some portions.

        Returns:
            The gradients of all parameters in a row; in front of them the sum of the losses, and the number
            of samples.
        """
        size = 2 + sum(each.numel() for each in self._parameters)
        total = torch.zeros(size, device=self.program.device)
        for part in self._pool.map(self._gradients, portions):
            total += part  # in order: the sum must not depend on who is done first
        return total

    def errors(self, portions: Sequence[tuple[Portion, Outputs]], names: Sequence[str]) -> Tensor:
        """The errors of some landmarks, and the number of samples, likewise.

        Args:
            portions: with what the teacher has there.
            names: of the landmarks.
        """
        total = torch.zeros(2, device=self.program.device)
        for part in self._pool.map(lambda each: self._errors(each[0], each[1], names), portions):
            total += part
        return total

    def _gradients(self, portion: Portion) -> Tensor:
        wanted = self._teacher.run(portion.feeds)
        with _precision(self.program.device):
            found = self.program.run(self.program.given(portion.feeds, wanted))
        loss = self._objective.loss(found, wanted, portion.labels)
        gradients: Any = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        flat = [
            (torch.zeros_like(each) if gradient is None else gradient).reshape(-1).float()
            for each, gradient in zip(self._parameters, gradients, strict=True)
        ]
        return torch.cat([_head(loss), *flat]) * portion.rows

    def _errors(self, portion: Portion, wanted: Outputs, names: Sequence[str]) -> Tensor:
        with torch.no_grad(), _precision(self.program.device):
            found = self.program.run(self.program.given(portion.feeds, wanted))
        errors = [self._objective.error(name, found[name], wanted[name]) for name in names]
        return _head(torch.stack(errors).mean()) * portion.rows


@contextlib.contextmanager
def crew(program: Program, teacher: Runner, objective: Objective) -> Iterator[Crew]:
    """As many threads as PyTorch has, for the block; on a GPU one, which keeps it busy."""
    parts = torch.get_num_threads() if program.device.type == "cpu" else 1
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield Crew(program, teacher, objective, pool, parts)
    finally:
        torch.set_num_threads(before)


def _head(loss: Tensor) -> Tensor:
    return torch.stack([loss.detach().float(), torch.ones_like(loss, dtype=torch.float32)])


def _precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Half precision where it is fast and its range that of single: on GPUs."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
