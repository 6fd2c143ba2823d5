"""Weights read as numbers: float64, a BatchNormalization folded in, NaN and Inf refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.errors import OnnxdecompError
from onnxdecomp.ir.sites import Anchor
from onnxdecomp.ir.turning import turned
from onnxdecomp.ir.weights import Constant


class NotFiniteError(OnnxdecompError):
    """A weight, or what a BatchNormalization makes of it, has NaN or Inf."""


def finite_values(weight: Constant, folder: Path) -> NDArray[np.float64]:
    """A weight as it is stored, in float64.

    Raises:
        NotFiniteError: it has NaN or Inf.
    """
    with np.errstate(invalid="ignore"):  # of a signalling NaN, which is refused below
        values: NDArray[np.float64] = weight.values(folder).astype(np.float64)
    if not np.isfinite(values).all():
        raise NotFiniteError("its weight has NaN or Inf")
    return values


def read_finite_weight(anchor: Anchor, folder: Path) -> NDArray[np.float64]:
    """The weight of a site as (C_out, C_in / groups, *kernel) in float64, a BatchNormalization folded in.

    Raises:
        NotFiniteError: it has NaN or Inf.
    """
    values = finite_values(anchor.constant, folder)
    if anchor.transposed:
        values = turned(values, anchor.site.groups or 1)
    if anchor.batchnorm is None:
        return values
    scale, bias = anchor.batchnorm.affine(folder)
    values = values * scale.reshape(-1, *[1] * (values.ndim - 1))
    if not (np.isfinite(values).all() and np.isfinite(bias).all()):
        raise NotFiniteError("its BatchNormalization makes NaN or Inf of the weight (see `fold_bn`)")
    return values
