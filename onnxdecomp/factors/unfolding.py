"""The spectra of a weight: of those unfoldings that each decomposition cuts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorly as tl
from tensorly.base import unfold

from onnxdecomp.factors.chain import Floats
from onnxdecomp.factors.linalg import Tensor, squared_singular_values
from onnxdecomp.factors.spatial import rearranged
from onnxdecomp.factors.spectrum import Spectrum


def spectra(method: str, weight: Floats, groups: int) -> tuple[Spectrum, Spectrum]:
    """The spectra that the ranks (in, out) of `method` cut: equal for those with a single rank.

    The mode unfoldings for the Tucker and CP decompositions, the rearranged matrix for `spatial`, the weight
    itself for `svd`. `weight` is OIHW, grouped, in float64.
    """
    parts = np.split(weight, groups)
    if method == "spatial":
        single = _spectrum([rearranged(part) for part in parts])
        return single, single
    if method == "svd":
        single = _spectrum([part.reshape(part.shape[:2]) for part in parts])
        return single, single
    modes = ([unfold(tl.tensor(part), mode) for part in parts] for mode in (1, 0))
    into, out = map(_spectrum, modes)
    return into, out


def _spectrum(matrices: Sequence[Tensor]) -> Spectrum:
    rows, columns = matrices[0].shape
    return Spectrum(np.stack([squared_singular_values(matrix) for matrix in matrices]), rows, columns)
