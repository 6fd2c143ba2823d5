"""Searches that tune: the model chosen is judged as it is then, and what tuning wins is spent."""

from __future__ import annotations

import functools
import io
import json
import logging
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import save
from onnx import ModelProto
from rich.console import Console

pytest.importorskip("torch")

import torch
from test_search import Clock, clock

import onnxdecomp
from onnxdecomp import Contender, Goal, Policy, ProgressEvent, SampleSets, SearchResult, StoppedError, Tuning
from onnxdecomp.errors import UsageError
from onnxdecomp.rewriting import NOTHING_TUNED
from onnxdecomp.searching import asking, costs, hunt, narrowing, workshop
from onnxdecomp.searching.records import StudyResult
from onnxdecomp.show import search_view

__all__ = ["clock"]  # a fixture

NET = """m (float[N,3,8,8] x) => (float[N,5] y) {
  [stem] a = Conv <pads=[1,1,1,1]> (x, s)
  b = Relu (a)
  [one] c = Conv <pads=[1,1,1,1]> (b, w1)
  d = Relu (c)
  [two] e = Conv <pads=[1,1,1,1]> (d, w2)
  f = Relu (e)
  [three] g = Conv <pads=[1,1,1,1]> (f, w3)
  h = Relu (g)
  p = GlobalAveragePool (h)
  q = Flatten (p)
  y = Gemm (q, v)
}"""
BRIEF = Tuning(steps=40, batch=16, augment=False)
COSTLY, LOSSY = Goal("macs", 0.2), Goal("max_error", 0.1)


def net() -> ModelProto:
    inner = {f"w{i}": 1.5 * nets.weight(16, 16, 3, 3, seed=i) for i in (1, 2, 3)}
    return nets.model(NET, s=nets.weight(16, 3, 3, 3), v=nets.weight(16, 5), **inner)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(net(), tmp_path_factory.mktemp("model") / "in.onnx")


@pytest.fixture(scope="module")
def sets(model: Path) -> SampleSets:
    images = nets.structured(128, 3, 8, 8, seed=5)
    classes = nets.run(net(), x=images)["y"].argmax(axis=1)
    return SampleSets.draw(onnxdecomp.open_samples(images, model), count=96, labels=classes)


def searched(model: Any, goal: Goal, sets: Any, **options: Any) -> SearchResult:
    policy = Policy(align=2, min_channels=4)
    return onnxdecomp.search(
        model, goal, **{"samples": sets, "cost": "macs", "policy": policy, "tuning": BRIEF} | options
    )


Searches = Callable[[Goal, Tuning | None], SearchResult]


@pytest.fixture(scope="module")
def search(model: Path, sets: SampleSets, tmp_path_factory: pytest.TempPathFactory) -> Searches:
    """Searches that several tests look at, each carried out once, by what is remembered of no other."""

    @functools.cache
    def known(goal: Goal, tuning: Tuning | None) -> SearchResult:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ONNXDECOMP_CACHE", str(tmp_path_factory.mktemp("cache")))
            return searched(model, goal, sets, tuning=tuning)

    return known


def best_of(found: SearchResult) -> Contender:
    assert found.best is not None
    return found.best


def tunings(found: SearchResult) -> list[Contender]:
    return [each for each in found.tried if each.tuned is not None]


def shown(found: SearchResult) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(search_view(found))
    return stream.getvalue()


# Where a cost is bounded
# -----------------------


def test_the_model_that_is_chosen_is_tuned_and_reported_as_it_is_then(
    model: Path, sets: SampleSets, search: Searches
) -> None:
    plain, found = search(COSTLY, None), search(COSTLY, BRIEF)
    best = best_of(found)
    assert found.met and found.plan == plain.plan and tunings(found) == [best] == [found.tried[-1]]
    assert best.fitted_error == best_of(plain).error and best.shares == best_of(plain).shares
    # By another way to measure it.
    (output,) = onnxdecomp.compare(model, found, sets.held_out.batches(32))
    assert best.error == best.loss == pytest.approx(output.relative_l2)
    assert best.quality == onnxdecomp.measure_quality(
        model, found, sets.held_out, fitted=len(sets.fitted), labels=sets.labels
    )
    assert best.loss < 0.9 * best_of(plain).loss
    # What was made is what rewriting makes of the plan.
    policy = Policy(align=2, min_channels=4)
    again = nets.rewrite(model, plan=found.plan, policy=policy, data=sets.fitted, tuning=BRIEF)
    assert again.model.SerializeToString() == found.rewritten().model.SerializeToString()


