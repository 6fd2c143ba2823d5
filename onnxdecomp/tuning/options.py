"""How to tune, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import PathLike, verified
from onnxdecomp.errors import UsageError
from onnxdecomp.tuning.trained import FACTORS, TRAINED

DEVICES = ("cpu", "cuda")


@abridged
@verified
@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How to tune.

    The same options give the same bytes on one machine with one number of PyTorch's threads, where `steps`
    end it.

    An example is in docs/python.md under "Tuning".

    Attributes:
        train: "factors": what the rewrite made, biases of chains included; "factors+norms": scales and biases
            of normalisations, too; "convs": what every Conv, ConvTranspose, Gemm and MatMul reads.
        augment: whether images are flipped, moved, turned and scaled a little.
        time_limit: seconds after which it ends, what is done before the first step included.
        steps: after which it ends, if that is sooner; the rate falls to nothing by then, or, where None are
            named, by the time limit.
        batch: samples in a step.
        seed: of what is held out, and of the order of the others.
        device: "cpu" or "cuda".
        checkpoint: a file to keep the work in, and to go on from where it is there: as if it had never ended.

    Raises:
        UsageError: a value that cannot be obeyed.
    """

    train: str = FACTORS
    augment: bool = True
    time_limit: float = 600.0
    steps: int | None = None
    batch: int = 64
    seed: int = 0
    device: str = "cpu"
    checkpoint: PathLike | None = None

    def __post_init__(self) -> None:
        if self.train not in TRAINED:
            raise UsageError(f"`train` {self.train}: there are {', '.join(TRAINED)}")
        if not 0 < self.time_limit < math.inf:
            raise UsageError(f"`time_limit` {self.time_limit:g}: give a positive number of seconds")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"`steps` {self.steps}: give 1 or more")
        if self.batch < 1:
            raise UsageError(f"`batch` {self.batch}: a step takes 1 sample or more")
        if self.seed < 0:
            raise UsageError(f"`seed` {self.seed}: give a number of 0 or more")
        if self.device not in DEVICES:
            raise UsageError(f"`device` {self.device}: there are {', '.join(DEVICES)}")
