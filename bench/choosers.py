"""Ways of choosing ranks: one share everywhere, one energy, the greedy scheme, the knapsack, a study."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.subjects import Subject
from onnxdecomp import Plan, Policy
from onnxdecomp.comparing import Baseline
from onnxdecomp.factors import Spectrum, spectra
from onnxdecomp.ir import Site, load, read_finite_weight, survey
from onnxdecomp.planning import Choice, fitting_methods, rank_limits
from onnxdecomp.progress import silent
from onnxdecomp.runtime import feeds_shapes, observe_sizes
from onnxdecomp.sampling import SampleSets
from onnxdecomp.searching import (
    ALIGN,
    Bank,
    Goal,
    Judge,
    Solution,
    Start,
    Task,
    Trials,
    Weighed,
    find_modules,
    open_study,
    plan_of,
    run_trials,
    seed_of,
    space_of,
    taken_at,
    weigh,
)
from onnxdecomp.timing import settings

Floats = NDArray[np.float64]
Taken = Sequence[Choice | None]

COSTS = {"macs": "macs", "latency": "measured"}
RATIOS = tuple(i / 10 for i in range(1, 10))
# What is tried of a share of the channels, and of the energy.
SHARES = np.linspace(0.02, 1, 500)
ENERGIES = 1 - np.logspace(-4, 0, 500, endpoint=False)
# Ranks that are weighed come in up to 16 levels. If all units changed level at the same share, the cost would
# make large steps; so each changes a little earlier or later, by up to half a level.
LEVEL, GOLDEN = 1 / 16, 0.618034


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Menu:
    """What may be taken of one unit, keeping it among them.

    Attributes:
        choices: None keeps it.
        shares: of the channels that the ranks (in, out) are; shape (choices, 2).
        costs: shape (choices,).
        losses: shape (choices,).
    """

    choices: tuple[Choice | None, ...]
    shares: Floats
    costs: Floats
    losses: Floats

    def nearest(self, shares: Sequence[float]) -> int:
        """The choice whose ranks are nearest to these shares of the channels (in, out)."""
        return int(np.abs(self.shares - np.minimum(shares, 1)).sum(axis=1).argmin())

    @property
    def kept(self) -> int:
        """The choice that keeps the unit."""
        return self.choices.index(None)


def menus_of(weighed: Weighed) -> list[Menu]:
    """One for every unit."""
    menus = []
    for number, unit in enumerate(weighed.units):
        options = weighed.options(number)
        choices = tuple(None if option is None else unit.choices[option] for option in options)
        costs, losses = np.array([weighed.point(number, option) for option in options]).T
        shares = np.array([shares_of(choice, unit.sites[0]) for choice in choices])
        menus.append(Menu(choices=choices, shares=shares, costs=costs, losses=losses))
    return menus


def shares_of(choice: Choice | None, site: Site) -> tuple[float, float]:
    """The ranks (in, out) as shares of the channels; one rank for both is a share of the fewer."""
    if choice is None:
        return 1.0, 1.0
    limits = rank_limits(site, choice.method)
    ranks = (choice.ranks.input, choice.ranks.output)
    into, out = (1.0 if rank is None else rank / limit for rank, limit in zip(ranks, limits, strict=True))
    return into, out


class Chooser:
    """Chooses ranks for one model and one kind of cost, in every way.

    Attributes:
        weighed: all units' choices.
        policy: that they follow.
        total: what the whole model costs: multiply-accumulates of all Convs, or seconds.
    """

    def __init__(self, subject: Subject, kind: str, align: int | None, trials: int, folder: Path) -> None:
        """`folder` takes the statistics of a study."""
        cost = COSTS[kind]
        self.policy = Policy(align=align or ALIGN[cost])
        self._subject, self._trials, self._folder = subject, trials, folder
        self._task = task_of(subject, kind, self.policy)
        self.weighed, notes = weigh(self._task, None)
        print(*(f"{subject.name}: {note}" for note in notes), sep="\n", end="\n" if notes else "")
        self._menus = menus_of(self.weighed)
        self.total = self.weighed.totals["macs"]

    def budget(self, share: float) -> float:
        """What the units may cost where the whole is to cost that share."""
        return self.solution.kept_cost - (1 - share) * self.total

    def share(self, plan: Plan) -> float:
        """What a plan leaves of the cost of the whole, by the table."""
        return 1 - (self.solution.kept_cost - self.weighed.cost(plan)) / self.total

    def choose(self, method: str, share: float) -> Plan | None:
        """A plan that costs that share of the whole, or as near as the method comes; None is out of reach."""
        budget = self.budget(share)
        if budget < sum(menu.costs.min() for menu in self._menus):
            return None
        ways: dict[str, Callable[[float], Taken | None]] = {
            "uniform": partial(self._closest, self._uniform, SHARES),
            "energy": partial(self._closest, self._energy, ENERGIES),
            "greedy": self._greedy,
            "knapsack": self._knapsack,
            "optuna": self._optuna,
        }
        taken = ways[method](budget)
        return None if taken is None else plan_of(self.weighed.units, taken)

    @cached_property
    def solution(self) -> Solution:
        """The knapsack's."""
        return self.weighed.solve()

    @cached_property
    def _spectra(self) -> list[tuple[tuple[Spectrum, Spectrum], tuple[int, int]]]:
        """Of each unit's modes (in, out), and how many channels these have."""
        found = []
        for unit in self.weighed.units:
            site, weight = unit.sites[0], read_finite_weight(unit.lead, self._task.model.folder)
            method = fitting_methods(site, self.policy)[0]
            found.append((spectra(method, weight, site.groups or 1), rank_limits(site, method)))
        return found

    @cached_property
    def _bank(self) -> Bank:
        fitted = self._subject.images.fitted
        return Bank(self._task.found, self.weighed.units, fitted, self._folder, silent)

    def _cost(self, picks: Sequence[int]) -> float:
        return float(sum(menu.costs[i] for menu, i in zip(self._menus, picks, strict=True)))

    def _take(self, picks: Sequence[int]) -> Taken:
        return [menu.choices[i] for menu, i in zip(self._menus, picks, strict=True)]

    def _closest(self, way: Callable[[float], list[int]], values: Floats, budget: float) -> Taken:
        """Of the picks at all these values, those whose cost is nearest to the budget."""
        every = [way(float(value)) for value in values]
        return self._take(min(every, key=lambda picks: abs(self._cost(picks) - budget)))

    def _uniform(self, share: float) -> list[int]:
        early = [(number * GOLDEN % 1 - 0.5) * LEVEL for number in range(len(self._menus))]
        pairs = zip(self._menus, early, strict=True)
        return [menu.nearest([share + own] * 2) for menu, own in pairs]

    def _energy(self, energy: float) -> list[int]:
        picks = []
        for menu, (modes, widths) in zip(self._menus, self._spectra, strict=True):
            ranks = [mode.rank_for(energy) for mode in modes]
            picks.append(menu.nearest([rank / width for rank, width in zip(ranks, widths, strict=True)]))
        return picks

    def _greedy(self, budget: float) -> Taken | None:
        """The least threshold of single layers' losses at which the cheapest choices below it suffice."""
        rows = [at_ratios(menu) for menu in self._menus]
        pairs = list(zip(self._menus, rows, strict=True))
        thresholds = sorted({float(menu.losses[i]) for menu, row in pairs for i in row})

        def picks(threshold: float) -> list[int]:
            return [cheapest(menu, row, threshold) for menu, row in pairs]

        first = bisect_left(thresholds, True, key=lambda each: self._cost(picks(each)) <= budget)
        return self._take(picks(thresholds[first])) if first < len(thresholds) else None

    def _knapsack(self, budget: float) -> Taken | None:
        point = self.solution.front.within_cost(budget)
        return None if point is None else self.solution.taken(point)

    def _optuna(self, budget: float) -> Taken | None:
        """The best trial within the budget; the knapsack's answer where that is just the seed."""
        seeded = self._knapsack(budget)
        if seeded is None:
            return None
        modules = find_modules(self.weighed)
        seed = seed_of(modules, self.weighed, seeded)
        original = Baseline(path=self._subject.path)
        judge = Judge(self._bank, self.weighed, modules, original, self._folder)

        def plan_at(levels: Mapping[str, int]) -> Plan:
            return plan_of(self.weighed.units, taken_at(modules, self.weighed, levels))

        with open_study(Trials(number=self._trials), {}, None, front=False) as study:
            study.begin(Start(plan=plan_of(self.weighed.units, seeded)))
            result = run_trials(
                study,
                space_of(modules),
                judge,
                trials=self._trials,
                budget=budget,
                seeds=[seed],
                plan_at=plan_at,
            )
        if result.stopped is not None:
            raise result.stopped
        levels = result.best[0] if result.best is not None else seed
        return seeded if levels == seed else taken_at(modules, self.weighed, levels)


