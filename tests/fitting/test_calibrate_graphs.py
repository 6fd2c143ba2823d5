"""Calibration of models whose graphs are out of the ordinary: shared weights, graphs inside nodes, types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from test_calibrate import assert_finite, error, fits, images, net, only_fit, result

from onnxdecomp import Choice, Plan, Ranks, UsageError, open_samples
from onnxdecomp.sampling import deal

TUCKER = Choice("tucker2", Ranks(4, 5))
SVD = Choice("svd", Ranks(4, 4))


def plan(*names: str, choice: Choice = TUCKER) -> Plan:
    return Plan(dict.fromkeys(names, choice))


def kernel(seed: int = 0, channels: int = 12) -> np.ndarray:
    return nets.weight(12, channels, 3, 3, seed=seed)


def feed(count: int, seed: int, **options: Any) -> dict[str, np.ndarray]:
    return {"x": nets.structured(count, 12, 7, 7, seed=seed, **options)}


def both(proto: ModelProto, data: dict[str, np.ndarray], chosen: Plan, **options: Any) -> Any:
    return result(proto, [data], chosen, **options), result(proto, None, chosen, **options)


def assert_better(
    proto: ModelProto,
    chosen: Plan,
    data: dict[str, np.ndarray],
    fresh: dict[str, np.ndarray],
    share: float = 0.7,
) -> Any:
    fitted, plain = both(proto, data, chosen)
    assert error(proto, fitted.model, fresh) < share * error(proto, plain.model, fresh)
    assert_finite(fitted.model)
    return fitted


# Shared weights
# --------------


def test_a_weight_with_two_biases() -> None:
    text = """m (float[N,12,7,7] x) => (float[N,12,7,7] y, float[N,12,3,3] z) {
      [one] y = Conv <pads=[1,1,1,1]> (x, w, b)
      [two] z = Conv <strides=[2,2]> (x, w, c)
    }"""
    proto = nets.model(text, w=kernel(), b=nets.signal(12), c=10 * nets.signal(12, seed=3))
    fitted = assert_better(proto, plan("one", "two"), feed(48, 1), feed(24, 2))
    assert len(fits(fitted)) == 2
    # Each output on its own, and the weights are still shared.
    original, found = nets.run(proto, **feed(24, 2)), nets.run(fitted.model, **feed(24, 2))
    for name in ("y", "z"):
        assert np.abs((found[name] - original[name]).mean(axis=(0, 2, 3))).max() < 0.2
    assert len({n.input[1] for n in nets.nodes(fitted.model) if n.name.endswith("tucker_core")}) == 1
    assert len({n.input[2] for n in nets.nodes(fitted.model) if n.name.endswith("tucker_out")}) == 2


def test_what_follows_a_shared_weight_sees_its_own_bias() -> None:
    text = """m (float[N,12,7,7] x) => (float[N,12,7,7] y, float[N,12,1,1] z) {
      [one] y = Conv <pads=[1,1,1,1]> (x, w, b)
      [two] a = Conv <strides=[2,2]> (x, w, c)
      r = Relu (a)
      [three] z = Conv (r, v)
    }"""
    arrays = {"w": kernel(), "v": kernel(seed=1), "b": nets.signal(12), "c": 3 * nets.signal(12, seed=3)}
    proto = nets.model(text, **arrays)
    fitted = result(proto, [feed(48, 1)], plan("one", "two", "three"))
    original, found = nets.run(proto, **feed(48, 1)), nets.run(fitted.model, **feed(48, 1))
    assert fits(fitted)["three"].fitted == pytest.approx(nets.distance(original["z"], found["z"]), rel=1e-3)


def test_a_weight_used_one_after_the_other() -> None:
    text = """m (float[N,12,7,7] x) => (float[N,12,7,7] y) {
      [one] a = Conv <pads=[1,1,1,1]> (x, w, b)
      r = Relu (a)
      [two] y = Conv <pads=[1,1,1,1]> (r, w)
    }"""
    proto = nets.model(text, w=kernel(), b=nets.signal(12))
    assert_better(proto, plan("one", "two"), feed(48, 1), feed(24, 2), share=0.95)


def test_a_weight_shared_across_another_site() -> None:
    """The third shares the first one's weight and does not follow from it, but from the second."""
    text = """m (float[N,12,7,7] x) => (float[N,12,7,7] y, float[N,12,7,7] z) {
      [one] y = Conv <pads=[1,1,1,1]> (x, w, b)
      [two] a = Conv <pads=[1,1,1,1]> (x, v, b)
      r = Relu (a)
      [three] z = Conv <pads=[1,1,1,1]> (r, w)
    }"""
    proto = nets.model(text, w=kernel(), v=kernel(seed=1), b=nets.signal(12))
    fitted, plain = both(proto, feed(48, 1), plan("one", "two", "three"))
    original, before, after = (nets.run(m, **feed(24, 2)) for m in (proto, plain.model, fitted.model))
    apart = {
        name: [nets.distance(original[name], each[name]) for each in (before, after)] for name in original
    }
    assert apart["y"][1] < 0.7 * apart["y"][0]  # the factors are fitted to the first
    assert apart["z"][1] < 1.0 * apart["z"][0]
    assert all(fit.plain_because is None for fit in fits(fitted).values())


