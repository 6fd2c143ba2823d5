"""How much faster is our factoring than TensorLy's own routine?

Factors the 3×3 layers of ResNet-18, ResNet-50 and VGG-16 (stems left out) to Tucker-2 at a quarter of the
output channels: with `onnxdecomp.factors.factorise` in one BLAS thread, as a rewrite calls it; with
`tensorly.decomposition.partial_tucker` as it comes, on all cores; and with that in one BLAS thread. All three
run in turns on the same float32 weights, and must reach the same error. A layer shape is timed once and
counts as often as the network has it. Then end to end: all 3×3 Convs of a ResNet-18, on all cores, against a
loop over `partial_tucker`, and the rewriting of a ResNet-50, its 1×1 Convs included, from file to file.

ResNet-18's weights are those of the corpus. The others are seeded: normal tensors whose channel modes decay
as n^-0.4 in random bases, which keeps 0.75 to 0.8 of the energy at half the channels, as trained layers do.

    python -m bench.factorise [--networks resnet18 …] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tensorly.decomposition import partial_tucker
from tensorly.tenalg import multi_mode_dot
from threadpoolctl import ThreadpoolController

import onnxdecomp
from bench.results import write_results
from models import export, fetch
from onnxdecomp.factors import Chain, factorise
from onnxdecomp.fitting import Factors, factor_all
from onnxdecomp.ir import load, survey
from onnxdecomp.planning import Unit
from onnxdecomp.rewriting import decided_units

Weight = NDArray[np.float32]
Row = dict[str, Any]
T = TypeVar("T")

COLUMNS = ("ours_ms", "tensorly_ms", "tensorly_one_thread_ms", "ratio", "ratio_one_thread")

# (input channels, output channels): how many 3×3 Convs have them.
LAYERS: Mapping[str, Mapping[tuple[int, int], int]] = {
    "resnet18": {
        (64, 64): 4,
        (64, 128): 1,
        (128, 128): 3,
        (128, 256): 1,
        (256, 256): 3,
        (256, 512): 1,
        (512, 512): 3,
    },
    "resnet50": {(64, 64): 3, (128, 128): 4, (256, 256): 6, (512, 512): 3},
    "vgg16": {
        (64, 64): 1,
        (64, 128): 1,
        (128, 128): 1,
        (128, 256): 1,
        (256, 256): 2,
        (256, 512): 1,
        (512, 512): 5,
    },
}
# Looking for the libraries takes longer than factoring a small weight: it is done once.
BLAS = ThreadpoolController()
REAL = "anime_or_not_resnet18"
ALIGN = 8
DECAY = 0.4
# How far the relative errors ‖W − Ŵ‖ / ‖W‖ may be apart.
AGREEMENT = 1e-3


def rank_of(c_in: int, c_out: int) -> onnxdecomp.Ranks:
    """A quarter of the output channels for both modes, in multiples of ALIGN."""
    rank = -(-c_out // (4 * ALIGN)) * ALIGN
    return onnxdecomp.Ranks(min(rank, c_in), rank)


def seeded_weight(c_in: int, c_out: int) -> Weight:
    """A weight (C_out, C_in, 3, 3) with a spectrum like a trained one's."""
    generator = np.random.default_rng([c_in, c_out])
    flat = generator.standard_normal((c_out, c_in, 3, 3))
    bases = [np.linalg.qr(generator.standard_normal((n, n)))[0] for n in (c_out, c_in)]
    scaled = [basis * np.arange(1, len(basis) + 1) ** -DECAY for basis in bases]
    decaying = multi_mode_dot(flat, scaled, modes=[0, 1])
    weight: Weight = (decaying / decaying.std() / np.sqrt(9 * c_in / 2)).astype(np.float32)
    return weight


def real_units() -> list[Unit]:
    """One for each 3×3 Conv of the corpus ResNet-18, at the rank of this benchmark."""
    found = survey(load(fetch(REAL)), input_shapes={}, freeze=False, fold_bn=True, linear=False)
    decisions: dict[str, onnxdecomp.Choice | str] = {
        anchor.site.name: onnxdecomp.Choice("tucker2", rank_of(*anchor.site.group_channels))
        if anchor.site.kernel == (3, 3)
        else "another kernel"
        for anchor in found.anchors
    }
    return decided_units(found, decisions, onnxdecomp.Policy())