def at_ratios(menu: Menu) -> list[int]:
    """For each compression ratio the choice of least loss that costs at most that share of the unit."""
    found = []
    for ratio in RATIOS:
        (within,) = np.nonzero(menu.costs <= ratio * menu.costs[menu.kept])
        if len(within):
            found.append(int(within[menu.losses[within].argmin()]))
    return found


def cheapest(menu: Menu, row: Sequence[int], threshold: float) -> int:
    """The cheapest of these choices that loses at most `threshold`, else the one that keeps the unit."""
    good = [i for i in row if menu.losses[i] <= threshold]
    return min([menu.kept, *good], key=lambda i: float(menu.costs[i]))


def task_of(subject: Subject, kind: str, policy: Policy) -> Task:
    """What `onnxdecomp search` would be asked for."""
    model, fitted = load(subject.path), subject.images.fitted
    feeds = next(fitted.batches(1))
    found = survey(model, input_shapes=feeds_shapes(feeds), freeze=False, fold_bn=True, linear=False)
    (setting,) = settings(batches=[1])
    return Task(
        found=observe_sizes(found, feeds),
        feeds=feeds,
        baseline=Baseline(path=subject.path),
        goal=Goal("macs" if kind == "macs" else "speedup", 0.5 if kind == "macs" else 2.0),
        setting=setting,
        samples=SampleSets(fitted=fitted, held_out=subject.images.tested),
        policy=policy,
        cost=COSTS[kind],
        metric=None,
        trials=Trials(),
        tuning=None,
        deadline=None,
        progress=silent,
        scratch=None,
    )