# Sums
# ----

SUM = """m (float[N,12,7,7] x) => (float[N,12,7,7] y) {
  [one] a = Conv <pads=[1,1,1,1]> (x, w, b)
  [two] c = Conv <pads=[1,1,1,1]> (x, v, b)
  y = Add (a, c)
}"""
FULL = Choice("tucker2", Ranks(12, 12))


def sum_error(text: str, chosen: dict[str, Choice]) -> float:
    proto = nets.model(
        text, w=kernel(), v=kernel(seed=1), b=nets.signal(12), wide=np.zeros((1, 12, 1, 1), np.float32)
    )
    fitted = result(proto, [feed(48, 1)], Plan(chosen))
    assert_finite(fitted.model)
    return error(proto, fitted.model, feed(24, 2))


def test_the_later_branch_of_a_sum_makes_up_for_the_other() -> None:
    alone = sum_error(SUM, {"one": TUCKER})
    assert alone > 0.1
    assert sum_error(SUM, {"one": TUCKER, "two": FULL}) < 0.1 * alone
    # The one that is fitted first knows nothing of what the other will lose.
    assert sum_error(SUM, {"one": FULL, "two": TUCKER}) == pytest.approx(
        sum_error(SUM, {"two": TUCKER}), rel=0.02
    )


@pytest.mark.parametrize(
    ("added", "outputs"),
    [
        ("y = Add (a, c)", "float[N,12,7,7] y, float[N,12,7,7] c"),  # the branch is an output itself
        ("r = Relu (c) y = Add (a, r)", "float[N,12,7,7] y"),
        ("s = Add (c, wide) y = Add (a, s)", "float[N,12,7,7] y"),  # what is added is a constant
        ("y = Add (c, c)", "float[N,12,7,7] y, float[N,12,7,7] a"),
        ("m = ReduceMean <axes=[2,3]> (a) y = Add (c, m)", "float[N,12,7,7] y"),  # of another shape
    ],
)
def test_other_outputs_are_fitted_as_they_were(added: str, outputs: str) -> None:
    text = SUM.replace("float[N,12,7,7] y", outputs).replace("y = Add (a, c)", added)
    alone = sum_error(text, {"one": TUCKER})
    assert sum_error(text, {"one": TUCKER, "two": FULL}) == pytest.approx(alone, rel=0.02)


def test_branches_that_share_a_weight_are_both_replaced_before_what_follows() -> None:
    """Neither may be run, to see what the other has lost, while its own chain is still to come."""
    text = """m (float[N,12,7,7] x) => (float[N,12,7,7] y) {
      r = Relu (x)
      [one] a = Conv <pads=[1,1,1,1]> (x, w, b)
      [two] c = Conv <pads=[1,1,1,1]> (r, w, b)
      s = Add (a, c)
      t = Relu (s)
      [three] y = Conv <pads=[1,1,1,1]> (t, v, b)
    }"""
    proto = nets.model(text, w=kernel(), v=kernel(seed=1), b=nets.signal(12))
    fitted = result(proto, [feed(48, 1)], Plan({"one": TUCKER, "two": TUCKER, "three": FULL}))
    seen = fits(fitted)["three"].fitted
    assert seen is not None and seen > 0.05
    assert error(proto, fitted.model, feed(48, 1)) == pytest.approx(seen, rel=0.01)


# Sites that cannot be fitted
# ---------------------------


