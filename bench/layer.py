"""Where does decomposition pay?

One Conv against its chain at one rank R on both modes (1×1 C→R, k×k R→R, 1×1 R→C; where the kernel is 1×1 two
factors), over channels, map sizes, kernels and ranks. Two ranks of every layer are no multiple of the block:
C/4 + 4, which ONNX Runtime pads, and C/2 − 2, which falls out of the blocked layout.

Every third layer calibrates the model of `bench.roofline`: those are measured first, the model is fitted, and
its predictions are held against the measured times of all others. Before anything is timed it is asserted
that a chain computes what the Conv of its composed weight computes, and of every model that ONNX Runtime's
layouts are those that the model assumes.

    python -m bench.layer [--threads 1 …] [--provider cpu …] [--duration 0.8]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from matplotlib.figure import Figure
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bench.results import RESULTS, write_results
from bench.roofline import Conv, Machine, Roofline, chain, fit, kernel_class, reorders, this_machine
from onnxdecomp.runtime import PROVIDERS, Engine, Provider, find_providers, onnxruntime, placement
from onnxdecomp.timing import WARMUP_RUNS, Budget, Contestant, Launch, medians, race, speedup

Weights = list[NDArray[np.float32]]
Row = dict[str, Any]

# Channels and map size, as they go together in image networks.
MAPS = ((64, 56), (64, 28), (128, 28), (128, 14), (256, 14), (256, 7), (512, 14), (512, 7))
KERNELS = (1, 3, 5)
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
TOLERANCE = 0.25  # of a predicted time
PICTURE = RESULTS / "layer.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A Conv and the ranks it is decomposed at.

    Attributes:
        conv: the Conv.
        ranks: on both modes.
        calibrates: whether the model of its time is fitted to it.
    """

    conv: Conv
    ranks: tuple[int, ...]
    calibrates: bool

    @property
    def models(self) -> list[tuple[Conv, ...]]:
        """The Conv alone, and its chain at each rank."""
        return [(self.conv,), *(chain(self.conv, rank) for rank in self.ranks)]


def layers() -> list[Layer]:
    """All of them: of every map one kernel calibrates, in turns, so that no kind of layer is left out."""
    return [
        Layer(
            conv=Conv(inputs=channels, outputs=channels, kernel=kernel, size=size),
            ranks=ranks_of(channels),
            calibrates=(i + j) % 3 == 0,
        )
        for (i, (channels, size)), (j, kernel) in product(enumerate(MAPS), enumerate(KERNELS))
    ]


def ranks_of(channels: int) -> tuple[int, ...]:
    """Aligned ones by share, and two that are not."""
    aligned = [int(channels * share) for share in SHARES]
    return tuple(sorted([*aligned, channels // 4 + 4, channels // 2 - 2]))


def random_weights(convs: Sequence[Conv]) -> Weights:
    """One of shape (outputs, inputs, k, k) for each Conv, scaled to keep the signal's size."""
    generator = np.random.default_rng(0)
    shapes = [(conv.outputs, conv.inputs, conv.kernel, conv.kernel) for conv in convs]
    return [
        generator.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        for shape in shapes
    ]


def build(convs: Sequence[Conv], weights: Weights) -> ModelProto:
    """The Convs one behind the other and a Relu: input x, output y."""
    nodes = []
    for i, conv in enumerate(convs):
        source = f"t{i - 1}" if i else "x"
        pads = [conv.kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [source, f"w{i}"], [f"t{i}"], f"conv{i}", pads=pads))
    nodes.append(helper.make_node("Relu", [f"t{len(convs) - 1}"], ["y"], "relu"))
    ends = [(convs[0].inputs, convs[0].size), (convs[-1].outputs, convs[-1].size)]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, size, size])
        for name, (channels, size) in zip("xy", ends, strict=True)
    )
    initialisers = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "layer", [x], [y], initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def signal(conv: Conv) -> NDArray[np.float32]:
    """A random input of a Conv."""
    generator = np.random.default_rng(1)
    return generator.standard_normal((1, conv.inputs, conv.size, conv.size), np.float32)


