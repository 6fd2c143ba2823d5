"""Optuna over the ranks of modules, seeded with the knapsack's answer.

A module is a block of consecutive Convs; a level of it stands for ranks of 1/32 … 1 of the output channels
in both modes. What such ranks cost is the module's budget, which a knapsack of its own shares out among its
Convs and their modes: so levels are few, and still hold ranks as good as the search's own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxdecomp.comparing import Baseline, Metric, Tally
from onnxdecomp.ir import save
from onnxdecomp.planning import Choice, Unit, front
from onnxdecomp.runtime import Feeds, Outputs, open_in_onnxruntime, open_seeing
from onnxdecomp.searching.bank import Bank
from onnxdecomp.searching.levels import Levels, PrunedError, Scored, Space, Tell
from onnxdecomp.searching.weighed import Weighed

GRID = 32
_BATCH = 16


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    """Consecutive units that share a level.

    Attributes:
        name: of the first.
        numbers: of the units.
        taken: per level, the option of each unit (None keeps it).
        costs: per level, of all its units; never falling.
    """

    name: str
    numbers: tuple[int, ...]
    taken: tuple[tuple[int | None, ...], ...]
    costs: tuple[float, ...]


def find_modules(weighed: Weighed) -> list[Module]:
    """Blocks: they end behind a residual Add, and where the output's size or channels change."""
    blocks: list[list[int]] = []
    for number, unit in enumerate(weighed.units):
        last = blocks[-1][-1] if blocks else None
        if last is None or weighed.residual[last] or _shape(weighed.units[last]) != _shape(unit):
            blocks.append([])
        blocks[-1].append(number)
    return [_module(weighed, numbers) for numbers in blocks]


def _shape(unit: Unit) -> object:
    site = unit.sites[0]
    return site.channels and site.channels[1], site.sizes and site.sizes[1]


def _module(weighed: Weighed, numbers: Sequence[int]) -> Module:
    options = [weighed.options(number) for number in numbers]
    points = [
        [weighed.point(number, option) for option in own]
        for number, own in zip(numbers, options, strict=True)
    ]
    own_front = front(points)
    taken, costs, budget = [], [], 0.0
    for level in range(GRID):
        wanted = sum(_uniform_cost(weighed, number, (level + 1) / GRID) for number in numbers)
        budget = max(budget, wanted)  # the nearest ranks of another method may cost less
        found = own_front.within_cost(budget)
        picked = own_front.choices(0 if found is None else found)
        taken.append(tuple(own[i] for own, i in zip(options, picked, strict=True)))
        costs.append(float(own_front.costs[0 if found is None else found]))
    name = weighed.units[numbers[0]].name
    return Module(name, tuple(numbers), tuple(taken), tuple(costs))


def _uniform_cost(weighed: Weighed, number: int, share: float) -> float:
    """The cost of the option nearest to ranks of that share of the output channels, in both modes."""
    unit = weighed.units[number]
    c_in, c_out = unit.sites[0].group_channels
    rank = share * c_out
    if share == 1:
        return weighed.point(number, None)[0]

    def distance(option: int) -> float:
        ranks = unit.choices[option].ranks
        pairs = ((ranks.input or c_in, min(rank, c_in)), (ranks.output or c_out, min(rank, c_out)))
        return sum(abs(a - b) for a, b in pairs)

    allowed = [option for option in weighed.options(number) if option is not None]
    return weighed.point(number, min(allowed, key=distance) if allowed else None)[0]


def space_of(modules: Sequence[Module]) -> Space:
    """The levels of all modules that have a choice."""
    return Space({module.name: GRID for module in modules})


def seed_of(modules: Sequence[Module], weighed: Weighed, taken: Sequence[Choice | None]) -> dict[str, int]:
    """The levels nearest to a plan: per module, the highest that costs no more."""
    levels = {}
    for module in modules:
        cost = 0.0
        for number in module.numbers:
            choice = taken[number]
            option = None if choice is None else weighed.units[number].choices.index(choice)
            cost += weighed.point(number, option)[0]
        fitting = [level for level, own in enumerate(module.costs) if own <= cost * (1 + 1e-9)]
        levels[module.name] = max(fitting, default=0)
    return levels


def taken_at(modules: Sequence[Module], weighed: Weighed, levels: Levels) -> list[Choice | None]:
    """The choice of every unit at these levels."""
    taken: list[Choice | None] = [None] * len(weighed.units)
    for module in modules:
        for number, option in zip(module.numbers, module.taken[levels[module.name]], strict=True):
            taken[number] = None if option is None else weighed.units[number].choices[option]
    return taken


class Judge:
    """What a study's trials come to: cached factors, put together and judged.

    By a metric of the user's own, or by outputs on samples that are left out of the factors.
    """

    def __init__(
        self,
        bank: Bank,
        weighed: Weighed,
        modules: Sequence[Module],
        original: Baseline,
        folder: Path,
        metric: Metric | None = None,
    ) -> None:
        self._bank, self._weighed, self._modules = bank, weighed, modules
        self._out = folder / "trial.onnx"
        self._feeds: list[Feeds] = list(bank.judges.batches(_BATCH))
        self._sights = original.where()
        seen = original.seen_in_onnxruntime()
        self._expected: list[Outputs] = [seen.run(feeds) for feeds in self._feeds]
        self._metric = metric
        self._before = metric.measure(original.in_onnxruntime()) if metric is not None else 0.0

    def __call__(self, levels: Levels, report: Tell) -> Scored:
        """Loss and cost of a trial; few samples come first, and a poor trial ends there.

        Raises:
            PrunedError: the trial is not worth finishing.
        """
        taken = taken_at(self._modules, self._weighed, levels)
        cost = sum(module.costs[levels[module.name]] for module in self._modules)
        save(self._bank.build(taken), self._out)
        if self._metric is not None:
            runner = open_in_onnxruntime(self._out)
            return Scored(loss=self._metric.score(self._before, runner).drop, cost=cost)
        runner = open_seeing(self._out, self._sights)
        tallies = {name: Tally() for name in self._sights.names}
        for step, (feeds, expected) in enumerate(zip(self._feeds, self._expected, strict=True)):
            found = runner.run(feeds)
            for name, tally in tallies.items():
                tally.add(np.asarray(expected[name]), np.asarray(found[name]))
            if report(step, trial_loss(tallies.values())) and step + 1 < len(self._feeds):
                raise PrunedError
        return Scored(loss=trial_loss(tallies.values()), cost=cost)


def trial_loss(tallies: Collection[Tally]) -> float:
    """The loss of a trial: how often its classes differ from the original's, then how far its outputs do.

    Where no output has a class for each sample, the distance alone: relative, squared, the mean over the
    outputs.
    """
    distance = sum(each.share for each in tallies) / len(tallies)
    if not math.isfinite(distance):
        return math.inf
    scored = [each for each in tallies if each.per_sample]
    compared = sum(each.compared for each in scored)
    differing = compared - sum(each.agreeing for each in scored)
    return distance + (differing / compared if compared else 0.0)
