"""The channel modes of a stored weight: which of them comes first.

A Conv stores (C_out, C_in / groups, *kernel), a ConvTranspose (C_in, C_out / groups, *kernel), matrices come
either way about. All that factors a weight knows the first of these alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def turned(weight: NDArray[Any], groups: int) -> NDArray[Any]:
    """A weight with its channel modes exchanged, group by group: its own inverse.

    Args:
        weight: shape (A, B / groups, *kernel), of whole groups one behind the other.
        groups: channel groups.

    Returns:
        Shape (B, A / groups, *kernel).
    """
    first, second, *kernel = weight.shape
    grouped = weight.reshape(groups, first // groups, second, *kernel).swapaxes(1, 2)
    return np.ascontiguousarray(grouped).reshape(groups * second, first // groups, *kernel)
