"""What can go wrong, as one small tree.

::

    OnnxdecompError          exit code 2: the command cannot be carried out as given
    ├── ModelError           the input is not an ONNX model, or part of it is missing
    ├── UsageError           an option, rank, plan or regular expression that cannot be obeyed
    │   └── StorageError     a study's storage cannot be opened, or fails while it is used
    ├── RunError             no runtime here can load or run the model
    ├── MissingExtraError    an optional package is needed and not installed
    ├── OutputError          the output cannot be written; nothing was
    ├── NothingSelectedError exit code 3: no Conv was chosen for decomposition
    ├── CheckError           exit code 1: the rewritten model failed its check; nothing was written
    └── GoalError            exit code 1: a search did not reach its goal; nothing was written
    BaseException
    └── StoppedError         exit code 128 + the signal's number: the work was interrupted

Every message is one line: what is wrong, where, and what to do. It names parameters in backticks, as `rank`,
which the command line turns into its options. StoppedError is no Exception, for the same reason as
KeyboardInterrupt: what catches the errors of a library must not catch it.
"""

from __future__ import annotations

import signal

# Characters of a message, and of another library's error that it repeats; the whole of that is the __cause__.
_LONGEST, _MOST_REPEATED = 288, 200


class OnnxdecompError(Exception):
    """Base of every error this package raises on purpose.

    An example is in docs/python.md under "Errors".
    """

    exit_code = 2

    def __str__(self) -> str:
        return shortened(super().__str__())


class ModelError(OnnxdecompError):
    """The input is not an ONNX model, or a part of it is missing."""


class UsageError(OnnxdecompError):
    """An option, rank, plan or regular expression that cannot be obeyed."""


class StorageError(UsageError):
    """A study's storage cannot be opened, or fails while it is used."""


class RunError(OnnxdecompError):
    """No runtime here can load or run the model."""


class MissingExtraError(OnnxdecompError):
    """An optional package is needed and not installed."""


class OutputError(OnnxdecompError):
    """The output cannot be written; nothing was."""


class NothingSelectedError(OnnxdecompError):
    """No Conv was chosen for decomposition."""

    exit_code = 3


class CheckError(OnnxdecompError):
    """The rewritten model failed its check; nothing was written."""

    exit_code = 1


class GoalError(OnnxdecompError):
    """A search did not reach its goal; nothing was written."""

    exit_code = 1


class StoppedError(BaseException):
    """Somebody wants the work to stop: unwind, so that scratch files go; what is known may be kept.

    A signal's handler raises it, or a `progress` function. An example is in docs/python.md under "Progress
    and interruption".

    Attributes:
        number: of the signal.
        message: what the user is told.
    """

    def __init__(
        self, number: int = signal.SIGINT, message: str = "interrupted; nothing was written"
    ) -> None:
        super().__init__(message)
        self.number, self.message = int(number), message

    def __reduce__(self) -> tuple[type[StoppedError], tuple[int, str]]:
        return type(self), (self.number, self.message)

    @property
    def exit_code(self) -> int:
        """That of a process which the signal ended."""
        return 128 + self.number


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, cut at 200 characters: for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = printable(lines[0]) if lines else type(error).__name__
    return line if len(line) <= _MOST_REPEATED else f"{line[: _MOST_REPEATED - 1].rstrip()}…"


def shortened(text: str) -> str:
    """A message that is not too long: what is wrong stands first, what to do last, and both stay.

    With the program's name before it, it has 300 characters at most.
    """
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 101]}…{text[-100:]}"


def printable(text: str) -> str:
    """`text` with control characters spelt out: names in a file must not steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
