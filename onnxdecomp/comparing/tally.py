"""How far two outputs are apart, summed over runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxdecomp.abridging import abridged
from onnxdecomp.factors import Floats
from onnxdecomp.ir import Array


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How output b differs from output a, over all samples together.

    An example is in docs/python.md under "Comparing".

    Attributes:
        name: of the output.
        relative_l2: ‖a − b‖ / ‖a‖; None where a is zero and b is not.
        max_abs: largest |a − b|.
        cosine: a·b / (‖a‖ ‖b‖); None where one is zero.
        top1_agreement: share of equal argmax along the class axis: axis 1 of 4-D and larger outputs, the last
            axis of 2-D and 3-D ones; None without such an axis of two or more.
        new_nonfinite: values that are NaN or Inf in b and finite in a. Where there are any, or where nothing
            is finite and numeric, the three distances are None.
    """

    name: str
    relative_l2: float | None
    max_abs: float | None
    cosine: float | None
    top1_agreement: float | None
    new_nonfinite: int

    def to_dict(self) -> dict[str, Any]:
        """The entry of this output in a JSON report."""
        snr = self.snr_db
        # JSON has no infinity.
        finite = None if snr is None or math.isinf(snr) else snr
        return {field: getattr(self, field) for field in self.__slots__} | {"snr_db": finite}

    @property
    def snr_db(self) -> float | None:
        """Signal-to-noise ratio 20 log₁₀(‖a‖ / ‖a − b‖) in dB; infinite for equal outputs."""
        if self.relative_l2 is None:
            return None
        return -20 * math.log10(self.relative_l2) if self.relative_l2 > 0 else math.inf


def class_axis(output: Array) -> int:
    """The axis of an output that holds a score per class: 1 of 4-D and larger ones, else the last."""
    return 1 if output.ndim >= 4 else output.ndim - 1


def scores_samples(output: Array) -> bool:
    """Whether an output has one vector of scores, one for each of several classes, per sample."""
    return output.ndim >= 2 and len(output) > 0 and output[0].size == output.shape[class_axis(output)] > 1


@dataclass(slots=True, eq=False)
class Tally:
    """Sums over runs of how far an output b is from a, what it should be.

    For a report, `fidelity`, which leaves NaN and Inf of a out. For a search, `share`: of distances between
    scores, not between the probabilities that follow from them; those of single sites nearly add up, while
    what sites do to probabilities grows far faster than their sum.

    Attributes:
        lost: ‖a − b‖², which is not finite where a or b is not; of other than floats, how many differ.
        whole: ‖a‖², or how many there are.
        squares: ‖a − b‖², ‖a‖², ‖b‖², a·b, of values finite in both.
        max_abs: the largest |a − b| of these; None before there are any.
        agreeing: places where the best class is the same.
        compared: places that have classes.
        per_sample: whether such a place is a sample: a and b have one vector of scores for each.
        new_nonfinite: values finite in a alone.
    """

    lost: float = 0.0
    whole: float = 0.0
    squares: Floats = field(default_factory=lambda: np.zeros(4))
    max_abs: float | None = None
    agreeing: int = 0
    compared: int = 0
    per_sample: bool = False
    new_nonfinite: int = 0

    def add(self, a: Array, b: Array) -> None:
        """Count one run. Of arrays of different shapes, as after a selection by data, nothing is alike."""
        if a.shape != b.shape:
            self.lost, self.whole = self.lost + 1, self.whole + 1
            return
        if a.dtype.kind != "f":
            self.lost, self.whole = self.lost + float((a != b).sum()), self.whole + a.size
        if a.dtype.kind in "OSU":  # strings
            return
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        known = np.isfinite(wide_a)
        both = known & np.isfinite(wide_b)
        self.new_nonfinite += int(known.sum() - both.sum())
        x, y = wide_a[both], wide_b[both]
        sums = ((x - y) ** 2).sum(), (x**2).sum(), (y**2).sum(), (x * y).sum()
        if a.dtype.kind == "f":
            self._count_floats(wide_a, wide_b, sums[:2] if both.all() else None)
        if not x.size:
            return
        self.squares += sums
        self.max_abs = max(self.max_abs or 0.0, float(np.abs(x - y).max(initial=0.0)))
        self._count_classes(wide_a, wide_b)

    def _count_floats(self, a: Floats, b: Floats, sums: tuple[Any, Any] | None) -> None:
        """Add ‖a − b‖² and ‖a‖², given where all is finite."""
        if sums is None:
            with np.errstate(invalid="ignore"):
                sums = np.square(a - b).sum(), np.square(a).sum()
        self.lost, self.whole = self.lost + float(sums[0]), self.whole + float(sums[1])

    def _count_classes(self, a: Array, b: Array) -> None:
        axis = class_axis(a)
        if a.ndim >= 2 and a.shape[axis] > 1:
            equal = a.argmax(axis) == b.argmax(axis)
            self.agreeing += int(equal.sum())
            self.compared += equal.size
            self.per_sample = a.ndim == 2

    @property
    def share(self) -> float:
        """What is lost of the whole: 0 where nothing is; may exceed 1."""
        return self.lost / self.whole if self.whole else float(self.lost > 0)

    def fidelity(self, name: str) -> Fidelity:
        """What the runs counted so far come to, for the output of that name."""
        difference, norm_a, norm_b, dot = self.squares
        relative = math.sqrt(difference / norm_a) if norm_a else (None if difference else 0.0)
        known = self.max_abs is not None and not self.new_nonfinite
        return Fidelity(
            name=name,
            relative_l2=relative if known else None,
            max_abs=self.max_abs if known else None,
            cosine=float(dot / math.sqrt(norm_a * norm_b)) if known and norm_a * norm_b > 0 else None,
            top1_agreement=self.agreeing / self.compared if self.compared else None,
            new_nonfinite=self.new_nonfinite,
        )
