"""How long models take in ONNX Runtime, each in a process of its own, in turns.

What disturbs a timing is slower than one run: other programs, the clock, where in memory a process
happened to put its weights. So the models take turns (A B, B A, …), every process is started several
times over, and the interval comes from resampling whole launches, not runs (Kalibera and Jones 2013,
"Rigorous benchmarking in reasonable time").
"""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.arguments import verified
from onnxdecomp.errors import RunError, UsageError, first_line
from onnxdecomp.runtime import Engine, Feeds, onnxruntime
from onnxdecomp.timing.stats import Launch

WARMUP_RUNS = 10
TURNS = 4
_LAUNCHES = 10
_FEWEST_LAUNCHES = 3


@verified
@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long to measure each model.

    An example is in docs/python.md under "Timing".

    Attributes:
        duration: seconds of timed runs.
        runs: that many timed runs at least, whatever they take; None goes by the duration.
    """

    duration: float = 5.0
    runs: int | None = None

    def __post_init__(self) -> None:
        if not (self.duration > 0 and math.isfinite(self.duration)):
            raise UsageError(f"`duration` {self.duration:g}: give a positive number of seconds")
        if self.runs is not None and self.runs < 1:
            raise UsageError(f"`runs` {self.runs}: too few; give 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contestant:
    """A model that is to be timed on one set of inputs."""

    path: Path
    feeds: Feeds


def race(contestants: Sequence[Contestant], engine: Engine, budget: Budget) -> list[list[Launch]]:
    """Time several models side by side; per model its launches, those at one place ran together.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        RunError: a model does not load or run, or not on the execution provider asked for.
    """
    rounds = [found for found, _ in launches(contestants, engine, budget)]
    return [list(each) for each in zip(*rounds, strict=True)]


def launches(
    contestants: Sequence[Contestant], engine: Engine, budget: Budget
) -> Iterator[tuple[tuple[Launch, ...], float]]:
    """As `race`, one launch of each model at a time, with the share done: what is known can be shown early.

    Args:
        contestants: the models.
        engine: how to run them.
        budget: shared out among the launches.
    """
    onnxruntime()
    number, runs = _LAUNCHES, 0
    done = 0
    while done < number:
        with ExitStack() as stack:
            began = time.perf_counter()
            processes = [stack.enter_context(_process(each, engine)) for each in contestants]
            for process in processes:
                process.warm_up()
            if not runs:
                overhead = (time.perf_counter() - began) / len(contestants)
                number, runs = _shares(budget, overhead, max(process.single for process in processes))
            _take_turns(processes, runs, done)
            found = tuple(process.launch() for process in processes)
        done += 1
        yield found, done / number


def _shares(budget: Budget, overhead: float, single: float) -> tuple[int, int]:
    """How many launches, and runs per turn: fewer launches where starting costs more than measuring."""
    wanted = budget.runs if budget.runs is not None else math.ceil(budget.duration / single)
    affordable = int(wanted * single / max(overhead, 1e-3))
    number = min(max(affordable, _FEWEST_LAUNCHES), _LAUNCHES)
    if budget.runs is not None:
        number = min(number, math.ceil(budget.runs / TURNS))
    return number, max(1, math.ceil(wanted / (number * TURNS)))


def _take_turns(processes: Sequence[_Process], runs: int, launch: int) -> None:
    for turn in range(TURNS):
        order = processes if (turn + launch) % 2 == 0 else processes[::-1]
        for process in order:
            process.run(1)  # wakes the threads, and brings the weights back into the caches
            process.run(runs, timed=True)


@dataclass(slots=True)
class _Process:
    name: str
    child: subprocess.Popen[bytes]
    load_s: float = 0.0
    copies_s: float | None = None
    single: float = 0.0
    peak: int | None = None
    seconds: list[NDArray[np.float64]] = dataclasses.field(default_factory=list)

    def ask(self, call: Any) -> Any:
        try:
            pickle.dump(call, cast(Any, self.child.stdin))
            cast(Any, self.child.stdin).flush()
            fine, answer = pickle.load(cast(Any, self.child.stdout))
        except (EOFError, BrokenPipeError) as error:
            raise RunError(
                f"ONNX Runtime's process for {self.name} died (exit {self.child.wait()}); "
                "perhaps there was too little memory"
            ) from error
        if not fine:
            raise RunError(f"ONNX Runtime does not run {self.name}: {first_line(Exception(answer))}")
        return answer

    def run(self, runs: int, *, timed: bool = False) -> NDArray[np.float64]:
        seconds, self.peak = self.ask(runs)
        if timed:
            self.seconds.append(seconds)
        return cast(NDArray[np.float64], seconds)

    def warm_up(self) -> None:
        self.single = float(np.median(self.run(WARMUP_RUNS)))

    def launch(self) -> Launch:
        return Launch(
            seconds=np.concatenate(self.seconds),
            load_s=self.load_s,
            copies_s=self.copies_s,
            peak_memory=self.peak,
        )


@contextmanager
def _process(contestant: Contestant, engine: Engine) -> Iterator[_Process]:
    # Ctrl-C is this process's to answer; the child finds what its parent found, wherever that was started.
    command = [sys.executable, "-P", "-m", "onnxdecomp.timing.worker"]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(each or str(Path.cwd()) for each in sys.path)}
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=paths)
    try:
        process = _Process(contestant.path.name, child)
        how = {field.name: getattr(engine, field.name) for field in dataclasses.fields(engine)}
        opened = process.ask((os.fspath(contestant.path), how, dict(contestant.feeds)))
        process.load_s, process.copies_s, providers = opened
        if providers[0] != engine.provider:
            raise RunError(
                f"ONNX Runtime could not start {engine.provider} and fell back to {providers[0]}: "
                "its libraries are missing or do not fit"
            )
        yield process
    finally:
        child.kill()
        child.communicate()
