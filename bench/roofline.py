"""How long ONNX Runtime's blocked CPU kernels take for a Conv, from its shape alone.

The time of a model is a sum over what its kernels do, each kind of work at a cost of its own:

    seconds = Σ_term cost[term] · count[term]

The counts follow the loops of ONNX Runtime's MLAS library (`snchwc.cpp`, `SconvKernelAvx512F.S`,
`SconvKernelFma3.S`). Channels are padded to blocks of B = 16 (AVX-512) or 8 (AVX2): the padding is work like
any other. One step of a kernel multiplies one input channel at one tap into up to four output blocks of up to
six (AVX2: three) positions. It costs its multiplications and something of its own, which a rank of one block
or a narrow map spreads over few of them. The costs are fitted to measured times, for any one number of
threads; of the machine, only B and the size of its first-level cache are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from onnxdecomp.runtime import vector_extensions

Floats = NDArray[np.float64]
Work = Mapping[str, float]

# What is counted, and so what is fitted a cost to, seconds each.
TERMS: Mapping[str, str] = {
    "run": "a call of the session",
    "node": "a node of the graph, conversions of the layout included",
    "spatial_fma": "k×k and direct kernels: a vector of B multiply-accumulates",
    "spatial_step": "k×k and direct kernels: an input channel at a tap, for one tile of the output",
    "pointwise_fma": "1×1 kernel: a vector of B multiply-accumulates",
    "pointwise_step": "1×1 kernel: an input channel, for one tile of the output",
    "tile": "a tile of the output, fetched and stored; once per pass over it",
    "gemm_fma": "Convs outside the blocked layout: a vector of B multiply-accumulates",
    "unfolded": "Convs outside the blocked layout: a number copied into patches (im2col)",
    "weight_bytes": "weights read once, bytes",
    "reread_bytes": "k×k kernel: weights read again for a row of the map, L1 not holding them, bytes",
    "reordered": "a number moved between the plain and the blocked layout",
}
FILTER_BLOCKS = 4  # output blocks that a kernel handles together
POINTWISE_CHANNELS = 128  # input channels per pass of the 1×1 kernel over the output


_L1 = Path("/sys/devices/system/cpu/cpu0/cache/index0/size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the counts depend on.

    Attributes:
        block: channels in a block of ONNX Runtime's layout.
        l1: bytes of a core's first-level data cache.
    """

    block: int
    l1: int = 32 * 1024