def test_what_tuning_did_is_said(search: Searches) -> None:
    found = search(COSTLY, BRIEF)
    best = best_of(found)
    assert best.tuned is not None and best.error is not None and best.fitted_error is not None
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    said = document["best"]["tuning"]
    assert said["error"] == {"before": best.fitted_error, "after": best.error}
    assert (said["steps"], said["seconds"]) == (BRIEF.steps, best.tuned.seconds) and said["improved"]
    assert [each["tuning"] is not None for each in document["tried"]] == [False, True]
    text = f"tuned: error {best.fitted_error:.4g} → {best.error:.4g}, {BRIEF.steps} steps of"
    assert text in shown(found) and "no better" not in shown(found)
    assert f"error {best.fitted_error:.3f}, tuned {best.error:.3f}" in best.line()
    assert pickle.loads(pickle.dumps(found)).to_dict() == found.to_dict()


def test_a_metric_judges_the_tuned_model(model: Path, sets: SampleSets) -> None:
    """Any figure does that tells two models apart."""
    images = nets.structured(8, 3, 8, 8, seed=9)
    wanted = nets.run(net(), x=images)["y"]

    def distance(run: onnxdecomp.Runner) -> float:
        return float(np.square(run.run({"x": images})["y"] - wanted).sum())

    found = searched(model, COSTLY, sets, metric=onnxdecomp.Metric(distance, lower_is_better=True))
    fitted, tuned = found.tried
    assert fitted.score is not None and tuned.score is not None and found.best is tuned
    after = np.square(nets.run(found.rewritten().model, x=images)["y"] - wanted).sum()
    assert tuned.score.after == pytest.approx(after, rel=1e-3) and tuned.loss < 0.9 * fitted.loss


def test_time_that_is_up_does_not_keep_the_choice_from_being_tuned(model: Path, sets: SampleSets) -> None:
    found = searched(model, COSTLY, sets, time_limit=1e-6)
    assert best_of(found).tuned is not None


def test_the_best_effort_is_tuned_too(model: Path, sets: SampleSets) -> None:
    found = searched(model, Goal("macs", 0.001), sets)
    assert not found.met and best_of(found).tuned is not None
    assert found.rewritten(best_effort=True).tuned is best_of(found).tuned