def assert_right(conv: Conv, rank: int) -> None:
    """ONNX Runtime computes from the chain what ONNX's reference computes from the Conv of its weight."""
    convs = chain(conv, rank)
    weights = random_weights(convs)
    first, last = weights[0][:, :, 0, 0], weights[-1][:, :, 0, 0]
    core = weights[1] if len(weights) == 3 else np.eye(rank, dtype=np.float32)[:, :, None, None]
    whole = np.einsum("or,rskl,si->oikl", last, core, first).astype(np.float32)
    feeds = {"x": signal(conv)}
    (expected,) = ReferenceEvaluator(build([conv], [whole])).run(None, feeds)
    for model in (build([conv], [whole]), build(convs, weights)):
        session = onnxruntime().InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        np.testing.assert_allclose(session.run(None, feeds)[0], np.asarray(expected), rtol=1e-4, atol=1e-4)


def assert_placed(path: Path, convs: Sequence[Conv], machine: Machine) -> None:
    """The layouts are those that the model of the time assumes: all blocked where ranks are aligned."""
    found = placement(path)
    plain = sum(kernel_class(conv, machine.block) == "gemm" for conv in convs)
    assert (len(found.plain), found.reorders) == (plain, len(reorders(convs, machine.block))), (convs, found)


def save_models(layer: Layer, folder: Path, machine: Machine) -> list[Contestant]:
    """The layer's models, each at its own path, placed as assumed."""
    saved = []
    for i, convs in enumerate(layer.models):
        path = folder / f"{i}.onnx"
        onnx.save(build(convs, random_weights(convs)), path)
        assert_placed(path, convs, machine)
        saved.append(Contestant(path=path, feeds={"x": signal(layer.conv)}))
    return saved


def measure(layer: Layer, engine: Engine, budget: Budget, machine: Machine) -> list[list[Launch]]:
    """The launches of the Conv and of its chains, side by side."""
    with tempfile.TemporaryDirectory() as folder:
        return race(save_models(layer, Path(folder), machine), engine, budget)


def rows_of(
    layer: Layer, found: Sequence[Sequence[Launch]], engine: Engine, provider: str, roofline: Roofline | None
) -> Iterator[Row]:
    """One row per rank."""
    conv = layer.conv
    whole, *parts = (medians(each) for each in found)
    predicted = [roofline.seconds(convs) if roofline else None for convs in layer.models]
    for rank, part, launches, guess in zip(layer.ranks, parts, found[1:], predicted[1:], strict=True):
        ratio = speedup(found[0], launches)
        yield {
            "channels": conv.inputs,
            "size": conv.size,
            "kernel": conv.kernel,
            "rank": rank,
            "rank_share": round(rank / conv.inputs, 4),
            "threads": engine.threads,
            "provider": provider,
            "median_ms_conv": round(1e3 * whole, 4),
            "median_ms_chain": round(1e3 * part, 4),
            "speedup": round(ratio.ratio, 3),
            "speedup_low": round(ratio.low, 3),
            "speedup_high": round(ratio.high, 3),
            "macs_ratio": round(conv.macs / sum(each.macs for each in chain(conv, rank)), 3),
            "predicted_ms_conv": _rounded(predicted[0], 1e3),
            "predicted_ms_chain": _rounded(guess, 1e3),
            "error_conv": _rounded(predicted[0] and predicted[0] / whole - 1),
            "error_chain": _rounded(guess and guess / part - 1),
            "calibrated": "yes" if roofline and layer.calibrates else "no",
        }


def _rounded(value: float | None, factor: float = 1) -> float | None:
    return None if value is None else round(factor * value, 4)


def run(
    provider: Provider, threads: int, budget: Budget, machine: Machine
) -> tuple[list[Row], Roofline | None]:
    """All layers on one provider: first those that calibrate, then, with the model fitted, the others."""
    engine = Engine(provider=provider.name, threads=threads)
    grid = sorted(layers(), key=lambda layer: not layer.calibrates)
    count = sum(layer.calibrates for layer in grid)
    known = [measure(layer, engine, budget, machine) for layer in grid[:count]]
    roofline = None
    if provider.short == "cpu":
        models = [convs for layer in grid[:count] for convs in layer.models]
        roofline = fit(models, [medians(each) for found in known for each in found], machine)
    rows: list[Row] = []
    for i, layer in enumerate(grid):
        found = known[i] if i < count else measure(layer, engine, budget, machine)
        for row in rows_of(layer, found, engine, provider.short, roofline):
            print(*([line(row, head=True)] if not rows else []), line(row), sep="\n", flush=True)
            rows.append(row)
    return rows, roofline


def line(row: Row, *, head: bool = False) -> str:
    """One line of the printed table."""
    return " ".join(f"{key if head else value!s:>{max(len(key), 8)}}" for key, value in row.items())


