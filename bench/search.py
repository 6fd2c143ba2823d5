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
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import onnxdecomp
from bench.quality import (
    DATA_FOLDER,
    ERRORS,
    NETWORKS,
    POINT,
    Images,
    Network,
    assert_planned,
    cifar10,
    conv_cost,
    imagenet,
)
from bench.results import RESULTS, write_results
from bench.rivals import table
from models import fetch
from onnxdecomp import Plan, Policy, Preprocessing, Result
from onnxdecomp.benchmark import Setting
from onnxdecomp.choose import fitting_methods
from onnxdecomp.console import tracked
from onnxdecomp.factoring import read_finite_weight
from onnxdecomp.inputs import Feeds
from onnxdecomp.latency import WARMUP_RUNS, Budget, Contestant, Launch, medians, race, speedup
from onnxdecomp.model import load, save
from onnxdecomp.plan import Choice
from onnxdecomp.preprocessing import PRESETS
from onnxdecomp.providers import PROVIDERS
from onnxdecomp.quality import Quality, measure_quality
from onnxdecomp.search_command import ALIGN
from onnxdecomp.searching.automl import Trials, find_modules, seed_of, space_of, taken_at
from onnxdecomp.searching.bank import Bank
from onnxdecomp.searching.goal import Goal
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.weigh import weigh
from onnxdecomp.searching.weighed import Solution, Weighed, plan_of
from onnxdecomp.shapes import InputShapes
from onnxdecomp.spectrum import Spectrum, spectra
from onnxdecomp.study import run_study
from onnxdecomp.worker import Engine

Row = dict[str, Any]
Floats = NDArray[np.float64]
Taken = Sequence[Choice | None]

