"""The factors against the mathematics: Tucker's bound, Eckart and Young, and TensorLy's `partial_tucker`."""

from __future__ import annotations

from dataclasses import dataclass

import nets
import numpy as np
import onnx
import pytest
import tensorly
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import rewrite
from onnx import numpy_helper
from tensorly.decomposition import partial_tucker
from threadpoolctl import threadpool_limits

from onnxdecomp import Choice, Plan, Ranks
from onnxdecomp.factors import METHODS
from onnxdecomp.factors import factorise as factorise_by
from onnxdecomp.factors.tucker import factorise

PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=100)


@dataclass(frozen=True, slots=True)
class Tucker:
    """W ≈ G ×₀ U ×₁ V with core (S, R, *k), U (D, S) and V (C, R); a missing factor is the identity."""

    core: np.ndarray
    out: np.ndarray
    into: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        return np.einsum("sr...,ds,cr->dc...", self.core, self.out, self.into)


def tucker(weight: np.ndarray, ranks: Ranks) -> Tucker:
    """The factors of one group, taken out of the chain."""
    links = {link.role: link.weight for link in factorise(weight, ranks, groups=1).links}
    assert links["tucker_core"].shape[2:] == weight.shape[2:]
    into, out = links.get("tucker_in"), links.get("tucker_out")
    return Tucker(
        links["tucker_core"],
        np.eye(len(weight)) if out is None else out.reshape(out.shape[:2]),
        np.eye(weight.shape[1]) if into is None else into.reshape(into.shape[:2]).T,
    )


def relative_error(weight: np.ndarray, ranks: Ranks) -> float:
    return float(np.linalg.norm(weight - tucker(weight, ranks).weight) / np.linalg.norm(weight))


def discarded(weight: np.ndarray, mode: int, rank: int | None) -> float:
    """The sum of the squared singular values of an unfolding behind the first `rank`."""
    unfolding = np.moveaxis(weight, mode, 0).reshape(weight.shape[mode], -1)
    return float((np.linalg.svd(unfolding, compute_uv=False)[rank:] ** 2).sum()) if rank is not None else 0.0


