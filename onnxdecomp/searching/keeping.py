"""What searches have left on disk for the next ones: how much there is, and away with it."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxdecomp.abridging import abridged
from onnxdecomp.errors import OutputError, UsageError
from onnxdecomp.runtime import cache_folder

# What the files of a kind hold; `Cache` makes them.
KINDS = {
    "costs": "times of choices on a machine",
    "losses": "losses of choices in a model",
    "models": "how both came true in whole models",
}
_OTHER = "other"
_OURS = re.compile(rf"({'|'.join(KINDS)})-[0-9a-f]{{24}}\.json")


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKind:
    """The files of one kind.

    An example is in docs/python.md under "Searching".

    Attributes:
        kind: "costs", "losses" or "models"; "other" for what no search has made.
        holds: what stands in them, in words.
        files: how many there are.
        nbytes: how large they are together.
    """

    kind: str
    holds: str
    files: int
    nbytes: int


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class CacheContents:
    """What lies in the folder that searches keep their measurements in.

    An example is in docs/python.md under "Searching".

    Attributes:
        folder: the folder; it need not exist.
        kinds: the files by kind, kinds without any included.
    """

    folder: Path
    kinds: tuple[CacheKind, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        kinds = {each.kind: {"files": each.files, "bytes": each.nbytes} for each in self.kinds}
        return {"folder": str(self.folder), "kinds": kinds}


def inspect_cache() -> CacheContents:
    """What is kept from one search to the next.

    An example is in docs/python.md under "Searching".

    The folder is `$ONNXDECOMP_CACHE`, else `$XDG_CACHE_HOME/onnxdecomp`, else `~/.cache/onnxdecomp`.

    Raises:
        UsageError: what has the folder's name cannot be read as one.
    """
    return _contents(_files())


def clear_cache() -> CacheContents:
    """Remove what searches have kept, and nothing else that lies there; links are left alone.

    An example is in docs/python.md under "Searching".

    Returns:
        What was removed.

    Raises:
        UsageError: what has the folder's name cannot be read as one.
        OutputError: a file cannot be removed.
    """
    ours = [each for each in _files() if each.kind != _OTHER]
    for each in ours:
        try:
            each.path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {each.path}: {error.strerror}") from error
    return _contents(ours)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    kind: str
    nbytes: int


def _files() -> list[_File]:
    """What lies in the folder, whether file, link or folder; nothing where there is no folder."""
    folder = cache_folder()
    try:
        return [_file(path) for path in sorted(folder.iterdir())] if folder.exists() else []
    except OSError as error:
        raise UsageError(f"cannot read the folder {folder}: {error.strerror}") from error


def _file(path: Path) -> _File:
    status = path.lstat()
    ours = _OURS.fullmatch(path.name) if stat.S_ISREG(status.st_mode) else None
    return _File(path, ours[1] if ours else _OTHER, status.st_size)


def _contents(files: Sequence[_File]) -> CacheContents:
    kinds = []
    for kind, holds in {**KINDS, _OTHER: "not of searches: never cleared"}.items():
        sizes = [each.nbytes for each in files if each.kind == kind]
        kinds.append(CacheKind(kind=kind, holds=holds, files=len(sizes), nbytes=sum(sizes)))
    return CacheContents(folder=cache_folder(), kinds=tuple(kinds))
