"""What every choice costs: counted, or measured in ONNX Runtime as the site stands in the model."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from onnx import AttributeProto, ModelProto, helper

from onnxdecomp.factors import Floats
from onnxdecomp.ir import Anchor, Survey
from onnxdecomp.planning import Choice, Unit, chain_macs, chain_params, label, links
from onnxdecomp.progress import Progress, tracked
from onnxdecomp.runtime import Engine, Feeds, run_errors
from onnxdecomp.searching.cache import Cache
from onnxdecomp.searching.figures import Figures
from onnxdecomp.searching.surroundings import Surroundings, find_surroundings, site_feeds, site_model
from onnxdecomp.timing import Stopwatch

_ROUNDS = 7
# A turn of one model lasts about that long, so that the clock's resolution does not matter.
_TURN = 2e-3
_MOST_RUNS = 20
_NODE_BYTES = 250  # of a node and its tensors' names in a file, roughly


def counted(units: Sequence[Unit], what: str) -> list[Figures]:
    """Costs that follow from shapes: "macs", "params" or "size" (bytes)."""
    count = {"macs": _macs, "params": _params, "size": _bytes}[what]
    # A weight that several units read, as a Conv and a ConvTranspose, goes when all of them are decomposed.
    readers = Counter(unit.weight.key for unit in units) if what != "macs" else Counter[object]()
    return [
        Figures(
            kept=count(unit, None) / (readers[unit.weight.key] or 1),
            choices=tuple(count(unit, choice) for choice in unit.choices),
        )
        for unit in units
    ]


def _macs(unit: Unit, choice: Choice | None) -> float:
    found = [site.macs if choice is None else chain_macs(site, choice) for site in unit.sites]
    return float(sum(each or 0 for each in found))


def _params(unit: Unit, choice: Choice | None) -> float:
    lead = unit.sites[0]
    return float((lead.params or 0) if choice is None else chain_params(lead, choice))


def _bytes(unit: Unit, choice: Choice | None) -> float:
    width = unit.weight.factor_dtype.itemsize
    extra = 0 if choice is None else _NODE_BYTES * len(links(unit.sites[0], choice)) * len(unit.sites)
    return width * _params(unit, choice) + extra


def measured(
    found: Survey, units: Sequence[Unit], engine: Engine, cache: Cache, progress: Progress
) -> list[Figures]:
    """Seconds of every unit with every choice, from the cache where they are known.

    Units whose shapes are not known have infinite costs but for keeping them.
    """
    figures = []
    for unit in tracked(units, "timing the choices", progress, attrgetter("name")):
        total = np.zeros(1 + len(unit.choices))
        for anchor in unit.anchors:
            total += _site_times(found, anchor, unit.choices, engine, cache)
        figures.append(Figures(kept=float(total[0]), choices=tuple(map(float, total[1:]))))
    return figures


def _site_times(
    found: Survey, anchor: Anchor, choices: Sequence[Choice], engine: Engine, cache: Cache
) -> Floats:
    if anchor.site.sizes is None:
        return np.array([0.0, *(math.inf for _ in choices)])
    surroundings = find_surroundings(anchor, found)
    wanted: list[Choice | None] = [None, *choices]
    key = _key(anchor, surroundings)
    keys = [f"{key} {label(choice)}" for choice in wanted]
    if any(cache.get(each) is None for each in keys):
        ir_version = found.model.proto.ir_version
        models = [site_model(anchor, surroundings, choice, ir_version) for choice in wanted]
        times = time_models(models, site_feeds(anchor, surroundings), engine)
        cache.put(dict(zip(keys, times, strict=True)))
    return np.array([cache.get(each) for each in keys], dtype=np.float64)


def time_models(models: Sequence[ModelProto], feeds: Feeds, engine: Engine) -> list[float]:
    """Seconds per run of models that take the same inputs: medians over turns, in this process.

    Raises:
        RunError: ONNX Runtime does not run one of them.
    """
    with run_errors("ONNX Runtime does not run a chain alone"):
        watches = [Stopwatch(model.SerializeToString(), engine, feeds) for model in models]
        runs = [min(max(1, math.ceil(_TURN / max(w.run(2)[1], 1e-6))), _MOST_RUNS) for w in watches]
        turns = np.array([_turn(watches, runs, turn) for turn in range(_ROUNDS)])
    return [float(seconds) for seconds in np.median(turns, axis=0)]


def _turn(watches: Sequence[Stopwatch], runs: Sequence[int], turn: int) -> list[float]:
    order: Iterator[int] | range = range(len(watches))
    if turn % 2:
        order = reversed(range(len(watches)))
    times = [0.0] * len(watches)
    for i in order:
        watches[i].run(1)
        times[i] = float(np.median(watches[i].run(runs[i])))
    return times


def _key(anchor: Anchor, surroundings: Surroundings) -> str:
    """All that the time of a site depends on beside the choice and the machine."""
    site, activation = anchor.site, surroundings.activation
    return json.dumps(
        {
            "op": site.op,
            "dtype": site.dtype,
            "attributes": _attributes(anchor.node.attribute),
            "weight": anchor.weight.shape if anchor.weight else None,
            "sizes": site.sizes,
            "residual": surroundings.residual,
            "activation": activation.op_type if activation is not None else None,
            "activation_attributes": _attributes(activation.attribute) if activation is not None else None,
        },
        sort_keys=True,
    )


def _attributes(attributes: Iterable[AttributeProto]) -> Mapping[str, Any]:
    values = {each.name: helper.get_attribute_value(each) for each in attributes if not each.ref_attr_name}
    return {
        name: value.decode() if isinstance(value, bytes) else _plain(value) for name, value in values.items()
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else list(value)
