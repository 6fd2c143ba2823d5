"""The loop: Adam at rates relative to the tensors, one cycle, and the best state kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.errors import StoppedError
from onnxdecomp.ir import Array
from onnxdecomp.progress import Progress, ProgressEvent
from onnxdecomp.runtime import Feeds, Outputs
from onnxdecomp.tuning.program import Program
from onnxdecomp.tuning.teaching import Teacher, lessons

# How often the samples held out are looked at, in equal parts of the whole.
_LOOKS = 20
# One cycle: the rate rises from a part of itself over the first part of the way, then falls to nothing.
_START, _RISE = 1 / 25, 0.3
# A loss so many times the first one is beyond recovery, and so is one that is no number.
_DIVERGED = 10.0
_AGAIN = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How far and how fast.

    Attributes:
        rate: the highest, as a part of each tensor's root mean square.
        steps: over which the rate rises and falls; None is the time that there is.
        deadline: `time.monotonic()` when it ends at the latest.
    """

    rate: float
    steps: int | None
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Descent:
    """What the loop came to.

    Attributes:
        best: values of the trained tensors where the error on the samples held out was least.
        curve: steps done, and that error, at every look.
        steps: done in all.
        restarted: whether it diverged once, and went on from the best at a tenth of the rate.
        interrupted: what ended it early; None where nothing did.
    """

    best: Mapping[str, Array]
    curve: tuple[tuple[int, float], ...]
    steps: int
    restarted: bool
    interrupted: StoppedError | None


def descend(
    program: Program,
    teacher: Teacher,
    watched: Sequence[str],
    batches: Iterator[Feeds],
    course: Course,
    progress: Progress,
) -> Descent:
    """Train a program's parameters to bring its targets nearer to the teacher's.

    Args:
        program: whose parameters are trained, in place.
        teacher: the original.
        watched: those of the targets whose error on the samples held out says which state is best.
        batches: to train on, without end.
        course: how far and how fast.
        progress: told of every look; where it raises a StoppedError, the best so far is the answer.
    """
    loop = _Loop(program, teacher, watched, progress)
    with contextlib.closing(lessons(teacher.runner, batches)) as taught, _fewer_threads():
        try:
            loop.run(taught, course)
        except StoppedError as error:
            loop.interrupted = error
    return Descent(
        best=loop.best,
        curve=tuple(loop.curve),
        steps=loop.steps,
        restarted=loop.restarted,
        interrupted=loop.interrupted,
    )


class _Loop:
    """The state of one descent."""

    def __init__(
        self, program: Program, teacher: Teacher, watched: Sequence[str], progress: Progress
    ) -> None:
        self._program, self._variances = program, teacher.variances
        self._progress = progress
        self._held_out = [
            (feeds, {name: value for name, value in teacher.runner.run(feeds).items() if name in watched})
            for feeds in teacher.held_out
        ]
        self._parameters = list(program.parameters.values())
        self._scales = relative_scales(self._parameters)
        self.best = _state(program)
        self.curve: list[tuple[int, float]] = []
        self.steps = 0
        self.restarted = False
        self.interrupted: StoppedError | None = None

    def run(self, taught: Iterator[tuple[Feeds, Outputs]], course: Course) -> None:
        """To the end of the course, or until it has diverged twice."""
        self._progress(ProgressEvent("tuning", 0, _LOOKS))
        self._look()
        rate, optimiser, limit = course.rate, self._optimiser(), 0.0
        began, looks = time.monotonic(), 0
        while (way := self._way(course, began)) < 1:
            if way >= (looks + 1) / _LOOKS:
                looks = int(way * _LOOKS)
                self._tell(looks, self._look())
            for group, scale in zip(optimiser.param_groups, self._scales, strict=True):
                group["lr"] = rate * scale * one_cycle(way)
            loss = self._loss(*next(taught))
            value = float(loss.detach())
            limit = limit or max(_DIVERGED * value, 1e-6)
            if not value <= limit:
                if self.restarted:
                    break
                self.restarted, rate, optimiser = True, _AGAIN * rate, self._optimiser()
                self._restore()
                continue
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            self.steps += 1
        self._tell(_LOOKS, self._look())

    def _way(self, course: Course, began: float) -> float:
        """How much of the course is done, from 0 to 1; where steps are counted, no clock has a say in it."""
        now = time.monotonic()
        if now >= course.deadline:
            return 1.0
        return self.steps / course.steps if course.steps else (now - began) / (course.deadline - began)

    def _optimiser(self) -> torch.optim.Adam:
        # Errors are relative, so gradients may be small: Adam's own threshold would hide them.
        return torch.optim.Adam([{"params": [each]} for each in self._parameters], eps=1e-12)

    def _loss(self, feeds: Feeds, wanted: Outputs) -> Tensor:
        """The mean over landmarks of the squared error, as a part of the teacher's variance."""
        found = self._program.run(feeds)
        return torch.stack([self._error(name, found[name], wanted[name]) for name in found]).mean()

    def _error(self, name: str, found: Tensor, wanted: Array) -> Tensor:
        target = torch.as_tensor(wanted.astype(np.float32), device=found.device)
        return functional.mse_loss(found, target) / self._variances[name]

    def _look(self) -> float:
        """The error of the watched landmarks on the samples held out; the best state is kept."""
        total, count = 0.0, 0
        with torch.no_grad():
            for feeds, wanted in self._held_out:
                found = self._program.run(feeds)
                errors = [float(self._error(name, found[name], value)) for name, value in wanted.items()]
                rows = len(next(iter(feeds.values())))
                total, count = total + rows * sum(errors) / len(errors), count + rows
        error = total / count
        if not self.curve or error < min(known for _, known in self.curve):
            self.best = _state(self._program)
        self.curve.append((self.steps, error if math.isfinite(error) else math.inf))
        return error

    def _tell(self, looks: int, error: float) -> None:
        self._progress(ProgressEvent("tuning", looks, _LOOKS, f"error on samples held out {error:.3g}"))

    def _restore(self) -> None:
        with torch.no_grad():
            for name, tensor in self._program.parameters.items():
                tensor.copy_(torch.as_tensor(self.best[name]))


@contextlib.contextmanager
def _fewer_threads() -> Iterator[None]:
    """Leave the teacher, who works ahead, a core of its own, where there is more than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def one_cycle(way: float) -> float:
    """The rate along the way from 0 to 1, as a part of the highest (Smith, Topin 2019, arXiv:1708.07120)."""
    if way < _RISE:
        return _START + (1 - _START) * (1 - math.cos(math.pi * way / _RISE)) / 2
    return (1 + math.cos(math.pi * (way - _RISE) / (1 - _RISE))) / 2


def relative_scales(parameters: Sequence[Tensor]) -> list[float]:
    """What a rate is relative to: each tensor's root mean square, where that is 0 the median of the others.

    The tensors of a chain differ by orders of magnitude, since factors live in whitened coordinates.
    """
    sizes = [float(each.detach().double().square().mean().sqrt()) for each in parameters]
    known = sorted(size for size in sizes if size > 0)
    return [size or (known[len(known) // 2] if known else 1.0) for size in sizes]


def _state(program: Program) -> dict[str, Array]:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in program.parameters.items()}
