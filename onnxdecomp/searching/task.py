"""What is searched for, and on what."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.comparing import Baseline, Metric
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Model, Survey
from onnxdecomp.planning import Policy
from onnxdecomp.progress import Progress
from onnxdecomp.runtime import Feeds
from onnxdecomp.sampling import SampleSets
from onnxdecomp.searching.goal import Goal
from onnxdecomp.timing import Setting
from onnxdecomp.tuning import Tuning

COSTS = ("measured", "macs")
# What ranks are multiples of: without timing nothing speaks for whole blocks.
ALIGN = {"measured": 8, "macs": 2}


@abridged
@verified
@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """An Optuna study after the search.

    An example is in docs/python.md under "Searching".

    Attributes:
        number: of trials that the study is to have; 0 for no study.
        storage: where it lies, a database's URL or journal:PATH; None keeps it in memory.
        study: its name; None derives one.
    """

    number: int = 0
    storage: str | None = field(default=None, repr=False)  # it may hold a password
    study: str | None = None

    def __post_init__(self) -> None:
        if self.number < 0:
            raise UsageError(f"`number` {self.number}: give the number of trials, 0 for no study")
        if not self.number and (self.storage is not None or self.study is not None):
            raise UsageError("`storage` and `study` speak of trials: give `trials`")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What is searched for, and on what.

    Attributes:
        found: the survey of the original, with the sizes of its sites as far as a run tells them.
        feeds: one set of inputs as it is to be fast on.
        baseline: what the original does.
        goal: what it is to become.
        setting: where it must be fast.
        samples: to fit to and to measure on; None for plain factors.
        policy: which choices are weighed.
        cost: "measured", or "macs" where nothing is to be timed.
        metric: by which models are judged; None for how far their outputs are off.
        trials: of an Optuna study after the search.
        tuning: how to tune what is fitted; None to leave it as it is.
        deadline: `time.monotonic()` after which no new round begins; None for none.
        progress: told of what is being done.
        scratch: folder for large intermediate files; None is the system's.
    """

    found: Survey
    feeds: Feeds
    baseline: Baseline
    goal: Goal
    setting: Setting
    samples: SampleSets | None
    policy: Policy
    cost: str
    metric: Metric | None
    trials: Trials
    tuning: Tuning | None
    deadline: float | None
    progress: Progress
    scratch: Path | None

    @property
    def model(self) -> Model:
        """The original."""
        return self.found.model

    @property
    def path(self) -> Path:
        """The file of the original."""
        return self.baseline.path

    @property
    def late(self) -> bool:
        """Whether no new round should begin."""
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def timed(self) -> bool:
        """Whether models are timed."""
        return self.cost == "measured"
