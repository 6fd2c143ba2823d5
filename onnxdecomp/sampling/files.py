"""Arrays for a model's inputs out of files: NumPy's .npz and .npy, ONNX's test_data_set_* folders."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from onnxdecomp.errors import UsageError, first_line
from onnxdecomp.ir import Array, is_external
from onnxdecomp.runtime import Feeds, InputSpec, is_floating


@contextmanager
def open_arrays(path: Path, what: str = "samples") -> Iterator[Mapping[str, Callable[[], Array]]]:
    """The arrays in an .npz file by name, or that of an .npy file under the name "", each read when called.

    Raises:
        UsageError: the file, or an array in it, cannot be read.
    """
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                yield {"": lambda: loaded}
            else:
                yield {name: partial(_array, loaded, name) for name in loaded.files}
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"cannot read the {what} {path}: no .npz or .npy file of numbers") from error


def _array(loaded: Mapping[str, Any], name: str) -> Array:
    array = loaded[name]
    if not isinstance(array, np.ndarray):  # NumPy hands out the bytes of what is no array
        raise ValueError(name)
    return array


def read_arrays(path: Path, specs: Sequence[InputSpec]) -> Feeds:
    """The arrays in an .npz or .npy file by the input they are for.

    They are named as the inputs; for a single input, the sole array, the sole 4-D one where the input is 4-D,
    or the sole one of floats will do.

    Raises:
        UsageError: the file cannot be read, or has no array for an input.
    """
    with open_arrays(path) as found:
        missing = [spec.name for spec in specs if spec.name not in found]
        wanted = found if missing else [spec.name for spec in specs]
        arrays = {name: found[name]() for name in wanted}
    if not missing:
        return arrays
    if len(specs) == 1:
        takes_pictures = specs[0].shape is None or len(specs[0].shape) == 4
        pictures = [array for array in arrays.values() if array.ndim == 4 and takes_pictures]
        floats = [array for array in arrays.values() if is_floating(array.dtype)]
        for candidates in (list(arrays.values()), pictures, floats):
            if len(candidates) == 1:
                return {specs[0].name: candidates[0]}
    raise UsageError(
        f"{path} has no array for the input '{missing[0]}'; it has {', '.join(arrays) or 'none'}"
    )


def test_sets(folder: Path) -> list[Path]:
    """The test_data_set_* folders in `folder`, in the order of their numbers; or itself where it is one."""
    if any(folder.glob("input_*.pb")):
        return [folder]
    return sorted((each for each in folder.glob("test_data_set_*") if each.is_dir()), key=_number)


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"(\d+)$", path.stem)
    return (int(digits[1]) if digits else -1, path.name)


def read_test_set(folder: Path, specs: Sequence[InputSpec]) -> Feeds:
    """The tensors of input_0.pb and so on: by their names if all are names of inputs, else in their order.

    Raises:
        UsageError: a file cannot be read, or there are fewer or more of them than inputs.
    """
    files = sorted(folder.glob("input_*.pb"), key=_number)
    if len(files) != len(specs):
        raise UsageError(f"{folder} has {len(files)} input_*.pb, the model has {len(specs)} inputs")
    tensors = [_read_tensor(file) for file in files]
    names = [spec.name for spec in specs]
    if sorted(names) == sorted(name for name, _ in tensors):
        return dict(tensors)
    return {name: array for name, (_, array) in zip(names, tensors, strict=True)}


def _read_tensor(path: Path) -> tuple[str, Array]:
    try:
        tensor = TensorProto.FromString(path.read_bytes())
        if is_external(tensor):
            raise UsageError(f"cannot read the samples {path}: its data lie in another file")
        return tensor.name, numpy_helper.to_array(tensor)
    except OSError as error:
        raise UsageError(f"cannot read the samples {path}: {error.strerror or error}") from error
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"cannot read the samples {path}: no tensor ({first_line(error)})") from error