METHODS = ("uniform", "energy", "vbmf", "greedy", "knapsack", "optuna")
COSTS = {"macs": "macs", "latency": "measured"}
TOLERANCE = 0.02
RATIOS = tuple(i / 10 for i in range(1, 10))
# What is tried of a share of the channels, and of the energy.
SHARES = np.linspace(0.02, 1, 500)
ENERGIES = 1 - np.logspace(-4, 0, 500, endpoint=False)
# Ranks that are weighed come in up to 16 levels. If all units changed level at the same share, the cost would
# make large steps; so each changes a little earlier or later, by up to half a level.
LEVEL, GOLDEN = 1 / 16, 0.618034
DETECTOR, DETECTOR_SHAPE = "nudenet_yolov8n_320", (1, 3, 320, 320)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model that can be asked for.

    Attributes:
        network: how it is examined; None for the detector, which has no classes.
        speedups: asked of it unless said otherwise.
    """

    network: Network | None
    speedups: tuple[float, ...] = ()


SQUEEZENET = Network(align=8, ranks=(), accuracy=0.547, images="imagenet", fit_samples=128)
MODELS = {
    "cifar10_resnet20": Entry(network=NETWORKS["cifar10_resnet20"]),
    "cifar10_resnet56": Entry(network=NETWORKS["cifar10_resnet56"]),
    "vgg16_cifar10": Entry(network=NETWORKS["vgg16_cifar10"], speedups=(1.5, 2.0)),
    "imagenet_resnet50": Entry(network=NETWORKS["imagenet_resnet50"], speedups=(1.25, 1.5)),
    "imagenet_squeezenet1_1": Entry(network=SQUEEZENET),
    DETECTOR: Entry(network=None, speedups=(1.25, 1.5)),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """The original model, and images to fit to and to judge on.

    Attributes:
        name: of the model.
        path: of its file.
        images: disjoint ones.
        classes: whether its outputs are the classes of the images' labels.
        shapes: for inputs with unknown dimensions.
        feeds: one image, for timing.
    """

    name: str
    path: Path
    images: Images
    classes: bool
    shapes: InputShapes
    feeds: Feeds

    def judge(self, path: Path) -> Quality:
        """What the test images say of the model at `path`; its outputs must be finite."""
        labels = self.images.labels if self.classes else None
        fitted = len(self.images.fitted)
        quality = measure_quality(self.path, path, self.images.tested, fitted=fitted, labels=labels)
        assert all(output.relative_l2 is not None for output in quality.outputs), path
        return quality

    def assert_known(self, accuracy: float) -> None:
        """The original is as accurate as is known of it: the images are read as it wants them."""
        found = self.judge(self.path).accuracy
        assert found is not None
        error = np.sqrt(accuracy * (1 - accuracy) / len(self.images.labels))
        assert abs(found[0] - accuracy) <= max(POINT, ERRORS * error), (self.name, found[0], accuracy)


def open_subject(name: str, folder: Path, fit: int | None, test: int | None) -> Subject:
    """The model called `name` with its images, of which None is the default number."""
    network = MODELS[name].network
    path = folder / "models" / f"{name}.onnx" if network is not None else fetch(name)
    proto, data = load(path).proto, folder / "data"
    shapes: InputShapes = {}
    if network is None:
        shapes = {"images": DETECTOR_SHAPE}
        preprocessing = Preprocessing(**PRESETS["0-1"], size=DETECTOR_SHAPE[2:])
        images = imagenet(data, proto, fit or 128, test, preprocessing)
    else:
        reader = cifar10 if network.images == "cifar10" else imagenet
        images = reader(data, proto, fit or network.fit_samples, test)
    feeds = next(images.fitted.batches(1))
    subject = Subject(
        name=name, path=path, images=images, classes=network is not None, shapes=shapes, feeds=feeds
    )
    if network is not None:
        subject.assert_known(network.accuracy)
    return subject


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Menu:
    """What may be taken of one unit, keeping it among them.

    Attributes:
        choices: None keeps it.
        shares: of the channels that the ranks (in, out) are; shape (choices, 2).
        costs: shape (choices,).
        losses: shape (choices,).
    """

    choices: tuple[Choice | None, ...]
    shares: Floats
    costs: Floats
    losses: Floats

    def nearest(self, shares: Sequence[float]) -> int:
        """The choice whose ranks are nearest to these shares of the channels (in, out)."""
        return int(np.abs(self.shares - np.minimum(shares, 1)).sum(axis=1).argmin())

    @property
    def kept(self) -> int:
        """The choice that keeps the unit."""
        return self.choices.index(None)


def menus_of(weighed: Weighed) -> list[Menu]:
    """One for every unit."""
    menus = []
    for number, unit in enumerate(weighed.units):
        options = weighed.options(number)
        choices = tuple(None if option is None else unit.choices[option] for option in options)
        costs, losses = np.array([weighed.point(number, option) for option in options]).T
        shares = np.array([shares_of(choice, unit.sites[0].group_channels) for choice in choices])
        menus.append(Menu(choices=choices, shares=shares, costs=costs, losses=losses))
    return menus


def shares_of(choice: Choice | None, channels: tuple[int, int]) -> tuple[float, float]:
    """The ranks (in, out) as shares of the channels; one rank for both is a share of the fewer."""
    if choice is None:
        return 1.0, 1.0
    widths = (min(channels),) * 2 if choice.method == "svd" else channels
    ranks = (choice.ranks.input, choice.ranks.output)
    into, out = (1.0 if rank is None else rank / width for rank, width in zip(ranks, widths, strict=True))
    return into, out


class Chooser:
    """Chooses ranks for one model and one kind of cost, in every way.

    Attributes:
        weighed: all units' choices.
        policy: that they follow.
        total: what the whole model costs: multiply-accumulates of all Convs, or seconds.
    """

    def __init__(self, subject: Subject, kind: str, align: int | None, trials: int, folder: Path) -> None:
        """`folder` takes the statistics of a study."""
        cost = COSTS[kind]
        self.policy = Policy(align=align or ALIGN[cost])
        self._subject, self._trials, self._folder = subject, trials, folder
        self._model = load(subject.path)
        self.weighed, notes = weigh(task_of(subject, kind, self.policy), self._model)
        print(*(f"{subject.name}: {note}" for note in notes), sep="\n", end="\n" if notes else "")
        self._menus = menus_of(self.weighed)
        self.total = self.weighed.totals["macs"]

    def budget(self, share: float) -> float:
        """What the units may cost where the whole is to cost that share."""
        return self.solution.kept_cost - (1 - share) * self.total

    def share(self, plan: Plan) -> float:
        """What a plan leaves of the cost of the whole, by the table."""
        return 1 - (self.solution.kept_cost - self.weighed.cost(plan)) / self.total

    def choose(self, method: str, share: float) -> Plan | None:
        """A plan that costs that share of the whole, or as near as the method comes; None is out of reach."""
        budget = self.budget(share)
        if budget < sum(menu.costs.min() for menu in self._menus):
            return None
        ways: dict[str, Callable[[float], Taken | None]] = {
            "uniform": partial(self._closest, self._uniform, SHARES),
            "energy": partial(self._closest, self._energy, ENERGIES),
            "greedy": self._greedy,
            "knapsack": self._knapsack,
            "optuna": self._optuna,
        }
        taken = ways[method](budget)
        return None if taken is None else plan_of(self.weighed.units, taken)

    @cached_property
    def solution(self) -> Solution:
        """The knapsack's."""
        return self.weighed.solve()

    @cached_property
    def _spectra(self) -> list[tuple[tuple[Spectrum, Spectrum], tuple[int, int]]]:
        """Of each unit's modes (in, out), and how many channels these have."""
        found = []
        for unit in self.weighed.units:
            site, weight = unit.sites[0], read_finite_weight(unit.job.anchors[0], self._model.folder)
            method = fitting_methods(site, self.policy)[0]
            channels = site.group_channels
            widths = (min(channels),) * 2 if method == "svd" else channels
            found.append((spectra(method, weight, site.groups or 1), widths))
        return found

    @cached_property
    def _bank(self) -> Bank:
        fitted = self._subject.images.fitted
        return Bank(self.weighed.units, self._model, fitted, self._folder, freeze=False, track=tracked)

    def _cost(self, picks: Sequence[int]) -> float:
        return float(sum(menu.costs[i] for menu, i in zip(self._menus, picks, strict=True)))

    def _take(self, picks: Sequence[int]) -> Taken:
        return [menu.choices[i] for menu, i in zip(self._menus, picks, strict=True)]

    def _closest(self, way: Callable[[float], list[int]], values: Floats, budget: float) -> Taken:
        """Of the picks at all these values, those whose cost is nearest to the budget."""
        every = [way(float(value)) for value in values]
        return self._take(min(every, key=lambda picks: abs(self._cost(picks) - budget)))

    def _uniform(self, share: float) -> list[int]:
        early = [(number * GOLDEN % 1 - 0.5) * LEVEL for number in range(len(self._menus))]
        pairs = zip(self._menus, early, strict=True)
        return [menu.nearest([share + own] * 2) for menu, own in pairs]

    def _energy(self, energy: float) -> list[int]:
        picks = []
        for menu, (modes, widths) in zip(self._menus, self._spectra, strict=True):
            ranks = [mode.rank_for(energy) for mode in modes]
            picks.append(menu.nearest([rank / width for rank, width in zip(ranks, widths, strict=True)]))
        return picks

    def _greedy(self, budget: float) -> Taken | None:
        """The least threshold of single layers' losses at which the cheapest choices below it suffice."""
        rows = [at_ratios(menu) for menu in self._menus]
        pairs = list(zip(self._menus, rows, strict=True))
        thresholds = sorted({float(menu.losses[i]) for menu, row in pairs for i in row})

        def picks(threshold: float) -> list[int]:
            return [cheapest(menu, row, threshold) for menu, row in pairs]

        first = bisect_left(thresholds, True, key=lambda each: self._cost(picks(each)) <= budget)
        return self._take(picks(thresholds[first])) if first < len(thresholds) else None

    def _knapsack(self, budget: float) -> Taken | None:
        point = self.solution.front.within_cost(budget)
        return None if point is None else self.solution.taken(point)

    def _optuna(self, budget: float) -> Taken | None:
        """The best trial within the budget; the knapsack's answer where that is just the seed."""
        seeded = self._knapsack(budget)
        if seeded is None:
            return None
        modules = find_modules(self.weighed)
        seed = seed_of(modules, self.weighed, seeded)
        judge = Trials(self._bank, self.weighed, modules, self._subject.path, self._folder)
        result = run_study(
            space_of(modules),
            judge,
            trials=self._trials,
            budget=budget,
            seeds=[seed],
            storage=None,
            name=None,
            fingerprint=f"{self._subject.name} {budget}",
        )
        if result.stopped is not None:
            raise result.stopped
        levels = result.best[0] if result.best is not None else seed
        return seeded if levels == seed else taken_at(modules, self.weighed, levels)


