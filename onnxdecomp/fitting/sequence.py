"""Factors fitted to the inputs a model really sees, site by site in topological order.

Plain factors minimise the error of the weights; these minimise the error of the outputs: each chain is fitted
by least squares to what its Conv put out in the original model, given what reaches it in the model rewritten
so far (asymmetric reconstruction: Zhang, Zou, He, Sun 2016, IEEE TPAMI 38). The last Conv before a residual
Add makes up for what the other branch has lost, too. No labels, no gradients.

The ridge of each site is chosen on folds of the samples, and its plain factors stay where those do better
there. Sites inside other nodes' graphs and in functions, and CP chains, keep plain factors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from onnx import helper

from onnxdecomp.comparing import Deviation
from onnxdecomp.factors import Floats
from onnxdecomp.fitting.heads import Head, blocks
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.outcome import Factored, Fit
from onnxdecomp.fitting.plain import factor_one
from onnxdecomp.fitting.ridges import Target, best_factors
from onnxdecomp.fitting.wide import Block, WideTarget, best_wide_factors
from onnxdecomp.ir import Anchor, Array, Constant, Model, NotFiniteError, find_constant, read_finite_weight
from onnxdecomp.lowering import Wiring, chain_nodes, constant_tensor
from onnxdecomp.planning import Job
from onnxdecomp.runtime import Walk
from onnxdecomp.sampling import Samples, deal

# Above so many values in a patch, factors are judged on one of the folds only: more take time, and change
# nothing.
_ONE_FOLD = 512
# Above so many, only the covariance of the channels is used.
WIDEST_PATCH = 8192
_BATCH = 16


def fit_all(
    jobs: Sequence[Job], model: Model, samples: Samples, scratch: Path | None, *, freeze: bool
) -> Iterator[Factored | str]:
    """Fit the factors of every job, or say why there are none; results come in order.

    Args:
        jobs: in graph order.
        model: the original.
        samples: of its inputs, two or more.
        scratch: folder for activations; None is the system's.
        freeze: treat biases that callers may override as constant.

    Raises:
        UsageError: too few samples.
        RunError, MissingExtraError: ONNX Runtime does not run the model on them.
    """
    with Calibration(model, samples, scratch, freeze=freeze) as calibration:
        yield from calibration.fit_all(jobs)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """What a job is fitted to.

    Attributes:
        weight: the original, in float64, shape (D, C / groups, *kernel).
        heads: of its sites, those that can be fitted.
        target: the moments, or why there are none.
    """

    weight: Floats
    heads: tuple[Head, ...]
    target: Target | WideTarget | str


class Calibration:
    """The original model and the model rewritten so far, walked together over samples.

    Where it is not `sequential`, nothing is rewritten and there is one walk: of the original.
    """

    def __init__(
        self, model: Model, samples: Samples, scratch: Path | None, *, freeze: bool, sequential: bool = True
    ) -> None:
        folds = deal(samples)
        self._model, self._freeze = model, freeze
        self._folds = [fold for fold, part in enumerate(folds) for _ in part.batches(_BATCH)]
        with ExitStack() as stack:
            walks = [
                stack.enter_context(
                    Walk(
                        model.proto,
                        model.folder,
                        chain.from_iterable(p.batches(_BATCH) for p in folds),
                        scratch,
                    )
                )
                for _ in range(2 if sequential else 1)
            ]
            self._walks = stack.pop_all()
        self._before, self._after = walks[0], walks[-1]
        self._count = 0
        self._ahead: set[int] = set()

    def __enter__(self) -> Calibration:
        return self

    def __exit__(self, *details: object) -> None:
        self._walks.close()

    def fit_all(self, jobs: Sequence[Job]) -> Iterator[Factored | str]:
        """The factors of every job, in order, which must be that of the graph; or why there are none."""
        self.announce(jobs)
        for job in jobs:
            self._ahead -= {id(anchor.node) for anchor in job.anchors}
            outcome = self._fit(job)
            if isinstance(outcome, Factored):
                self._install(job, outcome)
            yield outcome

    def prepare(self, job: Job) -> Prepared | str:
        """Walk on to a job and gather what it is fitted to; or why it has no factors at all."""
        try:
            weight = read_finite_weight(job.anchors[0], self._model.folder)
        except NotFiniteError as error:
            return str(error)
        found = [self._head(anchor) for anchor in job.anchors]
        heads = [head for head in found if isinstance(head, Head)]
        reasons = [head for head in found if isinstance(head, str)]
        target = reasons[0] if reasons else self._target(job, weight, heads)
        return Prepared(weight=weight, heads=tuple(heads), target=target)

    def announce(self, jobs: Sequence[Job]) -> None:
        """Say which jobs `prepare` will be called for."""
        self._ahead = {id(anchor.node) for job in jobs for anchor in job.anchors}

    def leave(self, job: Job) -> None:
        """Go on from a job that was prepared, its sites as they are."""
        self._ahead -= {id(anchor.node) for anchor in job.anchors}
        for anchor in job.anchors:
            for name in (anchor.node.input[0], anchor.output):
                self._after.forget(name)

    def output_errors(
        self,
        heads: Sequence[Head],
        change: Callable[[Head, Array, Array], Array],
        runs: int,
    ) -> float:
        """What the model's outputs lose where the output of sites is another; see `Deviation`.

        Args:
            heads: of the sites, each changed alone; their errors add up.
            change: of a site, its input x and its output y: to the other output.
            runs: of the first fold, at most.
        """
        numbers = [run for run, fold in enumerate(self._folds) if fold == 0][:runs]
        total = 0.0
        # A site behind others is not reached yet: it counts as the reached ones do.
        reached = [head for head in heads if self._before.reached(head.output)]
        for head in reached:
            names = self._before.behind(head.output)
            replay = self._before.replay(head.output, names)
            tallies = [Deviation() for _ in names]
            for run in numbers:
                x, y = (self._before.value(n, run) for n in (head.anchor.node.input[0], head.output))
                for tally, a, b in zip(tallies, replay(run, y), replay(run, change(head, x, y)), strict=True):
                    tally.add(a, b)
            outputs = len(self._model.proto.graph.output)
            total += sum(tally.share for tally in tallies) / outputs
        return total * len(heads) / len(reached)

    def _fit(self, job: Job) -> Factored | str:
        dtype = helper.tensor_dtype_to_np_dtype(job.weight.data_type)
        prepared = self.prepare(job)
        if isinstance(prepared, str):
            return prepared
        weight, heads, target = prepared.weight, prepared.heads, prepared.target
        found = [factor_one(weight, choice, job.groups, dtype) for choice in job.choices]
        plain = [each for each in found if isinstance(each, Factored)]
        if not plain:
            return found[0]
        if isinstance(target, str):
            best = min(plain, key=lambda each: each.errors.weight)
            return dataclasses.replace(best, fit=Fit(plain_because=target))
        fitted = [
            best_wide_factors(each, target, dtype)
            if isinstance(target, WideTarget)
            else best_factors(each, target, dtype)
            for each in plain
        ]
        for head in heads:
            self._before.forget(head.output)
        best, shift, _ = min(fitted, key=lambda pair: pair[2])
        if shift is None:
            return best
        biases = tuple(head.bias + head.scale * shift for head in heads)
        return dataclasses.replace(best, biases=biases)

    def _head(self, anchor: Anchor) -> Head | str:
        """How the output of a site follows from its product W·x, or why it cannot be fitted."""
        if anchor.scope.path or anchor.scope.graph is None:
            return "it stands inside another node's graph or a function"
        outputs = (anchor.site.channels or (0, 0))[1]
        name = None if anchor.batchnorm is not None else (*anchor.node.input[2:3], "")[0] or None
        bias: Floats = np.zeros(outputs)
        if anchor.batchnorm is not None:
            bias = anchor.batchnorm.affine(self._model.folder)[1]
        elif name is not None:
            ir_version = self._model.proto.ir_version
            constant = find_constant(anchor.scope, name, ir_version=ir_version, freeze=self._freeze)
            if not isinstance(constant, Constant):
                return "its bias is no constant"
            values = constant.values(self._model.folder).astype(np.float64)
            if values.size != 1 and (values.size != outputs or values.shape[-1] != outputs):
                return "its bias has a row for each sample"
            bias = np.broadcast_to(values.reshape(-1), (outputs,)).copy()
        output = anchor.output
        if anchor.site.op == "Conv":
            return Head(anchor=anchor, output=output, bias=bias, alpha=1.0, beta=1.0, centred=True)
        scales = {a.name: a.f for a in anchor.node.attribute if a.name in ("alpha", "beta")}
        alpha, beta = scales.get("alpha", 1.0), scales.get("beta", 1.0)
        if not alpha:
            return "its alpha is 0"
        centred = name is not None and beta != 0
        return Head(anchor=anchor, output=output, bias=bias, alpha=alpha, beta=beta, centred=centred)

    def _target(self, job: Job, weight: Floats, heads: Sequence[Head]) -> Target | WideTarget | str:
        """The moments of a job's patches and outputs, over sites that follow from no site still to do."""
        undone = self._ahead | {id(head.anchor.node) for head in heads}
        lead = heads[0]
        apart = [h for h in heads if h is lead or not undone & self._after.leads_to(h.anchor.node.input[0])]
        groups = job.groups
        taps = math.prod(weight.shape[2:])
        inputs, outputs = weight.shape[1] * taps, weight.shape[0] // groups
        added = lead.bias * (lead.beta / lead.alpha)
        if inputs > WIDEST_PATCH:
            return WideTarget(
                blocks=lambda: self._blocks(apart, weight, groups, undone),
                weight=weight,
                groups=groups,
                centred=lead.centred,
                bias=added,
            )
        folds = max(self._folds) + 1
        judged = 1 if inputs > _ONE_FOLD and folds > 2 else folds
        count = min(judged + 1, folds)
        moments = [[Moments.zero(outputs, inputs) for _ in range(groups)] for _ in range(count)]
        for fold, group, x, y in self._blocks(apart, weight, groups, undone):
            parts = moments[min(fold, count - 1)]
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused below
                parts[group] = parts[group].add(x, y)
        if not all(part.finite() for parts in moments for part in parts):
            return "its input or output has NaN or Inf on these samples"
        if not all(parts[0].count for parts in moments):
            return "too few of these samples reach it"
        return Target(
            moments=moments,
            weight=weight,
            centred=lead.centred,
            bias=added,
            alpha=lead.alpha,
            judged=judged if judged < folds else None,
        )

    def _blocks(
        self, heads: Sequence[Head], weight: Floats, groups: int, undone: set[int]
    ) -> Iterator[Block]:
        """Patches and products of sites, block by block, the groups of each block in turn.

        `undone` are the ids of the nodes still to be replaced, those of the heads among them.
        """
        for head in heads:
            source = head.anchor.node.input[0]
            if self._after is self._before:  # it runs past the input before all of that is read
                self._after.hold(source)
                self._after.hold(head.output)
            pairs = zip(self._after.values(source), self._wanted(head, undone), strict=True)
            for fold, (x, y) in zip(self._folds, pairs, strict=True):
                with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused later
                    for i, (patch, product) in enumerate(blocks(head, weight, x, y, groups)):
                        yield fold, i % groups, patch, product

    def _wanted(self, head: Head, undone: set[int]) -> Iterator[Array]:
        """What a site should put out, run by run: what it did, and what its residual branch has lost by now.

        Where an Add joins the output with a tensor that follows from no site still to do, the sum is to be
        that of the original (He, Zhang, Sun 2017, ICCV, section 3.2: Y1 - Y1' + Y2).
        """
        outputs = self._before.values(head.output)
        branch = self._after.added_to(head.output) if self._after is not self._before else None
        if branch is None or undone & self._after.leads_to(branch):
            yield from outputs
            return
        branches = zip(self._before.values(branch), self._after.values(branch), strict=True)
        for y, (was, now) in zip(outputs, branches, strict=True):
            with np.errstate(invalid="ignore", over="ignore"):
                yield np.add(y, np.subtract(was, now)) if was.shape == now.shape == y.shape else y

    def _install(self, job: Job, outcome: Factored) -> None:
        """Go on with the chains in the place of a job's sites."""
        values = [link.weight.T if job.transposed else link.weight for link in outcome.chain.links]
        for i, anchor in enumerate(job.anchors):
            if anchor.scope.path or anchor.scope.graph is None:
                continue
            self._count += 1
            prefix = f"onnxdecomp/{self._count}"
            nodes = tuple(f"{prefix}/{link.role}" for link in outcome.chain.links)
            weights = dict(zip((f"{node}.weight" for node in nodes), values, strict=True))
            replaced = [anchor.node, *([anchor.batchnorm.node] if anchor.batchnorm is not None else [])]
            bias = anchor.node.input[2] if len(anchor.node.input) > 2 and anchor.node.input[2] else None
            named = tuple(weights)
            if outcome.biases is not None:
                bias = f"{prefix}.bias"
                weights[bias] = outcome.biases[i]
            elif anchor.batchnorm is not None:
                bias = f"{prefix}.bias"
                weights[bias] = anchor.batchnorm.affine(self._model.folder)[1]
            zeros = None
            if anchor.site.op == "Gemm" and anchor.scope.opset < 11:
                zeros = f"{prefix}.zeros"
                weights[zeros] = np.zeros(len(outcome.chain.links[0].weight))
            wiring = Wiring(
                nodes=nodes,
                weights=named,
                inner=tuple(f"{node}_output" for node in nodes[:-1]),
                output=replaced[-1].output[0],
                bias=bias,
                zeros=zeros,
            )
            tensors = [constant_tensor(name, array, job.weight.data_type) for name, array in weights.items()]
            self._after.exchange(replaced, chain_nodes(anchor.node, outcome.chain.links, wiring), tensors)
