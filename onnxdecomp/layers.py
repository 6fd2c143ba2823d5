"""Where a model's time goes in ONNX Runtime, layer by layer, before and after a rewrite.

ONNX Runtime says how long each node of *its* graph took: there Convs have swallowed what follows them, and
chains stand where one Conv was. Both are traced back to the nodes of the original file, so that one row holds
a layer before and after.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto

from onnxdecomp.errors import RunError, UsageError, first_line
from onnxdecomp.inputs import Feeds
from onnxdecomp.placement import BLOCKED_DOMAIN, REORDERS
from onnxdecomp.runtime import onnxruntime
from onnxdecomp.worker import Engine, open_session

WARMUP_RUNS = 10
ROUNDS = 3
# A layer is called slower where it lost more than this share: less is noise.
SLOWER = 0.05
_RESOLUTION = 10e-6  # the profile counts in microseconds
CONVERSIONS = "layout conversions"
_BLOCKED_SUFFIX = "_nchwc"
_DRESSING = ("Fused", "Nhwc", "QLinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One node of the graph that ONNX Runtime runs.

    Attributes:
        op: its operator, and what is fused into it: "Conv+Add+Relu".
        blocked: whether it works in the blocked NCHWc layout.
        seconds: the median time of a run.
        owner: index of the node of the file that it computes, None where that cannot be told.
        name: as ONNX Runtime calls it.
    """

    op: str
    blocked: bool
    seconds: float
    owner: int | None
    name: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile:
    """The kernels of one model.

    Attributes:
        graph: the file's main graph.
        kernels: in the order they run.
        session: the median time of a profiled run as a whole, seconds.
    """

    graph: GraphProto
    kernels: tuple[Kernel, ...]
    session: float

    @property
    def seconds(self) -> float:
        """The sum of the kernels' times."""
        return sum(kernel.seconds for kernel in self.kernels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, or the layout conversions, in one or several models.

    Attributes:
        name: the Conv's (or other node's) name in the first model.
        kernels: what each model runs for it; empty where a model has no such layer.
    """

    name: str
    kernels: tuple[tuple[Kernel, ...], ...]

    def seconds(self, model: int) -> float:
        """The time of the layer in one model."""
        return sum(kernel.seconds for kernel in self.kernels[model])

    def speedup(self, model: int) -> float | None:
        """Time in the first model over time in another; None where either lacks the layer."""
        own = self.seconds(model)
        return self.seconds(0) / own if self.kernels[0] and self.kernels[model] and own else None

    def slower(self, model: int) -> bool:
        """Whether the layer lost more than noise."""
        if self.speedup(model) is None:
            return False
        lost = self.seconds(model) - self.seconds(0)
        return lost > max(SLOWER * self.seconds(0), _RESOLUTION)


def profile(paths: Sequence[Path], engine: Engine, feeds: Sequence[Feeds], runs: int = 20) -> list[Profile]:
    """Profile models in turns, a few sessions of each.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        RunError: a model does not load or run.
        UsageError: the provider is not the CPU: others report when a kernel was launched, not its time.
    """
    onnxruntime()
    if engine.provider != "CPUExecutionProvider":
        raise UsageError(
            "--per-layer needs --provider cpu: elsewhere ONNX Runtime's profile tells when kernels were "
            "launched, not how long they ran"
        )
    with tempfile.TemporaryDirectory() as scratch:
        files = [_named(path, Path(scratch) / f"{i}.onnx") for i, path in enumerate(paths)]
        events: list[list[dict[str, Any]]] = [[] for _ in paths]
        for turn in range(ROUNDS):
            for i, (file, own) in enumerate(zip(files, feeds, strict=True)):
                events[i] += _events(file, engine, own, runs, Path(scratch) / f"{i}-{turn}")
        return [
            _profile(file, found, Path(scratch) / f"{i}-0.onnx")
            for i, (file, found) in enumerate(zip(files, events, strict=True))
        ]


def _named(path: Path, copy: Path) -> Path:
    """The model with a name of its own on every node of the main graph: a profile tells them by it."""
    model = onnx.load(path, load_external_data=False)
    names = [node.name for node in model.graph.node]
    if all(names) and len(set(names)) == len(names):
        return path
    for i, node in enumerate(model.graph.node):
        node.name = next(filter(None, node.output), f"node {i}")
    # External data lie beside the original, wherever the copy is.
    onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    onnx.save(model, copy, save_as_external_data=model.ByteSize() > 1 << 30)
    return copy


def _events(path: Path, engine: Engine, feeds: Feeds, runs: int, stem: Path) -> list[dict[str, Any]]:
    # onnxruntime's exceptions share no base class of their own.
    try:
        session = open_session(str(path), engine, optimised=str(stem.with_suffix(".onnx")), profile=str(stem))
        for _ in range(WARMUP_RUNS + runs):
            session.run(None, dict(feeds))
        written = Path(session.end_profiling())
    except Exception as error:
        raise RunError(f"ONNX Runtime does not run {path.name}: {first_line(error)}") from error
    events = json.loads(written.read_text(encoding="utf-8"))
    starts = [event["ts"] for event in events if event["name"] == "model_run"]
    begin = sorted(starts)[WARMUP_RUNS]
    return [event for event in events if event["ts"] >= begin]


def _profile(path: Path, events: Sequence[dict[str, Any]], optimised: Path) -> Profile:
    graph = onnx.load(path, load_external_data=False).graph
    running = onnx.load(optimised, load_external_data=False).graph
    times = defaultdict(list)
    for event in _outermost([event for event in events if event["cat"] == "Node"]):
        times[event["name"].removesuffix("_kernel_time")].append(event["dur"] * 1e-6)
    owners = find_owners(graph, running)
    kernels = [
        Kernel(
            op=_fused(node),
            blocked=node.domain == BLOCKED_DOMAIN,
            seconds=float(np.median(times[node.name])),
            owner=owner,
            name=node.name,
        )
        for node, owner in zip(running.node, owners, strict=True)
        if node.name in times
    ]
    runs = [event["dur"] * 1e-6 for event in events if event["name"] == "model_run"]
    return Profile(graph=graph, kernels=tuple(kernels), session=float(np.median(runs)))


def _outermost(events: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Without the nodes of If, Loop and Scan bodies: their time is in that of the node around them."""
    end = -1
    for event in sorted(events, key=lambda each: (each["ts"], -each["dur"])):
        if event["ts"] + event["dur"] > end:
            yield event
            end = event["ts"] + event["dur"]


