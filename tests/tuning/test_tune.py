"""Tuning: what is won back, what stays as it is, and that nothing becomes worse."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import save, save_external, untouched
from onnx import ModelProto, numpy_helper

pytest.importorskip("torch")

import torch

import onnxdecomp
from onnxdecomp import ProgressEvent, StoppedError, Tuning, UsageError, tune
from onnxdecomp.ir import Model, load
from onnxdecomp.tuning import descent, feeding, judging, training
from onnxdecomp.tuning.landmarks import find_landmarks
from onnxdecomp.tuning.operators import table
from onnxdecomp.tuning.trained import find_trained

# A Conv in front of which nothing is trained, a residual branch, a normalisation that is not folded, scores.
NET = """
net (float[N,3,8,8] x) => (float[N,5] y) {
  [stem] a = Conv <pads=[1,1,1,1]> (x, stem)
  b = Relu (a)
  [one] c = Conv <pads=[1,1,1,1]> (b, one, bias)
  d = Relu (c)
  [two] e = Conv <pads=[1,1,1,1]> (d, two)
  f = Add (e, b)
  g = Relu (f)
  h = BatchNormalization (g, s, t, m, v)
  p = GlobalAveragePool (h)
  q = Flatten (p)
  scores = Gemm (q, head)
  y = Softmax (scores)
}
"""
IMAGES = nets.structured(48, 3, 8, 8, seed=5)


@pytest.fixture(autouse=True)
def _one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def net(dtype: Any = np.float32, text: str = NET) -> ModelProto:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "stem": nets.weight(8, 3, 3, 3),
        "one": nets.weight(8, 8, 3, 3, seed=1),
        "two": nets.weight(8, 8, 3, 3, seed=2),
        "bias": nets.signal(8),
        "head": nets.weight(8, 5, seed=3),
        **{name: rng.random(8) + 0.5 for name in "stmv"},
    }
    if dtype != np.float32:
        text = text.replace("float[", "float16[")
    return nets.model(text, **{name: array.astype(dtype) for name, array in arrays.items()})


def chained(original: ModelProto, rank: str = "in=4,out=4", **options: Any) -> ModelProto:
    """The net with chains for the two Convs behind its stem."""
    return nets.rewrite(original, rank, policy=nets.ANYTHING, only="one|two", **options).model


def arrays_of(proto: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def disturbed(proto: ModelProto, by: float) -> ModelProto:
    """The model with noise on its factors, relative to each of them."""
    made = ModelProto()
    made.CopyFrom(proto)
    rng = np.random.default_rng(7)
    for tensor in made.graph.initializer:
        if "tucker" in tensor.name:
            values = numpy_helper.to_array(tensor)
            noise = by * values.std() * rng.standard_normal(values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values + noise).astype(values.dtype), tensor.name))
    return made


def distances(result: onnxdecomp.TuneResult) -> list[tuple[float, float]]:
    gaps = [(gap.before, gap.after) for gap in (*result.outputs, *result.inner)]
    return [(before, after) for before, after in gaps if before is not None and after is not None]


# What is won back
# ----------------


def test_disturbed_factors_of_full_rank_find_back_to_the_original() -> None:
    original = net()
    start = disturbed(chained(original, nets.FULL_RANK), 0.1)
    result = tune(original, start, IMAGES, tuning=Tuning(steps=400, batch=16))
    assert result.improved and result.notes == ()
    assert all(after < before / 6 for before, after in distances(result))
    # What the report says is what is so on other samples.
    others = nets.structured(32, 3, 8, 8, seed=6)
    wanted, before, after = (nets.run(each, x=others) for each in (original, start, result.model))
    assert nets.farthest(wanted, after) < nets.farthest(wanted, before) / 8


@pytest.mark.parametrize(("by", "many"), [(0.01, False), (0.003, False), (0.003, True), (3.0, False)])
def test_steps_are_small_beside_what_they_are_to_make_small(
    by: float, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a part of each tensor's size, up to a hundredth, or two with many samples."""
    rates = []

    def watched(*arguments: Any, **options: Any) -> Any:
        rates.append(arguments[3].rate)
        return descent.descend(*arguments, **options)

    monkeypatch.setattr(training, "descend", watched)
    if many:
        monkeypatch.setattr(training, "_MANY", 32)
    original = net()
    start = disturbed(chained(original, nets.FULL_RANK), by)
    result = tune(original, start, IMAGES, tuning=Tuning(steps=1, batch=16))
    before = result.outputs[0].before
    assert before is not None and rates == [pytest.approx((0.05 if many else 0.025) * min(before, 0.4))]


