"""What the user wants of a search."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError

# What a goal is about: costs to get below, or losses not to exceed.
COST_KINDS = ("speedup", "macs", "params", "size")
LOSS_KINDS = ("max_error", "max_drop", "min_agreement")
_HIGHEST_SPEEDUP = 100.0


@verified
@dataclass(frozen=True, slots=True)
class Goal:
    """One goal.

    An example is in docs/python.md under "Searching".

    Attributes:
        kind: of COST_KINDS: "speedup" by that factor, or "macs", "params" and "size" of all Convs (of the
            file) down to that share; of LOSS_KINDS: the fastest model whose outputs are off by at most
            that, relatively, whose accuracy on labels drops by at most that (or the figure that a `metric`
            of your own gives becomes worse by at most that), or whose top-1 classes agree with the original's
            at least that often; all but the metric on samples held out.
        value: see there.

    Raises:
        UsageError: a kind that is none of these, or a value that no model can have.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in (*COST_KINDS, *LOSS_KINDS):
            raise UsageError(f"`kind` {self.kind}: there are {', '.join((*COST_KINDS, *LOSS_KINDS))}")
        if self.kind == "speedup" and not 1 < self.value <= _HIGHEST_SPEEDUP:
            raise UsageError(
                f"{self}: out of reach; give a factor above 1 and up to {_HIGHEST_SPEEDUP:g}: "
                "2 is twice as fast"
            )
        highest = 1 if self.kind == "min_agreement" else math.nextafter(1, 0)
        # What a metric of the user's own may lose is in units of its own.
        highest = math.nextafter(math.inf, 0) if self.kind == "max_drop" else highest
        if self.kind != "speedup" and not 0 < self.value <= highest:
            raise UsageError(f"{self}: give a share between 0 and 1")

    def __str__(self) -> str:
        return f"`{self.kind}` {self.value:g}"

    @property
    def counted(self) -> bool:
        """Whether it bounds a cost that is counted, not timed."""
        return self.kind in COST_KINDS and self.kind != "speedup"

    @property
    def upwards(self) -> bool:
        """Whether more of its figure is better."""
        return self.kind in ("speedup", "min_agreement")

    @verified
    def reached_by(self, figure: float) -> bool:
        """Whether a figure of its kind is enough."""
        return figure >= self.value if self.upwards else figure <= self.value

    @property
    def bounds_cost(self) -> bool:
        """Whether the cost is given and the loss is to be least; else the other way round."""
        return self.kind in COST_KINDS
