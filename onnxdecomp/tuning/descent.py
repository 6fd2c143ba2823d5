"""The loop: rates relative to the tensors, one cycle, and the best state kept."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxdecomp.errors import StoppedError
from onnxdecomp.ir import Array
from onnxdecomp.progress import Progress, ProgressEvent
from onnxdecomp.runtime import Outputs
from onnxdecomp.stopping import uninterrupted
from onnxdecomp.tuning.crew import Crew
from onnxdecomp.tuning.feeding import Feeding, Portion
from onnxdecomp.tuning.keeping import Checkpoint, State
from onnxdecomp.tuning.sharing import Group
from onnxdecomp.tuning.soap import REMEMBERED, Soap

# How often the samples held out are looked at, in equal parts of the whole.
LOOKS = 20
# One cycle: the rate rises from a part of itself over the first part of the way, then falls to nothing.
_START, _RISE = 1 / 25, 0.3
# How often what was done is kept between two looks.
_KEEP_S = 60.0
# A loss so many times the first one is beyond recovery, and so is one that is no number.
_DIVERGED = 10.0
_AGAIN = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How far and how fast.

    Attributes:
        rate: the highest, as a part of each tensor's root mean square.
        steps: over which the rate rises and falls; None is the time that there is.
        began: `time.monotonic()` when all began.
        seconds: after which it ends at the latest.
    """

    rate: float
    steps: int | None
    began: float
    seconds: float


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """What says which state is best.

    Attributes:
        portions: samples that nothing is trained on, with what the teacher has there.
        watched: the landmarks whose error is judged.
    """

    portions: Sequence[tuple[Portion, Outputs]]
    watched: Sequence[str]


def descend(
    crew: Crew,
    feeding: Feeding,
    held_out: HeldOut,
    course: Course,
    *,
    group: Group,
    checkpoint: Checkpoint | None,
    progress: Progress,
) -> Descent:
    """Train a program's parameters to bring its targets nearer to the teacher's.

    Args:
        crew: which computes gradients of the parameters, that are trained in place.
        feeding: which samples every step takes.
        held_out: what says which state is best; in a group, of this process.
        course: how far and how fast.
        group: the processes that take parts of every step.
        checkpoint: where to go on from, and to keep every look in; None is nowhere.
        progress: told of every look; where it raises a StoppedError, the best so far is the answer.

    Raises:
        UsageError: the checkpoint is of something else.
        OutputError: it cannot be written.
    """
    loop = _Loop(crew, feeding, held_out, course, group, checkpoint, progress)
    interrupted: StoppedError | None = None
    with ThreadPoolExecutor(1) as ahead:
        try:
            loop.run(ahead)
        except StoppedError as error:
            interrupted = error
            loop.keep()
    return Descent(
        best=loop.best,
        curve=tuple(loop.curve),
        steps=loop.steps,
        restarted=loop.restarted,
        interrupted=interrupted,
    )


