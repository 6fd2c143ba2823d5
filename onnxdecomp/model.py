"""Load and save: models with external data, models over 2 GB, whole files or none.

Nothing here changes a model. Loading leaves external data where they are; saving streams them, one tensor
at a time, into one data file beside the output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from onnxdecomp.errors import ModelError, OutputError, UsageError
from onnxdecomp.tensors import Extent, all_tensors, extent, inline_nbytes, is_external, verify_external

# A serialised protobuf cannot exceed 2 GiB; the margin holds the external data entries still to be written.
PROTOBUF_LIMIT = 2**31 - 2**24
# Where a large tensor may begin in a data file, so that runtimes can map it into memory (64 KiB: Windows).
_ALIGN_LARGE, _ALIGN_SMALL, _LARGE = 65536, 64, 1 << 20
_COPY_CHUNK = 1 << 24
_HINTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
}


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Spool:
    """A scratch folder for tensors too large to keep in memory; it goes when nobody holds it."""

    folder: Path

    @classmethod
    def create(cls, beside: Path | None) -> Spool:
        """A new scratch folder in `beside`, or where the system keeps temporary files."""
        with _explained(beside or Path(tempfile.gettempdir())):
            spool = cls(Path(tempfile.mkdtemp(prefix=".onnxdecomp.", dir=beside)).resolve())
        weakref.finalize(spool, shutil.rmtree, spool.folder, ignore_errors=True)
        return spool

    def store(self, tensor: TensorProto) -> None:
        """Move the raw data of `tensor` into a file of the scratch folder; the tensor becomes external."""
        with _explained(self.folder):
            descriptor, name = tempfile.mkstemp(dir=self.folder)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(tensor.raw_data)
        _point(tensor, Path(name), 0, len(tensor.raw_data))


def _point(tensor: TensorProto, location: Path, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A ModelProto and the folder its external data are relative to.

    Attributes:
        proto: the model; external tensors stay external.
        folder: where relative external data locations start.
        path: the file it was read from, None for a model made in memory.
        spool: the scratch folder of its new external tensors, alive as long as the model.
    """

    proto: ModelProto
    folder: Path
    path: Path | None = None
    spool: Spool | None = None

    def copy(self) -> Model:
        """The same model with a protobuf of its own (external data stay shared)."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        return dataclasses.replace(self, proto=proto)

    def extents(self) -> dict[Extent, None]:
        """The distinct runs of external bytes, in the order their tensors stand in."""
        return {extent(t, self.folder): None for t in all_tensors(self.proto) if is_external(t)}

    def nbytes(self) -> int:
        """Size of the model as a file: the protobuf and its external data."""
        external = sum(part.length for part in self.extents())
        if self.path is not None:
            return self.path.stat().st_size + external
        inline = inline_nbytes(self.proto)
        return external + (inline if inline > PROTOBUF_LIMIT else self.proto.ByteSize())

    def files(self) -> set[Path]:
        """The model's own file and its data files, links resolved."""
        own = {self.path.resolve()} if self.path is not None else set()
        return own | {part.file.resolve() for part in self.extents()}


