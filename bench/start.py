"""How long the command line takes to start, beside what its libraries alone take.

    python -m bench.start

Processes take turns; medians, and their ratios to `import typer, rich`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

COMMANDS = {
    "import typer, rich": ["-c", "import typer, rich"],
    "import onnxdecomp": ["-c", "import onnxdecomp"],
    "onnxdecomp --help": ["-m", "onnxdecomp", "--help"],
    "onnxdecomp --version": ["-m", "onnxdecomp", "--version"],
    "onnxdecomp search --help": ["-m", "onnxdecomp", "search", "--help"],
}


def seconds(words: list[str]) -> float:
    """Of one process, from start to end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Time all commands in turns and print a table."""
    parser = argparse.ArgumentParser(description="How long the command line takes to start.")
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    for words in COMMANDS.values():  # what is compiled once is not counted
        seconds(words)
    turns = [{name: seconds(words) for name, words in COMMANDS.items()} for _ in range(rounds)]
    base = median(turn["import typer, rich"] for turn in turns)
    for name in COMMANDS:
        own = median(turn[name] for turn in turns)
        print(f"{name:<26} {1e3 * own:6.0f} ms  {own / base:5.2f}×")


if __name__ == "__main__":
    main()
