"""What a site's error does to the outputs: as predicted by the walk, as the edited model has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from conftest import save
from onnx import ModelProto, numpy_helper

from onnxdecomp import Choice, Policy, Ranks, open_samples
from onnxdecomp.comparing import Tally
from onnxdecomp.ir import load, survey
from onnxdecomp.planning import Unit
from onnxdecomp.progress import silent
from onnxdecomp.sampling import Samples, deal
from onnxdecomp.searching import probe
from onnxdecomp.searching.candidates import find_candidates
from onnxdecomp.searching.figures import Figures
from onnxdecomp.searching.probe import UNREACHED, output_losses, weight_losses

# A fold, a residual, groups, a Conv without bias, one whose weight two sites share side by side, a Gemm with
# factors of its own, a ConvTranspose, an output that early sites alone lead to, and one of classes.
NET = """m (float[N,8,9,9] x) => (float[N,12] y, float[N,12,9,9] early, int64[N,1] top) {
  [fold] a = Conv <pads=[1,1,1,1]> (x, wa, ba)
  na = BatchNormalization (a, scale, shift, mean, var)
  early = Relu (na)
  [grouped] b = Conv <pads=[1,1,1,1], group=2> (early, wb, bb)
  s = Add (b, early)
  r = Relu (s)
  [bare] b4 = Conv <strides=[2,2]> (r, wc)
  [up] c = ConvTranspose <strides=[2,1], pads=[1,0,0,1]> (b4, wu, bu)
  [left] d = Conv (c, wd, bd)
  t = Tanh (c)
  [right] e = Conv (t, wd, be)
  f = Mul (d, e)
  g = GlobalAveragePool (f)
  h = Flatten (g)
  [dense] y = Gemm <alpha=0.5, beta=2.0> (h, wg, bg)
  top = ArgMax <axis=1> (y)
}"""
ARRAYS = {
    "wa": (12, 8, 3, 3), "ba": (12,), "scale": (12,), "shift": (12,), "mean": (12,), "wb": (12, 6, 3, 3),
    "bb": (12,), "wc": (10, 12, 3, 3), "wd": (14, 10, 1, 1), "bd": (14,), "be": (14,), "wg": (14, 12),
    "bg": (12,), "wu": (10, 10, 3, 2), "bu": (10,),
}  # fmt: skip
POLICY = Policy(align=1, min_channels=4, linear=True)


def net() -> ModelProto:
    arrays = {
        name: nets.weight(*shape, seed=i) if len(shape) > 1 else nets.signal(*shape, seed=i)
        for i, (name, shape) in enumerate(ARRAYS.items())
    }
    return nets.model(NET, var=np.abs(nets.signal(12, seed=77)) + 0.5, **arrays)


def probed(proto: ModelProto, samples: Samples, folder: Path) -> dict[str, tuple[Unit, Figures]]:
    model = load(save(proto, folder / "probed.onnx"))
    found = survey(model, input_shapes={}, freeze=False, fold_bn=True, linear=True)
    units = find_candidates(found, POLICY)
    losses = output_losses(found, units, samples, folder, silent)
    assert [path.name for path in folder.iterdir()] == ["probed.onnx"]
    return {unit.name: (unit, each) for unit, each in zip(units, losses, strict=True)}


def edited(proto: ModelProto, site: str, products: Sequence[np.ndarray], shifts: Sequence[Any]) -> ModelProto:
    """The model with another weight at a site and its bias shifted: nothing of the package takes part."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    values = {t.name: numpy_helper.to_array(t) for t in copy.graph.initializer}
    (node,) = (n for n in copy.graph.node if n.name == site)
    shift = np.concatenate(
        [np.zeros(len(p)) if s is None else s for p, s in zip(products, shifts, strict=True)]
    )
    if node.op_type == "Gemm":
        (weight,) = products
        weight, bias = weight.T, values[node.input[2]] + 0.5 / 2.0 * shift
    else:
        kernel = values[node.input[1]].shape[2:]
        shaped = [np.moveaxis(p.reshape(len(p), *kernel, -1), -1, 1) for p in products]
        weight = np.concatenate(shaped)
        weight = weight.swapaxes(0, 1) if node.op_type == "ConvTranspose" else weight
        bias = (values[node.input[2]] if len(node.input) > 2 else 0) + shift
    readers = [n for n in copy.graph.node if node.output[0] in n.input]
    if readers[0].op_type == "BatchNormalization":
        scale, beta, mean, var = (values[name] for name in readers[0].input[1:])
        slope = scale / np.sqrt(var + 1e-5)
        bias = (values[node.input[2]] - mean) * slope + beta + shift
        node.output[0] = readers[0].output[0]
        copy.graph.node.remove(readers[0])
    for name, array in (("new weight", weight), ("new bias", bias)):
        copy.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    node.input[:] = [node.input[0], "new weight", "new bias"]
    return copy


