"""Factors of every site with any choice, from statistics gathered once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from onnx import helper

from onnxdecomp.factors import Chain, Floats
from onnxdecomp.fitting import (
    Calibration,
    Head,
    Moments,
    Problem,
    Target,
    arrangement,
    chain_of,
    factor_one,
    shifts_of,
)
from onnxdecomp.ir import Model, load, read_finite_weight, survey
from onnxdecomp.lowering import Splicer
from onnxdecomp.planning import Choice, Policy, find_jobs
from onnxdecomp.sampling import Samples, deal
from onnxdecomp.searching.candidates import Unit
from onnxdecomp.searching.probe import Track, low_rank

_FIELDS = ("x", "y", "xx", "yx", "yy")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """The factors of one unit with one choice: its chain, and what each site's bias becomes."""

    chain: Chain
    biases: tuple[Floats, ...] | None


class Bank:
    """Statistics of all units on disk, and the factors made of them so far in memory.

    Every unit is fitted to what it sees in the original, so that factors go with any choice elsewhere.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        model: Model,
        samples: Samples,
        folder: Path,
        *,
        freeze: bool,
        track: Track,
    ) -> None:
        """
        Args:
            units: in graph order.
            model: the original.
            samples: the first fold of them is left out, to judge factors on.
            folder: for the statistics.
            freeze: treat biases that callers may override as constant.
            track: wraps the units, to show progress.
        """
        self._units, self._model, self._folder, self._freeze = units, model, folder, freeze
        self._targets: dict[int, tuple[Target, tuple[Head, ...]]] = {}
        self._solved: dict[tuple[int, Choice], Solved | None] = {}
        self.judges = deal(samples)[0]
        numbers = {unit.name: i for i, unit in enumerate(units)}
        with Calibration(model, samples, folder, freeze=freeze, sequential=False) as calibration:
            calibration.announce([unit.job for unit in units])
            for unit in track(units, "gathering statistics"):
                prepared = calibration.prepare(unit.job)
                if not isinstance(prepared, str) and isinstance(prepared.target, Target):
                    self._keep(numbers[unit.name], prepared.target, prepared.heads)
                calibration.leave(unit.job)

    def _keep(self, number: int, target: Target, heads: tuple[Head, ...]) -> None:
        for group, moments in enumerate(target.rest(0)):
            arrays = {name: getattr(moments, name).astype(np.float32) for name in _FIELDS}
            np.savez(self._file(number, group), count=moments.count, **arrays)
        self._targets[number] = (dataclasses.replace(target, moments=()), heads)

    def _file(self, number: int, group: int) -> Path:
        return self._folder / f"moments-{number}-{group}.npz"

    def _moments(self, number: int) -> Iterator[Moments]:
        for group in range(self._units[number].job.groups):
            with np.load(self._file(number, group)) as stored:
                arrays = (stored[name].astype(np.float64) for name in _FIELDS)
                yield Moments(int(stored["count"]), *arrays)

    def solve(self, number: int, choice: Choice) -> Solved | None:
        """The factors of a unit with a choice; None where they do not fit its element type."""
        key = (number, choice)
        if key not in self._solved:
            self._solved[key] = self._fit(number, choice)
        return self._solved[key]

    def _fit(self, number: int, choice: Choice) -> Solved | None:
        unit = self._units[number]
        dtype = helper.tensor_dtype_to_np_dtype(unit.job.weight.data_type)
        if number not in self._targets:
            weight = read_finite_weight(unit.job.anchors[0], self._model.folder)
            plain = factor_one(weight, choice, unit.job.groups, dtype)
            return None if isinstance(plain, str) else Solved(plain.chain, None)
        target, heads = self._targets[number]
        placed = arrangement(choice, target.weight.shape[2:], target.weight.shape[1])
        if placed is None:
            raise ValueError(f"{choice.method} has no fit")
        moments = list(self._moments(number))
        parts = low_rank(placed, target, [Problem.of(each, centred=target.centred) for each in moments])
        chain = chain_of(choice, parts, target.weight.shape).cast(dtype)
        if not chain.finite():
            return None
        shifts = shifts_of(moments, [placed.restored(part.weight()) for part in parts], target.centred)
        moved = [shift for shift in shifts if shift is not None]
        biases = tuple(head.bias + head.scale * np.concatenate(moved) for head in heads) if moved else None
        return Solved(chain, biases)

    def build(self, taken: Sequence[Choice | None]) -> Model:
        """The model with the factors of these choices, one per unit; None keeps it."""
        path = self._model.path
        if path is None:
            raise ValueError("the model was not loaded from a file")
        edited = load(path)
        found = survey(edited, input_shapes={}, freeze=self._freeze, fold_bn=True, linear=True)
        splicer = Splicer(edited, found, self._folder)
        decisions: dict[str, Choice | str] = dict.fromkeys(found.names(), "kept")
        for unit, choice in zip(self._units, taken, strict=True):
            if choice is not None:
                decisions |= {site.name: choice for site in unit.sites}
        numbers = {unit.name: i for i, unit in enumerate(self._units)}
        for job in find_jobs(found, decisions, Policy()):
            number = numbers[job.anchors[0].site.name]
            solved = self.solve(number, job.choices[0])
            if solved is not None:
                splicer.install(job, solved.chain, solved.biases)
        return splicer.finish()
