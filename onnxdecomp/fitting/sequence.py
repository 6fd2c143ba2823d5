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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from operator import attrgetter
from pathlib import Path

import numpy as np

from onnxdecomp.comparing import Tally
from onnxdecomp.factors import Floats
from onnxdecomp.fitting.gathering import BLIND, Prepared, gather
from onnxdecomp.fitting.heads import Head, blocks, find_head
from onnxdecomp.fitting.outcome import Factors, Fit
from onnxdecomp.fitting.plain import factor_one
from onnxdecomp.fitting.ridges import best_factors
from onnxdecomp.fitting.target import Target
from onnxdecomp.fitting.wide import PatchBlock, WideTarget, best_wide_factors
from onnxdecomp.ir import Anchor, Array, NotFiniteError, Survey, read_finite_weight
from onnxdecomp.lowering import lower_chain, lower_weights
from onnxdecomp.planning import Unit
from onnxdecomp.progress import Progress, tracked
from onnxdecomp.runtime import Flow, Walk, find_sights
from onnxdecomp.sampling import Samples, deal

_BATCH = 16


def fit_all(
    units: Sequence[Unit], found: Survey, samples: Samples, scratch: Path | None
) -> Iterator[Factors | str]:
    """Fit the factors of every unit, or say why there are none; results come in order.

    Args:
        units: in graph order.
        found: of the original.
        samples: of its inputs, two or more.
        scratch: folder for activations; None is the system's.

    Raises:
        UsageError: too few samples.
        RunError, MissingExtraError: ONNX Runtime does not run the model on them.
    """
    with Calibration(found, samples, scratch) as calibration:
        yield from calibration.fit_all(units)


class Calibration:
    """The original model and the model rewritten so far, walked together over samples.

    Where it is not `sequential`, nothing is rewritten and there is one walk: of the original.
    """

    def __init__(
        self, found: Survey, samples: Samples, scratch: Path | None, *, sequential: bool = True
    ) -> None:
        folds = deal(samples)
        model = found.model
        self._model, self._constants = model, found.constants
        self._sights, self._flow = find_sights(model.proto), Flow.of(model.proto)
        self._folds = [fold for fold, part in enumerate(folds) for _ in part.batches(_BATCH)]
        with ExitStack() as stack:
            walks = [
                stack.enter_context(
                    Walk(
                        self._model.proto,
                        self._model.folder,
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

    def fit_all(self, units: Sequence[Unit]) -> Iterator[Factors | str]:
        """The factors of every unit, in order, which must be that of the graph; or why there are none."""
        self._announce(units)
        for unit in units:
            self._ahead -= {id(anchor.node) for anchor in unit.anchors}
            outcome = self._fit(unit)
            if isinstance(outcome, Factors):
                self._install(unit, outcome)
            yield outcome

    def visits(
        self, units: Sequence[Unit], stage: str, progress: Progress
    ) -> Iterator[tuple[Unit, Prepared | str]]:
        """Walk from unit to unit, which stay as they are, with what each is fitted to.

        Args:
            units: in graph order.
            stage: what it is done for.
            progress: told of every unit that is done.
        """
        self._announce(units)
        for unit in tracked(units, stage, progress, attrgetter("name")):
            yield unit, self._prepare(unit)
            self._ahead -= {id(anchor.node) for anchor in unit.anchors}
            for anchor in unit.anchors:
                for name in (anchor.node.input[0], anchor.output):
                    self._after.forget(name)

    def _prepare(self, unit: Unit) -> Prepared | str:
        """Walk on to a unit and gather what it is fitted to; or why it is left as it is."""
        try:
            weight = read_finite_weight(unit.lead, self._model.folder)
        except NotFiniteError as error:
            return str(error)
        found = [self._head(anchor) for anchor in unit.anchors]
        heads = [head for head in found if isinstance(head, Head)]
        reasons = [head for head in found if isinstance(head, str)]
        target = reasons[0] if reasons else self._target(unit, weight, heads)
        if isinstance(target, Target) and target.blind():
            for head in heads:
                self._before.forget(head.output)
            return BLIND
        return Prepared(weight=weight, heads=tuple(heads), target=target)

    def output_errors(
        self,
        heads: Sequence[Head],
        change: Callable[[Head, Array, Array], Array],
        runs: int,
    ) -> float:
        """What the model's outputs lose where the output of sites is another; see `Tally.share`.

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
            names = self._before.behind(head.output, self._sights.names)
            replay = self._before.replay(head.output, names)
            tallies = [Tally() for _ in names]
            for run in numbers:
                x, y = (self._before.value(n, run) for n in (head.anchor.node.input[0], head.output))
                for tally, a, b in zip(tallies, replay(run, y), replay(run, change(head, x, y)), strict=True):
                    tally.add(a, b)
            total += sum(tally.share for tally in tallies) / len(self._sights.names)
        return total * len(heads) / len(reached)

    def _announce(self, units: Sequence[Unit]) -> None:
        """Say which units are still to come."""
        self._ahead = {id(anchor.node) for unit in units for anchor in unit.anchors}

    def _fit(self, unit: Unit) -> Factors | str:
        dtype = unit.weight.factor_dtype
        prepared = self._prepare(unit)
        if isinstance(prepared, str):
            return prepared
        weight, heads, target = prepared.weight, prepared.heads, prepared.target
        found = [factor_one(weight, choice, unit.groups, dtype) for choice in unit.choices]
        plain = [each for each in found if isinstance(each, Factors)]
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
        if not anchor.scope.path and anchor.node.input[0] in self._flow.barred:
            return "it follows from an operator that nothing here runs"
        if not anchor.scope.path and anchor.node.input[0] in self._flow.sized:
            return "how much it sees depends on data, and on what is rewritten before it"
        return find_head(anchor, self._model.folder, self._constants)

    def _target(self, unit: Unit, weight: Floats, heads: Sequence[Head]) -> Target | WideTarget | str:
        """What a unit is fitted to, over sites that follow from no site still to do."""
        undone = self._ahead | {id(head.anchor.node) for head in heads}
        lead = heads[0]
        apart = [h for h in heads if h is lead or not undone & self._after.leads_to(h.anchor.node.input[0])]
        folds = max(self._folds) + 1
        return gather(
            lambda: self._blocks(apart, weight, unit.groups, undone), weight, unit.groups, lead, folds
        )

    def _blocks(
        self, heads: Sequence[Head], weight: Floats, groups: int, undone: set[int]
    ) -> Iterator[PatchBlock]:
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

    def _install(self, unit: Unit, outcome: Factors) -> None:
        """Go on with the chains in the place of a unit's sites."""
        chain = outcome.chain
        for i, anchor in enumerate(unit.anchors):
            if anchor.scope.path or anchor.scope.graph is None:
                continue
            self._count += 1
            fresh = f"onnxdecomp/{self._count}/{{}}".format
            names = [fresh(f"{link.role}.weight") for link in chain.links]
            lowered = lower_chain(
                anchor,
                chain,
                names,
                bias=outcome.biases[i] if outcome.biases is not None else None,
                folder=self._model.folder,
                fresh=fresh,
            )
            weights = lower_weights(anchor, chain, names)
            self._after.exchange(lowered.replaced, lowered.nodes, [*weights, *lowered.tensors])
