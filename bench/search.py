"""Which way of choosing ranks loses least?

Rewrites one network at equal cost with ranks chosen in several ways, and with the same factors each time,
fitted in sequence to the same images:

* uniform: one share of each mode's channels everywhere;
* energy: the ranks that keep one share of the squared singular values everywhere;
* vbmf: the ranks of variational Bayes, at whatever cost that is;
* greedy: as AIMET does, the highest score that every layer can reach by itself within the budget, from a
  table of layers and compression ratios .1 to .9; the score is the predicted loss of that layer alone;
* knapsack: the least sum of predicted losses within the budget, as `onnxdecomp search` takes it;
* optuna: a study seeded with that; its own answer, where a search would keep the better of the two.

All choose among the same ranks, those that a search weighs, but for vbmf. The cost is counted (a share of the
Convs' multiply-accumulates) or predicted from the measured times of single Convs and chains; then the whole
models are timed, all of one budget in turns: run that on a quiet machine. Ranks follow from the images that
are fitted to, and the models are judged on others. Nothing measured in earlier searches is used, but with
--cache.

    python -m bench.search [--models cifar10_resnet20,…] [--budgets 0.5,0.35] [--speedups 1.5,2]
        [--methods uniform,…] [--fit-samples 256] [--test-samples 5000] [--trials 100] [--align 2]
        [--duration 5 | --runs 100] [--cache FOLDER] [--data-folder FOLDER]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import patch

from matplotlib.figure import Figure

import onnxdecomp
from bench.choosers import COSTS, Chooser
from bench.plain import plain_seconds
from bench.quality import DATA_FOLDER, assert_planned, conv_cost
from bench.results import RESULTS, write_results
from bench.rivals import table
from bench.subjects import MODELS, Subject, open_subject
from onnxdecomp import Result
from onnxdecomp.ir import save
from onnxdecomp.runtime import Engine, feeds_shapes
from onnxdecomp.searching import ALIGN
from onnxdecomp.timing import WARMUP_RUNS, Budget, Contestant, Launch, medians, race, speedup

Row = dict[str, Any]

SPEEDS = ("speedup", "speedup_low", "speedup_high", "plain_speedup")
METHODS = ("uniform", "energy", "vbmf", "greedy", "knapsack", "optuna")
TOLERANCE = 0.02
# A budget in time is aimed at until the whole model meets it by that much, or so often.
NEAR, MOST_AIMS = 0.01, 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Variant:
    """A model made with one way of choosing.

    Attributes:
        method: the way.
        path: of the model.
        result: of its rewrite.
        planned: the share of the whole's cost that its plan leaves by the table; None where it is not of it.
        error: of the outputs, as predicted; likewise.
        choosing_s: seconds that the choice took, without what all ways share.
    """

    method: str
    path: Path
    result: Result
    planned: float | None
    error: float | None
    choosing_s: float


def make(subject: Subject, chooser: Chooser, method: str, share: float | None, path: Path) -> Variant | None:
    """Choose, fit and write a model; None, and a line on why, where that cannot be."""
    began = time.perf_counter()
    plan = chooser.choose(method, share) if share is not None else None
    choosing_s = time.perf_counter() - began
    if share is not None and plan is None:
        print(f"{subject.name}: {method} cannot come down to {share:.0%} of the cost", flush=True)
        return None
    shapes = feeds_shapes(subject.feeds)
    try:
        result = onnxdecomp.rewrite(
            subject.path,
            method if plan is None else None,
            plan=plan,
            policy=chooser.policy,
            input_shapes=shapes,
            data=subject.images.fitted,
        )
    except onnxdecomp.NothingSelectedError as error:
        print(f"{subject.name}: {method}: {error}", flush=True)
        return None
    assert plan is None or result.plan == plan
    assert_planned(result.model, result)
    save(result.rewritten, path)
    return Variant(
        method=method,
        path=path,
        result=result,
        planned=chooser.share(plan) if plan is not None else None,
        error=chooser.weighed.error(plan) if plan is not None else None,
        choosing_s=choosing_s,
    )


def aim(subject: Subject, chooser: Chooser, method: str, value: float, folder: Path) -> float:
    """The share of the cost, by the table, at which a method's whole model is that many times faster.

    Plain factors are as fast as fitted ones. A study takes what the knapsack needs, which it starts from.
    """
    wanted, realised = 1 - 1 / value, 1.0
    best = (inf, 1 / value)
    own = "knapsack" if method == "optuna" else method
    shapes = feeds_shapes(subject.feeds)
    for _ in range(MOST_AIMS):
        share = 1 - wanted / realised
        plan = chooser.choose(own, share)
        if plan is None:
            break
        path = folder / "aimed.onnx"
        result = onnxdecomp.rewrite(subject.path, plan=plan, policy=chooser.policy, input_shapes=shapes)
        save(result.rewritten, path)
        first, second = race(contestants(subject, [path]), Engine(threads=1), Budget(duration=2.0))
        found = speedup(first, second).ratio
        line = f"{subject.name}: {method} at {share:.3f} by the table: {found:.3f}×"
        print(line, file=sys.stderr, flush=True)
        miss = abs(found / value - 1)
        best = min(best, (miss, share))
        if miss <= NEAR:
            break
        realised = (1 - 1 / found) / (1 - chooser.share(plan))
    return best[1]


def measure(
    subject: Subject, kind: str, chooser: Chooser, value: float | None, methods: Sequence[str], budget: Budget
) -> Iterator[Row]:
    """A row for each method at one budget: a share of the MACs, or a speed-up; None is no budget."""
    with tempfile.TemporaryDirectory() as scratch:
        variants: list[tuple[Variant, float | None]] = []
        for each in methods:
            share = value
            if kind == "latency" and value is not None:
                share = aim(subject, chooser, each, value, Path(scratch))
            made = make(subject, chooser, each, share, Path(scratch) / f"{each}.onnx")
            variants += [(made, share)] if made is not None else []
        paths = [variant.path for variant, _ in variants]
        timed = race(contestants(subject, paths), Engine(threads=1), budget) if kind == "latency" else []
        for i, (variant, share) in enumerate(variants):
            figures = speed(subject, variant.path, timed[0], timed[i + 1]) if timed else {}
            yield row_of(subject, kind, value, share, variant, figures)


def contestants(subject: Subject, paths: Sequence[Path]) -> list[Contestant]:
    """The original, and models made of it."""
    return [Contestant(path=path, feeds=subject.feeds) for path in (subject.path, *paths)]


def speed(subject: Subject, path: Path, original: Sequence[Launch], own: Sequence[Launch]) -> Row:
    """How much faster one model is, with its interval; and what a plain program says."""
    gain = speedup(original, own)
    before, after = plain_seconds(subject.path, path, subject.feeds)
    figures = (gain.ratio, gain.low, gain.high, before / after)
    return {name: round(figure, 3) for name, figure in zip(SPEEDS, figures, strict=True)}


def row_of(
    subject: Subject, kind: str, value: float | None, share: float | None, variant: Variant, figures: Row
) -> Row:
    """One line of the table; empty cells where there are no figures."""
    macs = conv_cost(variant.path, subject.feeds)[1] / conv_cost(subject.path, subject.feeds)[1]
    if kind == "macs" and variant.planned is not None:
        assert abs(macs - variant.planned) < 1e-6, (variant.method, macs, variant.planned)
    miss = variant.planned / share - 1 if variant.planned is not None and share else None
    if miss is not None and abs(miss) > TOLERANCE:
        print(f"{subject.name}: {variant.method} misses {kind} {value:g} by {miss:+.1%}", flush=True)
    return {
        "model": subject.name,
        "kind": kind,
        "budget": "" if value is None else value,
        "method": variant.method,
        "sites": len(variant.result.plan.sites),
        "macs_share": round(macs, 4),
        "miss": "" if miss is None else round(miss, 4),
        **{name: figures.get(name, "") for name in SPEEDS},
        "predicted_l2": "" if variant.error is None else round(variant.error, 4),
        **verdict(subject, variant.path),
        "choosing_s": round(variant.choosing_s, 1),
    }


def verdict(subject: Subject, path: Path) -> Row:
    """What the test images say of a model."""
    quality = subject.judge(path)
    (output,) = quality.outputs
    assert output.relative_l2 is not None
    before, after = quality.accuracy or ("", "")
    agreement = output.top1_agreement if subject.classes else None
    figures = {
        "relative_l2": output.relative_l2,
        "top1": after,
        "top1_original": before,
        "agreement": "" if agreement is None else agreement,
    }
    return {name: round(x, 4) if isinstance(x, float) else x for name, x in figures.items()}


def examine(subject: Subject, arguments: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    """All rows of one model."""
    budget = Budget(duration=arguments.duration, runs=arguments.runs)
    speedups = arguments.speedups
    wanted = {
        "macs": arguments.budgets,
        "latency": MODELS[subject.name].speedups if speedups is None else speedups,
    }
    for kind, values in ((kind, values) for kind, values in wanted.items() if values):
        folder = scratch / f"{subject.name}-{kind}"
        folder.mkdir()
        chooser = Chooser(subject, kind, arguments.align, arguments.trials, folder)
        if kind == "latency":
            chooser.total = medians(race(contestants(subject, []), Engine(threads=1), budget)[0])
        if "vbmf" in arguments.methods:
            yield from measure(subject, kind, chooser, None, ["vbmf"], budget)
        others = [method for method in arguments.methods if method != "vbmf"]
        for value in values:
            yield from measure(subject, kind, chooser, value, others, budget)


def curves(rows: Sequence[Row]) -> list[str]:
    """The kinds of cost for which there is more than one budget."""
    budgets = {
        row["kind"]: {other["budget"] for other in rows if other["kind"] == row["kind"]} for row in rows
    }
    return [kind for kind, values in budgets.items() if len(values - {""}) > 1]


def plot(rows: Sequence[Row], kinds: Sequence[str], path: Path) -> None:
    """Draw top-1, or 1 − error, against the share of the MACs and the speed-up; a curve per method."""
    figure = Figure(figsize=(5.5 * len(kinds), 4.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        x = "macs_share" if kind == "macs" else "speedup"
        for i, method in enumerate(METHODS):
            own = [row for row in rows if row["kind"] == kind and row["method"] == method]
            points = sorted((row[x], height(row)) for row in own)
            if points:
                panel.plot(*zip(*points, strict=True), color=f"C{i}", marker="o", markersize=4, label=method)
        if rows[0]["top1"] != "":
            original = rows[0]["top1_original"]
            panel.axhline(original, color="black", linestyle="--", linewidth=1, label="original")
        panel.set(title=rows[0]["model"], xlabel=LABELS[x])
        panel.grid(alpha=0.3)
        panel.legend()
    panels[0].set_ylabel(
        "top-1 on test images" if rows[0]["top1"] != "" else "1 − relative error of the output"
    )
    figure.savefig(path, dpi=110)


LABELS = {"macs_share": "share of the multiply-accumulates left", "speedup": "measured speed-up, one thread"}


def height(row: Row) -> float:
    """What is drawn upwards."""
    return float(row["top1"] if row["top1"] != "" else 1 - row["relative_l2"])


def names(allowed: Sequence[str], text: str) -> list[str]:
    """Names with commas between them."""
    found = text.split(",")
    if unknown := [name for name in found if name not in allowed]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: there are {', '.join(allowed)}")
    return found


def numbers(text: str) -> tuple[float, ...]:
    """Positive numbers with commas between them; an empty text is none."""
    found = tuple(float(part) for part in text.split(",") if part)
    if not all(number > 0 for number in found):
        raise argparse.ArgumentTypeError("give positive numbers")
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=partial(names, list(MODELS)), default=list(MODELS))
    parser.add_argument("--methods", type=partial(names, METHODS), default=list(METHODS))
    parser.add_argument(
        "--budgets", type=numbers, default=(0.5, 0.35), help="shares of the MACs; '' for none"
    )
    parser.add_argument("--speedups", type=numbers, help="default: by model; '' for none")
    parser.add_argument("--fit-samples", type=int, help="default: 256 of CIFAR-10, 128 of ImageNet")
    parser.add_argument("--test-samples", type=int, help="default: all")
    parser.add_argument("--trials", type=int, default=100, help="of each Optuna study")
    parser.add_argument(
        "--align", type=int, help=f"default: {ALIGN['macs']}, at equal latency {ALIGN['measured']}"
    )
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of timed runs of each model")
    parser.add_argument("--runs", type=int, help="timed runs of each model at least; then no duration")
    parser.add_argument("--cache", type=Path, help="keep what is weighed there; default: weigh anew")
    parser.add_argument("--data-folder", type=Path, default=DATA_FOLDER, help=f"default: {DATA_FOLDER}")
    return parser.parse_args()


def options_of(subject: Subject, arguments: argparse.Namespace) -> Row:
    """The conditions, as they are written beside the figures."""
    speedups = arguments.speedups
    return {
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "batch": 1,
        "warmup_runs": WARMUP_RUNS,
        "budget": asdict(Budget(duration=arguments.duration, runs=arguments.runs)),
        "macs_shares": arguments.budgets,
        "speedups": MODELS[subject.name].speedups if speedups is None else speedups,
        "align": {kind: arguments.align or ALIGN[cost] for kind, cost in COSTS.items()},
        "fit_samples": len(subject.images.fitted),
        "test_samples": len(subject.images.tested),
        "trials": arguments.trials if "optuna" in arguments.methods else 0,
    }


def kept_in(folder: Path) -> AbstractContextManager[Any]:
    """Within it, what is weighed is kept in that folder, where a search would look for it too."""
    return patch.dict(os.environ, {"ONNXDECOMP_CACHE": str(folder)})


def main() -> None:
    arguments = parse()
    for name in arguments.models:
        subject = open_subject(name, arguments.data_folder, arguments.fit_samples, arguments.test_samples)
        rows: list[Row] = []
        with tempfile.TemporaryDirectory() as scratch, kept_in(arguments.cache or Path(scratch)):
            for row in examine(subject, arguments, Path(scratch)):
                print(f"{name}: {row['kind']} {row['budget']} {row['method']}", file=sys.stderr, flush=True)
                rows.append(row)
        if not rows:
            continue
        picture = RESULTS / f"search-{name}.png"
        print(table(rows), write_results(f"search-{name}", rows, options_of(subject, arguments)), sep="\n")
        if kinds := curves(rows):
            plot(rows, kinds, picture)
            print(picture, flush=True)


if __name__ == "__main__":
    main()
