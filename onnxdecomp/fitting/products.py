"""What a product Ŵx comes to over samples, from their moments alone: its loss, its means, its spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.factors import Floats
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.outcome import Spread
from onnxdecomp.fitting.target import Target


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """Ŵx of one group, for losses over any moments.

    Attributes:
        weight: Ŵ, shape (D, P).
        core: UᵀŴ with orthonormal U, shape (S, P), or Ŵ itself.
    """

    weight: Floats
    core: Floats

    def squares(self, xx: Floats) -> float:
        """Σ ‖Ŵx‖²."""
        return float(((self.core @ xx) * self.core).sum())


def shifts(moments: Sequence[Moments], products: Sequence[Product], wanted: bool) -> list[Floats | None]:
    """What `shifts_of` gives for the weights of products."""
    return shifts_of(moments, [product.weight for product in products], wanted)


def shifts_of(moments: Sequence[Moments], weights: Sequence[Floats], wanted: bool) -> list[Floats | None]:
    """What the biases must add so that the mean outputs are right, per group; None where not `wanted`.

    Args:
        moments: of each group.
        weights: Ŵ of each, shape (D, P).
        wanted: whether there is a bias to take it up.
    """
    if not wanted:
        return [None] * len(moments)
    return [(m.y - weight @ m.x) / m.count for m, weight in zip(moments, weights, strict=True)]


def _loss(moments: Moments, product: Product, shift: Floats | None, squares: float) -> float:
    """Σ ‖y − Ŵx − shift‖², given Σ ‖Ŵx‖²."""
    found = float(moments.yy.sum()) + squares - 2 * float((product.weight * moments.yx).sum())
    if shift is not None:
        found += float(shift @ (moments.count * shift - 2 * (moments.y - product.weight @ moments.x)))
    return max(found, 0.0)


def loss_over(
    moments: Sequence[Moments], products: Sequence[Product], moved: Sequence[Floats | None]
) -> float:
    """Σ ‖y − Ŵx − shift‖² over all groups, `moved` being the shift of each."""
    return sum(map(_loss, moments, products, moved, _squares(products, moments)))


def _squares(products: Sequence[Product], moments: Sequence[Moments]) -> list[float]:
    return [product.squares(m.xx) for product, m in zip(products, moments, strict=True)]


def plain_losses(products: Sequence[Product], target: Target) -> tuple[float, ...]:
    """Held-out losses of the plain factors: as they are, and with biases moved to the other folds' means."""
    squares = [_squares(products, parts) for parts in target.judges]
    losses = []
    for corrected in (False, True)[: 1 + target.centred]:
        lost = 0.0
        for fold, parts in enumerate(target.judges):
            moved = shifts(target.rest(fold, Moments.means), products, corrected)
            lost += sum(map(_loss, parts, products, moved, squares[fold]))
        losses.append(lost)
    return tuple(losses)


@dataclass(frozen=True, slots=True)
class Outputs:
    """Sums over all outputs of a site: how many, Σ and Σ²."""

    count: float
    total: float
    squares: float

    @classmethod
    def of(
        cls,
        moments: Sequence[Moments],
        products: Sequence[Product | None],
        shifts: Sequence[Floats | None],
        bias: Floats,
    ) -> Outputs:
        """Of a product and its shift in each group; None is the original's."""
        count = first = second = 0.0
        for m, product, shift, added in zip(
            moments, products, shifts, np.split(bias, len(moments)), strict=True
        ):
            sums = m.y if product is None else product.weight @ m.x
            squares = m.yy if product is None else ((product.weight @ m.xx) * product.weight).sum(axis=1)
            offset = added if shift is None else added + shift
            first += float((sums + m.count * offset).sum())
            second += float((squares + offset * (2 * sums + m.count * offset)).sum())
            count += m.count * len(added)
        return cls(count, first, max(second, 0.0))

    def spread(self, alpha: float) -> Spread:
        """Mean and standard deviation of `alpha` times the outputs."""
        mean = self.total / self.count
        deviation = math.sqrt(max(self.squares / self.count - mean**2, 0.0))
        return Spread(alpha * mean, abs(alpha) * deviation)