def unit_weight(unit: Unit) -> Weight:
    """The float32 weight of a unit; the corpus ResNet-18 has its BatchNormalizations folded already."""
    assert unit.batchnorm is None
    return unit.weight.values(Path()).astype(np.float32, copy=False)


def ours(weight: Weight, ranks: onnxdecomp.Ranks) -> Chain:
    """Our factors."""
    return factorise("tucker2", weight.astype(np.float64), ranks, 1)


def tensorlys(weight: Weight, ranks: onnxdecomp.Ranks) -> tuple[Weight, Sequence[Weight]]:
    """TensorLy's core and factors."""
    (core, factors), _ = partial_tucker(weight, rank=[ranks.output, ranks.input], modes=[0, 1])
    return core, factors


def one_thread(function: Callable[..., T], *arguments: Any) -> T:
    """What `function` returns, called with a single BLAS thread."""
    with BLAS.limit(limits=1, user_api="blas"):
        return function(*arguments)


def relative_error(weight: Weight, restored: NDArray[Any]) -> float:
    """‖W − Ŵ‖ / ‖W‖ in float64."""
    exact = weight.astype(np.float64)
    return float(np.linalg.norm(exact - restored) / np.linalg.norm(exact))


def in_turns(repeats: int, runs: Sequence[Callable[[], Any]]) -> tuple[list[float], list[Any]]:
    """Median seconds of each of `runs`, called A B A B, and what each returned last."""
    times: list[list[float]] = [[] for _ in runs]
    results: list[Any] = [None for _ in runs]
    for _ in range(repeats):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            results[i] = run()
            times[i].append(time.perf_counter() - start)
    return [median(taken) for taken in times], results


def row(
    network: str,
    what: str,
    count: int,
    seconds: Sequence[float],
    *,
    weights: str,
    errors: Sequence[float] = (),
) -> Row:
    """One line of the table: ours, and TensorLy's two where there is something to compare with."""
    times: list[float | None] = [1e3 * each for each in seconds]
    mine, *others = times + [None] * (3 - len(times))
    ratios = [other / mine if other and mine else None for other in others]
    values = dict(zip(COLUMNS, (mine, *others, *ratios), strict=True))
    return {
        "network": network,
        "what": what,
        "count": count,
        "weights": weights,
        **{name: "" if value is None else round(value, 2) for name, value in values.items()},
        "error_ours": round(errors[0], 5) if errors else "",
        "error_tensorly": round(errors[1], 5) if errors else "",
    }


def measure_shape(network: str, weight: Weight, count: int, repeats: int) -> Row:
    """All three on one weight."""
    c_out, c_in = weight.shape[:2]
    ranks = rank_of(c_in, c_out)
    seconds, (chain, *others) = in_turns(
        repeats,
        [
            lambda: one_thread(ours, weight, ranks),
            lambda: tensorlys(weight, ranks),
            lambda: one_thread(tensorlys, weight, ranks),
        ],
    )
    error = relative_error(weight, chain.reconstruct())
    their_errors = [relative_error(weight, multi_mode_dot(*each, modes=[0, 1])) for each in others]
    assert all(abs(error - theirs) < AGREEMENT for theirs in their_errors), (c_in, c_out, error, their_errors)
    what = f"{c_in}→{c_out} 3×3, rank {ranks.output}"
    source = "real" if network == "resnet18" else "seeded"
    return row(network, what, count, seconds, weights=source, errors=[error, their_errors[0]])


def sum_row(rows: Sequence[Row]) -> Row:
    """The layers of one network, each shape as often as it occurs."""
    totals = [sum(r["count"] * r[name] for r in rows) / 1e3 for name in COLUMNS[:3]]
    count = sum(r["count"] for r in rows)
    return row(rows[0]["network"], "sum of these layers", count, totals, weights=rows[0]["weights"])


