"""What a unit is fitted to, gathered from the patches and products of its sites on samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.factors import Floats
from onnxdecomp.fitting.heads import Head
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.target import Target
from onnxdecomp.fitting.wide import PatchBlock, WideTarget

# Above so many values in a patch, factors are judged on one of the folds only: more take time, and change
# nothing.
_ONE_FOLD = 512
# Above so many, only the covariance of the channels is used.
WIDEST_PATCH = 8192


BLIND = "it sees nothing on these samples: its input is zero, or always the same"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """What a unit is fitted to.

    Attributes:
        weight: the original, in float64, shape (D, C / groups, *kernel).
        heads: of its sites, those that can be fitted.
        target: the moments, or why there are none.
    """

    weight: Floats
    heads: tuple[Head, ...]
    target: Target | WideTarget | str


def gather(
    blocks: Callable[[], Iterable[PatchBlock]], weight: Floats, groups: int, lead: Head, folds: int
) -> Target | WideTarget | str:
    """The moments of a unit's patches and products, or why it has none.

    Args:
        blocks: reads all blocks, as often as it is called.
        weight: the original, shape (D, C / groups, *kernel).
        groups: channel groups.
        lead: the first site.
        folds: of the samples.
    """
    taps = math.prod(weight.shape[2:])
    inputs, outputs = weight.shape[1] * taps, weight.shape[0] // groups
    added = lead.bias * (lead.beta / lead.alpha)
    if inputs > WIDEST_PATCH:
        return WideTarget(blocks=blocks, weight=weight, groups=groups, centred=lead.centred, bias=added)
    judged = 1 if inputs > _ONE_FOLD and folds > 2 else folds
    count = min(judged + 1, folds)
    moments = [[Moments.zero(outputs, inputs) for _ in range(groups)] for _ in range(count)]
    for fold, group, x, y in blocks():
        parts = moments[min(fold, count - 1)]
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused below
            parts[group] = parts[group].add(x, y)
    if not all(part.finite() for parts in moments for part in parts):
        return "its input or output has NaN or Inf on these samples"
    if not all(parts[0].count for parts in moments):
        return "too few of these samples reach it"
    return Target(
        moments=moments,
        weight=weight,
        centred=lead.centred,
        bias=added,
        alpha=lead.alpha,
        judged=judged if judged < folds else None,
    )


def require_sight(parameter: str, outcomes: Sequence[object]) -> None:
    """Refuse samples on which none of the sites sees anything.

    Args:
        parameter: by which they were given, for messages.
        outcomes: of the sites; BLIND where one saw nothing.

    Raises:
        UsageError: all of them are BLIND.
    """
    if outcomes and all(each == BLIND for each in outcomes):
        raise UsageError(
            f"`{parameter}`: on these samples every site's input is zero or always the same; give samples "
            "as the model meets them"
        )