def test_a_site_inside_an_if_keeps_plain_factors() -> None:
    text = """m (float[N,12,7,7] x, bool flag) => (float[N,12,7,7] y) {
      [outer] a = Conv <pads=[1,1,1,1]> (x, v)
      y = If (flag) <
        then_branch = yes () => (float[N,12,7,7] p) { [inner] p = Conv <pads=[1,1,1,1]> (a, w) },
        else_branch = no () => (float[N,12,7,7] n) { n = Neg (a) }
      >
    }"""
    proto = nets.model(text, w=kernel(), v=kernel(seed=1))
    flag = {"flag": np.array(True)}
    names = [site.site.name for site in result(proto, None, "0.3").sites]
    (inner,) = [name for name in names if "inner" in name]
    fitted, plain = both(proto, feed(48, 1) | flag, plan("outer", inner))
    found = fits(fitted)
    assert found["outer"].plain_because is None
    assert found[inner].plain_because == "it stands inside another node's graph or a function"
    assert found[inner].fitted is None and found[inner].ridge is None
    fresh = feed(24, 2) | flag
    assert error(proto, fitted.model, fresh) < error(proto, plain.model, fresh)

    def insides(model: ModelProto) -> list[np.ndarray]:
        return [a for n, a in sorted(nets.constants(model).items()) if "inner" in n]

    assert insides(plain.model) and all(map(np.array_equal, insides(fitted.model), insides(plain.model)))


def test_a_bias_computed_at_run_time() -> None:
    text = """m (float[N,12,7,7] x, float[12] c) => (float[N,12,7,7] y) {
      d = Add (c, c)
      [site] y = Conv <pads=[1,1,1,1]> (x, w, d)
    }"""
    proto = nets.model(text, w=kernel())
    bias = {"c": nets.signal(12)}
    fitted, plain = both(proto, feed(16, 1) | bias, plan("site"))
    assert only_fit(fitted).plain_because == "its bias is no constant"
    assert fitted.model.SerializeToString() == plain.model.SerializeToString()


@pytest.mark.parametrize("shape", [(12, 1), (12, 12)])
def test_a_gemm_whose_c_has_a_row_for_each_sample(shape: tuple[int, ...]) -> None:
    text = "m (float[12,20] x) => (float[12,12] y) { [site] y = Gemm (x, w, c) }"
    proto = nets.model(text, w=nets.weight(20, 12), c=10 * nets.signal(*shape))
    data = {"x": nets.structured(48, 20, seed=1)}
    fitted, plain = both(proto, data, plan("site", choice=SVD))
    assert only_fit(fitted).plain_because == "its bias has a row for each sample"
    assert fitted.model.SerializeToString() == plain.model.SerializeToString()


def test_cp_keeps_plain_factors() -> None:
    proto = nets.model("m (float[N,12,7,7] x) => (float[N,12,5,5] y) { [site] y = Conv (x, w) }", w=kernel())
    fitted = result(proto, [feed(16, 1)], plan("site", choice=Choice("cp", Ranks(6, 6))))
    fit = only_fit(fitted)
    assert fit.plain_because == "CP chains are not fitted"
    assert fit.fitted is not None and fit.ridge is None
    assert fit.fitted <= error(proto, fitted.model, feed(16, 1)) * 1.001


def test_values_that_are_not_finite() -> None:
    text = """m (float[N,12,7,7] x) => (float[N,12,5,5] y) {
      a = Log (x)
      [site] y = Conv (a, w)
    }"""
    data = feed(16, 1)
    data["x"][3, 2, 1, 1] = -1
    fitted = result(nets.model(text, w=kernel()), [data], plan("site"))
    assert only_fit(fitted).plain_because == "its input or output has NaN or Inf on these samples"
    assert_finite(fitted.model)


@pytest.mark.parametrize("threshold", [1e9, 4.0])
def test_a_site_that_few_samples_reach(threshold: float) -> None:
    """Rows that exceed a threshold: none, or only some samples have any."""
    text = """m (float[N,20] x) => (float[K,12] y) {
      m = ReduceMax <axes=[1], keepdims=0> (x)
      b = Greater (m, t)
      r = Compress <axis=0> (x, b)
      [site] y = MatMul (r, w)
    }"""
    proto = nets.model(text, w=nets.weight(20, 12), t=np.array(threshold, np.float32))
    x = nets.structured(8, 20, seed=1)
    x[0, 0] = 5
    fitted = result(proto, [{"x": x}], plan("site", choice=SVD))
    assert only_fit(fitted).plain_because is not None
    assert_finite(fitted.model)