def test_few_samples_held_out_must_be_nearer_inside_too(monkeypatch: pytest.MonkeyPatch) -> None:
    original = net()
    start = disturbed(chained(original, nets.FULL_RANK), 0.1)
    how = Tuning(steps=20, batch=16)
    result = tune(original, start, IMAGES[:20], tuning=how)
    assert result.samples[1] == 10 and result.improved
    assert result.notes == ("10 held out say little of others: give some hundred samples",)
    error, inside = judging._error, iter((1.0, 0.0))  # after, before

    def worse_inside(found: Any, names: Any) -> float:
        return error(found, names) if "scores" in names else next(inside)

    monkeypatch.setattr(judging, "_error", worse_inside)
    assert not tune(original, start, IMAGES[:20], tuning=how).improved
    assert tune(original, start, IMAGES, tuning=how).improved


def test_a_fit_is_improved_and_the_report_says_where() -> None:
    original = net()
    fitted = chained(original, data=onnxdecomp.open_samples(IMAGES, original))
    result = tune(original, fitted, IMAGES, tuning=Tuning(steps=150, batch=16))
    assert result.improved
    assert [gap.name for gap in result.outputs] == ["scores"] and [gap.name for gap in result.inner] == [
        "d",
        "g",
    ]
    assert result.outputs[0].after is not None and result.outputs[0].before is not None
    assert result.outputs[0].after < 0.8 * result.outputs[0].before
    assert result.samples == (32, 16) and result.steps == 150
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert report["outputs"][0]["after"] == result.outputs[0].after and len(report["curve"]) == 21
    assert set(report["trained"]) == {
        name for name in arrays_of(fitted) if "tucker" in name or name == "bias"
    }


def test_half_precision_is_trained_in_single_and_stays() -> None:
    original = net(np.float16)
    start = disturbed(chained(original, nets.FULL_RANK), 0.1)
    result = tune(original, start, IMAGES.astype(np.float16), tuning=Tuning(steps=200, batch=16))
    assert result.improved and all(after < before / 5 for before, after in distances(result))
    assert {array.dtype for array in arrays_of(result.model).values()} == {np.dtype(np.float16)}


# Labels
# ------


def classes_of(model: ModelProto, images: np.ndarray) -> np.ndarray:
    (scores,) = nets.run(model, x=images).values()
    return scores.argmax(axis=1)


def test_labels_are_learnt_where_the_teacher_does_not_know_them() -> None:
    """One class in two is exchanged for another: what is trained follows the labels, as far as it can."""
    original = net()
    start = chained(original, nets.FULL_RANK)
    labels = (classes_of(original, IMAGES) + 1) % 5
    without, within = (
        tune(original, start, IMAGES, labels=each, tuning=Tuning(steps=60, batch=16, train="convs"))
        for each in (None, labels)
    )
    assert without.accuracy is None and within.accuracy is not None
    assert (labels == classes_of(original, IMAGES)).mean() == 0
    found = (labels == classes_of(within.tuned.proto, IMAGES)).mean()
    assert found >= (labels == classes_of(without.tuned.proto, IMAGES)).mean()


