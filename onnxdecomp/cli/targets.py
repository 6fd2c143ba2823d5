"""What a command is to write: verified before any work is done, accounted for at the end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdecomp import ir
from onnxdecomp.cli.console import make_console
from onnxdecomp.cli.options import STDOUT
from onnxdecomp.errors import CheckError, GoalError, StoppedError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from onnxdecomp.cli.telling import Voice
    from onnxdecomp.rewriting import Result
    from onnxdecomp.tuning import TuneResult


class Targets:
    """The model and the documents that a command is asked for; each None where it is not wanted.

    Attributes:
        keep: files that must not be overwritten.
    """

    def __init__(
        self, keep: Mapping[str, Iterable[Path]], *documents: Path | None, model: Path | None = None
    ) -> None:
        """Refuse what could not or must not be written.

        Args:
            keep: files that must not be overwritten, by what they belong to: "the input".
            documents: what is to be written besides the model; None for what is not wanted.
            model: where it shall go.

        Raises:
            UsageError: a file to keep, or one named twice; a model to standard output.
            OutputError: a folder is missing or cannot be written.
        """
        self.keep = {file for files in keep.values() for file in files}
        self._model = model
        self._staged: os.stat_result | None = None
        self._written: list[Path] = []
        self._spoken = documents.count(STDOUT) > 0
        if model == STDOUT:
            raise UsageError("a model cannot go to standard output; write ./- for a file of that name")
        if documents.count(STDOUT) > 1:
            raise UsageError("- is named for two outputs; name a file for one of them")
        files = [document for document in documents if document not in (None, STDOUT)]
        _require_apart(keep, model, *files)
        if model is not None:
            ir.require_target(model, self.keep)
        data = model and ir.data_path(model)
        _require_apart(keep, data)
        for document in filter(None, files):
            ir.require_target(document, self.keep, device=True)
        ir.require_distinct(model, data, *files)
        # What processes left behind that were killed, wherever this command reads or writes.
        for folder in {file.parent for file in (*self.keep, *filter(None, (model, *files)))}:
            ir.sweep(folder)

    def console(self, voice: Voice) -> Console:
        """Where tables go: standard output, but where a document goes there, which must stand alone."""
        return make_console(sys.stderr if self._spoken else sys.stdout, whole=voice.verbose)

    def text(self, path: Path | None, make: Callable[[], str]) -> None:
        """Write a text, if it is wanted."""
        if path == STDOUT:
            # As in files, whatever code page a terminal would be given.
            sys.stdout.flush()
            sys.stdout.buffer.write(make().encode("utf-8"))
            sys.stdout.flush()
        elif path is not None:
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
    def staged(self, result: Result | TuneResult) -> Iterator[Path]:
        """The new model as a file that loads; it is moved to its place when the block succeeds."""
        if self._model is None:
            raise ValueError("no model is wanted")
        with result.staged(self._model, self.keep) as candidate:
            self._staged = candidate.stat()
            yield candidate

    @contextlib.contextmanager
    def accounted(self, stopped: StoppedError | None = None) -> Iterator[None]:
        """Say of work that was interrupted, or missed its goal or its check, what was written all the same.

        Args:
            stopped: what ended the work early, to be raised when the block has written what is known.
        """
        try:
            yield
        except (GoalError, CheckError) as error:
            if stopped is not None:
                message = f"interrupted; {self._account()}: {error}"
                raise StoppedError(stopped.number, message) from error
            if self._model is None:
                raise
            raise type(error)(f"{error}; {self._account()}") from error
        except StoppedError as error:
            raise StoppedError(error.number, f"interrupted; {self._account()}") from error
        if stopped is not None:
            raise StoppedError(stopped.number, f"interrupted; {self._account()}") from stopped

    def _account(self) -> str:
        names = " and ".join(map(str, self._written))
        if self._moved():
            return f"wrote {self._model}" + (f", {names}" if names else "")
        if not names:
            return "nothing was written"
        return f"wrote {names}" if self._model is None else f"no model was written, only {names}"

    def _moved(self) -> bool:
        """Whether the new model is in its place: the file that was staged, whatever interrupted the move."""
        if self._model is None or self._staged is None or not self._model.exists():
            return False
        return os.path.samestat(self._model.stat(), self._staged)


def _require_apart(keep: Mapping[str, Iterable[Path]], *targets: Path | None) -> None:
    for owner, files in keep.items():
        for target in filter(None, targets):
            ir.require_apart(target, files, owner)


def to_json(document: Any) -> str:
    """`document` as text; NaN and Infinity are not JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
