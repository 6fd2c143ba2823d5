"""The shape of each decomposition: which convolutions a chain has, before any factor is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxdecomp.factors.ranks import Ranks

# One rank serves both modes in all but the Tucker decompositions.
ONE_RANK = ("svd", "spatial", "cp", "cp3")
METHODS = ("tucker2", "tucker1", *ONE_RANK)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkShape:
    """One convolution of a chain: its role, channels (in, out), groups, and the axes it is wide on."""

    role: str
    channels: tuple[int, int]
    groups: int
    axes: tuple[int, ...]

    def params(self, kernel: tuple[int, ...]) -> int:
        """Elements of its weight, for an original with `kernel`."""
        return (
            self.channels[0] * self.channels[1] // self.groups * math.prod(kernel[axis] for axis in self.axes)
        )


def layout(
    method: str, ranks: Ranks, channels: tuple[int, int], groups: int, ndim: int
) -> tuple[LinkShape, ...]:
    """The links of a chain.

    Args:
        method: one of METHODS.
        ranks: per group.
        channels: input and output channels of the whole original.
        groups: its groups.
        ndim: its spatial dimensions, 0 for a matrix product.

    Raises:
        ValueError: no such method.
    """
    every = tuple(range(ndim))
    rank_in, rank_out = (r * groups if r is not None else None for r in (ranks.input, ranks.output))
    core_in, core_out = rank_in or channels[0], rank_out or channels[1]

    def link(role: str, c_in: int, c_out: int, axes: tuple[int, ...], depthwise: bool = False) -> LinkShape:
        return LinkShape(role=role, channels=(c_in, c_out), groups=c_in if depthwise else groups, axes=axes)

    if method in ("tucker2", "tucker1"):
        first = [link("tucker_in", channels[0], core_in, ())] if rank_in is not None else []
        last = [link("tucker_out", core_out, channels[1], ())] if rank_out is not None else []
        return (*first, link("tucker_core", core_in, core_out, every), *last)
    if method == "svd":
        # A 1×1 has no kernel to share out, but its stride belongs on the first conv, which then does less.
        return (link("svd_in", channels[0], core_in, every), link("svd_out", core_in, channels[1], ()))
    if method == "spatial":
        return (
            link("spatial_in", channels[0], core_in, every[:1]),
            link("spatial_out", core_in, channels[1], every[1:]),
        )
    if method not in ("cp", "cp3"):
        raise ValueError(f"no decomposition is called {method!r}")
    split = [(axis,) for axis in every] if method == "cp" else [every]
    roles = [f"cp_{i}" for i in range(len(split))] if method == "cp" else ["cp_core"]
    middle = [link(role, core_in, core_in, axes, True) for role, axes in zip(roles, split, strict=True)]
    return (link("cp_in", channels[0], core_in, ()), *middle, link("cp_out", core_in, channels[1], ()))
