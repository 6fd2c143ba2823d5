"""Values in one line, however much they hold: what an interpreter, a notebook or a debugger shows of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_LONGEST = 280
# Characters of one attribute, in turn until all of them fit.
_WIDTHS = (120, 80, 40, 20)
_PLAIN = (bool, int, float, str, bytes, os.PathLike, type(None))


def abridged(value: type[T]) -> type[T]:
    """Let a dataclass show its attributes in one line of less than 300 characters; what is long is counted.

    Attributes of `field(repr=False)` are left out, as in every dataclass.
    """
    value.__repr__ = _line  # type: ignore[method-assign]
    return value


def _line(value: Any) -> str:
    line = ""
    for width in _WIDTHS:
        shown = (field.name for field in dataclasses.fields(value) if field.repr)
        line = ", ".join(f"{name}={_short(getattr(value, name), width)}" for name in shown)
        if len(line) <= _LONGEST - len(type(value).__name__):
            break
    return f"{type(value).__name__}({_cut(line, _LONGEST - len(type(value).__name__))})"


def _short(value: Any, width: int) -> str:
    """A value in up to so many characters; what is longer by its class, and its size where it has one."""
    if isinstance(value, _PLAIN):
        return _cut(repr(value), width)
    name = type(value).__name__
    if hasattr(value, "shape"):
        return f"<{name} {'×'.join(map(str, value.shape))}>"
    if dataclasses.is_dataclass(value):
        line = repr(value)
        return line if len(line) <= width else f"<{name}>"
    if isinstance(value, BaseException):
        return _cut(repr(value), width)
    if not hasattr(value, "__len__"):
        return f"<{name}>"
    if len(value) <= 4:
        line = _items(value, width)
        if len(line) <= width:
            return line
    return f"<{name} of {len(value)}>"


def _items(value: Any, width: int) -> str:
    if isinstance(value, Mapping):
        pairs = (f"{_short(key, width)}: {_short(each, width)}" for key, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    items = ", ".join(_short(each, width) for each in value)
    if isinstance(value, tuple):
        return f"({items},)" if len(value) == 1 else f"({items})"
    return f"[{items}]" if isinstance(value, list) else f"{{{items}}}"


def _cut(text: str, width: int) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= width else f"{text[: width // 2]}…{text[1 - (width + 1) // 2 :]}"