def this_machine() -> Machine:
    """The CPU that this runs on.

    Raises:
        NotImplementedError: not x86 with AVX2 or AVX-512.
    """
    extensions = vector_extensions()
    if not {"avx2", "avx512f"} & set(extensions):
        raise NotImplementedError("the blocked layout is modelled for AVX2 and AVX-512 only")
    block = 16 if "avx512f" in extensions else 8
    if not _L1.exists():
        return Machine(block=block)
    return Machine(block=block, l1=1024 * int(_L1.read_text().strip().removesuffix("K")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv:
    """A Conv of stride 1 that keeps the map's size: input (1, inputs, size, size).

    Attributes:
        inputs: channels.
        outputs: channels.
        kernel: rows and columns of the kernel, odd.
        size: rows and columns of the map.
    """

    inputs: int
    outputs: int
    kernel: int
    size: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates without padding."""
        return self.inputs * self.outputs * (self.kernel * self.size) ** 2


def chain(conv: Conv, rank: int) -> tuple[Conv, ...]:
    """What replaces `conv` at one rank on both modes: Tucker-2, or two factors where the kernel is 1×1."""
    first = Conv(inputs=conv.inputs, outputs=rank, kernel=1, size=conv.size)
    core = Conv(inputs=rank, outputs=rank, kernel=conv.kernel, size=conv.size)
    last = Conv(inputs=rank, outputs=conv.outputs, kernel=1, size=conv.size)
    return (first, last) if conv.kernel == 1 else (first, core, last)


def padded(channels: int, block: int) -> int:
    """Channels rounded up to whole blocks."""
    return -(-channels // block) * block


def padded_macs(conv: Conv, block: int) -> int:
    """Multiply-accumulates that the blocked kernels make of `conv`, the padding of its channels included."""
    inputs = conv.inputs if kernel_class(conv, block) == "direct" else padded(conv.inputs, block)
    return inputs * padded(conv.outputs, block) * (conv.kernel * conv.size) ** 2


def kernel_class(conv: Conv, block: int) -> str:
    """The kernel ONNX Runtime takes, by the input channels (`nchwc_transformer.cc`).

    "direct" reads the plain layout and writes the blocked one; "gemm" stays outside the blocked layout.
    """
    if conv.inputs < block:
        return "direct"
    if conv.inputs % 4:
        return "gemm"
    return "pointwise" if conv.kernel == 1 else "spatial"


def reorders(convs: Sequence[Conv], block: int) -> list[int]:
    """Numbers moved by each node that converts the layout of a chain whose input and output are plain."""
    moved = []
    blocked = False
    for conv in convs:
        kind = kernel_class(conv, block)
        wants = kind in ("pointwise", "spatial")
        if wants != blocked:
            moved.append(padded(conv.inputs, block) * conv.size**2)
        blocked = kind != "gemm"
    if blocked:
        moved.append(padded(convs[-1].outputs, block) * convs[-1].size ** 2)
    return moved


def tiles(positions: int, block: int) -> list[int]:
    """How a kernel cuts a run of output positions: by six (AVX2: three), the rest by fewer."""
    widths = (6, 3, 2, 1) if block == 16 else (3, 2, 1)
    cut = []
    for width in widths:
        cut += [width] * (positions // width)
        positions %= width
    return cut


def filter_groups(outputs: int, block: int) -> list[int]:
    """Output blocks handled together: fours and a rest."""
    blocks = -(-outputs // block)
    rest = blocks % FILTER_BLOCKS
    return [FILTER_BLOCKS] * (blocks // FILTER_BLOCKS) + [rest] * (rest > 0)


def node_work(conv: Conv, machine: Machine) -> Work:
    """What the kernel of one Conv does."""
    kind = kernel_class(conv, machine.block)
    count = {"pointwise": _pointwise, "spatial": _spatial, "direct": _spatial, "gemm": _gemm}[kind]
    return Counter(count(conv, machine)) + Counter({"node": 1.0})


def _pointwise(conv: Conv, machine: Machine) -> dict[str, float]:
    block = machine.block
    groups, cut = filter_groups(conv.outputs, block), tiles(conv.size**2, block)
    inputs = padded(conv.inputs, block)
    return {
        "pointwise_fma": inputs * sum(groups) * sum(cut),
        "pointwise_step": inputs * len(groups) * len(cut),
        "tile": -(-inputs // POINTWISE_CHANNELS) * sum(groups) * len(cut),
        "weight_bytes": 4 * inputs * padded(conv.outputs, block),
    }


def _spatial(conv: Conv, machine: Machine) -> dict[str, float]:
    """The direct kernel goes over the output once per input channel, the blocked one once per input block."""
    block = machine.block
    direct = kernel_class(conv, block) == "direct"
    inputs = conv.inputs if direct else padded(conv.inputs, block)
    passes = inputs if direct else inputs // block
    groups = filter_groups(conv.outputs, block)
    half = conv.kernel // 2
    # Tiles of a row: (positions, taps that lie inside the map). Those at the edges are handled one by one.
    edge = [(1, conv.kernel - half + i) for i in range(half)]
    row = [*edge, *((width, conv.kernel) for width in tiles(conv.size - 2 * half, block)), *edge]
    rows = conv.kernel * conv.size - 2 * sum(half - i for i in range(half))
    weights = [4 * inputs * each * block * conv.kernel**2 for each in groups]
    # The blocked kernel goes through all rows before it takes the weights of the next pass.
    reread = sum(each for each in weights if each > machine.l1 * (1 if direct else passes))
    return {
        "spatial_fma": inputs * sum(groups) * rows * sum(width * taps for width, taps in row),
        "spatial_step": inputs * len(groups) * rows * sum(taps for _, taps in row),
        "tile": passes * sum(groups) * conv.size * len(row),
        "weight_bytes": sum(weights),
        "reread_bytes": reread * rows / conv.kernel,
    }


def _gemm(conv: Conv, machine: Machine) -> dict[str, float]:
    """The product of (outputs, inputs·k²) and (inputs·k², positions), positions padded to whole vectors."""
    block = machine.block
    depth, positions = conv.inputs * conv.kernel**2, padded(conv.size**2, block)
    return {
        "gemm_fma": conv.outputs * depth * positions / block,
        "unfolded": depth * positions,
        "weight_bytes": 4 * conv.outputs * depth,
    }


def work(convs: Sequence[Conv], machine: Machine) -> Work:
    """What a model of these Convs, one behind the other, does: its nodes and its conversions of layout."""
    total = Counter({"run": 1.0})
    for conv in convs:
        total += Counter(node_work(conv, machine))
    for moved in reorders(convs, machine.block):
        total += Counter({"node": 1.0, "reordered": moved})
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Costs of a machine.

    Attributes:
        machine: which one.
        costs: seconds per term of TERMS.
    """

    machine: Machine
    costs: Mapping[str, float]

    def seconds(self, convs: Sequence[Conv]) -> float:
        """The predicted time of a model of these Convs, one behind the other."""
        return self.seconds_of(work(convs, self.machine))

    def seconds_of(self, counts: Work) -> float:
        """The predicted time of some work."""
        return sum(self.costs[term] * count for term, count in counts.items())


def fit(models: Sequence[Sequence[Conv]], seconds: Sequence[float], machine: Machine) -> Roofline:
    """The costs, none of them negative, that minimise the squared relative errors of the predicted times."""
    counts = [work(convs, machine) for convs in models]
    table = np.array([[each.get(term, 0.0) for term in TERMS] for each in counts])
    measured = np.asarray(seconds, np.float64)
    relative: Floats = table / measured[:, None]
    scale = np.maximum(np.abs(relative).max(axis=0), np.finfo(float).tiny)
    found, _ = nnls(relative / scale, np.ones(len(measured)))
    return Roofline(machine=machine, costs=dict(zip(TERMS, (found / scale).tolist(), strict=True)))
