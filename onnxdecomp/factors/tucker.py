"""Tucker decomposition of a convolution weight along its channel modes.

A weight W of shape (D, C, *k) becomes W ≈ G ×₀ U ×₁ V with a core G of shape (S, R, *k) and orthonormal
factors U (D, S) and V (C, R): as convolutions, Vᵀ is a 1×1, G the k×k, U a 1×1 (Kim et al. 2016,
arXiv:1511.06530). Tucker-1 keeps one of the two factors.

The factors are those of `tensorly.decomposition.partial_tucker(W, modes=[0, 1])`: higher-order orthogonal
iteration from the truncated HOSVD (De Lathauwer, De Moor, Vandewalle 2000, SIAM J. Matrix Anal. Appl. 21), by
eigen-decomposition of Gram matrices. While factors are sought the weight is projected in single precision,
which moves them by no more than the weight's own rounding; the last sweep's Gram matrices and the core are in
float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorly as tl
from tensorly.base import unfold
from tensorly.tenalg import multi_mode_dot

from onnxdecomp.factors.chain import Chain, Floats, Link
from onnxdecomp.factors.linalg import SMALL, Tensor, gram, leading_space, leading_vectors, oriented
from onnxdecomp.factors.ranks import Ranks

_MAX_SWEEPS = 100
# Stop when a sweep improves the relative error by less, as partial_tucker does; large weights come near in
# single precision, which is twice as fast.
_PRECISIONS = (("float32", 2e-4), ("float64", 1e-4))


def factorise(weight: Floats, ranks: Ranks, groups: int) -> Chain:
    """Decompose a Conv weight into a Tucker-2 chain, or Tucker-1 where one rank is None.

    Args:
        weight: shape (C_out, C_in / groups, *kernel), finite.
        ranks: channels between the convolutions of one group, at most the channels of that mode.
        groups: each group is factored by itself.

    Returns:
        1×1 → k×k → 1×1, less the 1×1 whose rank is None.
    """
    return tucker_chain([_factorise_group(part, ranks) for part in np.split(weight, groups)], ranks)


def tucker_chain(parts: Sequence[tuple[Floats, Floats, Floats]], ranks: Ranks) -> Chain:
    """The chain of each group's core (S, R, *k) and factors (D, S), (C, R), less those whose rank is None."""
    cores, outs, ins = zip(*parts, strict=True)
    groups, axes = len(parts), cores[0].ndim - 2
    spatial, every = (1,) * axes, tuple(range(axes))
    links = []
    if ranks.input is not None:
        links.append(Link("tucker_in", _stack([factor.T for factor in ins], spatial), (), groups))
    links.append(Link("tucker_core", np.concatenate(cores), every, groups))
    if ranks.output is not None:
        links.append(Link("tucker_out", _stack(outs, spatial), (), groups))
    return Chain(tuple(links), groups)


def _stack(matrices: Sequence[Floats], spatial: tuple[int, ...]) -> Floats:
    stacked = np.concatenate(matrices)
    return np.ascontiguousarray(stacked).reshape(*stacked.shape, *spatial)


def _factorise_group(weight: Floats, ranks: Ranks) -> tuple[Floats, Floats, Floats]:
    """Core (S, R, *k) and factors (D, S), (C, R) of one group's weight; an unused factor is empty."""
    # Squares of very large or small weights would leave the range of float64; the factors have no scale.
    peak = float(np.abs(weight).max()) or 1.0
    scaled = weight / peak
    if ranks.output is not None and ranks.input is not None:
        factors = dict(enumerate(hooi(scaled, ranks.output, ranks.input)))
    elif ranks.output is not None:
        factors = {0: leading_vectors(unfold(tl.tensor(scaled), 0), ranks.output)}
    else:
        factors = {1: leading_vectors(unfold(tl.tensor(scaled), 1), ranks.input or 1)}
    transposed = [tl.tensor(np.ascontiguousarray(factor.T)) for factor in factors.values()]
    core = tl.to_numpy(multi_mode_dot(tl.tensor(scaled), transposed, modes=list(factors)))
    unused = np.empty((0, 0))
    return np.ascontiguousarray(core) * peak, factors.get(0, unused), factors.get(1, unused)


def hooi(weight: Floats, out_rank: int, in_rank: int) -> tuple[Floats, Floats]:
    """Orthonormal factors (D, S) and (C, R) by higher-order orthogonal iteration.

    For orthonormal factors ‖W − Ŵ‖² = ‖W‖² − ‖core‖², and ‖core‖² is the sum of the leading eigenvalues of
    the mode updated last: the error needs neither core nor reconstruction. The first mode needs no start,
    its first update follows from the other's.
    """
    out, into = weight.shape[:2]
    # With the kernel between the channels both unfoldings are views: no sweep moves the weight about.
    between = weight.reshape(out, into, -1).astype(np.float32).transpose(0, 2, 1)
    by_input = tl.tensor(np.ascontiguousarray(between).reshape(-1, into))
    by_output = tl.reshape(by_input, (out, -1))
    norm = float(np.linalg.norm(weight)) or 1.0
    out_space = None
    _, in_space = leading_space(gram(tl.transpose(by_input)), in_rank)
    error = np.inf
    for precision, tolerance in _PRECISIONS if max(out, into) > SMALL else _PRECISIONS[-1:]:
        for _ in range(_MAX_SWEEPS):
            rows = tl.reshape(tl.dot(by_input, _cast(in_space[:, -in_rank:], "float32")), (out, -1))
            _, out_space = leading_space(gram(_cast(rows, precision)), out_rank, _cast(out_space, precision))
            columns = tl.dot(_cast(tl.transpose(out_space[:, -out_rank:]), "float32"), by_output)
            columns = _cast(tl.reshape(columns, (-1, into)), precision)
            energies, in_space = leading_space(
                gram(tl.transpose(columns)), in_rank, _cast(in_space, precision)
            )
            kept = float(tl.sum(energies[-in_rank:]))
            previous, error = error, np.sqrt(max(norm**2 - kept, 0.0)) / norm
            if previous - error < tolerance:
                break
    return oriented(out_space, out_rank), oriented(in_space, in_rank)


def _cast(tensor: Tensor | None, precision: str) -> Tensor | None:
    return None if tensor is None else tl.tensor(tensor, dtype=getattr(tl.backend, precision))
