"""What all commands share: where they print, how far they are, how they stop, how they write JSON."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from onnxdecomp.errors import StoppedError
from onnxdecomp.progress import TRIED, Progress, ProgressEvent, silent

if TYPE_CHECKING:
    from rich.console import Console


def stop(number: int, frame: FrameType | None) -> None:
    """A signal's handler."""
    raise StoppedError(number)


def output_console() -> Console:
    """Standard output."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            """Go on without a reader, as behind `| head -1`: what is printed is not what is done."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    # Where no terminal says how wide it is, lines that wrap help nobody.
    return Output(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160, highlight=False)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on standard error, where that is a terminal, for the stage that is told of last."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=None, visible=False)
        shown = ""

        def tell(event: ProgressEvent) -> None:
            nonlocal shown
            if event.stage == TRIED:
                bars.console.print(f"{TRIED} {event.item}", highlight=False, markup=False)
            elif event.stage != shown:
                shown = event.stage
                bars.reset(bar, description=shown, total=event.total, completed=event.done, visible=True)
            else:
                bars.update(bar, total=event.total, completed=event.done)

        yield tell


def to_json(document: Any) -> str:
    """`document` as text; NaN and Infinity are not JSON."""
    import json

    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
