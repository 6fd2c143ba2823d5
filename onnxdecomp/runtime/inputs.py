"""The inputs a model takes, and seeded random ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxdecomp.errors import UsageError
from onnxdecomp.ir import (
    Array,
    InputShapes,
    Shape,
    declared_shape,
    fixed_input_shapes,
    graph_inputs,
    require_memory,
)

Feeds = Mapping[str, Array]

# Normal numbers are drawn in float64, whatever becomes of them.
_DRAWN_ITEMSIZE = 8
_NO_NUMBERS = (TensorProto.UNDEFINED, TensorProto.STRING)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input a caller must feed.

    Attributes:
        name: of the input.
        dtype: NumPy element type; None for strings, sequences and other types that cannot be made up.
        shape: as declared, None per unknown dimension; None if not even the rank is known.
    """

    name: str
    dtype: np.dtype[np.generic] | None
    shape: Shape | None


def is_floating(dtype: np.dtype[np.generic]) -> bool:
    """Whether it is a floating-point type; those of ml_dtypes are."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def input_specs(model: ModelProto) -> list[InputSpec]:
    """The inputs of `model` that have no initialiser to stand in for them."""
    specs = []
    for value in graph_inputs(model):
        element = (
            value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else TensorProto.UNDEFINED
        )
        known = element in TensorProto.DataType.values() and element not in _NO_NUMBERS
        dtype = helper.tensor_dtype_to_np_dtype(element) if known else None
        specs.append(InputSpec(name=value.name, dtype=dtype, shape=declared_shape(value)))
    return specs


def random_feeds(model: ModelProto, shapes: InputShapes, seed: int = 0) -> Feeds:
    """One set of inputs: standard normal for floats, 0 to 255 for bytes, 1 for other integers, False.

    Args:
        model: whose inputs to make up.
        shapes: for inputs with unknown dimensions; an unknown batch (first dimension) is 1.
        seed: same seed, same inputs.

    Raises:
        UsageError: an input's dimensions or type are unknown; the message says what to give.
        RunError: an input is larger than the memory.
    """
    fixed = fixed_input_shapes(model, shapes)
    generator = np.random.default_rng(seed)
    feeds = {}
    for spec in input_specs(model):
        if spec.dtype is None:
            raise UsageError(f"input '{spec.name}' is no numeric tensor, so inputs cannot be made up")
        shape = fixed[spec.name]
        if shape is None or None in shape:
            dims = "?" if shape is None else ",".join("?" if dim is None else str(dim) for dim in shape)
            raise UsageError(
                f"input '{spec.name}' has unknown dimensions ({dims}): give `input_shapes` {spec.name}:DIMS"
            )
        known = tuple(d for d in shape if d is not None)
        require_memory(known, max(spec.dtype.itemsize, _DRAWN_ITEMSIZE), f"the input '{spec.name}'")
        feeds[spec.name] = _random(generator, known, spec.dtype)
    return feeds


def _random(generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    if dtype == np.bool_:
        return np.zeros(shape, dtype)
    if dtype == np.uint8:
        return generator.integers(0, 256, shape, dtype=np.uint8)
    if np.issubdtype(dtype, np.integer):
        return np.ones(shape, dtype)
    return generator.standard_normal(shape).astype(dtype)