def test_accuracy_and_agreement_are_those_of_the_samples_held_out() -> None:
    original = net()
    start = disturbed(chained(original, nets.FULL_RANK), 1.5)
    truth = classes_of(original, IMAGES)
    result = tune(original, start, IMAGES, labels=truth, tuning=Tuning(steps=60, batch=16))
    held_out = IMAGES[feeding.part_samples(onnxdecomp.open_samples(IMAGES, original), 0)[1]]
    known = classes_of(original, held_out)
    shares = [float((known == classes_of(each, held_out)).mean()) for each in (start, result.model)]
    assert result.agreement == pytest.approx(shares) and result.accuracy == pytest.approx([1.0, *shares])
    assert shares[1] > shares[0]
    assert result.to_dict()["accuracy"]["after"] == pytest.approx(shares[1])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(47, int), "48 samples need one class each"),
        (np.full(48, 5), "class 5, but 'scores' has scores for 0 to 4"),
        (np.full(48, -1), "class -1, but"),
        (np.zeros(48), "classes are integers"),
        ("no.csv", "No such file"),
    ],
)
def test_labels_that_do_not_match_are_refused(labels: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        tune(net(), chained(net()), IMAGES, labels=labels, tuning=Tuning(steps=1))
    assert "labels" in str(caught.value) and "\n" not in str(caught.value)


def test_labels_need_an_output_of_scores() -> None:
    text = """m (float[N,8,6,6] x) => (float[N,8,6,6] y) {
      [one] a = Conv <pads=[1,1,1,1]> (x, w)
      y = Relu (a)
    }"""
    proto = nets.model(text, w=nets.weight(8, 8, 3, 3))
    made = nets.rewrite(proto, 0.5, policy=nets.ANYTHING).model
    with pytest.raises(UsageError, match="`labels`: no output of the model has one score per class"):
        tune(proto, made, nets.signal(20, 8, 6, 6), labels=[0] * 20, tuning=Tuning(steps=1))


# What stays
# ----------


@pytest.mark.parametrize("train", ["factors", "factors+norms", "convs"])
def test_nothing_but_what_is_trained_differs(train: str) -> None:
    original = net()
    start = chained(original, fold_bn=False)
    result = tune(original, start, IMAGES, tuning=Tuning(train=train, steps=5, batch=16))
    factors = {name for name in arrays_of(start) if "tucker" in name or name == "bias"}
    more = {"factors": set(), "factors+norms": {"s", "t"}, "convs": {"stem", "head"}}[train]
    assert set(result.trained) == factors | more
    before, after = arrays_of(start), arrays_of(result.model)
    assert {name for name in after if not np.array_equal(after[name], before[name])} == set(result.trained)
    for proto in (rest := [ModelProto(), ModelProto()]):
        proto.CopyFrom(start if proto is rest[0] else result.model)
        for tensor in proto.graph.initializer:
            if tensor.name in result.trained:
                tensor.ClearField("raw_data")
    assert rest[0].SerializeToString(deterministic=True) == rest[1].SerializeToString(deterministic=True)


def test_external_data_stay_external_and_the_inputs_are_not_touched(tmp_path: Path) -> None:
    original, start = save(net(), tmp_path / "in.onnx"), chained(net())
    outside = save_external(start, tmp_path / "out.onnx")
    with untouched(tmp_path, "tuned.onnx", "tuned.onnx.data"):
        result = tune(original, outside, IMAGES, tuning=Tuning(steps=5, batch=16))
        result.save(tmp_path / "tuned.onnx")
        for path in (original, outside, tmp_path / "out.onnx.data"):
            with pytest.raises(UsageError, match="belongs to the input"):
                result.save(path)
    inside = tune(net(), start, IMAGES, tuning=Tuning(steps=5, batch=16))
    written, wanted = arrays_of(onnx.load(tmp_path / "tuned.onnx")), arrays_of(inside.model)
    assert all(np.array_equal(written[name], wanted[name]) for name in wanted)


def test_the_same_seed_gives_the_same_bytes() -> None:
    original = net()
    start = chained(original)
    first, again, other = (
        tune(original, start, IMAGES, tuning=Tuning(steps=20, batch=16, seed=seed)).model.SerializeToString()
        for seed in (3, 3, 4)
    )
    assert first == again != other
    still = tune(original, start, IMAGES, tuning=Tuning(steps=20, batch=16, seed=3, augment=False)).model
    assert still.SerializeToString() != first


def test_an_initialiser_that_callers_may_override_is_not_trained() -> None:
    original, start = net(), chained(net())
    factor = next(name for name in arrays_of(start) if "tucker" in name)
    start.graph.input.append(
        onnx.helper.make_tensor_value_info(factor, onnx.TensorProto.FLOAT, arrays_of(start)[factor].shape)
    )
    trained = find_trained(as_model(original), as_model(start), "factors")
    assert factor not in trained and len(trained) > 1


def test_a_step_is_as_long_as_the_tensor_is_large() -> None:
    """Factors of one chain differ by orders of magnitude; what is 0 moves as the others do."""
    tensors = [torch.full((3, 2), size) for size in (1e-3, 1.0, -50.0)] + [torch.zeros(4)]
    assert descent.relative_scales(tensors) == pytest.approx([1e-3, 1.0, 50.0, 1.0])
    assert descent.relative_scales([torch.zeros(2)]) == [1.0]


def test_the_rate_rises_and_falls_once() -> None:
    rates = [descent.one_cycle(way) for way in np.linspace(0, 1, 101)]
    top = int(np.argmax(rates))
    assert max(rates) == 1 and 0 < rates[0] < 0.1 and rates[-1] == pytest.approx(0, abs=1e-9)
    assert sorted(rates[:top]) == rates[:top] and sorted(rates[top:], reverse=True) == rates[top:]


# Never worse
# -----------


def test_an_absurd_rate_keeps_what_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    original = net()
    start = chained(original, data=onnxdecomp.open_samples(IMAGES, original))
    monkeypatch.setattr(training, "_RATE", 1e4)
    result = tune(original, start, IMAGES, tuning=Tuning(steps=40, batch=16))
    assert not result.improved and result.model == start
    assert any("a tenth of the rate" in note for note in result.notes)
    monkeypatch.setattr(training, "_RATE", float("nan"))
    assert tune(original, start, IMAGES, tuning=Tuning(steps=40, batch=16)).model == start


def test_after_a_divergence_it_goes_on_from_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step goes far astray, and none of the others goes anywhere."""
    monkeypatch.setattr(descent, "one_cycle", lambda way: 0.0 if way else 1e6)
    original = net()
    result = tune(
        original, disturbed(chained(original, nets.FULL_RANK), 0.1), IMAGES, tuning=Tuning(steps=40, batch=16)
    )
    assert any("a tenth of the rate" in note for note in result.notes)
    assert result.curve[0][1] == result.curve[-1][1] and not result.improved


def test_onnx_runtime_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the loop took for the best: what is farther off there is not kept."""
    original = net()
    start = chained(original, data=onnxdecomp.open_samples(IMAGES, original))

    def misled(crew: Any, *_: object, **__: object) -> descent.Descent:
        best = {name: 1.5 * tensor.detach().numpy() for name, tensor in crew.program.parameters.items()}
        return descent.Descent(best=best, curve=(), steps=1, restarted=False, interrupted=None)

    monkeypatch.setattr(training, "descend", misled)
    result = tune(original, start, IMAGES, tuning=Tuning(steps=1))
    assert not result.improved and result.model == start
    assert result.outputs[0].after is not None and result.outputs[0].before is not None
    assert result.outputs[0].after > result.outputs[0].before


def test_a_time_limit_that_is_over_at_once_changes_nothing_and_says_so() -> None:
    start = chained(net())
    result = tune(net(), start, IMAGES, tuning=Tuning(time_limit=1e-9))
    assert not result.improved and result.model == start and "no step was made" in result.notes[0]


def test_an_interruption_keeps_the_best_so_far() -> None:
    def progress(event: ProgressEvent) -> None:
        if event.stage == "tuning" and event.done == 10:
            raise StoppedError()

    original = net()
    start = disturbed(chained(original, nets.FULL_RANK), 0.1)
    result = tune(original, start, IMAGES, tuning=Tuning(steps=100, batch=16), progress=progress)
    assert result.interrupted is not None and result.improved and result.steps == 50
    assert not result.to_dict()["complete"]


# Where gradients end
# -------------------


def test_an_operator_that_is_not_computed_ends_gradients_and_fails_nothing() -> None:
    text = NET.replace("h = Batch", "k = Hardmax <axis=1> (d)\n  z = Conv (k, head4)\n  h = Batch")
    text = text.replace("(float[N,5] y)", "(float[N,5] y, float[N,5,8,8] z)")
    original = net(text=text.replace("head4", "wide"))
    original.graph.initializer.append(numpy_helper.from_array(nets.weight(5, 8, 1, 1), "wide"))
    start = disturbed(chained(original, nets.FULL_RANK), 0.1)
    result = tune(original, start, IMAGES, tuning=Tuning(steps=100, batch=16))
    assert result.improved
    (note, _) = result.notes
    assert "1 of 4 tensors" in note and "'z'" in note
    assert [gap.name for gap in result.outputs] == ["scores", "z"]


@pytest.mark.parametrize("blind", ["Hardmax <axis=1>", "Atan"])
def test_behind_an_operator_that_is_not_computed_blocks_are_tuned_by_themselves(
    blind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients end there, both in front of it and behind what is trained finds back."""
    known = {name: entry for name, entry in table.TABLE.items() if name != blind}
    monkeypatch.setattr(table, "TABLE", known)
    text = NET.replace("[1,1,1,1]> (d, two)", "[1,1,1,1]> (k, two)")
    text = text.replace("f = Add (e, b)", "f = Add (e, k)").replace(
        "d = Relu (c)", f"d = Relu (c) k = {blind} (d)"
    )
    original = net(text=text)
    start = disturbed(chained(original, nets.FULL_RANK), 0.1)
    result = tune(original, start, IMAGES, tuning=Tuning(steps=150, batch=16))
    assert result.improved and len(result.trained) == 7
    assert "'k'" in result.notes[0] and "tuned by itself" in result.notes[0]
    gaps = {gap.name: gap for gap in (*result.outputs, *result.inner)}
    assert set(gaps) == {"scores", "d", "g"}
    assert all((gap.after or 0) < 0.5 * (gap.before or 0) for gap in gaps.values())


def test_where_no_gradient_comes_from_the_outputs_the_last_tensor_before_is_watched() -> None:
    original = net(text=NET.replace("q = Flatten (p)", "w = Flatten (p)\n  q = Hardmax (w)"))
    start = disturbed(chained(original, nets.FULL_RANK), 0.1)
    result = tune(original, start, IMAGES, tuning=Tuning(steps=60, batch=16))
    assert "'scores'" in result.notes[0] and result.curve[-1][1] < result.curve[0][1]


def test_where_nothing_can_be_computed_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "TABLE", {})
    original = net()
    start = chained(original)
    result = tune(original, start, IMAGES, tuning=Tuning(steps=5))
    assert not result.improved and result.model == start and result.steps == 0 and result.notes


def test_where_no_gradient_passes_nothing_is_trained_on() -> None:
    text = """m (float[N,8,6,6] x) => (float[N,8,6,6] y) {
      [one] a = Conv <pads=[1,1,1,1]> (x, w)
      b = Floor (a)
      c = Greater (a, b)
      y = Cast <to=1> (c)
    }"""
    proto = nets.model(text, w=nets.weight(8, 8, 3, 3))
    made = nets.rewrite(proto, 0.5, policy=nets.ANYTHING).model
    result = tune(proto, made, nets.structured(40, 8, 6, 6, seed=5), tuning=Tuning(steps=3))
    assert not result.improved and "no gradient passes" in result.notes[0]


def test_what_pytorch_computes_otherwise_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher must not be followed by a pupil who reckons otherwise."""
    wrong = table.Entry(lambda x: x.abs())
    monkeypatch.setattr(table, "TABLE", {**table.TABLE, "Relu": (wrong,)})
    original = net(text=NET.replace("b = Relu (a)", "b = Sigmoid (a)"))
    result = tune(original, disturbed(chained(original), 0.1), IMAGES, tuning=Tuning(steps=5))
    assert "PyTorch computes it otherwise" in result.notes[0]


# Landmarks
# ---------


def as_model(proto: ModelProto) -> Model:
    return Model(proto=proto, folder=Path())


def test_landmarks_are_what_both_have_behind_activations_and_residual_adds() -> None:
    original, made = as_model(net()), as_model(chained(net()))
    trained = find_trained(original, made, "factors")
    found = find_landmarks(original, made, trained.keys())
    # In front of b nothing is trained; f is what g is made of.
    assert (found.inner, found.outputs) == (("d", "g"), ("scores",))


def test_a_sum_that_nothing_follows_and_a_gate_are_landmarks() -> None:
    text = """m (float[N,8,6,6] x) => (float[N,8,6,6] y) {
      [one] a = Conv <pads=[1,1,1,1]> (x, w)
      s = Sigmoid (a)
      b = Mul (a, s)
      c = Add (b, x)
      [two] d = Conv <pads=[1,1,1,1]> (c, w)
      e = Add (d, k)
      y = Softmax <axis=1> (e)
    }"""
    proto = nets.model(text, w=nets.weight(8, 8, 3, 3), k=nets.signal(8, 1, 1))
    made = nets.rewrite(proto, 0.5, policy=nets.ANYTHING).model
    trained = find_trained(as_model(proto), as_model(made), "factors")
    found = find_landmarks(as_model(proto), as_model(made), trained.keys())
    assert (found.inner, found.outputs) == (("b", "c"), ("e",))


def test_shapes_and_classes_are_none() -> None:
    """What is computed of them does not follow smoothly from what is trained."""
    text = """m (float[N,8,6,6] x) => (float[?,?,?,?] y, int64[N,1,6,6] best) {
      [one] a = Conv <pads=[1,1,1,1]> (x, w)
      b = Relu (a)
      s = Shape (b)
      t = Shape (x)
      u = Add (s, t)
      v = Sub (u, t)
      best = ArgMax <axis=1> (b)
      y = Reshape (b, v)
    }"""
    proto = nets.model(text, w=nets.weight(8, 8, 3, 3))
    made = disturbed(nets.rewrite(proto, nets.FULL_RANK, policy=nets.ANYTHING).model, 0.1)
    trained = find_trained(as_model(proto), as_model(made), "factors")
    found = find_landmarks(as_model(proto), as_model(made), trained.keys())
    assert (found.inner, found.outputs) == (("b",), ("y",))
    assert tune(proto, made, nets.structured(40, 8, 6, 6, seed=5), tuning=Tuning(steps=60, batch=16)).improved


def test_without_an_output_of_floats_the_inside_is_judged() -> None:
    text = """m (float[N,8,6,6] x) => (int64[N,1,6,6] best) {
      [one] a = Conv <pads=[1,1,1,1]> (x, w)
      b = Relu (a)
      best = ArgMax <axis=1> (b)
    }"""
    proto = nets.model(text, w=nets.weight(8, 8, 3, 3))
    made = disturbed(nets.rewrite(proto, nets.FULL_RANK, policy=nets.ANYTHING).model, 0.1)
    result = tune(proto, made, nets.structured(40, 8, 6, 6, seed=5), tuning=Tuning(steps=60, batch=16))
    assert result.improved and result.outputs == ()


# What is refused
# ---------------

ORIGINAL, START = net(), chained(net())
OTHER = nets.model(
    "o (float[N,3,8,8] x) => (float[N,192] z) { q = Flatten (x) z = Add (q, w) }", w=nets.signal(192)
)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rewritten": ORIGINAL}, "`rewritten` has no factors to train"),
        ({"rewritten": OTHER}, "`rewritten` is not made of `original`: output 'y'"),
        ({"samples": IMAGES[:1]}, "`samples`: tuning needs a sample to train on and one more"),
        ({"samples": np.full_like(IMAGES, np.nan)}, "NaN"),
        ({"train": "all"}, "`train` all: there are factors, factors.norms, convs"),
        ({"steps": 0}, "`steps` 0"),
        ({"batch": 0}, "`batch` 0"),
        ({"seed": -1}, "`seed` -1"),
        ({"time_limit": 0}, "`time_limit` 0"),
        ({"time_limit": float("inf")}, "`time_limit` inf"),
        ({"device": "tpu"}, "`device` tpu: there are cpu, cuda"),
    ],
)
def test_what_cannot_be_meant_is_one_line(arguments: dict[str, Any], says: str) -> None:
    given = {"original": ORIGINAL, "rewritten": START, "samples": IMAGES} | arguments
    options = {name: given.pop(name) for name in arguments if name in Tuning.__slots__}
    with pytest.raises(UsageError, match=says) as caught:
        tune(**given, tuning=Tuning(**{"steps": 1, **options}))
    assert "\n" not in str(caught.value)


