"""Signals that end the work: what they raise, and where they must wait."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from onnxdecomp.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop(number: int, frame: FrameType | None) -> None:
    """A signal's handler.

    Raises:
        StoppedError: always.
    """
    raise StoppedError(number)


def stopped_by(error: BaseException) -> StoppedError | None:
    """The interruption behind an error: extension modules that are being imported raise their own for it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, StoppedError):
        seen = seen.__cause__ or seen.__context__
    return seen


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals that arrive in the block take effect after it.

    Half a move leaves no whole file, half a removal a folder, and an extension module that is interrupted
    while it is imported blames the import.
    """
    # Python runs handlers in the main thread, so elsewhere nothing is interrupted.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    previous = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            # None stands for a handler that was not installed from Python, which cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if arrived:
            signal.raise_signal(arrived[0])
