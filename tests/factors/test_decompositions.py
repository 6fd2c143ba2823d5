"""Every decomposition against the mathematics, and every chain against the one Conv it amounts to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from nets import rewrite
from onnx import ModelProto, helper, numpy_helper
from tensorly.decomposition import partial_tucker

from onnxdecomp import Choice, NothingSelectedError, Plan, Policy, Ranks, UsageError
from onnxdecomp.factors import METHODS, Chain, CpError, cp, factorise, layout

# Σ‖component‖² over ‖W‖²: what a chain may grow to before its output drowns in rounding.
MOST_GROWTH = 100


def composed(links: Sequence[tuple[np.ndarray, int]], groups: int, kernel: tuple[int, ...]) -> np.ndarray:
    """The weight of the Conv that a chain of (weight, group) amounts to, by one einsum a group.

    A link with more groups than the original is depthwise: its channels are one index, not two.
    """
    parts = []
    for i in range(groups):
        terms, channel = [], 0
        for weight, group in links:
            inner = 0 if group > groups else 1
            wide = [axis for axis, size in enumerate(weight.shape[2:]) if size > 1]
            letters = "ABCDEF"[channel + inner] + "ABCDEF"[channel] * inner + "".join("xyz"[a] for a in wide)
            part = np.split(weight, groups)[i]
            shape = part.shape[: 1 + inner] + tuple(part.shape[2 + axis] for axis in wide)
            terms.append((letters, part.reshape(shape)))
            channel += inner
        spatial = "".join("xyz"[axis] for axis, size in enumerate(kernel) if size > 1)
        # Two links that were wide on the same axis would be a longer kernel than the original's.
        assert sorted(spatial) == sorted(c for letters, _ in terms for c in letters if c in "xyz")
        formula = ",".join(letters for letters, _ in terms) + f"->{'ABCDEF'[channel]}A{spatial}"
        part = np.einsum(formula, *(array for _, array in terms), optimize=True)
        parts.append(part.reshape(*part.shape[:2], *kernel))
    return np.concatenate(parts)


def pairs(chain: Chain) -> list[tuple[np.ndarray, int]]:
    return [(link.weight, link.groups) for link in chain.links]


def single(method: str, weight: np.ndarray, rank: int, groups: int = 1) -> float:
    """The relative error of a decomposition with one rank."""
    chain = factorise(method, weight, Ranks(rank, rank), groups)
    return nets.distance(weight, composed(pairs(chain), groups, weight.shape[2:]))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# Exact cases
# -----------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("shape", "ranks"),
    [((24, 16, 3, 3), (5, 7)), ((9, 20, 5), (9, 1)), ((8, 8, 3, 2, 3), (8, 3)), ((40, 3, 7, 7), (1, 3))],
)
def test_a_weight_of_tucker_rank_is_recovered(
    shape: tuple[int, ...], ranks: tuple[int, int], seed: int
) -> None:
    out, into = ranks
    core, u, v = random(out, into, *shape[2:], seed=seed), random(shape[0], out), random(shape[1], into)
    weight = np.einsum("sr...,ds,cr->dc...", core, u, v)
    chain = factorise("tucker2", weight, Ranks(into, out), 1)
    assert nets.distance(weight, composed(pairs(chain), 1, shape[2:])) <= 1e-6


def of_cp_rank(shape: tuple[int, ...], rank: int, seed: int, split: bool) -> np.ndarray:
    """A weight that is the sum of `rank` components; the kernel is one mode unless `split`."""
    generator = np.random.default_rng(seed)
    modes = shape if split else (*shape[:2], math.prod(shape[2:]))
    letters = "dcxyz"[: len(modes)]
    factors = [generator.standard_normal((size, rank)) for size in modes]
    formula = ",".join(f"{letter}r" for letter in letters) + f"->{letters}"
    return np.einsum(formula, *factors, optimize=True).reshape(shape)


# At rank 8 these seeds are the ones where 200 iterations from the HOSVD and from noise do not arrive.
@pytest.mark.parametrize("seed", [1, 3, 4])
@pytest.mark.parametrize("rank", [1, 3, 5, 8])
@pytest.mark.parametrize(
    ("method", "shape"),
    [
        ("cp", (12, 10, 3, 3)),
        ("cp", (32, 24, 3, 5)),
        ("cp", (10, 8, 3, 2, 3)),
        ("cp3", (12, 10, 3, 3)),
        ("cp3", (12, 10, 5)),
        ("cp3", (32, 24, 5, 1)),
    ],
)
def test_a_weight_of_cp_rank_is_recovered(method: str, shape: tuple[int, ...], rank: int, seed: int) -> None:
    weight = of_cp_rank(shape, rank, seed, split=method == "cp")
    assert single(method, weight, rank) <= 1e-6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rank", [1, 2, 6])
@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (8, 6, 5, 2), (6, 8, 3, 3, 3), (6, 8, 2, 5, 1)])
def test_a_separable_kernel_is_recovered(shape: tuple[int, ...], rank: int, seed: int) -> None:
    first, rest = (
        random(rank, shape[1], shape[2], seed=seed),
        random(shape[0], rank, *shape[3:], seed=seed + 9),
    )
    weight = np.einsum("rcx,dr...->dcx...", first, rest)
    assert single("spatial", weight, rank) <= 1e-6
    assert single("spatial", weight + 1e-3 * random(*shape), rank) > 1e-4


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("shape", [(20, 8), (8, 20), (8, 8), (20, 8, 1, 1), (8, 20, 1), (20, 8, 1, 1, 1)])
def test_a_matrix_of_low_rank_is_recovered(shape: tuple[int, ...], rank: int) -> None:
    weight = (random(shape[0], rank) @ random(rank, shape[1], seed=1)).reshape(shape)
    assert single("svd", weight, rank) <= 1e-6


@pytest.mark.parametrize("method", ["svd", "spatial", "cp", "cp3"])
def test_each_group_is_factored_by_itself(method: str) -> None:
    """Two groups of rank 2 are recovered at rank 2, though together they have rank 4."""
    kernel = (1, 1) if method == "svd" else (3, 3)
    weight = np.concatenate([of_cp_rank((8, 6, *kernel), 2, seed, split=True) for seed in (1, 2)])
    assert single(method, weight, 2, groups=2) <= 1e-6
    assert single(method, weight, 2, groups=1) > 0.05


def low_rank_and_noise(*shape: int) -> np.ndarray:
    weight = of_cp_rank(shape, 5, 3, split=False)
    return weight + 0.2 * random(*shape) * weight.std()


WEIGHTS = [random(16, 12, 3, 3), low_rank_and_noise(16, 12, 3, 3), low_rank_and_noise(10, 14, 3, 2, 3)]


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("rank", [1, 4, 9, 12])
def test_svd_and_spatial_are_the_eckart_young_optimum(weight: np.ndarray, rank: int) -> None:
    rest = "jk"[: weight.ndim - 3]
    rearranged = np.einsum(f"dci{rest}->cid{rest}", weight).reshape(weight.shape[1] * weight.shape[2], -1)
    taps = weight[(..., *[0] * (weight.ndim - 2))]
    for method, matrix, given in (("svd", taps, taps[..., None, None]), ("spatial", rearranged, weight)):
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        cut = min(rank, len(squares))
        optimum = math.sqrt(squares[cut:].sum() / squares.sum())
        assert single(method, given, cut) == pytest.approx(optimum, abs=1e-7)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("ranks", [(1, 1), (4, 5), (10, 3), (8, 12)])
def test_tucker2_is_as_good_as_tensorlys(weight: np.ndarray, ranks: tuple[int, int]) -> None:
    out, into = ranks
    (core, (u, v)), _ = partial_tucker(weight, rank=[out, into], modes=[0, 1])
    theirs = nets.distance(weight, np.einsum("sr...,ds,cr->dc...", core, u, v))
    chain = factorise("tucker2", weight, Ranks(into, out), 1)
    ours = nets.distance(weight, composed(pairs(chain), 1, weight.shape[2:]))
    assert ours == pytest.approx(theirs, abs=1e-4)


# CP where there is no best approximation
# ---------------------------------------


def border_rank_two(c_out: int, c_in: int, taps: int, seed: int) -> np.ndarray:
    """A tensor of rank 3 that rank 2 approaches as closely as one likes (de Silva and Lim 2008)."""
    generator = np.random.default_rng(seed)
    (a, b), (c, d), (e, f) = (
        np.linalg.qr(generator.standard_normal((n, 2)))[0].T for n in (c_out, c_in, taps)
    )
    terms = [(a, c, f), (a, d, e), (b, c, e)]
    return sum(np.einsum("d,c,k->dck", *term) for term in terms)


def growth(chain: Chain, weight: np.ndarray) -> float:
    """Σ‖component‖² over ‖W‖²."""
    norms = np.ones(len(chain.links[0].weight))
    for link in chain.links[:-1]:
        norms = norms * np.linalg.norm(link.weight.reshape(len(norms), -1), axis=1)
    norms = norms * np.linalg.norm(chain.links[-1].weight.reshape(-1, len(norms)), axis=0)
    return float((norms**2).sum() / np.linalg.norm(weight) ** 2)


DEGENERATE = {
    "border rank 2": (border_rank_two(16, 12, 9, 0).reshape(16, 12, 3, 3), 2),
    "border rank 4": (sum(border_rank_two(16, 12, 9, s) for s in (1, 2)).reshape(16, 12, 3, 3), 4),
    "border rank 2 in four modes": (border_rank_two(8, 8, 3, 0)[..., None] * random(3), 2),
    "rank near the limit": (random(4, 3, 3, 3), 27),
    "rank above the weight's": (of_cp_rank((8, 6, 3, 3), 1, 0, split=True), 5),
    "all ones": (np.ones((8, 6, 3, 3)), 3),
    "pruned channels": (
        random(8, 6, 3, 3) * np.outer(np.arange(8) < 4, np.arange(6) < 3)[..., None, None],
        6,
    ),
    "huge": (random(8, 6, 3, 3) * 1e150, 3),
    "tiny": (random(8, 6, 3, 3) * 1e-150, 3),
}


@pytest.mark.parametrize("method", ["cp", "cp3"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_cp_components_stay_bounded_or_the_failure_is_said(name: str, method: str) -> None:
    weight, rank = DEGENERATE[name]
    try:
        chain = factorise(method, weight, Ranks(rank, rank), 1)
    except CpError as error:
        assert f"{rank} components" in str(error) and "\n" not in str(error)
        return
    assert growth(chain, weight) <= MOST_GROWTH
    assert single(method, weight, rank) < 1


def test_cp_of_zeros_is_zero() -> None:
    for method in ("cp", "cp3"):
        for link in factorise(method, np.zeros((8, 6, 3, 3)), Ranks(3, 3), 1).links:
            np.testing.assert_array_equal(link.weight, np.zeros_like(link.weight))


def test_a_site_on_which_cp_fails_is_kept_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every start is made to count as degenerate: no weight is sure to bring all of them there."""
    monkeypatch.setattr(cp, "_MOST_GROWTH", 0.0)
    model, _ = Case(method="cp", kernel=(3, 3)).model(np.float32)
    with pytest.raises(NothingSelectedError, match=r"CP with 2 components does not settle"):
        rewrite(model, 2, policy=replace(nets.ANYTHING, method="cp"))
    with pytest.raises(UsageError, match=r"site 'conv' cannot be decomposed: CP with 2 components"):
        rewrite(model, plan=Plan({"conv": Choice("cp", Ranks(2, 2))}))
    # Among the candidates of auto, the others go on without it.
    (site,) = rewrite(model, 2, policy=replace(nets.ANYTHING, method="auto")).sites
    assert site.choice.method in ("tucker2", "tucker1", "spatial")