def test_models_of_other_shapes_are_refused() -> None:
    """Names alone do not make a model the original of another."""
    smaller = net(text=NET.replace("[stem] a = Conv <pads", "[stem] a = Conv <strides=[2,2], pads"))
    with pytest.raises(UsageError, match="tensor 'd' has the shape"):
        tune(smaller, START, IMAGES, tuning=Tuning(steps=1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(UsageError, match=r"`device` cuda: PyTorch .* finds none here"):
        tune(ORIGINAL, START, IMAGES, tuning=Tuning(device="cuda"))


@pytest.mark.parametrize(("version", "says"), [(None, "not installed"), ("2.5.1+cpu", r"2\.6 or later")])
def test_pytorch_that_is_absent_or_old_is_one_line(
    version: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = None if version is None else ModuleType("torch")
    if module is not None:
        module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, "torch", module)
    with pytest.raises(onnxdecomp.MissingExtraError, match=says) as caught:
        tune(ORIGINAL, START, IMAGES)
    assert 'pip install "onnxdecomp[torch]"' in str(caught.value)


def test_results_and_paths_are_taken_for_models(tmp_path: Path) -> None:
    path = save(ORIGINAL, tmp_path / "in.onnx")
    result = nets.rewrite(path, 0.5, policy=nets.ANYTHING, only="one|two")
    tuned = tune(path, result, onnxdecomp.open_samples(IMAGES, path), tuning=Tuning(steps=3, batch=16))
    assert [output.name for output in onnxdecomp.compare(path, tuned)] == ["y"]
    assert load(path).proto == ORIGINAL
