"""What all commands share: where they print, how they stop, how they write JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from onnxdecomp.errors import StoppedError

T = TypeVar("T")


def stop(number: int, frame: FrameType | None) -> None:
    """A signal's handler."""
    raise StoppedError(number)


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Go on without a reader, as behind `| head -1`: what is printed is not what is done."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def output_console() -> Console:
    """Standard output."""
    # Where no terminal says how wide it is, lines that wrap help nobody.
    return _Output(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160, highlight=False)


def tracked(work: Sequence[T], what: str = "factoring") -> Iterable[T]:
    """`work`, with a bar on standard error where that is a terminal."""
    console = Console(stderr=True)
    return track(work, description=what, console=console, transient=True, disable=not console.is_terminal)


def to_json(document: Any) -> str:
    """`document` as text; NaN and Infinity are not JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
