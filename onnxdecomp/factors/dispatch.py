"""Decompositions of one convolution weight, one file each; all produce a `Chain`."""

from __future__ import annotations

from onnxdecomp.factors import cp, pointwise, spatial, tucker
from onnxdecomp.factors.chain import Chain, Floats
from onnxdecomp.factors.ranks import Ranks


def factorise(method: str, weight: Floats, ranks: Ranks, groups: int) -> Chain:
    """Decompose a weight.

    Args:
        method: one of METHODS.
        weight: shape (C_out, C_in / groups, *kernel), or (C_out, C_in) for a matrix product; finite, float64.
        ranks: per group; see `onnxdecomp.planning.rank_limits`.
        groups: each group is factored by itself.

    Raises:
        ValueError: no such method.
        CpError: CP found no stable decomposition.
    """
    if method in ("tucker2", "tucker1"):
        return tucker.factorise(weight, ranks, groups)
    rank = ranks.output or ranks.input or 1
    if method == "svd":
        return pointwise.factorise(weight, rank, groups)
    if method == "spatial":
        return spatial.factorise(weight, rank, groups)
    if method in ("cp", "cp3"):
        return cp.factorise(weight, rank, groups, split=method == "cp")
    raise ValueError(f"no decomposition is called {method!r}")
