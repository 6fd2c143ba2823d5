"""Rules: from what the user asks for to the ranks of each site, and what is refused in one line."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from conftest import Cli, save
from nets import rewrite
from onnx import ModelProto

from onnxdecomp import Choice, NothingSelectedError, Plan, Policy, Ranks, SiteReport, UsageError
from onnxdecomp.factors import METHODS, ONE_RANK, cp
from onnxdecomp.planning import parse_rank

EXACT = Policy(align=1, allow_slower=True)
SIZE = 12


def conv(weight: np.ndarray, *, stride: int = 1, groups: int = 1) -> ModelProto:
    """A padded Conv on 12 × 12 positions."""
    c_out, c_in = weight.shape[0], weight.shape[1] * groups
    pads = [size // 2 for size in weight.shape[2:]] * 2
    text = f"""g (float[1,{c_in},{SIZE},{SIZE}] x) => (float[1,{c_out},M,N] y) {{
        [conv] y = Conv <pads={pads}, strides=[{stride},{stride}], group={groups}> (x, w)
    }}"""
    return nets.model(text, w=weight.astype(np.float32))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def decaying(c_out: int, c_in: int, *kernel: int, seed: int = 0) -> np.ndarray:
    """A weight whose channels matter less and less, at different speeds for the two modes."""
    mixed = random(c_out, c_in, *kernel, seed=seed) * np.arange(1, c_out + 1).reshape(
        -1, *[1] * (1 + len(kernel))
    )
    mixed = mixed * 0.9 ** np.arange(c_in).reshape(-1, *[1] * len(kernel))
    turns = [np.linalg.qr(random(size, size, seed=seed + 1))[0] for size in (c_out, c_in)]
    return np.einsum("dc...,ds,cr->sr...", mixed, *turns)


@pytest.fixture
def hasty_cp(monkeypatch: pytest.MonkeyPatch) -> None:
    """CP stops long before it settles, for tests of its ranks and costs, which do not depend on that."""
    for name in ("_ITERATIONS", "_MORE_ITERATIONS"):
        assert getattr(cp, name) > 10
        monkeypatch.setattr(cp, name, 10)


def report(model: ModelProto, rank: str | float, policy: Policy) -> SiteReport:
    (site,) = rewrite(model, rank, policy=policy).sites
    return site


def squares(weight: np.ndarray, mode: int, groups: int = 1) -> np.ndarray:
    """Squared singular values of an unfolding of the stored weight, summed over groups rank by rank."""
    parts = np.split(weight.astype(np.float32).astype(np.float64), groups)
    unfolded = [np.moveaxis(part, mode, 0).reshape(part.shape[mode], -1) for part in parts]
    return np.sum([np.linalg.svd(matrix, compute_uv=False) ** 2 for matrix in unfolded], axis=0)


def rearranged(weight: np.ndarray) -> np.ndarray:
    """The matrix of C·k₀ rows and D·k₁ columns that `spatial` takes apart."""
    d, c, k0, k1 = weight.shape
    return np.einsum("dcij->cidj", weight).reshape(c * k0, d * k1)[:, :, None, None]


# energy
# ------


def smallest(values: np.ndarray, share: float) -> int:
    """The smallest rank that keeps `share` of the energy."""
    return next(r for r in range(1, len(values) + 1) if values[:r].sum() >= share * values.sum() * (1 - 1e-9))


SHARES = [0.05, 0.5, 0.8, 0.9, 0.99, 0.9999]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("weight", [decaying(24, 20, 3, 3), decaying(18, 30, 5, 1), random(24, 8, 3, 3)])
def test_energy_is_kept_in_each_mode_and_no_more(weight: np.ndarray, groups: int) -> None:
    modes = [squares(weight, mode, groups) for mode in (0, 1)]
    for share in SHARES:
        site = report(
            conv(weight, groups=groups), f"energy={share}", replace(EXACT, method="tucker2", min_channels=1)
        )
        assert site.choice == Choice("tucker2", Ranks(smallest(modes[1], share), smallest(modes[0], share)))
        assert site.errors.weight**2 <= 2 * (1 - share) + 1e-6


def test_energy_of_the_matrix_a_method_cuts() -> None:
    """`svd` and `spatial` have one spectrum; CP has those of Tucker, and takes the larger rank."""
    weight, matrix = decaying(24, 20, 3, 3), decaying(24, 20, 1, 1)
    for share in SHARES[:-1]:
        for method, given, spectrum in (
            ("svd", matrix, squares(matrix, 0)),
            ("spatial", weight, squares(rearranged(weight), 0)),
        ):
            rank = smallest(spectrum, share)
            site = report(conv(given), f"energy={share}", replace(EXACT, method=method))
            assert site.choice == Choice(method, Ranks(rank, rank))
            assert (1 - site.errors.weight**2) >= share - 1e-6
    rank = max(smallest(squares(weight, mode), 0.3) for mode in (0, 1))
    assert report(conv(weight), "energy=0.3", replace(EXACT, method="cp3")).choice.ranks == Ranks(rank, rank)


def test_more_energy_never_takes_fewer_ranks() -> None:
    weight, last = decaying(32, 24, 3, 3), (0, 0)
    for share in np.linspace(0.02, 1.0, 50):
        ranks = report(conv(weight), f"energy={share:.2f}", replace(EXACT, method="tucker2")).choice.ranks
        assert ranks.input >= last[0] and ranks.output >= last[1]
        last = ranks.input, ranks.output
    assert last == (24, 32)


def test_all_of_the_energy_is_the_numerical_rank() -> None:
    low = np.einsum("srxy,ds,cr->dcxy", random(5, 3, 3, 3), random(24, 5), random(20, 3))
    assert report(conv(low.round(2)), "energy=1.0", EXACT).choice.ranks == Ranks(20, 24)
    # Whole numbers are exact in float32: only float64 rounding is above rank 3 and 5.
    whole = [random(*shape).round() for shape in ((5, 3, 3, 3), (24, 5), (20, 3))]
    low = np.einsum("srxy,ds,cr->dcxy", *whole)
    assert report(conv(low), "energy=1.0", EXACT).choice.ranks == Ranks(3, 5)
    assert report(conv(np.zeros((24, 20, 3, 3))), "energy=0.9", EXACT).choice.ranks == Ranks(1, 1)


def test_energy_rounds_up_to_the_alignment() -> None:
    weight = decaying(40, 36, 3, 3)
    plain = report(conv(weight), "energy=0.8", replace(EXACT, method="tucker2")).choice.ranks
    for align in (4, 8, 16):
        ranks = report(conv(weight), "energy=0.8", replace(EXACT, method="tucker2", align=align)).choice.ranks
        up = [math.ceil(rank / align) * align for rank in (plain.input, plain.output)]
        assert ranks == Ranks(min(up[0], 36), min(up[1], 40))


# params and macs
# ---------------


def chain_cost(what: str, weight: np.ndarray, stride: int, ranks: tuple[int, int]) -> float:
    """What a Tucker chain leaves of the Conv, a mode at full rank left out as long as the other is not.

    Kim et al. 2016, equation 6; the first 1×1 runs at the input's positions, all else at the output's.
    """
    d, c, taps = *weight.shape[:2], math.prod(weight.shape[2:])
    before, after = (SIZE**2, math.ceil(SIZE / stride) ** 2) if what == "macs" else (1, 1)
    r, s = ranks
    two_sided = before * c * r + after * (taps * r * s + s * d)
    only_in, only_out = before * c * r + after * taps * r * d, after * (taps * c * s + s * d)
    full = (r == c, s == d)
    cost = {
        (False, False): two_sided,
        (True, True): two_sided,
        (False, True): only_in,
        (True, False): only_out,
    }
    return cost[full] / (after * taps * c * d)


def cut(spectra: list[np.ndarray], ranks: tuple[int, int]) -> float:
    """The share of the energy cut off, both modes together."""
    (into, out), (r, s) = spectra, ranks
    return into[r:].sum() / into.sum() + out[s:].sum() / out.sum()


def grid(limit: int, align: int) -> list[int]:
    return [*range(align, limit, align), limit]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("what", ["params", "macs"])
@pytest.mark.parametrize(
    ("shape", "stride", "align"),
    [((32, 24, 3, 3), 1, 1), ((24, 40, 3, 3), 2, 1), ((64, 32, 3, 3), 2, 8), ((36, 36, 5, 1), 1, 8)],
)
def test_no_affordable_ranks_cut_off_less(
    shape: tuple[int, ...], stride: int, align: int, what: str, share: float
) -> None:
    weight, full = decaying(*shape), (shape[1], shape[0])
    pairs = itertools.product(grid(full[0], align), grid(full[1], align))
    affordable = [pair for pair in pairs if chain_cost(what, weight, stride, pair) <= share]
    if not affordable:
        with pytest.raises(NothingSelectedError, match=rf"no chain with ranks in steps of {align} leaves"):
            rewrite(conv(weight, stride=stride), f"{what}={share}", policy=Policy(align=align))
        return
    site = report(conv(weight, stride=stride), f"{what}={share}", Policy(align=align, allow_slower=True))
    before, after = (site.site.params, site.after[0]) if what == "params" else (site.site.macs, site.after[1])
    assert after <= share * before
    ranks = (site.choice.ranks.input or full[0], site.choice.ranks.output or full[1])
    assert after == pytest.approx(chain_cost(what, weight, stride, ranks) * before)

    spectra = [squares(weight, mode) for mode in (1, 0)]
    assert ranks in affordable
    assert cut(spectra, ranks) <= min(cut(spectra, pair) for pair in affordable) + 1e-9


@pytest.mark.usefixtures("hasty_cp")
@pytest.mark.parametrize("what", ["params", "macs"])
@pytest.mark.parametrize(
    ("method", "kernel"), [("svd", (1, 1)), *((m, (3, 3)) for m in ONE_RANK if m != "svd")]
)
def test_one_rank_is_the_largest_affordable(method: str, kernel: tuple[int, int], what: str) -> None:
    for stride, align in ((1, 1), (2, 4)):
        model, policy = (
            conv(decaying(20, 16, *kernel), stride=stride),
            replace(EXACT, method=method, align=align),
        )
        site = report(model, f"{what}=0.5", policy)
        column = 0 if what == "params" else 1
        budget = 0.5 * (site.site.params, site.site.macs)[column]
        rank = site.choice.ranks.input
        assert rank % align == 0 and site.choice == Choice(method, Ranks(rank, rank))
        more = rewrite(model, plan=Plan({"conv": Choice(method, Ranks(rank + align, rank + align))})).sites[0]
        assert site.after[column] <= budget < more.after[column]


@pytest.mark.parametrize("method", [None, *METHODS])
def test_a_budget_that_no_chain_meets_keeps_the_site(method: str | None) -> None:
    weight = decaying(20, 16, *((1, 1) if method == "svd" else (3, 3)))
    for what in ("params", "macs"):
        with pytest.raises(
            NothingSelectedError, match=rf"no chain with ranks in steps of 8 leaves 1% of its {what}"
        ):
            rewrite(conv(weight), f"{what}=0.01", policy=Policy(method=method))


def test_a_budget_of_macs_may_be_too_little_to_pay() -> None:
    with pytest.raises(NothingSelectedError, match=r"too small to pay"):
        rewrite(conv(decaying(32, 32, 3, 3)), "macs=0.95", policy=Policy(align=1))


# vbmf
# ----


def low_rank(
    c_out: int, c_in: int, ranks: tuple[int, int], noise: float, kernel: tuple[int, int] = (3, 3)
) -> np.ndarray:
    """A weight of Tucker ranks (out, in) with equal singular values, and noise."""
    core = np.linalg.qr(random(ranks[0], ranks[1] * math.prod(kernel)).T)[0].T.reshape(*ranks, *kernel)
    left, right = (np.linalg.qr(random(c, r))[0] for c, r in zip((c_out, c_in), ranks, strict=True))
    signal = np.einsum("sr...,ds,cr->dc...", core, left, right)
    return signal / signal.std() + noise * random(c_out, c_in, *kernel, seed=7)


def test_vbmf_finds_the_ranks_of_a_noisy_weight() -> None:
    site = report(conv(low_rank(48, 40, (9, 11), 0.1)), "vbmf", EXACT)
    assert site.choice == Choice("tucker2", Ranks(11, 9))
    aligned = report(conv(low_rank(48, 40, (9, 11), 0.1)), "vbmf", Policy())
    assert aligned.choice == Choice("tucker2", Ranks(16, 16))
    matrix = report(conv(low_rank(64, 48, (10, 10), 0.1, (1, 1))), "vbmf", EXACT)
    assert matrix.choice == Choice("svd", Ranks(10, 10))


@pytest.mark.parametrize("align", [1, 8, 16])
def test_rank_zero_becomes_one_block(align: int) -> None:
    for weight, method in (
        (random(48, 40, 3, 3), "tucker2"),
        (random(64, 48, 1, 1), "svd"),
        (np.zeros((32, 32, 3, 3)), "tucker2"),
    ):
        assert report(conv(weight), "vbmf", Policy(align=align)).choice == Choice(method, Ranks(align, align))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("ranks", [(28, 28), (31, 20), (24, 31)])
def test_vbmf_is_never_above_break_even(ranks: tuple[int, int], stride: int) -> None:
    weight = low_rank(40, 40, ranks, 1e-4)
    site = report(conv(weight, stride=stride), "vbmf", Policy(allow_slower=True))
    assert site.after[1] <= site.site.macs
    # Unless the chain costs more, the ranks are those found, rounded up.
    up = [math.ceil(rank / 8) * 8 for rank in ranks]
    if chain_cost("macs", weight, stride, (up[1], up[0])) <= 1:
        assert site.choice == Choice("tucker2", Ranks(up[1], up[0]))


def test_vbmf_may_find_a_chain_too_small_to_pay() -> None:
    with pytest.raises(NothingSelectedError, match=r"too small to pay"):
        rewrite(conv(random(16, 16, 1, 1)), "vbmf")


# A mode at full rank
# -------------------


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_mode_at_full_rank_gets_no_factor(stride: int) -> None:
    """Whatever is cheaper at this stride: a factor at full rank saves nothing and costs a Conv."""
    for ranks, expected in (
        ("in=25,out=1.0", Ranks(25, None)),
        ("in=1.0,out=20", Ranks(None, 20)),
        ("in=39,out=1.0", Ranks(39, None)),
        ("in=1.0,out=1.0", Ranks(40, 24)),
    ):
        site = report(conv(random(24, 40, 3, 3), stride=stride), ranks, EXACT)
        method = "tucker1" if None in (expected.input, expected.output) else "tucker2"
        assert site.choice == Choice(method, expected)


# Alignment, clamping, one rank of two
# ------------------------------------


@pytest.mark.parametrize(
    ("text", "method", "shape", "align", "expected"),
    [
        ("0.25", "tucker2", (128, 64, 3, 3), 8, (32, 32)),
        ("0.3", "tucker2", (30, 60, 3, 3), 8, (16, 16)),
        ("0.3", "tucker2", (30, 60, 3, 3), 1, (9, 9)),
        ("in=0.5,out=0.25", "tucker2", (64, 32, 3, 3), 8, (16, 16)),
        ("13", "tucker2", (32, 32, 3, 3), 8, (13, 13)),
        ("in=100,out=9", "tucker2", (32, 24, 3, 3), 8, (24, 9)),
        ("100", "tucker2", (32, 24, 3, 3), 8, (24, 32)),
        ("in=16,out=9", "svd", (32, 24, 1, 1), 8, (9, 9)),
        ("in=0.25,out=0.5", "svd", (64, 32, 1, 1), 8, (8, 8)),
        ("0.5", "svd", (64, 24, 1, 1), 8, (16, 16)),
        ("0.5", "svd", (24, 64, 1, 1), 8, (16, 16)),
        ("1000", "svd", (32, 24, 1, 1), 8, (24, 24)),
        ("in=12,out=20", "spatial", (32, 24, 3, 3), 8, (12, 12)),
        ("1000", "spatial", (16, 24, 3, 3), 8, (48, 48)),
        ("in=3,out=5", "cp3", (16, 16, 3, 3), 8, (5, 5)),
    ],
)
def test_what_is_written_and_what_is_meant(
    text: str, method: str, shape: tuple[int, ...], align: int, expected: tuple[int, int]
) -> None:
    site = report(conv(random(*shape)), text, Policy(method=method, align=align, allow_slower=True))
    assert site.choice == Choice(method, Ranks(*expected))


def test_a_rank_above_the_channels_is_clamped_and_said(cli: Cli, small: Path) -> None:
    outcome = cli("rewrite", small, "--dry-run", "--rank", "in=100,out=8", "--allow-slower")
    assert outcome.code == 0
    assert "clamped" in outcome.out
    assert "clamped" not in cli("rewrite", small, "--dry-run", "--rank", "8").out


# What is refused
# ---------------

SHARE = r"a fraction must not exceed 1\.0|write a share with a decimal point, from 0\.0 to 1\.0"
BAD = {
    "energy=1.5": SHARE,
    "params=1.01": SHARE,
    "energy=1": SHARE,
    "params=2": SHARE,
    "energy=0": "above 0",
    "macs=0.0": "above 0",
    "macs=-1": "'-1' is neither",
    "energy=": "'' is neither",
    "energy=nan": "'nan' is neither",
    "energy=90%": "'90%' is neither",
    "vbmf=3": "write 0.25",
    "vbmf=": "write 0.25",
    "VBMF": "'VBMF' is neither",
    "energy": "'energy' is neither",
    "energy=0.9,params=0.5": "write 0.25",
    "energy=0.9,energy=0.9": "write 0.25",
    "macs=0.5,": "write 0.25",
    "rank=0.5": "write 0.25",
    "-4": "'-4' is neither",
    "-0.5": "'-0.5' is neither",
    "0": "above 0",
    "in=-1,out=8": "'-1' is neither",
    "in=0,out=0.5": "above 0",
}


@pytest.mark.parametrize(("text", "why"), BAD.items())
def test_a_bad_rank_is_refused_in_one_line(cli: Cli, small: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as error:
        parse_rank(text)
    assert str(error.value).startswith(f"`rank` {text}: ")
    message = cli("rewrite", small, "out.onnx", f"--rank={text}").refusal()
    assert message == str(error.value).replace("`rank`", "--rank", 1)
    for word in ("0.25", "energy=0.9", "vbmf", "params=0.5", "macs=0.5"):
        assert word in message


@pytest.mark.parametrize(
    "text", ["1" + "0" * 400, "9" * 5000, "0." + "1" * 5000, "energy=0." + "0" * 5000 + "1"]
)
def test_long_numbers_are_numbers_or_refused(text: str) -> None:
    model = conv(random(16, 16, 3, 3))
    try:
        ranks = report(model, text, EXACT).choice.ranks
    except UsageError as error:
        assert str(error).startswith("`rank` ")
    else:
        assert 1 <= ranks.input <= 16 and 1 <= ranks.output <= 16


def test_an_unknown_method_is_refused(cli: Cli, small: Path) -> None:
    message = cli("rewrite", small, "out.onnx", "--rank", "0.5", "--method", "foo").refusal()
    assert message.startswith("Invalid value for '--method': 'foo' is not one of ")
    assert all(method in message for method in (*METHODS, "auto"))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_keeps_the_sites_it_does_not_fit(method: str) -> None:
    text = """g (float[1,32,20,20] x, float[1,32,20] z)
        => (float[1,32,20,20] a, float[1,32,20,20] b, float[1,32,18] c) {
        [wide] a = Conv <pads=[1,1,1,1]> (x, w)
        [point] b = Conv (x, p)
        [line] c = Conv (z, l)
    }"""
    weights = {"w": random(32, 32, 3, 3), "p": random(32, 32, 1, 1), "l": random(32, 32, 3)}
    model = nets.model(text, **{name: array.astype(np.float32) for name, array in weights.items()})
    fits = {
        "svd": {"point"},
        "spatial": {"wide"},
        "cp": {"wide"},
        "cp3": {"wide", "line"},
        "tucker1": {"wide", "line"},
        "tucker2": {"wide", "line"},
    }
    result = rewrite(model, 4, policy=Policy(method=method))
    assert {name: choice.method for name, choice in result.plan.sites.items()} == dict.fromkeys(
        fits[method], method
    )
    for site in result.sites:
        if site.choice is None:
            assert site.reason.startswith(f"{method} does not fit a kernel of ")


RULES = ["0.25", "8", "energy=0.9", "vbmf", "params=0.5", "macs=0.5"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rule", RULES)
def test_a_weight_that_is_not_finite_is_kept(cli: Cli, tmp_path: Path, rule: str, value: float) -> None:
    text = """g (float[1,16,8,8] x) => (float[1,32,8,8] y, float[1,32,8,8] z) {
        [sick] y = Conv <pads=[1,1,1,1]> (x, s)
        [well] z = Conv <pads=[1,1,1,1]> (x, w)
    }"""
    sick = nets.weight(32, 16, 3, 3)
    sick[3, 2, 1, 1] = value
    path = save(nets.model(text, s=sick, w=nets.weight(32, 16, 3, 3, seed=1)), tmp_path / "in.onnx")
    report_file, options = tmp_path / "report.json", ("--rank", rule, "--allow-slower")
    outcome = cli("rewrite", path, tmp_path / "out.onnx", *options, "--no-check", "--json", report_file)
    assert outcome.code == 0, outcome.err
    sites = {site["name"]: site for site in json.loads(report_file.read_text())["sites"]}
    assert sites["sick"]["reason"] == "its weight has NaN or Inf"
    assert sites["well"]["status"] == "rewritten"
    alone = cli("rewrite", path, tmp_path / "out.onnx", *options, "--only", "sick")
    assert "its weight has NaN or Inf" in alone.refusal(code=3)


# Plans
# -----

# Every kind of site; two of them share a weight.
KINDS = """g (float[1,16,12,12] x) => (float[1,10] y, float[1,16,6,6] z) {
    [wide] a = Conv <pads=[1,1,1,1]> (x, w)
    [again] b = Conv <pads=[1,1,1,1]> (a, w)
    [point] c = Conv <strides=[2,2]> (b, p)
    [strided] z = Conv <pads=[1,1,1,1], strides=[2,2]> (a, v)
    d = GlobalAveragePool (c)
    e = Flatten (d)
    [hidden] f = MatMul (e, m)
    [head] y = Gemm <transB=1> (f, h, t)
}"""


def kinds() -> ModelProto:
    shapes = {
        "w": (16, 16, 3, 3),
        "v": (16, 16, 3, 3),
        "p": (48, 16, 1, 1),
        "m": (48, 40),
        "h": (10, 40),
        "t": (10,),
    }
    weights = {
        name: nets.weight(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items()) if name != "t"
    }
    return nets.model(KINDS, **weights, t=nets.signal(10))


def planned(**sites: tuple[str, int | None, int | None]) -> Plan:
    entries = {n: {"method": m, "ranks": {"in": i, "out": o}} for n, (m, i, o) in sites.items()}
    return Plan.from_json(json.dumps({"version": 1, "sites": entries}))


@pytest.mark.parametrize("method", ONE_RANK)
def test_a_plan_gives_one_rank_twice(method: str) -> None:
    assert planned(a=(method, 8, 8)).sites == {"a": Choice(method, Ranks(8, 8))}
    with pytest.raises(
        UsageError, match=rf"^`text`: plan, site 'a': {method} has a single rank; give in and out the same"
    ):
        planned(a=(method, 8, 9))
    for ranks in ((8, None), (None, 8)):
        with pytest.raises(
            UsageError, match=rf"^`text`: plan, site 'a': {method} needs a rank for both modes"
        ):
            planned(a=(method, *ranks))


@pytest.mark.parametrize(
    ("site", "fitting"),
    [
        ("wide", {"tucker2", "tucker1", "spatial", "cp", "cp3"}),
        ("point", {"svd"}),
        ("hidden", {"svd"}),
        ("head", {"svd"}),
    ],
)
def test_a_plan_with_a_method_that_does_not_fit_names_it(site: str, fitting: set[str]) -> None:
    for method in METHODS:
        plan = planned(**{site: (method, 4, None if method == "tucker1" else 4)})
        if method in fitting:
            assert rewrite(kinds(), plan=plan).plan == plan
        else:
            with pytest.raises(UsageError, match=rf"^`plan`, site '{site}'.*\b{method}\b.* would fit"):
                rewrite(kinds(), plan=plan)


@pytest.mark.parametrize(
    ("site", "method", "limit"),
    [("wide", "tucker2", 16), ("point", "svd", 16), ("head", "svd", 10), ("wide", "spatial", 48)],
)
def test_a_plan_may_not_exceed_the_rank_there_is(site: str, method: str, limit: int) -> None:
    assert (
        rewrite(kinds(), plan=planned(**{site: (method, limit, limit)})).plan.sites[site].ranks.input == limit
    )
    with pytest.raises(
        UsageError, match=rf"^`plan`, site '{site}': rank in={limit + 1} exceeds .*\b{limit}\b"
    ):
        rewrite(kinds(), plan=planned(**{site: (method, limit + 1, limit + 1)}))


@pytest.mark.usefixtures("hasty_cp")
@pytest.mark.parametrize("rule", ["8", "energy=0.6", "macs=0.5", "vbmf"])
@pytest.mark.parametrize("policy", [*((m,) for m in (None, *METHODS, "auto")), (None, "linear")])
def test_a_plan_saved_is_the_rewrite_again(policy: tuple[str | None, ...], rule: str) -> None:
    chosen = Policy(method=policy[0], linear="linear" in policy, allow_slower=True, min_channels=8, align=4)
    first = rewrite(kinds(), rule, policy=chosen)
    assert not first.plan.sites.keys() - {"wide", "again", "point", "strided", "hidden", "head"}
    if policy[0] in ("svd", "auto") or chosen.linear:
        assert "hidden" in first.plan.sites
    again = rewrite(kinds(), plan=Plan.from_json(first.plan.to_json()))
    assert again.plan == first.plan
    assert again.model.SerializeToString() == first.model.SerializeToString()


def test_a_plan_file_from_the_command_line_is_the_rewrite_again(cli: Cli, tmp_path: Path) -> None:
    path = save(kinds(), tmp_path / "in.onnx")
    first, again, plan = (tmp_path / name for name in ("first.onnx", "again.onnx", "plan.json"))
    options = ("--rank", "params=0.5", "--linear", "--min-channels", "8", "--align", "4", "--save-plan", plan)
    assert cli("rewrite", path, first, *options).code == 0
    assert {"wide", "point", "hidden"} <= json.loads(plan.read_text())["sites"].keys()
    assert cli("rewrite", path, again, "--plan", plan).code == 0
    assert first.read_bytes() == again.read_bytes()
    onnx.checker.check_model(onnx.load(again))
