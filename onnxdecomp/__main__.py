"""`python -m onnxdecomp` is the command line, and so is the program `onnxdecomp`."""

import signal
import sys

from onnxdecomp.errors import StoppedError
from onnxdecomp.stopping import SIGNALS, stop


def main() -> None:
    """Run the command line; an interruption is one line from the first import on."""
    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        from onnxdecomp.cli import main as run

        run()
    except StoppedError as error:
        print(f"onnxdecomp: {error.message}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    finally:
        # All is done and its exit code is known; the interpreter only takes itself down.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
