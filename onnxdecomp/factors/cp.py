"""CP decomposition: 1×1 → depthwise k×1 → depthwise 1×k → 1×1.

Lebedev et al. 2015 (arXiv:1412.6553): W(d, c, i, j) ≈ Σᵣ U(d, r) V(c, r) K₀(i, r) K₁(j, r). The three-factor
form ("cp3") keeps the kernel whole: W ≈ Σᵣ U(d, r) V(c, r) K(i·j, r), one depthwise k×k in the middle
(Astrid and Lee 2017, arXiv:1701.07148).

The best CP approximation may not exist: components grow without bound and cancel each other (de Silva and Lim
2008, SIAM J. Matrix Anal. Appl. 30), and a chain of such factors loses its output to rounding. So several
seeded starts run, and one counts only if its components stay below a multiple of the weight's own norm.
"""

from __future__ import annotations

import numpy as np
import tensorly as tl
from tensorly.decomposition import parafac

from onnxdecomp.errors import OnnxdecompError
from onnxdecomp.factors.chain import Chain, Floats, Link

_RESTARTS = 3
_ITERATIONS = 200
_TOLERANCE = 1e-8
# Σᵣ ‖componentᵣ‖² over ‖W‖²: 1 for orthogonal components, without bound for degenerate ones.
_MOST_GROWTH = 100.0


class CpError(OnnxdecompError):
    """CP found no stable decomposition."""


def factorise(weight: Floats, rank: int, groups: int, *, split: bool) -> Chain:
    """Decompose a weight (C_out, C_in / groups, *kernel) into `rank` components a group.

    Args:
        weight: finite, float64.
        rank: components.
        groups: each group is factored by itself.
        split: one depthwise convolution per spatial axis, otherwise one for the whole kernel.

    Raises:
        CpError: every start ended in components that cancel each other.
    """
    kernel = weight.shape[2:]
    axes = [(axis,) for axis in range(len(kernel))] if split else [tuple(range(len(kernel)))]
    parts = [_components(_tensor(part, split), rank) for part in np.split(weight, groups)]
    ones = (1,) * len(kernel)
    first = np.concatenate([factors[1].T for factors in parts])
    last = np.concatenate([factors[0] for factors in parts])
    links = [Link("cp_in", np.ascontiguousarray(first).reshape(*first.shape, *ones), (), groups)]
    for i, wide in enumerate(axes):
        columns = np.concatenate([factors[2 + i].T for factors in parts])
        shape = [size if axis in wide else 1 for axis, size in enumerate(kernel)]
        role = f"cp_{i}" if split else "cp_core"
        links.append(Link(role, np.ascontiguousarray(columns).reshape(-1, 1, *shape), wide, rank * groups))
    links.append(Link("cp_out", np.ascontiguousarray(last).reshape(*last.shape, *ones), (), groups))
    return Chain(tuple(links), groups)


def _tensor(weight: Floats, split: bool) -> Floats:
    return weight if split else weight.reshape(*weight.shape[:2], -1)


def _components(tensor: Floats, rank: int) -> list[Floats]:
    """Factor matrices (size of mode, rank), the norm of each component shared evenly among them."""
    norm = float(np.linalg.norm(tensor))
    if norm == 0:
        return [np.zeros((size, rank)) for size in tensor.shape]
    best: tuple[float, list[Floats]] | None = None
    for seed in range(_RESTARTS):
        weights, factors = _start(tensor / norm, rank, seed)
        if not np.isfinite(weights).all() or float((weights**2).sum()) > _MOST_GROWTH:
            continue
        error = float(np.linalg.norm(tensor / norm - tl.cp_to_tensor((weights, factors))))
        if best is None or error < best[0]:
            share = (np.abs(weights) * norm) ** (1 / len(factors))
            best = (
                error,
                [factor * share * (np.sign(weights) if i == 0 else 1) for i, factor in enumerate(factors)],
            )
    if best is None:
        raise CpError(f"CP with {rank} components does not settle: they grow and cancel each other")
    return best[1]


def _start(tensor: Floats, rank: int, seed: int) -> tuple[Floats, list[Floats]]:
    """One run of alternating least squares: the first from the HOSVD, the others from random factors."""
    with tl.backend_context("numpy", local_threadsafe=True):
        weights, factors = parafac(
            tensor,
            rank,
            n_iter_max=_ITERATIONS,
            init="svd" if seed == 0 and rank <= min(tensor.shape) else "random",
            normalize_factors=True,
            tol=_TOLERANCE,
            random_state=seed,
            l2_reg=1e-10,
        )
    return np.asarray(weights), [np.asarray(factor) for factor in factors]
