"""Words and numbers, as tables show them."""

from __future__ import annotations

from rich.markup import escape as _escape_markup

from onnxdecomp.errors import printable

_UNKNOWN = "?"


def escape(text: str) -> str:
    """`text` as it stands: neither markup nor control characters take effect."""
    return _escape_markup(printable(text))


def si(value: float | None, unit: str = "") -> str:
    """`value` in three digits with its SI prefix: 1.61 M, 44.7 MB; "?" where not known."""
    if value is None:
        return _UNKNOWN
    for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return (
                f"{value / scale:.3g} {prefix}{unit}"
                if value < 999.5 * scale
                else f"{value / scale:.0f} {prefix}{unit}"
            )
    return f"{value:g} {unit}".rstrip()


def _ratio(before: int | None, after: int | None) -> str:
    if not before or not after or before == after:
        return ""
    return f"{before / after:.2f}× less" if before > after else f"{after / before:.2f}× more"
