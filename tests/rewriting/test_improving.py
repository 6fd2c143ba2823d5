"""Rewriting with tuning: the fit, then what `tune` makes of it, and figures that are those of that model."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import onnx
import pytest
from conftest import save
from onnx import ModelProto

pytest.importorskip("torch")

import torch

import onnxdecomp
from onnxdecomp import ProgressEvent, SampleSets, StoppedError, Tuning, UsageError
from onnxdecomp.rewriting import apply, improving
from onnxdecomp.tuning import feeding

IMAGES = nets.structured(64, 3, 8, 8, seed=5)
BRIEF = Tuning(steps=30, batch=16)


def net() -> ModelProto:
    return nets.small_classifier()


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield save(net(), tmp_path / "in.onnx")
    torch.set_num_threads(threads)


@pytest.fixture
def sets(model: Path) -> SampleSets:
    return SampleSets.draw(onnxdecomp.open_samples(IMAGES, model), count=40, tuned=True)


def rewritten(model: Any, **options: Any) -> onnxdecomp.Result:
    return onnxdecomp.rewrite(model, "in=3,out=3", policy=nets.ANYTHING, only="conv", **options)


def test_it_is_what_rewriting_and_then_tuning_come_to(model: Path, sets: SampleSets) -> None:
    result = rewritten(model, data=sets, tuning=BRIEF)
    fitted = rewritten(model, data=sets)
    by_hand = onnxdecomp.tune(model, fitted, sets, tuning=BRIEF)
    assert result.tuned is not None and result.tuned.improved and result.tuned.samples == by_hand.samples
    assert result.model.SerializeToString() == by_hand.model.SerializeToString()
    assert result.model != fitted.model and result.interrupted is None
    # What is said of sites is of the fit; what is said of the model is of the tuned one.
    assert result.sites == fitted.sites
    assert result.check == onnxdecomp.check(model, by_hand) != fitted.check
    held_out = onnxdecomp.measure_quality(model, by_hand, sets.held_out, fitted=len(sets.fitted))
    assert result.quality == held_out != fitted.quality
    assert result.totals.nbytes[1] == result.rewritten.nbytes()
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["tuning"]["outputs"][0]["before"] == by_hand.outputs[0].before and document["complete"]
    assert not {"tuning", "complete"} & fitted.to_dict().keys()
    assert pickle.loads(pickle.dumps(result)).to_dict() == result.to_dict()


@pytest.mark.parametrize("dealt", [True, False])
def test_what_is_held_out_for_measuring_is_not_trained_on(
    dealt: bool, model: Path, sets: SampleSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[set[int], set[int]]] = []

    part_samples = feeding.part_samples

    def parted(samples: onnxdecomp.Samples, *options: Any) -> tuple[list[int], list[int]]:
        parts = part_samples(samples, *options)
        given.append((set(samples.subset(parts[0]).indices), set(samples.subset(parts[1]).indices)))
        return parts

    monkeypatch.setattr(feeding, "part_samples", parted)
    sets = sets if dealt else replace(sets, trained=None)
    rewritten(model, data=sets, tuning=BRIEF)
    ((trained, watched),) = given
    assert not (trained | watched) & set(sets.held_out.indices) and not trained & watched
    assert trained | watched == set(sets.tuned_on.indices)
    # What tells how tuning does is new to the fit, too, where more than that is tuned on.
    assert bool(watched & set(sets.fitted.indices)) is not dealt


def stopping(stage: str, done: int) -> Any:
    """Progress that ends the work then, and whatever is told of it later."""
    over = False

    def progress(event: ProgressEvent) -> None:
        nonlocal over
        over = over or (event.stage, event.done) == (stage, done)
        if over:
            raise StoppedError()

    return progress


def test_an_interruption_keeps_the_best_so_far(model: Path, sets: SampleSets) -> None:
    long = Tuning(steps=100, batch=16)
    result = rewritten(model, data=sets, tuning=long, progress=stopping("tuning", 10))
    assert result.interrupted is not None and result.tuned is not None
    assert 0 < result.tuned.steps < 100 and result.tuned.improved
    assert result.check is not None and result.check.status == "passed" and result.quality is not None
    assert result.to_dict()["complete"] is False is result.to_dict()["tuning"]["complete"]


def test_before_the_first_step_the_best_is_what_was_fitted(model: Path, sets: SampleSets) -> None:
    result = rewritten(model, data=sets, tuning=BRIEF, progress=stopping("running both models", 0))
    assert result.interrupted is not None and result.tuned is None
    assert result.model == rewritten(model, data=sets).model and result.quality is not None
    assert result.to_dict()["complete"] is False and "tuning" not in result.to_dict()


def test_while_it_is_fitted_there_is_nothing_to_keep(model: Path, sets: SampleSets) -> None:
    with pytest.raises(StoppedError):
        rewritten(model, data=sets, tuning=BRIEF, progress=stopping("fitting", 0))


def test_a_plan_without_sites_is_carried_out_and_not_tuned(model: Path, sets: SampleSets) -> None:
    result = onnxdecomp.rewrite(model, plan=onnxdecomp.Plan({}), data=sets, tuning=BRIEF)
    assert result.model == net() and result.tuned is None
    assert improving.NOTHING_TUNED in result.notes


def test_the_size_is_that_of_the_tuned_model() -> None:
    """Half precision may be stored in words of any length; what is trained is stored plainly."""
    arrays = {"s": nets.weight(8, 3, 3, 3), "w": nets.weight(8, 8, 3, 3)}
    proto = nets.model(
        nets.SMALL_CLASSIFIER.replace("float[", "float16["), **{n: a.astype("f2") for n, a in arrays.items()}
    )
    wordy = nets.weight(8, 5).astype("f2")
    proto.graph.initializer.append(onnx.helper.make_tensor("v", onnx.TensorProto.FLOAT16, (8, 5), wordy))
    how = Tuning(train="convs", steps=30, batch=16)
    result = rewritten(proto, data=IMAGES.astype("f2"), tuning=how, check=False)
    assert result.tuned is not None and result.tuned.improved
    assert result.totals.nbytes == (proto.ByteSize(), result.model.ByteSize())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "`tuning` trains on samples: name them with `data`"),
        (IMAGES[:1], "`data`: `tuning` needs a sample to train on and one more to hold out"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_any_work(
    data: Any, says: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(apply, "carry_out")
    with pytest.raises(UsageError, match=says):
        rewritten(model, data=data, tuning=BRIEF)


def test_several_processes_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them would write the same file."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="only `tune` by itself is shared between processes"):
        rewritten(model, data=IMAGES, tuning=BRIEF)


def test_a_batch_that_is_fixed_must_be_there_twice(tmp_path: Path) -> None:
    proto = nets.small_classifier(nets.SMALL_CLASSIFIER.replace("N,", "4,"))
    with pytest.raises(UsageError, match="needs a batch of 4 samples to train on"):
        rewritten(proto, data=IMAGES[:7], tuning=BRIEF)
    assert rewritten(proto, data=IMAGES[:8], tuning=BRIEF, check=False).tuned is not None


def test_pytorch_that_is_absent_is_found_before_any_work(
    model: Path, sets: SampleSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delattr(apply, "carry_out")
    with pytest.raises(onnxdecomp.MissingExtraError, match="PyTorch, which is not installed"):
        rewritten(model, data=sets, tuning=BRIEF)
