"""Saving: models with external data, models over 2 GB, whole files or none.

External data are streamed, one tensor at a time, into one data file beside the output.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from onnx import ModelProto

from onnxdecomp.errors import ModelError
from onnxdecomp.ir.explaining import explained
from onnxdecomp.ir.files import require_target
from onnxdecomp.ir.model import PROTOBUF_LIMIT, Model, Source, as_model
from onnxdecomp.ir.scratch import scratch_folder, sweep
from onnxdecomp.ir.spool import point_to
from onnxdecomp.ir.tensors import Extent, all_tensors, extent, inline_nbytes, is_external
from onnxdecomp.stopping import uninterrupted

# Where a large tensor may begin in a data file, so that runtimes can map it into memory (64 KiB: Windows).
_ALIGN_LARGE, _ALIGN_SMALL, _LARGE = 65536, 64, 1 << 20
_COPY_CHUNK = 1 << 24


def data_path(path: Path) -> Path:
    """Where the external data of a model written to `path` go."""
    return path.with_name(path.name + ".data")


@contextlib.contextmanager
def staged(model: Model, path: Path, keep: set[Path]) -> Iterator[Path]:
    """Write `model` to a scratch folder beside `path`, and move it into place when the block succeeds.

    Yields the staged file, complete and loadable. An exception, a full disk or a kill at any moment leaves
    either the whole output or none; what a kill leaves in the folder, `sweep` removes. External data go to
    one file, `<name>.data`.

    Args:
        model: what to write.
        path: where it shall stand in the end.
        keep: files that must not be overwritten: the input's.

    Raises:
        OutputError: the folder is missing, read-only or full.
        UsageError: `path` or its data file is one of `keep`.
    """
    require_target(path, keep)
    data = data_path(path)
    external = bool(model.extents()) or inline_nbytes(model.proto) > PROTOBUF_LIMIT
    if external:
        require_target(data, keep)
    sweep(path.parent)
    with contextlib.ExitStack() as stack:
        with explained(path):
            scratch = stack.enter_context(scratch_folder(f".{path.name}.", path.parent))
            _write(model, scratch / path.name, scratch / data.name if external else None)
        yield scratch / path.name
        with explained(path), uninterrupted():
            _commit(scratch, path, data if external else None)


@contextlib.contextmanager
def on_disk(source: Source, parameter: str = "model", *, beside: Path | None = None) -> Iterator[Path]:
    """Where a model lies as a file: its own, or one that is gone after the block.

    Args:
        source: a path is not read.
        parameter: by which it was given, for messages.
        beside: the folder for a file that is gone after the block; None is the system's.

    Raises:
        ModelError: there is no such file.
    """
    if isinstance(source, str | os.PathLike):
        if not Path(source).is_file():
            raise ModelError(f"`{parameter}`: cannot read {source}: no such file")
        yield Path(source)
        return
    model = as_model(source, parameter)
    if model.path is not None:
        yield model.path
        return
    with scratch_folder(beside=beside) as folder:
        save(model, folder / "model.onnx")
        yield folder / "model.onnx"


def save(model: Model, path: str | os.PathLike[str], keep: set[Path] | None = None) -> None:
    """Write `model` to `path`, whole or not at all; see `staged`."""
    with staged(model, Path(path), keep or set()):
        pass


def _write(model: Model, path: Path, data: Path | None) -> None:
    proto = model.proto
    if data is not None:
        proto = ModelProto()
        proto.CopyFrom(model.proto)
        _write_data(proto, model.folder, data)
    with path.open("wb") as stream:
        stream.write(proto.SerializeToString())
        os.fsync(stream.fileno())


def _write_data(proto: ModelProto, folder: Path, data: Path) -> None:
    """Gather the external tensors of `proto` in the file `data` and point them there.

    Tensors that shared their bytes go on sharing them. Where the protobuf alone would be too large, its
    own large tensors are moved out too.
    """
    move_out = inline_nbytes(proto) > PROTOBUF_LIMIT
    placed: dict[Extent, int] = {}
    with data.open("wb") as stream:
        for tensor in all_tensors(proto):
            if is_external(tensor):
                part = extent(tensor, folder)
                if part not in placed:
                    placed[part] = _seek_aligned(stream, part.length)
                    _copy(part, stream)
                point_to(tensor, Path(data.name), placed[part], part.length)
            elif move_out and len(tensor.raw_data) >= _LARGE:
                offset = _seek_aligned(stream, len(tensor.raw_data))
                stream.write(tensor.raw_data)
                point_to(tensor, Path(data.name), offset, len(tensor.raw_data))
        stream.flush()
        os.fsync(stream.fileno())


def _seek_aligned(stream: BinaryIO, length: int) -> int:
    step = _ALIGN_LARGE if length >= _LARGE else _ALIGN_SMALL
    return stream.seek(-(-stream.tell() // step) * step)


def _copy(part: Extent, target: BinaryIO) -> None:
    for chunk in part.chunks(_COPY_CHUNK):
        target.write(chunk)


def _commit(scratch: Path, path: Path, data: Path | None) -> None:
    if data is not None:
        # An older output must never be seen beside newer data: it goes first, the new model comes last.
        path.unlink(missing_ok=True)
        (scratch / data.name).replace(data)
    (scratch / path.name).replace(path)
    if hasattr(os, "O_DIRECTORY"):
        # Only makes the renames durable sooner; not every file system can do it.
        with contextlib.suppress(OSError):
            descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
