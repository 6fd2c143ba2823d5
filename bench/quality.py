"""What does a model keep of its accuracy at what speed, without training, and against int8?

Rewrites trained networks at several ranks with four kinds of factors (see `bench.kinds`), quantises them with
ONNX Runtime, and sets top-1 on test images against parameters, multiply-accumulates and latency. Factors and
int8 see the same images, never those of the test. Each rewritten model must have exactly the planned ranks,
and each original its known accuracy. All kinds of one rank have the same graph, which is timed once, in turns
with the original, on one thread at batch 1: run it on a quiet machine.

The networks and images lie in a folder `shared` beside the checkout, or in --data-folder.

    python -m bench.quality [--models NAME …] [--ranks 0.5 …] [--kinds plain …] [--fit-samples 256]
        [--test-samples 5000] [--duration 5 | --runs 100] [--data-folder FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from matplotlib.figure import Figure
from numpy.typing import NDArray
from onnx import ModelProto, helper

import onnxdecomp
from bench.kinds import FACTORS, INT8, Symmetric, Whitened, carry_out, quantise
from bench.results import RESULTS, write_results
from onnxdecomp import Policy, Preprocessing, Result, Samples, open_samples
from onnxdecomp.comparing import Tally
from onnxdecomp.ir import load, save
from onnxdecomp.planning import links
from onnxdecomp.progress import Progress, ProgressEvent
from onnxdecomp.runtime import Engine, Feeds, onnxruntime, open_in_onnxruntime
from onnxdecomp.sampling import BATCH, PRESETS
from onnxdecomp.timing import WARMUP_RUNS, Budget, Contestant, medians, race, speedup

Row = dict[str, Any]

DATA_FOLDER = Path(__file__).parents[2] / "shared"
QDQ = "DequantizeLinear"
# How far an original's accuracy may be from the known one: a point, or so many standard errors if more.
POINT, ERRORS = 0.01, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A trained network and how it is examined.

    Attributes:
        align: ranks are multiples of it.
        ranks: shares of each mode's channels.
        accuracy: its known top-1.
        images: "cifar10" or "imagenet".
        fit_samples: how many images are fitted to.
    """

    align: int
    ranks: tuple[float, ...]
    accuracy: float
    images: str
    fit_samples: int


