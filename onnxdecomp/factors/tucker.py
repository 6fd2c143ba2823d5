"""Tucker decomposition of a convolution weight along its channel modes.

A weight W of shape (D, C, *k) becomes W ≈ G ×₀ U ×₁ V with a core G of shape (S, R, *k) and orthonormal
factors U (D, S) and V (C, R): as convolutions, Vᵀ is a 1×1, G the k×k, U a 1×1 (Kim et al. 2016,
arXiv:1511.06530). Tucker-1 keeps one of the two factors.

The factors are those of `tensorly.decomposition.partial_tucker(W, modes=[0, 1])`: higher-order orthogonal
iteration from the truncated HOSVD (De Lathauwer, De Moor, Vandewalle 2000, SIAM J. Matrix Anal. Appl. 21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorly as tl
from tensorly.base import unfold
from tensorly.tenalg import mode_dot, multi_mode_dot

from onnxdecomp.factors.chain import Chain, Floats, Link
from onnxdecomp.factors.linalg import leading_vectors
from onnxdecomp.ranks import Ranks

_MAX_ITERATIONS = 100
# Stop when an iteration improves the relative error by less, as partial_tucker does.
_TOLERANCE = 1e-4


def factorise(weight: Floats, ranks: Ranks, groups: int) -> Chain:
    """Decompose a Conv weight into a Tucker-2 chain, or Tucker-1 where one rank is None.

    Args:
        weight: shape (C_out, C_in / groups, *kernel), finite.
        ranks: channels between the convolutions of one group, at most the channels of that mode.
        groups: each group is factored by itself.

    Returns:
        1×1 → k×k → 1×1, less the 1×1 whose rank is None.
    """
    # Whatever TensorLy backend the caller's program runs on, the arrays here are NumPy's.
    with tl.backend_context("numpy", local_threadsafe=True):
        parts = [_factorise_group(part, ranks) for part in np.split(weight, groups)]
    spatial = (1,) * (weight.ndim - 2)
    every = tuple(range(weight.ndim - 2))
    links = []
    if ranks.input is not None:
        links.append(Link("tucker_in", _stack([f.T for _, _, f in parts], spatial), (), groups))
    links.append(Link("tucker_core", np.concatenate([core for core, _, _ in parts]), every, groups))
    if ranks.output is not None:
        links.append(Link("tucker_out", _stack([f for _, f, _ in parts], spatial), (), groups))
    return Chain(tuple(links), groups)


def _stack(matrices: Sequence[Floats], spatial: tuple[int, ...]) -> Floats:
    stacked = np.concatenate(matrices)
    return np.ascontiguousarray(stacked).reshape(*stacked.shape, *spatial)


def _factorise_group(weight: Floats, ranks: Ranks) -> tuple[Floats, Floats, Floats]:
    """Core (S, R, *k) and factors (D, S), (C, R) of one group's weight; no factor is the identity."""
    wanted = {mode: rank for mode, rank in enumerate((ranks.output, ranks.input)) if rank is not None}
    # Squares of very large or small weights would leave the range of float64; the factors have no scale.
    peak = float(np.abs(weight).max()) or 1.0
    core, factors = _hooi(weight / peak, wanted)
    out_factor, in_factor = (factors.get(mode, np.eye(weight.shape[mode])) for mode in (0, 1))
    return np.ascontiguousarray(core) * peak, out_factor, in_factor


def _hooi(tensor: Floats, ranks: Mapping[int, int]) -> tuple[Floats, dict[int, Floats]]:
    """Core and orthonormal factors (n_mode, rank) by mode, by higher-order orthogonal iteration.

    For orthonormal factors ‖W − Ŵ‖² = ‖W‖² − ‖core‖²: the error needs no reconstruction.
    """
    factors = {mode: _leading(tensor, mode, rank) for mode, rank in ranks.items()}
    core = _project(tensor, factors)
    norm = tl.norm(tensor) or 1.0
    error = _relative_error(core, norm)
    for _ in range(_MAX_ITERATIONS if len(ranks) > 1 else 0):
        for mode, rank in ranks.items():
            projected = _project(tensor, {m: f for m, f in factors.items() if m != mode})
            factors[mode] = _leading(projected, mode, rank)
            core = mode_dot(projected, factors[mode].T, mode)
        previous, error = error, _relative_error(core, norm)
        if previous - error < _TOLERANCE:
            break
    return core, factors


def _project(tensor: Floats, factors: Mapping[int, Floats]) -> Floats:
    projected: Floats = multi_mode_dot(tensor, [f.T for f in factors.values()], modes=list(factors))
    return projected


def _relative_error(core: Floats, norm: float) -> float:
    return float(np.sqrt(max(norm**2 - tl.norm(core) ** 2, 0.0)) / norm)


def _leading(tensor: Floats, mode: int, rank: int) -> Floats:
    return leading_vectors(unfold(tensor, mode), rank)
