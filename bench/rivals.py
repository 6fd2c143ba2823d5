"""On one model, same samples, same machine, one run: what does each tool give?

Sets beside each other, without training:

* the original;
* ours, fitted to the samples; ours, plain; ours at the ranks of VBMF, fitted;
* TensorLy's `partial_tucker` of the same Convs at the same ranks, put in by the same code: the graphs are
  those of ours, so only the factors differ;
* ONNX Runtime's int8: static, per tensor and per channel, its ranges from the same samples; dynamic, with
  signed weights, its default, and unsigned ones;
* ours, fitted, and then ONNX Runtime's static int8 on top.

All that run are timed in turns on one thread at batch 1, and judged on images that nobody was fitted to. A
variant that cannot be made or run has the reason in place of figures.

    python -m bench.rivals [--model cifar10_resnet20] [--rank 0.5] [--fit-samples 256] [--test-samples 5000]
        [--duration 5 | --runs 100] [--data-folder FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tensorly.decomposition import partial_tucker

import onnxdecomp
from bench.kinds import quantise, quantise_dynamically
from bench.quality import DATA_FOLDER, NETWORKS, Exam, assert_planned, open_exam, require_data
from bench.results import write_results
from onnxdecomp import Policy, Result, Samples
from onnxdecomp.factors import Chain, Floats, Ranks, svd_chain, tucker_chain
from onnxdecomp.ir import load, read_finite_weight, save, survey
from onnxdecomp.lowering import Splicer
from onnxdecomp.planning import Unit
from onnxdecomp.rewriting import decided_units
from onnxdecomp.runtime import Engine
from onnxdecomp.timing import WARMUP_RUNS, Budget, Contestant, medians, race, speedup

Row = dict[str, Any]
Make = Callable[[Path], None]

ORIGINAL, OURS = "original", "ours, fitted"
VBMF, DYNAMIC, UNSIGNED = "ours, VBMF ranks", "int8, dynamic", "int8, dynamic, unsigned"
# What another rank or another kernel would be needed for; all others must work.
MAY_FAIL = (VBMF, DYNAMIC, UNSIGNED)
FIGURES = ("median_ms", "speedup", "speedup_low", "speedup_high", "top1", "agreement", "relative_l2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model to compare.

    Attributes:
        name: in the table.
        path: its file.
        seconds: it took to make.
        figures: what the exam says of its outputs; None where it cannot be made or run.
        reason: why not, else empty.
    """

    name: str
    path: Path
    seconds: float = 0.0
    figures: Row | None = None
    reason: str = ""


def partial_tucker_chain(unit: Unit, folder: Path) -> Chain:
    """The chain that the unit asks for, with TensorLy's factors, each group by itself."""
    weight, (choice,) = read_finite_weight(unit.lead, folder), unit.choices
    parts = np.split(weight, unit.groups)
    if choice.method == "svd":
        halves = [
            tucker_parts(part.reshape(part.shape[:2]), Ranks(None, choice.ranks.output)) for part in parts
        ]
        return svd_chain([(left, core) for core, left, _ in halves], weight.ndim - 2)
    assert choice.method in ("tucker2", "tucker1"), choice
    return tucker_chain([tucker_parts(part, choice.ranks) for part in parts], choice.ranks)


def tucker_parts(weight: Floats, ranks: Ranks) -> tuple[Floats, Floats, Floats]:
    """Core (S, R, *k) and factors (D, S), (C, R) of a weight (D, C, *k); a factor without rank is empty."""
    wanted = {mode: rank for mode, rank in enumerate((ranks.output, ranks.input)) if rank is not None}
    modes = list(wanted)
    (core, factors), _ = partial_tucker(weight, rank=list(wanted.values()), modes=modes, random_state=0)
    found, none = dict(zip(modes, factors, strict=True)), np.empty((0, 0))
    return core, found.get(0, none), found.get(1, none)


def rewrite_with_tensorly(path: Path, planned: Result, out: Path) -> None:
    """Write the model at `path` to `out` with the chains that were planned, their factors TensorLy's."""
    model = load(path)
    found = survey(model, input_shapes={}, freeze=False, fold_bn=True, linear=False)
    decisions = {
        anchor.site.name: planned.plan.sites.get(anchor.site.name, "kept") for anchor in found.anchors
    }
    splicer = Splicer(found, None)
    for unit in decided_units(found, decisions, Policy()):
        splicer.install(unit.anchors, partial_tucker_chain(unit, model.folder))
    rewritten = splicer.finish()
    assert_planned(rewritten.proto, planned)
    save(rewritten, out)


def rewrite(path: Path, rank: str, planned: Result | None, samples: Samples | None, out: Path) -> None:
    """Write ours to `out`; where a plan is known, it must be carried out."""
    result = onnxdecomp.rewrite(path, rank, data=samples)
    assert planned is None or result.plan == planned.plan
    assert_planned(result.model, result)
    result.save(out)


