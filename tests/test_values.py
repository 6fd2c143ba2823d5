"""What the functions answer with: it can be pickled, and shows itself in one line."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import save, save_external, small_model

import onnxdecomp
from onnxdecomp import Budget, Goal, StoppedError

# A chain of so many Convs, with names as exporters give them.
DEPTH = 24
PUBLIC = {name: getattr(onnxdecomp, name) for name in onnxdecomp.__all__}
CLASSES = {value for value in PUBLIC.values() if dataclasses.is_dataclass(value)}


def deep() -> onnx.ModelProto:
    """A net of many sites."""
    names = ["x", *(f"/backbone/stage{i}/blocks/conv/output" for i in range(DEPTH - 1)), "y"]
    nodes = [
        onnx.helper.make_node("Conv", [a, "w"], [b], name=f"{b}/node", pads=[1] * 4)
        for a, b in itertools.pairwise(names)
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 8, 6, 6])
        for name in ("x", "y")
    ]
    weight = onnx.numpy_helper.from_array(nets.weight(8, 8, 3, 3), "w")
    graph = onnx.helper.make_graph(nodes, "deep", ends[:1], ends[1:], [weight])
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])


def brightness(model: onnxdecomp.Runner) -> float:
    """A metric that can be pickled."""
    return float(model.run({"x": np.ones((1, 8, 6, 6), np.float32)})["y"].mean())


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("values")
    path = save(deep(), folder / "in.onnx")
    samples = onnxdecomp.open_samples([{"x": nets.signal(1, 8, 6, 6)}] * 300, path)
    sets = onnxdecomp.SampleSets.draw(samples, count=8, labels=[0] * 300)
    policy = onnxdecomp.Policy(min_channels=1, align=2, allow_slower=True)
    result = onnxdecomp.rewrite(path, 4, policy=policy, data=sets.held_out[:4])
    found = onnxdecomp.search(
        path, Goal("macs", 0.6), cost="macs", metric=brightness, policy=policy, samples=samples[:12]
    )
    seen: list[Any] = []
    timed = onnxdecomp.bench(path, budget=Budget(runs=2), progress=seen.append)
    values = [
        samples, samples[:2], sets, policy, result, found, found.best, timed, seen[0], timed.cells[0],
        onnxdecomp.compare(path, result), onnxdecomp.measure_quality(path, result, samples[:3]),
        onnxdecomp.inspect(path, spectrum=True, policy=policy), onnxdecomp.Preprocessing.imagenet(),
        onnxdecomp.inspect_cache(), onnxdecomp.Trials(number=3), onnxdecomp.Tuning(), Budget(),
        *onnxdecomp.settings(),
        onnxdecomp.Speedup(ratio=1.0, low=0.9, high=1.1), onnxdecomp.Metric(brightness),
        *tuned(path, result), onnxdecomp.Tuning(),
        onnxdecomp.Selection(name="idx", op="NonMaxSuppression", before=3, after=2, common=1),
        onnxdecomp.Trial(number=1, state="complete", loss=0.1, cost=1.0, plan=result.plan),
    ]  # fmt: skip
    return {f"{type(value).__name__} {number}": value for number, value in enumerate(values)}


def tuned(path: Path, result: onnxdecomp.Result) -> list[Any]:
    """What tuning answers with, where there is what it needs."""
    if importlib.util.find_spec("torch") is None:
        return []
    images, brief = nets.signal(40, 8, 6, 6), onnxdecomp.Tuning(steps=1)
    policy = onnxdecomp.Policy(min_channels=1, align=2, allow_slower=True)
    return [
        onnxdecomp.tune(path, result, images, tuning=brief),
        onnxdecomp.rewrite(path, 4, policy=policy, data=images, tuning=brief),
        onnxdecomp.search(
            path, Goal("macs", 0.6), cost="macs", policy=policy, samples=images, tuning=brief
        ).best,
    ]


def within(value: Any, seen: set[int]) -> Iterator[Any]:
    """The values of dataclasses in `value`, itself included."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for field in dataclasses.fields(value):
            yield from within(getattr(value, field.name), seen)
    elif isinstance(value, Mapping):
        yield from within(list(value.values()), seen)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from within(each, seen)


def test_every_public_value_shows_itself_in_one_line(answers: dict[str, Any]) -> None:
    values = list(within(answers, set()))
    public = [value for value in values if type(value) in CLASSES]
    missing = {onnxdecomp.Gap, onnxdecomp.TuneResult} if importlib.util.find_spec("torch") is None else set()
    assert {type(value) for value in public} == CLASSES - missing
    for value in (*public, *(each for holder in public for each in attributes(holder))):
        assert len(repr(value)) < 300 and "\n" not in repr(value), repr(value)[:400]


def attributes(value: Any) -> list[Any]:
    """What stands in a public value and is itself one of ours."""
    own = (getattr(value, field.name) for field in dataclasses.fields(value))
    return [each for each in own if dataclasses.is_dataclass(each)]


def test_a_line_says_what_matters(answers: dict[str, Any]) -> None:
    lines = {key.split()[0]: repr(value) for key, value in answers.items()}
    assert "met=True" in lines["SearchResult"] and "Goal(kind='macs', value=0.6)" in lines["SearchResult"]
    assert f"sites=<dict of {DEPTH}>" in repr(next(v for k, v in answers.items() if k[:6] == "Result").plan)
    assert "<tuple of 300>" in repr(answers["Samples 0"]) and "(0, 1)" in repr(answers["Samples 1"])
    assert repr(onnxdecomp.Choice("svd", onnxdecomp.Ranks(8, 8))) in repr(
        onnxdecomp.Plan({"conv": onnxdecomp.Choice("svd", onnxdecomp.Ranks(8, 8))})
    )


def test_every_answer_can_be_pickled(answers: dict[str, Any]) -> None:
    for value in answers.values():
        copy = pickle.loads(pickle.dumps(value))
        assert type(copy) is type(value)
        if hasattr(value, "to_dict"):
            assert copy.to_dict() == value.to_dict()


def test_a_copy_of_a_search_is_as_good_as_the_search(answers: dict[str, Any], tmp_path: Path) -> None:
    found = next(value for key, value in answers.items() if key.startswith("SearchResult"))
    copy = pickle.loads(pickle.dumps(found))
    assert copy.baseline.runner is None is not found.baseline.runner
    path, feeds = tmp_path / "out.onnx", {"x": nets.signal(2, 8, 6, 6)}
    copy.save(path)
    assert onnx.load(path) == found.rewritten().model
    assert onnxdecomp.check(copy.baseline, path) == onnxdecomp.check(found.baseline, path)
    again = onnxdecomp.measure_quality(copy.baseline, path, feeds)
    assert again == onnxdecomp.measure_quality(found.baseline, path, feeds)


def test_a_copy_of_a_result_outlives_the_scratch_folder_of_the_result(tmp_path: Path) -> None:
    result = onnxdecomp.rewrite(save_external(small_model(), tmp_path / "in.onnx"), 0.25)
    model, data = result.model, pickle.dumps(result)
    del result
    assert pickle.loads(data).model == model


@pytest.mark.parametrize("stopped", [StoppedError(), StoppedError(15, "enough")])
def test_an_interruption_can_be_pickled(stopped: StoppedError) -> None:
    copy = pickle.loads(pickle.dumps(stopped))
    assert (copy.number, copy.message, str(copy)) == (stopped.number, stopped.message, str(stopped))