FIVE = (0.25, 0.375, 0.5, 0.625, 0.75)
NETWORKS = {
    "cifar10_resnet20": Network(align=1, ranks=FIVE, accuracy=0.917, images="cifar10", fit_samples=256),
    "cifar10_resnet56": Network(align=1, ranks=FIVE, accuracy=0.930, images="cifar10", fit_samples=256),
    "vgg16_cifar10": Network(
        align=8, ranks=(0.125, 0.25, 0.5), accuracy=0.895, images="cifar10", fit_samples=256
    ),
    "imagenet_resnet50": Network(
        align=8, ranks=(0.25, 0.5), accuracy=0.877, images="imagenet", fit_samples=128
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Images:
    """Disjoint images to fit to and to test on.

    Attributes:
        fitted: without labels.
        tested: the others, or some of them.
        labels: of the tested ones.
    """

    fitted: Samples
    tested: Samples
    labels: NDArray[np.int64]


def cifar10(data: Path, model: ModelProto, fit: int, test: int | None) -> Images:
    """A seeded draw of training images to fit to, test images to test on."""
    preprocessing = Preprocessing(**PRESETS["imagenet"])
    train, exam = data / "cifar10_train.npz", data / "cifar10_test.npz"
    tested = open_samples(exam, model, preprocessing=preprocessing, count=test)
    with np.load(exam) as arrays:
        labels = arrays["y"][list(tested.indices)]
    fitted = open_samples(train, model, preprocessing=preprocessing, count=fit)
    return Images(fitted=fitted, tested=tested, labels=labels)


def imagenet(
    data: Path, model: ModelProto, fit: int, test: int | None, preprocessing: Preprocessing | None = None
) -> Images:
    """A seeded draw to fit to, the others to test on; None preprocesses as the Caffe models want it."""
    folder = data / "imagenet_samples"
    every = open_samples(folder, model, preprocessing=preprocessing or Preprocessing(**PRESETS["caffe"]))
    order = np.random.default_rng(0).permutation(len(every)).tolist()
    tested = every.subset(sorted(order[fit:][:test]))
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as stream:
        classes = {line["file"]: int(line["class"]) for line in csv.DictReader(stream)}
    labels = np.array([classes[file.name] for file in tested.files if file is not None])
    return Images(fitted=every.subset(sorted(order[:fit])), tested=tested, labels=labels)


def outputs(path: Path, samples: Samples) -> NDArray[np.float32]:
    """The sole output of the model at `path`, shape (samples, classes)."""
    runner = open_in_onnxruntime(path)
    return np.concatenate([next(iter(runner.run(feeds).values())) for feeds in samples.batches(BATCH)])


class Exam:
    """The original model, what it says of the test images, and how others do beside it.

    `feeds` are one test image, for timing.
    """

    def __init__(self, name: str, path: Path, images: Images, budget: Budget) -> None:
        self.name, self.path, self.images, self._budget = name, path, images, budget
        self._outputs = outputs(path, images.tested)
        self.top1 = self._top1(self._outputs)
        self.feeds: Feeds = next(images.tested.batches(1))
        self._cost = conv_cost(path, self.feeds)

    def _top1(self, found: NDArray[np.float32]) -> float:
        return float((found.argmax(axis=1) == self.images.labels).mean())

    def assert_known(self, accuracy: float) -> None:
        """The original is as accurate as is known of it: the images are read as it wants them."""
        error = np.sqrt(accuracy * (1 - accuracy) / len(self.images.labels))
        assert abs(self.top1 - accuracy) <= max(POINT, ERRORS * error), (self.name, self.top1, accuracy)

    def judge(self, path: Path) -> Row:
        """How near the model at `path` comes to the labels and to the original; outputs must be finite."""
        found, tally = outputs(path, self.images.tested), Tally()
        tally.add(self._outputs, found)
        fidelity = tally.fidelity("output")
        assert fidelity.relative_l2 is not None and fidelity.top1_agreement is not None, path
        return {
            "top1": round(self._top1(found), 4),
            "top1_original": round(self.top1, 4),
            "agreement": round(fidelity.top1_agreement, 4),
            "relative_l2": round(fidelity.relative_l2, 4),
        }

    def time(self, path: Path) -> Row:
        """How much faster the model at `path` is."""
        pair = [Contestant(path=each, feeds=self.feeds) for each in (self.path, path)]
        a, b = race(pair, Engine(threads=1), self._budget)
        gain = speedup(a, b)
        return {
            "median_ms_original": round(1e3 * medians(a), 4),
            "median_ms": round(1e3 * medians(b), 4),
            "speedup": round(gain.ratio, 3),
            "speedup_low": round(gain.low, 3),
            "speedup_high": round(gain.high, 3),
        }

    def weigh(self, path: Path) -> Row:
        """How much smaller the model at `path` is: the original's parameters, MACs and bytes over its own."""
        before = (*self._cost, self.path.stat().st_size)
        after = (*conv_cost(path, self.feeds), path.stat().st_size)
        names = ("params_ratio", "macs_ratio", "bytes_ratio")
        return {name: round(a / b, 3) for name, a, b in zip(names, before, after, strict=True)}


def conv_cost(path: Path, feeds: Feeds) -> tuple[int, int]:
    """Elements of all Conv weights, and multiply-accumulates by the shapes that a run really gives."""
    model = onnx.load(path)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    # QDQ models have the quantised weight behind a DequantizeLinear.
    behind = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == QDQ}
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(node.output[0]) for node in convs)
    session = onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shapes = [value.shape for value in session.run(None, dict(feeds))]
    sizes = [math.prod(weights[behind.get(node.input[1], node.input[1])]) for node in convs]
    macs = [math.prod(shape[2:]) * size for shape, size in zip(shapes, sizes, strict=True)]
    return sum(sizes), sum(macs)


