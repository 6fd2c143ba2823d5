"""Factors fitted to samples, end to end: how much better they are, and that they never harm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from conftest import save_external
from nets import rewrite
from onnx import ModelProto

from onnxdecomp import Choice, Plan, Policy, Ranks, UsageError, open_samples
from onnxdecomp.fitting import Fit, Prepared, gathering
from onnxdecomp.fitting import sequence as calibrate
from onnxdecomp.ir import as_model, survey
from onnxdecomp.progress import silent
from onnxdecomp.rewriting import Result
from onnxdecomp.searching.candidates import find_candidates

Feed = dict[str, np.ndarray]


def result(
    proto: ModelProto | Path, feeds: Iterable[Feed] | None, plan: Plan | str, **options: Any
) -> Result:
    loaded = onnx.load(proto, load_external_data=False) if isinstance(proto, Path) else proto
    data = None if feeds is None else open_samples(list(feeds), loaded)
    if isinstance(plan, str):
        options = {"policy": nets.ANYTHING} | options
        return rewrite(proto, plan, data=data, **options)
    return rewrite(proto, plan=plan, data=data, **options)


def fits(done: Result) -> dict[str, Fit]:
    return {report.site.name: report.fit for report in done.sites if report.fit is not None}


def only_fit(done: Result) -> Fit:
    (found,) = fits(done).values()
    return found


def error(original: ModelProto, rewritten: ModelProto, feed: Feed) -> float:
    return nets.farthest(nets.run(original, **feed), nets.run(rewritten, **feed))


def assert_finite(proto: ModelProto) -> None:
    for name, values in nets.constants(proto).items():
        assert values.dtype.kind not in "f" or np.isfinite(values).all(), name


@dataclass(frozen=True)
class Case:
    """A model of one site called `site`, how to decompose it, and the channels and sizes of its input."""

    text: str
    choice: Choice
    weight: tuple[int, ...]
    input: tuple[int, ...]
    arrays: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def model(self) -> ModelProto:
        arrays = {name: nets.signal(*shape, seed=7 + i) for i, (name, shape) in enumerate(self.arrays)}
        arrays |= {name: np.abs(array) + 0.5 for name, array in arrays.items() if name == "var"}
        return nets.model(self.text, w=nets.weight(*self.weight), **arrays)

    @property
    def plan(self) -> Plan:
        return Plan({"site": self.choice})

    def feed(self, count: int, seed: int) -> Feed:
        return {"x": nets.structured(count, *self.input, seed=seed)}


def conv(
    attributes: str, weight: tuple[int, ...], sizes: str, out: str, method: str, *ranks: int | None
) -> Case:
    groups = int(attributes.split("group=")[1][0]) if "group" in attributes else 1
    text = (
        f"m (float[N,{weight[1] * groups},{sizes}] x) => (float[N,{weight[0]},{out}] y)"
        f"{{ [site] y = Conv <{attributes}> (x, w, b) }}"
    )
    shape = (weight[1] * groups, *map(int, sizes.split(",")))
    return Case(text, Choice(method, Ranks(*ranks)), weight, shape, (("b", (weight[0],)),))


PAD = "pads=[1,1,1,1]"
NORM = (("b", (16,)), ("scale", (16,)), ("shift", (16,)), ("mean", (16,)), ("var", (16,)))
CASES = {
    "tucker2": conv(PAD, (16, 12, 3, 3), "7,7", "7,7", "tucker2", 4, 5),
    "tucker1 in": conv(PAD, (16, 12, 3, 3), "7,7", "7,7", "tucker1", 4, None),
    "tucker1 out": conv(PAD, (16, 12, 3, 3), "7,7", "7,7", "tucker1", None, 5),
    "svd": conv("pads=[0,0,0,0]", (16, 12, 1, 1), "7,7", "7,7", "svd", 4, 4),
    "spatial": conv(PAD, (16, 12, 3, 3), "7,7", "7,7", "spatial", 6, 6),
    "grouped": conv(f"{PAD}, group=2", (16, 8, 3, 3), "7,7", "7,7", "tucker2", 3, 3),
    "strided": conv(f"{PAD}, strides=[2,2]", (16, 12, 3, 3), "8,8", "4,4", "tucker2", 4, 5),
    "dilated": conv("pads=[2,0,2,0], dilations=[2,1]", (16, 12, 3, 3), "7,7", "7,5", "tucker2", 4, 5),
    "same": conv('auto_pad="SAME_LOWER", strides=[2,2]', (16, 12, 4, 4), "9,9", "5,5", "tucker2", 4, 5),
    "1-D": conv("pads=[1,1]", (16, 12, 3), "20", "20", "tucker2", 4, 5),
    "3-D": conv("pads=[1,1,1,1,1,1]", (16, 12, 3, 3, 3), "4,4,4", "4,4,4", "tucker2", 4, 5),
    "spatial 3-D": conv("pads=[1,1,1,1,1,1]", (16, 12, 3, 3, 3), "4,4,4", "4,4,4", "spatial", 6, 6),
    "no bias": Case(
        "m (float[N,12,7,7] x) => (float[N,16,5,5] y) { [site] y = Conv (x, w) }",
        Choice("tucker2", Ranks(4, 5)), (16, 12, 3, 3), (12, 7, 7),
    ),
    "batch norm": Case(
        "m (float[N,12,7,7] x) => (float[N,16,5,5] y) { [site] h = Conv (x, w, b)"
        " y = BatchNormalization (h, scale, shift, mean, var) }",
        Choice("tucker2", Ranks(4, 5)), (16, 12, 3, 3), (12, 7, 7), NORM,
    ),
    "transposed": Case(
        "m (float[N,12,6,6] x) => (float[N,16,12,12] y)"
        "{ [site] y = ConvTranspose <strides=[2,2], pads=[1,1,1,1]> (x, w, b) }",
        Choice("tucker2", Ranks(4, 5)), (12, 16, 4, 4), (12, 6, 6), (("b", (16,)),),
    ),
    "transposed, batch norm": Case(
        "m (float[N,12,6,6] x) => (float[N,16,12,12] y)"
        "{ [site] h = ConvTranspose <group=2, strides=[2,2]> (x, w)"
        " y = BatchNormalization (h, scale, shift, mean, var) }",
        Choice("tucker1", Ranks(3, None)), (12, 8, 2, 2), (12, 6, 6), NORM[1:],
    ),
    "transposed, spatial": Case(
        "m (float[N,12,6,6] x) => (float[N,16,7,12] y)"
        "{ [site] y = ConvTranspose <strides=[1,2], pads=[1,1,0,0], output_padding=[0,1]> (x, w, b) }",
        Choice("spatial", Ranks(6, 6)), (12, 16, 3, 2), (12, 6, 6), (("b", (16,)),),
    ),
    "gemm": Case(
        "m (float[N,24] x) => (float[N,16] y) { [site] y = Gemm <transB=1> (x, w, c) }",
        Choice("svd", Ranks(4, 4)), (16, 24), (24,), (("c", (16,)),),
    ),
    "gemm, scaled": Case(
        "m (float[N,24] x) => (float[N,16] y)"
        "{ [site] y = Gemm <transB=1, alpha=2.5, beta=-0.5> (x, w, c) }",
        Choice("svd", Ranks(4, 4)), (16, 24), (24,), (("c", (1, 16)),),
    ),
    "gemm, scalar C": Case(
        "m (float[N,24] x) => (float[N,16] y) { [site] y = Gemm (x, w, c) }",
        Choice("svd", Ranks(4, 4)), (24, 16), (24,), (("c", (1,)),),
    ),
    "gemm, no C": Case(
        "m (float[N,24] x) => (float[N,16] y) { [site] y = Gemm <alpha=0.5> (x, w) }",
        Choice("svd", Ranks(4, 4)), (24, 16), (24,),
    ),
    "gemm, beta 0": Case(
        "m (float[N,24] x) => (float[N,16] y) { [site] y = Gemm <beta=0.0> (x, w, c) }",
        Choice("svd", Ranks(4, 4)), (24, 16), (24,), (("c", (16,)),),
    ),
    "matmul": Case(
        "m (float[N,6,24] x) => (float[N,6,16] y) { [site] y = MatMul (x, w) }",
        Choice("svd", Ranks(4, 4)), (24, 16), (6, 24),
    ),
}  # fmt: skip


def channels_last(case: Case, feed: Feed) -> Feed:
    """MatMul mixes the last axis."""
    if "MatMul" not in case.text:
        return feed
    count, rows, width = feed["x"].shape
    values = nets.structured(count, width, rows, seed=int(abs(feed["x"]).sum()) % 1000)
    return {"x": np.ascontiguousarray(values.transpose(0, 2, 1))}


@pytest.mark.parametrize("name", CASES)
def test_fitted_factors_are_far_better_on_fresh_inputs(name: str) -> None:
    case = CASES[name]
    count = 400 if len(case.input) == 1 else 48
    feed, fresh = (channels_last(case, case.feed(count, seed)) for seed in (1, 2))
    plain, fitted = result(case.model, None, case.plan), result(case.model, [feed], case.plan)
    before, after = (error(case.model, each.model, fresh) for each in (plain, fitted))
    assert after < 0.7 * before, (before, after)
    assert_finite(fitted.model)
    fit = only_fit(fitted)
    assert fit.plain_because is None and fit.ridge is not None
    assert fit.fitted is not None and fit.held_out is not None and fit.plain is not None
    # What the report says is what comes out.
    assert fit.fitted == pytest.approx(error(case.model, fitted.model, feed), rel=2e-3)
    assert fit.plain == pytest.approx(error(case.model, plain.model, feed), rel=2e-3)
    assert 0.8 < fit.held_out / after < 1.25
    for spread, model in (
        (fit.original_spread, case.model),
        (fit.plain_spread, plain.model),
        (fit.spread, fitted.model),
    ):
        y = nets.run(model, **feed)["y"].astype(np.float64)
        assert spread is not None
        assert spread.mean == pytest.approx(y.mean(), abs=1e-3 * y.std())
        assert spread.std == pytest.approx(y.std(), rel=1e-3)
    # Shapes are those of the plain chain.
    sizes = [
        {n: a.shape for n, a in nets.constants(each.model).items() if nets.MARK.search(n) and "bias" not in n}
        for each in (plain, fitted)
    ]
    assert sizes[0] == sizes[1]


# A net of several sites
# ----------------------

NET = """m (float[N,3,12,12] x) => (float[N,10] y) {
  [one] a = Conv <pads=[1,1,1,1]> (x, w1, b1)
  ra = Relu (a)
  [two] b = Conv <pads=[1,1,1,1]> (ra, w2)
  nb = BatchNormalization (b, scale, shift, mean, var)
  s = Add (nb, ra)
  rb = Relu (s)
  [three] c = Conv <strides=[2,2]> (rb, w3, b3)
  rc = Relu (c)
  g = GlobalAveragePool (rc)
  f = Flatten (g)
  [four] y = Gemm <transB=1> (f, w4, b4)
}"""


def net(**arrays: np.ndarray) -> ModelProto:
    own = {
        "w1": nets.weight(16, 3, 3, 3, seed=1), "b1": nets.signal(16, seed=2),
        "w2": nets.weight(16, 16, 3, 3, seed=3),
        "scale": nets.signal(16, seed=4), "shift": nets.signal(16, seed=5),
        "mean": nets.signal(16, seed=6), "var": np.abs(nets.signal(16, seed=7)) + 0.5,
        "w3": nets.weight(24, 16, 3, 3, seed=8), "b3": nets.signal(24, seed=9),
        "w4": nets.weight(10, 24, seed=10), "b4": nets.signal(10, seed=11),
    }  # fmt: skip
    return nets.model(NET, **(own | arrays))


def images(count: int, seed: int) -> Feed:
    return {"x": nets.structured(count, 3, 12, 12, seed=seed)}


LINEAR = replace(nets.ANYTHING, linear=True)


def test_a_net_is_far_better() -> None:
    fitted, plain = (result(net(), data, "0.3", policy=LINEAR) for data in ([images(64, 1)], None))
    before, after = (error(net(), each.model, images(32, 2)) for each in (plain, fitted))
    assert after < 0.4 * before
    assert set(fits(fitted)) == {"one", "two", "three", "four"}
    assert all(fit.plain_because is None for fit in fits(fitted).values())
    assert not fits(plain)
    assert_finite(fitted.model)


def test_later_sites_make_up_for_earlier_ones() -> None:
    """The chain of a site sees what the chains before it put out, not what their originals did."""
    fitted = result(net(), [images(64, 1)], "0.3", policy=LINEAR)
    last = fits(fitted)["four"]
    assert last.fitted == pytest.approx(error(net(), fitted.model, images(64, 1)), rel=1e-3)


def test_the_same_samples_give_the_same_bytes() -> None:
    feed = images(40, 1)
    first, again = (result(net(), [feed], "0.3", policy=LINEAR).model.SerializeToString() for _ in range(2))
    assert first == again
    order = np.random.default_rng(0).permutation(40)
    shuffled = {"x": feed["x"][order]}
    assert result(net(), [shuffled], "0.3", policy=LINEAR).model.SerializeToString() == first
    split = [{"x": feed["x"][i : i + 7]} for i in range(0, 40, 7)]
    assert result(net(), split, "0.3", policy=LINEAR).model.SerializeToString() == first
    other = result(net(), [images(40, 5)], "0.3", policy=LINEAR).model.SerializeToString()
    assert other != first


def test_the_model_given_is_not_changed_and_no_file_stays(tmp_path: Path) -> None:
    proto = net()
    before = proto.SerializeToString()
    result(proto, [images(8, 1)], "0.3", scratch=tmp_path)
    assert proto.SerializeToString() == before
    assert not list(tmp_path.iterdir())


def test_external_data(tmp_path: Path) -> None:
    path = save_external(net(), tmp_path / "m.onnx")
    inside = result(net(), [images(24, 1)], "0.3", policy=LINEAR)
    outside = result(path, [images(24, 1)], "0.3", policy=LINEAR)
    inlined, loaded = nets.constants(inside.model), tmp_path / "out.onnx"
    outside.save(loaded)
    found = nets.constants(onnx.load(loaded))
    assert inlined.keys() == found.keys()
    assert all(np.array_equal(inlined[name], found[name]) for name in inlined)


# Few samples, poor samples
# -------------------------


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", ["tucker2", "spatial", "svd", "gemm", "grouped", "tucker1 in"])
def test_few_samples_never_harm(name: str, count: int) -> None:
    """Patches with many more values than there are samples of noise."""
    case = CASES[name]
    x = nets.signal(count, case.input[0], *[3] * (len(case.input) - 1))
    text = case.text
    for size in ("7,7]",):
        text = text.replace(size, "H,H]")
    fitted = result(replace(case, text=text).model, [{"x": x}], case.plan)
    fit = only_fit(fitted)
    assert fit.held_out is not None and fit.plain is not None
    assert fit.held_out <= fit.plain
    assert_finite(fitted.model)


def test_noise_keeps_plain_factors() -> None:
    """Where it is not fitted, the plain chain stays, to the bit."""
    case = CASES["gemm, no C"]
    x = nets.signal(3, 24)
    fitted, plain = result(case.model, [{"x": x}], case.plan), result(case.model, None, case.plan)
    fit = only_fit(fitted)
    if fit.plain_because is not None:
        assert fit.ridge is None and fit.fitted == pytest.approx(fit.plain, rel=1e-6)
        assert fitted.model.SerializeToString() == plain.model.SerializeToString()
    assert fit.held_out is not None and fit.plain is not None and fit.held_out <= fit.plain


def test_one_sample_is_too_few() -> None:
    with pytest.raises(UsageError, match="at least 2 samples"):
        result(net(), [images(1, 1)], "0.3")


@pytest.mark.parametrize("value", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("name", ["tucker2", "svd", "spatial", "gemm", "matmul", "batch norm"])
def test_constant_inputs(name: str, value: float) -> None:
    case = CASES[name]
    x = np.full((6, *case.input), value, np.float32)
    if value == 0 or name in ("svd", "gemm", "batch norm"):  # not even a border of zeros to see
        with pytest.raises(UsageError, match="sees nothing on these samples"):
            result(case.model, [{"x": x}], case.plan)
        return
    fitted = result(case.model, [{"x": x}], case.plan)
    assert_finite(fitted.model)
    fit = only_fit(fitted)
    assert fit.held_out is not None and fit.plain is not None and fit.held_out <= fit.plain
    plain = result(case.model, None, case.plan)
    assert error(case.model, fitted.model, {"x": x}) <= error(case.model, plain.model, {"x": x}) + 1e-5


@pytest.mark.parametrize("name", ["tucker2", "svd", "spatial", "gemm", "grouped"])
def test_dead_channels(name: str) -> None:
    case = CASES[name]
    feed, fresh = case.feed(64, 1), case.feed(32, 2)
    for each in (feed, fresh):
        each["x"][:, ::2] = 0
    fitted, plain = result(case.model, [feed], case.plan), result(case.model, None, case.plan)
    assert_finite(fitted.model)
    assert error(case.model, fitted.model, fresh) < 0.6 * error(case.model, plain.model, fresh)


@pytest.mark.parametrize("name", ["tucker2", "svd", "tucker1 in"])
def test_inputs_far_from_zero(name: str) -> None:
    """The variance is what counts, however large the mean (no padding here)."""
    case = CASES[name]
    text = case.text.replace(PAD, "pads=[0,0,0,0]").replace("16,7,7]", "16,P,P]")
    case = replace(case, text=text)
    feed, fresh = ({"x": case.feed(48, seed)["x"] + np.float32(30)} for seed in (1, 2))
    bare = replace(case).model
    fitted, plain = result(bare, [feed], case.plan), result(bare, None, case.plan)
    ys = [nets.run(each, **fresh)["y"].astype(np.float64) for each in (bare, fitted.model, plain.model)]
    assert np.linalg.norm(ys[1] - ys[0]) < 0.6 * np.linalg.norm(ys[2] - ys[0])
    centred = [np.linalg.norm((y - ys[0]) - (y - ys[0]).mean(axis=(0, 2, 3), keepdims=True)) for y in ys[1:]]
    assert centred[0] < 0.7 * centred[1], centred


# Patches too large for their covariance
# --------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_very_large_patches_are_fitted_to_the_channels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "WIDEST_PATCH", 1)
    case = CASES[name]
    count = 400 if len(case.input) == 1 else 48
    feed, fresh = (channels_last(case, case.feed(count, seed)) for seed in (1, 2))
    plain, fitted = result(case.model, None, case.plan), result(case.model, [feed], case.plan)
    before, after = (error(case.model, each.model, fresh) for each in (plain, fitted))
    assert after < 0.95 * before, (before, after)
    assert_finite(fitted.model)
    fit = only_fit(fitted)
    assert fit.note is not None and "channels" in fit.note
    assert fit.held_out is not None and fit.plain is not None and fit.held_out < fit.plain
    assert 0.7 < fit.held_out / after < 1.4


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_very_large_patches_of_constant_inputs_do_no_harm(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "WIDEST_PATCH", 1)
    case = CASES["tucker2"]
    feed = {"x": np.full((8, *case.input), value, np.float32)}
    plain, fitted = result(case.model, None, case.plan), result(case.model, [feed], case.plan)
    assert_finite(fitted.model)
    before, after = (error(case.model, each.model, feed) for each in (plain, fitted))
    assert after <= before * (1 + 1e-5) + 1e-6


# One site at a time
# ------------------


def test_sites_are_prepared_one_at_a_time_and_left_as_they_are(tmp_path: Path) -> None:
    """One walk, that of the original; a site's output may be exchanged for another on the way."""
    proto, folder = net(), tmp_path / "scratch"
    folder.mkdir()
    model = as_model(proto)
    found = survey(model, input_shapes={}, freeze=False, fold_bn=True, linear=True)
    units = find_candidates(found, Policy(align=1, min_channels=3, linear=True))
    assert [unit.lead.site.name for unit in units] == ["one", "two", "three", "four"]
    samples = open_samples([images(40, 1)], proto)
    first = list(calibrate.deal(samples)[0].batches(16))
    originals = np.concatenate([nets.run(proto, **feed)["y"] for feed in first])
    with calibrate.Calibration(found, samples, folder, sequential=False) as calibration:
        assert len(list(folder.iterdir())) == 1
        tape, read = calibration._after._tape, None
        for unit, prepared in calibration.visits(units, "walking", silent):
            assert read not in tape
            assert isinstance(prepared, Prepared) and not isinstance(prepared.target, str)
            (head,) = prepared.heads
            assert calibration.output_errors([head], lambda head, x, y: y, 9) == 0
            loss = calibration.output_errors([head], lambda head, x, y: np.zeros_like(y), 9)
            muted = onnx.ModelProto()
            muted.CopyFrom(proto)
            (node,) = (n for n in muted.graph.node if head.output in n.output)
            node.output[0] = "nobody reads it"
            zeros = onnx.helper.make_node("Sub", ["nobody reads it"] * 2, [head.output])
            muted.graph.node.insert(list(muted.graph.node).index(node) + 1, zeros)
            others = np.concatenate([nets.run(muted, **feed)["y"] for feed in first])
            assert loss == pytest.approx(nets.distance(originals, others) ** 2, rel=1e-3)
            # What the second reads, the fourth reads, too.
            read = unit.lead.node.input[0] if unit.lead.site.name != "two" else None
        assert read not in tape
        assert not list(folder.glob("*/*.npy"))
    assert not list(folder.iterdir())
