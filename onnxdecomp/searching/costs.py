"""What every choice costs: counted, or measured in ONNX Runtime as the site stands in the model.

A site is timed as a small model of its own, with random weights: the Conv with its strides, pads and groups,
the residual Add and the activation that ONNX Runtime fuses into it, and the same for each chain. What the
layout conversions around it take is the same for all choices, so that differences between them are those in
the whole model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from onnxdecomp.choose import chain_macs, chain_params, links
from onnxdecomp.emit import Wiring, chain_nodes, constant_tensor
from onnxdecomp.errors import RunError, first_line
from onnxdecomp.factors import Chain, Link
from onnxdecomp.factors.chain import Floats
from onnxdecomp.graph import attribute, is_onnx_op
from onnxdecomp.inputs import Feeds
from onnxdecomp.plan import Choice
from onnxdecomp.searching.cache import Cache
from onnxdecomp.searching.candidates import Unit, label
from onnxdecomp.sites import Anchor, Site, Survey
from onnxdecomp.worker import Engine, Stopwatch

Track = Callable[[Sequence[Unit], str], Iterable[Unit]]

_ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid")
_ROUNDS = 7
# A turn of one model lasts about that long, so that the clock's resolution does not matter.
_TURN = 2e-3
_MOST_RUNS = 20
_NODE_BYTES = 250  # of a node and its tensors' names in a file, roughly


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """What a unit costs, in whatever the costs are: seconds, multiply-accumulates, parameters or bytes.

    Attributes:
        kept: as it is.
        choices: with each of the unit's choices.
    """

    kept: float
    choices: tuple[float, ...]


def counted(units: Sequence[Unit], what: str) -> list[Priced]:
    """Costs that follow from shapes: "macs", "params" or "size" (bytes)."""
    count = {"macs": _macs, "params": _params, "size": _bytes}[what]
    return [
        Priced(kept=count(unit, None), choices=tuple(count(unit, choice) for choice in unit.choices))
        for unit in units
    ]


def _macs(unit: Unit, choice: Choice | None) -> float:
    found = [site.macs if choice is None else chain_macs(site, choice) for site in unit.sites]
    return float(sum(each or 0 for each in found))


def _params(unit: Unit, choice: Choice | None) -> float:
    lead = unit.sites[0]
    return float((lead.params or 0) if choice is None else chain_params(lead, choice))


def _bytes(unit: Unit, choice: Choice | None) -> float:
    width = helper.tensor_dtype_to_np_dtype(unit.job.weight.data_type).itemsize
    extra = 0 if choice is None else _NODE_BYTES * len(links(unit.sites[0], choice)) * len(unit.sites)
    return width * _params(unit, choice) + extra


def measured(
    units: Sequence[Unit],
    found: Survey,
    ir_version: int,
    engine: Engine,
    cache: Cache,
    track: Track,
) -> list[Priced]:
    """Seconds of every unit with every choice, from the cache where they are known.

    Units whose shapes are not known have infinite costs but for keeping them.
    """
    priced = []
    for unit in track(units, "timing the choices"):
        total = np.zeros(1 + len(unit.choices))
        for anchor in unit.job.anchors:
            total += _site_times(anchor, unit.choices, found, ir_version, engine, cache)
        priced.append(Priced(kept=float(total[0]), choices=tuple(map(float, total[1:]))))
    return priced


def _site_times(
    anchor: Anchor,
    choices: Sequence[Choice],
    found: Survey,
    ir_version: int,
    engine: Engine,
    cache: Cache,
) -> Floats:
    if anchor.site.sizes is None:
        return np.array([0.0, *(math.inf for _ in choices)])
    surroundings = find_surroundings(anchor, found)
    wanted: list[Choice | None] = [None, *choices]
    key = _key(anchor, surroundings)
    keys = [f"{key} {label(choice)}" for choice in wanted]
    if any(cache.get(each) is None for each in keys):
        models = [site_model(anchor, surroundings, choice, ir_version) for choice in wanted]
        times = time_models(models, site_feeds(anchor, surroundings), engine)
        cache.put(dict(zip(keys, times, strict=True)))
    return np.array([cache.get(each) for each in keys], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What ONNX Runtime can fuse into a Conv: a residual Add, then an activation."""

    residual: bool
    activation: NodeProto | None


def find_surroundings(anchor: Anchor, found: Survey) -> Surroundings:
    """What stands behind a site."""
    output = anchor.output
    residual, reader = False, _only_reader(anchor, found, output)
    if reader is not None and is_onnx_op(reader, "Add"):
        others = [name for name in reader.input if name != output]
        residual = len(others) == 1 and others[0] in anchor.scope.producers
        reader = _only_reader(anchor, found, reader.output[0]) if residual else None
    fused = reader is not None and any(is_onnx_op(reader, op) for op in _ACTIVATIONS)
    # A Clip may take its bounds from tensors: those are the model's.
    plain = fused and reader is not None and len(list(filter(None, reader.input))) == 1
    return Surroundings(residual, reader if plain else None)


def _only_reader(anchor: Anchor, found: Survey, name: str) -> NodeProto | None:
    tensor = anchor.scope.tensor(name)
    readers = found.uses.readers.get(tensor, [])
    return readers[0] if len(readers) == 1 and tensor not in found.uses.pinned else None


