"""One case: the command line on hostile input, in this process, and what is wrong with how it ended."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from mutations import place
from onnx import ModelProto

from onnxdecomp.cli.app import main

# What a case may take; commands name no others for their output.
MOST_SECONDS, MOST_BYTES = 10.0, 2**30
OUTPUTS = {"out.onnx", "out.onnx.data", "r.json", "s.json", "-"}
_TOLD = re.compile(r" *\d+:[\d:]+  \S")


def flaws(seed: str, folder: Path) -> list[str]:
    """What is wrong with how the case of that seed ends; nothing if all is well.

    Args:
        seed: of the case.
        folder: where it runs, empty.
    """
    with warnings.catch_warnings(action="ignore"):  # of NumPy and zipfile, who are made to write nonsense
        words = place(seed, folder)
    before, start, base = _state(folder), time.process_time(), _reset_peak()
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    argv, here = sys.argv, Path.cwd()
    found = []
    code: object = None
    try:
        os.chdir(folder)
        sys.argv = ["onnxdecomp", *words]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        found.append(traceback.format_exc())
    finally:
        sys.argv = argv
        os.chdir(here)
    if code not in (0, 1, 2, 3) and not found:
        found.append(f"exit code {code}")
    if (taken := time.process_time() - start) > MOST_SECONDS:
        found.append(f"{taken:.1f} s of computing")
    if (peak := _peak()) > base + MOST_BYTES:
        found.append(f"{(peak - base) / 2**20:.0f} MiB")
    err.seek(0)
    found += _flaws_of_words(err.read(), code)
    found += _flaws_of_files(before, folder, code, OUTPUTS | {*words})
    return [f"{' '.join(words)[:300]}: {flaw}" for flaw in found]


def _flaws_of_words(told: str, code: object) -> Iterator[str]:
    lines = [line for line in told.splitlines() if not _TOLD.match(line)]
    if code in (1, 2, 3) and (len(lines) != 1 or not lines[0].startswith("onnxdecomp: ")):
        yield f"not one line: {told[-600:]}"
    if any(len(line) > 300 for line in lines):
        yield f"a line of {max(map(len, lines))} characters"
    if "Traceback" in told or "\x1b" in told:
        yield f"a traceback or an escape code: {told[-600:]}"


def _flaws_of_files(before: dict[str, str], folder: Path, code: object, outputs: set[str]) -> Iterator[str]:
    after = _state(folder)
    if changed := [
        name for name, digest in before.items() if after.get(name) != digest and name not in OUTPUTS
    ]:
        yield f"changed its input: {changed}"
    new = after.keys() - before.keys()
    # A search that misses its goal writes what it knows, but no model.
    allowed = outputs if code == 0 else outputs - {"out.onnx", "out.onnx.data"} if code == 1 else set()
    if new - allowed:
        yield f"left behind with exit code {code}: {sorted(new - allowed)}"
    if code == 0 and "out.onnx" in new:
        ModelProto.FromString((folder / "out.onnx").read_bytes())


def _state(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


# Memory, where Linux tells its peak
# ----------------------------------


def _reset_peak() -> int:
    """Forget the peak so far, and say what is in use."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
