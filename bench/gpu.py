"""How much faster do networks get on a GPU, at which batch and in which precision?

Exports networks with random weights, rewrites them at one rank, and times both models in turns on ONNX
Runtime's CUDA provider: inputs and outputs on the device, cuDNN's search pinned to HEURISTIC, precisions
("fp32" with TF32 off, "tf32", and "fp16" converted, inputs and outputs fp32). Before a network is timed, the
rewritten file must pass the check, and on the GPU each model must compute what its fp32 file does on the CPU.

    python -m bench.gpu [--networks resnet18 …] [--batches 1 8 64 256] [--precisions tf32 fp32 fp16]
        [--rank 0.25] [--duration 1] [--provider cuda|cpu]

A setting, that is one precision at one batch, takes about 26 s: three launches of two processes, 4 s each to
start CUDA, and twice the duration. A network of 12 settings takes about 5 minutes and all four about 21:
where one call may take ten minutes only, make one for each of --networks; each gets a file of its own. With
`OUT` in the environment a copy goes to that folder. With --provider cpu nothing is written: it is there to
try this program without a GPU. The exit code is 2 where no GPU can be used.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxdecomp
from bench.results import write_results
from models import NETWORKS, ModelsError, export
from onnxdecomp.comparing import baseline, check
from onnxdecomp.errors import RunError, first_line
from onnxdecomp.ir import as_model
from onnxdecomp.runtime import PROVIDERS, Engine, Feeds, Provider, onnxruntime
from onnxdecomp.timing import (
    TURNS,
    WARMUP_RUNS,
    Budget,
    Contestant,
    Launch,
    Stopwatch,
    halved,
    medians,
    open_subjects,
    race,
    speedup,
)

Row = dict[str, Any]

CHOSEN = ("resnet18", "resnet50", "vgg16_cifar10", "unet")
BATCHES = (1, 8, 64, 256)
SHAPES = {network.name: network.shape for network in NETWORKS}
LAUNCHES, START_S = 3, 4.0
# How ONNX Runtime, CUDA, cuDNN and a process that was killed say it.
OUT_OF_MEMORY = re.compile(r"memory|alloc", re.IGNORECASE)
PROBE = (
    '<ir_version: 8, opset_import: ["" : 17]> probe (float[1,1,1,1] x) => (float[1,1,1,1] y) {y = Conv(x, x)}'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How floats are computed.

    Attributes:
        half: whether the model is converted to fp16.
        tf32: whether fp32 products may be rounded to TF32.
        bound: relative L2 that outputs may be off those of fp32 on the CPU.
    """

    half: bool
    tf32: bool
    bound: float

    def options(self, provider: Provider) -> dict[str, str]:
        """Of the execution provider."""
        if provider.short != "cuda":
            return {}
        return {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": str(int(self.tf32))}


PRECISIONS = {
    "tf32": Precision(half=False, tf32=True, bound=2e-2),
    "fp32": Precision(half=False, tf32=False, bound=1e-4),
    "fp16": Precision(half=True, tf32=False, bound=5e-2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how a pair of models is run."""

    provider: Provider
    precision: str
    batch: int

    @property
    def engine(self) -> Engine:
        """As ONNX Runtime is to run the models."""
        options = PRECISIONS[self.precision].options(self.provider)
        return Engine(provider=self.provider.name, options=options)


Pair = tuple[Path, Path]


def feeds_of(name: str, batch: int) -> Feeds:
    """Standard normal inputs of a network, `batch` samples."""
    shape = (batch, *SHAPES[name][1:])
    return {"input": np.random.default_rng(0).standard_normal(shape, np.float32)}


def make_pair(name: str, rank: str, folder: Path) -> Pair:
    """The network and the same rewritten, in fp32; the rewritten one has passed the check."""
    before, after = folder / f"{name}.onnx", folder / f"{name}-rewritten.onnx"
    export(name, before, dynamic_batch=True)
    onnxdecomp.rewrite(before, rank, check=False).save(after)
    outcome = check(baseline(as_model(before), {}), after)
    assert outcome.status == "passed", f"{name}: {outcome.status}: {outcome.reason}"
    return before, after


def in_precision(pair: Pair, precision: str, folder: Path) -> Pair:
    """The pair's files in a precision."""
    if not PRECISIONS[precision].half:
        return pair
    before, after = (halved(each, folder / f"{each.path.stem}-fp16.onnx") for each in open_subjects(pair))
    return before, after


def assert_right(reference: Path, path: Path, setting: Setting, feeds: Feeds) -> float:
    """The relative L2 of `path`'s outputs to those of `reference` on the CPU; it is within the bound."""
    expected = Stopwatch(str(reference), Engine(), feeds).outputs()
    found = Stopwatch(str(path), setting.engine, feeds).outputs()
    pairs = [(np.float64(a), np.float64(b)) for a, b in zip(expected, found, strict=True)]
    error = max(float(np.linalg.norm(b - a) / np.linalg.norm(a)) for a, b in pairs)
    bound = PRECISIONS[setting.precision].bound
    # Not a number is not below the bound either.
    assert error < bound, (
        f"{path.stem} in {setting.precision}: its outputs are off by {error:.2g}, more than {bound:g}"
    )
    return error


def measure(
    name: str, pair: Pair, settings: Sequence[Setting], budget: Budget, folder: Path
) -> Iterator[Row]:
    """A row per setting; all precisions are right before the first is timed."""
    files = {each: in_precision(pair, each, folder) for each in dict.fromkeys(s.precision for s in settings)}
    provider = settings[0].provider
    for precision, own in files.items():
        single = Setting(provider=provider, precision=precision, batch=1)
        for reference, path in zip(pair, own, strict=True):
            assert_right(reference, path, single, feeds_of(name, 1))
    for setting in settings:
        yield place(name, setting) | timed(name, files[setting.precision], setting, budget)


def place(name: str, setting: Setting) -> Row:
    """What a row is about; TF32 is a matter of fp32 on CUDA only."""
    precision = PRECISIONS[setting.precision]
    cuda_fp32 = setting.provider.short == "cuda" and not precision.half
    return {
        "model": name,
        "precision": "fp16" if precision.half else "fp32",
        "tf32": precision.tf32 if cuda_fp32 else None,
        "batch": setting.batch,
    }


def timed(name: str, pair: Pair, setting: Setting, budget: Budget) -> Row:
    """The figures of a setting; without enough memory, a note instead."""
    feeds = feeds_of(name, setting.batch)
    try:
        before, after = race([Contestant(path=path, feeds=feeds) for path in pair], setting.engine, budget)
    except RunError as error:
        if not OUT_OF_MEMORY.search(str(error)):
            raise
        return figures([], [], setting.batch) | {"note": f"out of memory: {error}"}
    return figures(before, after, setting.batch) | {"note": ""}


def figures(before: Sequence[Launch], after: Sequence[Launch], batch: int) -> Row:
    """Milliseconds per run and for the copies, samples per second, the ratio of medians and its interval.

    Of no launches all are None.
    """
    ms = [1e3 * medians(each) if each else None for each in (before, after)]
    rates = [1e3 * batch / each if each else None for each in ms]
    copies = [copies_ms(each) for each in (before, after)]
    gain = speedup(before, after) if before else None
    return {
        "median_ms_before": _rounded(ms[0], 4),
        "median_ms_after": _rounded(ms[1], 4),
        "speedup": _rounded(gain.ratio if gain else None, 3),
        "speedup_low": _rounded(gain.low if gain else None, 3),
        "speedup_high": _rounded(gain.high if gain else None, 3),
        "images_per_second_before": _rounded(rates[0], 1),
        "images_per_second_after": _rounded(rates[1], 1),
        "copies_ms_before": _rounded(copies[0], 4),
        "copies_ms_after": _rounded(copies[1], 4),
    }


def copies_ms(launches: Sequence[Launch]) -> float | None:
    """Median time to copy inputs to the device and outputs back, ms; None where they stay on the host."""
    seconds = [launch.copies_s for launch in launches if launch.copies_s is not None]
    return 1e3 * float(np.median(seconds)) if seconds else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def line(row: Row, *, head: bool = False) -> str:
    """One line of the printed table."""
    cells = [(key, key if head else "–" if value is None else str(value)) for key, value in row.items()]
    return " ".join(f"{cell:>{max(len(key), 8)}}" for key, cell in cells).rstrip()


def obstacle(provider: Provider) -> str | None:
    """Why the provider cannot be used here and what to install, in one line; None where it can."""
    ort = onnxruntime()
    if provider.name not in ort.get_available_providers():
        return (
            f"this ONNX Runtime ({ort.__version__}) has no {provider.name}: "
            f"pip uninstall onnxruntime, then pip install {provider.package}"
        )
    reason = refusal(provider)
    return reason and (
        f"{provider.name} does not answer ({reason}): it needs a GPU with its driver, and CUDA and cuDNN: "
        f'pip install "{provider.package}[cuda,cudnn]"'
    )


def refusal(provider: Provider) -> str | None:
    """What keeps a small Conv from running on the provider; None where it runs."""
    ort = onnxruntime()
    ort.set_default_logger_severity(4)  # one line says it all
    feeds = {"x": np.ones((1, 1, 1, 1), np.float32)}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "probe.onnx"
        onnx.save(onnx.parser.parse_model(PROBE), path)
        # onnxruntime's exceptions share no base class of their own.
        try:
            watch = Stopwatch(str(path), Engine(provider=provider.name), feeds)
            watch.outputs()
        except Exception as error:
            return first_line(error)
        finally:
            ort.set_default_logger_severity(2)
    return None if watch.providers[0] == provider.name else f"it fell back to {watch.providers[0]}"


def record(rows: Sequence[Row], arguments: argparse.Namespace) -> Path:
    """Write what was measured; a copy goes to the folder that `OUT` names. Returns the CSV's path."""
    question = f"gpu-rank{arguments.rank}"
    if tuple(arguments.networks) != CHOSEN:
        question += f"-{'-'.join(arguments.networks)}"
    options: Mapping[str, Any] = {
        "provider": PROVIDERS[arguments.provider].name,
        "provider_options": {
            each: PRECISIONS[each].options(PROVIDERS[arguments.provider]) for each in arguments.precisions
        },
        "bounds_relative_l2": {each: PRECISIONS[each].bound for each in arguments.precisions},
        "warmup_runs": WARMUP_RUNS,
        "turns": TURNS,
        "duration": arguments.duration,
    }
    path = write_results(question, rows, options, gpu=True)
    if os.environ.get("OUT"):
        folder = Path(os.environ["OUT"])
        for each in (path, path.with_suffix(".json")):
            shutil.copy(each, folder / each.name)
    return path


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure all that is asked for, printing rows as they come; results are written after each network."""
    provider, budget = PROVIDERS[arguments.provider], Budget(duration=arguments.duration)
    settings = [
        Setting(provider=provider, precision=precision, batch=batch)
        for precision, batch in product(arguments.precisions, arguments.batches)
    ]
    rows: list[Row] = []
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            pair = make_pair(name, arguments.rank, folder)
            for row in measure(name, pair, settings, budget, folder):
                print(*([] if rows else [line(row, head=True)]), line(row), sep="\n", flush=True)
                rows.append(row)
        if provider.gpu:
            print(record(rows, arguments), flush=True)
    return rows


def minutes(arguments: argparse.Namespace) -> float:
    """About how long a call takes on CUDA."""
    settings: int = len(arguments.networks) * len(arguments.precisions) * len(arguments.batches)
    return settings * 2 * (LAUNCHES * START_S + float(arguments.duration)) / 60


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=list(SHAPES), default=list(CHOSEN))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--rank", default="0.25")
    parser.add_argument("--duration", type=float, default=1.0, help="seconds of timed runs per model")
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    missing = obstacle(PROVIDERS[arguments.provider])
    if missing:
        print(missing, file=sys.stderr)
        return 2
    if arguments.provider == "cuda":
        print(f"about {minutes(arguments):.0f} minutes", flush=True)
    try:
        run(arguments)
    except ModelsError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
