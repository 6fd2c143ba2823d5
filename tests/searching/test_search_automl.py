"""Judge over the ranks of blocks: cached factors, modules and their levels, and the study they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, save
from nets import rewrite
from test_search import clock, data, figures, held_out, model, net

from onnxdecomp import Plan, Policy, Ranks, open_samples
from onnxdecomp.comparing import Baseline
from onnxdecomp.ir import Survey, load, survey
from onnxdecomp.planning import Choice, Unit
from onnxdecomp.progress import silent
from onnxdecomp.sampling import Samples
from onnxdecomp.searching import Bank, Judge, Weighed, find_modules, plan_of, seed_of, space_of, taken_at
from onnxdecomp.searching.automl import GRID, Module
from onnxdecomp.searching.candidates import find_candidates
from onnxdecomp.searching.costs import counted
from onnxdecomp.searching.levels import PrunedError
from onnxdecomp.searching.probe import weight_losses
from onnxdecomp.searching.surroundings import find_surroundings

__all__ = ["clock", "data", "model"]  # fixtures

POLICY = Policy(align=4, min_channels=8)
SMALL = ("--align", "4", "--min-channels", "8")


def samples(count: int = 64, seed: int = 3) -> Samples:
    return open_samples([{"x": nets.structured(count, 8, 12, 12, seed=seed)}], net())


def survey_of(model: Path) -> Survey:
    shapes = {"x": (1, 8, 12, 12)}
    return survey(load(model), input_shapes=shapes, freeze=False, fold_bn=True, linear=False)


@pytest.fixture
def found(model: Path) -> Survey:
    return survey_of(model)


@pytest.fixture
def weighed(found: Survey) -> Weighed:
    units = find_candidates(found, POLICY)
    return Weighed(
        units=tuple(units),
        costs=tuple(counted(units, "macs")),
        seconds=None,
        losses=tuple(weight_losses(units, found.model.folder, silent)),
        residual=tuple(find_surroundings(unit.lead, found).residual for unit in units),
        counts={},
        totals={},
    )


@pytest.fixture
def bank(found: Survey, weighed: Weighed, tmp_path: Path) -> Bank:
    folder = tmp_path / "bank"
    folder.mkdir()
    return Bank(found, weighed.units, samples(), folder, silent)


def middling(unit: Unit) -> Choice:
    return unit.choices[len(unit.choices) // 2]


def distance(proto: onnx.ModelProto) -> float:
    x = nets.structured(32, 8, 12, 12, seed=11)
    return nets.distance(nets.run(net(), x=x)["y"], nets.run(proto, x=x)["y"])


def test_a_bank_that_keeps_everything_builds_the_original(bank: Bank, weighed: Weighed) -> None:
    built = bank.build([None] * len(weighed.units))
    assert built.proto.SerializeToString() == net().SerializeToString()


def test_cached_factors_are_as_good_as_a_fit_of_that_site_alone(
    bank: Bank, weighed: Weighed, model: Path
) -> None:
    for number, unit in enumerate(weighed.units):
        taken: list[Choice | None] = [None] * len(weighed.units)
        taken[number] = middling(unit)
        plan = plan_of(weighed.units, taken)
        fitted, plain = (rewrite(model, plan=plan, data=each).model for each in (samples(), None))
        own = distance(bank.build(taken).proto)
        assert own < 1.3 * distance(fitted) + 1e-3, unit.name
        assert own < 0.9 * distance(plain), unit.name


def test_factors_go_with_any_choice_elsewhere(bank: Bank, weighed: Weighed) -> None:
    every: list[Choice | None] = [middling(unit) for unit in weighed.units]
    whole = bank.build(every)
    weights = {tensor.name: tensor.raw_data for tensor in whole.proto.graph.initializer}
    alone = bank.build([every[0], *[None] * (len(every) - 1)])
    chains = [tensor for tensor in alone.proto.graph.initializer if "tucker" in tensor.name]
    assert chains and all(weights[tensor.name] == tensor.raw_data for tensor in chains)


def test_modules_are_blocks_in_graph_order(weighed: Weighed) -> None:
    modules = find_modules(weighed)
    assert [number for module in modules for number in module.numbers] == list(range(len(weighed.units)))
    # The residual Add ends the first block, the stride begins another, which a 1×1 of its shape joins.
    assert [[weighed.units[i].name for i in module.numbers] for module in modules] == [
        ["one", "two"], ["three", "four"],
    ]  # fmt: skip
    for module in modules:
        assert len(module.taken) == len(module.costs) == GRID
        assert list(module.costs) == sorted(module.costs)
        assert module.taken[-1] == (None,) * len(module.numbers)
        assert module.costs[-1] == sum(weighed.costs[i].kept for i in module.numbers)
        for taken, cost in zip(module.taken, module.costs, strict=True):
            points = [weighed.point(i, option) for i, option in zip(module.numbers, taken, strict=True)]
            assert sum(point[0] for point in points) == pytest.approx(cost)


def test_a_seed_costs_no_more_than_its_plan_and_hardly_less(weighed: Weighed) -> None:
    modules = find_modules(weighed)
    assert space_of(modules).modules == {module.name: GRID for module in modules}
    solution = weighed.solve()
    for point in range(0, len(solution.front.costs), 7):
        seed = seed_of(modules, weighed, solution.taken(point))
        own = weighed.cost(plan_of(weighed.units, taken_at(modules, weighed, seed)))
        limit = float(solution.front.costs[point])
        cheapest = sum(module.costs[0] for module in modules)
        assert own <= max(limit, cheapest) * (1 + 1e-9)
        for module in modules:  # one level more would cost more than the plan's share of that module
            level = seed[module.name]
            if level + 1 < GRID:
                assert module.costs[level + 1] > module_cost(weighed, module, solution.taken(point))


def module_cost(weighed: Weighed, module: Module, taken: Any) -> float:
    own = [(i, taken[i]) for i in module.numbers]
    options = [(i, None if c is None else weighed.units[i].choices.index(c)) for i, c in own]
    return sum(weighed.point(i, option)[0] for i, option in options) * (1 - 1e-9)


def test_a_trial_is_judged_on_samples_left_out(
    bank: Bank, weighed: Weighed, model: Path, tmp_path: Path
) -> None:
    modules = find_modules(weighed)
    judge = Judge(bank, weighed, modules, Baseline(path=model), tmp_path)
    levels = {module.name: 9 for module in modules}
    reports: list[tuple[int, float]] = []
    scored = judge(levels, lambda step, loss: bool(reports.append((step, loss))))
    built = bank.build(taken_at(modules, weighed, levels)).proto
    (x,) = (np.concatenate([feeds["x"] for feeds in bank.judges.batches(8)]),)
    assert 0 < len(x) < 64
    a, b = (nets.run(proto, x=x)["y"] for proto in (net(), built))
    differing = (a.argmax(axis=1) != b.argmax(axis=1)).mean()
    assert scored.loss == pytest.approx(((a - b) ** 2).sum() / (a**2).sum() + differing, rel=1e-4)
    assert scored.cost == sum(module.costs[9] for module in modules)
    assert [step for step, _ in reports] == list(range(len(reports)))
    assert reports[-1][1] == pytest.approx(scored.loss)


def test_a_poor_trial_ends_before_all_samples_are_seen(
    found: Survey, weighed: Weighed, model: Path, tmp_path: Path
) -> None:
    modules = find_modules(weighed)
    many = samples(160)
    big = Bank(found, weighed.units, many, tmp_path, silent)
    judge = Judge(big, weighed, modules, Baseline(path=model), tmp_path)
    steps: list[int] = []

    def report(step: int, loss: float) -> bool:
        steps.append(step)
        return True

    with pytest.raises(PrunedError):
        judge({module.name: 0 for module in modules}, report)
    assert steps == [0]


@pytest.mark.parametrize(
    "goal", [("--speedup", 1.6), pytest.param(("--max-error", 0.15), marks=pytest.mark.heavy)]
)
def test_a_search_goes_on_with_trials_and_resumes(
    goal: tuple[str, float], model: Path, data: Path, tmp_path: Path, cli: Cli, clock: Any
) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    words = ("search", model, out, *goal, "--data", data, *SMALL, "--json", report, "--study", "s",
             "--storage", f"sqlite:///{tmp_path / 'study.db'}")  # fmt: skip
    plain = tmp_path / "plain.onnx"
    assert cli("search", model, plain, *goal, "--data", data, *SMALL).code == 0
    trials = []
    for count in (3, 5):
        done = cli(*words, "--trials", count)
        assert done.code == 0 and "study s" in done.out, done
        document = json.loads(report.read_text())
        assert document["met"]
        trials.append(sum(document["study"]["states"].values()))
    assert trials == [3, 5]
    held = held_out(data)[1]
    found, before = (figures(model, path, held, clock) for path in (out, plain))
    if goal[0] == "--speedup":
        assert found["--speedup"] >= goal[1] and found["--max-error"] <= before["--max-error"] * (1 + 1e-6)
    else:
        assert found["--max-error"] <= goal[1] and found["--speedup"] >= before["--speedup"] * (1 - 1e-6)


def test_factors_of_shared_weights_have_biases_of_their_own(tmp_path: Path) -> None:
    text = """m (float[N,12,7,7] x) => (float[N,12,7,7] y) {
      [one] a = Conv <pads=[1,1,1,1]> (x, w, b)
      r = Relu (a)
      [two] y = Conv <pads=[1,1,1,1]> (r, w, c)
    }"""
    proto = nets.model(text, w=nets.weight(12, 12, 3, 3), b=nets.signal(12), c=nets.signal(12, seed=3))
    path = save(proto, tmp_path / "m.onnx")
    loaded = load(path)
    found = survey(loaded, input_shapes={}, freeze=False, fold_bn=True, linear=False)
    (unit,) = find_candidates(found, POLICY)
    own = open_samples([{"x": nets.structured(48, 12, 7, 7, seed=1)}], proto)
    kept = Bank(found, [unit], own, tmp_path, silent)
    choice = Choice("tucker2", Ranks(8, 8))
    built = kept.build([choice]).proto
    fresh = {"x": nets.structured(24, 12, 7, 7, seed=2)}
    plain = rewrite(path, plan=Plan({"one": choice, "two": choice})).model
    original, fitted, rival = (nets.run(each, **fresh)["y"] for each in (proto, built, plain))
    assert nets.distance(original, fitted) < nets.distance(original, rival)
    last = {node.name: node.input[2] for node in built.graph.node if node.name.endswith("tucker_out")}
    assert len(last) == 2 and len(set(last.values())) == 2
