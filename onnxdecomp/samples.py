"""Samples from a file, to run a model on."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxdecomp.errors import UsageError
from onnxdecomp.inputs import Feeds, InputSpec, input_specs
from onnxdecomp.tensors import Array

# How many samples of a file go into one run where the model takes any number.
_BATCH = 32


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
