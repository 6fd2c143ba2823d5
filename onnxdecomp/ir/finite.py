"""Weights read as numbers: float64, a BatchNormalization folded in, NaN and Inf refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.errors import OnnxdecompError
from onnxdecomp.ir.sites import Anchor

NOT_FINITE = "its weight has NaN or Inf"


class NotFiniteError(OnnxdecompError):
    """A weight, or what a BatchNormalization makes of it, has NaN or Inf."""


def read_finite_weight(anchor: Anchor, folder: Path) -> NDArray[np.float64]:
    """The weight of a site as (C_out, C_in / groups, *kernel) in float64, a BatchNormalization folded in.

    Raises:
        NotFiniteError: it has NaN or Inf.
    """
    if anchor.weight is None:
        raise ValueError(f"{anchor.site.name} has no constant weight")
    values: NDArray[np.float64] = anchor.weight.values(folder).astype(np.float64)
    if not np.isfinite(values).all():
        raise NotFiniteError(NOT_FINITE)
    if anchor.transposed:
        values = np.ascontiguousarray(values.T)
    if anchor.batchnorm is None:
        return values
    scale, bias = anchor.batchnorm.affine(folder)
    values = values * scale.reshape(-1, *[1] * (values.ndim - 1))
    if not (np.isfinite(values).all() and np.isfinite(bias).all()):
        raise NotFiniteError("its BatchNormalization makes NaN or Inf of the weight (see --no-fold-bn)")
    return values
