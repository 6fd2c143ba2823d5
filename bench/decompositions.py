"""Which decomposition is fastest in ONNX Runtime at equal multiply-accumulates?

Tucker-2 at a rank of 0.25, the default, sets the budget: each other method takes its place in every Conv,
with the rank, in multiples of the alignment, that comes nearest to the MACs of that Conv's Tucker-2 chain.
Everything else, so all 1×1 Convs with their SVD and the stem, is the same in all variants; one more variant
keeps the 1×1 Convs whole, to show what their SVD gains. All models of a network run in turns on one thread.

Latency does not depend on values: the chains hold seeded random factors of the right shapes, and no weight is
factored. Each model must run, with finite outputs of the original's shape, have the Convs its plan says, and
lose none of them from the blocked NCHWc layout.

    python -m bench.decompositions [--networks resnet18 …] [--rank 0.25] [--align 8]
        [--duration 5 | --runs 100]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.results import write_results
from models import export
from onnxdecomp.factors import Ranks
from onnxdecomp.ir import Site, load, save, survey
from onnxdecomp.lowering import Splicer
from onnxdecomp.planning import (
    Choice,
    Policy,
    applicable,
    chain_macs,
    choose,
    links,
    macs_ratio,
    parse_rank,
    rank_limits,
)
from onnxdecomp.rewriting import decided_units
from onnxdecomp.runtime import Engine, Feeds, open_in_onnxruntime, placement, random_feeds
from onnxdecomp.searching import random_chain
from onnxdecomp.timing import WARMUP_RUNS, Budget, Contestant, Launch, medians, race, speedup

Row = dict[str, Any]
Decisions = dict[str, Choice | str]
Times = Mapping[str, Sequence[Launch]]

NETWORKS = ("resnet18", "resnet50", "vgg16_cifar10")
DEFAULT, RIVALS = "tucker2", ("tucker1", "spatial", "cp", "cp3")
ORIGINAL, WITHOUT_SVD = "original", "tucker2, 1×1 kept"
# How far from the budget MACs count as equal: ranks come in blocks.
TOLERANCE = 0.1


def default_decisions(sites: Sequence[Site], rank: str, align: int) -> Decisions:
    """What the compiler chooses at `rank`: Tucker-2, SVD for 1×1, Tucker-1 for the stem."""

    def never() -> NDArray[np.float64]:
        raise AssertionError("this benchmark takes ranks that need no weight")

    rule, policy = parse_rank(rank), Policy(align=align)
    return {site.name: choose(site, rule, policy, never) for site in sites}


def nearest(site: Site, budget: Choice, method: str, align: int) -> Choice:
    """The choice of `method` whose MACs come nearest to those of `budget`; for Tucker-1 on either side."""
    limits = rank_limits(site, method)
    blocks = [*range(align, max(limits), align), max(limits)]
    if method == "tucker1":
        ranks = [Ranks(r, None) for r in blocks if r <= limits[0]]
        ranks += [Ranks(None, r) for r in blocks if r <= limits[1]]
    else:
        ranks = [Ranks(r, r) for r in blocks]
    target = macs_ratio(site, budget)
    return min((Choice(method, r) for r in ranks), key=lambda choice: abs(macs_ratio(site, choice) - target))


def variants(sites: Sequence[Site], rank: str, align: int) -> dict[str, Decisions]:
    """All decisions to compare, by name, the original first."""
    default = default_decisions(sites, rank, align)

    def with_method(method: str) -> Decisions:
        swapped = dict(default)
        for site in sites:
            choice = default[site.name]
            if isinstance(choice, Choice) and choice.method == DEFAULT and method in applicable(site):
                swapped[site.name] = nearest(site, choice, method, align)
        return swapped

    kept: Decisions = dict.fromkeys(default, "kept")
    linear = [
        name for name, choice in default.items() if isinstance(choice, Choice) and choice.method == "svd"
    ]
    return {
        ORIGINAL: kept,
        DEFAULT: default,
        **{method: with_method(method) for method in RIVALS},
        **({WITHOUT_SVD: default | dict.fromkeys(linear, "kept")} if linear else {}),
    }


def rewrite(path: Path, decisions: Decisions, out: Path) -> None:
    """Write the model at `path` to `out` with random chains in the place of the chosen Convs."""
    model, generator = load(path), np.random.default_rng(0)
    found = survey(model, input_shapes={}, freeze=False, fold_bn=True, linear=False)
    splicer = Splicer(found, None)
    for unit in decided_units(found, decisions, Policy()):
        splicer.install(unit.anchors, random_chain(unit.lead.site, unit.choices[0], generator))
    save(splicer.finish(), out)


def assert_right(
    paths: Mapping[str, Path],
    chosen: Mapping[str, Decisions],
    sites: Sequence[Site],
    feeds: Feeds,
    align: int,
) -> None:
    """Every model gives finite outputs of the original's shape and has the Convs its plan says, in NCHWc."""
    expected = [output.shape for output in open_in_onnxruntime(paths[ORIGINAL]).run(feeds).values()]
    outside = len(placement(paths[ORIGINAL]).plain)
    for name, decisions in chosen.items():
        outputs = list(open_in_onnxruntime(paths[name]).run(feeds).values())
        assert [output.shape for output in outputs] == expected, name
        assert all(np.isfinite(output).all() and output.any() for output in outputs), name
        choices = [(site, decisions[site.name]) for site in sites]
        wanted = [len(links(site, c)) if isinstance(c, Choice) else 1 for site, c in choices]
        convs = placement(paths[name])
        assert len(convs.blocked) + len(convs.plain) == sum(wanted), name
        # Channels that are no multiple of 4 leave the blocked layout.
        assert align % 4 or len(convs.plain) <= outside, (name, sorted(convs.plain))


