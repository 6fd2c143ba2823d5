"""Arrays for a model's inputs out of files: NumPy's .npz and .npy, ONNX's test_data_set_* folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnxdecomp.errors import ModelError, UsageError, first_line
from onnxdecomp.ir import MOST_OF_PROTOBUF, Array, is_external, read, read_file
from onnxdecomp.runtime import Feeds, InputSpec, is_floating
from onnxdecomp.sampling.arrays import open_arrays


def read_arrays(path: Path, specs: Sequence[InputSpec]) -> Feeds:
    """The arrays in an .npz or .npy file by the input they are for.

    They are named as the inputs; for a single input, the sole array, the sole 4-D one where the input is 4-D,
    or the sole one of floats will do.

    Raises:
        UsageError: the file cannot be read, or has no array for an input.
    """
    with open_arrays(path) as found:
        missing = [spec.name for spec in specs if spec.name not in found.names]
        if not missing:
            return {spec.name: found.read(spec.name) for spec in specs}
        if len(specs) == 1:
            outlines = {name: found.outline(name) for name in found.names}
            takes_pictures = specs[0].shape is None or len(specs[0].shape) == 4
            pictures = [name for name, each in outlines.items() if len(each.shape) == 4 and takes_pictures]
            floats = [name for name, each in outlines.items() if is_floating(each.dtype)]
            for candidates in (list(outlines), pictures, floats):
                if len(candidates) == 1:
                    return {specs[0].name: found.read(candidates[0])}
    raise UsageError(
        f"{path} has no array for the input '{missing[0]}'; it has {', '.join(found.names) or 'none'}"
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
        tensor = TensorProto.FromString(read_file(path, MOST_OF_PROTOBUF))
        if is_external(tensor):
            raise UsageError(f"cannot read the samples {path}: its data lie in another file")
        return tensor.name, read(tensor, path.parent)
    except OSError as error:
        raise UsageError(f"cannot read the samples {path}: {error.strerror or error}") from error
    except (DecodeError, ModelError) as error:
        raise UsageError(f"cannot read the samples {path}: no tensor ({first_line(error)})") from error
