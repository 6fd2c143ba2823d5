"""Tables at any width: what leaves, what is cut, and that names still tell each other apart."""

from __future__ import annotations

import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from onnxdecomp.show.names import broken, shortened
from onnxdecomp.show.tables import Column, Listing

SCOPE = "StatefulPartitionedCall/" * 3 + "functional_1/backbone/"
LAYERS = [
    f"{SCOPE}conv{stage}_block{block}/residual_branch_with_shortcut/unit_{unit}/conv_{unit}/Conv2D"
    for stage in range(2, 5)
    for block in range(1, 4)
    for unit in range(1, 4)
]
COLUMNS = (
    Column(title="site", holds="names"),
    Column(title="kernel", rank=2),
    Column(title="ranks", rank=1),
    Column(title="weight error", right=True),
    Column(title="because", holds="words"),
)


def shown(listing: Listing, width: int) -> list[str]:
    """The lines of a table on a console of that width."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(listing)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def of_layers(names: list[str]) -> Listing:
    rows = [(name, "3×3", "in=128 out=128", "0.123", "too small to pay: 16 channels") for name in names]
    return Listing(COLUMNS, rows)


def rows_of(lines: list[str]) -> list[str]:
    """What stands below the rule, less what is said of columns that were left out."""
    rule = next(i for i, line in enumerate(lines) if line.startswith("─"))
    return [line for line in lines[rule + 1 :] if not line.startswith(("left out", "shows"))]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_long_names_take_two_lines_and_tell_each_other_apart(width: int) -> None:
    lines = shown(of_layers(LAYERS), width)
    assert max(map(len, lines)) <= width
    rows = rows_of(lines)
    assert len(rows) == 2 * len(LAYERS)
    end = rows[0].index("0.123") if width < 100 else rows[0].index("3×3")
    names = [rows[i][:end].split()[0] + rows[i + 1][:end].split()[0] for i in range(0, len(rows), 2)]
    assert len(set(names)) == len(LAYERS) and all(("…" in name) == (width < 160) for name in names)


def test_what_is_less_important_leaves_first_and_is_named() -> None:
    listing = of_layers(["/layer1/conv1", "/layer1/conv2"])
    heads = {width: shown(listing, width) for width in (100, 65, 50)}
    for width, missing in ((100, []), (65, ["kernel"]), (50, ["kernel", "ranks"])):
        lines = heads[width]
        text = "\n".join(lines)
        assert max(map(len, lines)) <= width
        assert "/layer1/conv1" in text and "0.123" in text
        assert [title for title in ("kernel", "ranks") if f" {title}" not in lines[0] + lines[1]] == missing
        assert ("left out here" in text) == bool(missing)
        for title in missing:
            assert title in text.split("left out here: ")[1]


def test_with_room_enough_everything_is_whole() -> None:
    text = "\n".join(shown(of_layers(LAYERS), 100_000))
    assert all(name in text for name in LAYERS) and "left out" not in text


def test_several_names_in_one_cell_say_how_many_more_there_are() -> None:
    columns = (Column(title="kept"), Column(title="sites", holds="names"))
    few, many = (tuple(f"/layer{i}/conv" for i in range(number)) for number in (2, 9))
    wide, narrow = (shown(Listing(columns, [("x", few), ("y", many)]), width) for width in (90, 40))
    assert wide[2].endswith("/layer0/conv, /layer1/conv")
    assert wide[3].endswith("/layer0/conv, /layer1/conv, /layer2/conv and 6 more")
    assert "more" in " ".join(narrow) and max(map(len, narrow)) <= 40
    long = shown(Listing(columns, [("x", tuple(LAYERS))]), 60)
    assert len(rows_of(long)) <= 2 and f"and {len(LAYERS) - 1} more" in " ".join(long)


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("names", [LAYERS, [name.split("backbone")[1] for name in LAYERS]])
def test_lines_of_a_name_end_where_a_word_does(names: list[str], width: int) -> None:
    rows = rows_of(shown(of_layers(names), width))
    firsts = [row.split()[0] for row in rows[::2]]
    assert any(len(first) < len(name) for first, name in zip(firsts, names, strict=True))
    assert all(first == name or first[-1] in "/_.…" for first, name in zip(firsts, names, strict=True))


@given(st.text("ab/_ ", min_size=1, max_size=80), st.integers(12, 40))
def test_a_name_is_whole_on_two_lines_that_fit(name: str, width: int) -> None:
    lines = broken(name[: 2 * width], width).split("\n")
    assert "".join(lines) == name[: 2 * width]
    assert len(lines) <= 2 and all(0 < len(line) <= width for line in lines)


NAMES = st.lists(st.text("ab/", min_size=1, max_size=60), min_size=1, max_size=12)


# They differ at two places, too far from each other to show both.
FAR = [f"{'m' * 40}{first}{'n' * 40}{second}{'o' * 40}" for first in "xy" for second in "pq"]


@given(NAMES, st.integers(12, 40))
@example(FAR, 20)
def test_names_that_differ_stay_different_and_fit(names: list[str], width: int) -> None:
    texts = shortened(names, width)
    assert all(len(text) <= width for text in texts)
    assert len(set(texts)) == len(set(names))
    assert len(set(zip(names, texts, strict=True))) == len(set(names))


def test_names_that_fit_stay_as_they_are() -> None:
    names = ["conv", "x" * 30, "y" * 31]
    assert shortened(names, 30)[:2] == names[:2]
    assert shortened(names, 30)[2] == "y" * 9 + "…" + "y" * 20