# Types, inputs, batches
# ----------------------


def test_half_precision() -> None:
    text = "m (float16[N,12,7,7] x) => (float16[N,12,7,7] y) { [site] y = Conv <pads=[1,1,1,1]> (x, w, b) }"
    half = np.float16
    proto = nets.model(text, w=kernel().astype(half), b=nets.signal(12, dtype=half))
    data, fresh = feed(48, 1, dtype=half), feed(24, 2, dtype=half)
    fitted = assert_better(proto, plan("site"), data, fresh)
    assert {numpy_helper.to_array(t).dtype for t in fitted.model.graph.initializer} == {np.dtype(half)}
    assert only_fit(fitted).fitted == pytest.approx(error(proto, fitted.model, data), rel=0.02)


def test_double_precision() -> None:
    text = "m (double[N,24] x) => (double[N,16] y) { [site] y = Gemm (x, w, c) }"
    double = np.float64
    proto = nets.model(text, w=nets.weight(24, 16, dtype=double), c=nets.signal(16, dtype=double))
    data, fresh = ({"x": nets.structured(300, 24, seed=seed, dtype=double)} for seed in (1, 2))
    fitted = assert_better(proto, plan("site", choice=SVD), data, fresh)
    assert {numpy_helper.to_array(t).dtype for t in fitted.model.graph.initializer} == {np.dtype(double)}
    assert only_fit(fitted).fitted == pytest.approx(error(proto, fitted.model, data), rel=1e-3)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch(batch: int) -> None:
    sizes = f"[{batch},12,7,7]"
    text = f"m (float{sizes} x) => (float{sizes} y) {{ [site] y = Conv <pads=[1,1,1,1]> (x, w, b) }}"
    proto = nets.model(text, w=kernel(), b=nets.signal(12))
    free = nets.model(text.replace(f"[{batch},12", "[N,12"), w=kernel(), b=nets.signal(12))
    fresh = feed(batch, 2)
    fitted = assert_better(proto, plan("site"), feed(48, 1), fresh)
    # All 48 samples are in the fit, as they are where any batch goes.
    fit, other = only_fit(fitted), only_fit(result(free, [feed(48, 1)], plan("site")))
    assert fit.fitted == pytest.approx(other.fitted, rel=1e-3)
    assert fit.original_spread is not None and other.original_spread is not None
    assert fit.original_spread.mean == pytest.approx(other.original_spread.mean, rel=1e-5)


def test_one_full_batch_is_too_little() -> None:
    text = "m (float[4,12,7,7] x) => (float[4,12,5,5] y) { [site] y = Conv (x, w) }"
    with pytest.raises(UsageError, match="two such batches"):
        result(nets.model(text, w=kernel()), [feed(7, 1)], plan("site"))


