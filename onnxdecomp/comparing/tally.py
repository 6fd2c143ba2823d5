"""How far two outputs are apart, summed over samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxdecomp.errors import CheckError
from onnxdecomp.ir import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How output b differs from output a, over all samples together.

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


class Tally:
    """Sums over samples, from which the fidelity of one output follows. NaN and Inf of a are left out."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._squares = np.zeros(4)  # ‖a − b‖², ‖a‖², ‖b‖², a·b
        self._max_abs: float | None = None
        self._agreeing = self._compared = self._new_nonfinite = 0

    def add(self, a: Array, b: Array) -> None:
        """Count one pair of outputs.

        Raises:
            CheckError: their shapes or types differ.
        """
        if a.shape != b.shape or a.dtype != b.dtype:
            raise CheckError(
                f"output '{self._name}' changed from {a.dtype}{list(a.shape)} to {b.dtype}{list(b.shape)}"
            )
        if a.dtype.kind in "OSU":  # strings
            return
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        known = np.isfinite(wide_a)
        both = known & np.isfinite(wide_b)
        self._new_nonfinite += int(known.sum() - both.sum())
        x, y = wide_a[both], wide_b[both]
        if not x.size:
            return
        self._squares += ((x - y) ** 2).sum(), (x**2).sum(), (y**2).sum(), (x * y).sum()
        self._max_abs = max(self._max_abs or 0.0, float(np.abs(x - y).max(initial=0.0)))
        axis = class_axis(a)
        if a.ndim >= 2 and a.shape[axis] > 1:
            equal = wide_a.argmax(axis) == wide_b.argmax(axis)
            self._agreeing += int(equal.sum())
            self._compared += equal.size

    def fidelity(self) -> Fidelity:
        """What the pairs counted so far come to."""
        difference, norm_a, norm_b, dot = self._squares
        relative = math.sqrt(difference / norm_a) if norm_a else (None if difference else 0.0)
        known = self._max_abs is not None and not self._new_nonfinite
        return Fidelity(
            name=self._name,
            relative_l2=relative if known else None,
            max_abs=self._max_abs if known else None,
            cosine=float(dot / math.sqrt(norm_a * norm_b)) if known and norm_a * norm_b > 0 else None,
            top1_agreement=self._agreeing / self._compared if self._compared else None,
            new_nonfinite=self._new_nonfinite,
        )


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
