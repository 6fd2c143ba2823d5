"""The texts of options as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnxdecomp
from onnxdecomp import ir, sampling
from onnxdecomp.errors import UsageError

if TYPE_CHECKING:
    from onnxdecomp.sampling import Preprocessing
    from onnxdecomp.searching import Goal

# Beyond these a number is a slip of the finger: a dimension, threads or jobs, a side of a picture (JPEG's).
MOST_ALONG, MOST_THREADS, _MOST_PIXELS = 2**31 - 1, 1024, 65535


def parse_input_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """`["x:1,3,224,224"]` as `{"x": (1, 3, 224, 224)}`; a scalar is `x:`.

    Raises:
        UsageError: a text is not of that form.
    """
    return dict(ir.as_input_shapes(texts))


def parse_preprocessing(
    *,
    preset: str | None = None,
    image_size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    scale: float | None = None,
    channels: str | None = None,
    layout: str | None = None,
) -> Preprocessing | None:
    """What the options ask for, the others over the preset's; None if none is given.

    Args:
        preset: one of PRESETS.
        image_size: "H,W", or one number for both.
        mean: numbers with commas between them.
        std: likewise.
        scale: as in Preprocessing.
        channels: as in Preprocessing.
        layout: as in Preprocessing.

    Raises:
        UsageError: an option cannot be understood.
    """
    given = {
        "scale": scale,
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
        "channels": channels,
        "layout": layout,
        "size": _size(image_size),
    }
    chosen = sampling.PRESETS.get(preset or "", {}) | {k: v for k, v in given.items() if v is not None}
    return sampling.Preprocessing(**chosen) if chosen else None


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {text}: write numbers, as in 0.485,0.456,0.406") from error


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        sizes = [int(part) for part in text.split(",")]
        height, width = sizes * 2 if len(sizes) == 1 else sizes
    except ValueError as error:
        raise UsageError(f"--image-size {text}: write H,W or one number, as in 224,224") from error
    if max(height, width) > _MOST_PIXELS:
        raise UsageError(f"--image-size {text}: no side is above {_MOST_PIXELS} pixels")
    return height, width


def parse_goal(given: Mapping[str, float | None]) -> Goal:
    """The one goal among options.

    Raises:
        UsageError: none or several, or a value that no model can have.
    """
    named = {kind: value for kind, value in given.items() if value is not None}
    if len(named) != 1:
        what = "a goal is missing" if not named else "there are several goals"
        options = ", ".join(f"--{kind.replace('_', '-')}" for kind in given)
        raise UsageError(f"{what}: give one of {options}")
    ((kind, value),) = named.items()
    return onnxdecomp.Goal(kind, value)


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """`["a=b"]` as `{"a": "b"}`.

    Raises:
        UsageError: a text is not of that form.
    """
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UsageError(f"--provider-option {text}: write KEY=VALUE")
        options[key] = value
    return options


def parse_counts(option: str, text: str, most: int) -> list[int]:
    """`"1,8"` as `[1, 8]`, without repetitions.

    Args:
        option: whose text it is.
        text: numbers with commas between them.
        most: what none is above.

    Raises:
        UsageError: the text of `option` is not of that form.
    """
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise UsageError(f"{option} {text}: write positive whole numbers, as in 1,8")
    if max(counts) > most:
        raise UsageError(f"{option} {text}: {most} is the most")
    return list(dict.fromkeys(counts))
