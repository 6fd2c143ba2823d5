"""Where a model's time goes, layer by layer, before and after a rewrite.

One row holds a layer in all models.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import GraphProto

from onnxdecomp.runtime import REORDERS
from onnxdecomp.timing.kernels import Kernel, Profile

# A layer is called slower where it lost more than this share: less is noise.
SLOWER = 0.05
_RESOLUTION = 10e-6  # the profile counts in microseconds
CONVERSIONS = "layout conversions"


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
    model has too: that is how the links of a chain find their Conv. What is fused into a kernel goes with it:
    the last 1×1 of a chain takes in the Relu that a ConvTranspose leaves to itself.
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
        nearest, kernel_of = _nearest(other.graph, home), _members(other)
        for k, kernel in enumerate(other.kernels):
            lead = _lead(other, kernel_of, k)
            place = nearest[lead] if lead is not None else None
            key: int | str = CONVERSIONS if kernel.op in REORDERS else kernel.name if place is None else place
            rows.setdefault(key, [[] for _ in profiles])[m].append(kernel)
    return [
        Layer(name=names[key] if isinstance(key, int) else key, kernels=tuple(map(tuple, row)))
        for key, row in rows.items()
        if any(row)
    ]


def _layer_name(profile: Profile, kernel_of: Sequence[int | None], k: int) -> str:
    nodes, i = profile.graph.node, _lead(profile, kernel_of, k)
    return profile.kernels[k].name if i is None else nodes[i].name or nodes[i].output[0]


def _lead(profile: Profile, kernel_of: Sequence[int | None], k: int) -> int | None:
    """The node of the file that a kernel is named for: its Conv, not the Relu behind it."""
    nodes = profile.graph.node
    own = [i for i, kernel in enumerate(kernel_of) if kernel == k]
    op = profile.kernels[k].op.split("+")[0]
    return next((i for i in own if nodes[i].op_type == op), profile.kernels[k].owner)


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTable:
    """The layers of several models side by side.

    Attributes:
        names: of the models.
        profiles: of the models.
        layers: as `align` puts the profiles beside each other.
    """

    names: tuple[str, ...]
    profiles: tuple[Profile, ...]
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, names: Sequence[str], profiles: Sequence[Profile]) -> LayerTable:
        """The table that comes of profiles."""
        return cls(names=tuple(names), profiles=tuple(profiles), layers=tuple(align(profiles)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, times in milliseconds."""
        return {
            "models": [
                {
                    "model": name,
                    "layers_ms": 1e3 * each.seconds,
                    "profiled_session_ms": 1e3 * each.session,
                    "reorders": each.reorders,
                }
                for name, each in zip(self.names, self.profiles, strict=True)
            ],
            "layers": [
                {
                    "layer": layer.name,
                    "models": [_in_model(layer, m) for m in range(len(layer.kernels))],
                }
                for layer in self.layers
            ],
        }


def _in_model(layer: Layer, model: int) -> dict[str, Any]:
    kernels = layer.kernels[model]
    return {
        "ms": 1e3 * layer.seconds(model),
        "kernels": [kernel.op for kernel in kernels],
        "blocked": [kernel.blocked for kernel in kernels],
        "speedup": layer.speedup(model),
        "slower": layer.slower(model),
    }