def assert_planned(model: ModelProto, result: Result) -> None:
    """The Convs of `model` have the weights that the plan of `result` says, no more and no fewer."""
    planned: Counter[tuple[int, ...]] = Counter()
    for site in (report.site for report in result.sites):
        choice = result.plan.sites.get(site.name)
        if choice is None:
            assert site.channels is not None and site.groups
            planned[(site.channels[1], site.channels[0] // site.groups, *site.kernel)] += 1
            continue
        for link in links(site, choice):
            kernel = (size if axis in link.axes else 1 for axis, size in enumerate(site.kernel))
            planned[(link.channels[1], link.channels[0] // link.groups, *kernel)] += 1
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found = Counter(shapes[node.input[1]] for node in model.graph.node if node.op_type == "Conv")
    assert found == planned, found - planned


def tracker(label: str) -> Progress:
    """Says on standard error which Conv is at work."""
    start = time.perf_counter()

    def tell(event: ProgressEvent) -> None:
        seconds = time.perf_counter() - start
        line = f"{label}: {event.stage} Conv {event.done + 1} of {event.total}, {seconds:.0f} s "
        print(line if event.done < event.total else "\x1b[2K", end="\r", file=sys.stderr, flush=True)

    return tell


def decomposed(exam: Exam, network: Network, rank: float, kinds: Sequence[str], out: Path) -> Iterable[Row]:
    """A row for each kind of factors at one rank; `out` is overwritten."""
    policy = Policy(method="tucker2", align=network.align)
    speed: Row = {}
    planned: Result | None = None
    for kind in (each for each in FACTORS if each in kinds):
        samples, tracked = exam.images.fitted, tracker(f"{exam.name} {kind} {rank}")
        start = time.perf_counter()
        if kind in ("plain", "sequential") or planned is None:
            result = onnxdecomp.rewrite(
                exam.path,
                f"in={rank},out={rank}",
                policy=policy,
                data=samples if kind == "sequential" else None,
                progress=tracked,
            )
            assert planned is None or planned.plan == result.plan
            planned, rewritten = result, result.rewritten
        if kind in ("whitened", "fitted"):
            start = time.perf_counter()
            way = Whitened if kind == "whitened" else Symmetric
            rewritten = carry_out(exam.path, planned.plan, way, samples, tracked)
        seconds = time.perf_counter() - start
        assert_planned(rewritten.proto, planned)
        save(rewritten, out)
        speed = speed or exam.time(out)
        yield row_of(exam, kind, rank, out, seconds, speed)


def quantised(exam: Exam, kinds: Sequence[str], out: Path) -> Iterable[Row]:
    """A row for each way of quantising; `out` is overwritten."""
    for kind in (each for each in INT8 if each in kinds):
        start = time.perf_counter()
        quantise(exam.path, out, exam.images.fitted, per_channel=kind == "int8_per_channel")
        seconds = time.perf_counter() - start
        yield row_of(exam, kind, "", out, seconds, exam.time(out))


def row_of(exam: Exam, kind: str, rank: float | str, path: Path, seconds: float, speed: Row) -> Row:
    """One line of the table."""
    return {
        "model": exam.name,
        "kind": kind,
        "rank": rank,
        **exam.weigh(path),
        **exam.judge(path),
        **speed,
        "seconds": round(seconds, 1),
    }


def open_exam(name: str, network: Network, folder: Path, test: int | None, budget: Budget) -> Exam:
    """The exam of one network, whose accuracy must be the known one; says how it does.

    Args:
        name: of the network.
        network: how it is examined.
        folder: has its model and images.
        test: how many images to test on; None is all.
        budget: of each race.
    """
    path = folder / "models" / f"{name}.onnx"
    reader = cifar10 if network.images == "cifar10" else imagenet
    images = reader(folder / "data", load(path).proto, network.fit_samples, test)
    exam = Exam(name, path, images, budget)
    exam.assert_known(network.accuracy)
    counts = f"{len(images.tested)} images, {len(images.fitted)} others to fit to"
    print(f"{name}: top-1 {exam.top1:.4f} on {counts}", flush=True)
    return exam


def measure(exam: Exam, network: Network, kinds: Sequence[str]) -> Iterable[Row]:
    """All rows of one network."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.onnx"
        for rank in network.ranks:
            yield from decomposed(exam, network, rank, kinds, out)
        yield from quantised(exam, kinds, out)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw top-1 against speed-up, one panel per model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(4.5 * len(models), 4.2), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    colours = dict(zip(FACTORS, ("0.6", "tab:orange", "tab:blue", "tab:green"), strict=True))
    for panel, model in zip(panels, models, strict=True):
        own = [row for row in rows if row["model"] == model]
        panel.axhline(own[0]["top1_original"], color="black", linestyle="--", linewidth=1, label="original")
        for kind, colour in colours.items():
            line = sorted((row["speedup"], row["top1"]) for row in own if row["kind"] == kind)
            if line:
                panel.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=4, label=kind)
        for kind, marker in zip(INT8, "sD", strict=True):
            for row in (row for row in own if row["kind"] == kind):
                label = kind.replace("_", " ")
                panel.plot(row["speedup"], row["top1"], marker, color="tab:red", label=label)
        panel.set(title=model, xlabel="speed-up, one thread", ylim=(0, 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("top-1 on test images")
    panels[0].legend()
    figure.savefig(path, dpi=110)


def line(values: Mapping[str, Any]) -> str:
    """One line of the printed table."""
    widths = (-17, -17, 6, 13, 11, 12, 7, 14, 10, 12, 19, 10, 8, 12, 13, 8)
    cells = zip(values.values(), widths, strict=True)
    return " ".join(f"{value!s:<{-n}}" if n < 0 else f"{value!s:>{n}}" for value, n in cells)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--ranks", nargs="+", type=float, help="shares of the channels; default: by model")
    parser.add_argument("--kinds", nargs="+", choices=[*FACTORS, *INT8], default=[*FACTORS, *INT8])
    parser.add_argument("--fit-samples", type=int, help="default: 256 of CIFAR-10, 128 of ImageNet")
    parser.add_argument("--test-samples", type=int, help="default: all")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of timed runs of each model")
    parser.add_argument("--runs", type=int, help="timed runs of each model at least; then no duration")
    parser.add_argument("--data-folder", type=Path, default=DATA_FOLDER, help=f"default: {DATA_FOLDER}")
    return parser.parse_args()


def require_data(folder: Path, models: Sequence[str]) -> None:
    """Leave with one line where something is missing."""
    images = {"cifar10": ("cifar10_train.npz", "cifar10_test.npz"), "imagenet": ("imagenet_samples",)}
    wanted = [Path("models") / f"{name}.onnx" for name in models]
    wanted += [Path("data") / each for name in models for each in images[NETWORKS[name].images]]
    missing = [each for each in wanted if not (folder / each).exists()]
    if missing:
        print(f"there is no {missing[0]} in {folder}; say with --data-folder where it is", file=sys.stderr)
        raise SystemExit(2)


def main() -> None:
    arguments = parse()
    require_data(arguments.data_folder, arguments.models)
    budget = Budget(duration=arguments.duration, runs=arguments.runs)
    networks = {
        name: replace(
            NETWORKS[name],
            ranks=tuple(arguments.ranks or NETWORKS[name].ranks),
            fit_samples=arguments.fit_samples or NETWORKS[name].fit_samples,
        )
        for name in arguments.models
    }
    options = {
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "batch": 1,
        "warmup_runs": WARMUP_RUNS,
        "budget": asdict(budget),
        "method": "tucker2",
        "align": {name: network.align for name, network in networks.items()},
        "fit_samples": {name: network.fit_samples for name, network in networks.items()},
        "test_samples": arguments.test_samples or "all",
        "int8": "quant_pre_process, quantize_static: QDQ, S8S8, MinMax",
    }
    rows: list[Row] = []
    question = "-".join(["quality", *networks]) if len(networks) == 1 else "quality"
    picture = RESULTS / f"{question}.png"
    for name, network in networks.items():
        exam = open_exam(name, network, arguments.data_folder, arguments.test_samples, budget)
        for i, row in enumerate(measure(exam, network, arguments.kinds)):
            print(*([line({key: key for key in row})] if i == 0 else []), line(row), sep="\n", flush=True)
            rows.append(row)
        # After each network: what is done is safe.
        path = write_results(question, rows, options)
        plot(rows, picture)
    print(path, picture, sep="\n")


if __name__ == "__main__":
    main()
