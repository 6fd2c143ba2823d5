"""Tables that know how wide they may be: less important columns leave, long names are cut, words wrap."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from onnxdecomp.show.names import broken, shortened
from onnxdecomp.show.text import escape

# Columns for a name: too few, few enough to leave other columns out for, and enough to be read at ease.
_LEAST, _NAME, _EASE = 10, 20, 40
# A word of a heading that is longer may be broken.
_WORD = 16
_LINES = 2
_SHOWN_NAMES = 3

# What stands in a row: text with markup; in a column of names a name as it is, or several.
Cell = str | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How a column is shown.

    Attributes:
        title: its heading.
        right: whether it is aligned to the right.
        holds: "figures", which stay whole, "names", which may be cut, or "words", which may wrap.
        rank: where there is too little room, the column of the highest rank leaves first; 0 stays.
    """

    title: str
    right: bool = False
    holds: str = "figures"
    rank: int = 0


class Listing:
    """A table as wide as it may be; it says which columns it had to leave out."""

    def __init__(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
        self._columns = columns
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich asks for."""
        shown, widths = self._layout(options.max_width)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for i in shown:
            column = self._columns[i]
            justify = "right" if column.right else "left"
            table.add_column(escape(column.title), justify=justify, width=widths[i], overflow="fold")  # type: ignore[arg-type]
        texts = {i: list(self._texts(i, widths[i])) for i in shown}
        for number in range(len(self._rows)):
            table.add_row(*(texts[i][number] for i in shown))
        yield table
        missing = [column.title for i, column in enumerate(self._columns) if i not in shown]
        if missing:
            yield Text(f"left out here: {', '.join(dict.fromkeys(missing))} (-v shows them)")

    def _layout(self, width: int) -> tuple[list[int], dict[int, int]]:
        """The columns to show, and how wide they are."""
        needed = {i: self._needed(i, width) for i in range(len(self._columns))}
        shown = list(needed)
        while _table_width(needed[i] for i in shown) > width:
            least = max(self._columns[i].rank for i in shown)
            if not least:
                break
            shown = [i for i in shown if self._columns[i].rank < least]
        widths = {i: needed[i] for i in shown}
        # A name is given room to be read at ease before words and headings are, and what is left after them.
        for holds, most in (("names", _EASE), ("words", width), ("figures", width), ("names", width)):
            least = _LEAST if holds == "names" else width
            for i in (i for i in shown if self._columns[i].holds == holds):
                room = widths[i] + width - _table_width(widths.values())
                widths[i] = max(min(self._natural(i), most, room), min(widths[i], least))
        return shown, widths

    def _plain(self, i: int) -> list[str]:
        """The cells of a column as they are without markup, names whole."""
        cells = [row[i] for row in self._rows]
        if self._columns[i].holds == "names":
            return [_listed(cell, None) if isinstance(cell, tuple) else cell for cell in cells]
        return [Text.from_markup(cast(str, cell)).plain for cell in cells]

    def _natural(self, i: int) -> int:
        """The width at which nothing wraps."""
        return max(map(_cells, [self._columns[i].title, *self._plain(i)]))

    def _needed(self, i: int, width: int) -> int:
        """The least width at which the column can be read."""
        title = min(max(map(_cells, self._columns[i].title.split() or [""])), _WORD)
        texts = self._plain(i)
        longest = max(map(_cells, texts), default=0)
        if self._columns[i].holds == "names":
            return max(title, min(longest, _NAME))
        if self._columns[i].holds == "words":
            enough = next(
                (w for w in range(title, longest) if all(_fits(text, w) for text in texts)), longest
            )
            return max(title, min(enough, width // 3))
        return max(title, longest)

    def _texts(self, i: int, width: int) -> Iterator[str]:
        """The cells of a column as markup for a width."""
        cells = [row[i] for row in self._rows]
        if self._columns[i].holds != "names":
            yield from cast(list[str], cells)
            return
        names = [cell for cell in cells if isinstance(cell, str)]
        room = _LINES * width
        if max(map(len, names), default=0) > room:
            room -= width // 4  # what is cut anyhow leaves a line the choice of where to end
        single = iter(shortened(names, room))
        for cell in cells:
            text = _listed(cell, width) if isinstance(cell, tuple) else broken(next(single), width)
            yield escape(text)


def _listed(names: tuple[str, ...], width: int | None) -> str:
    """As many of the first names as fit, and how many more there are; one at least, cut if need be."""
    for count in range(min(len(names), _SHOWN_NAMES), 0, -1):
        rest = f" and {len(names) - count} more" if len(names) > count else ""
        text = ", ".join(names[:count]) + rest
        if width is None or (_fits(text, width) and max(map(len, names[:count])) <= width):
            return text
    return shortened(names, width)[0] + rest if width is not None else ""


def _fits(text: str, width: int) -> bool:
    """Whether a text takes no more lines than a row should."""
    return len(textwrap.wrap(text, width, break_on_hyphens=False)) <= _LINES


def _cells(text: str) -> int:
    return Text(text).cell_len


def _table_width(widths: Iterable[int]) -> int:
    """Of a table: a blank on both sides of every column, and one between two."""
    columns = list(widths)
    return sum(columns) + 3 * len(columns) - 1
