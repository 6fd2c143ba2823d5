"""What the chains of a unit are fitted to: moments by fold, so that factors are judged on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxdecomp.factors import Floats
from onnxdecomp.fitting.moments import Moments, total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """What the chains of a unit are fitted to.

    Attributes:
        moments: by fold (two or more) and group; outputs with the bias taken off.
        weight: the original, shape (D, C / groups, *kernel).
        centred: whether there is a bias to take up the means.
        bias: what the first site adds to its product, shape (D,).
        alpha: by which the first site multiplies their sum.
        judged: how many folds factors are judged on, None for all.
    """

    moments: Sequence[Sequence[Moments]]
    weight: Floats
    centred: bool
    bias: Floats
    alpha: float = 1.0
    judged: int | None = None

    @property
    def judges(self) -> Sequence[Sequence[Moments]]:
        """The folds that factors are judged on."""
        return self.moments[: self.judged]

    @property
    def groups(self) -> int:
        """Channel groups."""
        return len(self.moments[0])

    def rest(self, fold: int, part: Callable[[Moments], Moments] = lambda m: m) -> list[Moments]:
        """The moments, or a part of them, of all folds but one."""
        others = [parts for i, parts in enumerate(self.moments) if i != fold]
        return [total([part(each) for each in parts]) for parts in zip(*others, strict=True)]

    def blind(self) -> bool:
        """Whether its sites see nothing: no input at all or, beside a bias, always the same one."""
        return not any(moments.varies(self.centred) for moments in self.wholes())

    def wholes(self) -> list[Moments]:
        """The moments of all folds."""
        return [total(parts) for parts in zip(*self.moments, strict=True)]