def of_rank(shape: tuple[int, ...], ranks: tuple[int, int], seed: int) -> np.ndarray:
    """A weight (D, C, *k) whose channel modes have the ranks (out, in), at most."""
    generator = np.random.default_rng(seed)
    core = generator.standard_normal((*ranks, *shape[2:]))
    out, into = (generator.standard_normal((shape[mode], ranks[mode])) for mode in (0, 1))
    return np.einsum("sr...,ds,cr->dc...", core, out, into)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A recipe for a weight: normal noise, on top of a part of low rank unless that is None; and ranks."""

    shape: tuple[int, ...]
    ranks: Ranks
    low_rank: tuple[int, int] | None
    noise: float
    seed: int

    @property
    def weight(self) -> np.ndarray:
        noise = np.random.default_rng(self.seed).standard_normal(self.shape)
        return noise if self.low_rank is None else self.noise * noise + of_rank(self.shape, self.low_rank, 0)


@st.composite
def recipes(draw: st.DrawFn) -> Drawn:
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    c_out, c_in = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    low_rank = draw(st.none() | st.tuples(st.integers(1, c_out), st.integers(1, c_in)))
    return Drawn(
        shape=(c_out, c_in, *kernel),
        ranks=Ranks(draw(st.integers(1, c_in)), draw(st.integers(1, c_out))),
        low_rank=low_rank,
        noise=draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.3])),
        seed=draw(st.integers(1, 999)),
    )


def real_weight(name: str) -> np.ndarray:
    """The first weight of a corpus model with a kernel and 32 or more channels on both sides."""
    graph = onnx.load(nets.corpus_path(name)).graph
    wide = (t for t in graph.initializer if len(t.dims) == 4 and min(t.dims[:2]) >= 32 and t.dims[2] > 1)
    return numpy_helper.to_array(next(wide)).astype(np.float64)


@settings(PROPERTY, max_examples=200)
@given(recipes())
def test_error_is_within_the_bound_of_the_discarded_singular_values(
    drawn: Drawn,
) -> None:
    weight, ranks = drawn.weight, drawn.ranks
    bound = discarded(weight, 0, ranks.output) + discarded(weight, 1, ranks.input)
    error = np.linalg.norm(weight - tucker(weight, ranks).weight) ** 2
    assert error <= bound + 1e-6 * np.linalg.norm(weight) ** 2
    # Nor can a projection lose less than either mode alone must.
    least = max(discarded(weight, 0, ranks.output), discarded(weight, 1, ranks.input))
    assert error >= least - 1e-6 * np.linalg.norm(weight) ** 2


@settings(PROPERTY)
@given(recipes())
def test_factors_are_orthonormal_and_of_the_ranks_asked_for(drawn: Drawn) -> None:
    weight, ranks = drawn.weight, drawn.ranks
    parts = tucker(weight, ranks)
    assert parts.core.shape == (ranks.output, ranks.input, *weight.shape[2:])
    for factor in (parts.out, parts.into):
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-12)
        largest = np.abs(factor).argmax(axis=0)
        assert all(factor[largest, np.arange(len(largest))] > 0), (
            "a sign that is not fixed may come out either way"
        )
    # Given the factors, the core is the projection: no core does better.
    np.testing.assert_allclose(
        parts.core,
        np.einsum("dc...,ds,cr->sr...", weight, parts.out, parts.into),
        atol=1e-10 * np.abs(weight).max(),
    )


@settings(PROPERTY)
@given(recipes(), st.sampled_from([(1, 0), (0, 1), (1, 1), (3, 2)]))
def test_a_higher_rank_is_never_worse(drawn: Drawn, more: tuple[int, int]) -> None:
    weight, low = drawn.weight, drawn.ranks
    high = Ranks(min(low.input + more[0], weight.shape[1]), min(low.output + more[1], weight.shape[0]))
    # HOOI stops when an iteration gains less than 1e-4.
    assert relative_error(weight, high) <= relative_error(weight, low) + 2e-4


@settings(PROPERTY)
@given(recipes())
def test_full_rank_restores_the_weight(drawn: Drawn) -> None:
    assert relative_error(drawn.weight, Ranks(drawn.shape[1], drawn.shape[0])) <= 1e-12


@settings(PROPERTY)
@given(recipes())
def test_tucker1_is_the_truncated_svd(drawn: Drawn) -> None:
    weight, ranks = drawn.weight, drawn.ranks
    for mode, one_sided in ((0, Ranks(None, ranks.output)), (1, Ranks(ranks.input, None))):
        error = np.linalg.norm(weight - tucker(weight, one_sided).weight) ** 2
        optimum = discarded(weight, mode, (ranks.output, ranks.input)[mode])
        assert abs(error - optimum) <= 1e-6 * np.linalg.norm(weight) ** 2


def error_of_tensorly(weight: np.ndarray, ranks: Ranks) -> float:
    rank = [ranks.output, ranks.input]
    (core, (out, into)), _ = partial_tucker(weight, rank=rank, modes=[0, 1], random_state=0)
    return float(np.linalg.norm(weight - Tucker(core, out, into).weight) / np.linalg.norm(weight))


@settings(PROPERTY)
@given(recipes())
def test_error_is_that_of_tensorly(drawn: Drawn) -> None:
    weight, ranks, taps = drawn.weight, drawn.ranks, int(np.prod(drawn.shape[2:]))
    # Above the columns of its unfoldings TensorLy pads with random vectors.
    ranks = Ranks(min(ranks.input, ranks.output * taps), min(ranks.output, ranks.input * taps))
    assert relative_error(weight, ranks) == pytest.approx(error_of_tensorly(weight, ranks), abs=1e-3)


@pytest.mark.parametrize("name", ["anime_or_not_resnet18", "nudenet_yolov8n_320", "mtcnn_onet", "u2netp"])
def test_error_is_that_of_tensorly_on_a_real_weight(name: str) -> None:
    weight = real_weight(name)
    ranks = Ranks(weight.shape[1] // 4, weight.shape[0] // 2)
    error = relative_error(weight, ranks)
    assert 0.1 < error < 0.9
    assert error == pytest.approx(error_of_tensorly(weight, ranks), abs=1e-3)


@settings(PROPERTY)
@given(
    st.tuples(st.integers(2, 24), st.integers(2, 24), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
)
def test_a_weight_of_known_rank_is_recovered(
    shape: tuple[int, int, int, int], ranks: tuple[int, int]
) -> None:
    out, into = min(ranks[0], shape[0]), min(ranks[1], shape[1])
    assert relative_error(of_rank(shape, (out, into), seed=0), Ranks(into, out)) <= 1e-7


@pytest.mark.parametrize(("shape", "ranks"), [((64, 2, 3), Ranks(2, 32)), ((3, 64, 1, 3), Ranks(40, 3))])
def test_ranks_above_what_the_other_mode_can_fill(shape: tuple[int, ...], ranks: Ranks) -> None:
    """The projected weight's unfolding has fewer columns than the rank: the rest of the factor is free."""
    weight = nets.weight(*shape, dtype=np.float64)
    parts = tucker(weight, ranks)
    assert parts.core.shape[:2] == (ranks.output, ranks.input)
    for factor in (parts.out, parts.into):
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-12)
    assert relative_error(weight, ranks) <= 1e-7


