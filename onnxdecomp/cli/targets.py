"""The files that a command is to write: verified before any work is done, accounted for at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from onnxdecomp import ir
from onnxdecomp.cli.console import to_json
from onnxdecomp.errors import CheckError, GoalError


class Targets:
    """The model and the documents that a command is asked for; each None where it is not wanted.

    Attributes:
        keep: files that must not be overwritten.
    """

    def __init__(self, keep: Iterable[Path], *documents: Path | None, model: Path | None = None) -> None:
        """Refuse what could not or must not be written.

        Raises:
            UsageError: a file to keep, or one named twice.
            OutputError: a folder is missing or cannot be written.
        """
        self.keep = set(keep)
        self._written: list[Path] = []
        if model is not None:
            ir.require_target(model, self.keep)
        for document in filter(None, documents):
            ir.require_target(document, self.keep, device=True)
        ir.require_distinct(model, model and ir.data_path(model), *documents)

    def text(self, path: Path | None, make: Callable[[], str]) -> None:
        """Write a text, if it is wanted."""
        if path is not None:
            ir.write_text(path, make(), self.keep)
            self._written.append(path)

    def json(self, path: Path | None, make: Callable[[], Any]) -> None:
        """Write a document as JSON, if it is wanted."""
        self.text(path, lambda: to_json(make()))

    def picture(self, path: Path | None, draw: Callable[[Path], None]) -> None:
        """Let `draw` make a picture, if it is wanted."""
        if path is not None:
            ir.write_file(path, draw, self.keep)
            self._written.append(path)

    @contextlib.contextmanager
    def accounted(self) -> Iterator[None]:
        """Say with a goal that was not met, or a check that failed, what was written all the same."""
        try:
            yield
        except (GoalError, CheckError) as error:
            raise type(error)(f"{error}; {self._account()}") from error

    def _account(self) -> str:
        if not self._written:
            return "nothing was written"
        names = " and ".join(map(str, self._written))
        return f"no model was written, only {names}"
