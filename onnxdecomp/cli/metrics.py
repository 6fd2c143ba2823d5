"""A metric of the user's own, out of a file of Python."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import onnxdecomp
from onnxdecomp.cli.console import aside
from onnxdecomp.cli.options import GOAL, option
from onnxdecomp.errors import UsageError, first_line

if TYPE_CHECKING:
    from onnxdecomp.comparing import Metric


def read_metric(
    metric: Annotated[
        str | None,
        option(
            GOAL,
            metavar="FILE.py:FUNCTION",
            help="Judge models by a figure of your own: the function is called with a loaded model. "
            "--max-drop bounds how much worse it becomes.",
        ),
    ] = None,
    lower_is_better: Annotated[
        bool, option(GOAL, "--lower-is-better", help="Of that figure, as of an error.")
    ] = False,
) -> tuple[Metric | None, set[Path]]:
    """The metric, None without `--metric`, and the files that it is read of.

    Raises:
        UsageError: it cannot be loaded.
    """
    if metric is None:
        if lower_is_better:
            raise UsageError("--lower-is-better speaks of a metric: name it with --metric FILE.py:FUNCTION")
        return None, set()
    file, colon, name = metric.rpartition(":")
    if not colon or not name.isidentifier() or not Path(file).is_file():
        raise UsageError(f"--metric {metric}: write FILE.py:FUNCTION, a file of Python and a function in it")
    function = _function(Path(file), name, metric)

    @functools.wraps(function)  # with its signature, which tells how many arguments it takes
    def called(*values: Any) -> Any:
        with aside():
            return function(*values)

    try:
        return onnxdecomp.Metric(called, lower_is_better, name), {Path(file).resolve()}
    except UsageError as error:
        raise UsageError(f"--metric {metric}: the function must take one argument, a loaded model") from error


def _function(path: Path, name: str, metric: str) -> Callable[..., Any]:
    """A function in a file, which may import what lies beside it, as if it were run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--metric {metric}: {path.name} is no file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    # Whatever a file of the user's raises as it is loaded; it may end in sys.exit, as scripts do.
    try:
        with aside():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"--metric {metric}: {path.name} cannot be loaded ({what})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"--metric {metric}: {path.name} has no function {name}")
    return function  # type: ignore[no-any-return]