def measure_network(network: str, units: Sequence[Unit], repeats: int) -> Iterable[Row]:
    """One row for each layer shape, then their sum."""
    real: dict[tuple[int, ...], Weight] = {}
    for weight in map(unit_weight, units if network == "resnet18" else ()):
        real.setdefault((weight.shape[1], weight.shape[0]), weight)
    rows = []
    for (c_in, c_out), count in LAYERS[network].items():
        weight = real[c_in, c_out] if real else seeded_weight(c_in, c_out)
        rows.append(measure_shape(network, weight, count, repeats))
        yield rows[-1]
    yield sum_row(rows)


def measure_factor_all(units: Sequence[Unit], repeats: int) -> Row:
    """All 3×3 Convs of ResNet-18; our side reads the weights, rounds the factors and reports errors too."""
    assert len(units) == sum(LAYERS["resnet18"].values())
    weights = [unit_weight(unit) for unit in units]
    ranks = [rank_of(weight.shape[1], weight.shape[0]) for weight in weights]

    def loop() -> list[tuple[Weight, Sequence[Weight]]]:
        return [tensorlys(weight, wanted) for weight, wanted in zip(weights, ranks, strict=True)]

    seconds, (mine, others, _) = in_turns(
        repeats, [lambda: list(factor_all(units, Path(), -1)), loop, lambda: one_thread(loop)]
    )
    for weight, result, factors in zip(weights, mine, others, strict=True):
        assert isinstance(result, Factors), result
        error = relative_error(weight, multi_mode_dot(*factors, modes=[0, 1]))
        assert abs(error - result.errors.weight) < AGREEMENT, (weight.shape, error, result.errors)
    what = f"factor_all on {os.cpu_count()} cores, against a loop"
    return row("resnet18", what, len(units), seconds, weights="real")


def measure_rewrite(repeats: int) -> Row:
    """A ResNet-50 from file to file, without the check."""
    with tempfile.TemporaryDirectory() as scratch:
        path, out = export("resnet50", Path(scratch) / "in.onnx"), Path(scratch) / "out.onnx"

        def rewrite() -> onnxdecomp.Plan:
            result = onnxdecomp.rewrite(path, 0.25, check=False)
            result.save(out)
            return result.plan

        seconds, (plan,) = in_turns(repeats, [rewrite])
        sites = {site.name: site for site in onnxdecomp.find_sites(path)}
        made = [site for site in onnxdecomp.find_sites(out) if site.name not in sites]
        megabytes = path.stat().st_size / 1e6
    # Tucker-2 makes three Convs of one, SVD two.
    lengths = {"tucker2": 3, "svd": 2, "tucker1": 2}
    assert len(made) == sum(lengths[choice.method] for choice in plan.sites.values())
    assert any(sites[name].kernel == (1, 1) for name in plan.sites)
    what = f"rewrite and save, {megabytes:.0f} MB"
    return row("resnet50", what, len(plan.sites), seconds, weights="seeded, normal")


def line(values: Mapping[str, Any]) -> str:
    """One line of the printed table."""
    left = f"{values['network']:9} {values['what']:38} {values['count']:>5}"
    right = [f"{values[name]:>{width}}" for name, width in zip(COLUMNS, (9, 11, 9, 6, 9), strict=True)]
    return " ".join([left, *right, f"{values['error_ours']:>8} {values['error_tensorly']:>9}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    units = real_units() if "resnet18" in arguments.networks else []
    rows: list[Row] = []

    def add(new: Iterable[Row]) -> None:
        for each in new:
            rows.append(each)
            print(line(each), flush=True)

    heads = ("network", "what", "count", "error_ours", "error_tensorly")
    shown = ("ours, ms", "TensorLy", "1 thread", "ratio", "1 thread")
    print(line(dict(zip(heads, heads, strict=True)) | dict(zip(COLUMNS, shown, strict=True))))
    for network in arguments.networks:
        add(measure_network(network, units, arguments.repeats))
    if "resnet18" in arguments.networks:
        add([measure_factor_all(units, arguments.repeats)])
    if "resnet50" in arguments.networks:
        add([measure_rewrite(arguments.repeats)])
    options = {"repeats": arguments.repeats, "real_weights": REAL, "seeded_decay": DECAY, "align": ALIGN}
    print(write_results("factorise", rows, options))


if __name__ == "__main__":
    main()