def held_out(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Relative errors of the predictions for layers that did not calibrate; each Conv counts once."""
    tested = [row for row in rows if row["calibrated"] == "no" and row["error_chain"] is not None]
    keys = ("channels", "size", "kernel", "threads")
    convs = {tuple(row[key] for key in keys): row["error_conv"] for row in tested}
    return {
        "convs": list(convs.values()),
        "chains": [row["error_chain"] for row in tested],
        "speedups": [(1 + row["error_conv"]) / (1 + row["error_chain"]) - 1 for row in tested],
    }


def within(errors: Sequence[float]) -> dict[str, float]:
    """How many predictions are good enough, and how far off the middle one is."""
    off = np.abs(errors)
    return {
        "count": len(off),
        "share_within_tolerance": round(float((off <= TOLERANCE).mean()), 3),
        "median_error": round(float(np.median(off)), 3),
    }


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw speed-up against rank, a panel per map size: measured by markers, predicted by lines."""
    first = (rows[0]["provider"], rows[0]["threads"])
    rows = [row for row in rows if (row["provider"], row["threads"]) == first]
    sizes = sorted({row["size"] for row in rows})
    figure = Figure(figsize=(4.2 * len(sizes), 4.6), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    colours = {64: "tab:blue", 128: "tab:orange", 256: "tab:green", 512: "tab:red"}
    markers = {1: "o", 3: "s", 5: "^"}
    for panel, size in zip(panels, sizes, strict=True):
        for channels, kernel in product(colours, markers):
            own = [
                row
                for row in rows
                if (row["size"], row["channels"], row["kernel"]) == (size, channels, kernel)
            ]
            if own:
                draw(
                    panel, own, colours[channels], markers[kernel], f"{channels} channels, {kernel}×{kernel}"
                )
        panel.axhline(1, color="black", linewidth=1)
        panel.set(title=f"{size}×{size} map", xlabel="rank / channels", yscale="log")
        panel.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("times faster than the Conv")
    figure.suptitle(
        "Speed-up of one Conv's chain: measured (markers; hollow where the model was fitted to it) "
        "and predicted from the shape (lines)"
    )
    figure.savefig(path, dpi=110)


def draw(panel: Any, rows: Sequence[Row], colour: str, marker: str, label: str) -> None:
    """One Conv's ranks."""
    share = [row["rank_share"] for row in rows]
    fill = "none" if rows[0]["calibrated"] == "yes" else colour
    panel.plot(share, [row["speedup"] for row in rows], marker, color=colour, mfc=fill, ms=5, label=label)
    if rows[0]["predicted_ms_conv"] is not None:
        predicted = [row["predicted_ms_conv"] / row["predicted_ms_chain"] for row in rows]
        panel.plot(share, predicted, color=colour, linewidth=1, alpha=0.7)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="of the CPU provider")
    parser.add_argument("--provider", nargs="+", choices=list(PROVIDERS), default=["cpu"])
    parser.add_argument("--duration", type=float, default=0.8, help="seconds of timed runs per model")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    providers, missing = find_providers(arguments.provider)
    print(*missing, sep="\n", end="\n" if missing else "")
    machine = this_machine()
    for kernel, rank in product(KERNELS, (8, 16, 20, 30)):
        assert_right(Conv(inputs=24, outputs=40, kernel=kernel, size=7), rank)
    budget = Budget(duration=arguments.duration)
    rows: list[Row] = []
    costs: dict[str, dict[str, float]] = {}
    for provider, threads in product(providers, arguments.threads):
        more, roofline = run(provider, threads, budget, machine)
        rows += more
        if roofline:
            costs[str(threads)] = {term: float(f"{cost:.3g}") for term, cost in roofline.costs.items()}
    accuracy = {kind: within(errors) for kind, errors in held_out(rows).items() if errors}
    print("costs, s, by threads:", costs)
    print(f"predicted within {TOLERANCE:.0%}, of layers not fitted to:", accuracy)
    options = {
        "provider": [each.name for each in providers],
        "threads": arguments.threads,
        "batch": 1,
        "warmup_runs": WARMUP_RUNS,
        "duration": arguments.duration,
        "block": machine.block,
        "prediction": accuracy,
        "tolerance": TOLERANCE,
        "costs_s_by_threads": costs,
    }
    path = write_results("layer", rows, options, gpu=any(each.gpu for each in providers))
    plot(rows, PICTURE)
    print(path, PICTURE, sep="\n")


if __name__ == "__main__":
    main()
