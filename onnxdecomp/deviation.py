"""How much of an output is lost, in one number without a unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxdecomp.tensors import Array


@dataclass(slots=True)
class Deviation:
    """Sums over samples of how far an output is from what it should be: ‖a − b‖² relative to ‖a‖².

    Distances between scores, not between the probabilities that follow from them: those of single sites
    nearly add up, while what sites do to probabilities grows far faster than their sum.
    """

    lost: float = 0.0
    whole: float = 0.0

    def add(self, a: Array, b: Array) -> None:
        """Count one run: what the output should be, and what it is."""
        if a.shape != b.shape:  # as after a selection by data: nothing is where it was
            self.lost, self.whole = self.lost + 1, self.whole + 1
        elif a.dtype.kind != "f":
            self.lost += float((a != b).sum())
            self.whole += a.size
        else:
            self.lost += float(np.square(np.subtract(a, b, dtype=np.float64)).sum())
            self.whole += float(np.square(a, dtype=np.float64).sum())

    @property
    def share(self) -> float:
        """What is lost of the whole: 0 where nothing is; may exceed 1."""
        return self.lost / self.whole if self.whole else float(self.lost > 0)
