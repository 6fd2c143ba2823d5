"""The rank grammar, from the text to the shapes of the factors in the model."""

from __future__ import annotations

import math
from fractions import Fraction

import nets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import rewrite
from onnx import ModelProto

from onnxdecomp import Choice, Policy, Ranks, UsageError


def conv(c_in: int, c_out: int, group: int = 1) -> ModelProto:
    """A 3×3 Conv on 100 × 100 positions, without padding."""
    return nets.model(
        f"""g (float[1,{c_in},100,100] x) => (float[1,{c_out},98,98] y) {{
            [conv] y = Conv <group={group}> (x, w)
        }}""",
        w=nets.weight(c_out, c_in // group, 3, 3),
    )


def shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of each factor of the site `conv`, by role."""
    values = nets.constants(model)
    return {role: values[node.input[1]].shape for role, node in nets.chain(model, "conv").items()}


def test_a_quarter_of_64_to_128_channels_is_the_published_example() -> None:
    result = rewrite(conv(64, 128), rank=0.25)
    (report,) = result.sites

    assert result.plan.sites == {"conv": Choice("tucker2", Ranks(32, 32))}
    assert shapes(result.model) == {"in": (32, 64, 1, 1), "core": (32, 32, 3, 3), "out": (128, 32, 1, 1)}
    assert report.to_dict()["params"] == {"before": 73_728, "after": 15_360}
    assert report.to_dict()["macs"] == {"before": 708_083_712, "after": 148_328_448}
    assert result.to_dict()["total"]["params"] == {"before": 73_728, "after": 15_360}
    assert sum(array.size for array in nets.constants(result.model).values()) == 15_360


# text, channels of a group (in, out), align, ranks (in, out)
TABLE = [
    ("0.25", (64, 128), 8, (32, 32)),
    ("0.25", (128, 64), 8, (16, 16)),
    ("0.25", (16, 256), 8, (16, 64)),  # a quarter of the output channels is more than there are inputs
    ("0.25", (100, 100), 8, (32, 32)),  # 25, rounded up
    ("0.25", (100, 100), 16, (32, 32)),
    ("0.25", (100, 100), 1, (25, 25)),
    ("0.25", (10, 10), 8, (8, 8)),
    ("0.9", (30, 30), 8, (30, 30)),  # 27 rounds up to 32
    ("0.5", (8, 8), 64, (8, 8)),
    ("0.001", (64, 64), 8, (8, 8)),
    ("0.001", (64, 64), 1, (1, 1)),
    (".5", (64, 64), 8, (32, 32)),
    ("1.", (64, 48), 8, (48, 48)),
    ("1.0", (48, 64), 8, (48, 64)),
    ("0.1", (30, 30), 1, (3, 3)),  # in binary 0.1 · 30 is a little more than 3
    ("0.07", (100, 100), 1, (7, 7)),
    ("0.29", (100, 100), 1, (29, 29)),
    ("in=0.25,out=0.5", (64, 128), 8, (16, 64)),
    ("out=0.5,in=0.25", (64, 128), 8, (16, 64)),
    ("in=1.0,out=1.0", (3, 7), 8, (3, 7)),
    ("in=0.1,out=0.9", (100, 100), 8, (16, 96)),
    ("32", (64, 128), 8, (32, 32)),
    ("30", (64, 128), 8, (30, 30)),  # channels are taken at their word
    ("1", (64, 128), 8, (1, 1)),
    ("100", (64, 128), 8, (64, 100)),
    ("in=16,out=32", (64, 128), 8, (16, 32)),
    ("in=13,out=999", (64, 128), 8, (13, 128)),
    ("in=16,out=0.5", (64, 128), 8, (16, 64)),
    (" 0.25 ", (64, 128), 8, (32, 32)),
]


def chosen(rank: str | float, channels: tuple[int, int], align: int) -> tuple[int, int]:
    """The ranks that a two-sided chain of a Conv with `channels` gets."""
    c_in, c_out = channels
    model = nets.model(
        f"g (float[1,{c_in},4] x) => (float[1,{c_out},3] y) {{ [conv] y = Conv(x, w) }}",
        w=nets.weight(c_out, c_in, 2),
    )
    policy = Policy(method="tucker2", min_channels=1, align=align, allow_slower=True)
    ranks = rewrite(model, rank, policy=policy).plan.sites["conv"].ranks
    return ranks.input, ranks.output


@pytest.mark.parametrize(("text", "channels", "align", "expected"), TABLE)
def test_ranks_of_one_group(
    text: str, channels: tuple[int, int], align: int, expected: tuple[int, int]
) -> None:
    assert chosen(text, channels, align) == expected


@settings(derandomize=True, deadline=None, database=None, max_examples=120)
@given(
    thousandths=st.integers(1, 1000),
    channels=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    align=st.integers(1, 20),
    per_mode=st.booleans(),
)
def test_a_fraction_is_rounded_up_to_the_next_multiple_and_no_further(
    thousandths: int, channels: tuple[int, int], align: int, per_mode: bool
) -> None:
    number = f"{thousandths / 1000:.3f}"
    text = f"in={number},out={number}" if per_mode else number
    of = (channels[0] if per_mode else channels[1], channels[1])
    for rank, width, base in zip(chosen(text, channels, align), channels, of, strict=True):
        aligned = math.ceil(Fraction(thousandths, 1000) * base / align) * align
        assert rank == min(aligned, width)


@pytest.mark.parametrize("number", [0.25, 0.1, 1.0, 1, 7, np.float32(0.25), np.float64(0.1), np.int64(7)])
def test_a_number_means_what_its_text_means(number: float) -> None:
    assert chosen(number, (20, 40), 1) == chosen(str(number), (20, 40), 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", (16, 16)),  # half of a group's 32 output channels, not of 64
        ("in=0.25,out=0.25", (8, 8)),
        ("in=9,out=10", (9, 10)),
        ("40", (24, 32)),
    ],
)
def test_ranks_count_channels_of_a_group(text: str, expected: tuple[int, int]) -> None:
    result = rewrite(conv(48, 64, group=2), text, policy=Policy(allow_slower=True))
    into, out = expected
    assert result.plan.sites["conv"].ranks == Ranks(into, out)
    assert shapes(result.model) == {
        "in": (2 * into, 24, 1, 1),
        "core": (2 * out, into, 3, 3),
        "out": (64, out, 1, 1),
    }


@pytest.mark.parametrize(
    "bad",
    [
        "0",
        "-1",
        "-0.5",
        "0.0",
        "1.5",
        "1.01",
        "abc",
        "",
        " ",
        "nan",
        "inf",
        "1e-1",
        "0x10",
        "1_000",
        "1/2",
        "25%",
        "0,25",
        "0.5,0.5",
        "in=0.5",
        "out=0.5",
        "in=0.5,in=0.5",
        "in=0.5,out=0.5,in=0.5",
        "in=0.5,out=0.5,rank=1",
        "in=0.5,out=",
        "in==0.5,out=0.5",
        "in=0.5,out=1.5",
        "in=0,out=8",
        "in=0.5;out=0.5",
        "IN=0.5,OUT=0.5",
        "energy",
        0,
        -4,
        0.0,
        1.5,
        float("nan"),
    ],
)
def test_what_is_not_a_rank_is_refused_by_name(bad: str | float) -> None:
    with pytest.raises(UsageError) as refusal:
        rewrite(conv(16, 16), bad)
    message = str(refusal.value)
    assert message.startswith(f"`rank` {str(bad).strip()}: ")
    assert "write 0.25, in=0.25,out=0.5, 32" in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "policy"), [("align", {"align": 0}), ("align", {"align": -8})])
def test_alignment_must_be_a_whole_channel(name: str, policy: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"^`{name}` "):
        Policy(**policy)