@pytest.mark.parametrize("method", METHODS)
def test_the_same_model_gives_the_same_bytes(method: str) -> None:
    kernel = (1, 1) if method == "svd" else (3, 3)
    model, _ = Case(method=method, kernel=kernel, groups=2).model(np.float32)
    plan = Plan({"conv": Case(method=method, kernel=kernel).choice})
    first = rewrite(model, plan=plan, jobs=1).model.SerializeToString()
    assert all(rewrite(model, plan=plan, jobs=n).model.SerializeToString() == first for n in (1, 2))


@pytest.mark.parametrize("method", ["cp", "cp3"])
def test_a_singular_system_is_a_failed_start(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """TensorLy's equations become singular where components vanish: the start is lost, not the program."""

    def singular(*arguments: object, **options: object) -> None:
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(cp, "parafac", singular)
    with pytest.raises(CpError, match="3 components"):
        factorise(method, random(8, 6, 3, 3), Ranks(3, 3), 1)


def test_random_starts_are_seeded() -> None:
    """At 9 components, more than any mode of the weight has, every start is random."""
    chains = [factorise("cp", random(8, 6, 3, 3), Ranks(9, 9), 1) for _ in range(2)]
    for link, again in zip(*(chain.links for chain in chains), strict=True):
        np.testing.assert_array_equal(link.weight, again.weight)


# A chain is the Conv its factors amount to
# -----------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One Conv and how to decompose it; channels are 6 in, 8 out a group."""

    method: str
    kernel: tuple[int, ...]
    groups: int = 1
    one_sided: bool = False
    attributes: dict[str, Any] | None = None

    @property
    def choice(self) -> Choice:
        if self.method == "tucker1":
            return Choice("tucker1", Ranks(None, 4) if self.one_sided else Ranks(3, None))
        if self.method == "tucker2":
            return Choice("tucker2", Ranks(3, 4))
        rank = 2 if self.method in ("cp", "cp3") else 3
        return Choice(self.method, Ranks(rank, rank))

    def model(self, dtype: Any) -> tuple[ModelProto, np.ndarray]:
        """The Conv with a bias, and an input."""
        channels, sizes = (6 * self.groups, 8 * self.groups), [9, 10, 8][: len(self.kernel)]
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", **(self.attributes or {}))
        node.attribute.append(helper.make_attribute("group", self.groups))
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        # Two components a group: CP finds them in no time.
        weight = [of_cp_rank((8, 6, *self.kernel), 2, seed, split=True) for seed in range(self.groups)]
        arrays = {"w": (np.concatenate(weight) / 8).astype(dtype)}
        arrays["b"] = nets.signal(channels[1], seed=3, dtype=dtype)
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("x", element, [2, channels[0], *sizes])],
            [helper.make_tensor_value_info("y", element, [None] * (2 + len(sizes)))],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return model, nets.signal(2, channels[0], *sizes, dtype=dtype)


