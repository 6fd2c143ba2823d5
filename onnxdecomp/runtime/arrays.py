"""What callers give for an array: NumPy's, PyTorch's tensors, lists of numbers."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from onnxdecomp.arguments import a_class
from onnxdecomp.errors import UsageError, first_line
from onnxdecomp.ir import Array


def as_array(value: Any, where: str, *, copied: bool = False) -> Array:
    """`value` as a NumPy array; tensors of PyTorch are detached and fetched from their device.

    Args:
        value: an array, or what NumPy makes one of; PyTorch's bfloat16 becomes that of ml_dtypes.
        where: what messages call it.
        copied: whether the array must have memory of its own, since the caller may use his again.

    Raises:
        UsageError: it is no array of numbers, truth values or texts.
    """
    try:
        # PyTorch is loaded where there are tensors of it, and must not be where there are none.
        if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
            value = _of_torch(value.detach().cpu())
        array: Array = np.array(value) if copied else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{where} is no array: {first_line(error)}") from error
    if array.dtype == object:
        raise UsageError(f"{where} is no array of numbers but {a_class(type(value))}")
    return array


def _of_torch(tensor: Any) -> Any:
    torch = sys.modules["torch"]
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes  # comes with onnx

    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