def share(a: np.ndarray, b: np.ndarray) -> float:
    if a.dtype.kind == "i":
        return float((a != b).mean())
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a - b) ** 2).sum() / (a**2).sum())


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[np.ndarray], list[Any]]]:
    """What the probe puts in the place of weights, choice by choice."""
    seen: list[tuple[list[np.ndarray], list[Any]]] = []
    real = probe._fitted

    def fitted(*arguments: Any) -> Any:
        found = real(*arguments)
        seen.extend(found)
        return found

    monkeypatch.setattr(probe, "_fitted", fitted)
    return seen


def test_a_sites_loss_is_that_of_the_model_with_its_weight(tmp_path: Path, weights: list[Any]) -> None:
    proto = net()
    samples = open_samples([{"x": nets.structured(90, 8, 9, 9, seed=5)}], proto)
    found = probed(proto, samples, tmp_path)
    assert list(found) == ["fold", "grouped", "bare", "up", "left", "dense"]
    feeds = list(deal(samples)[0].batches(16))
    assert 1 < len(feeds) <= 4
    originals = [nets.run(proto, **feed) for feed in feeds]
    remaining = iter(weights)
    for name, (unit, losses) in found.items():
        assert losses.note is None and len(losses.measured) >= 2
        for choice, loss in losses.measured:
            products, shifts = next(remaining)
            expected = 0.0
            for site in unit.sites:
                changed = [nets.run(edited(proto, site.name, products, shifts), **feed) for feed in feeds]
                expected += sum(
                    share(*(np.concatenate([run[output] for run in runs]) for runs in (originals, changed)))
                    for output in originals[0]
                ) / len(originals[0])
            assert loss == pytest.approx(expected, rel=1e-3), (name, choice)
            assert loss > 0
            # The curve goes through what was measured, but where more was lost at a lower rank.
            assert losses.choices[unit.choices.index(choice)] >= loss * (1 - 1e-6)
        assert np.isfinite(losses.choices).all()
    assert len(found["left"][0].sites) == 2
    assert next(remaining, None) is None


def test_ranks_that_a_weight_has_lose_nothing(tmp_path: Path) -> None:
    text = """m (float[N,16,6,6] x) => (float[N,16,6,6] y) {
      [wide] h = Conv <pads=[1,1,1,1]> (x, w, b)
      [point] y = Conv (h, v)
    }"""
    out, core, into = nets.weight(16, 2), nets.weight(2, 2, 3, 3), nets.weight(2, 16)
    proto = nets.model(
        text,
        w=np.einsum("ds,srhw,rc->dchw", out, core, into),
        b=nets.signal(16),
        v=(nets.weight(16, 2, seed=3) @ nets.weight(2, 16, seed=4)).reshape(16, 16, 1, 1),
    )
    samples = open_samples([{"x": nets.signal(24, 16, 6, 6)}], proto)
    for unit, losses in probed(proto, samples, tmp_path).values():
        assert max(loss for _, loss in losses.measured) < 1e-9
        enough = [
            loss
            for choice, loss in zip(unit.choices, losses.choices, strict=True)
            if min(choice.ranks.input or 2, choice.ranks.output or 2) >= 2
        ]
        assert enough and max(enough) < 1e-9