def at_ratios(menu: Menu) -> list[int]:
    """For each compression ratio the choice of least loss that costs at most that share of the unit."""
    found = []
    for ratio in RATIOS:
        (within,) = np.nonzero(menu.costs <= ratio * menu.costs[menu.kept])
        if len(within):
            found.append(int(within[menu.losses[within].argmin()]))
    return found


def cheapest(menu: Menu, row: Sequence[int], threshold: float) -> int:
    """The cheapest of these choices that loses at most `threshold`, else the one that keeps the unit."""
    good = [i for i in row if menu.losses[i] <= threshold]
    return min([menu.kept, *good], key=lambda i: float(menu.costs[i]))


def task_of(subject: Subject, kind: str, policy: Policy) -> Task:
    """What `onnxdecomp search` would be asked for."""
    return Task(
        path=subject.path,
        goal=Goal("macs" if kind == "macs" else "speedup", 0.5 if kind == "macs" else 2.0),
        setting=Setting(provider=PROVIDERS["cpu"], threads=1, batch=1),
        input_shapes=subject.shapes,
        fitted=subject.images.fitted,
        held_out=None,
        labels=None,
        policy=policy,
        cost=COSTS[kind],
        freeze=False,
        trials=0,
        storage=None,
        study=None,
        deadline=None,
        track=tracked,
        track_jobs=tracked,
        say=lambda line: None,
        scratch=None,
    )


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
    shapes = {name: array.shape for name, array in subject.feeds.items()}
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


