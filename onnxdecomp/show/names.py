"""Long names cut to a width, so that they still tell each other apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

CUT = "…"
_SEPARATORS = f"/._:{CUT}"


def shortened(names: Sequence[str], width: int) -> list[str]:
    """The names, those that are longer than `width` characters cut in the middle.

    Names that differ stay different: names that would be cut to one text are cut around the place where they
    differ, and if that is not enough they are numbered.
    """
    texts = {name: _cut(name, width) for name in dict.fromkeys(names)}
    for alike in _alike(texts):
        first = len(os.path.commonprefix(alike))  # noqa: RUF071  (of characters, not of folders)
        texts |= {name: _around(name, first, width) for name in alike}
    for alike in _alike(texts):
        for number, name in enumerate(alike, 1):
            texts[name] = _numbered(name, number, width, set(texts.values()))
    return [texts[name] for name in names]


def broken(name: str, width: int) -> str:
    """A name on two lines of `width` characters, the first one ended behind a separator where that can be."""
    if len(name) <= width:
        return name
    fitting = range(max(len(name) - width, 1), width + 1)
    place = next((i for i in reversed(fitting) if name[i - 1] in _SEPARATORS), width)
    return f"{name[:place]}\n{name[place:]}"


def _alike(texts: Mapping[str, str]) -> list[list[str]]:
    """The names that share a text, by text."""
    found: dict[str, list[str]] = {}
    for name, text in texts.items():
        found.setdefault(text, []).append(name)
    return [names for names in found.values() if len(names) > 1]


def _cut(name: str, width: int) -> str:
    """Both ends; the end that says more, the later one, gets more of the room."""
    if len(name) <= width:
        return name
    head = (width - len(CUT)) // 3
    tail = width - len(CUT) - head
    return name[:head] + CUT + name[len(name) - tail :]


def _around(name: str, place: int, width: int) -> str:
    """The beginning, what stands around `place`, and the end."""
    if len(name) <= width:
        return name
    end = (width - 2 * len(CUT)) // 4
    room = width - end - len(CUT)
    # From a little before the place on, as words do not begin where they differ.
    rest = name[max(end, min(place - end // 2, len(name) - room)) :]
    if len(rest) > room:
        rest = rest[: room - len(CUT) - end] + CUT + rest[len(rest) - end :]
    return name[:end] + CUT + rest


def _numbered(name: str, number: int, width: int, taken: set[str]) -> str:
    """A text that no other name has: with a number at its end."""
    while True:
        end = f" ({number})"
        text = _cut(name, width - len(end)) + end
        if text not in taken:
            return text
        number += 1