def site_model(
    anchor: Anchor, surroundings: Surroundings, choice: Choice | None, ir_version: int
) -> ModelProto:
    """A site alone, kept or as a chain, with random weights, from "x" (and a residual "z") to "y"."""
    site = anchor.site
    if anchor.weight is None or site.channels is None:
        raise ValueError(f"{site.name} has no constant weight")
    lead = NodeProto(op_type=anchor.node.op_type, name="site", attribute=anchor.node.attribute)
    generator = np.random.default_rng(0)
    tensors = {"b": np.zeros(site.channels[1])} if site.op != "MatMul" else {}
    bias = next(iter(tensors), None)
    if choice is None:
        shape = anchor.weight.shape
        tensors["w"] = generator.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        lead.input.extend(["x", "w", *([bias] if bias else [])])
        lead.output.append("product")
        nodes = [lead]
    else:
        chain = random_chain(site, choice, generator)
        names = tuple(f"w{i}" for i in range(len(chain.links)))
        values = (link.weight.T if anchor.transposed else link.weight for link in chain.links)
        tensors |= dict(zip(names, values, strict=True))
        old_gemm = site.op == "Gemm" and anchor.scope.opset < 11
        if old_gemm:
            tensors["zeros"] = np.zeros(len(chain.links[0].weight))
        wiring = Wiring(
            nodes=names,
            weights=names,
            inner=tuple(f"h{i}" for i in range(len(names) - 1)),
            output="product",
            bias=bias,
            zeros="zeros" if old_gemm else None,
        )
        lead.input.append("x")
        nodes = chain_nodes(lead, chain.links, wiring)
    nodes += _behind(surroundings)
    data_type = anchor.weight.data_type
    inputs = [
        helper.make_tensor_value_info(name, data_type, array.shape)
        for name, array in site_feeds(anchor, surroundings).items()
    ]
    graph = helper.make_graph(
        nodes,
        "site",
        inputs,
        [helper.make_tensor_value_info("y", data_type, None)],
        [constant_tensor(name, array, data_type) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", anchor.scope.opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=max(ir_version, 4))


def _behind(surroundings: Surroundings) -> list[NodeProto]:
    nodes, last = [], "product"
    if surroundings.residual:
        nodes.append(helper.make_node("Add", [last, "z"], ["sum"]))
        last = "sum"
    if surroundings.activation is not None:
        made = NodeProto()
        made.CopyFrom(surroundings.activation)
        made.input[:], made.output[:] = [last], ["active"]
        nodes.append(made)
        last = "active"
    return [*nodes, helper.make_node("Identity", [last], ["y"])]


def site_feeds(anchor: Anchor, surroundings: Surroundings) -> Feeds:
    """Random inputs of the site's shapes."""
    site = anchor.site
    if site.sizes is None or site.channels is None or site.dtype is None:
        raise ValueError(f"{site.name}: shapes are not known")
    generator = np.random.default_rng(0)
    shapes = [
        (sizes[0], channels, *sizes[1:]) for sizes, channels in zip(site.sizes, site.channels, strict=True)
    ]
    turned = attribute(anchor.node, "transA") if site.op == "Gemm" else None
    if turned is not None and turned.i:
        shapes[0] = shapes[0][::-1]
    dtype = helper.tensor_dtype_to_np_dtype(anchor.weight.data_type if anchor.weight else TensorProto.FLOAT)
    names = ("x", "z") if surroundings.residual else ("x",)
    return {
        name: generator.standard_normal(shape).astype(dtype)
        for name, shape in zip(names, shapes, strict=False)
    }


def random_chain(site: Site, choice: Choice, generator: np.random.Generator) -> Chain:
    """A chain of the shapes that factoring would give, its values such that activations keep their size."""
    shapes = links(site, choice)
    made = []
    for i, link in enumerate(shapes):
        kernel = [size if axis in link.axes else 1 for axis, size in enumerate(site.kernel)]
        shape = (link.channels[1], link.channels[0] // link.groups, *kernel)
        # He's initialisation where a ReLU may follow, as in the networks themselves.
        variance = (2 if i == len(shapes) - 1 else 1) / np.prod(shape[1:])
        weight = generator.standard_normal(shape) * np.sqrt(variance)
        made.append(Link(link.role, weight, link.axes, link.groups))
    return Chain(tuple(made), site.groups or 1)


def time_models(models: Sequence[ModelProto], feeds: Feeds, engine: Engine) -> list[float]:
    """Seconds per run of models that take the same inputs: medians over turns, in this process.

    Raises:
        RunError: ONNX Runtime does not run one of them.
    """
    # onnxruntime's exceptions share no base class of their own.
    try:
        watches = [Stopwatch(model.SerializeToString(), engine, feeds) for model in models]
        runs = [min(max(1, math.ceil(_TURN / max(w.run(2)[1], 1e-6))), _MOST_RUNS) for w in watches]
        turns = np.array([_turn(watches, runs, turn) for turn in range(_ROUNDS)])
    except Exception as error:
        raise RunError(f"ONNX Runtime does not run a chain alone: {first_line(error)}") from error
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