def measure(
    subject: Subject, kind: str, chooser: Chooser, value: float | None, methods: Sequence[str], budget: Budget
) -> Iterator[Row]:
    """A row for each method at one budget: a share of the MACs, or a speed-up; None is no budget."""
    share = 1 / value if value is not None and kind == "latency" else value
    with tempfile.TemporaryDirectory() as scratch:
        made = [make(subject, chooser, each, share, Path(scratch) / f"{each}.onnx") for each in methods]
        variants = [variant for variant in made if variant is not None]
        timed = times(subject, variants, budget) if kind == "latency" and variants else []
        for i, variant in enumerate(variants):
            figures = speed(timed[0], timed[i + 1]) if timed else {}
            yield row_of(subject, kind, value, share, variant, figures)


def times(subject: Subject, variants: Sequence[Variant], budget: Budget) -> list[list[Launch]]:
    """The launches of the original and of all variants, side by side."""
    paths = [subject.path, *(variant.path for variant in variants)]
    contestants = [Contestant(path=path, feeds=subject.feeds) for path in paths]
    return race(contestants, Engine(threads=1), budget)


def speed(original: Sequence[Launch], own: Sequence[Launch]) -> Row:
    """How much faster one model is, with its interval."""
    gain = speedup(original, own)
    figures = {"speedup": gain.ratio, "speedup_low": gain.low, "speedup_high": gain.high}
    return {name: round(figure, 3) for name, figure in figures.items()}


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
        **{name: figures.get(name, "") for name in ("speedup", "speedup_low", "speedup_high")},
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
            chooser.total = medians(times(subject, [], budget)[0])
        if "vbmf" in arguments.methods:
            yield from measure(subject, kind, chooser, None, ["vbmf"], budget)
        others = [method for method in arguments.methods if method != "vbmf"]
        for value in values:
            yield from measure(subject, kind, chooser, value, others, budget)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw top-1, or 1 − error, against the share of the MACs and the speed-up; a curve per method."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
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
        plot(rows, picture)
        print(picture, flush=True)


if __name__ == "__main__":
    main()