def load(path: str | os.PathLike[str]) -> Model:
    """Read the ONNX model at `path`; external data are verified to be there, not read.

    Raises:
        ModelError: no such file, not an ONNX model, or external data missing, cut off or outside its folder.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}") from error
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{file} is not an ONNX model, or it is cut off: its protobuf does not parse"
        ) from error
    _require_model(proto, str(file))
    verify_external(proto, [file.parent, file.resolve().parent], file.parent)
    return Model(proto=proto, folder=file.parent, path=file)


def as_model(source: Model | ModelProto | str | os.PathLike[str]) -> Model:
    """`source` as a Model: a path is loaded, a ModelProto wrapped (it must hold all its data)."""
    if isinstance(source, Model):
        return source
    if not isinstance(source, ModelProto):
        return load(source)
    _require_model(source, "the model")
    if any(is_external(tensor) for tensor in all_tensors(source)):
        raise UsageError("the model keeps data in other files; pass its path instead of the ModelProto")
    return Model(proto=source, folder=Path())


def _require_model(proto: ModelProto, what: str) -> None:
    # Almost any bytes parse as a protobuf of unknown fields; an ONNX model has at least these.
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{what} is not an ONNX model: it has no graph or no IR version")
    if not proto.opset_import and proto.ir_version >= 3:
        raise ModelError(
            f"{what} is not a whole ONNX model: it imports no operator set; the file may be cut off"
        )


def data_path(path: Path) -> Path:
    """Where the external data of a model written to `path` go."""
    return path.with_name(path.name + ".data")


@contextlib.contextmanager
def staged(model: Model, path: Path, keep: set[Path]) -> Iterator[Path]:
    """Write `model` to a scratch folder beside `path`, and move it into place when the block succeeds.

    Yields the staged file, complete and loadable. An exception, a full disk or a kill at any moment leaves
    either the whole output or none. External data go to one file, `<name>.data`.

    Args:
        model: what to write.
        path: where it shall stand in the end.
        keep: files that must not be overwritten: the input's.

    Raises:
        OutputError: the folder is missing, read-only or full.
        UsageError: `path` or its data file is one of `keep`.
    """
    data = data_path(path)
    require_target(path, keep)
    external = bool(model.extents()) or inline_nbytes(model.proto) > PROTOBUF_LIMIT
    if external:
        require_target(data, keep)
    with _explained(path):
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with _explained(path):
            _write(model, scratch / path.name, scratch / data.name if external else None)
        yield scratch / path.name
        with _explained(path):
            _commit(scratch, path, data if external else None)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def save(model: Model, path: str | os.PathLike[str], keep: set[Path] | None = None) -> None:
    """Write `model` to `path`, whole or not at all; see `staged`."""
    with staged(model, Path(path), keep or set()):
        pass


def write_text(path: Path, text: str, keep: set[Path]) -> None:
    """Write a small document, whole or not at all; see `write_file`."""
    if _is_stdout(path):
        sys.stdout.write(text)
        return
    write_file(path, lambda target: target.write_text(text, encoding="utf-8"), keep)


def _is_stdout(path: Path) -> bool:
    """Whether `path` is where standard output goes: opened anew, the file behind it would be cut off."""
    try:
        return path.is_symlink() and os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except OSError:  # a link to nothing, or a standard output that is no file
        return False


def write_file(path: Path, write: Callable[[Path], object], keep: set[Path]) -> None:
    """Let `write` make a file, and put it at `path` when it is whole; devices and pipes are written directly.

    Raises:
        OutputError: the folder is missing, read-only or full.
        UsageError: `path` is one of `keep`.
    """
    require_target(path, keep, device=True)
    with _explained(path):
        # What stands behind a link, as /dev/stdout may, must stay the file it is.
        if path.is_symlink() or (path.exists() and not path.is_file()):
            write(path)
            return
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            write(Path(scratch) / path.name)
            (Path(scratch) / path.name).replace(path)


def require_target(target: Path, keep: set[Path], *, device: bool = False) -> None:
    """Refuse to write `target`, before any work is done, where that could not or must not succeed.

    Args:
        target: the file to write.
        keep: files that must not be overwritten.
        device: whether a device or a pipe will do.

    Raises:
        UsageError: it is no file, or one of the files to `keep`.
        OutputError: its folder is missing or cannot be written.
    """
    with _explained(target):
        if target.is_dir():
            raise UsageError(f"{target} is a folder; name a file")
        exists = target.exists()
        if target.resolve() in keep or (exists and any(k.exists() and target.samefile(k) for k in keep)):
            raise UsageError(
                f"{target} belongs to the input, which is never overwritten; choose another output name"
            )
        if exists and not target.is_file():
            if device:
                return
            raise UsageError(f"{target} is no regular file; a model cannot go there")
        if not target.parent.is_dir():
            raise OutputError(f"cannot write {target}: there is no folder {target.parent}; create it first")
        if not os.access(target.parent, os.W_OK):
            raise OutputError(
                f"cannot write {target}: the folder {target.parent} is read-only; choose another"
            )


def require_distinct(*targets: Path | None) -> None:
    """Refuse two outputs of one name; None and devices may stand several times.

    Raises:
        UsageError: a name stands twice.
    """
    places: set[Path] = set()
    for target in targets:
        # A device takes what it is given.
        if target is None or (target.exists() and not target.is_file()):
            continue
        if target.resolve() in places:
            raise UsageError(f"{target} is named for two outputs; choose another name for one of them")
        places.add(target.resolve())


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into one line that names the output."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "see the system's message")
        raise OutputError(f"cannot write {path}: {error.strerror}; nothing was written; {hint}") from error


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
                _point(tensor, Path(data.name), placed[part], part.length)
            elif move_out and len(tensor.raw_data) >= _LARGE:
                offset = _seek_aligned(stream, len(tensor.raw_data))
                stream.write(tensor.raw_data)
                _point(tensor, Path(data.name), offset, len(tensor.raw_data))
        stream.flush()
        os.fsync(stream.fileno())


def _seek_aligned(stream: BinaryIO, length: int) -> int:
    step = _ALIGN_LARGE if length >= _LARGE else _ALIGN_SMALL
    return stream.seek(-(-stream.tell() // step) * step)


def _copy(part: Extent, target: BinaryIO) -> None:
    with part.file.open("rb") as source:
        source.seek(part.offset)
        left = part.length
        while left and (chunk := source.read(min(left, _COPY_CHUNK))):
            left -= target.write(chunk)
    if left:
        raise OSError(errno.EIO, f"{part.file} became shorter while it was read")


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