def _fused(node: NodeProto) -> str:
    op = _undressed(node.op_type)
    activation = [a.s.decode() for a in node.attribute if a.name == "activation" and a.s]
    added = ["Add"] if op == "Conv" and len(node.input) > 3 and node.input[3] else []
    return "+".join((op, *added, *activation))


def _undressed(op: str) -> str:
    for prefix in _DRESSING:
        op = op.removeprefix(prefix)
    return op


def find_owners(graph: GraphProto, running: GraphProto) -> list[int | None]:
    """Which node of the file each node of the running graph computes the output of.

    ONNX Runtime keeps the names of the tensors it does not fuse away, and calls a blocked node after its
    output: the last node of the file that went into it.
    """
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    by_name = {node.name: i for i, node in enumerate(graph.node) if node.name}

    def owner(node: NodeProto) -> int | None:
        if node.op_type in REORDERS:
            return None
        for name in (node.name.removesuffix(_BLOCKED_SUFFIX), *node.output):
            if name in producers:
                return producers[name]
        return by_name.get(node.name)

    return [owner(node) for node in running.node]


def _members(profile: Profile) -> list[int | None]:
    """Per node of the file, the index of the kernel it went into."""
    nodes = profile.graph.node
    kernel_of: list[int | None] = [None] * len(nodes)
    producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    for k, kernel in enumerate(profile.kernels):
        if kernel.owner is not None:
            kernel_of[kernel.owner] = k
    for k, kernel in enumerate(profile.kernels):
        # A Conv that bears the name of a Relu's output: the Conv of the file stands before that Relu.
        i = kernel.owner
        while i is not None and nodes[i].op_type != kernel.op.split("+")[0]:
            i = next((producers[name] for name in nodes[i].input if name in producers), None)
            if i is None or kernel_of[i] not in (None, k):
                break
            kernel_of[i] = k
    for i, node in enumerate(nodes):
        if kernel_of[i] is None:  # fused into what computes its input
            sources = [kernel_of[producers[name]] for name in node.input if name in producers]
            kernel_of[i] = max((k for k in sources if k is not None), default=None)
    return kernel_of