class _Loop:
    """The state of one descent."""

    def __init__(
        self,
        crew: Crew,
        feeding: Feeding,
        held_out: HeldOut,
        course: Course,
        group: Group,
        checkpoint: Checkpoint | None,
        progress: Progress,
    ) -> None:
        self._crew, self._feeding, self._held_out, self._course = crew, feeding, held_out, course
        self._group, self._checkpoint, self._progress = group, checkpoint, progress
        self._parameters = crew.program.parameters
        self._scales = relative_scales(list(self._parameters.values()))
        self._optimiser = Soap(list(self._parameters.values()))
        self._prepared: Future[list[Portion]] = Future()
        self._before, self._kept = 0.0, time.monotonic()
        self.best = _values(self._parameters)
        self.curve: list[tuple[int, float]] = []
        self.steps = self._looks = 0
        self._limit = 0.0
        self.restarted = self._failed = False
        kept = checkpoint.load() if checkpoint is not None else None
        if kept is not None:
            self._go_on_from(kept)

    def run(self, ahead: ThreadPoolExecutor) -> None:
        """To the end of the course, or until it has diverged twice.

        Raises:
            StoppedError: a process was interrupted, this one or another.
        """
        self._progress(ProgressEvent("tuning", self._looks, LOOKS))
        stopped: StoppedError | None = None
        self._prepare(ahead, self.steps)
        while True:
            way, stop = self._group.agree(self._way(), stopped is not None)
            if stop:
                raise stopped or StoppedError
            try:
                with self._group.together():
                    if not self.curve or self._looks < int(way * LOOKS):
                        self._looks = int(way * LOOKS)
                        self._look()
                    elif way >= 1 or self._failed:
                        break
                    else:
                        self._step(way, ahead)
            except StoppedError as error:
                if self._group.size == 1:
                    raise
                stopped = error

    def _way(self) -> float:
        """How much of the course is done, from 0 to 1; where steps are counted, no clock has a say in it."""
        done = self._seconds() / self._course.seconds
        if done >= 1:
            return 1.0
        return self.steps / self._course.steps if self._course.steps else done

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._course.began

    def _prepare(self, ahead: ThreadPoolExecutor, number: int) -> None:
        """Let the samples be read that this process takes of a step."""
        parts, group = self._crew.parts, self._group
        self._prepared = ahead.submit(
            self._feeding.step, number, parts * group.size, self._crew.most, group.mine(parts)
        )

    def _step(self, way: float, ahead: ThreadPoolExecutor) -> None:
        portions = self._prepared.result()
        self._prepare(ahead, self.steps + 1)
        total = self._group.add(self._crew.gradients(portions))
        loss = float(total[0] / total[1])
        self._limit = self._limit or max(_DIVERGED * loss, 1e-6)
        if loss <= self._limit and bool(total.isfinite().all()):
            self._descend(way, total[2:] / total[1])
        elif self.restarted:
            self._failed = True
        else:
            self._begin_again()
            self._prepare(ahead, self.steps)

    def _descend(self, way: float, gradients: Tensor) -> None:
        sizes = [each.numel() for each in self._parameters.values()]
        for parameter, gradient in zip(self._parameters.values(), torch.split(gradients, sizes), strict=True):
            parameter.grad = gradient.reshape(parameter.shape).to(parameter.dtype)
        rate = self._course.rate * (_AGAIN if self.restarted else 1) * one_cycle(way)
        for group, scale in zip(self._optimiser.param_groups, self._scales, strict=True):
            group["lr"] = rate * scale
        # What is kept must not be half of a step.
        with uninterrupted():
            self._optimiser.step()
            self.steps += 1
        if time.monotonic() - self._kept > _KEEP_S:
            self.keep()

    def _begin_again(self) -> None:
        """From the best state, at a tenth of the rate."""
        self.restarted, self._optimiser = True, Soap(list(self._parameters.values()))
        _set(self._parameters, self.best)

    # Looks
    # -----

    def _look(self) -> None:
        """The error of the watched landmarks on the samples held out; the best state is kept."""
        total = self._group.add(self._crew.errors(self._held_out.portions, self._held_out.watched))
        error = float(total[0] / total[1])
        if not self.curve or error < min(known for _, known in self.curve):
            self.best = _values(self._parameters)
        self.curve.append((self.steps, error if math.isfinite(error) else math.inf))
        if self._looks:
            self.keep()
            what = f"error on samples held out {error:.3g}"
            self._progress(ProgressEvent("tuning", self._looks, LOOKS, what))

    # Checkpoints
    # -----------

    def keep(self) -> None:
        """Write where it stands, where that is wanted."""
        if self._checkpoint is None or self._group.rank or not self.curve:
            return
        self._kept = time.monotonic()
        arrays = {f"now {name}": value for name, value in _values(self._parameters).items()}
        arrays |= {f"best {name}": value for name, value in self.best.items()}
        for name, parameter in self._parameters.items():
            moments = self._optimiser.state[parameter]
            arrays |= {f"{kind} {name}": value.cpu().numpy() for kind, value in moments.items()}
        self._checkpoint.save(
            State(
                steps=self.steps,
                looks=self._looks,
                seconds=self._seconds(),
                restarted=self.restarted,
                limit=self._limit,
                curve=tuple(self.curve),
                arrays=arrays,
            )
        )

    def _go_on_from(self, kept: State) -> None:
        self.steps, self._looks, self._before = kept.steps, kept.looks, kept.seconds
        self.restarted, self._limit, self.curve = kept.restarted, kept.limit, list(kept.curve)
        self.best = {name: kept.arrays[f"best {name}"] for name in self._parameters}
        _set(self._parameters, {name: kept.arrays[f"now {name}"] for name in self._parameters})
        for name, parameter in self._parameters.items():
            self._optimiser.state[parameter] = {
                kind: torch.tensor(kept.arrays[f"{kind} {name}"], device=parameter.device)
                for kind in REMEMBERED
                if f"{kind} {name}" in kept.arrays
            }


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


def _values(parameters: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in parameters.items()}


def _set(parameters: Mapping[str, Tensor], values: Mapping[str, Array]) -> None:
    with torch.no_grad():
        for name, tensor in parameters.items():
            tensor.copy_(torch.as_tensor(values[name]))
