"""How each decomposition meets the patches of a convolution, and the chain that a low-rank weight makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.factors import Chain, Floats, spatial_chain, svd_chain, tucker_chain
from onnxdecomp.fitting.leastsquares import LowRank
from onnxdecomp.planning import Choice


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Which values of a patch a decomposition's input factor mixes, and the ranks of both factors.

    Attributes:
        order: the patch in the order (taps, modes), taps sharing the input factor; None where it is so.
        taps: how many.
        ranks: of the input and output factor, None for none.
    """

    order: NDArray[np.int64] | None
    taps: int
    ranks: tuple[int | None, int | None]

    def arranged(self, weight: Floats) -> Floats:
        """A weight (D, P) with its patches in this order."""
        return weight if self.order is None else weight[:, self.order]

    def restored(self, weight: Floats) -> Floats:
        """A weight (D, P) in this order, back in that of the patches."""
        if self.order is None:
            return weight
        result = np.empty_like(weight)
        result[:, self.order] = weight
        return result


def arrangement(choice: Choice, kernel: tuple[int, ...], channels: int) -> Arrangement | None:
    """How `choice` meets patches of shape (*kernel, channels); None where it has no fit (CP)."""
    ranks = choice.ranks
    if choice.method in ("tucker2", "tucker1"):
        return Arrangement(None, math.prod(kernel), (ranks.input, ranks.output))
    if choice.method == "svd":
        return Arrangement(None, 1, (None, ranks.output))
    if choice.method != "spatial":
        return None
    # The first convolution mixes the first axis with the channels, and is shared by the taps of the others.
    indices = np.arange(math.prod(kernel) * channels).reshape(kernel[0], -1, channels)
    return Arrangement(indices.transpose(1, 2, 0).reshape(-1), math.prod(kernel[1:]), (ranks.output, None))


def chain_of(choice: Choice, parts: Sequence[LowRank], shape: tuple[int, ...]) -> Chain:
    """The chain of each group's low-rank weight, for an original of that shape."""
    kernel = shape[2:]
    if choice.method in ("tucker2", "tucker1"):
        nothing = np.empty((0, 0))
        triples = [
            (
                np.ascontiguousarray(np.moveaxis(part.core, 1, -1)).reshape(len(part.core), -1, *kernel),
                nothing if part.outer is None else part.outer,
                nothing if part.inner is None else part.inner,
            )
            for part in parts
        ]
        return tucker_chain(triples, choice.ranks)
    if choice.method == "svd":
        return svd_chain([_balanced(part) for part in parts], len(kernel))
    pairs = [
        (part.core.reshape(-1, part.core.shape[2]), part.inner.T) for part in parts if part.inner is not None
    ]
    return spatial_chain(pairs, shape[1:])


def _balanced(part: LowRank) -> tuple[Floats, Floats]:
    """Both factors of a matrix, of equal norms, so that neither leaves the range of a narrow type."""
    right = part.core.reshape(len(part.core), -1)
    left = np.eye(len(right)) if part.outer is None else part.outer
    scale = np.sqrt(np.linalg.norm(right, axis=1))
    scale[scale == 0] = 1.0
    return left * scale, right / scale[:, None]