def test_a_model_slower_than_the_original_is_not_tuned(
    model: Path, sets: SampleSets, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sites had promised to be faster."""
    sites = clock.time_models

    def promised(models: Sequence[ModelProto], feeds: Any, engine: object) -> list[float]:
        kept, *chains = sites(models, feeds, engine)
        return [kept, *(seconds / 10 for seconds in chains)]

    monkeypatch.setattr(costs, "time_models", promised)
    clock.overhead = 1e-2
    found = searched(model, COSTLY, sets, cost="measured")
    assert found.slower and best_of(found).result is not None and not tunings(found)


def worsened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning that does harm, whatever it took for an improvement."""
    improved = workshop.improved

    def harmful(*arguments: Any) -> onnxdecomp.Result:
        result = improved(*arguments)
        proto = result.model
        for tensor in proto.graph.initializer:
            if "tucker" in tensor.name:
                values = 1.05 * onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return replace(result, rewritten=replace(result.rewritten, proto=proto))

    monkeypatch.setattr(workshop, "improved", harmful)


def test_what_is_no_better_on_samples_held_out_is_not_taken(
    model: Path, sets: SampleSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    worsened(monkeypatch)
    found = searched(model, COSTLY, sets)
    fitted, tuned = found.tried
    assert found.best is fitted and tuned.loss > fitted.loss and found.met
    assert "that is no better, so factors stay as they were fitted" in shown(found)


def test_where_nothing_can_be_trained_that_is_said(tmp_path: Path) -> None:
    """Gradients do not reach into the branches of an If."""
    text = """m (float[N,16,6,6] x, bool flag) => (float[N,16,6,6] y) {
      h = Relu (x)
      y = If (flag) <
        then_branch = yes () => (float[N,16,6,6] p) { [inner] p = Conv <pads=[1,1,1,1]> (h, w) },
        else_branch = no () => (float[N,16,6,6] q) { q = Relu (h) }
      >
    }"""
    proto = nets.model(text)
    then = nets.inner_graph(proto, 1, "then_branch")
    then.initializer.append(onnx.numpy_helper.from_array(nets.weight(16, 16, 3, 3), "w"))
    feeds = [{"x": nets.signal(1, 16, 6, 6, seed=i), "flag": np.array(True)} for i in range(12)]
    samples = onnxdecomp.open_samples(feeds, proto)
    found = searched(proto, Goal("macs", 0.6), SampleSets.draw(samples, count=8))
    assert found.met and not tunings(found) and NOTHING_TUNED in found.notes


# Where a loss is bounded
# -----------------------


def test_what_tuning_wins_is_spent_on_a_lower_cost(model: Path, sets: SampleSets, search: Searches) -> None:
    plain, found = search(LOSSY, None), search(LOSSY, BRIEF)
    best = best_of(found)
    assert plain.met and found.met and 1 <= len(tunings(found)) <= 4
    assert best.shares["macs"] < best_of(plain).shares["macs"] - 0.03
    (output,) = onnxdecomp.compare(model, found, sets.held_out.batches(32))
    assert best.error == pytest.approx(output.relative_l2) and output.relative_l2 is not None
    assert output.relative_l2 <= LOSSY.value and best.tuned is not None
    # By itself the fit would have missed it.
    assert best.fitted_error is not None and best.fitted_error > LOSSY.value


def test_a_bounded_drop_of_accuracy_is_that_of_the_tuned_model(model: Path, sets: SampleSets) -> None:
    goal = Goal("max_drop", 0.1)
    found = searched(model, goal, sets)
    assert found.met and best_of(found).tuned is not None
    labels = np.concatenate(
        [nets.run(found.rewritten().model, **feed)["y"].argmax(axis=1) for feed in sets.held_out.batches(8)]
    )
    assert sets.labels is not None and float((labels != sets.labels).mean()) <= goal.value
    assert len(tunings(found)) <= 4


def test_tuning_that_does_harm_makes_no_search_worse(
    model: Path, sets: SampleSets, search: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = search(LOSSY, None)
    worsened(monkeypatch)
    found = searched(model, LOSSY, sets)
    assert found.met and best_of(found).tuned is None
    assert best_of(found).shares["macs"] == best_of(plain).shares["macs"]


def test_the_next_search_begins_where_fitted_models_did(model: Path, sets: SampleSets) -> None:
    """What is remembered of predictions is how they came true before any tuning."""
    found = searched(model, COSTLY, sets)
    again = searched(model, LOSSY, sets, tuning=None)
    first, best = again.tried[0], best_of(found)
    assert best.fitted_error is not None
    aimed = 0.98 * LOSSY.value / (best.fitted_error / best.predicted)
    assert 0.9 * aimed < first.predicted <= aimed


# Interruptions
# -------------


def stopping(stage: str, done: int, *, lasting: bool = True) -> Any:
    """Progress that ends the work as a stage has come so far, and whatever is told of it later."""
    over = False

    def progress(event: ProgressEvent) -> None:
        nonlocal over
        now = (event.stage, event.done) == (stage, done) and not over
        over = over or now
        if now or (over and lasting):
            raise StoppedError()

    return progress


@pytest.mark.parametrize("goal", [COSTLY, LOSSY], ids=str)
@pytest.mark.parametrize("lasting", [True, False])
def test_an_interruption_keeps_the_best_of_the_tuning(
    lasting: bool, goal: Goal, model: Path, sets: SampleSets
) -> None:
    progress = stopping("tuning", 10, lasting=lasting)
    found = searched(model, goal, sets, progress=progress, cost="measured")
    best = best_of(found)
    assert found.interrupted is not None and found.stopped and found.met
    assert best.tuned is not None and 0 < best.tuned.steps < 40 and best.tuned.interrupted is not None
    assert best.error is not None and best.fitted_error is not None and best.error < best.fitted_error
    assert best.speedup is not None and len(tunings(found)) == 1
    (output,) = onnxdecomp.compare(model, found, sets.held_out.batches(32))
    assert best.error == pytest.approx(output.relative_l2)
    assert found.to_dict()["best"]["tuning"]["complete"] is False


@pytest.mark.parametrize("goal", [COSTLY, LOSSY], ids=str)
def test_before_the_first_step_the_best_is_what_was_fitted(goal: Goal, model: Path, sets: SampleSets) -> None:
    found = searched(model, goal, sets, progress=stopping("running both models", 0))
    assert found.interrupted is not None and found.met and not tunings(found)
    assert best_of(found).result is not None


def test_after_interrupted_trials_nothing_is_tuned(model: Path, sets: SampleSets) -> None:
    pytest.importorskip("optuna")
    progress = stopping("trying ranks", 1, lasting=False)
    found = searched(model, COSTLY, sets, trials=trials(None), progress=progress)
    assert found.interrupted is not None and found.study is not None and not tunings(found)


def test_every_stage_is_logged_once(model: Path, sets: SampleSets, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="onnxdecomp"):
        searched(model, COSTLY, sets)
    assert caplog.messages.count("running both models: 0 of 1") == 1


# Studies
# -------


@pytest.fixture
def storage(tmp_path: Path) -> str:
    pytest.importorskip("optuna")
    return f"sqlite:///{tmp_path / 'study.db'}"


def trials(storage: str | None, number: int = 1) -> onnxdecomp.Trials:
    return onnxdecomp.Trials(number=number, storage=storage, study="s" if storage is not None else None)


@pytest.mark.parametrize("goal", [COSTLY, LOSSY], ids=str)
def test_what_is_tuned_last_is_the_best_of_the_trials(goal: Goal, model: Path, sets: SampleSets) -> None:
    pytest.importorskip("optuna")
    found = searched(model, goal, sets, trials=trials(None, 6))
    assert found.study is not None and found.study.states["complete"] >= 1
    assert best_of(found).tuned is not None and found.met
    if goal is COSTLY:
        assert tunings(found) == [best_of(found)] == [found.tried[-1]]
    else:
        assert len(tunings(found)) <= 4


def test_a_trial_that_would_miss_its_goal_as_it_was_fitted_is_tuned(
    model: Path, sets: SampleSets, search: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search ends with its first model, and the trials have found a cheaper one."""
    pytest.importorskip("optuna")
    better = next(each for each in tunings(search(LOSSY, BRIEF)) if (each.fitted_error or 0) > LOSSY.value)
    result = StudyResult(name="s", best=None, front=[], trials=())
    monkeypatch.setattr(hunt, "better_plan", lambda *_: (result, better.plan))
    monkeypatch.setattr(narrowing, "_MOST_FITS", -3)
    found = searched(model, LOSSY, sets, trials=trials(None))
    assert found.plan == better.plan and len(tunings(found)) == 2 and found.met
    assert best_of(found).tuned is not None and not found.tried[2].within(LOSSY)


def test_how_to_tune_is_part_of_a_study_that_bounds_a_loss(
    model: Path, sets: SampleSets, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(model, LOSSY, sets, trials=trials(storage))
    for other in (None, Tuning(steps=41, batch=16, augment=False)):
        with pytest.raises(UsageError, match="study s was made with another `tuning`"):
            searched(model, LOSSY, sets, trials=trials(storage), tuning=other)
    told: list[str] = []
    again = searched(model, LOSSY, sets, trials=trials(storage), progress=lambda e: told.append(e.stage))
    # Its plan is fitted and tuned here, before any trial: the figure is that of this model.
    assert again.met and again.study is not None and best_of(again).tuned is not None
    assert told.index("tuning") < told.index("trying ranks")


def test_whoever_seeks_a_cost_takes_part_tuned_or_not(model: Path, sets: SampleSets, storage: str) -> None:
    plain = searched(model, COSTLY, sets, trials=trials(storage), tuning=None)
    found = searched(model, COSTLY, sets, trials=trials(storage))
    assert found.study is not None and plain.study is not None
    assert found.study.trials == plain.study.trials and found.plan == plain.plan
    assert best_of(found).loss < best_of(plain).loss


# What is refused
# ---------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": None}, "`tuning` trains on samples: name them with `samples`"),
        ({"few": True}, "`samples`: `tuning` needs a sample to train on and one more to hold out"),
        ({"tuning": 600}, "`tuning` takes a Tuning or None, not 600"),
        (
            {"tuning": Tuning(checkpoint="kept")},
            "`tuning`: a search tunes several models; leave `checkpoint`",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_any_work(
    options: dict[str, Any], says: str, model: Path, sets: SampleSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(asking, "baseline")
    few = replace(sets, fitted=sets.fitted[:1]) if options.pop("few", False) else sets
    with pytest.raises(UsageError, match=says):
        searched(model, COSTLY, few, **options)


def test_pytorch_that_is_absent_is_found_before_any_work(
    model: Path, sets: SampleSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delattr(asking, "baseline")
    with pytest.raises(onnxdecomp.MissingExtraError, match="PyTorch, which is not installed"):
        searched(model, COSTLY, sets)