def makers(path: Path, rank: str, samples: Samples, folder: Path) -> dict[str, Make]:
    """How to write each variant of the model at `path`, in an order in which each finds what it builds on."""
    planned, fitted = onnxdecomp.rewrite(path, rank), file_of(OURS, folder)
    ways: dict[str, Make] = {
        OURS: partial(rewrite, path, rank, planned, samples),
        "ours, plain": partial(rewrite, path, rank, planned, None),
        "TensorLy, plain": partial(rewrite_with_tensorly, path, planned),
        VBMF: partial(rewrite, path, "vbmf", None, samples),
        DYNAMIC: partial(quantise_dynamically, path, signed=True),
        UNSIGNED: partial(quantise_dynamically, path, signed=False),
    }
    for start, source in (("int8", path), (f"{OURS}, int8", fitted)):
        for kind in ("per tensor", "per channel"):
            per_channel = kind == "per channel"
            ways[f"{start}, {kind}"] = partial(quantise, source, samples=samples, per_channel=per_channel)
    return ways


def file_of(name: str, folder: Path) -> Path:
    """Where the variant called `name` is written."""
    return folder / f"{name.replace(', ', '-').replace(' ', '-')}.onnx"


def make_all(exam: Exam, rank: str, folder: Path) -> Iterator[Variant]:
    """Write every variant into `folder` and judge its outputs, the original first."""
    yield Variant(name=ORIGINAL, path=exam.path, figures=exam.judge(exam.path))
    for name, make in makers(exam.path, rank, exam.images.fitted, folder).items():
        variant = Variant(name=name, path=file_of(name, folder))
        began = time.perf_counter()
        try:
            make(variant.path)
            seconds = time.perf_counter() - began
            yield replace(variant, seconds=seconds, figures=exam.judge(variant.path))
        except (onnxdecomp.NothingSelectedError, onnxdecomp.RunError) as error:
            if name not in MAY_FAIL:
                raise
            yield replace(variant, seconds=time.perf_counter() - began, reason=str(error))


def measure(exam: Exam, rank: str, budget: Budget, folder: Path) -> list[Row]:
    """The whole table of one network: all variants are raced together."""
    variants = []
    for variant in make_all(exam, rank, folder):
        variants.append(variant)
        print(f"{variant.name}: made in {variant.seconds:.1f} s", flush=True)
    runnable = [variant for variant in variants if variant.figures is not None]
    contestants = [Contestant(path=variant.path, feeds=exam.feeds) for variant in runnable]
    found = race(contestants, Engine(threads=1), budget)
    times = {variant.name: launches for variant, launches in zip(runnable, found, strict=True)}
    rows = []
    for variant in variants:
        figures: Row = {}
        if variant.figures is not None:
            own, gain = times[variant.name], speedup(times[ORIGINAL], times[variant.name])
            figures = variant.figures | {
                "median_ms": round(1e3 * medians(own), 4),
                "speedup": round(gain.ratio, 3),
                "speedup_low": round(gain.low, 3),
                "speedup_high": round(gain.high, 3),
            }
        rows.append(row_of(exam.name, variant, figures))
    return rows


def row_of(model: str, variant: Variant, figures: Mapping[str, Any]) -> Row:
    """One line of the table; empty cells where there are no figures."""
    return {
        "model": model,
        "variant": variant.name,
        **{name: figures.get(name, "") for name in FIGURES},
        "bytes": variant.path.stat().st_size if variant.path.exists() else "",
        "seconds": round(variant.seconds, 1),
        "reason": variant.reason,
    }


def table(rows: Sequence[Row]) -> str:
    """The rows in columns, numbers to the right."""
    names = [name for name in rows[0] if name != "model"]
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = ("variant", "reason")
    lines = [
        "  ".join(
            text.ljust(width) if name in left else text.rjust(width)
            for name, text, width in zip(names, line, widths, strict=True)
        )
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=list(NETWORKS), default="cifar10_resnet20")
    parser.add_argument("--rank", default="0.5")
    parser.add_argument("--fit-samples", type=int, help="default: 256 of CIFAR-10, 128 of ImageNet")
    parser.add_argument("--test-samples", type=int, help="default: all")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of timed runs of each model")
    parser.add_argument("--runs", type=int, help="timed runs of each model at least; then no duration")
    parser.add_argument("--data-folder", type=Path, default=DATA_FOLDER, help=f"default: {DATA_FOLDER}")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    require_data(arguments.data_folder, [arguments.model])
    network = NETWORKS[arguments.model]
    network = replace(network, fit_samples=arguments.fit_samples or network.fit_samples)
    budget = Budget(duration=arguments.duration, runs=arguments.runs)
    exam = open_exam(arguments.model, network, arguments.data_folder, arguments.test_samples, budget)
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(exam, arguments.rank, budget, Path(scratch))
    print(table(rows))
    options = {
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "batch": 1,
        "warmup_runs": WARMUP_RUNS,
        "budget": asdict(budget),
        "rank": arguments.rank,
        "fit_samples": len(exam.images.fitted),
        "test_samples": len(exam.images.tested),
        "int8": "quant_pre_process, then quantize_static: QDQ, S8S8, MinMax; or quantize_dynamic",
    }
    print(write_results(f"rivals-{arguments.model}", rows, options))


if __name__ == "__main__":
    main()
