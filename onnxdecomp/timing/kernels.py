"""Where a model's time goes in ONNX Runtime, kernel by kernel.

ONNX Runtime says how long each node of *its* graph took: there Convs have swallowed what follows them. Each
is traced back to the node of the file that it computes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto

from onnxdecomp.errors import UsageError
from onnxdecomp.ir import scratch_folder
from onnxdecomp.progress import Progress, silent, tracked
from onnxdecomp.runtime import BLOCKED_DOMAIN, REORDERS, Engine, Feeds, onnxruntime, open_session, run_errors
from onnxdecomp.timing.copies import named
from onnxdecomp.timing.racing import WARMUP_RUNS
from onnxdecomp.timing.subjects import Subject

ROUNDS = 3
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
        graph: the file's main graph, every node with a name of its own.
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

    @property
    def reorders(self) -> int:
        """How many kernels convert between layouts."""
        return sum(kernel.op in REORDERS for kernel in self.kernels)


def require_profile(engine: Engine) -> None:
    """Refuse, before any work is done, what cannot be profiled.

    Raises:
        UsageError: the provider is not the CPU: others report when a kernel was launched, not its time.
    """
    if engine.provider != "CPUExecutionProvider":
        raise UsageError(
            "`per_layer` needs `providers` cpu: elsewhere ONNX Runtime's profile tells when kernels were "
            "launched, not how long they ran"
        )


def profile(
    subjects: Sequence[Subject],
    engine: Engine,
    feeds: Sequence[Feeds],
    runs: int = 20,
    *,
    progress: Progress = silent,
) -> list[Profile]:
    """Profile models in turns, a few sessions of each.

    Args:
        subjects: the models.
        engine: how to run them.
        feeds: one set of inputs per model.
        runs: of each session.
        progress: is told the sessions done.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        RunError: a model does not load or run.
        UsageError: as `require_profile`.
    """
    onnxruntime()
    require_profile(engine)
    with scratch_folder() as scratch:
        files = [named(each, scratch / f"{i}.onnx") for i, each in enumerate(subjects)]
        events: list[list[dict[str, Any]]] = [[] for _ in subjects]
        turns = [(turn, i) for turn in range(ROUNDS) for i in range(len(subjects))]
        for turn, i in tracked(turns, "profiling the layers", progress, lambda turn: subjects[turn[1]].name):
            events[i] += _events(files[i][0], engine, feeds[i], runs, scratch / f"{i}-{turn}")
        return [
            _profile(graph, found, scratch / f"{i}-0.onnx")
            for i, ((_, graph), found) in enumerate(zip(files, events, strict=True))
        ]


def _events(path: Path, engine: Engine, feeds: Feeds, runs: int, stem: Path) -> list[dict[str, Any]]:
    """The runs of one session after those that warm up, and the nodes of the main graph in them."""
    with run_errors(f"ONNX Runtime does not run {path.name}"):
        session = open_session(str(path), engine, optimised=str(stem.with_suffix(".onnx")), profile=str(stem))
        for _ in range(WARMUP_RUNS + runs):
            session.run(None, dict(feeds))
        written = Path(session.end_profiling())
    events = json.loads(written.read_text(encoding="utf-8"))
    starts = [event["ts"] for event in events if event["name"] == "model_run"]
    begin = sorted(starts)[WARMUP_RUNS]
    events = [event for event in events if event["ts"] >= begin]
    # Every session has a clock of its own, so which node encloses which is to be told here.
    return [
        *(event for event in events if event["name"] == "model_run"),
        *_outermost([event for event in events if event["cat"] == "Node"]),
    ]


def _profile(graph: GraphProto, events: Sequence[dict[str, Any]], optimised: Path) -> Profile:
    running = onnx.load(optimised, load_external_data=False).graph
    times: defaultdict[str, list[float]] = defaultdict(list)
    runs: list[float] = []
    for event in events:
        own = runs if event["name"] == "model_run" else times[event["name"].removesuffix("_kernel_time")]
        own.append(event["dur"] * 1e-6)
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
    return Profile(graph=graph, kernels=tuple(kernels), session=float(np.median(runs)))


def _outermost(events: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Without the nodes of If, Loop and Scan bodies: their time is in that of the node around them."""
    end = -1
    for event in sorted(events, key=lambda each: (each["ts"], -each["dur"])):
        if event["ts"] >= end:
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
