"""What commands print on: as wide as it is, without colours where they are not wanted, and while it lasts."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, TextIO

from onnxdecomp.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.console import Console

# Where no terminal says how wide it is, lines that wrap help nobody.
_NO_TERMINAL = 160
_NARROWEST = 40
# Tables that are shown whole are as wide as what stands in them.
_WHOLE = 100_000


def plain() -> bool:
    """Whether a terminal is to get no control characters: https://no-color.org, or it knows none."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def make_console(stream: IO[str], *, whole: bool = False) -> Console:
    """A console on a stream.

    Args:
        stream: standard output or standard error.
        whole: wrap nothing and leave nothing out, however wide that is.
    """
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            """Go on without a reader, as behind `| head -1`: what is printed is not what is done."""
            self.quiet = True
            give_up(stream)

    colours = {"color_system": None, "no_color": True} if plain() else {}
    width = _WHOLE if whole else max(_width(stream), _NARROWEST)
    return Output(file=stream, width=width, highlight=False, **colours)  # type: ignore[arg-type]


def _width(stream: IO[str]) -> int:
    """Columns: what `$COLUMNS` says if that can be one, else what the terminal says."""
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and len(given) < 5 and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _NO_TERMINAL
    except (OSError, ValueError):  # no terminal, or no file at all
        return _NO_TERMINAL


class _Printed(io.FileIO):
    """Standard output as a file whose errors say that they are its own, whoever writes to it."""

    def write(self, data: ReadableBuffer) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            give_up(self)
            reason = (
                f"cannot write to standard output: {error.strerror}; free some space or send it elsewhere"
            )
            raise OutputError(reason) from error


def printing(stream: TextIO) -> TextIO:
    """Standard output, so that what it cannot take is an OutputError."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    # $PYTHONUNBUFFERED leaves the layer between out.
    if not isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):
        return stream  # a console of Windows
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Printed(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,
    )


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Let what others print in the block, libraries in C and child processes too, go to standard error."""
    try:
        output, errors = sys.stdout.fileno(), sys.stderr.fileno()
    except (OSError, ValueError):  # no files
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    finish(sys.stdout)
    with contextlib.ExitStack() as stack:
        kept = os.dup(output)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, output)
        # What they print is theirs to the last, whoever holds it until then.
        if os.name == "posix":
            stack.callback(ctypes.CDLL(None).fflush, None)
        if sys.__stdout__ is not None:
            stack.callback(finish, sys.__stdout__)
        os.dup2(errors, output)
        with contextlib.redirect_stdout(sys.stderr):
            yield


def finish(stream: TextIO) -> None:
    """Write what was printed; a reader that stopped reading has what it wants.

    Raises:
        OutputError: standard output cannot take it.
    """
    try:
        stream.flush()
    except BrokenPipeError:
        give_up(stream)


def give_up(stream: IO[Any]) -> None:
    """Lose what a stream that cannot be written still holds, and all that comes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
