"""The command line: parse, call, print, set the exit code.

Exit codes: 0 done; 1 a check failed or a goal was not met, no model was written; 2 the command cannot be
carried out as given; 3 nothing to decompose, nothing was written.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import onnxdecomp
from onnxdecomp.cli.bench import bench
from onnxdecomp.cli.cache import cache
from onnxdecomp.cli.compare import compare
from onnxdecomp.cli.console import finish, printing
from onnxdecomp.cli.help import PanelCommand
from onnxdecomp.cli.inspect import inspect
from onnxdecomp.cli.rewrite import rewrite
from onnxdecomp.cli.search import search
from onnxdecomp.cli.trials import trials
from onnxdecomp.cli.tune import tune
from onnxdecomp.errors import OnnxdecompError, StoppedError, first_line, printable, shortened
from onnxdecomp.stopping import SIGNALS, stop, stopped_by

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make trained CNNs smaller and faster by tensor decomposition: ONNX in, ONNX out.",
)
for command in (inspect, rewrite, search, tune, trials, compare, bench, cache):
    app.command(cls=PanelCommand)(command)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(onnxdecomp.__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def main() -> None:
    """Run the command line; errors are one line on standard error and an exit code."""
    # Where a stream is closed, what is printed is lost, and what is done is not.
    nowhere = Path(os.devnull)
    sys.stdout = nowhere.open("w") if sys.stdout is None else printing(sys.stdout)
    sys.stderr = sys.stderr or nowhere.open("w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a code page without arrows gets question marks
            stream.reconfigure(errors="replace")
    previous = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        # The name of the program as installed, which completion calls: not `python -m onnxdecomp`.
        code = app(prog_name="onnxdecomp", standalone_mode=False)
        finish(sys.stdout)
        sys.exit(code)
    except (Exception, StoppedError) as error:
        _end(error)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end(error: BaseException) -> NoReturn:
    """One line on standard error and an exit code; what nobody foresaw keeps its traceback."""
    if (stopped := stopped_by(error)) is not None:
        _fail(stopped.message, stopped.exit_code)
    if isinstance(error, OnnxdecompError):
        _explain(error)
        _fail(str(error), error.exit_code)
    if isinstance(error, typer.TyperException):
        # Where a value is none of an enum's, the message begins as that of the ValueError beneath it.
        _fail(error.format_message().replace("Value error, ", ""), 2)
    if isinstance(error, MemoryError):
        _explain(error)
        _fail(f"there is too little memory: {first_line(error)}; give smaller inputs or batches", 2)
    if isinstance(error, UnicodeDecodeError):
        _explain(error)
        _fail("a name in the model is not UTF-8 text; the file is damaged", 2)
    if isinstance(error, OSError) and error.filename is not None:
        # A path that the system does not even look at: too long, in a circle, behind a closed door.
        _explain(error)
        _fail(f"cannot use {error.filename}: {error.strerror}; name another", 2)
    raise error


def _explain(error: Exception) -> None:
    """Where it happened, and whole what libraries said, for those who asked."""
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exception(error)


def _fail(message: str, code: int) -> NoReturn:
    from onnxdecomp.show import with_flags

    line = shortened(printable(" ".join(with_flags(message).split())))
    print(f"onnxdecomp: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(code)
