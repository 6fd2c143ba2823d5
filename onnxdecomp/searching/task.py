"""What is searched for, and on what."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxdecomp.ir import InputShapes
from onnxdecomp.planning import Policy
from onnxdecomp.rewriting import Track as TrackJobs
from onnxdecomp.sampling import Labels, Samples
from onnxdecomp.searching.goal import Goal
from onnxdecomp.searching.probe import Track
from onnxdecomp.timing import Setting

COSTS = ("measured", "macs")
# What ranks are multiples of: without timing nothing speaks for whole blocks.
ALIGN = {"measured": 8, "macs": 2}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What is searched for, and on what.

    Attributes:
        path: of the model.
        goal: what it is to become.
        setting: where it must be fast.
        input_shapes: for inputs with unknown dimensions.
        fitted: samples to fit to; None for plain factors.
        held_out: samples to measure on; None without `fitted`.
        labels: of `held_out`, or None.
        policy: which choices are weighed.
        cost: "measured", or "macs" where nothing is to be timed.
        freeze: treat weights that callers may override as constant.
        trials: of an Optuna study after the search; 0 for none.
        storage: where the study lies; None keeps it in memory.
        study: its name; None derives one.
        deadline: `time.monotonic()` after which no new round begins; None for none.
        track: wraps units, to show progress.
        track_jobs: wraps the jobs of a rewrite.
        say: takes a line on what is going on.
        scratch: folder for large intermediate files; None is the system's.
    """

    path: Path
    goal: Goal
    setting: Setting
    input_shapes: InputShapes
    fitted: Samples | None
    held_out: Samples | None
    labels: Labels | None
    policy: Policy
    cost: str
    freeze: bool
    trials: int
    storage: str | None
    study: str | None
    deadline: float | None
    track: Track
    track_jobs: TrackJobs
    say: Callable[[str], None]
    scratch: Path | None

    def late(self) -> bool:
        """Whether no new round should begin."""
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def timed(self) -> bool:
        """Whether models are timed."""
        return self.cost == "measured"
