"""Inputs to run a model on: seeded random ones, or samples from a file."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxdecomp.errors import UsageError
from onnxdecomp.shapes import InputShapes, Shape, declared_shape, fixed_input_shapes, graph_inputs
from onnxdecomp.tensors import Array

Feeds = Mapping[str, Array]

# How many samples of a file go into one run where the model takes any number.
_BATCH = 32
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
                f"input '{spec.name}' has unknown dimensions ({dims}): give --input-shape {spec.name}:DIMS"
            )
        feeds[spec.name] = _random(generator, tuple(d for d in shape if d is not None), spec.dtype)
    return feeds


def _random(generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    if dtype == np.bool_:
        return np.zeros(shape, dtype)
    if dtype == np.uint8:
        return generator.integers(0, 256, shape, dtype=np.uint8)
    if np.issubdtype(dtype, np.integer):
        return np.ones(shape, dtype)
    return generator.standard_normal(shape).astype(dtype)


def read_feeds(path: str | os.PathLike[str], model: ModelProto) -> Iterator[Feeds]:
    """The samples in an .npz (arrays named as the inputs) or .npy file (single-input models), in batches.

    Arrays hold samples along their first axis; a model with a fixed batch gets that many at a time.

    Raises:
        UsageError: the file cannot be read, an input is missing from it, or a shape or type does not fit.
    """
    specs = input_specs(model)
    arrays = _arrays(Path(path), specs)
    for spec in specs:
        _require_fit(spec, arrays[spec.name], path)
    batched = [spec for spec in specs if spec.shape is None or len(spec.shape) > 0]
    if not batched:
        yield arrays
        return
    first = batched[0]
    total = len(arrays[first.name])
    fixed = next((s.shape[0] for s in batched if s.shape and s.shape[0] is not None), None)
    step = fixed or min(_BATCH, total)
    if any(len(arrays[s.name]) != total for s in batched) or not total or total % step * bool(fixed):
        counts = ", ".join(f"{s.name}: {len(arrays[s.name])}" for s in batched)
        raise UsageError(f"{path}: the model takes {step} samples at a time, of every input; found {counts}")
    for start in range(0, total, step):
        yield {
            s.name: arrays[s.name][start : start + step] if s in batched else arrays[s.name] for s in specs
        }


def _arrays(path: Path, specs: list[InputSpec]) -> dict[str, Array]:
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            single = isinstance(loaded, np.ndarray)
            arrays = {"": loaded} if single else {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise UsageError(f"cannot read the samples {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"cannot read the samples {path}: no .npz or .npy file of numbers") from error
    if len(specs) == 1 and len(arrays) == 1:
        return {specs[0].name: next(iter(arrays.values()))}
    missing = [spec.name for spec in specs if spec.name not in arrays]
    if missing:
        raise UsageError(
            f"{path} has no array for the input '{missing[0]}'; it has {', '.join(arrays) or 'none'}"
        )
    return {spec.name: arrays[spec.name] for spec in specs}


def _require_fit(spec: InputSpec, array: Array, path: str | os.PathLike[str]) -> None:
    where = f"{path}: input '{spec.name}'"
    if spec.dtype is None or array.dtype != spec.dtype:
        raise UsageError(f"{where} needs {spec.dtype or 'a non-numeric type'}, the file has {array.dtype}")
    if spec.shape is None:
        if array.ndim == 0:
            raise UsageError(f"{where} needs samples along a first axis, the file has a scalar")
        return
    # The first dimension counts samples, whatever batch the model was exported with.
    sizes = list(zip(spec.shape[1:], array.shape[1:], strict=False))
    if len(spec.shape) != array.ndim or any(wanted not in (None, found) for wanted, found in sizes):
        need = "×".join("?" if dim is None else str(dim) for dim in spec.shape)
        have = "×".join(map(str, array.shape)) or "a scalar"
        raise UsageError(f"{where} needs shape {need}, the file has {have}")