@pytest.mark.parametrize(("count", "batch"), [(2, "N"), (3, "N"), (9, "N"), (30, "N"), (30, "3"), (31, "7")])
def test_folds_are_of_nearly_equal_size(count: int, batch: str) -> None:
    proto = nets.model(f"m (float[{batch},12,7,7] x) => (float[{batch},12,7,7] y) {{ y = Relu (x) }}")
    samples = open_samples([feed(count, 1)], proto)
    unit = samples.batch or 1
    folds = deal(samples)
    assert sorted(i for fold in folds for i in fold.indices) == list(range(count // unit * unit))
    sizes = [len(fold) for fold in folds]
    assert len(folds) == min(4, count // unit)
    assert max(sizes) - min(sizes) <= unit and all(size % unit == 0 for size in sizes)


def test_several_inputs_one_of_them_idle() -> None:
    text = """m (float[N,12,7,7] x, float[N,12,7,7] other, int64[N] idle) => (float[N,12,7,7] y) {
      s = Add (x, other)
      [site] y = Conv <pads=[1,1,1,1]> (s, w, b)
    }"""
    proto = nets.model(text, w=kernel(), b=nets.signal(12))

    def three(count: int, seed: int) -> dict[str, np.ndarray]:
        return feed(count, seed) | {
            "other": nets.structured(count, 12, 7, 7, seed=seed + 9), "idle": np.arange(count)
        }  # fmt: skip

    assert_better(proto, plan("site"), three(48, 1), three(24, 2))


def test_samples_of_several_shapes() -> None:
    text = "m (float[N,12,H,H] x) => (float[N,12,H,H] y) { [site] y = Conv <pads=[1,1,1,1]> (x, w, b) }"
    proto = nets.model(text, w=kernel(), b=nets.signal(12))
    mixed = [{"x": nets.structured(8, 12, size, size, seed=i)} for i, size in enumerate((5, 9, 7, 5))]
    fitted, plain = result(proto, mixed, plan("site")), result(proto, None, plan("site"))
    assert error(proto, fitted.model, feed(24, 2)) < 0.7 * error(proto, plain.model, feed(24, 2))


def test_an_input_that_sites_read_directly_and_an_output_that_is_one() -> None:
    """Two sites on the same input, both of them outputs, one of them read again."""
    text = """m (float[N,12,7,7] x) => (float[N,12,7,7] y, float[N,12,7,7] z) {
      [one] y = Conv <pads=[1,1,1,1]> (x, w, b)
      [two] a = Conv <pads=[1,1,1,1]> (x, v)
      [three] z = Conv <pads=[1,1,1,1]> (y, u)
      idle = Add (a, y)
    }"""
    proto = nets.model(text, w=kernel(), v=kernel(seed=1), u=kernel(seed=2), b=nets.signal(12))
    assert_better(proto, plan("one", "two", "three"), feed(48, 1), feed(24, 2))


@pytest.mark.parametrize("freeze", [False, True])
def test_a_bias_that_callers_may_override(freeze: bool) -> None:
    text = """m (float[N,12,7,7] x, float[12] b) => (float[N,12,7,7] y) {
      [site] y = Conv <pads=[1,1,1,1]> (x, w, b)
    }"""
    proto = nets.model(text, w=kernel(), b=nets.signal(12))
    fitted = result(proto, [feed(48, 1)], plan("site"), freeze_weights=freeze)
    assert only_fit(fitted).plain_because == (None if freeze else "its bias is no constant")


def test_a_site_on_a_constant() -> None:
    text = """m (float[N,12,5,5] x) => (float[N,12,5,5] y) {
      [one] a = Conv (k, w, b)
      j = Relu (k)
      [two] c = Conv (j, v)
      s = Add (a, c)
      y = Add (s, x)
    }"""
    arrays = {"w": kernel(), "v": kernel(seed=1), "b": nets.signal(12), "k": feed(1, 5)["x"]}
    proto = nets.model(text, **arrays)
    data = {"x": np.zeros((6, 12, 5, 5), np.float32)}
    fitted = assert_better(proto, plan("one", "two"), data, data, share=0.5)
    assert len(fits(fitted)) == 2


def test_an_old_gemm_has_its_bias() -> None:
    text = """<ir_version: 4, opset_import: ["" : 9]>
    m (float[N,24] x) => (float[N,16] y) { [site] y = Gemm (x, w, c) }"""
    proto = nets.model(text, w=nets.weight(24, 16), c=nets.signal(16))
    data, fresh = ({"x": nets.structured(300, 24, seed=seed)} for seed in (1, 2))
    assert_better(proto, plan("site", choice=SVD), data, fresh)


def test_a_transposed_gemm() -> None:
    text = """m (float[N,24] x) => (float[N,16] y) {
      t = Transpose <perm=[1,0]> (x)
      [site] y = Gemm <transA=1> (t, w, c)
    }"""
    proto = nets.model(text, w=nets.weight(24, 16), c=nets.signal(16))
    data, fresh = ({"x": nets.structured(300, 24, seed=seed)} for seed in (1, 2))
    assert_better(proto, plan("site", choice=SVD), data, fresh)


def test_auto_takes_what_does_best_on_samples_held_out() -> None:
    policy = replace(nets.ANYTHING, method="auto")
    fitted = result(net(), [images(48, 1)], "0.4", policy=policy)
    default = result(net(), [images(48, 1)], "0.4")
    assert error(net(), fitted.model, images(24, 2)) < 1.1 * error(net(), default.model, images(24, 2))
    assert all(fit.held_out is not None and fit.held_out <= fit.plain for fit in fits(fitted).values())
    onnx.checker.check_model(fitted.model, full_check=True)
