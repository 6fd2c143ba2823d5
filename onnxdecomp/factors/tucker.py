"""Tucker decomposition of a convolution weight along its channel modes.

A weight W of shape (D, C, *k) becomes W ≈ G ×₀ U ×₁ V with a core G of shape (S, R, *k) and orthonormal
factors U (D, S) and V (C, R): as convolutions, Vᵀ is a 1×1, G the k×k, U a 1×1 (Kim et al. 2016,
arXiv:1511.06530). Tucker-1 keeps one of the two factors.

The factors are those of `tensorly.decomposition.partial_tucker(W, modes=[0, 1])`: higher-order orthogonal
iteration from the truncated HOSVD (De Lathauwer, De Moor, Vandewalle 2000, SIAM J. Matrix Anal. Appl. 21).
They are computed from the Gram matrices of the unfoldings, of size channels × channels, instead of SVDs of
the unfoldings themselves: the eigenvectors are the same and the work is several times less. In float64 the
squaring costs no accuracy that a float32 weight has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorly as tl
from numpy.typing import NDArray
from scipy.linalg import eigh
from tensorly.base import unfold
from tensorly.tenalg import mode_dot, multi_mode_dot

from onnxdecomp.factors.chain import Chain, Link
from onnxdecomp.ranks import Ranks

Floats = NDArray[np.float64]

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
    links = []
    if ranks.input is not None:
        links.append(Link("tucker_in", _stack([f.T for _, _, f in parts], spatial), is_core=False))
    links.append(Link("tucker_core", np.concatenate([core for core, _, _ in parts]), is_core=True))
    if ranks.output is not None:
        links.append(Link("tucker_out", _stack([f for _, f, _ in parts], spatial), is_core=False))
    return Chain(tuple(links), groups)


def _stack(matrices: Sequence[Floats], spatial: tuple[int, ...]) -> Floats:
    stacked = np.concatenate(matrices)
    return np.ascontiguousarray(stacked).reshape(*stacked.shape, *spatial)


def _factorise_group(weight: Floats, ranks: Ranks) -> tuple[Floats, Floats, Floats]:
    """Core (S, R, *k) and factors (D, S), (C, R) of one group's weight; no factor is the identity."""
    wanted = {mode: rank for mode, rank in enumerate((ranks.output, ranks.input)) if rank is not None}
    core, factors = _hooi(weight, wanted)
    out_factor, in_factor = (factors.get(mode, np.eye(weight.shape[mode])) for mode in (0, 1))
    return np.ascontiguousarray(core), out_factor, in_factor


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
    """The `rank` leading left singular vectors of the unfolding along `mode`, shape (n_mode, rank).

    The sign is fixed (largest entry positive), so that the same weight gives the same bytes.
    """
    unfolding = unfold(tensor, mode)
    size = len(unfolding)
    _, vectors = eigh(unfolding @ unfolding.T, subset_by_index=(size - rank, size - 1), check_finite=False)
    leading = vectors[:, ::-1]
    largest = np.take_along_axis(leading, np.abs(leading).argmax(axis=0)[None], axis=0)
    return np.asarray(leading * np.where(largest < 0, -1.0, 1.0))
