"""CP decomposition: 1×1 → depthwise k×1 → depthwise 1×k → 1×1.

Lebedev et al. 2015 (arXiv:1412.6553): W(d, c, i, j) ≈ Σᵣ U(d, r) V(c, r) K₀(i, r) K₁(j, r). The three-factor
form ("cp3") keeps the kernel whole: W ≈ Σᵣ U(d, r) V(c, r) K(i·j, r), one depthwise k×k in the middle
(Astrid and Lee 2017, arXiv:1701.07148).

The best CP approximation may not exist: components grow without bound and cancel each other (de Silva and Lim
2008, SIAM J. Matrix Anal. Appl. 30), and a chain of such factors loses its output to rounding. So several
seeded starts run, and one counts only if its components stay below a multiple of the weight's own norm.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorly as tl
from tensorly.base import unfold
from tensorly.cp_tensor import cp_normalize
from tensorly.decomposition import parafac

from onnxdecomp.errors import OnnxdecompError
from onnxdecomp.factors.chain import Chain, Floats, Link
from onnxdecomp.factors.linalg import leading_vectors

_RESTARTS = 2
_ITERATIONS = 200
# Small weights can wait for components that are nearly dependent, which converge slowly.
_MORE_ITERATIONS, _SMALL = 2000, 4096
_TOLERANCE = 1e-8
# Below it a decomposition is exact, and further starts are idle.
_EXACT = 1e-7
_RIDGE = 1e-12
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
    # Squares of very large or small weights would leave the range of float64.
    peak = float(np.abs(tensor).max())
    if peak == 0:
        return [np.zeros((size, rank)) for size in tensor.shape]
    norm = float(np.linalg.norm(tensor / peak))
    weights, factors = _best_start(tensor / peak / norm, rank)
    share = np.abs(weights) ** (1 / len(factors)) * (norm * peak) ** (1 / len(factors))
    return [factor * share * (np.sign(weights) if i == 0 else 1) for i, factor in enumerate(factors)]


def _best_start(tensor: Floats, rank: int) -> tuple[Floats, list[Floats]]:
    """Weights and normalised factors of the best run of alternating least squares that did not degenerate.

    `tensor` has norm 1.
    """
    best: tuple[float, Floats, list[Floats]] | None = None
    for start in _starts(tensor, rank):
        run = _least_squares(tensor, rank, start)
        if run is not None and (best is None or run[0] < best[0]):
            best = run
        if best is not None and best[0] < _EXACT:
            break
    if best is None:
        raise CpError(f"CP with {rank} components does not settle: they grow and cancel each other")
    if tensor.size <= _SMALL and best[0] >= _EXACT:
        first, *others = best[2]
        longer = _least_squares(tensor, rank, [first * best[1], *others], _MORE_ITERATIONS)
        best = longer if longer is not None and longer[0] < best[0] else best
    return best[1], best[2]


def _starts(tensor: Floats, rank: int) -> Iterator[list[Floats]]:
    """Factors to start from: by diagonalisation where the channels allow it, then random ones."""
    if rank <= min(tensor.shape[:2]):
        yield _diagonalised(tensor, rank)
    for seed in range(_RESTARTS):
        generator = np.random.default_rng(seed)
        yield [generator.standard_normal((size, rank)) for size in tensor.shape]


def _diagonalised(tensor: Floats, rank: int) -> list[Floats]:
    """Factors by diagonalisation: exact where the tensor has this rank and independent components.

    With the channel modes projected to `rank`, each kernel slice is U Dₖ Vᵀ: the eigenvectors of one mixture
    of slices times the inverse of another are U (Leurgans, Ross, Abel 1993, SIAM J. Matrix Anal. Appl. 14).
    The other factors follow from U: least squares, then the best component of rank 1 each.
    """
    out, into = (leading_vectors(unfold(tl.tensor(tensor), mode), rank) for mode in (0, 1))
    slices = np.einsum("dck,dr,cs->krs", tensor.reshape(*tensor.shape[:2], -1), out, into, optimize=True)
    mixed = np.random.default_rng(0).standard_normal((2, len(slices)))
    first, second = np.tensordot(mixed, slices, axes=1)
    values, vectors = np.linalg.eig(first @ np.linalg.pinv(second))
    # A complex pair spans two real directions.
    factor = out @ np.where(values.imag < 0, vectors.imag, vectors.real)
    rests = (np.linalg.pinv(factor) @ tensor.reshape(len(tensor), -1)).reshape(rank, *tensor.shape[1:])
    others = []
    for axis, size in enumerate(tensor.shape[1:]):
        unfolded = np.moveaxis(rests, axis + 1, 1).reshape(rank, size, -1)
        others.append(np.linalg.eigh(unfolded @ unfolded.swapaxes(1, 2))[1][:, :, -1].T)
    return [factor, *others]


def _least_squares(
    tensor: Floats, rank: int, start: list[Floats], iterations: int = _ITERATIONS
) -> tuple[float, Floats, list[Floats]] | None:
    """Error, weights and factors of one run of alternating least squares, None where it degenerated."""
    target = tl.tensor(tensor)
    try:
        found = parafac(
            target,
            rank,
            n_iter_max=iterations,
            init=(None, [tl.tensor(np.ascontiguousarray(factor)) for factor in start]),
            tol=_TOLERANCE,
            l2_reg=_RIDGE,
        )
    except Exception as error:
        # Its equations became singular; each backend has a LinAlgError of its own.
        if "LinAlgError" not in type(error).__name__:
            raise
        return None
    weights, factors = cp_normalize(found)
    # Not finite is not below either.
    if not float(tl.sum(weights**2)) <= _MOST_GROWTH:
        return None
    lost = float(tl.norm(target - tl.cp_to_tensor((weights, factors))))
    return lost, np.asarray(tl.to_numpy(weights)), [np.asarray(tl.to_numpy(each)) for each in factors]