def per_axis(ndim: int, *values: int) -> list[int]:
    return list(values[:ndim])


def geometries(ndim: int) -> dict[str, dict[str, Any]]:
    """Attributes of a Conv; every axis is told apart by its numbers, and so are its two ends."""
    strides, dilations = per_axis(ndim, 2, 3, 1), per_axis(ndim, 1, 2, 3)
    pads = [*per_axis(ndim, 2, 0, 1), *per_axis(ndim, 1, 3, 0)]
    return {
        "plain": {},
        "strides": {"strides": strides, "auto_pad": "NOTSET"},
        "pads": {"pads": pads},
        "dilations": {"dilations": dilations, "pads": pads},
        "all": {"strides": strides, "dilations": dilations, "pads": pads},
        "same upper": {"auto_pad": "SAME_UPPER", "strides": strides},
        "same lower": {"auto_pad": "SAME_LOWER", "strides": strides[::-1]},
        "valid": {"auto_pad": "VALID", "strides": strides, "dilations": dilations},
    }


KERNELS = {
    "tucker2": [(3,), (3, 2), (2, 1, 3)],
    "tucker1": [(3,), (3, 2), (2, 1, 3)],
    "svd": [(1,), (1, 1), (1, 1, 1)],
    "spatial": [(3, 2), (2, 1, 3), (3, 2, 2)],
    "cp": [(3, 2), (2, 1, 3), (3, 2, 2)],
    "cp3": [(3,), (3, 2), (2, 1, 3)],
}


