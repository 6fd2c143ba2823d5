"""How far long work is, on standard error: a bar on a terminal, and elsewhere lines for a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated

from onnxdecomp.cli.console import give_up, make_console, plain
from onnxdecomp.cli.options import OUTPUT, option
from onnxdecomp.errors import UsageError, printable
from onnxdecomp.progress import TRIED, Progress, ProgressEvent, silent

# Seconds between two lines of one stage, less its first and its last.
_PAUSE = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How much a command tells of what it does.

    Attributes:
        quiet: nothing.
        verbose: every item too, and tables whole.
        began: `time.monotonic()` when the command began.
    """

    quiet: bool = False
    verbose: bool = False
    began: float = field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """What to tell how far the work is; a bar is gone after the block."""
        if self.quiet:
            yield silent
        elif sys.stderr.isatty() and not plain():
            with _bar(self.verbose) as tell:
                yield tell
        else:
            yield Lines(_write, verbose=self.verbose, began=self.began)


def read_voice(
    quiet: Annotated[bool, option(OUTPUT, "--quiet", "-q", help="Do not say how far the work is.")] = False,
    verbose: Annotated[
        bool, option(OUTPUT, "--verbose", "-v", help="Say it for every item; show tables whole.")
    ] = False,
) -> Voice:
    """How much is told."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other: give one of them")
    return Voice(quiet=quiet, verbose=verbose)


class Lines:
    """A line as a stage begins and ends, and now and then in between: time since the start, and time left."""

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        verbose: bool = False,
        began: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            write: takes a line.
            verbose: a line for every item.
            began: what the clock said when all began.
            clock: seconds.
        """
        self._write, self._verbose, self._began, self._clock = write, verbose, began, clock
        self._stage = ProgressEvent("", 0, 0)
        self._entered = self._told = began

    def __call__(self, event: ProgressEvent) -> None:
        """Tell of an event, if it is worth a line."""
        now = self._clock()
        if event.stage == TRIED:
            self._line(now, f"{TRIED}: {event.item}")
            return
        if event.stage != self._stage.stage or event.done == 0:
            self._stage, self._entered = event, now
        elif event.done < event.total and not self._verbose and now - self._told < _PAUSE:
            return
        self._told = now
        self._line(now, ", ".join([_count(event), *self._item(event), *self._left(event, now)]))

    def _line(self, now: float, text: str) -> None:
        self._write(f"{_span(now - self._began):>7}  {printable(text)}")

    def _item(self, event: ProgressEvent) -> list[str]:
        return [event.item] if self._verbose and event.item is not None else []

    def _left(self, event: ProgressEvent, now: float) -> list[str]:
        """How long the stage will go on, where its pace is known."""
        done, left = event.done - self._stage.done, event.total - event.done
        seconds = (now - self._entered) / done * left if done else 0.0
        return [f"about {_span(seconds)} left"] if seconds >= 1 else []


def _count(event: ProgressEvent) -> str:
    if event.total == 1:
        return f"{event.stage}: done" if event.done else event.stage
    return f"{event.stage}: {event.done} of {event.total}"


def _span(seconds: float) -> str:
    """As clocks show it: 0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _write(line: str) -> None:
    # What nobody reads any more, or a full disk, is no reason to stop the work that the line is about.
    try:
        print(line, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        give_up(sys.stderr)


@contextlib.contextmanager
def _bar(verbose: bool) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=make_console(sys.stderr), transient=True) as bars:
        bar = bars.add_task("", total=None, visible=False)
        shown = ""

        def tell(event: ProgressEvent) -> None:
            nonlocal shown
            if event.item is not None and (verbose or event.stage == TRIED):
                text = printable(f"{event.stage}: {event.item}")
                bars.console.print(text, highlight=False, markup=False, soft_wrap=True)
            if event.stage == TRIED:
                return
            if event.stage != shown:
                shown = event.stage
                bars.reset(bar, description=shown, total=event.total, completed=event.done, visible=True)
            else:
                bars.update(bar, total=event.total, completed=event.done)

        yield tell
