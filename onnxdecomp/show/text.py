"""Words and numbers, as tables show them."""

from __future__ import annotations

import re

from rich.markup import escape as _escape_markup

from onnxdecomp.errors import printable

UNKNOWN = "?"
_VALUES = "--preset imagenet, 0-1 or caffe, or --scale, --mean, --std"
# The options of the command line by the names of parameters in Python, which messages give in backticks.
FLAGS = {
    "align": "--align",
    "allow_slower": "--allow-slower",
    "batch": "--batch",
    "augment": "--no-augment",
    "batches": "--batch",
    "best_effort": "--best-effort",
    "channels": "--channels",
    "cost": "--cost",
    "count": "--samples",
    "cuda_graph": "--cuda-graph",
    "data": "--data",
    "device": "--device",
    "duration": "--duration",
    "fold_bn": "--no-fold-bn",  # on unless told otherwise, so a message that names it means without
    "freeze_weights": "--freeze-weights",
    "input_shapes": "--input-shape",
    "jobs": "--jobs",
    "labels": "--labels",
    "layout": "--layout",
    "linear": "--linear",
    "macs": "--macs",
    "max_drop": "--max-drop",
    "max_error": "--max-error",
    "mean": "--mean",
    "method": "--method",
    "metric": "--metric",
    "min_agreement": "--min-agreement",
    "min_channels": "--min-channels",
    "only": "--only",
    "open_samples(…, preprocessing=Preprocessing.imagenet())": _VALUES,
    "options": "--provider-option",
    "params": "--params",
    "per_layer": "--per-layer",
    "plan": "--plan",
    "plot": "--plot",
    "precision": "--precision",
    "preset": "--preset",
    "provider": "--provider",
    "providers": "--provider",
    "rank": "--rank",
    "runs": "--runs",
    "samples": "--data",
    "scale": "--scale",
    "size": "--size",
    "Preprocessing.size": "--image-size",
    "seed": "--seed",
    "skip": "--skip",
    "source": "--data",
    "speedup": "--speedup",
    "std": "--std",
    "steps": "--steps",
    "storage": "--storage",
    "study": "--study",
    "threads": "--threads",
    "time_limit": "--time-limit",
    "train": "--train",
    "trials": "--trials",
    "Tuning.time_limit": "--tune-limit",
    "tuning": "--tune",
}
# A word of its own: names that a message quotes may hold backticks, too.
_NAMED = re.compile(r"(?<![\w'])`([\w.]+|open_samples\([^`]*\))`(?![\w'])")


def escape(text: str) -> str:
    """`text` as it stands: neither markup nor control characters take effect."""
    return _escape_markup(printable(text))


def with_flags(text: str) -> str:
    """A message as users of the command line know it: `name`, backticks included, as the option of that name.

    Names without an option stay as they are.
    """
    return _NAMED.sub(lambda found: FLAGS.get(found[1], found[0]), text)


def sentence(text: str) -> str:
    """A reason or a note for a table: the options that it names, and else `text` as it stands."""
    return escape(with_flags(text))


def si(value: float | None, unit: str = "") -> str:
    """`value` in three digits with its SI prefix: 1.61 M, 44.7 MB; "?" where not known."""
    if value is None:
        return UNKNOWN
    for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return (
                f"{value / scale:.3g} {prefix}{unit}"
                if value < 999.5 * scale
                else f"{value / scale:.0f} {prefix}{unit}"
            )
    return f"{value:g} {unit}".rstrip()


def ratio(before: int | None, after: int | None) -> str:
    """How many times less or more, empty where that is not known or nothing changed."""
    if not before or not after or before == after:
        return ""
    return f"{before / after:.2f}× less" if before > after else f"{after / before:.2f}× more"