def _cases() -> Iterator[Any]:
    for method, kernels in KERNELS.items():
        for kernel in kernels:
            for name, attributes in geometries(len(kernel)).items():
                for groups in (1, 2):
                    case = Case(method=method, kernel=kernel, groups=groups, attributes=attributes)
                    label = f"{method}-{'x'.join(map(str, kernel))}-{name.replace(' ', '_')}-g{groups}"
                    yield pytest.param(replace(case, one_sided=groups == 2), id=label)


CASES = list(_cases())


def written_links(model: ModelProto) -> list[tuple[np.ndarray, int]]:
    """(weight, group) of the Convs of a model that is one chain."""
    values = nets.constants(model)
    groups = [next((a.i for a in node.attribute if a.name == "group"), 1) for node in model.graph.node]
    return [(values[node.input[1]], group) for node, group in zip(model.graph.node, groups, strict=True)]


def counted_macs(model: ModelProto) -> int:
    """Multiply-accumulates by the inferred shapes: each output element sums over one filter."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*inferred.value_info, *inferred.output)
    }
    values = nets.constants(model)
    return sum(math.prod(shapes[n.output[0]]) * values[n.input[1]][0].size for n in inferred.node)


def restored(original: ModelProto, weight: np.ndarray) -> ModelProto:
    """`original` with another weight in its Conv."""
    model = ModelProto()
    model.CopyFrom(original)
    stored = next(t for t in model.graph.initializer if t.name == "w")
    stored.CopyFrom(
        numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(stored.data_type)), "w")
    )
    return model


ENGINES = {
    np.float32: (nets.run, 1e-5),
    np.float64: (nets.run_in_reference, 1e-12),
    # 11 bits: the factors are exact here, the tensors between them are rounded.
    np.float16: (nets.run, 3e-3),
}


# What a chain takes over does not depend on the element type: the plainer geometries run in float32 alone.
MATRIX = [
    pytest.param(*case.values, dtype, id=f"{case.id}-{dtype.__name__}")
    for case in CASES
    for dtype in ENGINES
    if dtype is np.float32 or any(name in case.id for name in ("all", "same", "valid"))
]


@pytest.mark.parametrize(("case", "dtype"), MATRIX)
def test_a_chain_is_the_conv_its_factors_compose_to(case: Case, dtype: Any) -> None:
    engine, tolerance = ENGINES[dtype]
    model, x = case.model(dtype)
    result = rewrite(model, plan=Plan({"conv": case.choice}))
    links = written_links(result.model)
    single_conv = restored(model, composed(links, case.groups, case.kernel))
    assert nets.distance(engine(single_conv, x=x)["y"], engine(result.model, x=x)["y"]) <= tolerance

    (report,) = result.sites
    assert report.after == (sum(weight.size for weight, _ in links), counted_macs(result.model))
    channels = (6 * case.groups, 8 * case.groups)
    expected = layout(case.method, case.choice.ranks, channels, case.groups, len(case.kernel))
    roles = [node.name.removeprefix("conv/") for node in result.model.graph.node]
    assert [shape.role for shape in expected] == roles
    for shape, (weight, group) in zip(expected, links, strict=True):
        c_in, c_out = shape.channels
        wide = [size if axis in shape.axes else 1 for axis, size in enumerate(case.kernel)]
        assert (weight.shape, group) == ((c_out, c_in // shape.groups, *wide), shape.groups)
        assert shape.params(case.kernel) == weight.size


@pytest.mark.parametrize("case", [c for c in CASES if "plain" in c.id])
def test_a_chain_knows_the_weight_it_amounts_to(case: Case) -> None:
    weight = random(8 * case.groups, 6, *case.kernel)
    chain = factorise(case.method, weight, case.choice.ranks, case.groups)
    expected = composed(pairs(chain), case.groups, case.kernel)
    assert chain.reconstruct().shape == weight.shape
    assert nets.distance(expected, chain.reconstruct()) <= 1e-12


def test_the_stride_of_a_1x1_sits_on_the_first_conv() -> None:
    attributes = {"strides": [2, 3], "pads": [1, 0, 0, 1]}
    case = Case(method="svd", kernel=(1, 1), attributes=attributes)
    model, _ = case.model(np.float32)
    first, last = rewrite(model, plan=Plan({"conv": case.choice})).model.graph.node
    assert {a.name: list(a.ints) for a in first.attribute if a.name != "group"} == attributes
    assert {a.name: list(a.ints) for a in last.attribute} == {"kernel_shape": [1, 1]}
    assert len(first.input) == 2 and last.input[2] == "b"


# auto
# ----


def conv(weight: np.ndarray, attributes: str = "") -> ModelProto:
    c_out, c_in = weight.shape[:2]
    text = f"g (float[1,{c_in},14,14] x) => (float[1,{c_out},M,N] y) {{ [conv] y = Conv{attributes} (x, w) }}"
    return nets.model(text, w=weight.astype(np.float32))


# At rank 8 a Tucker-2 chain from 16 to 16 channels costs what 8 separable filters or 18 CP components cost.
STRUCTURED = {
    "random": (random(16, 16, 3, 3), set(METHODS)),
    "tucker": (np.einsum("srxy,ds,cr->dcxy", random(8, 8, 3, 3), *random(2, 16, 8)), {"tucker2", "tucker1"}),
    "separable": (np.einsum("rcx,dry->dcxy", random(8, 16, 3), random(16, 8, 3, seed=1)), {"spatial"}),
    "components": (of_cp_rank((16, 16, 3, 3), 12, 0, split=True), {"cp", "cp3"}),
    "one mode": (np.einsum("drxy,rc->dcxy", random(16, 5, 3, 3), random(5, 16, seed=1)), {"tucker1"}),
}


@pytest.mark.parametrize("attributes", ["", "<strides=[2,2]>"])
@pytest.mark.parametrize("name", STRUCTURED)
def test_auto_is_never_worse_than_the_default_at_the_same_macs(name: str, attributes: str) -> None:
    weight, best = STRUCTURED[name]
    model = conv(weight, attributes)
    (plain,) = rewrite(model, 8, policy=Policy(align=1, allow_slower=True)).sites
    (auto,) = rewrite(model, 8, policy=Policy(align=1, allow_slower=True, method="auto")).sites
    assert plain.choice == Choice("tucker2", Ranks(8, 8))
    assert auto.errors.weight <= plain.errors.weight
    assert auto.after[1] <= plain.after[1]
    assert auto.choice.method in best
    assert auto.errors.weight < (1 if name == "random" else 1e-3)


def test_autos_ranks_are_multiples_of_the_alignment() -> None:
    """18 components would fall out of ONNX Runtime's blocked kernels."""
    weight, _ = STRUCTURED["components"]
    for align in (4, 8):
        (site,) = rewrite(conv(weight), 8, policy=Policy(method="auto", align=align, allow_slower=True)).sites
        assert site.choice.method in ("cp", "cp3")
        assert site.choice.ranks.input == 16


def test_auto_keeps_to_the_budget_of_every_site_that_shares_a_weight() -> None:
    """At stride 2 a Tucker chain's first 1×1 costs four times as much, at stride 1 it does not."""
    text = """g (float[1,32,32,32] x) => (float[1,32,M,M] y, float[1,32,N,N] z) {
        [strided] y = Conv <strides=[2,2]> (x, w)
        [dense] z = Conv (x, w)
    }"""
    weight = np.einsum("rcx,dry->dcxy", random(3, 32, 3), random(32, 3, 3, seed=1))
    model = nets.model(text, w=weight.astype(np.float32))
    policy = Policy(align=1, allow_slower=True)
    plain, auto = (rewrite(model, 5, policy=replace(policy, method=m)).sites for m in (None, "auto"))
    for before, after in zip(plain, auto, strict=True):
        assert after.after[1] <= before.after[1], after.site.name