def conv_macs(sites: Sequence[Site], decisions: Decisions) -> int:
    """Multiply-accumulates of all Convs."""
    choices = [(site, decisions[site.name]) for site in sites]
    costs = [chain_macs(site, c) if isinstance(c, Choice) else site.macs for site, c in choices]
    assert None not in costs
    return sum(cost or 0 for cost in costs)


def rows_of(
    network: str,
    sites: Sequence[Site],
    chosen: Mapping[str, Decisions],
    paths: Mapping[str, Path],
    times: Times,
) -> list[Row]:
    """The table of one network: the original first."""
    rows = []
    budget = conv_macs(sites, chosen[DEFAULT])
    for name, decisions in chosen.items():
        macs, convs = conv_macs(sites, decisions), placement(paths[name])
        gain = speedup(times[ORIGINAL], times[name])
        rows.append(
            {
                "network": network,
                "variant": name,
                "macs": macs,
                "macs_over_tucker2": round(macs / budget, 3),
                "convs": len(convs.blocked) + len(convs.plain),
                "convs_outside_nchwc": len(convs.plain),
                "reorders": convs.reorders,
                "median_ms": round(1e3 * medians(times[name]), 4),
                "speedup": round(gain.ratio, 3),
                "speedup_low": round(gain.low, 3),
                "speedup_high": round(gain.high, 3),
            }
        )
    return rows


def winners(rows: Sequence[Row], times: Times) -> list[str]:
    """The fastest of the methods at equal MACs, and those whose time is not surely longer."""
    level = [row for row in rows if row["variant"] in (DEFAULT, *RIVALS)]
    level = [row for row in level if abs(row["macs_over_tucker2"] - 1) <= TOLERANCE]
    best, *others = [row["variant"] for row in sorted(level, key=lambda row: float(row["median_ms"]))]
    return [best, *(name for name in others if speedup(times[name], times[best]).low <= 1)]


def measure(network: str, rank: str, align: int, budget: Budget, scratch: Path) -> tuple[list[Row], Times]:
    """The table of one network, and the times behind it."""
    path = export(network, scratch / f"{network}.onnx")
    model = load(path)
    found = survey(model, input_shapes={}, freeze=False, fold_bn=True, linear=False)
    sites = [anchor.site for anchor in found.anchors]
    chosen = variants(sites, rank, align)
    paths = {name: scratch / f"{i}.onnx" for i, name in enumerate(chosen)} | {ORIGINAL: path}
    for name, decisions in chosen.items():
        if name != ORIGINAL:
            rewrite(path, decisions, paths[name])
    feeds = random_feeds(model.proto, {})
    assert_right(paths, chosen, sites, feeds, align)
    contestants = [Contestant(path=each, feeds=feeds) for each in paths.values()]
    launches = race(contestants, Engine(threads=1), budget)
    times = dict(zip(paths, launches, strict=True))
    return rows_of(network, sites, chosen, paths, times), times


def line(values: Mapping[str, Any]) -> str:
    """One line of the printed table."""
    widths = (-14, -18, 11, 18, 6, 20, 9, 10, 8, 12, 12)
    cells = zip(values.values(), widths, strict=True)
    return " ".join(f"{value!s:<{-n}}" if n < 0 else f"{value!s:>{n}}" for value, n in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rank", default="0.25")
    parser.add_argument("--align", type=int, default=Policy().align)
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of timed runs of each model")
    parser.add_argument("--runs", type=int, help="timed runs of each model at least; then no duration")
    arguments = parser.parse_args()
    budget = Budget(duration=arguments.duration, runs=arguments.runs)
    rows: list[Row] = []
    won: dict[str, list[str]] = {}
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            new, times = measure(network, arguments.rank, arguments.align, budget, folder)
        print(
            *([] if rows else [line({name: name for name in new[0]})]), *map(line, new), sep="\n", flush=True
        )
        rows += new
        won[network] = winners(new, times)
    for network, names in won.items():
        level = f", level with it: {', '.join(names[1:])}" if names[1:] else ""
        print(f"{network}: fastest at equal MACs: {names[0]}{level}")
    never = [name for name in (DEFAULT, *RIVALS) if not any(name in names for names in won.values())]
    print(f"never fastest: {', '.join(never) or 'none'}")
    options = {
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "warmup_runs": WARMUP_RUNS,
        "budget": asdict(budget),
        "rank": arguments.rank,
        "align": arguments.align,
        "weights": "random",
        "fastest": won,
        "never_fastest": never,
    }
    question = f"decompositions-rank{arguments.rank}-align{arguments.align}"
    print(write_results("-".join([question, *won]) if len(won) == 1 else question, rows, options))


if __name__ == "__main__":
    main()
