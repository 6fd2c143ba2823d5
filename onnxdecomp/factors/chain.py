"""The value every decomposition produces: the weights of a chain of convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One convolution of a chain.

    Attributes:
        role: what it is called in the graph: "tucker_in", "tucker_core" or "tucker_out".
        weight: OIHW (or OIL, OIDHW), float64; grouped like the original Conv.
        is_core: whether it keeps the original's kernel, strides, pads and dilations; the others are 1×1.
    """

    role: str
    weight: NDArray[np.float64]
    is_core: bool


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """The convolutions that replace one Conv, in order of execution; the last one carries the bias.

    Attributes:
        links: the convolutions.
        groups: channel groups of every one of them.
    """

    links: tuple[Link, ...]
    groups: int

    def reconstruct(self) -> NDArray[np.float64]:
        """The weight of the single Conv that computes what the chain computes, OIHW, grouped."""
        return np.concatenate([_compose(self, group) for group in range(self.groups)])

    def cast(self, dtype: np.dtype[np.generic]) -> Chain:
        """The chain as it will be stored: rounded to `dtype`, held in float64 again."""
        with np.errstate(over="ignore"):
            rounded = (link.weight.astype(dtype).astype(np.float64) for link in self.links)
            links = tuple(
                Link(old.role, new, old.is_core) for old, new in zip(self.links, rounded, strict=True)
            )
        return Chain(links, self.groups)


def _compose(chain: Chain, group: int) -> NDArray[np.float64]:
    composed: NDArray[np.float64] | None = None
    for link in chain.links:
        weight = np.split(link.weight, chain.groups)[group]
        if composed is None:
            composed = weight
        elif link.is_core:
            composed = np.einsum(
                "or...,ri->oi...", weight, composed.reshape(composed.shape[:2]), optimize=True
            )
        else:
            composed = np.tensordot(weight.reshape(weight.shape[:2]), composed, axes=1)
    if composed is None:
        raise ValueError("a chain has at least one convolution")
    return composed
