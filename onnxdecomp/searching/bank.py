"""Factors of every site with any choice, from statistics gathered once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from onnxdecomp.fitting import (
    Calibration,
    Factors,
    Head,
    Moments,
    Problem,
    Target,
    arrangement,
    chain_of,
    factor_one,
    find_errors,
    shifts_of,
)
from onnxdecomp.ir import Model, Survey, explained, read_finite_weight
from onnxdecomp.lowering import Splicer
from onnxdecomp.planning import Choice, Unit
from onnxdecomp.progress import Progress
from onnxdecomp.sampling import Samples, deal
from onnxdecomp.searching.probe import low_rank

_FIELDS = ("x", "y", "xx", "yx", "yy")


class Bank:
    """Statistics of all units on disk, and the factors made of them so far in memory.

    Every unit is fitted to what it sees in the original, so that factors go with any choice elsewhere.
    """

    def __init__(
        self, found: Survey, units: Sequence[Unit], samples: Samples, folder: Path, progress: Progress
    ) -> None:
        """
        Args:
            found: the survey of the original.
            units: of its sites, in graph order.
            samples: the first fold of them is left out, to judge factors on.
            folder: for the statistics.
            progress: told of every unit that is done.

        Raises:
            OutputError: the folder cannot take them.
        """
        self._found, self._units, self._folder = found, units, folder
        self._targets: dict[int, tuple[Target, tuple[Head, ...]]] = {}
        self._solved: dict[tuple[int, Choice], Factors | None] = {}
        self.judges = deal(samples)[0]
        numbers = {unit.name: i for i, unit in enumerate(units)}
        with Calibration(found, samples, folder, sequential=False) as calibration:
            for unit, prepared in calibration.visits(units, "gathering statistics", progress):
                if not isinstance(prepared, str) and isinstance(prepared.target, Target):
                    self._keep(numbers[unit.name], prepared.target, prepared.heads)

    def _keep(self, number: int, target: Target, heads: tuple[Head, ...]) -> None:
        for group, moments in enumerate(target.rest(0)):
            arrays = {name: getattr(moments, name).astype(np.float32) for name in _FIELDS}
            with explained(self._folder.parent):
                np.savez(self._file(number, group), count=moments.count, **arrays)
        self._targets[number] = (dataclasses.replace(target, moments=()), heads)

    def _file(self, number: int, group: int) -> Path:
        return self._folder / f"moments-{number}-{group}.npz"

    def _moments(self, number: int) -> Iterator[Moments]:
        for group in range(self._units[number].groups):
            with np.load(self._file(number, group)) as stored:
                arrays = (stored[name].astype(np.float64) for name in _FIELDS)
                yield Moments(int(stored["count"]), *arrays)

    def solve(self, number: int, choice: Choice) -> Factors | None:
        """The factors of a unit with a choice; None where they do not fit its element type."""
        key = (number, choice)
        if key not in self._solved:
            self._solved[key] = self._fit(number, choice)
        return self._solved[key]

    def _fit(self, number: int, choice: Choice) -> Factors | None:
        unit = self._units[number]
        dtype = unit.weight.factor_dtype
        if number not in self._targets:
            weight = read_finite_weight(unit.lead, self._found.model.folder)
            plain = factor_one(weight, choice, unit.groups, dtype)
            return None if isinstance(plain, str) else plain
        target, heads = self._targets[number]
        placed = arrangement(choice, target.weight.shape[2:], target.weight.shape[1])
        if placed is None:
            raise ValueError(f"{choice.method} has no fit")
        moments = list(self._moments(number))
        parts = low_rank(placed, target, [Problem.of(each, centred=target.centred) for each in moments])
        exact = chain_of(choice, parts, target.weight.shape)
        stored = exact.cast(dtype)
        if not stored.finite():
            return None
        shifts = shifts_of(moments, [placed.restored(part.weight()) for part in parts], target.centred)
        moved = [shift for shift in shifts if shift is not None]
        biases = tuple(head.bias + head.scale * np.concatenate(moved) for head in heads) if moved else None
        errors = find_errors(target.weight, exact, stored, dtype)
        return Factors(choice, stored, errors, biases=biases)

    def build(self, taken: Sequence[Choice | None]) -> Model:
        """The model with the factors of these choices, one per unit; None keeps it."""
        splicer = Splicer(self._found, self._folder)
        for number, (unit, choice) in enumerate(zip(self._units, taken, strict=True)):
            solved = self.solve(number, choice) if choice is not None else None
            if solved is not None:
                splicer.install(unit.anchors, solved.chain, solved.biases)
        return splicer.finish()