def test_sites_one_behind_the_other_may_share_a_weight(tmp_path: Path) -> None:
    text = """m (float[N,16,8,8] x) => (float[N,16,8,8] y) {
      [first] h = Conv <pads=[1,1,1,1]> (x, w)
      r = Relu (h)
      [between] k = Conv <pads=[1,1,1,1]> (r, v)
      s = Add (k, r)
      [second] y = Conv <pads=[1,1,1,1]> (s, w)
    }"""
    proto = nets.model(text, w=nets.weight(16, 16, 3, 3), v=nets.weight(16, 16, 3, 3, seed=4))
    found = probed(proto, open_samples([{"x": nets.structured(24, 16, 8, 8, seed=1)}], proto), tmp_path)
    assert list(found) == ["first", "between"]
    for _, losses in found.values():
        assert losses.measured and all(0 < loss < 4 for _, loss in losses.measured)


def test_bodies_of_other_nodes_are_not_reached_and_it_is_said(tmp_path: Path) -> None:
    proto = nets.branching()
    feeds = [{"x": nets.signal(8, 16, 6, 6, seed=i), "flag": np.array(True)} for i in range(3)]
    found = probed(proto, open_samples(feeds, proto), tmp_path)
    notes = {name.rpartition("/")[2]: losses.note for name, (_, losses) in found.items()}
    assert notes == {"outer": None, "inner": UNREACHED}
    (inner,) = (each for each in found.values() if each[1].note)
    assert not inner[1].measured and all(0 < loss <= 1 for loss in inner[1].choices)


def test_a_weight_that_is_not_finite_is_never_chosen(tmp_path: Path) -> None:
    weight = nets.weight(16, 16, 3, 3)
    weight[0, 0, 0, 0] = np.nan
    proto = nets.model(
        "m (float[N,16,6,6] x) => (float[N,16,6,6] y) { [site] y = Conv <pads=[1,1,1,1]> (x, w) }", w=weight
    )
    ((unit, losses),) = probed(
        proto, open_samples([{"x": nets.signal(8, 16, 6, 6)}], proto), tmp_path
    ).values()
    assert losses.note and np.isinf(losses.choices).all()
    (alone,) = weight_losses([unit], tmp_path, silent)
    assert alone.note == losses.note and np.isinf(alone.choices).all()


def test_without_samples_the_error_of_the_weights_counts(tmp_path: Path) -> None:
    """As plain truncation by higher-order SVD has it, which the factors can only better."""
    model = load(save(net(), tmp_path / "m.onnx"))
    found = survey(model, input_shapes={}, freeze=False, fold_bn=True, linear=True)
    units = {unit.name: unit for unit in find_candidates(found, POLICY)}
    losses = dict(zip(units, weight_losses(list(units.values()), tmp_path, silent), strict=True))
    weight = nets.constants(net())["wg"]
    tail = np.linalg.svd(weight, compute_uv=False) ** 2
    for rank in range(1, 5):
        choice = Choice("svd", Ranks(rank, rank))
        index = units["dense"].choices.index(choice)
        assert losses["dense"].choices[index] == pytest.approx(tail[rank:].sum() / tail.sum(), abs=1e-7)


def test_the_reference_changes_nothing_where_the_weight_is_its_own() -> None:
    """A site edited to its own weight leaves the outputs where they are."""
    proto = net()
    feed = {"x": nets.structured(4, 8, 9, 9, seed=2)}
    values = nets.constants(proto)
    slope = values["scale"] / np.sqrt(values["var"] + 1e-5)
    own = {"fold": values["wa"] * slope[:, None, None, None], "bare": values["wc"], "dense": values["wg"].T}
    for site, weight in own.items():
        flat = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
        same = nets.run(edited(proto, site, [flat], [None]), **feed)
        assert nets.farthest(nets.run(proto, **feed), same) < 1e-5


def test_what_is_lost_of_an_output() -> None:
    a, b = nets.signal(2, 3, 5, seed=1), nets.signal(2, 3, 5, seed=2)
    tally = Tally()
    assert tally.share == 0
    for one, other in zip(a, b, strict=True):
        tally.add(one, other)
    assert tally.share == pytest.approx(share(a, b))
    for one, other, lost in (
        (np.zeros(3), np.zeros(3), 0.0),
        (np.zeros(3), np.ones(3), 1.0),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4]), 0.25),
        (np.array([True, False]), np.array([True, True]), 0.5),
        (np.ones((2, 3)), np.ones((1, 3)), 1.0),
        (np.float16([200, 200]), np.float16([200, -200]), 2.0),
    ):
        tally = Tally()
        tally.add(one, other)
        assert tally.share == lost