def test_a_weight_of_zeros_stays_zero() -> None:
    parts = tucker(np.zeros((8, 6, 3, 3)), Ranks(2, 3))
    np.testing.assert_array_equal(parts.weight, np.zeros((8, 6, 3, 3)))
    np.testing.assert_allclose(parts.out.T @ parts.out, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_the_scale_of_a_weight_changes_nothing_else(scale: float) -> None:
    weight = nets.weight(12, 10, 3, 3, dtype=np.float64)
    plain, scaled = (tucker(w, Ranks(4, 5)) for w in (weight, weight * scale))
    np.testing.assert_allclose(scaled.weight / scale, plain.weight, atol=1e-9)


@pytest.mark.parametrize("ranks", [Ranks(3, 2), Ranks(3, None), Ranks(None, 2)])
def test_each_group_is_factored_by_itself(ranks: Ranks) -> None:
    weight = nets.weight(12, 5, 3, 2, dtype=np.float64)
    chain = factorise(weight, ranks, groups=3)
    alone = [factorise(part, ranks, groups=1) for part in np.split(weight, 3)]
    assert chain.groups == 3
    for i, link in enumerate(chain.links):
        np.testing.assert_array_equal(link.weight, np.concatenate([each.links[i].weight for each in alone]))


def test_the_same_model_gives_the_same_bytes_whatever_the_threads() -> None:
    model = nets.model(
        "g (double[1,192,8,8] x) => (double[1,256,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, w) }",
        w=nets.weight(256, 192, 3, 3, dtype=np.float64),
    )
    written = set()
    for threads in (1, 2, 3, 1):
        with threadpool_limits(threads, user_api="blas"):
            written.add(rewrite(model, 0.25).model.SerializeToString())
    assert len(written) == 1


@pytest.mark.parametrize("method", METHODS)
def test_tensorlys_pytorch_backend_finds_the_same_factors(method: str) -> None:
    """Nothing but rounding tells the backends apart, and the caller's own stays as it was."""
    pytest.importorskip("torch", reason="TensorLy's pytorch backend needs PyTorch")
    weight = nets.weight(10, 8, *([1, 1] if method == "svd" else [3, 3]), dtype=np.float64)
    ranks = Ranks(None, 4) if method == "tucker1" else Ranks(4, 4)
    expected = factorise_by(method, weight, ranks, groups=1)
    with tensorly.backend_context("pytorch"):
        chain = factorise_by(method, weight, ranks, groups=1)
        assert tensorly.get_backend() == "pytorch"
    for link, same in zip(chain.links, expected.links, strict=True):
        np.testing.assert_allclose(link.weight, same.weight, atol=1e-5)
    np.testing.assert_allclose(chain.reconstruct(), expected.reconstruct(), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    "choice",
    [Choice("tucker2", Ranks(3, 2)), Choice("tucker1", Ranks(None, 2)), Choice("tucker2", Ranks(5, 6))],
)
def test_reported_error_is_that_of_the_written_factors(dtype: type, choice: Choice) -> None:
    """Relative to the weight with the BatchNormalization in it; `cast` is what rounding added."""
    element = {np.float16: "float16", np.float32: "float"}[dtype]
    shape = f"{element}[1,10,9,9]"
    generator = np.random.default_rng(5)
    arrays = {name: generator.uniform(0.5, 2, 12).astype(dtype) for name in ("s", "v")}
    arrays |= {name: generator.standard_normal(12).astype(dtype) for name in ("b", "m")}
    weight = nets.weight(12, 5, 3, 3, dtype=dtype)
    model = nets.model(
        f"g ({shape} x) => ({element}[1,12,7,7] y) {{"
        "[conv] z = Conv<group=2>(x, w) y = BatchNormalization(z, s, b, m, v) }",
        w=weight,
        **arrays,
    )
    result = rewrite(model, plan=Plan({"conv": choice}))
    scale = arrays["s"].astype(np.float64) / np.sqrt(arrays["v"].astype(np.float64) + np.float32(1e-5))
    folded = weight.astype(np.float64) * scale.reshape(12, 1, 1, 1)
    written = nets.composed_weight(nets.chain(result.model, "conv"), nets.constants(result.model))
    exact = np.concatenate([tucker(part, choice.ranks).weight for part in np.split(folded, 2)])

    (report,) = result.sites
    norm = np.linalg.norm(folded)
    assert report.errors.weight == pytest.approx(np.linalg.norm(folded - written) / norm, rel=1e-6)
    if dtype == np.float32:
        assert report.errors.cast is None
    else:
        assert report.errors.cast == pytest.approx(np.linalg.norm(exact - written) / norm, rel=1e-3)
        assert report.errors.cast < 1e-3
    assert report.to_dict()["weight_error"] == report.errors.weight