def align(profiles: Sequence[Profile]) -> list[Layer]:
    """Layers of the first model beside those of the others, in the first one's order; theirs alone come last.

    A kernel of another model belongs to the layer that computes the nearest tensor behind it which the first
    model has too: that is how the links of a chain find their Conv.
    """
    first = profiles[0]
    kernel_of = _members(first)
    home = {name: kernel_of[i] for i, node in enumerate(first.graph.node) for name in node.output if name}
    rows: dict[int | str, list[list[Kernel]]] = {
        k: [[kernel], *([] for _ in profiles[1:])]
        for k, kernel in enumerate(first.kernels)
        if kernel.op not in REORDERS
    }
    names = {k: _layer_name(first, kernel_of, k) for k in rows if isinstance(k, int)}
    rows[CONVERSIONS] = [[kernel for kernel in first.kernels if kernel.op in REORDERS]]
    rows[CONVERSIONS] += [[] for _ in profiles[1:]]
    for m, other in enumerate(profiles[1:], 1):
        nearest = _nearest(other.graph, home)
        for kernel in other.kernels:
            place = nearest[kernel.owner] if kernel.owner is not None else None
            key: int | str = CONVERSIONS if kernel.op in REORDERS else kernel.name if place is None else place
            rows.setdefault(key, [[] for _ in profiles])[m].append(kernel)
    return [
        Layer(name=names[key] if isinstance(key, int) else key, kernels=tuple(map(tuple, row)))
        for key, row in rows.items()
        if any(row)
    ]


def _layer_name(profile: Profile, kernel_of: Sequence[int | None], k: int) -> str:
    """The name of the node that the kernel is named for: its Conv, not the Relu behind it."""
    nodes = profile.graph.node
    own = [i for i, kernel in enumerate(kernel_of) if kernel == k]
    op = profile.kernels[k].op.split("+")[0]
    i = next((i for i in own if nodes[i].op_type == op), profile.kernels[k].owner)
    return profile.kernels[k].name if i is None else nodes[i].name or nodes[i].output[0]


def _nearest(graph: GraphProto, home: Mapping[str, int | None]) -> list[int | None]:
    """Per node, the kernel of the first model that computes the nearest tensor at or behind it."""
    readers = defaultdict(list)
    for i, node in enumerate(graph.node):
        for name in node.input:
            readers[name].append(i)

    def search(start: int) -> int | None:
        queue, seen = deque([start]), {start}
        while queue:
            i = queue.popleft()
            for name in graph.node[i].output:
                if home.get(name) is not None:
                    return home[name]
                fresh = [reader for reader in readers[name] if reader not in seen]
                seen.update(fresh)
                queue.extend(fresh)
        return None

    return [search(i) for i in range(len(graph.node))]


def layers_report(
    names: Sequence[str], profiles: Sequence[Profile], layers: Sequence[Layer]
) -> dict[str, Any]:
    """As JSON values, times in milliseconds."""
    return {
        "models": [
            {
                "model": name,
                "layers_ms": 1e3 * each.seconds,
                "profiled_session_ms": 1e3 * each.session,
                "reorders": sum(kernel.op in REORDERS for kernel in each.kernels),
            }
            for name, each in zip(names, profiles, strict=True)
        ],
        "layers": [
            {
                "layer": layer.name,
                "models": [
                    {
                        "ms": 1e3 * layer.seconds(m),
                        "kernels": [kernel.op for kernel in kernels],
                        "blocked": [kernel.blocked for kernel in kernels],
                        "speedup": layer.speedup(m),
                        "slower": layer.slower(m),
                    }
                    for m, kernels in enumerate(layer.kernels)
                ],
            }
            for layer in layers
        ],
    }
