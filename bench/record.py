"""What the command line makes of real models, as digests: recorded before a change, compared after it.

    python -m bench.record before.json --folder FOLDER     (models/*.onnx and data/*.npz, beside the corpus)
    python -m bench.record after.json --folder FOLDER
    python -m bench.record --compare before.json after.json

Each case is one command. Of it the exit code is kept, what it printed, and the SHA-256 of every file that it
wrote, reports less what a clock says. Digests compare on one machine alone: BLAS rounds as its CPU does.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from models import ModelsError, fetch, names
from onnxdecomp import find_sites
from onnxdecomp.cli import main as command_line

RULES = ("0.25", "0.5", "energy=0.9", "vbmf", "params=0.5")
METHODS = ("tucker2", "tucker1", "svd", "spatial", "cp", "cp3", "auto")
# Alternating least squares takes minutes for larger weights: so many sites of no more parameters will do.
SLOW_METHODS, SLOW_SITES, SLOW_PARAMS = ("cp", "cp3", "auto"), 3, 1 << 15
FITTED = {
    "cifar10_resnet20": ("cifar10_train.npz", "imagenet"),
    "vgg16_cifar10": ("cifar10_train.npz", "imagenet"),
    "cifar10_resnet20_bn_unfused": ("cifar10_train.npz", "imagenet"),
}
SEARCHED = ("cifar10_resnet20", "cifar10_resnet56")
SAMPLES = ("--samples", "64", "--labels", "y")
# What differs from run to run.
CLOCKED = {"environment", "original_ms", "speedup"}
OPTION = re.compile(r"`[a-z_]+`|--[a-z]+(-[a-z]+)*")

Case = tuple[str, tuple[str, ...]]


def cases(name: str, path: Path, folder: Path) -> Iterator[Case]:
    """The commands for one model, as a name and the arguments that follow the model's path."""
    sites = [site for site in find_sites(path) if site.obstacle is None]
    few = [site.name for site in sites if 0 < (site.params or 0) <= SLOW_PARAMS][:SLOW_SITES]
    only = "^(" + "|".join(map(_literal, few)) + ")$"
    yield "inspect", ("inspect", "--linear", "--spectrum")
    for rule in RULES:
        yield f"rank {rule}", ("rewrite", "--rank", rule)
    yield "linear", ("rewrite", "--rank", "0.25", "--linear")
    yield "no-fold-bn", ("rewrite", "--rank", "0.25", "--no-fold-bn")
    for method in METHODS:
        slow = ("--only", only) if method in SLOW_METHODS else ()
        if few or not slow:
            yield f"method {method}", ("rewrite", "--rank", "0.5", "--method", method, *slow)
    yield "plan", ("rewrite", "--plan", "plan.json")
    if name in FITTED:
        data, preset = FITTED[name]
        samples = ("--data", str(folder / "data" / data), "--preset", preset, *SAMPLES)
        yield "data", ("rewrite", "--rank", "0.5", *samples)
    if name in SEARCHED:
        data = str(folder / "data" / "cifar10_train.npz")
        samples = ("--data", data, "--preset", "imagenet", *SAMPLES)
        yield "search", ("search", "--macs", "0.5", "--cost", "macs", *samples)


def _literal(text: str) -> str:
    return "".join(c if c.isalnum() or c in "/_" else f"\\{c}" for c in text)


def record(name: str, path: Path, folder: Path, only: str | None) -> dict[str, dict[str, Any]]:
    """What every command makes of one model, by the names of the cases."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        os.environ |= {"ONNXDECOMP_CACHE": scratch, "COLUMNS": "160"}
        for case, words in cases(name, path, folder):
            if only is not None and only not in f"{name}: {case}":
                continue
            if case == "plan":
                run(path, ("rewrite", "--rank", "0.25", "--dry-run"))
                if not Path("saved.json").exists():  # nothing to decompose
                    continue
                Path("saved.json").replace("plan.json")
            found[f"{name}: {case}"] = run(path, words)
            print(f"{name}: {case}", file=sys.stderr, flush=True)
    return found


def run(path: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """One command in this process: its exit code, what it printed, the digests of what it wrote."""
    command, *options = words
    written = {"json": Path("report.json")}
    if command != "inspect":
        written |= {"model": Path("out.onnx"), "plan": Path("saved.json"), "data": Path("out.onnx.data")}
        options += ["--save-plan", "saved.json"]
    for file in written.values():
        file.unlink(missing_ok=True)
    output = ["out.onnx"] if command != "inspect" else []
    line = ["onnxdecomp", command, str(path), *output, *options, "--json", "report.json"]
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with (
        mock.patch.object(sys, "argv", line),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            command_line()
        except SystemExit as stop:
            code = stop.code
    found: dict[str, Any] = {"exit": code, "out": out.getvalue(), "err": err.getvalue()}
    for what, file in written.items():
        if file.exists():
            data = file.read_bytes()
            found[what] = _json_digest(data) if what == "json" else hashlib.sha256(data).hexdigest()
    return found


def _json_digest(data: bytes) -> str:
    return hashlib.sha256(json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()).hexdigest()


def _timeless(value: Any) -> Any:
    """Without what a clock says; an option counts as the same under its name in Python."""
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in CLOCKED}
    if isinstance(value, str):
        return OPTION.sub("OPTION", value)
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def compare(before: Path, after: Path) -> int:
    """Print every case that differs, and how many agree; 1 if any differs."""
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    differing = 0
    for case in dict.fromkeys([*first, *second]):
        a, b = first.get(case), second.get(case)
        if a != b:
            differing += 1
            keys = sorted(set(a or {}) | set(b or {}))
            print(f"{case}: {', '.join(k for k in keys if (a or {}).get(k) != (b or {}).get(k))}")
    files = sum(len(set(each) & {"model", "plan", "json", "data"}) for each in second.values())
    print(
        f"{len(second) - differing} of {len(second)} commands alike, with {files} files; {differing} differ"
    )
    return int(differing > 0)


def main() -> None:
    """Record, or compare two records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path, nargs="+", help="the file to write; with --compare, two to read")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--folder", type=Path, help="has models/*.onnx and data/*.npz")
    parser.add_argument("--only", help="cases whose name has this in it")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    options = parser.parse_args()
    if options.compare:
        raise SystemExit(compare(*options.record))
    folder = options.folder.resolve() if options.folder else Path()
    paths = {path.stem: path for path in sorted((folder / "models").glob("*.onnx"))} if options.folder else {}
    for name in names():
        with contextlib.suppress(ModelsError):
            paths[name] = fetch(name)
    target: Path = options.record[0].resolve()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        found = [pool.submit(record, name, path, folder, options.only) for name, path in paths.items()]
        whole = {case: each for future in found for case, each in future.result().items()}
    target.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
