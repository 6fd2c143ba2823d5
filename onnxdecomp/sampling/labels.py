"""The classes of samples, from a CSV file or an array."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import MOST_OF_TEXT, Array, read_file
from onnxdecomp.sampling.arrays import open_arrays
from onnxdecomp.sampling.samples import Opened, Samples

Labels = NDArray[np.int64]
# What functions take for them.
LabelsLike: TypeAlias = Annotated[
    str | os.PathLike[str] | Array | Sequence[int], "a path, F.npz:KEY, or an array of classes"
]


@verified
def read_labels(labels: LabelsLike, samples: Opened) -> Labels:
    """The class of each sample drawn, shape (len(samples),).

    An example is in docs/python.md under "Samples".

    Args:
        labels: a CSV file of rows `file,class` (a header may come first; files match by name, whatever their
            folder), an .npy file, an array in an .npz file as `F.npz:KEY`, or the name of an array in the
            .npz file that the samples come from; or an array itself. Arrays hold one class for every
            sample of the source.
        samples: drawn or not; of ONNX test sets the "file" is the folder.

    Raises:
        UsageError: the labels cannot be read, are no integers, or are not one per sample.
    """
    if not isinstance(labels, str | os.PathLike):
        return _of_array(np.asarray(labels), "", samples)
    spec = os.fspath(labels)
    path, key = _parted(spec)
    if key is not None:
        return _of_array(_named(path, key, spec), spec, samples)
    if path.suffix.lower() == ".npy":
        with open_arrays(path, "labels") as arrays:
            array = arrays.read("") if "" in arrays.names else np.empty(0)
        return _of_array(array, spec, samples)
    if path.suffix.lower() == ".npz":
        raise UsageError(f"`labels` {spec}: name the array too, as in {spec}:y")
    if path.suffix.lower() == ".csv" or path.is_file():
        return _of_table(path, samples)
    if samples.path is None or samples.path.suffix.lower() != ".npz" or samples.path.is_dir():
        raise UsageError(
            f"`labels` {spec}: no such file; give a CSV of file,class rows, F.npy, F.npz:KEY, or, "
            "with samples in one .npz file, the name of an array there"
        )
    return _of_array(_named(samples.path, spec, spec), spec, samples)


def labels_file(labels: LabelsLike) -> Path | None:
    """The file that labels are read of, resolved; None where there is none but that of the samples."""
    if not isinstance(labels, str | os.PathLike):
        return None
    path = _parted(os.fspath(labels))[0]
    return path.resolve() if path.is_file() else None


def _parted(spec: str) -> tuple[Path, str | None]:
    file, colon, key = spec.rpartition(":")
    return (Path(file), key) if colon and Path(file).suffix.lower() == ".npz" else (Path(spec), None)


def _named(path: Path, key: str, spec: str) -> Array:
    with open_arrays(path, "labels") as arrays:
        if key not in arrays.names:
            raise UsageError(
                f"`labels` {spec}: {path} has no array '{key}'; it has {', '.join(arrays.names) or 'none'}"
            )
        return arrays.read(key)


def _of_array(array: Array, spec: str, samples: Samples) -> Labels:
    where = f"`labels` {spec}".rstrip()
    if array.dtype.kind not in "iu":
        raise UsageError(f"{where}: classes are integers, the array has {array.dtype}")
    if array.shape[:1] != (array.size,) or array.size != samples.total:
        raise UsageError(
            f"{where}: {samples.total} samples need one class each, "
            f"the array has the shape {list(array.shape)}"
        )
    return array.reshape(-1).astype(np.int64)[list(samples.indices)]


def _of_table(path: Path, samples: Samples) -> Labels:
    names = [None if file is None else file.name for file in samples.files]
    classes = _classes(path, {name for name in names if name})
    if missing := [sample for sample, name in zip(samples.names, names, strict=True) if name not in classes]:
        raise UsageError(
            f"`labels` {path}: no class for {missing[0]} ({len(missing)} of {len(names)} lack one)"
        )
    return np.array([classes[name] for name in names if name], np.int64)


def _classes(path: Path, files: set[str]) -> dict[str, int]:
    """The class by file name; a first row that names no file of the samples and no class is a header."""
    try:
        text = read_file(path, MOST_OF_TEXT).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except OSError as error:
        raise UsageError(f"cannot read the labels {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read the labels {path}: no CSV file of file,class rows") from error
    classes: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        name = Path(row[0].strip()).name
        try:
            if len(row) != 2:
                raise ValueError
            label = np.int64(int(row[1])).item()
        except (ValueError, OverflowError) as error:
            if number == 1 and name not in files:
                continue
            raise UsageError(
                f"`labels` {path}: row {number} is no file and integer class: {','.join(row)}"
            ) from error
        if classes.setdefault(name, label) != label:
            raise UsageError(f"`labels` {path}: row {number} gives {name} another class than before")
    return classes
