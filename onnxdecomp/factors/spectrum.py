"""A spectrum: the squared singular values of an unfolding, from which ranks can be read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError
from onnxdecomp.factors.chain import Floats
from onnxdecomp.factors.vbmf import vbmf_rank


@abridged
@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Squared singular values of one unfolding, per group.

    An example is in docs/python.md under "Looking into a model".

    Attributes:
        squares: shape (groups, min(rows, columns)), largest first.
        rows: of the unfolding.
        columns: of the unfolding.
    """

    squares: Floats
    rows: int
    columns: int

    def kept(self) -> Floats:
        """Share of the energy kept at ranks 0, 1, 2, …; over all groups together."""
        summed = np.concatenate([[0.0], self.squares.sum(axis=0).cumsum()])
        return summed / summed[-1] if summed[-1] > 0 else np.ones_like(summed)

    @verified
    def energy(self, rank: int) -> float:
        """Share of the squared singular values that the leading `rank` of each group hold."""
        if rank < 0:
            raise UsageError(f"`rank` {rank}: give a number of 0 or more")
        kept = self.kept()
        return float(kept[min(rank, len(kept) - 1)])

    @verified
    def rank_for(self, share: float) -> int:
        """The smallest rank, at least 1, that keeps `share` of the energy."""
        if not 0 <= share <= 1:
            raise UsageError(f"`share` {share:g}: give a share between 0 and 1")
        # A rounding error in the sum must not ask for one rank more.
        return max(int(np.searchsorted(self.kept(), share * (1 - 1e-12))), 1)

    def vbmf(self) -> int:
        """The largest rank that variational Bayes finds in any group."""
        return max(vbmf_rank(squares, self.rows, self.columns) for squares in self.squares)
